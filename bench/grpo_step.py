"""One GRPO step beside one of TRL: sampling, reference and update at a small, fixed shape, in turn in one run.

    python bench/grpo_step.py [--peer VENV/bin/python] [--rounds 10] [--dtype float32]

The shape: 0.5 M parameters (D 128, 3 layers, 4 heads, 2 KV heads, FFN 320, V 46) with the same random weights on both
sides, 16 questions x 16 samples, at most 48 new tokens (EOS ends them at random), beta 0.04, mu 1, AdamW. Rewards are
random numbers, so that no reward's own time is in the figure. Before anything is timed, the log-probs of the same
prompts are compared between the two models. The peer is a Python with trl and datasets; without one ours runs alone.
"""

import argparse
import copy
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.turns import alternate, median, record, serve

QUESTIONS, SAMPLES, LENGTH, VOCABULARY = 16, 16, 48, 46
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRS"  # ids 1 to 45; id 0 ends a completion


def questions(step: int) -> list[list[int]]:
    """The prompts of a step, the same on both sides."""
    draw = random.Random(step)
    return [[draw.randrange(1, VOCABULARY) for _ in range(draw.randrange(15, 30))] for _ in range(QUESTIONS)]


# ---------------------------------------------------------------------------------------------------------------------
# Ours


def ours(model_directory: str, dtype: str) -> None:
    import torch

    import runtime
    from data.problems import Problem
    from generate import Sampling, generate
    from kernels.advantage import group_advantage
    from model import from_pretrained
    from train_grpo import Config, Rollout, update

    class Bytes:
        """The smallest thing that `generate` takes for a tokenizer."""

        eos_id, vocab_size = 0, VOCABULARY

    model = from_pretrained(model_directory)
    if dtype == "bfloat16":
        model.compute_dtype = torch.bfloat16
    reference = copy.deepcopy(model)
    config = Config(questions=QUESTIONS, samples=SAMPLES, max_new_tokens=LENGTH, lr=1e-6)
    world, optimizer = runtime.World(), runtime.adamw(model, config.lr, (0.9, 0.95), 0.0)
    torch.manual_seed(0)

    def work(step: int) -> dict:
        prompts = questions(step)
        began = time.perf_counter()
        groups = generate(model, Bytes(), prompts, Sampling(SAMPLES, 1.0, 1.0, LENGTH, seed=step))
        sampled = time.perf_counter()
        rewards = torch.rand(QUESTIONS, SAMPLES, dtype=torch.float64)
        advantages = group_advantage(rewards).tolist()
        rollouts = [
            Rollout(Problem(str(i), "", ""), "cot", prompts[i], groups[i], rewards[i].tolist(), advantages[i])
            for i in range(QUESTIONS)
        ]
        update(model, optimizer, rollouts, config, reference, world)
        ended = time.perf_counter()
        lengths = [len(sample.ids) for group in groups for sample in group]
        return {"seconds": ended - began, "rollout": sampled - began, "update": ended - sampled,
                "length": statistics.mean(lengths)}  # fmt: skip

    serve(work)


# ---------------------------------------------------------------------------------------------------------------------
# TRL


def trl(model_directory: str, dtype: str) -> None:
    import threading

    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    vocabulary = {"<eos>": 0, **{c: i + 1 for i, c in enumerate(CHARACTERS)}}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<eos>")
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    lengths, asked, done = [], threading.Semaphore(0), threading.Semaphore(0)

    def reward(completion_ids, **_):
        lengths.append(statistics.mean(map(len, completion_ids)))
        return torch.rand(len(completion_ids)).tolist()

    class Turns(TrainerCallback):
        """A step is made when it is asked for."""

        def on_step_begin(self, *_, **__):
            asked.acquire()

        def on_step_end(self, *_, **__):
            done.release()

    rows = [{"prompt": "".join(CHARACTERS[i - 1] for i in ids)} for step in range(1000) for ids in questions(step)]
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, use_cpu=True, bf16=dtype == "bfloat16", per_device_train_batch_size=QUESTIONS * SAMPLES,
            num_generations=SAMPLES, max_completion_length=LENGTH, temperature=1.0, top_p=1.0, top_k=0, beta=0.04,
            learning_rate=1e-6, lr_scheduler_type="constant", loss_type="grpo", max_steps=1000, save_strategy="no",
            logging_strategy="no", report_to="none", disable_tqdm=True, gradient_checkpointing=False,
            shuffle_dataset=False, adam_beta2=0.95, seed=0,
        )  # fmt: skip
        trainer = GRPOTrainer(model=model, reward_funcs=reward, args=config, train_dataset=Dataset.from_list(rows),
                              processing_class=tokenizer, callbacks=[Turns()])  # fmt: skip
        thread = threading.Thread(target=trainer.train, daemon=True)
        thread.start()

        def work(step: int) -> dict:
            asked.release()
            while not done.acquire(timeout=1):
                if not thread.is_alive():
                    sys.exit(1)
            return {"length": lengths[-1]}

        serve(work)


def logprobs(side: str, model_directory: str) -> None:
    """Print the log-probs of fixed completions: sums of the four prompts' own, as the side's model computes them."""
    import torch

    prompts = questions(0)[:4]
    if side == "trl":
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
        logits = [model(torch.tensor([ids])).logits[0] for ids in prompts]
    else:
        from model import from_pretrained

        model = from_pretrained(model_directory)
        logits = [model.logits(model(torch.tensor(ids))) for ids in prompts]
    sums = [row[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None]).sum().item()
            for row, ids in zip(logits, prompts, strict=True)]  # fmt: skip
    print(json.dumps(sums))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="a Python with trl, transformers and datasets")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the arithmetic")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--check", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.check:
        return logprobs(*given.check)
    if given.side:
        return {"ours": ours, "trl": trl}[given.side[0]](given.side[1], given.dtype)
    from model import ModelConfig, Transformer

    shape = ModelConfig(VOCABULARY, width=128, layers=3, heads=4, kv_heads=2, ffn=320, context=256, eos_id=0)
    pythons = {"ours": sys.executable} | ({"trl": given.peer} if given.peer else {})
    threads = {"OMP_NUM_THREADS": str(given.threads)}
    with tempfile.TemporaryDirectory() as folder:
        model = Transformer(shape)
        model.save_pretrained(folder)
        commands = {name: [python, __file__] for name, python in pythons.items()}
        sums = [
            json.loads(subprocess.run([*command, "--check", name, folder], check=True, capture_output=True).stdout)
            for name, command in commands.items()
        ]
        if any(abs(a - b) > 1e-3 for a, b in zip(sums[0], sums[-1], strict=True)):
            raise SystemExit(f"error: the two models do not give the same log-probs: {sums}")
        sides = {name: [*command, "--side", name, folder, "--dtype", given.dtype] for name, command in commands.items()}
        found = alternate(sides, given.rounds, threads)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{millions:.2f} M parameters, {given.rounds} steps each in turn, {given.threads} threads, {given.dtype}")
    for name, side in found.items():
        middle, least, most = median(side["rows"])
        cpu, length = median(side["rows"], "cpu")[0], statistics.mean(row["length"] for row in side["rows"])
        print(f"{name:6} {middle:.3f} s a step ({least:.3f} to {most:.3f}; processor {cpu:.3f}), mean length "
              f"{length:.1f}, peak {side['peak_mb']:.0f} MB")
    phases = {key: median(found["ours"]["rows"], key)[0] for key in ("rollout", "update")}
    print(f"ours: rollout {phases['rollout']:.3f} s, reference and update {phases['update']:.3f} s")
    if given.peer:
        ratio = median(found["trl"]["rows"])[0] / median(found["ours"]["rows"])[0]
        print(f"ratio {ratio:.2f}")
    settings = {"rounds": given.rounds, "threads": given.threads, "dtype": given.dtype}
    record("grpo_step", settings, found)


if __name__ == "__main__":
    main()
