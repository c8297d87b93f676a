# What a newcomer needs: Python 3.11 with pip, and make. `make help` lists the targets.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
EXTRAS ?= dev,aihwkit,dask
PYTEST_ARGS ?=
# Tests run side by side, each with one thread of torch: the same numbers on every machine, and no quarrel over cores.
PYTEST = OMP_NUM_THREADS=1 MPLBACKEND=Agg $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
FORCED := $(strip $(FORCE)$(force))
PIP := $(PY) -m pip install --disable-pip-version-check --no-input -c constraints.txt

# The environment is good for this folder, these extras and these two files. A hash, not a date: a fresh checkout has new dates.
WANTED = $$({ echo "$(CURDIR) $(EXTRAS)"; cat pyproject.toml constraints.txt; } | sha256sum | cut -d' ' -f1)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint format bench accuracy clean

help:
	@echo "make demo       the main job on handwritten digits: train, convert, program, drift, compare (results in runs/demo)"
	@echo "make test       lint, type-check and run the tests"
	@echo "make test-slow  the tests that take minutes"
	@echo "make bench      cost of a drift evaluation against plain digital passes and aihwkit"
	@echo "make accuracy   the honest comparison of training methods (up to two hours; go on where it stopped by the same command)"
	@echo "make lint       ruff and mypy alone;  make format: let ruff rewrite"
	@echo "make install    the environment .venv alone"
	@echo "make clean      remove caches and build products (results and .venv stay)"
	@echo
	@echo "FORCE=1 starts over: 'make demo FORCE=1' trains and evaluates anew, 'make install FORCE=1' or 'make test FORCE=1' makes a new .venv."

install:
	@set -e; wanted=$(WANTED); \
	if [ -z "$(INSTALL_FORCED)" ] && [ -x $(PY) ] && [ "$$(cat $(STAMP) 2>/dev/null)" = "$$wanted" ]; then \
		echo "environment: reused $(VENV) (pyproject.toml and constraints.txt have not changed)"; \
		exit 0; \
	fi; \
	if [ -z "$(PYTHON)" ] || ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo "error: Python 3.11 or newer is needed, found '$(PYTHON)'; name another with 'make PYTHON=/path/to/python3.11'" >&2; \
		exit 2; \
	fi; \
	echo "environment: installing into $(VENV) (some minutes the first time)"; \
	rm -f $(STAMP); \
	clear=; if [ -n "$(INSTALL_FORCED)" ] || ! $(PY) -c '' 2>/dev/null; then clear=--clear; fi; \
	"$(PYTHON)" -m venv $$clear $(VENV); \
	$(PIP) hatchling; \
	$(PIP) --no-build-isolation -e '.[$(EXTRAS)]'; \
	echo "$$wanted" > $(STAMP)

# FORCE with demo or accuracy is about their results; a new environment is asked for by `make install FORCE=1` or `make test FORCE=1`.
INSTALL_FORCED = $(if $(filter install test,$(MAKECMDGOALS)),$(FORCED))

demo: install
	@$(PY) -m analognoise compare --task digits --profile pcm-ibm --methods sgd,noise,rwp,sam,asam,samson \
		--times 1s,1h,1d,1mo,1y --chips 25 --out runs/demo $(if $(FORCED),--force)

test: install lint
	$(PYTEST)

test-slow: install
	$(PYTEST) -m slow

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: install
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: install
	$(PY) -m benchmarks.speed

accuracy: install
	$(PY) -m benchmarks.accuracy $(if $(FORCED),--force)

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find analognoise tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
