"""Decoding on a GPU: tokens a second, and the share of what the device's bandwidth allows, beside transformers.

    python bench/generate_gpu.py [--peer VENV/bin/python] [--rounds 5] [--to DIR]
    python bench/generate_gpu.py --small     a tiny model: that the program itself runs, on a CPU too; records nothing

A model of the 1.3B preset with random weights in bf16, 8 prompts of 256 random tokens, 64 samples of each, 256 new
tokens, temperature 1 over the whole vocabulary, EOS ruled out. Sides, in turn in one run: `graphs` (what generate.py
does on a GPU), `steps` (the same without CUDA graphs), `plain` (no kernel of ours, prompts copied) and, with --peer or
where this Python has it, `transformers` generate.

The floor is counted: every step reads the weights (of the embedding only the rows of the new tokens), each prompt's
keys and values once and every row's own part, at the rate of a copy measured on the same device in the same run.
`share` is the floor's time over that of the whole call, prefill and the lists of Python included; `steps alone` leaves
out what a call for a single token takes. `off`: a sample's log-probs beside those of a forward without a cache. No GPU
has run this file yet.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.turns import alternate, median, record, serve

SIZES = {  # preset, vocabulary (DeepSeek-Coder's), prompts, samples, tokens of a prompt, new tokens, bytes of a copy
    False: ("1.3b", 32_256, 8, 64, 256, 256, 1 << 30),
    True: ("1m", 512, 2, 4, 16, 12, 1 << 16),
}
OURS = ("graphs", "steps", "plain")


def prompts(small: bool, seed: int):
    import torch

    _, vocabulary, count, _, length, *_ = SIZES[small]
    return torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(seed))


def device_and_dtype():
    import torch

    return ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)


def timed(work) -> tuple[float, object]:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, result


def gpu_memory() -> dict:
    """Peak since the last call; what the allocator keeps goes back, for the other sides work on the same GPU."""
    import torch

    if not torch.cuda.is_available():
        return {}
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return {"peak_gb": peak / 1e9}


def copy_bandwidth(size: int) -> float:
    """Bytes a second, read and written, of a copy on the device: the median of 20."""
    import torch

    a = torch.randint(0, 127, (size,), dtype=torch.int8, device=device_and_dtype()[0])
    b = torch.empty_like(a)
    return 2 * size / statistics.median([timed(lambda: b.copy_(a))[0] for _ in range(22)][2:])


def floor_bytes(config, small: bool, itemsize: int) -> int:
    """Bytes that the steps of a call read at the least (module docstring)."""
    _, _, count, samples, length, new, _ = SIZES[small]
    attention = config.width * config.head_width * (2 * config.heads + 2 * config.kv_heads)
    weights = (
        config.layers * (attention + 3 * config.width * config.ffn)
        + config.width * config.vocab_size
    )
    token = 2 * config.layers * config.kv_heads * config.head_width  # keys and values
    steps = new - 1  # the first token comes from the prefill
    cache = steps * count * length + count * samples * sum(range(1, new))
    return itemsize * (steps * weights + token * cache)


def ours(side: str, folder: str, small: bool) -> None:
    import torch

    import kernels
    from generate import Sampling, generate
    from kernels.triton.decoder import GpuDecoder
    from runtime.hf import from_pretrained

    class Ids:
        """The smallest thing that `generate` takes for a tokenizer; -1 is drawn by nobody."""

        eos_id, vocab_size = -1, SIZES[small][1]

    device, dtype = device_and_dtype()
    model = from_pretrained(folder, device, dtype)
    setting = kernels.Setting(model.config, torch.device(device), dtype == torch.bfloat16)
    kernels.use("plain" if side == "plain" else "fast", setting)
    if side == "steps":
        GpuDecoder.replay = GpuDecoder.advance
    model.config.eos_id = None
    *_, samples, _, new, size = SIZES[small]
    rate, least = copy_bandwidth(size), floor_bytes(model.config, small, dtype.itemsize)

    def call(seed: int, tokens: int):
        sampling = Sampling(samples, 1.0, 1.0, tokens, seed=seed)
        ids = prompts(small, seed).tolist()
        return timed(lambda: generate(model, Ids(), ids, sampling, max_rows=len(ids) * samples))

    @torch.inference_mode()
    def off(seed: int, sample) -> float:
        """Mean difference of a sample's log-probs to those of a forward without a cache."""
        prompt = prompts(small, seed)[0].tolist()
        hidden = model(torch.tensor(prompt + sample.ids, device=device))[len(prompt) - 1 : -1]
        logp = model.logits(hidden).float().log_softmax(-1)
        logp = logp.gather(1, torch.tensor(sample.ids, device=device)[:, None])[:, 0].cpu()
        return (logp - torch.tensor(sample.logprobs)).abs().mean().item()

    def work(seed: int) -> dict:
        first, _ = call(seed, 1)
        seconds, groups = call(seed, new)
        tokens = sum(len(s.ids) for group in groups for s in group)
        return {
            "seconds": seconds,
            "tokens": tokens,
            "first": first,
            "share": least / rate / seconds,
            "steps_alone": least / rate / (seconds - first),
            "copy": rate,
            "off": off(seed, groups[0][0]),
            **gpu_memory(),
        }

    serve(work, warmup=1)


def transformers(folder: str, small: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    device, dtype = device_and_dtype()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().to(device)
    model.generation_config.eos_token_id = None
    *_, samples, length, new, _ = SIZES[small]

    def work(seed: int) -> dict:
        torch.manual_seed(seed)
        ids = prompts(small, seed).repeat_interleave(samples, 0).to(device)
        settings = dict(do_sample=True, temperature=1.0, top_p=1.0, top_k=0, pad_token_id=0)
        with torch.inference_mode():
            seconds, out = timed(
                lambda: model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=new,
                    min_new_tokens=new,
                    **settings,
                )
            )
        return {"seconds": seconds, "tokens": out[:, length:].numel(), **gpu_memory()}

    serve(work, warmup=1)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peer", help="a Python with transformers; default: this one, where it has them"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sides", default="graphs,steps,plain,transformers")
    parser.add_argument(
        "--to", default="", help="also write what was found to this directory, as generate.json"
    )
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.side:
        side, folder = given.side
        ours(side, folder, given.small) if side in OURS else transformers(folder, given.small)
        return 0
    import torch

    if not torch.cuda.is_available() and not given.small:
        parser.error("no GPU here: give --small to try the program itself")
    from model import Transformer, preset
    from runtime.hf import save_pretrained

    name, vocabulary, count, samples, length, new, _ = SIZES[given.small]
    pythons = {side: sys.executable for side in given.sides.split(",") if side in OURS}
    if "transformers" in given.sides and (given.peer or importlib.util.find_spec("transformers")):
        pythons["transformers"] = given.peer or sys.executable
    with tempfile.TemporaryDirectory() as folder:
        with torch.device("meta"):
            model = Transformer(preset(name, vocabulary)).to(torch.bfloat16)
        model = model.to_empty(
            device=device_and_dtype()[0]
        )  # drawn where that is fast: the numbers do not matter
        for weight in model.parameters():
            weight.data.normal_(0, 0.02) if weight.dim() > 1 else weight.data.fill_(1)
        save_pretrained(model, folder)
        del model
        small = ["--small"] * given.small
        sides = {
            side: [python, __file__, *small, "--side", side, folder]
            for side, python in pythons.items()
        }
        found = alternate(
            sides, given.rounds, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
        )
    print(f"{name}, {count} prompts of {length} tokens, {samples} samples of {new} new tokens each")
    for side, one in found.items():
        for row in one["rows"]:
            row["speed"] = row["tokens"] / row["seconds"]
        middle, least, most = median(one["rows"], "speed")
        line = f"{side:12} {middle:9.0f} tokens/s ({least:.0f} to {most:.0f})"
        if "share" in one["rows"][0]:
            share, alone, copy, off = (
                median(one["rows"], k)[0] for k in ("share", "steps_alone", "copy", "off")
            )
            line += f", {share:.1%} of the floor ({alone:.1%} steps alone) at {copy / 1e9:.0f} GB/s"
            line += f", log-probs off by {off:.1e}"
        if "peak_gb" in one["rows"][0]:
            line += f", peak {median(one['rows'], 'peak_gb')[0]:.1f} GB"
        print(line, flush=True)
    if given.to:
        Path(given.to).mkdir(parents=True, exist_ok=True)
        (Path(given.to) / "generate.json").write_text(json.dumps(found))
    if not given.small:
        settings = {
            "model": name,
            "prompts": count,
            "samples": samples,
            "prompt": length,
            "new": new,
        }
        device = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        record("generate_gpu", settings | device | {"rounds": given.rounds}, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
