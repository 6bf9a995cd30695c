"""Pre-training (paper 2.2, 2.3): next-token prediction on a mixture of token shards.

The paper's recipe: AdamW (0.9, 0.95, weight decay 0.1), a multi-step schedule (2,000 steps of warm-up, then the peak
rate, 31.6 % of it after 80 % of the steps, 10 % after 90 %), gradient clipping at 1.0, 4K context; DeepSeekMath-Base 7B
starts from DeepSeek-Coder-Base (`--init`) and sees 500B tokens: 56 % math corpus, 4 % AlgebraicStack, 10 % arXiv, 20 %
code, 10 % natural language (`--weights`).

    python train_pretrain.py --size 1m --tokenizer DIR --data math=DIR,code=DIR --weights math=0.7,code=0.3 --to DIR
    torchrun --nproc_per_node 8 train_pretrain.py --config configs/paper/pretrain.toml --init DIR --to DIR
"""

import time
from dataclasses import dataclass

import numpy as np
import torch

from data.io import InputError
from data.shards import Mixture, Shards, windows
from data.tokenizer import Tokenizer, check_tokenizer
from kernels.head_loss import cross_entropy
from layout import Layout
from model import PRESETS, ModelConfig, Transformer, preset
from runtime import optim
from runtime.distributed import World, seeded, setup, shard
from runtime.hf import from_pretrained
from runtime.optim import adamw, clip_grad_norm, lr_multistep
from runtime.options import option
from runtime.run import Run, command


@dataclass
class Config:
    init: str = option("", "model directory to continue from; none: a new model of --size")
    size: str = option("1m", "size of a new model", choices=tuple(PRESETS))
    tokenizer: str = option("", "tokenizer directory of a new model")
    data: dict[str, str] = option({}, "token shards: math=DIR,code=DIR", required=True)
    weights: dict[str, float] = option({}, "shares of the sources; none: by their tokens", least=0)
    valid: dict[str, str] = option({}, "held-out token shards by source, for validation")
    to: str = option("", "run directory; the result is TO/model", required=True)
    context: int = option(4096, "tokens of a sequence", least=1)
    batch: int = option(2560, "sequences a step, over all processes", least=1)
    steps: int = option(50_000, "optimizer steps", least=1)
    lr: float = option(4.2e-4, "peak learning rate (the paper's 7B)", least=0)
    warmup: int = option(2000, "steps of linear warm-up", least=0)
    weight_decay: float = option(0.1, "AdamW weight decay, on matrices", least=0)
    beta2: float = option(0.95, "AdamW beta2 (beta1 is 0.9)", least=0, below=1)
    max_grad_norm: float = option(1.0, "largest norm of the gradient; 0: any", least=0)
    dropout: float = option(0.0, "share of each block's output that is dropped", least=0, below=1)
    micro_batch: int = option(4, "sequences of one forward and backward pass", least=1)
    valid_every: int = option(1000, "steps between validation losses", least=1)
    valid_windows: int = option(64, "sequences of each validation source", least=1)
    save_every: int = option(1000, "steps between checkpoints", least=1)
    keep: int = option(2, "checkpoints kept", least=1)
    activation_checkpointing: bool | None = option(None, "recompute activations; none: if needed")
    bf16: bool | None = option(None, "matrix products in bfloat16; none: on GPUs")
    compile: bool | None = option(None, "compile the blocks with torch.compile; none: on GPUs")
    reference: bool = option(
        False, "the readable path: nothing fused, compiled or shared; same numbers, slower"
    )
    seed: int = option(0, "seed of the weights and of the data order", least=0)
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))


def document_lengths(ids: np.ndarray, eos: int) -> list[int]:
    """Lengths of the documents in windows [rows, T]: cut behind every EOS and at every window's end.

    Example: [[5 0 7 8]] with EOS 0 gives [2, 2].
    """
    ends = ids == eos
    ends[:, -1] = True
    return np.diff(np.flatnonzero(ends), prepend=-1).tolist()


def lm_loss(model: Transformer, rows: np.ndarray, eos: int, tokens: int) -> torch.Tensor:
    """Minus the log-prob of windows [B, T + 1], summed over predicted tokens and divided by the global count `tokens`.

    A document does not attend to another, and its EOS does not predict the next one's first token.
    """
    inputs, targets = rows[:, :-1], rows[:, 1:].reshape(-1)
    layout = Layout(document_lengths(inputs, eos), device=model.device)
    learned = torch.from_numpy(np.flatnonzero(inputs.reshape(-1) != eos)).to(model.device)
    hidden = model(torch.from_numpy(inputs.reshape(-1)).to(model.device), layout)
    targets = torch.from_numpy(targets).to(model.device)[learned]
    return cross_entropy(hidden[learned], model.head_weight, targets, tokens)


def total_loss(model, rows: np.ndarray, eos: int, micro_batch: int, world: World) -> float:
    """Mean loss per token of all `rows` over all processes; accumulates its gradient where gradients are on."""
    tokens = int((rows[:, :-1] != eos).sum())
    total = torch.zeros((), device=model.device)
    share = -(
        -len(rows) // world.size
    )  # the same number of micro-batches everywhere: sharded modules run in step
    own = rows[world.rank * share : (world.rank + 1) * share]
    for first in range(0, share, micro_batch):
        part = own[first : first + micro_batch]
        loss = (
            lm_loss(model, part, eos, tokens)
            if len(part)
            else 0.0 * lm_loss(model, rows[:1], eos, tokens)
        )
        if torch.is_grad_enabled():
            loss.backward()
        total += loss.detach()
    return float(world.all_sum(total))


def step_flops(shape: ModelConfig, rows: np.ndarray, eos: int) -> float:
    """FLOPs of forward and backward of windows [B, T + 1]: documents see themselves alone, an EOS predicts nothing."""
    inputs = rows[:, :-1]
    lengths = np.array(document_lengths(inputs, eos))
    pairs = int((lengths * (lengths + 1) // 2).sum())
    return 3 * shape.flops(inputs.size, int((inputs != eos).sum()), pairs)


def main(config: Config) -> None:
    if not (config.init or config.tokenizer):
        raise InputError("--tokenizer DIR is needed for a new model, or --init DIR to continue one")
    world = setup(config.device, config.reference, config.bf16, config.compile)
    run = Run(config, world)
    tokenizer = Tokenizer.load(config.init or config.tokenizer)
    if config.init:
        model = from_pretrained(config.init, world.device)
        check_tokenizer(tokenizer, model, config.init)
        model.config.context = max(model.config.context, config.context)
    else:
        shape = preset(
            config.size, tokenizer.vocab_size, context=config.context, eos_id=tokenizer.eos_id
        )
        model = Transformer(shape, config.seed).to(world.device)
    model.activation_checkpointing = run.checkpointing("pretrain", model.config)
    model.set_dropout(config.dropout)
    weights = config.weights or {name: len(Shards(path)) for name, path in config.data.items()}
    mixture = Mixture(config.data, weights, config.context, config.seed)
    mixture.check(tokenizer.hash)
    valid = {}
    for name, path in config.valid.items():
        Shards(path).check(tokenizer.hash)
        valid[name] = windows(path, config.context, config.valid_windows)
    shape = model.config
    parameters = sum(p.numel() for p in model.parameters())
    run.say(f"{parameters / 1e6:.2f} M parameters, {config.batch * config.context} tokens a step")

    model = shard(model, world)
    optimizer = adamw(model, config.lr, (0.9, config.beta2), config.weight_decay)
    start, state = run.resume(model, optimizer)
    if state:
        mixture.load_state_dict(state["mixture"])

    for step in range(start + 1, config.steps + 1):
        began = time.perf_counter()
        torch.manual_seed(seeded(config.seed, "dropout", step, world.rank))
        rows, sources = mixture.next_batch(config.batch)
        rate = config.lr * lr_multistep(step, config.warmup, config.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = total_loss(model, rows, tokenizer.eos_id, config.micro_batch, world)
        norm = clip_grad_norm(model, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            "lr": rate,
            "tokens": step * config.batch * config.context,
        }
        metrics["sources"] = {name: sources.count(name) for name in config.data}
        if valid and (step % config.valid_every == 0 or step == config.steps):
            with torch.no_grad():
                for name, held_out in valid.items():
                    held_out_loss = total_loss(
                        model, held_out, tokenizer.eos_id, config.micro_batch, world
                    )
                    metrics[f"valid_loss/{name}"] = held_out_loss
        flops = step_flops(shape, rows, tokenizer.eos_id)
        speed = optim.speed(config.batch * config.context, flops, seconds, world)
        run.log(step, metrics, {"seconds": seconds, **speed})
        run.checkpoint(step, model, tokenizer, optimizer, {"mixture": mixture.state_dict()})
    run.finish(model, tokenizer, {"parameters": parameters})


if __name__ == "__main__":
    command(main, Config)
