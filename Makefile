# Everything a person types. The environment is made on demand; nothing but Python 3.11+ and make is assumed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist worksteal
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo papers test test-all exact lint bench clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/demo.stamp ## compile FC-2 as two MPO layers, print the plan, train it on real images (DATA=folder with IDX files)
	$(BIN)/python examples/fc2_mnist.py $(if $(DATA),--data "$(DATA)")

papers: $(VENV)/demo.stamp ## what papers say their layers cost, beside what is counted here
	$(BIN)/python examples/papers.py

test: $(VENV)/dev.stamp ## the tests, in minutes
	$(PYTEST) -m "not slow"

test-all: $(VENV)/dev.stamp $(VENV)/large.stamp ## the slow tests too, and thousands of random networks
	$(PYTEST) --hypothesis-profile=all

exact: $(VENV)/dev.stamp ## every count of every plan of the examples beside what a run does
	$(BIN)/python -m tests.exactness

lint: $(VENV)/dev.stamp ## style, format, types and prose
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m tests.prose

bench: $(VENV)/bench.stamp ## time compiled layers beside what else one could write, and planning, cold and warm
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench.planning

clean: ## remove the environment and every cache
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tngraph needs Python 3.11 or newer, but $(PYTHON) is older: try make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(INSTALL) '.[demo]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(INSTALL) '.[dev,demo]'
	@touch $@ $(VENV)/demo.stamp

$(VENV)/large.stamp: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(INSTALL) '.[large]'
	@touch $@

# torchTT is compiled against this torch: isolated, its build would fetch another one. Without it one column is missing.
$(VENV)/bench.stamp: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(INSTALL) '.[bench]'
	-$(BIN)/python -m pip install --disable-pip-version-check 'setuptools>=70.1' 'setuptools-scm>=8' ninja
	-$(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation --no-deps torchTT
	@touch $@
