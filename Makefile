# Every target installs what it needs, on a machine with make and Python >= 3.10, and notes it in .venv: the
# second time it starts at once. As root it also installs the Debian packages of PROGRAMS.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
PEERS := varnishd=varnish memcached=memcached redis-server=redis-server fusermount3=fuse3 ibv_devices=ibverbs-utils gcc=gcc
PYTHONS := 3.11 3.12 3.13 3.10 3.14
MATRIX := 3.10 3.12 3.13
PROGRAMS := etcd=etcd-server nginx=nginx strace=strace ip=iproute2 curl=curl promtool=prometheus
PIP = $(1)/bin/python -m pip --quiet --disable-pip-version-check --no-input
TORCH := torch==2.13.0 torchdata==0.11.0
ARGS :=

.PHONY: help demo test test-all test-matrix lint bench bench-rows venv venv-all programs clean distclean $(MATRIX:%=test-%)

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(VENV)/.demo programs ## a cluster on this machine, a real data set through it, a worker killed mid-read
	@$(BIN)/python demo/run.py $(ARGS)

test: lint programs ## lint, types, import rules and all tests but the slow ones; ARGS="-k page" goes to pytest
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-all: lint programs ## the slow tests as well
	@$(BIN)/python -m pytest $(ARGS)

test-matrix: $(MATRIX:%=test-%) ## the unit tests on every other Python that is installed

lint: $(VENV)/.dev ## style, types (mypy strict) and import rules
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "run: $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

bench: $(VENV)/.all programs ## side by side with peers: ratios, and a report in docs/benchmarks; ARGS="--only peers,growth"
	@[ -e $(VENV)/.peers ] || { .ci/debian $(PEERS) && touch $(VENV)/.peers; } || true
	@$(BIN)/python -m benchmarks $(ARGS)

bench-rows: $(VENV)/.all programs ## rows beside LMDB, array_record, litdata, MosaicML streaming and kara-storage
	@$(BIN)/python -m benchmarks.rows $(ARGS)

docs: $(VENV)/.all ## the documentation as a site in build/site; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

sbom: $(VENV)/.dev ## what the image installs, as CycloneDX: build/sbom.json
	@$(call PIP,$(VENV)) install cyclonedx-bom
	@mkdir -p build; $(BIN)/cyclonedx-py requirements deploy/requirements.txt --output-reproducible -o build/sbom.json

venv: $(VENV)/.dev ## .venv with the project (editable) and its tools

venv-all: $(VENV)/.all ## and what tests can use beyond that: torch, pandas, duckdb, a second etcd, an S3 server

programs: | $(BIN)/python
	@[ -e $(VENV)/.programs ] || { .ci/debian $(PROGRAMS) && touch $(VENV)/.programs; } || true

clean: ## what was built and cached, not the virtual environments
	@rm -rf build dist .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -path './.venv*' -prune -o -name __pycache__ -print0 | xargs -0 rm -rf

distclean: clean ## and the virtual environments
	@rm -rf $(VENV) $(MATRIX:%=.venv-%)

$(BIN)/python:
	@.ci/interpreter $(PYTHONS) >/dev/null || .ci/debian no-such-program=python3-venv || true
	@python=$$(.ci/interpreter $(PYTHONS)) || { echo "found none of Python $(PYTHONS) with venv" >&2; exit 1; }; \
	echo "making $(VENV) with $$python"; "$$python" -m venv $(VENV)

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "installing the project and its tools into $(VENV)"
	@$(call PIP,$(VENV)) install --editable '.[dev]'
	@touch $@

$(VENV)/.demo: pyproject.toml $(VENV)/.dev
	@$(call PIP,$(VENV)) install --editable '.[demo]'
	@touch $@

# Before everything that would ask for torch without a version: that one brings gigabytes of CUDA.
$(VENV)/.torch: | $(BIN)/python
	@if [[ "$$($(BIN)/python -V)" == "Python 3.11."* ]]; then \
	  echo "installing $(TORCH) into $(VENV)"; $(call PIP,$(VENV)) install $(TORCH); touch $@; \
	else echo "no $(TORCH): it is for Python 3.11 only"; fi

$(VENV)/.all: pyproject.toml $(VENV)/.torch $(VENV)/.dev
	@echo "installing client libraries and referees into $(VENV)"
	@$(call PIP,$(VENV)) install --editable '.[clients,referees,deploy]'
	@touch $@

.venv-%/.dev: pyproject.toml
	@python=$$(.ci/interpreter $*); [ -e .venv-$*/bin/python ] || "$$python" -m venv .venv-$*
	@$(call PIP,.venv-$*) install --editable '.[dev]'
	@touch $@

$(MATRIX:%=test-%): test-%:
	@if ! .ci/interpreter $* >/dev/null; then echo "Python $*: skipped, it is not installed"; \
	else $(MAKE) .venv-$*/.dev; echo "Python $*:"; \
	env -u CI .venv-$*/bin/python -m pytest -q -p no:cacheprovider tests/unit; fi
