# `make demo` and `make test` do all the set-up. Needs Python 3.11 or newer; nothing else.
#
#   make demo                      quantize the embedded teacher, see runs/demo
#   make test                      lint, types, tests
#   make test PYTHON=python3.12    with another Python

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Two workers share the machine: more threads each would only make them wait for each other.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.PHONY: help install demo test lint format test-slow assets clean

help:
	@echo "make demo    quantize the embedded teacher without data; results in runs/demo"
	@echo "make test    ruff, mypy and the test suite"
	@echo "make lint    ruff and mypy only"
	@echo "make format  let ruff rewrite the sources"
	@echo "make assets  train the embedded teachers again (minutes)"

install: $(INSTALLED)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python found. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c '$(NEW_ENOUGH)' || \
		{ echo "$(PYTHON) is older than Python 3.11. Name a newer one: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments. Install its venv package (Debian, Ubuntu: apt-get install python3-venv)."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone: everything after it then finds the pinned version in place.
$(INSTALLED): pyproject.toml constraints.txt $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -c constraints.txt -e ".[all,test]"
	@touch $@

demo: $(INSTALLED)
	$(BIN)/emptyset quantize embedded:digits-resnet --bits w8a8 --out runs/demo --overwrite

test: lint
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(INSTALLED)
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

assets: $(INSTALLED)
	$(BIN)/python tools/train_digits.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
