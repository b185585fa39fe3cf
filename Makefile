# `make demo` and `make test` set up what they need and run; both start from python3 (3.11+), git, make.
# What they install is locked: exact versions with hashes, in requirements/ (`make lock` renews them).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COMMA := ,
LOCK := requirements/torch.txt requirements/cuda.txt pyproject.toml

.PHONY: demo test test-newest test-oldest test-real golden check docs docs-look faults format bench bench-matching venv lock clean

demo: $(VENV)/.demo
	mkdir -p build
	$(BIN)/saeflow demo -o build/demo.html

# One thread per process: small matrices on more threads than cores take many times longer. Bytecode is written, since
# many tests start saeflow as a process of its own.
test: venv
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

# The same tests on the newest release of everything that pyproject.toml allows, and on the oldest of what the library
# itself needs; each in an environment of its own.
test-newest:
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[test]'
	.venv-newest/bin/python -m pip list
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -n auto

test-oldest:
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet uv
	mkdir -p build
	.venv-oldest/bin/uv pip compile --quiet pyproject.toml --resolution lowest-direct --output-file build/oldest.txt
	.venv-oldest/bin/uv pip compile --quiet pyproject.toml --extra test --constraint build/oldest.txt --output-file build/oldest-test.txt
	.venv-oldest/bin/python -m pip install --quiet --requirement build/oldest-test.txt
	.venv-oldest/bin/python -m pip install --quiet --no-deps --editable .
	.venv-oldest/bin/python -m pip list
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n auto

# What is assumed of a language model, on two that others trained; downloads 330 MB at the first run.
test-real: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m real tests/real

# What every command answers on the demo pack, against what is kept in tests/golden; a few minutes.
golden: venv
	OMP_NUM_THREADS=1 $(BIN)/python tests/golden/golden.py

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
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python benchmarks/all.py --out docs/benchmarks.md $(if $(filter bench-matching,$@),--only topk$(COMMA)products$(COMMA)permutation$(COMMA)pearson$(COMMA)atlas$(COMMA)chain)

# The newest versions that pyproject.toml allows, for all Pythons and platforms at once.
lock: venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python scripts/lock.py

venv: $(VENV)/.test

# From the lock alone. Of torch, the build that pip finds first, with CUDA's libraries where it wants them: see scripts/lock.py.
install = $(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement
$(VENV)/.%: requirements/%.txt $(LOCK)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(install) $<
	$(BIN)/python -m pip download --quiet --no-deps --dest $(VENV)/torch "$$(grep -o '^torch==[^ ]*' requirements/torch.txt)"
	$(install) requirements/torch.txt --no-index --find-links $(VENV)/torch
	rm -r $(VENV)/torch
	if $(BIN)/python -m pip show torch | grep -q '^Requires:.*nvidia'; then $(install) requirements/cuda.txt; fi
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf $(VENV) .venv-newest .venv-oldest build dist .pytest_cache .ruff_cache
