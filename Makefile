# Two commands: `make front` (the main job) and `make test`. Both make .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin
STEPS ?= 600
OUT ?= runs/molecules

.PHONY: front test lint wheel clean

$(BIN)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

# A Pareto front of molecules: drug-likeness against synthesisability and a logP window.
front: $(BIN)/.ready
	$(BIN)/gflow train molecules --rewards qed,sa,logp:1..4 --method mogfn_pc \
		--steps $(STEPS) --out $(OUT)

test: $(BIN)/.ready lint
	$(BIN)/python -m pytest
	GFLOW_SMOKE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbmake --nbmake-timeout=180 notebooks

lint: $(BIN)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

wheel: $(BIN)/.ready
	$(BIN)/python -m build --wheel --no-isolation --outdir dist

clean:
	rm -rf build dist *.egg-info
