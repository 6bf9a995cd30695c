"""Tokens a second of sampling beside transformers' `generate`, in turn in one run.

    python bench/sampling.py [--peer VENV/bin/python] [--rounds 7] [--cases 1,16,128,ragged]

4.4 M parameters with the same random weights on both sides, prompts of 64 random tokens, temperature 1 over the whole
vocabulary. Cases 1, 16 and 128 are batch sizes: 128 new tokens each, EOS ruled out. "ragged": 128 prompts whose
completions end at very different lengths, because 16 of the 1,024 ids end one (mean about 64, at most 512). Log-probs
of a prompt are compared between the two models before anything is timed. The peer is a Python with transformers.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.turns import alternate, median, record, serve

VOCABULARY, PROMPT, NEW = 1024, 64, 128
ENDS = list(range(16))  # EOS ids of the ragged case


def prompts(batch: int, step: int):
    import torch

    return torch.randint(16, VOCABULARY, (batch, PROMPT), generator=torch.Generator().manual_seed(step))


def ours(folder: str, case: str) -> None:
    from generate import Sampling, generate
    from model import from_pretrained

    class Ids:
        """The smallest thing that `generate` takes for a tokenizer; -1 is drawn by nobody."""

        eos_id, vocab_size = -1, VOCABULARY

    model = from_pretrained(folder)
    ragged, batch = case == "ragged", 128 if case == "ragged" else int(case)
    model.config.eos_id = ENDS if ragged else None

    def work(step: int) -> dict:
        sampling = Sampling(1, 1.0, 1.0, 512 if ragged else NEW, seed=step)
        groups = generate(model, Ids(), prompts(batch, step).tolist(), sampling)
        return {"tokens": sum(len(sample.ids) for group in groups for sample in group)}

    serve(work, warmup=1)


def transformers(folder: str, case: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ragged, batch = case == "ragged", 128 if case == "ragged" else int(case)
    length = {"max_new_tokens": 512} if ragged else {"max_new_tokens": NEW, "min_new_tokens": NEW}
    model.generation_config.eos_token_id = ENDS if ragged else None

    def work(step: int) -> dict:
        torch.manual_seed(step)
        ids = prompts(batch, step)
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_p=1.0,
                                 top_k=0, pad_token_id=VOCABULARY - 1, **length)[:, PROMPT:]  # fmt: skip
        ended = torch.isin(out, torch.tensor(ENDS)) if ragged else torch.zeros_like(out, dtype=torch.bool)
        before = ended.cumsum(1) - ended.long() == 0  # up to and with the first end
        return {"tokens": int(before.sum())}

    serve(work, warmup=1)


def logprob(side: str, folder: str) -> None:
    """Print the log-prob of a fixed prompt by the side's model."""
    import torch

    ids = prompts(1, 0)[0]
    if side == "transformers":
        from transformers import AutoModelForCausalLM

        logits = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids[None]).logits[0]
    else:
        from model import from_pretrained

        model = from_pretrained(folder)
        logits = model.logits(model(ids))
    print(json.dumps(logits[:-1].log_softmax(-1).gather(1, ids[1:, None]).sum().item()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="a Python with transformers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", default="1,16,128,ragged")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--check", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.check:
        return logprob(*given.check)
    if given.side:
        return {"ours": ours, "transformers": transformers}[given.side[0]](*given.side[1:])
    from model import Transformer, preset

    pythons = {"ours": sys.executable} | ({"transformers": given.peer} if given.peer else {})
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Transformer(preset("4m", VOCABULARY, context=1024))
        model.save_pretrained(folder)
        commands = {name: [python, __file__] for name, python in pythons.items()}
        sums = [
            json.loads(subprocess.run([*command, "--check", name, folder], check=True, capture_output=True).stdout)
            for name, command in commands.items()
        ]
        if abs(sums[0] - sums[-1]) > 1e-2:
            raise SystemExit(f"error: the two models do not give the same log-probs: {sums}")
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        print(f"{millions:.2f} M parameters, float32, {given.threads} threads, {given.rounds} rounds in turn")
        for case in given.cases.split(","):
            sides = {name: [*command, "--side", name, folder, case] for name, command in commands.items()}
            found[case] = alternate(sides, given.rounds, {"OMP_NUM_THREADS": str(given.threads)})
            for side in found[case].values():
                for row in side["rows"]:
                    row["speed"] = row["tokens"] / row["seconds"]
            for name, side in found[case].items():
                middle, least, most = median(side["rows"], "speed")
                tokens, cpu = (statistics.mean(row[key] for row in side["rows"]) for key in ("tokens", "cpu"))
                print(f"{case:>6} {name:12} {middle:8.0f} tokens/s ({least:.0f} to {most:.0f}), {tokens:.0f} tokens a "
                      f"round, processor {cpu:.2f} s, peak {side['peak_mb']:.0f} MB")
            if given.peer:
                speeds = [median(side["rows"], "speed")[0] for side in found[case].values()]
                print(f"{case:>6} ratio {speeds[0] / speeds[1]:.2f}", flush=True)
    record("sampling", {"rounds": given.rounds, "threads": given.threads}, found)


if __name__ == "__main__":
    main()
