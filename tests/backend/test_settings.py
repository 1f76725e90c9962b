"""Settings: one name each, and an error that names the variable and its value."""

from __future__ import annotations

from pathlib import Path

import pytest
from gradspectra_backend.settings import Settings, SettingsError, is_loopback, load_settings, unknown_variables

ROOT = Path(__file__).parents[2]


def test_a_variable_sets_the_field_of_its_name(monkeypatch):
    monkeypatch.setenv("GRADSPECTRA_PORT", "8000")
    monkeypatch.setenv("GRADSPECTRA_ALLOWED_HOSTS", "one.example, *.two.example")
    settings = load_settings()
    assert settings.port == 8000
    assert settings.allowed_hosts == ("one.example", "*.two.example")


def test_an_argument_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("GRADSPECTRA_PORT", "8000")
    assert load_settings(port=9000, host=None).port == 9000


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PORT", "99999", "GRADSPECTRA_PORT='99999'"),
        ("PORT", "http", "GRADSPECTRA_PORT='http'"),
        ("DATABASE_URL", "mysql://x/y", "must start with sqlite:/// or postgresql://"),
        ("REDIS_URL", "http://x", "must start with redis://"),
        (
            "REDIS_URL",
            "amqp://me:s3cret@mq//",
            "no other broker, such as RabbitMQ (amqp://)",
        ),
        ("REDIS_URL", "redis://:s3/cret@redis/0", "GRADSPECTRA_REDIS_URL='redis://:***@redis/0': its port must be"),
        ("DATABASE_URL", "mysql://me:s3:cr@t/k@db/x", "GRADSPECTRA_DATABASE_URL='mysql://me:***@db/x'"),
        ("REDIS_URL", "http://:s3cret@redis/0", "GRADSPECTRA_REDIS_URL='http://:***@redis/0'"),
        ("SQLITE_SYNCHRONOUS", "OFF", "'NORMAL' or 'FULL'"),
        ("ALLOWED_HOSTS", "a*.example", "must look like *.example.com"),
        ("PROCESSES", "4", "needs GRADSPECTRA_REDIS_URL"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(monkeypatch, name, value, words):
    monkeypatch.setenv(f"GRADSPECTRA_{name}", value)
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert words in str(error.value)


def test_postgresql_urls_get_the_driver_we_use():
    assert load_settings(database_url="postgresql://u@h/d").database == "postgresql+psycopg://u@h/d"
    assert load_settings(database_url="postgres://u@h/d").database == "postgresql+psycopg://u@h/d"


def test_the_database_lies_in_the_data_folder_unless_it_is_named(tmp_path):
    assert load_settings(data=tmp_path).database == f"sqlite:///{tmp_path}/gradspectra.db"
    assert load_settings(data=tmp_path, database_url="sqlite:////x.db").database == "sqlite:////x.db"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("127.8.8.8", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.1", False),
        ("example.com", False),
        ("", False),
    ],
)
def test_only_loopback_addresses_go_without_tokens(host, loopback):
    assert is_loopback(host) is loopback
    assert load_settings(host=host).tokens_required is not loopback


def test_a_proxy_on_the_same_machine_is_no_loopback_caller():
    assert load_settings(auth="tokens").tokens_required
    assert load_settings(allowed_hosts="train.example").tokens_required


def test_a_loopback_server_answers_to_loopback_names_only():
    assert load_settings().hosts == ("localhost", "127.0.0.1", "[::1]")
    assert load_settings(host="127.0.0.2").hosts == ("localhost", "127.0.0.1", "[::1]", "127.0.0.2")
    assert load_settings(host="0.0.0.0").hosts == ("*",)
    assert "train.example" in load_settings(host="0.0.0.0", allowed_hosts="train.example").hosts


def test_a_misspelt_variable_is_found():
    variables = {"GRADSPECTRA_DATABSE_URL": "x", "GRADSPECTRA_PORT": "1", "GRADSPECTRA_TOKEN": "t", "PATH": "/"}
    assert unknown_variables(variables) == ["GRADSPECTRA_DATABSE_URL"]


def test_every_setting_has_its_line_in_the_docs():
    text = (ROOT / "docs" / "settings.md").read_text("utf-8")
    for name, field in Settings.model_fields.items():
        assert f"`GRADSPECTRA_{name.upper()}`" in text
        assert field.description
        assert field.description in text
