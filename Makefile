# make setup          a virtual environment in .venv with the pinned requirements
# make demo           a small web -> mined corpus -> tokenizer -> pre-training -> SFT -> GRPO -> evaluation, on a laptop CPU
# make test           all tests
# make word-problems DATA=DIR   the same pipeline on MAWPS, ASDiv and SVAMP
# make gsm8k DATA=DIR           the same pipeline on GSM8K
# make eval MODEL=DIR DATA=DIR  a model on all benchmarks of the paper that are in the data folder; LIMIT=50: on a few each
# make figures        the paper's figures 5, 6 and 7, best-of-N and reward hacking on built-in problems, in runs/figures
# SEED=1 TO=runs/other changes the seed and the run directory of a pipeline.

PYTHON ?= python3
SEED ?= 0
BIN = .venv/bin

.PHONY: setup demo word-problems gsm8k eval figures test lint clean

setup: .venv/.ready

.venv/.ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11; use make PYTHON=python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

demo: setup
	$(BIN)/python -m tools.pipeline configs/demo/pipeline.toml --seed $(SEED) $(if $(TO),--to $(TO))

word-problems: setup
	$(BIN)/python -m tools.pipeline configs/word_problems/pipeline.toml --data "$(DATA)" --seed $(SEED) $(if $(TO),--to $(TO))

gsm8k: setup
	$(BIN)/python -m tools.pipeline configs/gsm8k/pipeline.toml --data "$(DATA)" --seed $(SEED) $(if $(TO),--to $(TO))

eval: setup
	$(BIN)/python eval.py --model "$(MODEL)" --data "$(DATA)" --limit $(or $(LIMIT),0) --seed $(SEED) --to $(or $(TO),runs/eval)

figures: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check matplotlib==3.11.2
	$(BIN)/python -m experiments.figure5 $(if $(TO),--to $(TO))
	for figure in figure6 figure7 best_of_n hacking; do $(BIN)/python -m experiments.$$figure --seeds 3 $(if $(TO),--to $(TO)) || exit; done

test: setup
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: setup
	$(BIN)/ruff check .

clean:
	rm -rf .venv runs
