# `make help` lists the targets. Each one makes .venv and installs what it needs, once.

PYTHON  ?= python3
# Hypothesis profile: dev, ci or thorough.
PROFILE ?= $(or $(TOPK_NP_PROFILE),$(if $(CI),ci,dev))
# Further options for the command that `make demo`, `make test` or `make bench` runs.
ARGS    ?=

# This release has a small build for CPUs alone.
TORCH   ?= torch==2.13.0

BIN       := .venv/bin
PEERS     := .venv-peers/bin
installed  = $(1:%=.venv/.installed-%)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two runs of pip in one environment get in each other's way.
.NOTPARALLEL:

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  PYTHON=python3.12      the Python that .venv is made with (3.11 or newer)'
	@echo '  ARGS="--k 8 16 32"     further options for demo, test and bench'
	@echo '  PROFILE=thorough       how hard the property tests try: dev, ci or thorough'

.PHONY: demo
demo: $(call installed,demo) ## Run a language model with dense and with top-k attention
	$(BIN)/python -m topk_np demo $(ARGS)

# Settings of BLAS that would make the numbers another machine's are dropped.
.PHONY: bench
bench: $(call installed,bench) ## Measure time and memory against NumPy and PyTorch
	env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE $(BIN)/python -m topk_np bench \
	  --out docs/data/bench --plots docs/figures $(ARGS)

.PHONY: test
test: $(call installed,test) ## Run the tests, with branch coverage
	$(BIN)/python -m pytest -n auto --maxprocesses=8 --dist worksteal \
	  --cov --hypothesis-profile=$(PROFILE) $(ARGS)

# PyTorch and JAX are large, so they get an environment of their own. A test of theirs is skipped
# where they are missing; here that is an error.
.PHONY: peers
peers: .venv-peers/.installed ## Run the tests on arrays of PyTorch and JAX
	$(PEERS)/python -c 'import jax, torch'
	TOPK_NP_BACKENDS=torch,jax $(PEERS)/python -m pytest -n auto --maxprocesses=8 \
	  --hypothesis-profile=$(PROFILE) $(ARGS) tests/interop

.PHONY: lint
lint: $(call installed,lint) ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: format
format: $(call installed,lint) ## Mend what can be mended of style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The tests are checked as well, so what they import has to be there.
.PHONY: types
types: $(call installed,lint test) ## Check the types of the package and its tests
	$(BIN)/mypy

.PHONY: check-cuda
check-cuda: $(call installed,nvrtc) ## Compile the CUDA kernels with NVIDIA's compiler, which needs no GPU
	$(BIN)/python -m tests.kernels.check_cuda

.PHONY: clean
clean: ## Remove the environments and everything that was made from the sources
	rm -rf .venv .venv-peers build dist htmlcov .coverage .coverage.*
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed-%: pyproject.toml | $(BIN)/pip
	@echo 'Installing topk_np[$*] into .venv'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

.venv-peers/.installed: pyproject.toml | $(PEERS)/pip
	@echo 'Installing topk_np[test,jax,torch] into .venv-peers'
	@$(PEERS)/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[test,jax,torch]' '$(TORCH)'
	@touch $@

# pip is what venv writes last: where it is missing, the environment is not whole.
%/bin/pip:
	@command -v $(PYTHON) >/dev/null || { \
	  echo 'error: no $(PYTHON) found; name a Python >= 3.11 with make PYTHON=...' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: topk_np needs Python >= 3.11, but $(PYTHON) is $$($(PYTHON) -V 2>&1);" \
	    'name another with make PYTHON=...' >&2; exit 1; }
	@echo "Making $* with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $*
