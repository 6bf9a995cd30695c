"""Tokens a second of pre-training beside transformers' Trainer and an earlier revision.

    python bench/pretrain.py [--before CHECKOUT] [--peer peer/bin/python] [--size 4m] [--batch 16]
    python -m venv peer && peer/bin/pip install transformers accelerate datasets

All sides begin with the same random weights and read the same rows of random tokens, without
document borders (the peer knows none), with AdamW and a gradient norm of at most 1. The losses of
the steps are compared. --dtype bfloat16: weights are float32 and products in bfloat16, by autocast
on the peer's side. --ours KEY=VALUE,... changes options of train_pretrain.py.
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


def windows(step: int, batch: int, context: int):
    """Windows [batch, context + 1] of a step; a skewed distribution, so that there is something to
    learn.
    """
    import numpy as np

    draw = np.random.default_rng(step)
    return (VOCABULARY * draw.random((batch, context + 1)) ** 3).astype(np.int64)


def own_config(given):
    from train_pretrain import Config

    defaults = dict(batch=given.batch, micro_batch=given.batch, context=given.context)
    defaults |= dict(lr=RATE, weight_decay=0.0)
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
            model, windows(step, config.batch, config.context), -1, config.micro_batch, world
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
                self.cache = {step: torch.from_numpy(windows(step, batch, given.context))}
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
    parser.add_argument("--ours", default="", help=f"KEY=VALUE,... of {', '.join(OURS)}")
    options = parser.parse_args()
    if options.check:
        return turns.print_logprobs(*options.check, windows(0, 2, 64).tolist())
    if options.side:
        name, folder = options.side
        return {"ours": ours, "trainer": trainer}[name](folder, options)
    own_config(options)  # refuses wrong options
    from model import Transformer
    from presets import preset
    from runtime.hf import save_pretrained

    # measure
    model = Transformer(preset(options.size, VOCABULARY, context=options.context))
    commands = turns.commands(__file__, options, "trainer")
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        turns.check_same(commands, folder, tolerance=1e-2)
        shape = ["--batch", str(options.batch), "--context", str(options.context)]
        sides = turns.side_commands(commands, options, folder, *shape)
        found = alternate(sides, options.rounds, {"OMP_NUM_THREADS": str(options.threads)})

    # report
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"{millions:.2f} M parameters, {options.batch} rows of {options.context} tokens, "
        f"{options.threads} threads, {options.dtype}"
    )
    losses = {}
    for name, side in found.items():
        rows = side["rows"]
        for row in rows:
            row["speed"] = options.batch * options.context / row["seconds"]
        losses[name] = [row["loss"] for row in rows]
        middle, least, most = median(rows, "speed")
        cpu = median(rows, "cpu")[0]
        print(
            f"{name:8} {middle:7.0f} tokens/s ({least:.0f} to {most:.0f}; processor {cpu:.2f} s a "
            f"step), last loss {losses[name][-1]:.4f}, peak {side['peak_mb']:.0f} MB"
        )
    turns.print_ratios(found)
    for name, values in losses.items():
        if name != "ours":
            apart = max(abs(a - b) for a, b in zip(losses["ours"], values, strict=True))
            print(f"losses of {name} differ by {apart:.1e} at most")
    record("pretrain", turns.settings(options), found)


if __name__ == "__main__":
    run_cli(main)
