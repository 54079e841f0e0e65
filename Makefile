# Everything runs in .venv, which the first target that needs it makes; nothing is installed outside this folder.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: install demo deploy-demo test test-all soak check round-trip docs format clean

install: .venv/installed  ## .venv with all that the other targets need

demo: .venv/installed  ## simulated federation on a phantom cohort, to a report
	$(BIN)/sahfl simulate configs/demo.yaml

deploy-demo: .venv/installed  ## a server and three sites as processes, with keys of their own; the server is killed once
	$(BIN)/python examples/deployment/demo.py

test: .venv/installed  ## all tests but the slow ones
	$(BIN)/pytest -n 2 --dist worksteal

test-all: .venv/installed  ## all tests, and the share of branches that they cover
	$(BIN)/pytest -n 2 --dist worksteal -m "slow or not slow" --cov --cov-report=term

soak: .venv/installed  ## a million fuzzed inputs, a thousand rounds, a thousand sites that poll
	$(BIN)/python benchmarks/fuzzing.py
	$(BIN)/python benchmarks/rounds.py
	$(BIN)/python benchmarks/polling.py

check: .venv/installed  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

round-trip: .venv/installed  ## a head through other programs' formats and back: the table of docs/data.md
	$(BIN)/pytest -q -s tests/data/test_round_trip.py

docs: .venv/docs  ## the documents as a site with a search: site/index.html; a broken link is an error
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -c docs . site

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis site *.egg-info

# pip compiles what it copies, but not an editable package, and not all environments keep what Python compiles.
# torch first: as a dependency of something else, pip would take PyPI's build, with gigabytes of CUDA on Linux.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sahfl needs Python 3.11 or newer; make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python tools/install_torch.py
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m compileall -q sahfl client server
	touch $@

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@
