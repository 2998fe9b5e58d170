# Every habit of the project is one target. `make` alone lists them.
PYTHON ?= python3
RUN ?= runs/emoji
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
BENCHMARKS := $(sort $(wildcard benchmarks/bench_*.py))

.DEFAULT_GOAL := help
.PHONY: help setup format check test soak demo bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## make .venv and install the package with the versions of constraints.txt
	@:

$(INSTALLED): setup.py pyproject.toml constraints.txt requirements-peers.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("hf_clip needs Python 3.11 or newer, \
	$(PYTHON) is %d.%d: make setup PYTHON=python3.12" % sys.version_info[:2])'
	@echo "Setting up $(VENV) (several hundred MB to download the first time)"
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,demo,dev]'
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		-r requirements-peers.txt
	@touch $@

format: setup ## format the code and mend what ruff can mend
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

check: setup ## formatting, lint, and the sizes of files and functions
	@$(PY) -m ruff format --check --output-format concise .
	@$(PY) -m ruff check --output-format concise .
	@$(PY) tools/check_sizes.py

test: check ## check, then every test, on two cores in under ten minutes
	@$(PY) -m pytest --durations=10

soak: check ## the same tests with far larger counts
	@HF_CLIP_SOAK=1 $(PY) -m pytest --durations=10

demo: setup ## train on the embedded pictures (five minutes) and show the model; a finished RUN is shown again
	@if [ -f $(RUN)/results.json ]; then \
		echo "$(RUN) holds a finished run, shown here again. Train anew: make demo RUN=runs/another"; \
	elif [ -f $(RUN)/recipe.yaml ]; then \
		$(VENV)/bin/hf-clip train --output-dir $(RUN) --resume; \
	else \
		$(VENV)/bin/hf-clip train --recipe emoji --output-dir $(RUN); \
	fi
	@$(PY) examples/emoji/show.py $(RUN)

bench: setup ## every benchmarks/bench_*.py in turn
	@$(if $(BENCHMARKS),,echo "There is no benchmarks/bench_*.py yet.")
	@set -e; for file in $(BENCHMARKS); do echo "$$file"; $(PY) $$file; done

clean: ## remove .venv, caches and build outputs (runs/ stays)
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
