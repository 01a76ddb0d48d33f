# narswarm: `make help` says what there is. Everything runs in .venv, which is made when it is missing.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
SEEDS ?= 200
MINUTES ?= 10

.PHONY: help demo test check coverage mutants interop interop-all sim fuzz stranger clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(READY)  ## the whole job on this machine: seed, LAN peer, gateway, Nix
	@$(BIN)/narswarm demo $(ARGS)

test: $(READY)  ## all tests that need only this machine, one after the other in each of its cores
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal $(ARGS)

check: $(READY)  ## formatting, lints, types
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet . && $(BIN)/mypy

coverage: $(READY)  ## the tests with branch coverage
	@$(BIN)/python -m pytest --cov --cov-report=term:skip-covered $(ARGS)

mutants: $(READY)  ## take out one defence after the other: the test it names must go red
	@$(BIN)/python scripts/mutants.py $(ARGS)

interop: $(READY)  ## only the shipped program at work: real Nix, real hosts, js-libp2p
	@$(BIN)/python -m pytest tests/interop $(ARGS)

interop-all: $(READY)  ## all tests that start a Nix, on 2.8, 2.26 and 2.34 from chroots (root; 14 min)
	@scripts/interop-all

sim: $(READY)  ## the simulated swarm over many seeds: make sim SEEDS=5000
	@$(BIN)/python -m tests.sim --seeds $(SEEDS) $(ARGS)

fuzz: $(READY)  ## look for bytes that a parser cannot stand: make fuzz MINUTES=10 (of each)
	@$(BIN)/python -m tests.fuzz requests --minutes $(MINUTES)
	@$(BIN)/python -m tests.fuzz narinfo --minutes $(MINUTES)

stranger:  ## what a stranger sees: a clone of main, an empty HOME, the README's two commands
	@scripts/stranger

clean:  ## remove what make made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .coverage

$(READY): pyproject.toml requirements.lock
	@scripts/prerequisites "$(PYTHON)"
	@echo "making $(VENV) (a minute, once)"
	@"$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@# libp2p brings stubs of an old trio, which would hide the types that trio itself ships.
	@rm -rf $(VENV)/lib/python3*/site-packages/trio-stubs
	@touch $(READY)
