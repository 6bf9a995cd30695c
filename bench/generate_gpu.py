"""Decoding on a GPU: tokens a second, and the share of what the bandwidth allows, beside
transformers.

    python bench/generate_gpu.py [--peer VENV/bin/python] [--rounds 5] [--to DIR]
    python bench/generate_gpu.py --small     a tiny model, on a CPU too; records nothing

A model of the 1.3B preset with random weights in bf16, 8 prompts of 256 random tokens, 64 samples
of each, 256 new tokens, temperature 1 over the whole vocabulary, never EOS. The sides take turns:
`graphs` (what generate.py does on a GPU), `steps` (the same without CUDA graphs), `plain`
(definitions alone) and, with --peer or if this Python has it, `transformers`.

The floor is counted: every step reads the weights (of the embedding only the rows of the new
tokens), the keys and values of each prompt once and those of every row, at the rate of a copy on
the same device in the same run. `share` is the floor's time over that of the whole call, with
prefill and Python. `steps alone` leaves out the time of a call for one token. `off` compares a
sample's log-probs with those of a forward pass without a cache.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.turns import alternate, median, record, serve
from data.io import CommandParser, InputError, at_least, run_cli


@dataclass
class Size:
    preset: str
    vocabulary: int
    prompts: int
    samples: int  # of a prompt
    length: int  # tokens of a prompt
    new: int  # new tokens
    copy: int  # bytes of the copy that measures the bandwidth


FULL = Size("1.3b", 32_256, 8, 64, 256, 256, 1 << 30)  # DeepSeek-Coder's vocabulary
SMALL = Size("1m", 512, 2, 4, 16, 12, 1 << 16)
OURS = ("graphs", "steps", "plain")


def prompts(size: Size, seed: int):
    import torch

    draw = torch.Generator().manual_seed(seed)
    return torch.randint(size.vocabulary, (size.prompts, size.length), generator=draw)


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
    """Peak since the last call. Gives back what the allocator keeps: other sides share the GPU."""
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
    seconds = [timed(lambda: b.copy_(a))[0] for _ in range(22)]
    return 2 * size / statistics.median(seconds[2:])


def floor_bytes(config, size: Size, itemsize: int) -> int:
    """The least bytes that the steps of a call read (see the top of this file)."""
    heads = 2 * config.heads + 2 * config.kv_heads
    layer = config.width * config.head_width * heads + 3 * config.width * config.ffn
    weights = config.layers * layer + config.width * config.vocab_size
    token = 2 * config.layers * config.kv_heads * config.head_width  # keys and values
    steps = size.new - 1  # the first token comes from the prefill
    rows = size.prompts * size.samples
    cache = steps * size.prompts * size.length + rows * sum(range(1, size.new))
    return itemsize * (steps * weights + token * cache)


def ours(side: str, folder: str, size: Size) -> None:
    import torch

    import kernels
    from generate import Sampling, generate
    from kernels.triton.decoder import GpuDecoder
    from runtime.hf import from_pretrained

    class Ids:
        """The least that `generate` needs of a tokenizer; nothing draws -1."""

        eos_id, vocab_size = -1, size.vocabulary

    device, dtype = device_and_dtype()
    model = from_pretrained(folder, device, dtype)
    setting = kernels.Setting(model.config, torch.device(device), dtype == torch.bfloat16)
    kernels.use("plain" if side == "plain" else "fast", setting)
    if side == "steps":
        GpuDecoder.replay = GpuDecoder.advance
    model.config.eos_id = None
    rate = copy_bandwidth(size.copy)
    floor = floor_bytes(model.config, size, dtype.itemsize) / rate  # seconds

    def call(seed: int, tokens: int):
        ids, rows = prompts(size, seed).tolist(), size.prompts * size.samples
        sampling = Sampling(size.samples, 1.0, 1.0, tokens, seed=seed, max_rows=rows)
        return timed(lambda: generate(model, Ids(), ids, sampling))

    @torch.inference_mode()
    def off(seed: int, sample) -> float:
        """Mean difference of a sample's log-probs to those of a forward without a cache."""
        prompt = prompts(size, seed)[0].tolist()
        hidden = model(torch.tensor(prompt + sample.ids, device=device))
        logits = model.logits(hidden[len(prompt) - 1 : -1])
        ids = torch.tensor(sample.ids, device=device)
        logp = logits.float().log_softmax(-1).gather(1, ids[:, None])[:, 0].cpu()
        return (logp - torch.tensor(sample.logprobs)).abs().mean().item()

    def work(seed: int) -> dict:
        first, _ = call(seed, 1)
        seconds, groups = call(seed, size.new)
        samples = [sample for group in groups for sample in group]
        return {
            "seconds": seconds,
            "tokens": sum(len(sample.ids) for sample in samples),
            "first": first,
            "share": floor / seconds,
            "steps_alone": floor / (seconds - first),
            "copy": rate,
            "off": off(seed, samples[0]),
            **gpu_memory(),
        }

    serve(work, warmup=1)


def transformers(folder: str, size: Size) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    device, dtype = device_and_dtype()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().to(device)
    model.generation_config.eos_token_id = None
    options = dict(do_sample=True, temperature=1.0, top_p=1.0, top_k=0, pad_token_id=0)
    options |= dict(max_new_tokens=size.new, min_new_tokens=size.new)

    def work(seed: int) -> dict:
        torch.manual_seed(seed)
        ids = prompts(size, seed).repeat_interleave(size.samples, 0).to(device)
        options["attention_mask"] = torch.ones_like(ids)
        with torch.inference_mode():
            seconds, out = timed(lambda: model.generate(ids, **options))
        return {"seconds": seconds, "tokens": out[:, size.length :].numel(), **gpu_memory()}

    serve(work, warmup=1)


def save_random_model(size: Size, folder: str) -> None:
    """A model with random weights, made on the device, where that is fast."""
    import torch

    from model import Transformer
    from presets import preset
    from runtime.hf import save_pretrained

    with torch.device("meta"):
        model = Transformer(preset(size.preset, size.vocabulary)).to(torch.bfloat16)
    model = model.to_empty(device=device_and_dtype()[0])
    for weight in model.parameters():
        weight.data.normal_(0, 0.02) if weight.dim() > 1 else weight.data.fill_(1)
    save_pretrained(model, folder)


def report(found: dict[str, dict]) -> None:
    """Add the speeds and print a line for each side."""
    for side, one in found.items():
        rows = one["rows"]
        for row in rows:
            row["speed"] = row["tokens"] / row["seconds"]
        middle, least, most = median(rows, "speed")
        line = f"{side:12} {middle:9.0f} tokens/s ({least:.0f} to {most:.0f})"
        if "share" in rows[0]:
            share, alone = median(rows, "share")[0], median(rows, "steps_alone")[0]
            rate, off = median(rows, "copy")[0] / 1e9, median(rows, "off")[0]
            line += f", {share:.1%} of the floor ({alone:.1%} steps alone) at {rate:.0f} GB/s"
            line += f", log-probs off by {off:.1e}"
        if "peak_gb" in rows[0]:
            line += f", peak {median(rows, 'peak_gb')[0]:.1f} GB"
        print(line, flush=True)


def main(arguments=None) -> None:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="a Python with transformers; default: this one")
    parser.add_argument("--rounds", type=at_least(1), default=5)
    parser.add_argument("--sides", default="graphs,steps,plain,transformers")
    parser.add_argument("--to", default="", help="directory for generate.json with the results")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    size = SMALL if options.small else FULL
    if options.side:
        side, folder = options.side
        return ours(side, folder, size) if side in OURS else transformers(folder, size)
    import torch

    if not torch.cuda.is_available() and not options.small:
        raise InputError("no GPU here: give --small to try the program itself")

    # measure
    names = options.sides.split(",")
    pythons = {side: sys.executable for side in names if side in OURS}
    if "transformers" in names and (options.peer or importlib.util.find_spec("transformers")):
        pythons["transformers"] = options.peer or sys.executable
    with tempfile.TemporaryDirectory() as folder:
        save_random_model(size, folder)
        small = ["--small"] * options.small
        sides = {}
        for side, python in pythons.items():
            sides[side] = [python, __file__, *small, "--side", side, folder]
        environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
        found = alternate(sides, options.rounds, environment)

    # report
    print(
        f"{size.preset}, {size.prompts} prompts of {size.length} tokens, {size.samples} samples of "
        f"{size.new} new tokens each"
    )
    report(found)
    if options.to:
        Path(options.to).mkdir(parents=True, exist_ok=True)
        (Path(options.to) / "generate.json").write_text(json.dumps(found))
    if not options.small:
        settings = {"model": size.preset, "prompts": size.prompts, "samples": size.samples}
        settings |= {"prompt": size.length, "new": size.new, "rounds": options.rounds}
        settings |= {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        record("generate_gpu", settings, found)


if __name__ == "__main__":
    run_cli(main)
