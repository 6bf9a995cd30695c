"""Tokens a second of sampling beside transformers' `generate` and an earlier revision.

    python bench/sampling.py [--before CHECKOUT] [--peer peer/bin/python] [--cases 1,16,128,ragged]
    python bench/sampling.py --real runs/smollm2 --peer peer/bin/python --threads 1 --cases 1,16,64
    python -m venv peer && peer/bin/pip install transformers llama-cpp-python

4.4 M parameters with the same random weights on all sides, prompts of 64 random tokens, temperature
1 over the whole vocabulary. Cases 1, 16 and 128 are batch sizes: 128 new tokens each, never EOS.
Case "ragged": 128 prompts whose completions end at very different lengths, because 16 of the 1,024
ids end one (mean about 64, at most 512). The log-probs of a prompt are compared before anything is
timed. --dtype bfloat16: bfloat16 weights; on our side only the matrix products of blocks are in
bfloat16.

--real: the model of bench/real_model.py, with prompts of 96 tokens and 64 new ones. Sides are ours and
transformers, each in float32 and in bfloat16, and llama.cpp with the same weights in F16, Q8_0 and Q4_1.
"""

import argparse
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

# Words, tokens of a prompt and new tokens: of random weights, and of the real model.
VOCABULARY, PROMPT, NEW = (49_152, 96, 64) if "--real" in sys.argv else (1024, 64, 128)
QUANTIZED = ("F16", "Q8_0", "Q4_1")  # Q4_1 is the published file
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

    serve(work, warmup=2)  # the second call keeps a copy of the weights for the next ones


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


def gguf_files(folder: str) -> dict[str, str]:
    """Write the weights of the GGUF file of bench/real_model.py in 16 and 8 bits -> {type: file}."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, quants

    from bench.real_model import gguf_file

    files = {"Q4_1": str(gguf_file())}
    reader = GGUFReader(files["Q4_1"])
    for name in ("F16", "Q8_0"):
        files[name] = str(Path(folder) / f"{name}.gguf")
        writer = GGUFWriter(files[name], reader.fields["general.architecture"].contents())
        for key, field in reader.fields.items():
            if key.startswith("GGUF.") or key == "general.architecture":
                continue  # the writer sets them
            kind = field.types[0]
            items = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, sub_type=items)
        kind = GGMLQuantizationType[name]
        for tensor in reader.tensors:
            values = quants.dequantize(tensor.data, tensor.tensor_type)
            if values.ndim == 1:  # norms stay in float32
                writer.add_tensor(tensor.name, values)
            else:
                writer.add_tensor(tensor.name, quants.quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return files


def llama_cpp(file: str, given) -> None:
    """All prompts in one batch, then a token of each sequence a step, by the functions of llama.h."""
    import llama_cpp as lib

    _, batch = case_of(given.cases)
    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, None)
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(file.encode(), lib.llama_model_default_params())
    params = lib.llama_context_default_params()
    params.n_ctx = batch * 2 * (PROMPT + NEW)
    params.n_seq_max, params.n_batch = batch, batch * PROMPT
    params.n_threads = params.n_threads_batch = given.threads
    context = lib.llama_init_from_model(model, params)
    tokens = lib.llama_batch_init(batch * PROMPT, 0, 1)

    def feed(rows: list[list[int]], start: int) -> None:
        """Decode tokens of each sequence at the positions from `start` on; logits of the last of each."""
        tokens.n_tokens = 0
        for row, ids in enumerate(rows):
            for place, token in enumerate(ids):
                n = tokens.n_tokens
                tokens.token[n], tokens.pos[n] = token, start + place
                tokens.n_seq_id[n], tokens.seq_id[n][0] = 1, row
                tokens.logits[n] = place == len(ids) - 1
                tokens.n_tokens += 1
        if lib.llama_decode(context, tokens):
            raise SystemExit("error: llama_decode failed")

    def work(step: int) -> dict:
        sampler = lib.llama_sampler_init_dist(step)  # temperature 1, the whole vocabulary
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        feed(prompts(batch, step).tolist(), 0)
        places = [PROMPT * (row + 1) - 1 for row in range(batch)]  # of the logits
        for new in range(NEW):
            drawn = [lib.llama_sampler_sample(sampler, context, place) for place in places]
            if new < NEW - 1:  # the last token is not fed
                feed([[token] for token in drawn], PROMPT + new)
            places = list(range(batch))
        lib.llama_sampler_free(sampler)
        return {"tokens": batch * NEW}

    serve(work, warmup=1)


def real_sides(options: argparse.Namespace, folder: str) -> dict[str, list[str]]:
    """Side -> command, for the real model: files that llama.cpp reads are written into `folder`."""
    sides = {}

    def add(name: str, python: str, side: str, source: str, dtype: str = "float32") -> None:
        words = ["--side", side, source, "--real", options.real, "--dtype", dtype]
        sides[name] = [python, __file__, *words, "--threads", str(options.threads)]

    for dtype, suffix in (("float32", ""), ("bfloat16", " bfloat16")):
        add("ours" + suffix, sys.executable, "ours", options.real, dtype)
        if options.peer:
            add("transformers" + suffix, options.peer, "transformers", options.real, dtype)
    if options.peer:
        files = gguf_files(folder)
        for name in QUANTIZED:
            add(f"llama.cpp {name}", options.peer, "llama.cpp", files[name])
    return sides


def main() -> None:
    parser = turns.arguments(__doc__, rounds=7)
    parser.add_argument("--cases", default="1,16,128,ragged")
    parser.add_argument("--ours", default="", help="compile=true: compile our side")
    parser.add_argument("--real", default="", help="directory of the model of bench/real_model.py")
    options = parser.parse_args()
    if options.check:
        return turns.print_logprobs(*options.check, prompts(1, 0).tolist())
    if options.side:
        name, folder = options.side
        sides = {"ours": ours, "transformers": transformers, "llama.cpp": llama_cpp}
        return sides[name](folder, options)
    from model import Transformer
    from presets import preset
    from runtime.hf import save_pretrained

    commands, found = turns.commands(__file__, options, "transformers"), {}
    with tempfile.TemporaryDirectory() as folder:
        if options.real:
            sides = real_sides(options, folder)
            turns.check_same(commands, options.real, tolerance=1e-2)
        else:
            save_pretrained(Transformer(preset("4m", VOCABULARY, context=1024)), folder)
            sides = turns.side_commands(commands, options, folder)
            turns.check_same(commands, folder, tolerance=1e-2)
        print(f"{options.dtype}, {options.threads} threads, {options.rounds} rounds in turn")
        for case in options.cases.split(","):
            of_case = {name: [*command, "--cases", case] for name, command in sides.items()}
            threads = {"OMP_NUM_THREADS": str(options.threads)}
            found[case] = alternate(of_case, options.rounds, threads)
            report(case, found[case])
    settings = turns.settings(options)
    if options.real:
        settings["real"] = Path(options.real).name  # not the path on this machine
    record("sampling_real" if options.real else "sampling", settings, found)


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
