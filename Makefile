# `make help` lists the targets. Each one makes .venv and installs what it needs, once.

PYTHON  ?= python3
# Hypothesis profile: dev, ci or thorough.
PROFILE ?= $(or $(TOPK_NP_PROFILE),$(if $(CI),ci,dev))
# Further options for the command that demo, test, bench or notebooks runs.
ARGS    ?=

# This release has a small build for CPUs alone.
TORCH   ?= torch==2.13.0

# The oldest Python, for whose packages there are wheels of the oldest versions.
OLDEST_PYTHON ?= python3.11

BIN       := .venv/bin
PEERS     := .venv-peers/bin
OLDEST    := .venv-oldest/bin
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
	@echo '  ARGS="--k 8 16 32"     further options for demo, the tests, bench, mutants, ...'
	@echo '  CUPY_CPU_WHEEL=FILE    a wheel of the CPU build of CuPy, where there is one already'
	@echo '  PROFILE=thorough       how hard the property tests try: dev, ci or thorough'
	@echo '  TOPK_NP_EXAMPLES=10000 how many problems the thorough profile draws for each property (1000)'

# Six calls of pip take much longer than one. A target still installs what it needs by itself.
EXTRAS ?= bench demo dist docs lint notebooks test

.PHONY: install
install: | $(BIN)/pip ## Install at once what all targets need, or those of EXTRAS
	@echo 'Installing topk_np with $(EXTRAS) into .venv'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --editable ".[$$(echo $(EXTRAS) | tr ' ' ,)]"
	@touch $(call installed,$(EXTRAS))

.PHONY: demo
demo: $(call installed,demo) ## Run a language model with dense and with top-k attention
	$(BIN)/python -m topk_np demo $(ARGS)

# Settings of BLAS that would make the numbers another machine's are dropped.
.PHONY: bench
bench: $(call installed,bench) ## Measure time and memory against NumPy and PyTorch
	env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE $(BIN)/python -m topk_np bench \
	  --out docs/data/bench --plots docs/figures $(ARGS)

# What is in docs/data/experiments is not measured again.
.PHONY: experiments
experiments: $(call installed,demo) ## Measure what top-k does to pretrained models, for the documentation
	for name in perplexity passkey retrieval repair; do \
	  $(BIN)/python -m topk_np experiment $$name \
	    --out docs/data/experiments --plots docs/figures $(ARGS) || exit; \
	done

.PHONY: test
test: $(call installed,test) ## Run the tests, with branch coverage
	$(BIN)/python -m pytest -n auto --maxprocesses=8 --dist worksteal \
	  --cov --hypothesis-profile=$(PROFILE) $(ARGS)

.PHONY: test-oldest
test-oldest: .venv-oldest/.installed ## Run the tests on the oldest versions that pyproject.toml allows
	$(OLDEST)/python -m pytest -n auto --maxprocesses=8 --dist worksteal \
	  --hypothesis-profile=$(PROFILE) $(ARGS)

.venv-oldest/.installed: pyproject.toml tests/oldest.py | $(OLDEST)/pip
	@echo 'Installing the oldest versions of what topk_np[test] needs into .venv-oldest'
	@$(OLDEST)/python tests/oldest.py > .venv-oldest/constraints.txt
	@$(OLDEST)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint .venv-oldest/constraints.txt --editable '.[test]'
	@touch $@

.PHONY: dist
dist: $(call installed,dist) ## Build the source distribution, and from it the wheel
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

# The tests of the source distribution in an empty environment, on the wheel: what they import is
# what was installed, as there is no package beside them.
.PHONY: test-dist
test-dist: dist ## Run the tests that are in the source distribution on the wheel
	rm -rf build/dist
	mkdir -p build/dist
	tar -xzf dist/topk_np-*.tar.gz -C build/dist --strip-components=1
	for file in $$(git ls-files docs notebooks tests topk_np); do \
	  test -e "build/dist/$$file" || { echo "error: $$file is not in it" >&2; exit 1; }; done
	rm -r build/dist/topk_np build/dist/_topk_np_pytestplugin.py
	$(PYTHON) -m venv build/dist/.venv
	build/dist/.venv/bin/python -m pip install --quiet --disable-pip-version-check \
	  "$$(echo dist/topk_np-*.whl)[test]"
	cd build/dist && .venv/bin/python -m pytest -n auto --maxprocesses=8 --dist worksteal \
	  --hypothesis-profile=$(PROFILE) $(ARGS)

# It goes on where it stopped: ARGS="--fresh --count 500" begins anew.
.PHONY: mutants
mutants: $(call installed,mutants) ## See whether the tests notice small changes to the code
	$(BIN)/python -m tests.mutants $(ARGS)

# CuPy's CPU build (tests/cupy_cpu): its wheel is built where there is none, and kept for all
# checkouts; the environment is one of its own, as it must never meet the real CuPy.
CUPY_CPU_WHEEL  ?= $(HOME)/.cache/topk_np/cupy-14.2.0+cpu-cp311-cp311-linux_x86_64.whl
CUPY_CPU_PYTHON ?= python3.11
CUPY_CPU_TEST    = TOPK_NP_BACKENDS=cupy .venv-cupy-cpu/bin/python -m pytest -q \
  -n auto --maxprocesses=8 --dist worksteal --hypothesis-profile=cupy $(ARGS)
# Those that launch our kernels at all sorts of shapes, each by itself and in whole calls.
CUPY_CPU_ORDERED = -k 'cupy and not portable' tests/kernels tests/test_cupy.py

.PHONY: test-cupy-cpu
test-cupy-cpu: .venv-cupy-cpu/.installed ## Run the tests on CuPy without a GPU, in three thread orders
	CUPY_CPU_GUARD=1 TOPK_NP_THREAD_ORDER=2 $(CUPY_CPU_TEST) -k cupy
	TOPK_NP_THREAD_ORDER=0 $(CUPY_CPU_TEST) $(CUPY_CPU_ORDERED)
	TOPK_NP_THREAD_ORDER=1 $(CUPY_CPU_TEST) $(CUPY_CPU_ORDERED)

.venv-cupy-cpu/.installed: pyproject.toml | $(CUPY_CPU_WHEEL)
	@echo 'Installing topk_np[test] and the CPU build of CuPy into .venv-cupy-cpu'
	@$(CUPY_CPU_PYTHON) -m venv .venv-cupy-cpu
	@.venv-cupy-cpu/bin/python -m pip install --quiet --disable-pip-version-check \
	  '$(CUPY_CPU_WHEEL)' --editable '.[test]'
	@touch $@

$(CUPY_CPU_WHEEL):
	@echo 'Building the CPU build of CuPy, once: five to ten minutes'
	@PYTHON=$(CUPY_CPU_PYTHON) bash tests/cupy_cpu/build.sh $(@D)

.PHONY: notebooks
notebooks: $(call installed,notebooks) ## Run the notebooks, which teach the method from scratch
	$(BIN)/python notebooks/run.py $(ARGS)

# The notebooks are run first, always: what they show may be of an older state of the package.
# A page of the reference that nothing asks for any longer would be a warning.
.PHONY: docs
docs: $(call installed,docs) notebooks ## Build the documentation, in docs/_build/html; a warning is an error
	rm -rf docs/generated
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo 'Built docs/_build/html/index.html'

# PyTorch and JAX are large, so they get an environment of their own. A test of theirs is skipped
# where they are missing; here that is an error. JAX compiles every operation anew for every shape,
# so its arrays go through the promises alone, and little is optimised.
PEER_OPTIONS = -n auto --maxprocesses=8 --dist worksteal --hypothesis-profile=$(PROFILE) $(ARGS)

.PHONY: peers
peers: .venv-peers/.installed ## Run the tests on arrays of PyTorch and JAX
	$(PEERS)/python -c 'import jax, torch'
	TOPK_NP_BACKENDS=torch $(PEERS)/python -m pytest $(PEER_OPTIONS) tests/interop tests/layers tests/diagnostics \
	  tests/bench/test_transformers.py tests/models/test_transformers.py \
	  tests/kernels/test_engines.py tests/kernels/test_products.py \
	  $(addprefix tests/test_,$(addsuffix .py,attention bias decoding dense dropout \
	  ffn gradients masking options promises selection))
	TOPK_NP_BACKENDS=jax JAX_DISABLE_MOST_OPTIMIZATIONS=1 \
	  $(PEERS)/python -m pytest $(PEER_OPTIONS) tests/test_promises.py

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
	rm -rf .venv .venv-cupy-cpu .venv-oldest .venv-peers build dist htmlcov .coverage .coverage.*
	rm -rf docs/_build docs/generated
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed-%: pyproject.toml | $(BIN)/pip
	@echo 'Installing topk_np[$*] into .venv'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

.venv-peers/.installed: pyproject.toml | $(PEERS)/pip
	@echo 'Installing topk_np[test,jax,torch,transformers] into .venv-peers'
	@$(PEERS)/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[test,jax,torch,transformers]' '$(TORCH)'
	@touch $@

# pip is what venv writes last: where it is missing, the environment is not whole.
$(OLDEST)/pip: PYTHON = $(OLDEST_PYTHON)
$(BIN)/pip $(PEERS)/pip $(OLDEST)/pip: %/bin/pip:
	@command -v $(PYTHON) >/dev/null || { \
	  echo 'error: no $(PYTHON) found; name a Python >= 3.11 with make PYTHON=...' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: topk_np needs Python >= 3.11, but $(PYTHON) is $$($(PYTHON) -V 2>&1);" \
	    'name another with make PYTHON=...' >&2; exit 1; }
	@echo "Making $* with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $*
