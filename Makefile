# Each target sets up all that it needs: a virtual environment in .venv, nothing by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?=
FUZZ_DATAGRAMS ?= 10000000

.PHONY: help demo test lint format bench fuzz docs clean system

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Wavry needs Python 3.11 or newer: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## two peers, one relay, a real file and 10 s of media; writes build/demo.json
	$(BIN)/wavryctl demo --output build/demo.json

test: $(STAMP)  ## the whole test suite
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(PYTEST_ARGS)

lint: $(STAMP)  ## formatting, lint rules, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## format the code and apply safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## performance table; writes build/bench.json
	$(BIN)/python -m loadtest.bench --output build/bench.json

fuzz: $(STAMP)  ## a long fuzz of the whole UDP port (FUZZ_DATAGRAMS, default 10 million)
	WAVRY_FUZZ_DATAGRAMS=$(FUZZ_DATAGRAMS) $(BIN)/python -m pytest tests/fuzz -q

docs: $(STAMP)  ## write the generated pages of docs/
	$(BIN)/python docs/generate.py

system:  ## install the system packages that a new machine lacks (Debian, as root)
	.ci/system-packages

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
