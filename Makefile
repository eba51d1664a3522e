# `make demo` and `make test` are all a newcomer needs. Everything is installed into .venv, nothing globally.
.DEFAULT_GOAL := help
.PHONY: help install demo up test test-all lint format docs validity bench lock clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
HEALTH_PIPELINE_HOME ?= .health
export HEALTH_PIPELINE_HOME
# Where it forbids to keep compiled modules, every process compiles Dagster and dbt anew: half of what a start takes.
unexport PYTHONDONTWRITEBYTECODE

help:  ## Show what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

install: $(STAMP)  ## Install into .venv from the lock file (skipped when nothing changed)

# uv where it is there or can be had, pip otherwise; both check the hash of every package.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name it with: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@uv=$$(command -v uv || { $(BIN)/python -m pip install --quiet uv >/dev/null 2>&1 && echo $(BIN)/uv; }); \
	if [ -n "$$uv" ]; then \
		echo "installing with uv"; \
		"$$uv" pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock \
		&& "$$uv" pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .; \
	else \
		echo "installing with pip"; \
		$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock \
		&& $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .; \
	fi
	@$(BIN)/python -m health_pipeline.warehouse.dbt_project
	@touch $(STAMP)

demo: install  ## The whole way on synthetic people, with the numbers checked at the end
	@$(BIN)/health-pipeline demo

up: install  ## Database, sandbox, Dagster's UI and daemon; Ctrl-C ends them
	@$(BIN)/health-pipeline up

test: install  ## The tests, on up to four cores, without the longest (test-all has those, too)
	@$(BIN)/python -m health_pipeline.warehouse.dbt_project
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m "not slow"

test-all: install  ## All tests
	@$(BIN)/python -m health_pipeline.warehouse.dbt_project
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: install  ## Formatting, rules and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: install  ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: install  ## Pages of metrics and tables into docs/, dbt's site of the whole project into docs/site/
	@$(BIN)/python -m health_pipeline.runtime.catalogue_docs
	@$(BIN)/health-pipeline dbt --quiet docs generate --static
	@mkdir -p docs/site && cp dbt_project/target/static_index.html docs/site/index.html
	@echo "docs/metrics.md docs/data-model.md docs/site/index.html"

validity: install  ## How good scores, forecasts and alerts are where the truth is known: docs/validity.md
	@$(BIN)/python tests/benchmarks/validity.py && echo docs/validity.md

bench: install  ## How fast, as ratios to references of the same run; QUICK=1 in three minutes: docs/benchmarks.md
	@$(BIN)/python tests/benchmarks/bench.py $(if $(QUICK),--quick)

lock:  ## Pin the newest versions that pyproject.toml allows, with hashes
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-strip-extras \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		--group dev --extra otel --output-file requirements.lock pyproject.toml

clean:  ## Remove .venv, the embedded database and everything else that was made here
	@test ! -x $(BIN)/health-pipeline || $(BIN)/health-pipeline destroy --yes
	rm -rf $(VENV) $(HEALTH_PIPELINE_HOME) dbt_project/target dbt_project/logs logs docs/site \
		.mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
