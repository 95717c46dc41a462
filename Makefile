# Every target sets itself up: a virtual environment in .venv, and the install when pyproject.toml has changed.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
# The first Python that is new enough; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

.PHONY: quickstart test lint format types layers check clean

quickstart: $(READY)  ## teach the bundled model a name, ask before and after
	$(BIN)/luthier quickstart

test: $(READY)  ## the whole test suite; ARGS="tests/data -k pack" for a part
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

layers: $(READY)
	$(BIN)/lint-imports

check: lint types layers test

$(READY): pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
		echo "Luthier needs Python 3.11 or newer, and none was found. Install one, or: make PYTHON=/path/to/python" >&2; \
		exit 2; \
	fi
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV) with $$($(BIN)/python --version); the first time this takes some minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
