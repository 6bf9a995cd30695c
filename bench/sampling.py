"""Tokens a second of sampling beside transformers' `generate` and an earlier revision.

    python bench/sampling.py [--before CHECKOUT] [--peer peer/bin/python] [--cases 1,16,128,ragged]
    python -m venv peer && peer/bin/pip install transformers

4.4 M parameters with the same random weights on all sides, prompts of 64 random tokens, temperature
1 over the whole vocabulary. Cases 1, 16 and 128 are batch sizes: 128 new tokens each, never EOS.
Case "ragged": 128 prompts whose completions end at very different lengths, because 16 of the 1,024
ids end one (mean about 64, at most 512). The log-probs of a prompt are compared before anything is
timed. --dtype bfloat16: bfloat16 weights; on our side only the matrix products of blocks are in
bfloat16.
"""

import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.options import option

from bench import turns
from bench.turns import alternate, median, record, serve
from data.io import run_cli

VOCABULARY, PROMPT, NEW = 1024, 64, 128
ENDS = list(range(16))  # EOS ids of the ragged case


@dataclass
class Config:
    compile: bool = option(False, "fuse blocks with torch.compile")


def prompts(batch: int, step: int):
    import torch

    draw = torch.Generator().manual_seed(step)
    return torch.randint(16, VOCABULARY, (batch, PROMPT), generator=draw)


def case_of(name: str) -> tuple[bool, int]:
    """(True if completions end at very different lengths, batch size) of a case."""
    return (True, 128) if name == "ragged" else (False, int(name))


def ours(folder: str, given) -> None:
    from generate import Sampling, generate
    from runtime.distributed import World, prepare
    from runtime.hf import from_pretrained

    class Ids:
        """The smallest thing that `generate` takes for a tokenizer; -1 is drawn by nobody."""

        eos_id, vocab_size = -1, VOCABULARY

    config = turns.own_options(Config, given.ours, ("compile",), {})
    world = World(bf16=given.dtype == "bfloat16", compile=config.compile)
    model = prepare(from_pretrained(folder), world, trained=False)
    ragged, batch = case_of(given.cases)
    model.config.eos_id = ENDS if ragged else None

    def work(step: int) -> dict:
        sampling = Sampling(1, 1.0, 1.0, 512 if ragged else NEW, seed=step)
        groups = generate(model, Ids(), prompts(batch, step).tolist(), sampling)
        return {"tokens": sum(len(sample.ids) for group in groups for sample in group)}

    serve(work, warmup=1)


def transformers(folder: str, given) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, given.dtype)).eval()
    ragged, batch = case_of(given.cases)
    length = {"max_new_tokens": 512} if ragged else {"max_new_tokens": NEW, "min_new_tokens": NEW}
    model.generation_config.eos_token_id = ENDS if ragged else None

    def work(step: int) -> dict:
        torch.manual_seed(step)
        ids = prompts(batch, step)
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                pad_token_id=VOCABULARY - 1,
                **length,
            )[:, PROMPT:]
        ended = torch.zeros_like(out, dtype=torch.bool)
        if ragged:
            ended = torch.isin(out, torch.tensor(ENDS))
        before = ended.cumsum(1) - ended.long() == 0  # up to and with the first end
        return {"tokens": int(before.sum())}

    serve(work, warmup=1)


def main() -> None:
    parser = turns.arguments(__doc__, rounds=7)
    parser.add_argument("--cases", default="1,16,128,ragged")
    parser.add_argument("--ours", default="", help="compile=true: compile our side")
    options = parser.parse_args()
    if options.check:
        return turns.print_logprobs(*options.check, prompts(1, 0).tolist())
    if options.side:
        name, folder = options.side
        return {"ours": ours, "transformers": transformers}[name](folder, options)
    from model import Transformer
    from presets import preset
    from runtime.hf import save_pretrained

    commands, found = turns.commands(__file__, options, "transformers"), {}
    with tempfile.TemporaryDirectory() as folder:
        model = Transformer(preset("4m", VOCABULARY, context=1024))
        save_pretrained(model, folder)
        turns.check_same(commands, folder, tolerance=1e-2)
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        print(
            f"{millions:.2f} M parameters, {options.dtype}, {options.threads} threads, "
            f"{options.rounds} rounds in turn"
        )
        for case in options.cases.split(","):
            sides = turns.side_commands(commands, options, folder, "--cases", case)
            threads = {"OMP_NUM_THREADS": str(options.threads)}
            found[case] = alternate(sides, options.rounds, threads)
            report(case, found[case])
    record("sampling", turns.settings(options), found)


def report(case: str, found: dict[str, dict]) -> None:
    """Add the speeds of a case and print them."""
    for name, side in found.items():
        rows = side["rows"]
        for row in rows:
            row["speed"] = row["tokens"] / row["seconds"]
        middle, least, most = median(rows, "speed")
        tokens = statistics.mean(row["tokens"] for row in rows)
        cpu = statistics.mean(row["cpu"] for row in rows)
        print(
            f"{case:>6} {name:12} {middle:8.0f} tokens/s ({least:.0f} to {most:.0f}), "
            f"{tokens:.0f} tokens a round, processor {cpu:.2f} s, peak {side['peak_mb']:.0f} MB"
        )
    ours = median(found["ours"]["rows"], "speed")[0]
    for name, side in found.items():
        if name != "ours":
            ratio = ours / median(side["rows"], "speed")[0]
            print(f"{case:>6} ours / {name} {ratio:.2f}", flush=True)


if __name__ == "__main__":
    run_cli(main)
