"""Tokens a second of pre-training beside transformers' model and Trainer at the same size, in turn in one run.

    python -m venv peer && peer/bin/pip install transformers accelerate datasets    # the peer's environment
    python bench/pretrain.py [--peer peer/bin/python] [--rounds 10] [--size 4m] [--batch 16] [--context 256]

Both sides begin with the same random weights and see the same rows of random tokens, without document borders (the
peer knows none), AdamW, gradient norm clipped at 1. The losses of the steps are compared. --dtype bfloat16: weights are
float32 and products in bfloat16, by autocast on the peer's side; --ours changes options of train_pretrain.py.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import turns
from bench.turns import alternate, median, record, serve
from data.io import run_cli

VOCABULARY, RATE = 1024, 1e-3
OURS = ("activation_checkpointing", "compile", "micro_batch")  # what --ours may change


def rows(step: int, batch: int, context: int):
    """Windows [batch, context + 1] of a step; a skewed distribution, so that there is something to learn."""
    import numpy as np

    draw = np.random.default_rng(step)
    return (VOCABULARY * draw.random((batch, context + 1)) ** 3).astype(np.int64)


def own_config(given):
    from train_pretrain import Config

    defaults = dict(
        batch=given.batch, micro_batch=given.batch, context=given.context, lr=RATE, weight_decay=0.0
    )
    return turns.own_options(Config, given.ours, OURS, defaults)


def ours(folder: str, given) -> None:
    from runtime.distributed import World, shard
    from runtime.hf import from_pretrained
    from runtime.optim import adamw, clip_grad_norm
    from train_pretrain import batch_loss

    config = own_config(given)
    world = World(bf16=given.dtype == "bfloat16", compile=config.compile)
    model = from_pretrained(folder)
    model.activation_checkpointing = config.activation_checkpointing
    model = shard(model, world)
    optimizer = adamw(model, config.lr, (0.9, config.beta2), config.weight_decay)

    def work(step: int) -> dict:
        loss = batch_loss(
            model, rows(step, config.batch, config.context), -1, config.micro_batch, world
        )
        clip_grad_norm(model, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": loss}

    serve(work)


def trainer(folder: str, given) -> None:
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    batch, losses = given.batch, []

    class Windows(torch.utils.data.Dataset):
        """Row i is row i % batch of step i // batch; the model shifts labels by itself."""

        def __len__(self):
            return 1000 * batch

        def __getitem__(self, i):
            step, row = divmod(i, batch)
            if row == 0 or step not in self.cache:
                self.cache = {step: torch.from_numpy(rows(step, batch, given.context))}
            ids = self.cache[step][row]
            return {"input_ids": ids, "labels": ids}

        cache: dict = {}

    class Plain(Trainer):
        def compute_loss(self, *given, **options):
            loss = super().compute_loss(*given, **options)
            losses.append(loss.detach() if torch.is_tensor(loss) else loss[0].detach())
            return loss

        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output_dir=output,
            use_cpu=True,
            bf16=given.dtype == "bfloat16",
            per_device_train_batch_size=batch,
            learning_rate=RATE,
            max_steps=1000,
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            weight_decay=0.0,
            max_grad_norm=1.0,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_num_workers=0,
        )
        step = turns.trainer_steps(
            lambda callback: Plain(
                model=model, args=arguments, train_dataset=Windows(), callbacks=[callback]
            )
        )

        def work(_: int) -> dict:
            step()
            return {"loss": float(losses[-1])}

        serve(work)


def main() -> None:
    parser = turns.arguments(__doc__, rounds=10)
    parser.add_argument("--size", default="4m")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument(
        "--ours", default="", help=f"options of our side alone, KEY=VALUE,...: {', '.join(OURS)}"
    )
    given = parser.parse_args()
    if given.check:
        return turns.print_logprobs(*given.check, rows(0, 2, 64).tolist())
    if given.side:
        return {"ours": ours, "trainer": trainer}[given.side[0]](given.side[1], given)
    own_config(given)
    from model import Transformer, preset
    from runtime.hf import save_pretrained

    commands = turns.commands(__file__, given, "trainer")
    with tempfile.TemporaryDirectory() as folder:
        model = Transformer(preset(given.size, VOCABULARY, context=given.context))
        save_pretrained(model, folder)
        turns.check_same(commands, folder, tolerance=1e-2)
        sides = turns.sides(
            commands, given, folder, "--batch", str(given.batch), "--context", str(given.context)
        )
        found = alternate(sides, given.rounds, {"OMP_NUM_THREADS": str(given.threads)})
    millions, tokens = sum(p.numel() for p in model.parameters()) / 1e6, given.batch * given.context
    shape = f"{given.batch} rows of {given.context} tokens, {given.threads} threads, {given.dtype}"
    print(f"{millions:.2f} M parameters, {shape}")
    for name, side in found.items():
        for row in side["rows"]:
            row["speed"] = tokens / row["seconds"]
        middle, least, most = median(side["rows"], "speed")
        cpu, loss = median(side["rows"], "cpu")[0], side["rows"][-1]["loss"]
        print(
            f"{name:8} {middle:7.0f} tokens/s ({least:.0f} to {most:.0f}; processor {cpu:.2f} s a step), last loss "
            f"{loss:.4f}, peak {side['peak_mb']:.0f} MB"
        )
    if given.peer:
        first, second = found.values()
        apart = max(
            abs(a["loss"] - b["loss"]) for a, b in zip(first["rows"], second["rows"], strict=True)
        )
        print(
            f"losses differ by {apart:.1e} at most; ratio {median(second['rows'])[0] / median(first['rows'])[0]:.2f}"
        )
    record("pretrain", turns.settings(given), found)


if __name__ == "__main__":
    run_cli(main)
