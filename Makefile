# Every habit of the project is one target. `make` alone lists them.
PYTHON ?= python3
GPU_PYTHON ?= python3
RUN ?= runs/emoji
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
INSTALLED := $(VENV)/.installed
TOOLS := $(VENV)/.tools
TORCHAO := torchao==0.18.0
TORCH := $(shell grep "^torch==" constraints.txt)
BENCHMARKS := $(sort $(wildcard benchmarks/bench_*.py))

# It takes seconds, and comes first. Types take most of a minute of one core, and are checked beside the tests.
CHECK_FORM := $(PY) -m ruff format --check --output-format concise . && \
	$(PY) -m ruff check --output-format concise . && $(PY) tools/check_sizes.py

# What tests compare with. torchao gets a folder of its own in the venv, which one test names: wherever transformers
# finds it, it imports it, for seconds.
define PEERS
@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -r requirements-peers.txt
@rm -rf $(1)/torchao
@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(1)/torchao $(TORCHAO)
endef

.DEFAULT_GOAL := help
.PHONY: help setup tools format check types every-test quick test test-oldest test-newest soak peer-suite docs demo bench gpu gpu-wheels clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## make .venv and install the package with the versions of constraints.txt
	@:

$(INSTALLED): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("hf_clip needs Python 3.11 or newer, \
	$(PYTHON) is %d.%d: make setup PYTHON=python3.12" % sys.version_info[:2])'
	@echo "Setting up $(VENV) (several hundred MB to download the first time)"
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@$(PIP) -c constraints.txt -e '.[train,demo]'
	@touch $@

tools: $(TOOLS) ## add what checks and tests need: linters, type checker, the peers that tests compare with
	@:

$(TOOLS): $(INSTALLED) requirements-peers.txt
	@echo "Installing what the tests need beside the package"
	@$(PIP) -c constraints.txt -e '.[train,demo,test,docs,dev]'
	$(call PEERS,$(VENV))
	@touch $@

format: tools ## format the code and fix what ruff can fix
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

check: tools types ## formatting, lint, types, and the sizes of files and functions
	@$(CHECK_FORM)

quick: tools ## the tests without kills, ranks, peers and subprocesses, in under two minutes
	@$(PY) -m pytest -n 2 -m "not slow"

test: tools ## check, then every test, in about fifteen minutes on two cores
	@$(CHECK_FORM)
	@$(MAKE) --no-print-directory -j 2 types every-test

soak: tools ## the same tests with far larger counts, within an hour
	@$(CHECK_FORM)
	@HF_CLIP_SOAK=1 $(MAKE) --no-print-directory -j 2 types every-test

docs: tools ## build the documentation site into build/site, strictly
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "build/site/index.html; with its search: $(PY) -m http.server --directory build/site"

peer-suite: tools ## transformers' own common model tests, on our classes and on its CLIP, within a few minutes
	@$(PY) tools/peer_suite.py

types:
	@$(PY) tools/check_types.py

# The ends of the ranges in setup.py, each in a venv of its own. uv finds the oldest versions, which pip does not; it
# takes pip's folder of wheels. What only the tests need is as it comes.
UV = UV_FIND_LINKS="$$PIP_FIND_LINKS" $(1)/bin/python -m uv pip install --quiet --python $(1)/bin/python

test-oldest: ## every test with the oldest version of each dependency, beside the pinned torch (.venv-oldest)
	@test -x .venv-oldest/bin/pip || $(PYTHON) -m venv .venv-oldest
	@.venv-oldest/bin/pip install --quiet uv
	@$(call UV,.venv-oldest) --resolution lowest-direct -e '.[train,demo]' $(TORCH)
	@$(call UV,.venv-oldest) -e '.[train,demo,test,docs]' $(TORCH)
	$(call PEERS,.venv-oldest)
	@.venv-oldest/bin/python -m pytest -n 2

test-newest: TORCH := torch
test-newest: ## every test with the versions that pip takes today (.venv-newest; TORCH=torch==... pins torch alone)
	@test -x .venv-newest/bin/pip || $(PYTHON) -m venv .venv-newest
	@.venv-newest/bin/pip install --quiet --upgrade --upgrade-strategy eager -e '.[train,demo,test,docs]' '$(TORCH)'
	$(call PEERS,.venv-newest)
	@.venv-newest/bin/python -m pytest -n 2

every-test:
	@$(PY) -m pytest -n 3 --durations=10

demo: setup ## train on the bundled images (five to thirty minutes), show the model, and search with it; a finished RUN is shown again
	@if [ -f $(RUN)/results.json ]; then \
		echo "$(RUN) holds a finished run, shown here again. Train anew: make demo RUN=runs/another"; \
	elif [ -f $(RUN)/recipe.yaml ]; then \
		$(VENV)/bin/hf-clip train --output-dir $(RUN) --resume; \
	else \
		$(VENV)/bin/hf-clip train --recipe emoji --output-dir $(RUN); \
	fi
	@$(PY) examples/emoji/show.py $(RUN)
	@$(PY) examples/emoji/search.py $(RUN)

bench: tools ## every benchmarks/bench_*.py in turn
	@$(if $(BENCHMARKS),,echo "There is no benchmarks/bench_*.py yet.")
	@set -e; for file in $(BENCHMARKS); do echo "$$file"; $(PY) $$file; done

gpu-wheels: tools ## fetch what `make gpu` needs on a machine without a network into benchmarks/wheels
	@$(PY) benchmarks/gpu_wheels.py

gpu: ## on a machine with an NVIDIA GPU: correctness, then speed beside the peers, with its own Python (GPU_PYTHON)
	@$(GPU_PYTHON) -m pip install --quiet --no-deps --no-build-isolation -e .
	@$(GPU_PYTHON) benchmarks/gpu.py

clean: ## remove .venv, caches and build outputs (runs/ stays)
	@rm -rf $(VENV) .peer-suite build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
