# The commands of this repository. Everything runs in .venv, which the first command makes.
# Another interpreter: make venv PYTHON=python3.11
# Without a GPU, torch's CPU build saves 3 GB of download:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make venv

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?=
VENV := $(CURDIR)/.venv
INSTALLED := $(VENV)/.installed
# As after `source .venv/bin/activate`, whatever else is active.
IN_VENV := VIRTUAL_ENV="$(VENV)" PATH="$(VENV)/bin:$$PATH"
# One thread each, on as many processors as there are.
PYTEST := $(IN_VENV) OMP_NUM_THREADS=1 python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal
SHELL_SCRIPTS = $$(git ls-files '*.sh' .ci/run)

.PHONY: help venv demo test test-slow test-all recipes bench lint format doctor \
	clean clean-recipes distclean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

venv: $(INSTALLED) ## make .venv with the package and all that the other commands need

$(INSTALLED): setup.py pyproject.toml constraints.txt tools/make_venv.sh
	@tools/make_venv.sh "$(VENV)" $(PYTHON)
	@touch "$@"

demo: $(INSTALLED) ## train, separate, score, profile and report TF-MoE on generated speech
	@cd egs2/mini/tf_moe && $(IN_VENV) ./run.sh --stage 1 --stop_stage 7

test: $(INSTALLED) ## run the tests, without those marked slow
	@$(PYTEST)

test-slow: $(INSTALLED) ## run only the tests marked slow
	@$(PYTEST) -m slow

test-all: $(INSTALLED) ## run all tests
	@$(PYTEST) -m "slow or not slow"

recipes: $(INSTALLED) ## run the recipes in small, all stages, also after kills
	@$(PYTEST) -m "slow or not slow" test/recipes

bench: $(INSTALLED) ## compare speed, memory and MACs with other separators: bench/RESULTS.md
	@$(IN_VENV) python tools/bench.py

lint: $(INSTALLED) ## check style, shell scripts, types and the tables of the README
	@$(IN_VENV) ruff check .
	@$(IN_VENV) ruff format --check .
	@$(IN_VENV) shellcheck --external-sources $(SHELL_SCRIPTS)
	@$(IN_VENV) mypy
	@$(IN_VENV) python tools/update_readme.py --check

format: $(INSTALLED) ## reformat the Python files
	@$(IN_VENV) ruff check --fix-only .
	@$(IN_VENV) ruff format .

doctor: $(INSTALLED) ## say what is installed, what is missing and how to mend it
	@$(IN_VENV) python -m espnet2_sepx.bin.doctor

clean: ## remove caches and build outputs
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	@find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

clean-recipes: ## remove the data and experiments of all recipes
	@rm -rf egs2/*/data egs2/*/dump egs2/*/audio egs2/*/*/exp

distclean: clean clean-recipes ## also remove .venv
	@rm -rf "$(VENV)"
