# What a checkout needs, each in one word. The environment is built on first use and whenever its inputs change.
#
#   make demo     start a cluster of two workers and train on it
#   make test     the whole test suite
#   make lint     ruff, the format, and mypy
#   make conformance    PyTorch's own RPC tests, if CONFORMANCE_DIR (or ../shared/conformance) has the suite
#   make chaos    twelve workers under load, while all kinds of things happen to them, for 2 minutes
#   make bench    measure beside TensorPipe (under 10 minutes), and draw docs/benchmarks.png
#
#   PYTHON=python3.12 make test     build the environment with another interpreter (run `make clean` first)
#   make test ARGS="-k rref -x"     further arguments of pytest, or of the benchmarks

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint format bench chaos conformance install clean
.DEFAULT_GOAL := test

demo: $(INSTALLED)
	$(BIN)/zrpc launch configs/quickstart.yaml

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.run $(ARGS)
	$(if $(ARGS),,$(BIN)/python -m benchmarks.picture)

chaos: $(INSTALLED)
	$(BIN)/python -m benchmarks.chaos --minutes 2 $(ARGS)

conformance: $(INSTALLED)
	$(BIN)/python tests/conformance/run.py $(ARGS)

install: $(INSTALLED)

# One environment for everything: torch is nearly all of its size. The constraints matter, see the file.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build torch_zrpc.egg-info
