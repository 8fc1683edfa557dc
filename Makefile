# The commands of a working copy. Everything lives in .venv; nothing is installed elsewhere but
# the embedded Kafka's jars, which go to the user's cache.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
VENV := .venv/.made
PACKAGES := .venv/.packages
PROJECT := .venv/.project
COMPILED := .venv/.compiled

.PHONY: help install demo test lint browser unit format chaos sim bench peers lock clean

help: ## show this list
	@sed -nE 's/^([a-z]+):.*## (.*)$$/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

install: $(COMPILED) ## make .venv with the locked packages, and fetch the embedded Kafka
	@timeout 600 $(BIN)/python -m pipeline.ops.kafka_jars

$(VENV):
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed") if sys.version_info < (3, 11) else None'
	timeout 120 $(PYTHON) -m venv .venv
	@touch $@

$(PACKAGES): requirements.lock $(VENV)
	timeout 900 $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

$(PROJECT): pyproject.toml $(PACKAGES)
	timeout 120 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Without a C compiler this says so, and all runs in Python.
$(COMPILED): pipeline/native/slice.c pipeline/native/build.py $(PROJECT)
	@timeout 150 $(BIN)/python -m pipeline.native.build
	@touch $@

demo: install ## the main job in about a minute, audited at the end
	$(BIN)/tallyport demo

test: install browser ## everything that CI runs; ruff and pyright go beside the tests
	@$(MAKE) --no-print-directory -j 2 unit lint

lint: install ## ruff and pyright
	timeout 120 $(BIN)/ruff check .
	timeout 120 $(BIN)/ruff format --check .
	timeout 600 $(BIN)/pyright

browser: install ## see to it that there is a Chromium for the tests of the page (Debian's, as root)
	@timeout 900 $(BIN)/python -m tests.page.chromium

unit: install ## the tests alone, in WORKERS processes (2); ARGS goes to pytest
	timeout --kill-after=30 4000 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

format: install ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

chaos: install ## faults under load for MINUTES (5), of SEED; ARGS goes to tests.chaos (--help)
	$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED)) $(ARGS)

sim: install ## simulated runs for SECONDS (60), or the one of SEED; ARGS goes to tests.sim.replay
	$(BIN)/python -m tests.sim.replay $(if $(SEED),$(SEED),--seconds $(or $(SECONDS),60)) $(ARGS)

bench: install ## the benchmarks
	$(BIN)/tallyport bench

peers: .venv-peers/.made ## make .venv-peers with Quix Streams and Bytewax, for bench stream --peers

.venv-peers/.made: requirements-peers.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Bytewax needs Python 3.11 or 3.12: make peers PYTHON=python3.12") if not (3, 11) <= sys.version_info < (3, 13) else None'
	timeout 120 $(PYTHON) -m venv .venv-peers
	timeout 900 .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-peers.lock
	timeout 120 .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

lock: ## resolve the dependencies anew into both lock files (needs uv)
	uv pip compile pyproject.toml --extra all --group dev --universal --python-version 3.11 --upgrade \
	  --generate-hashes --no-header --no-emit-index-url --no-annotate --quiet -o requirements.lock
	uv pip compile pyproject.toml --group peers --python-platform x86_64-manylinux_2_31 --python-version 3.11 --upgrade \
	  --generate-hashes --no-header --no-emit-index-url --no-annotate --quiet -o requirements-peers.lock

clean: ## remove .venv and caches
	rm -rf .venv .venv-peers .pytest_cache .ruff_cache .hypothesis
