# `make demo` and `make test` set up what they need and run; both start from python3 (3.11+), git, make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMMA := ,

.PHONY: demo test check docs docs-look faults format bench bench-matching venv clean

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

# The site, into build/site; every block of code in it is run by `make test`, long ones by scripts/docs_blocks.py --long.
docs: venv
	$(BIN)/python scripts/docs_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Every page in a browser, wide, narrow and dark: nothing may be missing, overflow or come from elsewhere.
docs-look: docs
	$(BIN)/python scripts/docs_look.py

# What must not lose anything: spoiled files read, long jobs killed and taken up again, disks full and read-only, two at once.
faults: venv
	OMP_NUM_THREADS=1 $(BIN)/python faults/fuzz.py --files 10000
	OMP_NUM_THREADS=1 $(BIN)/python faults/kill.py --kills 100
	OMP_NUM_THREADS=1 $(BIN)/python faults/disk.py

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
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,check,docs]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
