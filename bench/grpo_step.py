"""A GRPO step beside one of TRL and one of an earlier revision: sampling, reference and update.

    python bench/grpo_step.py [--before CHECKOUT] [--peer peer/bin/python] [--rounds 10]
    python -m venv peer && peer/bin/pip install trl transformers accelerate datasets

The shape: 0.5 M parameters (D 128, 3 layers, 4 heads, 2 KV heads, FFN 320, V 46) with the same
random weights on all sides, 16 questions x 16 samples, at most 48 new tokens (EOS ends them at
random), beta 0.04, mu 1, AdamW. Rewards are random numbers, so they take no time. Before anything
is timed, the log-probs of the same prompts are compared. --dtype bfloat16: weights are float32 and
products in bfloat16, by autocast on the peer's side. --ours KEY=VALUE,... changes options of
train_grpo.py.

    python bench/grpo_step.py --model DIR --rounds 3 [--peer ...] [--dtype bfloat16 --peer_dtype float32]

--model: a real model (bench/real_model.py makes one), 4 questions x 8 samples of exactly 64 tokens.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import turns
from bench.turns import alternate, median, record, serve
from data.io import run_cli

QUESTIONS, SAMPLES, LENGTH, VOCABULARY = 16, 16, 48, 46
REAL = dict(questions=4, samples=8, max_new_tokens=64)  # with --model
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRS"  # ids 1 to 45; id 0 ends a completion
# what --ours may change
OURS = ("activation_checkpointing", "kernels", "max_rows", "micro_tokens")


def questions(step: int) -> list[list[int]]:
    """The prompts of a step, the same on all sides."""
    draw = random.Random(step)
    prompts = []
    for _ in range(QUESTIONS):
        length = draw.randrange(15, 30)
        prompts.append([draw.randrange(1, VOCABULARY) for _ in range(length)])
    return prompts


def texts(step: int) -> list[str]:
    """The prompts of a step for a real model: about 28 tokens each."""
    draw = random.Random(step)
    prompts = []
    for _ in range(REAL["questions"]):
        first, second = draw.randrange(10, 100), draw.randrange(10, 100)
        bought = f"Tom has {first} apples and buys {second} more at the market."
        prompts.append(f"{bought} How many apples does he have now?\nAnswer:")
    return prompts


# --------------------------------------------------------------------------------------------------
# Ours


def own_config(given: argparse.Namespace):
    from train_grpo import Config

    defaults = dict(questions=QUESTIONS, samples=SAMPLES, max_new_tokens=LENGTH, lr=1e-6)
    if given.model:
        defaults |= REAL
    return turns.own_options(Config, given.ours, OURS, defaults)


class Learner:
    """What train_grpo.py holds: the policy with its optimizer, the reference, and the sampler's
    whole copy.

    `model` is in float32 on the device of `world`, which says how it computes. config.samples
    completions of a prompt hold at most config.max_new_tokens; `eos` ends one (-1, and no EOS in
    the model's config: nothing does).
    """

    def __init__(self, model, config, world, eos: int):
        import copy

        from runtime.distributed import prepare, shard
        from runtime.optim import adamw

        class Ids:
            """The smallest thing that `generate` takes for a tokenizer."""

            eos_id, vocab_size = eos, model.config.vocab_size

        self.config, self.world, self.tokenizer = config, world, Ids()
        model.activation_checkpointing = config.activation_checkpointing
        self.sampler = prepare(copy.deepcopy(model).to(world.dtype), world, trained=False)
        self.model = shard(model, world)
        self.reference = copy.deepcopy(model)
        self.optimizer = adamw(model, config.lr, weight_decay=0.0)

    def rollout(self, prompts: list[list[int]], seed: int) -> list:
        """Sampled completions with random rewards and their advantages."""
        import torch

        from data.problems.problem import Problem
        from generate import Sampling, generate
        from rollout import Rollout
        from runtime.distributed import gather_into
        from train_grpo import group_advantage

        gather_into(self.model, self.sampler)
        G = self.config.samples
        length, rows = self.config.max_new_tokens, self.config.max_rows
        sampling = Sampling(G, 1.0, 1.0, length, seed=seed, max_rows=rows)
        groups = generate(self.sampler, self.tokenizer, prompts, sampling)
        rewards = torch.rand(
            len(prompts), G, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        advantages = group_advantage(rewards).tolist()
        return [
            Rollout(Problem("", "", ""), "cot", prompts[q], groups[q], advantages=advantages[q])
            for q in range(len(prompts))
        ]

    def update(self, rollouts: list) -> None:
        """The reference's log-probs and config.mu steps."""
        import torch

        from batch import pack_rollouts, token_logprobs
        from train_grpo import set_weights, update

        micro_batches = pack_rollouts(rollouts, self.config.micro_tokens, self.world)
        set_weights(micro_batches, rollouts, self.config)
        with torch.no_grad():
            for micro in micro_batches:
                micro.ref_logp, _ = token_logprobs(self.reference, micro, self.config.temperature)
        update(self.model, self.optimizer, micro_batches, self.config, self.world)


def ours(folder: str, given) -> None:
    from data.tokenizer import Tokenizer
    from runtime.distributed import World
    from runtime.hf import from_pretrained

    config = own_config(given)
    world = World(bf16=given.dtype == "bfloat16", kernels=config.kernels)
    model, eos, prompts_of = from_pretrained(folder), 0, questions
    if given.model:
        tokenizer = Tokenizer.load(folder)
        model.config.eos_id, eos = None, -1
        prompts_of = lambda step: [tokenizer.encode(text) for text in texts(step)]  # noqa: E731
    learner = Learner(model, config, world, eos)

    def work(step: int) -> dict:
        prompts = prompts_of(step)
        began = time.perf_counter()
        rollouts = learner.rollout(prompts, seed=step)
        sampled = time.perf_counter()
        learner.update(rollouts)
        ended = time.perf_counter()
        lengths = [len(sample.ids) for one in rollouts for sample in one.samples]
        return {
            "seconds": ended - began,
            "rollout": sampled - began,
            "update": ended - sampled,
            "length": statistics.mean(lengths),
        }

    serve(work, warmup=1 if given.model else 2)


# --------------------------------------------------------------------------------------------------
# TRL


def trl(folder: str, given) -> None:
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    vocabulary = {"<eos>": 0, **{c: i + 1 for i, c in enumerate(CHARACTERS)}}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<eos>")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lengths = []

    def reward(completion_ids, **_):
        lengths.append(statistics.mean(map(len, completion_ids)))
        return torch.rand(len(completion_ids)).tolist()

    count, samples, length = QUESTIONS, SAMPLES, LENGTH
    rows, more = [], {}
    for step in range(1000):
        for ids in questions(step):
            rows.append({"prompt": "".join(CHARACTERS[i - 1] for i in ids)})
    if given.model:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        count, samples, length = REAL.values()
        rows = [{"prompt": text} for step in range(1000) for text in texts(step)]
        more = {"generation_kwargs": {"min_new_tokens": length}}
    with tempfile.TemporaryDirectory() as output:
        config = GRPOConfig(
            output_dir=output,
            use_cpu=True,
            bf16=given.dtype == "bfloat16",
            per_device_train_batch_size=count * samples,
            num_generations=samples,
            max_completion_length=length,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            beta=0.04,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            loss_type="grpo",
            max_steps=1000,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            gradient_checkpointing=False,
            shuffle_dataset=False,
            adam_beta2=0.95,
            seed=0,
            **more,
        )
        step = turns.trainer_steps(
            lambda callback: GRPOTrainer(
                model=model,
                reward_funcs=reward,
                args=config,
                train_dataset=Dataset.from_list(rows),
                processing_class=tokenizer,
                callbacks=[callback],
            )
        )

        def work(_: int) -> dict:
            step()
            return {"length": lengths[-1]}

        serve(work, warmup=1 if given.model else 2)


def main() -> None:
    parser = turns.arguments(__doc__, rounds=10)
    parser.add_argument("--ours", default="", help=f"KEY=VALUE,... of {', '.join(OURS)}")
    parser.add_argument("--model", default="", help="directory of a real model")
    options = parser.parse_args()
    if options.check:
        return turns.print_logprobs(*options.check, questions(0)[:4])
    if options.side:
        name, folder = options.side
        return {"ours": ours, "trl": trl}[name](folder, options)
    own_config(options)  # refuses wrong options
    from model import ModelConfig, Transformer
    from runtime.hf import from_pretrained, save_pretrained

    # measure
    shape = dict(width=128, layers=3, heads=4, kv_heads=2, ffn=320, context=256, eos_id=0)
    model = Transformer(ModelConfig(VOCABULARY, **shape))
    commands = turns.commands(__file__, options, "trl")
    with tempfile.TemporaryDirectory() as folder:
        if options.model:
            folder, model = options.model, from_pretrained(options.model)
        else:
            save_pretrained(model, folder)
        turns.check_same(commands, folder, tolerance=1e-2 if options.model else 1e-3)
        sides = turns.side_commands(commands, options, folder, "--model", options.model)
        threads = {"OMP_NUM_THREADS": str(options.threads)}
        found = alternate(sides, options.rounds, threads)

    # report
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    options.model = Path(options.model).name
    print(
        f"{millions:.2f} M parameters, {options.rounds} steps each in turn, "
        f"{options.threads} threads, {options.dtype}"
    )
    for name, side in found.items():
        rows = side["rows"]
        middle, least, most = median(rows)
        cpu = median(rows, "cpu")[0]
        length = statistics.mean(row["length"] for row in rows)
        print(
            f"{name:6} {middle:.3f} s a step ({least:.3f} to {most:.3f}; processor {cpu:.3f}), "
            f"mean length {length:.1f}, peak {side['peak_mb']:.0f} MB"
        )
        if "rollout" in rows[0]:
            rollout, update = median(rows, "rollout")[0], median(rows, "update")[0]
            print(f"       rollout {rollout:.3f} s, reference and update {update:.3f} s")
    turns.print_ratios(found)
    record("grpo_step", turns.settings(options), found)


if __name__ == "__main__":
    run_cli(main)
