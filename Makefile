# Two commands matter: `make demo` and `make test`. Everything is installed into .venv by plain pip.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= all
PIP_ARGS ?=
DEMO_ARGS ?=
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

.PHONY: demo test test-all check ci clean

demo: $(VENV)/.installed-$(EXTRAS)
	@$(VENV)/bin/gradspectra demo $(DEMO_ARGS)

test: $(VENV)/.installed-all,test
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(VENV)/.installed-all,test
	$(VENV)/bin/python -m pytest

check: $(VENV)/.installed-all,dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy core agent store worker frontend backend
	$(VENV)/bin/lint-imports

ci:
	.ci/run

$(VENV)/.installed-%: pyproject.toml constraints.txt
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing gradspectra[$*] into $(VENV); the first time takes a minute or more"
	@$(PIP) -e '.[$*]'
	@touch '$@'

clean:
	rm -rf $(VENV) demo-data build dist
