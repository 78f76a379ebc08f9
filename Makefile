# Two commands: `make demo` and `make test`. Both install what they need into .venv first.
SEED ?= 0
TASK ?= sudoku
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-slow test-data lint clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "unmask needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[data,e2b,math,trackers,remote,serve,dev]'
	@touch $@

demo: install
	$(BIN)/unmask demo --task $(TASK) --seed $(SEED)

test: install
	$(BIN)/pytest

test-slow: install
	$(BIN)/pytest -m 'slow and not gpu'

test-data: install
	$(if $(UNMASK_DATA),,$(error name the folder of the benchmark files: make test-data UNMASK_DATA=DIR))
	UNMASK_DATA="$(abspath $(UNMASK_DATA))" $(BIN)/pytest -m data

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

clean:
	rm -rf .venv build dist
