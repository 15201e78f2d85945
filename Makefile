# `make demo` and `make test` set up everything themselves. Variables: RECIPE, OUT, SHARDS, CHECKPOINT, GPUS,
# ARGS; BENCH names the file in benchmarks/.
RECIPE ?= digits
OUT ?= runs/$(basename $(notdir $(RECIPE)))
SHARDS ?= $(OUT)/shards
CHECKPOINT ?= $(OUT)/pretrain/{name}-s{seed}
GPUS ?= 1
ARGS ?=
BENCH ?= shards

PYTHON ?= python3
BIN := .venv/bin
CLSP := $(BIN)/clsp
# The `--set` part of ARGS, for the commands that a target runs before its own.
SETTINGS = $(foreach word,$(filter-out --%,$(subst --set=,--set ,$(ARGS))),$(if $(findstring =,$(word)),--set '$(word)'))

# One process needs no launcher. Several: accelerate on GPUs, torchrun on CPUs (accelerate's launcher needs MPI there);
# bad input is found before they are launched, since a launcher turns every exit code into 1.
ifeq ($(GPUS),1)
run = $(CLSP) $(1)
else ifneq ($(shell command -v nvidia-smi),)
run = $(CLSP) $(1) --check && $(BIN)/accelerate launch --num_processes $(GPUS) --multi_gpu -m clsp.cli $(1)
else
run = $(CLSP) $(1) --check && \
	ACCELERATE_USE_CPU=true $(BIN)/torchrun --standalone --nproc_per_node $(GPUS) -m clsp.cli $(1)
endif

.PHONY: setup demo reproduce shards pretrain linear-eval transfer report test test-fast lint format docs bench
.DEFAULT_GOAL := demo

setup: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

reproduce: setup
	$(CLSP) reproduce --recipe $(RECIPE) --out $(OUT) $(ARGS)

demo: setup
	$(CLSP) reproduce --recipe digits --out runs/demo $(ARGS)

shards: setup
	$(call run,diffusion train --recipe $(RECIPE) --out $(OUT)/diffusion $(SETTINGS))
	$(call run,shards make --recipe $(RECIPE) --out $(SHARDS) $(ARGS))

pretrain: setup
	$(call run,pretrain --recipe $(RECIPE) --shards $(SHARDS) --out '$(CHECKPOINT)' $(ARGS))

linear-eval: setup
	$(CLSP) linear-eval --recipe $(RECIPE) --checkpoint '$(CHECKPOINT)' --out '$(CHECKPOINT)' $(ARGS)

transfer: setup
	$(CLSP) transfer --recipe $(RECIPE) --checkpoint '$(CHECKPOINT)' --out '$(CHECKPOINT)' $(ARGS)

report: setup
	$(CLSP) compare $(OUT)/pretrain/* --out $(OUT)
	$(CLSP) report $(OUT) --out $(OUT)/report.html

# The long test files first, so that none is left over for one process at the end.
test: setup
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 25 $(ARGS)

test-fast: setup
	$(BIN)/pytest --numprocesses 2 --dist loadfile -m 'not slow' $(ARGS)

bench: setup
	$(BIN)/python benchmarks/$(BENCH).py $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff check --preview --select PLW1514 .  # text without an encoding: a rule that ruff has in preview
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
