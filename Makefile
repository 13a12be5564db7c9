# Each target makes the virtual environment that it needs: .venv/3.11 for Python 3.11, and so on.
#   make train                      trains on the embedded digits, about two minutes
#   make check                      lint, types and the fast tests, after every change
#   make figures                    draws the pictures of docs/figures.md again, from their results
#   make test PYTHON=python3.13     runs the tests with another interpreter
PYTHON ?= python3
VENV := .venv/$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
BIN := $(VENV)/bin

.PHONY: train figures check test lint types format clean

train: $(VENV)/ready
	$(BIN)/python -m nfnet_jax train --config=experiments/digits.py --workdir=runs/digits

figures: $(VENV)/ready
	for results in experiments/figures/results/*.csv; do \
	  $(BIN)/python experiments/figures/$$(basename $$results .csv).py --plot || exit; \
	done

check: lint types
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "not slow"

test: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 --dist loadscope

lint: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/ready
	$(BIN)/python -m mypy

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache

$(VENV)/ready: requirements.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	touch $@
