# Everything sets itself up: a target that needs them makes .venv, the pinned packages and the compiled extension.
# `make` alone lists the targets; `make demo` installs no developers' tools.

VENV := .venv
BIN := $(VENV)/bin
CORES = $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h')

# The first Python that is new enough, with what it lacks; `make PYTHON=/path/to/python3 ...` names another.
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python3.10 python)
PROBE := import importlib.util as u, os, sys, sysconfig; \
    assert sys.version_info >= (3, 10); \
    print("no-venv" * (not u.find_spec("venv") or not u.find_spec("ensurepip")), \
          "no-headers" * (not os.path.exists(sysconfig.get_path("include") + "/Python.h")))
FACTS = $(eval FACTS := $(shell for p in $(CANDIDATES); do $$p -c '$(PROBE)' 2>/dev/null && echo $$p && break; done))$(FACTS)
FOUND = $(filter-out no-%,$(FACTS))
COMPILER = $(firstword $(if $(filter default,$(origin CXX)),c++,$(CXX)))

# One clear line for what make cannot install.
define REQUIREMENTS
$(if $(FOUND),,$(error Python 3.10 or newer is missing: install it, or name it: make PYTHON=/path/to/python3))
$(if $(filter no-venv,$(FACTS)),$(error $(FOUND) has no venv module: install it (on Debian and Ubuntu: apt install python3-venv)))
$(if $(filter no-headers,$(FACTS)),$(error $(FOUND) has no Python.h: install it (on Debian and Ubuntu: apt install python3-dev)))
$(if $(shell command -v $(COMPILER)),,$(error A C++ compiler is missing ($(COMPILER)): install g++, or name one: CXX=g++-13 make))
endef

.PHONY: help demo test test-all bench docs lint format clean setup
.DELETE_ON_ERROR:

help:
	@sed -n 's/^## //p' Makefile

## make demo      train CNN, eLCN, eFCN and FCN on handwritten digits, and write runs/demo/report.html
demo:
	$(call SIDE_BY_SIDE,packages extension)
	$(BIN)/efcn-sparse relax --preset digits-aligned --workers $(CORES) --run-dir runs/demo
	@echo "The report is at $(CURDIR)/runs/demo/report.html"

# One process a core, each with one thread. Bytecode is written whatever the environment says: many tests start processes that
# import torch._dynamo, which takes twice as long without it.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist worksteal

## make test      lint, type check, doctests and tests; stops at the first step that fails
test: setup lint
	$(PYTEST) -m "not slow"

## make test-all  the slow tests too
test-all: setup lint
	$(PYTEST)

## make bench     the benchmarks
bench: setup
	$(BIN)/efcn-sparse bench --results benchmarks/results

## make docs      the documentation as a site, in site/index.html
docs: setup
	NO_MKDOCS_2_WARNING=1 PYTHONDONTWRITEBYTECODE=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/mkdocs build --quiet
	@echo "The site is at $(CURDIR)/site/index.html; its search needs a server: python3 -m http.server --directory site"

## make lint      ruff, clang-format and mypy, changing nothing
lint: $(VENV)/tools.stamp
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet --diff .
	$(if $(SOURCES),$(BIN)/clang-format --dry-run --Werror $(SOURCES))
	$(BIN)/mypy

## make format    the same, repairing what can be repaired
format: $(VENV)/tools.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(SOURCES),$(BIN)/clang-format -i $(SOURCES))

## make setup     only .venv, all packages and the extension
setup:
	$(call SIDE_BY_SIDE,tools extension)

## make clean     remove what was built, but not runs/
clean:
	rm -rf $(VENV) build dist site *.egg-info efcn_sparse/_C*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Modules that nobody imports need no bytecode; the others get theirs when they are first imported.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint requirements-dev.txt

# What is not there yet of these stamps: packages arrive while the extension is compiled.
define SIDE_BY_SIDE
$(if $(wildcard $(VENV)/extension.stamp),,$(REQUIREMENTS))
@+$(MAKE) --no-print-directory --jobs=2 $(1:%=$(VENV)/%.stamp)
endef

# What the extension is compiled with.
$(VENV)/torch.stamp: requirements-dev.txt pyproject.toml
	$(REQUIREMENTS)
	$(FOUND) -m venv $(VENV)
	$(PIP) torch setuptools wheel ninja
	@touch $@

# What the demo needs besides.
$(VENV)/packages.stamp: $(VENV)/torch.stamp
	EFCN_BUILD=none $(PIP) --no-build-isolation --editable '.[digits,plot]'
	@touch $@

# What lints, tests and measures.
$(VENV)/tools.stamp: $(VENV)/packages.stamp
	EFCN_BUILD=none $(PIP) --no-build-isolation --requirement requirements-dev.txt --editable '.[dev]'
	@touch $@

# In place and not through pip, so that ninja compiles only what has changed. MAKEFLAGS names a jobserver that setup.py's
# children cannot reach, of which ninja complains.
$(VENV)/extension.stamp: $(VENV)/torch.stamp setup.py $(SOURCES)
	$(REQUIREMENTS)
	MAKEFLAGS= EFCN_BUILD=cpu PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@
