# `make demo` and `make test` work from a fresh clone with Python >= 3.11 and a package index.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench retrain clean

.venv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "router_ml needs Python >= 3.11, this is " + sys.version)'
	$(PYTHON) -m venv .venv

# One stamp an extra: installed again only when pyproject.toml changes.
.venv/.installed-run: pyproject.toml | .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/.installed-test: pyproject.toml | .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[train,test]'
	@touch $@ .venv/.installed-run

demo: .venv/.installed-run  ## route the 100-prompt workload through the loopback provider (LIVE=1: a few prompts for real)
	$(BIN)/router-ml demo $(if $(LIVE),--live)

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## lint, strict types, tests with coverage
	$(BIN)/python -m pytest --cov --cov-report=term

bench: .venv/.installed-run  ## timings of this machine, as ratios from one run
	OMP_NUM_THREADS=1 $(BIN)/python -m training.bench
	$(BIN)/python -m training.bench_routing
	$(BIN)/python -m training.bench_ledger

retrain: .venv/.installed-test  ## distil, fit, calibrate, evaluate; promote the artefact or refuse
	$(BIN)/python -m training.retrain

clean:
	rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache dist
