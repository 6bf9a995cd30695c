"""Tokens a second of pre-training beside transformers' model and Trainer at the same size, in turn in one run.

    python bench/pretrain.py [--peer VENV/bin/python] [--rounds 10] [--size 4m] [--batch 16] [--context 256]

Both sides begin with the same random weights and see the same rows of random tokens, without document borders (the
peer knows none), in float32, AdamW, gradient norm clipped at 1. The losses of the steps are compared.
The peer is a Python with transformers, accelerate and datasets.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.turns import alternate, median, record, serve

VOCABULARY, RATE = 1024, 1e-3


def rows(step: int, batch: int, context: int):
    """Windows [batch, context + 1] of a step; a skewed distribution, so that there is something to learn."""
    import numpy as np

    draw = np.random.default_rng(step)
    return (VOCABULARY * draw.random((batch, context + 1)) ** 3).astype(np.int64)


def ours(folder: str, batch: int, context: int) -> None:
    import runtime
    from model import from_pretrained
    from train_pretrain import total_loss

    model, world = from_pretrained(folder), runtime.World()
    optimizer = runtime.adamw(model, RATE, (0.9, 0.95), 0.0)

    def work(step: int) -> dict:
        loss = total_loss(model, rows(step, batch, context), -1, batch, world)
        runtime.clip_grad_norm(model, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": loss}

    serve(work)


def trainer(folder: str, batch: int, context: int) -> None:
    import threading

    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked, done = threading.Semaphore(0), threading.Semaphore(0)
    losses = []

    class Windows(torch.utils.data.Dataset):
        """Row i is row i % batch of step i // batch; the model shifts labels by itself."""

        def __len__(self):
            return 1000 * batch

        def __getitem__(self, i):
            step, row = divmod(i, batch)
            if row == 0 or step not in self.cache:
                self.cache = {step: torch.from_numpy(rows(step, batch, context))}
            ids = self.cache[step][row]
            return {"input_ids": ids, "labels": ids}

        cache: dict = {}

    class Turns(TrainerCallback):
        """A step is made when it is asked for."""

        def on_step_begin(self, *_, **__):
            asked.acquire()

        def on_step_end(self, *_, **__):
            done.release()

    class Plain(Trainer):
        def compute_loss(self, *given, **options):
            loss = super().compute_loss(*given, **options)
            losses.append(loss.detach() if torch.is_tensor(loss) else loss[0].detach())
            return loss

        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output_dir=output, use_cpu=True, per_device_train_batch_size=batch, learning_rate=RATE, max_steps=1000,
            lr_scheduler_type="constant", adam_beta2=0.95, weight_decay=0.0, max_grad_norm=1.0, logging_strategy="no",
            save_strategy="no", report_to="none", disable_tqdm=True, dataloader_num_workers=0,
        )  # fmt: skip
        thread = threading.Thread(
            target=Plain(model=model, args=arguments, train_dataset=Windows(), callbacks=[Turns()]).train, daemon=True
        )
        thread.start()

        def work(step: int) -> dict:
            asked.release()
            while not done.acquire(timeout=1):
                if not thread.is_alive():
                    sys.exit(1)
            return {"loss": float(losses[-1])}

        serve(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="a Python with transformers, accelerate and datasets")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", default="4m")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        return {"ours": ours, "trainer": trainer}[given.side[0]](given.side[1], given.batch, given.context)
    from model import Transformer, preset

    pythons = {"ours": sys.executable} | ({"trainer": given.peer} if given.peer else {})
    with tempfile.TemporaryDirectory() as folder:
        model = Transformer(preset(given.size, VOCABULARY, context=given.context))
        model.save_pretrained(folder)
        options = ["--batch", str(given.batch), "--context", str(given.context)]
        sides = {name: [python, __file__, "--side", name, folder, *options] for name, python in pythons.items()}
        found = alternate(sides, given.rounds, {"OMP_NUM_THREADS": str(given.threads)})
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    shape = f"{given.batch} rows of {given.context} tokens, {given.threads} threads, float32"
    print(f"{millions:.2f} M parameters, {shape}")
    for name, side in found.items():
        middle, least, most = median(side["rows"])
        tokens, cpu, loss = given.batch * given.context, median(side["rows"], "cpu")[0], side["rows"][-1]["loss"]
        print(f"{name:8} {tokens / middle:7.0f} tokens/s ({tokens / most:.0f} to {tokens / least:.0f}; processor "
              f"{cpu:.2f} s a step), last loss {loss:.4f}, peak {side['peak_mb']:.0f} MB")
    if given.peer:
        first, second = found.values()
        apart = max(abs(a["loss"] - b["loss"]) for a, b in zip(first["rows"], second["rows"], strict=True))
        print(f"losses differ by {apart:.1e} at most; ratio {median(second['rows'])[0] / median(first['rows'])[0]:.2f}")
    record("pretrain", {k: v for k, v in vars(given).items() if k not in ("peer", "side")}, found)


if __name__ == "__main__":
    main()
