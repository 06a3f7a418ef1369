# One command each to set up, run, check, test and measure; .ci/run calls the same ones.
#
# Every target sets up what it needs first. Stamps in the virtual environment remember what has been
# done, so a second call costs nothing, and removing .venv is all it takes to start afresh.
# (Recipes keep to GNU make 3.81, which macOS still has.)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# PYTHON=... chooses the interpreter that .venv is made with; ARGS=... goes to the program behind a
# target: make test ARGS='-k hold -x'
PYTHON ?=
ARGS ?=

VENV := .venv
CODE := engine actors adapters bench
PROTOS := $(shell find protos -name '*.proto')
PIP := $(VENV)/bin/python -m pip --quiet --disable-pip-version-check

.PHONY: help setup demo test sim cover bounds nightly check bench proto lock clean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 chooses the interpreter of a new .venv; ARGS='...' is passed on"

# ---------------------------------------------------------------------------------- set-up --------

setup: $(VENV)/.stamp-install $(VENV)/.stamp-proto $(VENV)/.stamp-kernels ## Make .venv with everything in it

# Takes the first interpreter that fits, the system's own before newer ones. A version manager's
# shim may be on PATH and still not run, so each is tried.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
$(VENV)/bin/python:
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
		"$$python" -c '$(FITS)' 2>/dev/null && break || python=; \
	done; \
	if [ -z "$$python" ]; then \
		echo "setup: no Python 3.11, 3.12 or 3.13 found as: $(or $(PYTHON),python3);" \
			"name one: make setup PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
		package=$$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
		echo "setup: $$python cannot make virtual environments;" \
			"on Debian and Ubuntu: apt-get install $$package" >&2; \
		exit 1; \
	fi; \
	echo "setup: making $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv --clear $(VENV)

# Exact versions by hash, and wheels only: nothing is compiled here, and nothing comes unseen.
$(VENV)/.stamp-packages: constraints.txt | $(VENV)/bin/python
	@echo "setup: installing $$(grep -c == constraints.txt) pinned packages (minutes, the first time)"
	@$(PIP) install --require-hashes --only-binary :all: --requirement constraints.txt
	@touch $@

# The project itself, as an editable install: imports come from this folder, wherever one stands.
# It notes the top-level packages that there are, so a new one asks for a new install.
$(VENV)/.stamp-install: pyproject.toml $(wildcard $(CODE:%=%/__init__.py)) $(VENV)/.stamp-packages
	@echo "setup: installing onhand (editable)"
	@PYTHONWARNINGS=ignore $(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.stamp-proto: protos/build.py $(PROTOS) $(VENV)/.stamp-packages
	@$(VENV)/bin/python protos/build.py
	@touch $@

# numba keeps what it compiles beside the code; actors that found nothing there would each compile.
$(VENV)/.stamp-kernels: $(wildcard engine/kernels/*.py) engine/limits.py engine/operations.py \
		engine/status.py $(VENV)/.stamp-install
	@echo "setup: compiling the kernels (half a minute, the first time)"
	@$(VENV)/bin/python -m engine.warm
	@touch $@

# ------------------------------------------------------------------------------------- use --------

demo: setup ## See it work on a year of a real chain's sales
	@$(VENV)/bin/onhand demo $(ARGS)

test: setup ## Run the tests
	@$(VENV)/bin/pytest --beside $(ARGS)

# SEED=n replays one seed with its trace; SEEDS=n says how many there are to run.
SEED ?=
SEEDS ?= 500
sim: setup ## Simulate faults: SEEDS=500 seeds, or replay SEED=n
	@$(VENV)/bin/python -m tests.sim $(if $(SEED),--seed $(SEED) --verbose,--seeds $(SEEDS)) $(ARGS)

# The tests that are named after a module of the engine, and those of its rules: a branch that they
# leave out is one that no rule's own test shows, whatever the generated histories come upon.
COVERING := $(wildcard $(patsubst engine/%,tests/unit/test_%*.py,$(basename $(wildcard engine/*)))) \
	$(wildcard tests/unit/test_rules_*.py) tests/unit/test_wheel.py
cover: setup ## Fail unless the engine's own tests take every branch of it (kernels run uncompiled)
	@NUMBA_DISABLE_JIT=1 $(VENV)/bin/coverage run --source=engine \
		-m pytest -q --hypothesis-seed=0 $(sort $(COVERING)) $(ARGS)
	@$(VENV)/bin/coverage report --fail-under=100

# Kernels that check their indexes are kept apart: in one cache, each kind would drive the other out.
CHECKED := NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=$(CURDIR)/build/bounds
bounds: setup ## Run the tests without processes of their own, kernels checking every index
	@echo "bounds: compiling the kernels (a minute, the first time)"
	@$(CHECKED) $(VENV)/bin/python -m engine.warm
	@$(CHECKED) $(VENV)/bin/pytest -q tests/unit tests/property tests/scenarios $(ARGS)

# Each step says what it is, and the first that fails ends it with its name. Seeds run by the thousand:
# without a terminal there is no bar that tells how far they are. PROFILE is hypothesis's.
STEP = echo "nightly: $(1)"; $(2) || { echo "nightly: failed: $(1)" >&2; exit 1; }
nightly: SEEDS = 10000
nightly: PROFILE = nightly
nightly: setup ## Prove at length: cover, bounds, histories, SEEDS=10000 seeds, planted bugs
	@$(call STEP,cover,$(MAKE) --no-print-directory cover)
	@$(call STEP,bounds,$(MAKE) --no-print-directory bounds)
	@$(call STEP,histories,HYPOTHESIS_PROFILE=$(PROFILE) \
		$(VENV)/bin/pytest -q --timeout=0 tests/property tests/linear)
	@for first in $$(seq 0 1000 $$(($(SEEDS) - 1))); do \
		seeds=$$(($(SEEDS) - first < 1000 ? $(SEEDS) - first : 1000)); \
		$(call STEP,seeds $$first to $$((first + seeds - 1)), \
			$(VENV)/bin/python -m tests.sim --first $$first --seeds $$seeds); \
	done
	@$(call STEP,planted bugs,$(VENV)/bin/python -m tests.sim --planted)

check: setup ## Lint, format, types, import rules
	@echo "check: ruff (lint)"
	@$(VENV)/bin/ruff check --quiet .
	@echo "check: ruff (format)"
	@$(VENV)/bin/ruff format --quiet --check .
	@echo "check: mypy"
	@$(VENV)/bin/mypy --no-error-summary $(CODE)
	@echo "check: import-linter"
	@$(VENV)/bin/lint-imports --no-logo

bench: setup ## Measure: batches, single calls, a storm of expiries
	@$(VENV)/bin/python -m bench.submit $(ARGS)
	@$(VENV)/bin/python -m bench.unary $(ARGS)
	@$(VENV)/bin/python -m bench.storm $(ARGS)

proto: setup ## Generate the gRPC code again if the contract has changed
	@$(VENV)/bin/python protos/build.py

# ------------------------------------------------------------------------------- housekeeping -----

# Keeps the pins that still fit pyproject.toml; ARGS=--upgrade takes the newest of each.
LOCK := build/lock
lock: $(VENV)/bin/python ## Renew constraints.txt after a change of dependencies
	@echo "lock: resolving pyproject.toml into constraints.txt"
	@$(VENV)/bin/python -m venv --clear $(LOCK)
	@$(LOCK)/bin/python -m pip --quiet --disable-pip-version-check install uv
	@$(LOCK)/bin/uv pip compile --quiet --universal --python-version 3.11 \
		--all-extras --group install --only-binary :all: --fork-strategy fewest \
		--generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock" \
		$(ARGS) --output-file constraints.txt pyproject.toml

# Data (.onhand) stays, and so does .venv.
clean: ## Remove generated code and caches
	@echo "clean: generated code, caches"
	@find protos/onhand -name '*_pb2*.py*' -delete
	@rm -rf build dist *.egg-info htmlcov .coverage .coverage.* .hypothesis .import_linter_cache \
		.mypy_cache .pytest_cache .ruff_cache protos/onhand/.generated $(VENV)/.stamp-proto
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
