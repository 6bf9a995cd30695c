"""Instruction tuning (paper 3): chain of thought, programs and tool-integrated solutions in one mixture.

Training examples are concatenated at random up to the context length, without attention across examples, and only the
response is learned, its end token included. The paper: 776K examples, batch 256 sequences of 4K tokens, 500 steps,
constant learning rate 5e-5.

    python train_sft.py --init runs/demo/pretrain/model --data runs/demo/data/sft.jsonl --to runs/demo/sft
    torchrun --nproc_per_node 8 train_sft.py --config configs/paper/sft.toml --init DIR --data FILE --to DIR
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from batch import Group, forward_flops, hidden_states, micro_batches, pack, pack_completions
from data import prompts
from data.io import InputError, read_jsonl
from data.tokenizer import Tokenizer, check_tokenizer
from kernels.head_loss import cross_entropy
from model import Transformer
from runtime import optim
from runtime.distributed import World, seeded, setup, shard
from runtime.hf import from_pretrained
from runtime.optim import adamw, clip_grad_norm, lr_linear_decay
from runtime.options import option
from runtime.run import Run, command


@dataclass
class Config:
    init: str = option("", "model directory to start from, ours or Hugging Face's", required=True)
    data: list[str] = option([], "JSONL files of question, response, format", required=True)
    to: str = option("", "run directory; the result is TO/model", required=True)
    valid: str = option("", "file of such lines held out for the validation loss")
    template: str = option("plain", "prompt template", choices=("plain", "deepseek", "qwen"))
    context: int = option(4096, "tokens of a sequence; longer examples are left out", least=1)
    batch: int = option(256, "packed sequences a step, over all processes", least=1)
    steps: int = option(500, "optimizer steps", least=1)
    lr: float = option(5e-5, "learning rate, constant after the warm-up", least=0)
    warmup: int = option(0, "steps of linear warm-up", least=0)
    decay: float = option(0.0, "last share of the steps, where the rate falls", least=0, most=1)
    weight_decay: float = option(0.1, "AdamW weight decay, on matrices", least=0)
    beta2: float = option(0.95, "AdamW beta2 (beta1 is 0.9)", least=0, below=1)
    max_grad_norm: float = option(1.0, "largest norm of the gradient; 0: any", least=0)
    dropout: float = option(0.0, "share of each block's output that is dropped", least=0, below=1)
    micro_tokens: int = option(16_384, "tokens of one forward and backward pass", least=1)
    valid_every: int = option(100, "steps between validation losses", least=1)
    save_every: int = option(100, "steps between checkpoints", least=1)
    keep: int = option(2, "checkpoints kept", least=1)
    activation_checkpointing: bool | None = option(None, "recompute activations; none: if needed")
    bf16: bool | None = option(None, "matrix products in bfloat16; none: on GPUs")
    compile: bool | None = option(None, "compile the blocks with torch.compile; none: on GPUs")
    kernels: str = option("fast", "fast; plain: definitions alone", choices=("fast", "plain"))
    seed: int = option(0, "seed of the packing order", least=0)
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))


def load_examples(
    paths: list[str], tokenizer: Tokenizer, template: str, context: int
) -> tuple[list[Group], int]:
    """SFT lines as (prompt ids, [response ids with EOS]); also the number left out as longer than the context."""
    questions, responses = [], []
    for path in paths:
        for number, row in read_jsonl(path):
            for key in ("question", "response"):
                if not isinstance(row.get(key), str) or not row[key]:
                    raise InputError(
                        f"{path}:{number}: no {key!r}; a line needs question, response, format and lang"
                    )
            format = row.get("format", "cot")
            if format not in prompts.FORMATS:
                raise InputError(
                    f"{path}:{number}: format {format!r} is unknown; use {', '.join(prompts.FORMATS)}"
                )
            questions.append(prompts.prompt(row["question"], format, template))
            responses.append(prompts.response_text(row["response"], format, template))
    pairs = zip(
        prompts.encode(tokenizer, questions, template),
        tokenizer.encode_batch(responses),
        strict=True,
    )
    examples = [(question, [response + [tokenizer.eos_id]]) for question, response in pairs]
    fitting = [example for example in examples if length(example) <= context]
    if not fitting:
        where = ", ".join(paths) or "--data"
        raise InputError(
            f"{where}: no example of at most {context} tokens; give data or raise --context"
        )
    return fitting, len(examples) - len(fitting)


def length(example: Group) -> int:
    return len(example[0]) + len(example[1][0])


def batches(lengths: list[int], context: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of example numbers: `batch` packed sequences each, an epoch packed anew in random order."""
    epoch, packs = 0, []
    while True:
        while len(packs) < batch:
            packs += pack(lengths, context, np.random.default_rng([seed, epoch]))
            epoch += 1
        yield [i for one in packs[:batch] for i in one]
        packs = packs[batch:]


def sft_loss(model: Transformer, examples: list[Group], tokens: int) -> torch.Tensor:
    """Eq. 5 with instruction data and coefficient 1: minus the mean log-prob over the global batch's `tokens`."""
    batch = pack_completions(examples, shared=False, device=model.device)
    return cross_entropy(hidden_states(model, batch), model.head_weight, batch.targets, tokens)


def sft_coefficient() -> float:
    """The gradient coefficient of every token, eq. 7: 1. The mean here is over the batch's tokens; eq. 6 takes that
    over an example's tokens first, which would let a token of a short answer weigh more."""
    return 1.0


def sft_gradient(model, examples: list[Group], micro_tokens: int, world: World) -> float:
    """Accumulate the gradient of the mean loss over all processes' examples; returns that loss.

    Every process holds all `examples` and takes its share of the micro-batches, in equal number (an empty one runs a
    single token without loss, so that sharded modules are called equally often everywhere).
    """
    tokens = sum(len(responses[0]) for _, responses in examples)
    total = torch.zeros((), device=model.device)
    for micro in micro_batches([length(example) for example in examples], micro_tokens, world.size)[
        world.rank
    ]:
        if micro:
            loss = sft_loss(model, [examples[i] for i in micro], tokens)
        else:
            loss = 0.0 * sft_loss(model, [examples[0]], tokens)
        loss.backward()
        total += loss.detach()
    return float(world.all_sum(total))


@torch.no_grad()
def validation_loss(model, examples: list[Group], micro_tokens: int, world: World) -> float:
    """Mean loss per response token, over all of `examples`."""
    tokens = sum(len(responses[0]) for _, responses in examples)
    total = torch.zeros((), device=model.device)
    for micro in micro_batches([length(example) for example in examples], micro_tokens, world.size)[
        world.rank
    ]:
        loss = sft_loss(model, [examples[i] for i in micro or [0]], tokens)
        total += loss if micro else 0.0 * loss
    return float(world.all_sum(total))


def main(config: Config) -> None:
    world = setup(config.device, config.kernels, config.bf16, config.compile)
    run = Run(config, world)
    tokenizer = Tokenizer.load(config.init)
    model = from_pretrained(config.init, world.device)
    check_tokenizer(tokenizer, model, config.init)
    model.config.context = max(model.config.context, config.context)
    model.activation_checkpointing = run.checkpointing("sft", model.config)
    model.set_dropout(config.dropout)
    examples, left_out = load_examples(config.data, tokenizer, config.template, config.context)
    valid = (
        load_examples([config.valid], tokenizer, config.template, config.context)[0]
        if config.valid
        else []
    )
    run.say(f"{len(examples)} examples, {left_out} longer than {config.context} tokens left out")

    model = shard(model, world)
    optimizer = adamw(model, config.lr, (0.9, config.beta2), config.weight_decay)
    start, _ = run.resume(model, optimizer)
    lengths = [length(example) for example in examples]
    stream = batches(lengths, config.context, config.batch, config.seed)
    for _ in range(start):
        next(stream)

    for step in range(start + 1, config.steps + 1):
        began = time.perf_counter()
        torch.manual_seed(seeded(config.seed, "dropout", step, world.rank))
        chosen = [examples[i] for i in next(stream)]
        rate = config.lr * lr_linear_decay(step, config.warmup, config.steps, config.decay)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = sft_gradient(model, chosen, config.micro_tokens, world)
        norm = clip_grad_norm(model, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        flops = 3 * forward_flops(model.config, chosen)
        speed = optim.speed(sum(map(length, chosen)), flops, time.perf_counter() - began, world)
        metrics = {"loss": loss, "grad_norm": norm, "lr": rate, "examples": len(chosen)}
        if valid and (step % config.valid_every == 0 or step == config.steps):
            metrics["valid_loss"] = validation_loss(model, valid, config.micro_tokens, world)
        run.log(step, metrics, {"seconds": time.perf_counter() - began, **speed})
        run.checkpoint(step, model, tokenizer, optimizer)
    run.finish(model, tokenizer, {"examples": len(examples), "left_out": left_out})


if __name__ == "__main__":
    command(main, Config)
