# `make demo` and `make test` set up what they need and run; both start from python3 (3.11+), git, make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMMA := ,

.PHONY: demo test check faults format bench bench-matching venv clean

demo: venv
	$(BIN)/saeflow demo

# One thread a process: small matrices on more threads than cores take many times longer.
test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# What must not lose anything: long jobs killed at random moments and taken up again, files spoiled and read.
faults: venv
	OMP_NUM_THREADS=1 $(BIN)/python faults/fuzz.py --files 10000
	OMP_NUM_THREADS=1 $(BIN)/python faults/kill.py --kills 100

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What the comparisons need is installed first; what is missing is left out. `make bench-matching` leaves out causal trials.
bench bench-matching: venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/all.py --out docs/benchmarks.md $(if $(filter bench-matching,$@),--only topk$(COMMA)permutation$(COMMA)pearson$(COMMA)chain)

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,check]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
