# `make run` and `make test` do all their own set-up.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install run run-hour test test-slow test-scheduled test-cluster chaos zoo lint clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Axon needs Python 3.11 as $(PYTHON); install it, or: make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "$(PYTHON) is not Python 3.11; use: make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "installing into $(VENV) (some minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m tasks.tracking.databases
	@touch $@

run: install
	$(BIN)/axon run

# A larger model and more steps, meant for about an hour on two cores; it writes its values into params.yaml.
run-hour: install
	$(BIN)/axon run $(shell cat presets/hour.txt)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two processes: one runs all tests that start engines, the other the rest.
test: install
	$(BIN)/python -m pytest -n 2

# What takes minutes each: every stage under plain `dvc repro`, more kills. Results are in docs/performance.md.
test-slow: install
	$(BIN)/python -m pytest -m slow

# Scheduled retraining for ten minutes with faults at moments that the seed decides. It prints an account of every due time.
SEED ?= 1
test-scheduled: install
	AXON_TEST_SEED=$(SEED) $(BIN)/python -m pytest -m slow -s tests/flows/test_scheduled_runs.py

# Several raylets, Postgres and an S3 server on this machine, as root; starts and stops all of it. See docs/cluster.md.
test-cluster: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,cluster,cluster-test]'
	$(BIN)/python -m pytest -m cluster tests/cluster

# Kill each kind of process once in each stage (five campaigns); what came of it is written into docs/reliability.md.
# CHAOS="--seed 7 --campaigns 1" repeats, `python -m tests.chaos --help` says what else.
chaos: install
	$(BIN)/python -m tests.chaos --out docs/reliability.md $(CHAOS)

# Every preset of the model through the whole pipeline at a tiny size, one after another; prints a table.
# ZOO="--only gpt2,phi" takes some, ZOO="--out docs/zoo.md" writes the page, `python -m benchmarks.zoo --help` says what else.
zoo: install
	$(BIN)/python -m benchmarks.zoo $(ZOO)

clean:
	$(BIN)/axon clean
