# make demo | test | test-all | bench | lint: each makes .venv where there is none, installs what constraints.txt pins, and runs.
# PIP_INDEX_URL and PIP_EXTRA_INDEX_URL reach pip as they are.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
EXTRAS := test,lint

.PHONY: install demo test test-all bench lint clean
.DEFAULT_GOAL := demo

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch numpy
	$(PIP) install -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

demo: install
	$(BIN)/latte-fast demo

test: install
	$(BIN)/python -m pytest -m "not slow"

test-all: install
	$(BIN)/python -m pytest

bench: install
	$(BIN)/python -m pytest benchmarks --benchmark-only

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf build *.egg-info latte_fast/*.so latte_fast/_build_info.json
