# Each target makes the virtual environment that it needs: .venv/3.11 for Python 3.11, and so on.
#   make train                      trains on the embedded digits, about two minutes
#   make check                      lint, types and the fast tests, after every change
#   make figures                    draws the pictures of docs/figures.md again, from their results
#   make docs                       builds the documentation site: open build/site/index.html
#   make notebook                   runs docs/quickstart.ipynb and stores its outputs
#   make test PYTHON=python3.13     runs the tests with another interpreter
PYTHON ?= python3
VENV := .venv/$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
BIN := $(VENV)/bin

.PHONY: train figures docs notebook check test lint types format clean

train: $(VENV)/ready
	$(BIN)/python -m nfnet_jax train --config=experiments/digits.py --workdir=runs/digits

figures: $(VENV)/ready
	for results in experiments/figures/results/*.csv; do \
	  $(BIN)/python experiments/figures/$$(basename $$results .csv).py --plot || exit; \
	done

docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 JAX_PLATFORMS=cpu $(BIN)/python -m mkdocs build --strict

notebook: $(VENV)/docs
	JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m nbconvert --to notebook --execute --inplace \
	  --ExecutePreprocessor.record_timing=False docs/quickstart.ipynb

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

$(VENV)/docs: $(VENV)/ready docs/site/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r docs/site/requirements.txt
	touch $@
