# Every target sets up its own environment in .venv; nothing but make and Python 3.11 to 3.14 is needed.
# The same commands without make are in README.md.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help test check

# The first interpreter that runs, is neither too old nor too new, and can make environments.
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11 python
USABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for python in $(CANDIDATES); do \
	if $$python -c '$(USABLE)' >/dev/null 2>&1; then echo $$python; break; fi; done)

VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin/python
ARGS ?=

help: ## Show the targets.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  PYTHON=python3.12 chooses the interpreter; ARGS="-k law" is handed to pytest.'

test: $(READY) ## Run the tests.
	$(BIN) -m pytest $(ARGS)

check: $(READY) ## Check format, style and types, then run the tests.
	$(BIN) -m ruff format --check .
	$(BIN) -m ruff check .
	$(BIN) -m mypy
	$(BIN) -m pytest $(ARGS)

# The marker is written last, so an interrupted installation is done again.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo 'make: no Python 3.11 to 3.14 with venv was found; install one or name it: make PYTHON=/path/to/python' >&2; exit 1; }
	@$(BIN) -c '$(USABLE)' 2>/dev/null || "$(PYTHON)" -m venv --clear $(VENV)
	$(BIN) -m pip install --disable-pip-version-check -c constraints.txt -e ".[gpu,dev]"
	@touch $@
