# Each target sets up all that it needs: a virtual environment in .venv, nothing by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A change of the compiled core builds it again, and a build without it is not the end of the matter;
# WAVRY_BUILD_NATIVE=try goes on where it cannot be built, skip does not try.
WAVRY_BUILD_NATIVE ?= require
NATIVE_SOURCES := $(wildcard $(foreach kind,c h pyx pxd,wavry_relay/engine/*.$(kind) wavry_relay/engine/*/*.$(kind)))
PYTEST_ARGS ?=
# The tests wait more than they compute: two processes for each core, eight at most.
JOBS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores > 4 ? 8 : 2 * cores)))
SLOW_SESSIONS ?= 200
SLOW_FUZZ_SECONDS ?= 30
LOAD_USERS ?= 5
LOAD_TIME ?= 1m
CHAOS_MINUTES ?= 10
CHAOS_SEED ?=
FUZZ_DATAGRAMS ?= 10000000
FUZZ_SANITIZED_DATAGRAMS ?= 1000000
FUZZ_SECONDS ?= 600
FUZZ_SEED ?= 1
IMAGE_BASE ?= debootstrap
LOCK_ARGS ?=

# Where it is set, each of the thousands of interpreters of a run would compile the same files anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-slow lint format release-check bench load chaos fuzz docs lock images images-smoke clean system again fresh-machine

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

ifeq ($(filter skip,$(WAVRY_BUILD_NATIVE))$(wildcard wavry_relay/engine/_native*.so wavry_relay/engine/*/_native*.so),)
$(STAMP): again
endif
again:

$(STAMP): pyproject.toml setup.py wavry_relay/engine/sources.py $(NATIVE_SOURCES)
	@PYTHON=$(PYTHON) WAVRY_BUILD_NATIVE=$(WAVRY_BUILD_NATIVE) .ci/system-packages needed
	@$(PYTHON) -c 'import sys; sys.exit("Wavry needs Python 3.11 or newer: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	WAVRY_BUILD_NATIVE=$(WAVRY_BUILD_NATIVE) $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## two peers, one relay, a real file and 10 s of media; writes build/demo.json
	$(BIN)/wavryctl demo --output build/demo.json

test: $(STAMP)  ## the whole test suite
	@$(BIN)/python -m compileall -q -j 0 wavry_peer wavry_cp wavry_relay loadtest
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-slow: $(STAMP)  ## the long form of the tests marked `long` (SLOW_SESSIONS, SLOW_FUZZ_SECONDS)
	WAVRY_TEST_LONG=1 WAVRY_FUZZ_SANITIZED_DATAGRAMS=200000 WAVRY_TEST_SESSIONS=$(SLOW_SESSIONS) WAVRY_FUZZ_SECONDS=$(SLOW_FUZZ_SECONDS) \
		$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m long $(PYTEST_ARGS)

lint: $(STAMP)  ## formatting, lint rules, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## format the code and apply safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

release-check: $(STAMP)  ## what docs/checklist.md says, before a release (ONLY, SKIP, CANARY, KEEP, JSON)
	$(BIN)/python -m tests.release.check $(if $(ONLY),--only '$(ONLY)') $(if $(SKIP),--skip '$(SKIP)') \
		$(if $(CANARY),--canary '$(CANARY)') $(if $(KEEP),--keep) $(if $(JSON),--json)

bench: $(STAMP)  ## performance table; writes build/bench.json
	$(BIN)/python -m loadtest.bench --output build/bench.json

load: $(STAMP)  ## a system of its own and 5 pairs of peers for LOAD_TIME; writes build/load.json and build/load.html
	BIN=$(BIN) LOAD_USERS=$(LOAD_USERS) LOAD_TIME=$(LOAD_TIME) loadtest/run-load

chaos: $(STAMP)  ## faults and attacks at random under live sessions, for CHAOS_MINUTES; again with CHAOS_SEED (as root: all of them)
	$(BIN)/python -m loadtest.chaos --minutes $(CHAOS_MINUTES) $(if $(CHAOS_SEED),--seed $(CHAOS_SEED)) --output build/chaos.json

fuzz: $(STAMP)  ## long fuzz: the packet path in C (FUZZ_SECONDS), then the UDP port (FUZZ_DATAGRAMS, FUZZ_SANITIZED_DATAGRAMS)
	WAVRY_FUZZ_SEED=$(FUZZ_SEED) WAVRY_FUZZ_SECONDS=$(FUZZ_SECONDS) WAVRY_FUZZ_FINDS=$(CURDIR)/build/fuzz \
		$(BIN)/python -m pytest -q -s tests/unit/engine/test_native_c.py -k fuzz_target
	WAVRY_FUZZ_SEED=$(FUZZ_SEED) WAVRY_FUZZ_DATAGRAMS=$(FUZZ_DATAGRAMS) WAVRY_FUZZ_SANITIZED_DATAGRAMS=$(FUZZ_SANITIZED_DATAGRAMS) \
		$(BIN)/python -m pytest -q -s tests/fuzz

docs: $(STAMP)  ## write the generated pages of docs/
	$(BIN)/python docs/generate.py

lock: $(STAMP)  ## pin the newest packages of the images, with hashes; LOCK_ARGS=--keep changes only what must
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python docker/lock.py $(LOCK_ARGS)

images: $(STAMP)  ## build the four images and look into their layers (as root; IMAGE_BASE=pinned takes the base from its registry)
	$(BIN)/python docker/build.py --base $(IMAGE_BASE)
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/system/docker/images_built.py

fresh-machine: $(STAMP)  ## `make demo` and a short `make test` on a new minimal Debian (as root)
	$(BIN)/python docker/fresh_machine.py

images-smoke: $(STAMP)  ## run the images, confined as in docker/compose.yml (as root, after `make images`)
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/system/docker/images_smoke.py

system:  ## install the system packages that a new machine lacks (Debian, as root)
	.ci/system-packages

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
