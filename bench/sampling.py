"""Tokens a second of sampling beside transformers' `generate`, in turn in one run.

    python -m venv peer && peer/bin/pip install transformers    # the peer's environment
    python bench/sampling.py [--peer peer/bin/python] [--cases 1,16,128,ragged] [--dtype float32] [--ours compile=true]

4.4 M parameters with the same random weights on both sides, prompts of 64 random tokens, temperature 1 over the whole
vocabulary. Cases 1, 16 and 128 are batch sizes: 128 new tokens each, EOS ruled out. "ragged": 128 prompts whose
completions end at very different lengths, because 16 of the 1,024 ids end one (mean about 64, at most 512). Log-probs
of a prompt are compared between the two models before anything is timed. --dtype: bfloat16 weights,
on our side with bfloat16 in the matrix products of the blocks alone.
"""

import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import turns
from bench.turns import alternate, median, record, serve
from data.io import run_cli
from runtime.options import option

VOCABULARY, PROMPT, NEW = 1024, 64, 128
ENDS = list(range(16))  # EOS ids of the ragged case


@dataclass
class Config:
    compile: bool = option(False, "fuse blocks with torch.compile")


def prompts(batch: int, step: int):
    import torch

    return torch.randint(
        16, VOCABULARY, (batch, PROMPT), generator=torch.Generator().manual_seed(step)
    )


def case_of(name: str) -> tuple[bool, int]:
    """(Do completions end at very different lengths?, batch size) of a case."""
    return name == "ragged", 128 if name == "ragged" else int(name)


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
        ended = (
            torch.isin(out, torch.tensor(ENDS))
            if ragged
            else torch.zeros_like(out, dtype=torch.bool)
        )
        before = ended.cumsum(1) - ended.long() == 0  # up to and with the first end
        return {"tokens": int(before.sum())}

    serve(work, warmup=1)


def main() -> None:
    parser = turns.arguments(__doc__, rounds=7)
    parser.add_argument("--cases", default="1,16,128,ragged")
    parser.add_argument("--ours", default="", help="compile=true: our side alone is compiled")
    given = parser.parse_args()
    if given.check:
        return turns.print_logprobs(*given.check, prompts(1, 0).tolist())
    if given.side:
        return {"ours": ours, "transformers": transformers}[given.side[0]](given.side[1], given)
    from model import Transformer, preset
    from runtime.hf import save_pretrained

    commands, found = turns.commands(__file__, given, "transformers"), {}
    with tempfile.TemporaryDirectory() as folder:
        model = Transformer(preset("4m", VOCABULARY, context=1024))
        save_pretrained(model, folder)
        turns.check_same(commands, folder, tolerance=1e-2)
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        print(
            f"{millions:.2f} M parameters, {given.dtype}, {given.threads} threads, {given.rounds} rounds in turn"
        )
        for case in given.cases.split(","):
            sides = turns.sides(commands, given, folder, "--cases", case)
            found[case] = alternate(sides, given.rounds, {"OMP_NUM_THREADS": str(given.threads)})
            for side in found[case].values():
                for row in side["rows"]:
                    row["speed"] = row["tokens"] / row["seconds"]
            for name, side in found[case].items():
                middle, least, most = median(side["rows"], "speed")
                tokens, cpu = (
                    statistics.mean(row[key] for row in side["rows"]) for key in ("tokens", "cpu")
                )
                print(
                    f"{case:>6} {name:12} {middle:8.0f} tokens/s ({least:.0f} to {most:.0f}), {tokens:.0f} tokens a "
                    f"round, processor {cpu:.2f} s, peak {side['peak_mb']:.0f} MB"
                )
            if given.peer:
                speeds = [median(side["rows"], "speed")[0] for side in found[case].values()]
                print(f"{case:>6} ratio {speeds[0] / speeds[1]:.2f}", flush=True)
    record("sampling", turns.settings(given), found)


if __name__ == "__main__":
    run_cli(main)
