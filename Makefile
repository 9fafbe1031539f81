PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TUNIX_READY := $(VENV)/.tunix-ready

# libtpu is here to compile for TPUs; on a machine without one it says so at every start.
ifeq ($(wildcard /dev/accel[0-9]* /dev/vfio/[0-9]*),)
export TPU_ACCELERATOR_TYPE ?= v5p-128
export TPU_WORKER_HOSTNAMES ?= localhost
endif

.PHONY: help pretrain pretrain-mesh finetune grpo linux-doc study report test test-fast random-cases lint types bench clean trainers test-oldest test-newest

help:  ## Show this text
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# 1.6 GB that nothing else needs.
$(TUNIX_READY): $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[post-training]'
	touch $@

pretrain: $(READY)  ## Train a small language model on real text: Ember against AdamW on the tables
	$(BIN)/python -m examples.pretrain --config=configs/pretrain_small.py --compare \
	  --config.overwrite

pretrain-mesh: $(READY)  ## The same in 2 processes with 4 devices each, beside one device
	$(BIN)/python -m examples.pretrain --config=configs/pretrain_small.py \
	  --config.workdir=runs/one_device --config.overwrite --config.mesh.fsdp=1
	$(BIN)/python -m examples.tools.launch --processes=2 --devices=4 -- \
	  -m examples.pretrain --config=configs/pretrain_small.py \
	  --config.workdir=runs/mesh --config.overwrite --config.mesh.tensor=2 \
	  --beside=runs/one_device/ember

finetune: $(TUNIX_READY)  ## Pretrain, then finetune on instructions with tunix: Ember against AdamW on the tables
	$(BIN)/python -m examples.finetune --config=configs/finetune_small.py --compare \
	  --config.overwrite

grpo: $(TUNIX_READY)  ## Learn to sort by reinforcement with tunix, at several batch sizes: Ember against AdamW
	$(BIN)/python -m examples.grpo --config=configs/grpo_small.py --compare \
	  --config.overwrite

# The documentation of Linux, English only: 21 MB of text in files that the programs read.
LINUX_DOC := .cache/linux-doc
linux-doc: $(LINUX_DOC)/.ready  ## Fetch natural English for the study: the documentation of Linux (needs apt)
$(LINUX_DOC)/.ready:
	mkdir -p $(LINUX_DOC)
	cd $(LINUX_DOC) && apt-get download linux-doc-6.1 && dpkg-deb -x linux-doc-6.1_*.deb .
	rm -r $(LINUX_DOC)/usr/share/doc/linux-doc-6.1/Documentation/translations
	touch $@

study: $(READY) linux-doc  ## Repeat the optimizer study: hours; finished runs are not run again
	JAX_PLATFORMS=cpu GLIBC_TUNABLES=glibc.malloc.hugetlb=1 \
	  $(BIN)/python -m benchmarks.study.run

report: $(READY)  ## Write all tables and figures of the documents from the results
	JAX_PLATFORMS=cpu $(BIN)/python -m benchmarks.report

test: $(READY)  ## Run all tests and doctests
	$(BIN)/python -m pytest -n 2

test-fast: $(READY)  ## Run the unit tests only
	$(BIN)/python -m pytest -n 2 tests/unit

random-cases: $(READY)  ## Hold ten thousand random gradients against the float64 oracle
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.unit.random_cases --cases=10000

lint: $(READY)  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## Check types
	$(BIN)/pyright

bench: $(READY)  ## Measure bytes, time and collectives of a step against other optimizers
	$(BIN)/python -m benchmarks.step.run
	$(BIN)/python -m benchmarks.step.tpu
	$(BIN)/python -m benchmarks.lazy.run
	$(BIN)/python -m benchmarks.collectives.run

# Each in an environment of its own, with the versions of environments.toml there.
ENVIRONMENT := $(PYTHON) benchmarks/trainers/environment.py
OWN_LOOPS := trainer-nnx_loop trainer-linen_loop
OTHERS := trainer-maxtext trainer-levanter trainer-tunix

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

clean:  ## Remove the virtual environment, caches and runs
	rm -rf $(VENV) .venv-* runs .cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
