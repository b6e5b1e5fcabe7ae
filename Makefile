# Each target does all of its own set-up in .venv; a second call installs nothing again.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
ROOMS := quantizers autoencoders priors data training storage evaluation export

.PHONY: help quickstart test lint test-wheel test-oldest test-newest test-versions docs format clean

help:
	@echo "make quickstart     train the whole hierarchy on scanned digits and write runs/quickstart/report.html"
	@echo "make test           formatting, types, the import contract, and all tests"
	@echo "make lint           the same without the tests"
	@echo "make test-wheel     the tests against the built wheel, in an environment of its own"
	@echo "make test-versions  the same with the oldest, then the newest versions of what hvq asks for"
	@echo "make docs           an API reference in build/api, made of the docstrings"
	@echo "make format         rewrite the sources in the house style"
	@echo "make clean          remove .venv and all caches (runs stay)"

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "hvq needs Python 3.11 or later, which '$(PYTHON)' is not;" \
			"name one that is, as in: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/installed-quickstart: .venv/created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[data,report]"
	@touch $@

.venv/installed-dev: .venv/created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@ .venv/installed-quickstart

.venv/installed-docs: .venv/created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $@

quickstart: .venv/installed-quickstart
	$(BIN)/python recipes/quickstart.py

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: lint
	$(BIN)/python -m pytest

# TESTS="--quick" takes a share of the tests, TESTS="-- tests/priors -k sampling" what pytest is told.
test-wheel: .venv/installed-dev
	$(BIN)/python tests/packaging/installed.py $(TESTS)

test-oldest: .venv/installed-dev
	$(BIN)/python tests/packaging/installed.py --constraints constraints-oldest.txt $(TESTS)

test-newest: .venv/installed-dev
	$(BIN)/python tests/packaging/installed.py --constraints "" $(TESTS)

test-versions: test-oldest test-newest

# One page for each room: what it offers to others.
docs: .venv/installed-docs
	$(BIN)/python -m pdoc --docformat google --output-directory build/api hvq hvq.config $(ROOMS:%=hvq.%)
	@echo "open build/api/index.html"

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find hvq recipes tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
