# Every target makes what it needs from a bare Python 3.11 to 3.14 with venv, on Linux.

PYTHON ?= python3
ROUNDS ?= 100
JOBS ?= 200000
MINUTES ?= 1
SEED ?= 1
PROFILE ?= mixed
DATABASE ?= sqlite
EXAMPLES ?= 10000
PYTEST_FLAGS ?= -n auto --maxprocesses 4 --dist loadgroup

VENV := .venv
BIN := $(VENV)/bin
LOCKED := $(VENV)/.locked
INSTALLED := $(VENV)/.installed

# What `check` runs of the test-suite: walls, schema drift and every example in the documents.
CHECKS := tests/architecture $(wildcard tests/schema tests/*/test_docs*.py tests/*/test_readme.py)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check fuzz docs serve hostile torture power-cut reports bench bench-gate lock clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

demo: $(INSTALLED) ## Start the service, send it pictures, print what it read and the rows it left
	$(BIN)/python examples/demo.py

test: $(INSTALLED) ## Run the whole test-suite
	$(BIN)/pytest $(PYTEST_FLAGS)

check: $(INSTALLED) ## Lint, types, import walls, architecture, schema drift, examples of the documents
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest -q $(PYTEST_FLAGS) $(CHECKS)

fuzz: $(INSTALLED) ## Send EXAMPLES generated requests, alone and in sequences, to a real service (EXAMPLES=10000)
	JOBSERVICE_TEST_EXAMPLES=$(EXAMPLES) $(BIN)/pytest -q --timeout 0 tests/api/test_fuzz.py

docs: $(INSTALLED) ## Write docs/problems.md anew from the table of problem types
	$(BIN)/python -m service.api.problem_pages > docs/problems.md

serve: $(INSTALLED) ## Run the service here, with its data in ./data
	$(BIN)/jobservice serve

hostile: $(INSTALLED) ## Run every hostile plugin ROUNDS times and look for leaks (ROUNDS=100)
	$(BIN)/python -m benchmarks.hostile --rounds $(ROUNDS)

torture: $(INSTALLED) ## Load and hurt the real service, then judge it (MINUTES=1 SEED=1 PROFILE=mixed DATABASE=sqlite)
	$(BIN)/python -m tests.torture --minutes $(MINUTES) --seed $(SEED) --profile $(PROFILE) --database $(DATABASE)

power-cut: ROUNDS := 20
power-cut: $(INSTALLED) ## Cut the power under the loaded service ROUNDS times (ROUNDS=20; needs the right to mount)
	$(BIN)/python -m tests.durability.power_cut --rounds $(ROUNDS)

reports: $(INSTALLED) ## Hold the reports over 20,000 random transitions against counting, then time them (JOBS=200000)
	$(BIN)/python -m tests.reports --seed $(SEED)
	$(BIN)/python -m benchmarks.rollups
	$(BIN)/python -m benchmarks.reports --jobs $(JOBS)

bench: $(INSTALLED) ## Measure everything, peers and 5,000,000 rows included (needs wrk, and redis-server for peers on Redis)
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.latency

bench-gate: $(INSTALLED) ## The short form of it: fails naming each gate that falls short
	$(BIN)/python -m benchmarks --short --gate

lock: $(INSTALLED) ## Resolve the dependencies anew into requirements.lock
	$(BIN)/uv pip compile pyproject.toml --quiet --upgrade --universal --generate-hashes --python-version 3.11 \
		--extra dev --no-header --no-annotate --output-file requirements.lock

clean: ## Remove everything that was made here, except ./data
	rm -rf $(VENV) build dist .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Two stamps: a changed lock rebuilds the environment, a changed pyproject.toml only installs the project anew. What
# else was installed there is gone then: README.md sends users to an environment of their own.
$(LOCKED): requirements.lock
	@test "$$(uname -s)" = Linux || { echo "jobservice runs on Linux only; this is $$(uname -s)." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null || { \
		echo "Python 3.11 to 3.14 is needed, but $(PYTHON) is '$$($(PYTHON) --version 2>&1 | head -n 1)'; name another: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

$(INSTALLED): $(LOCKED) pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
