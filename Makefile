# Needs only Python 3.10 to 3.13. `make` lists the targets.

SHELL := bash
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
WORKERS ?= 2
ARGS ?=
MINUTES ?= 10
FUZZ ?= weights config dataset
# python:torch:torchvision, the oldest and the newest that setup.py allows
VERSIONS ?= 3.10:2.6.0:0.21.0 3.13:2.14.1:0.29.1

# One thread a process: the parallel tests would otherwise fight for the cores. Each process gets a stretch of
# neighbouring tests, which share what they build; one that is done takes from the end of another's.
PARALLEL := -n $(WORKERS) --dist worksteal --durations=20 --durations-min=1
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest $(PARALLEL)

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow test-desk test-versions faults fuzz benchmark lint wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## create .venv with the package, its dependencies and the test tools

train: setup ## train a detector on the generated "shapes" set: minutes, no GPU, no download (ARGS="KEY VALUE ...")
	$(RUN) datasets/prepare_shapes.py
	$(RUN) tools/train_net.py --config-file configs/quickstart.yaml --engine torchvision $(ARGS)

test: setup ## run the tests, without the slow ones (WORKERS=2 processes, ARGS="tests/models -k resnet")
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: setup ## run the tests that train for minutes
	$(PYTEST) -m slow $(ARGS)

test-desk: setup ## run the tests nearly as on Windows: processes by spawn, no fcntl, no resource (ARGS="tests/data")
	RESNET_BACKBONE_DESK=1 $(PYTEST) -m "not slow" $(ARGS)

test-versions: ## run the tests with the oldest and the newest supported versions (VERSIONS="python:torch:torchvision ...")
	@for entry in $(VERSIONS); do \
		IFS=: read -r python torch torchvision <<< "$$entry"; \
		venv=.venvs/python$$python-torch$$torch; \
		echo "== Python $$python, torch $$torch, torchvision $$torchvision"; \
		test -x $$venv/bin/pip || python$$python -m venv $$venv || exit 1; \
		$$venv/bin/pip install --quiet torch==$$torch torchvision==$$torchvision -e '.[test]' || exit 1; \
		OMP_NUM_THREADS=1 $$venv/bin/python -m pytest $(PARALLEL) -m "not slow" $(ARGS) || exit 1; \
	done

faults: setup ## print a table of faults (full disk, dead process, ...) and what becomes of a training: minutes (ARGS="disk rank")
	$(RUN) tests/faults/faults.py $(ARGS)

fuzz: setup ## let a fuzzer look for files that break the readers (MINUTES=10 each, FUZZ="weights config dataset")
	$(VENV)/bin/pip install --quiet -c constraints.txt -e '.[fuzz]'
	@for name in $(FUZZ); do \
		OMP_NUM_THREADS=1 $(RUN) -m tests.fuzz.fuzz_$$name -max_total_time=$$(( $(MINUTES) * 60 )) || exit 1; \
	done

benchmark: setup ## measure speed and memory beside the peers that are installed, and make benchmarks/RESULTS.md: 40 minutes
	@for name in trunk_inference training_step detector_step detector_inference switches loader evaluation startup; do \
		$(RUN) -m benchmarks.$$name --output benchmarks/results/$$name.json || exit 1; \
	done
	$(RUN) -m benchmarks.report

lint: $(VENV)/.installed-dev ## check style, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

wheel: setup ## build dist/*.whl and dist/*.tar.gz
	$(RUN) -m build

clean: ## remove the virtual environments and what building and testing left
	rm -rf $(VENV) .venvs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .fuzz
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: setup.py constraints.txt | $(VENV)/bin/pip
	$(VENV)/bin/pip install -c constraints.txt -e '.[test]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(VENV)/bin/pip install -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
		{ echo "This needs Python 3.10 to 3.13 and $(PYTHON) is $$($(PYTHON) --version 2>&1). Write: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot create a virtual environment with pip. On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
