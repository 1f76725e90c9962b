"""docker-compose.yml and the Dockerfile hold together: names of settings, commands, users and health checks exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("api", "worker", "beat")
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def tool(name: str) -> str:
    """Path of a checking tool; the test is skipped where it is not installed (.ci/run always installs it)."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (the dev extra has it)")
    return found


def test_the_set_up_is_api_worker_beat_redis_and_postgres() -> None:
    assert set(SERVICES) == {"api", "worker", "beat", "redis", "postgres"}


def test_the_compose_file_follows_the_specification() -> None:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(ROOT / "docker-compose.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_passes_hadolint() -> None:
    done = subprocess.run([tool("hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_every_setting_named_in_the_deployment_files_is_one_of_the_server() -> None:
    from gradspectra_backend.settings import Settings

    known = {f"GRADSPECTRA_{name.upper()}" for name in Settings.model_fields}
    used = set(re.findall(r"GRADSPECTRA_[A-Z_]+", (ROOT / "docker-compose.yml").read_text() + DOCKERFILE))
    assert {"GRADSPECTRA_DATABASE_URL", "GRADSPECTRA_REDIS_URL"} <= used
    assert used - known == set()


def test_several_api_processes_have_the_redis_they_need() -> None:
    environment = SERVICES["api"]["environment"]
    assert int(environment["GRADSPECTRA_PROCESSES"]) >= 2
    assert environment["GRADSPECTRA_REDIS_URL"] == SERVICES["worker"]["environment"]["GRADSPECTRA_REDIS_URL"]


@pytest.mark.parametrize("service", OURS)
def test_a_service_runs_a_command_that_exists(service: str) -> None:
    program, *arguments = SERVICES[service]["command"]
    assert program in ("gradspectra", "celery")
    if program == "gradspectra":
        command = [tool("gradspectra"), arguments[0], "--help"]
    else:
        assert arguments[:2] == ["-A", "gradspectra_worker.app"]
        command = [tool("celery"), "-A", "gradspectra_worker.app", arguments[2], "--help"]
    environment = os.environ | {"GRADSPECTRA_REDIS_URL": SERVICES[service]["environment"]["GRADSPECTRA_REDIS_URL"]}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("service", OURS)
def test_a_service_waits_for_database_and_redis(service: str) -> None:
    waits = SERVICES[service]["depends_on"]
    assert {name: waits[name]["condition"] for name in ("postgres", "redis")} == {
        "postgres": "service_healthy",
        "redis": "service_healthy",
    }


def test_what_others_wait_for_has_a_health_check() -> None:
    awaited = {name for service in SERVICES.values() for name in service.get("depends_on", {})}
    assert awaited == {"postgres", "redis", "api"}
    for name in awaited - {"api"}:
        assert SERVICES[name]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert "HEALTHCHECK" in DOCKERFILE
    assert "/api/v1/health" in DOCKERFILE


def test_only_the_api_is_published_and_only_on_this_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:7117:7117"]}


def test_the_password_may_have_any_character_since_it_is_part_of_no_address() -> None:
    for name in OURS:
        environment = SERVICES[name]["environment"]
        assert environment["PGPASSWORD"] == SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"]
        assert "PASSWORD" not in environment["GRADSPECTRA_DATABASE_URL"]


def test_the_health_of_a_worker_is_its_own_answer_not_that_of_any() -> None:
    (shell, command) = SERVICES["worker"]["healthcheck"]["test"]
    assert shell == "CMD-SHELL"
    assert command.startswith("celery -A gradspectra_worker.app inspect ping ")
    assert "--destination celery@$$HOSTNAME" in command


def test_every_container_is_started_again_and_its_log_is_bounded() -> None:
    assert {service["restart"] for service in SERVICES.values()} == {"unless-stopped"}
    assert {service["logging"]["driver"] for service in SERVICES.values()} == {"local"}


def test_no_password_has_a_default_and_no_image_floats() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert re.findall(r"\$\{POSTGRES_PASSWORD[^}]*\}", text) == [
        "${POSTGRES_PASSWORD:?set a password for the database}",
        "${POSTGRES_PASSWORD:?set a password for the database}",
    ]
    images = [service["image"] for service in SERVICES.values()] + re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert [image for image in images if ":" not in image or image.endswith(":latest")] == []


def test_all_that_is_ours_runs_one_image_of_this_version() -> None:
    from gradspectra_core import __version__

    assert {SERVICES[name]["image"] for name in OURS} == {f"gradspectra:{__version__}"}


def test_the_image_can_answer_in_every_form() -> None:
    (installed,) = re.findall(r"pip install .*'\.\[([a-z,]+)\]'", DOCKERFILE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = {re.split(r"[^a-z0-9-]", package)[0] for extra in installed.split(",") for package in extras[extra]}
    assert packages >= {"fastapi", "psycopg", "pyarrow"}


def test_the_image_runs_without_root() -> None:
    users = re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)
    assert users == ["10001"]
    assert DOCKERFILE.index("USER 10001") < DOCKERFILE.index("CMD [")
