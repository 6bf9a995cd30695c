"""Pre-training (paper 2.2, 2.3): next-token prediction on a mixture of token shards.

    for step in 1..M:
        a batch of windows of T + 1 tokens, drawn from the sources by their weights
        minimize the cross-entropy of the next token (lm_loss)
        AdamW, multi-step learning rate (2.2.1)

The recipe of the paper: AdamW (0.9, 0.95, weight decay 0.1); 2,000 steps of warm-up, then the peak rate, 31.6 % of it
after 80 % of the steps and 10 % after 90 %; gradients are clipped at norm 1.0; a context of 4K. DeepSeekMath-Base 7B
starts from DeepSeek-Coder-Base (`--init`) and reads 500B tokens: 56 % math corpus, 4 % AlgebraicStack, 10 % arXiv,
20 % code, 10 % natural language (`--weights`).

    python train_pretrain.py --size 1m --tokenizer DIR --data math=DIR,code=DIR --weights math=0.7,code=0.3 --to DIR
    torchrun --nproc_per_node 8 train_pretrain.py --config configs/paper/pretrain.toml --init DIR --to DIR
"""

from dataclasses import dataclass
from runtime.options import option

import numpy as np
import torch
from torch import Tensor

from batch import logprobs
from data.io import InputError
from data.shards import Mixture, Shards, windows
from data.tokenizer import Tokenizer, check_tokenizer
from kernels import definition
from model import Layout, ModelConfig, Transformer
from presets import PRESETS, preset
from runtime.distributed import World, seeded, setup, shard
from runtime.hf import from_pretrained
from runtime.optim import Work, adamw, clip_grad_norm, lr_multistep, model_flops, set_lr
from runtime.run import Run, command


@dataclass
class Config:
    # model and data
    init: str = option("", "model directory to continue from; none: a new model of --size")
    size: str = option("1m", "size of a new model", choices=tuple(PRESETS))
    tokenizer: str = option("", "tokenizer directory of a new model")
    data: dict[str, str] = option({}, "token shards: math=DIR,code=DIR", required=True)
    weights: dict[str, float] = option({}, "shares of the sources; none: by their tokens", least=0)
    valid: dict[str, str] = option({}, "held-out token shards by source, for validation")
    to: str = option("", "run directory; the result is TO/model", required=True)
    # optimization
    context: int = option(0, "tokens of a sequence; 0: by the model", least=0)
    batch: int = option(2560, "sequences a step, over all processes", least=1)
    steps: int = option(50_000, "optimizer steps", least=1)
    lr: float = option(4.2e-4, "peak learning rate (the paper's 7B)", least=0)
    warmup: int = option(2000, "steps of linear warm-up", least=0)
    weight_decay: float = option(0.1, "AdamW weight decay, on matrices", least=0)
    beta2: float = option(0.95, "AdamW beta2 (beta1 is 0.9)", least=0, below=1)
    max_grad_norm: float = option(1.0, "largest norm of the gradient; 0: any", least=0)
    dropout: float = option(0.0, "share of each block's output that is dropped", least=0, below=1)
    # speed and memory
    micro_batch: int = option(4, "sequences of one forward and backward pass", least=1)
    valid_every: int = option(1000, "steps between validation losses", least=1)
    valid_windows: int = option(64, "sequences of each validation source", least=1)
    save_every: int = option(1000, "steps between checkpoints", least=1)
    keep: int = option(2, "checkpoints kept", least=1)
    activation_checkpointing: bool | None = option(None, "recompute activations; none: if needed")
    bf16: bool | None = option(None, "products in bfloat16; none: on GPUs, and where faster")
    compile: bool | None = option(None, "compile the blocks with torch.compile; none: on GPUs")
    kernels: str = option("fast", "plain: without accelerators", choices=("fast", "plain"))
    seed: int = option(0, "seed of the weights and of the data order", least=0)
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))


# ----------------------------------------------------------------------------------------------------
# The loss


@definition
def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, tokens: int) -> Tensor:
    """Minus the log-probs of the targets, summed and divided by the global number of tokens.

    hidden [N, D], head [V, D] (the LM head), targets [N] -> loss [].
    """
    logp, _ = logprobs(hidden, head, targets)  # [N]
    return -logp.sum() / tokens


def lm_loss(model: Transformer, rows: np.ndarray, eos: int, tokens: int) -> Tensor:
    """Cross-entropy of windows [B, T + 1], divided by `tokens`, their number in the global batch.

    A document does not attend to another one. Its EOS does not predict the next document's first token.
    """
    inputs, targets = rows[:, :-1], rows[:, 1:].reshape(-1)  # [B, T], [B * T]
    layout = Layout(document_lengths(inputs, eos), device=model.device)
    inputs = inputs.reshape(-1)  # [B * T]
    predicting = np.flatnonzero(inputs != eos)  # [N]
    hidden = model(torch.from_numpy(inputs).to(model.device), layout)  # [B * T, D]
    hidden = hidden[torch.from_numpy(predicting).to(model.device)]  # [N, D]
    targets = torch.from_numpy(targets[predicting]).to(model.device)  # [N]
    return cross_entropy(hidden, model.head_weight, targets, tokens)


def document_lengths(ids: np.ndarray, eos: int) -> list[int]:
    """Lengths of the documents in windows [B, T]: cut after every EOS and at the end of every window.

    >>> document_lengths(np.array([[5, 0, 7, 8]]), eos=0)
    [2, 2]
    """
    ends = ids == eos
    ends[:, -1] = True
    return np.diff(np.flatnonzero(ends), prepend=-1).tolist()


def batch_loss(model, rows: np.ndarray, eos: int, micro_batch: int, world: World) -> float:
    """Mean loss per token of a batch over all processes. Adds up its gradient where gradients are on.

    rows [B, T + 1] is the whole batch on every process. Each process takes an equal share of it.
    """
    tokens = int((rows[:, :-1] != eos).sum())
    share = -(-len(rows) // world.size)
    mine = rows[world.rank * share : (world.rank + 1) * share]
    total = torch.zeros((), device=model.device)
    for first in range(0, share, micro_batch):
        part = mine[first : first + micro_batch]
        if len(part):
            loss = lm_loss(model, part, eos, tokens)
        else:
            # The processes call a sharded model equally often, so one without rows runs without effect.
            loss = 0.0 * lm_loss(model, rows[:1], eos, tokens)
        if torch.is_grad_enabled():
            loss.backward()
        total += loss.detach()
    return float(world.all_sum(total))


@torch.no_grad()
def validation_losses(model, held_out: dict[str, np.ndarray], eos: int, micro_batch: int, world):
    """{"valid_loss/SOURCE": mean loss per token} of held-out windows by source."""
    return {
        f"valid_loss/{name}": batch_loss(model, rows, eos, micro_batch, world)
        for name, rows in held_out.items()
    }


def step_flops(shape: ModelConfig, rows: np.ndarray, eos: int) -> float:
    """FLOPs of forward and backward of windows [B, T + 1], where a document sees itself alone."""
    inputs = rows[:, :-1]
    lengths = np.array(document_lengths(inputs, eos))
    pairs = int((lengths * (lengths + 1) // 2).sum())
    return 3 * model_flops(shape, inputs.size, int((inputs != eos).sum()), pairs)


# ----------------------------------------------------------------------------------------------------
# Training


def load_model(run: Run, tokenizer: Tokenizer, device: torch.device) -> Transformer:
    """The model of --init, or a new one of --size."""
    config = run.config
    if run.init:
        model = from_pretrained(run.init, device)
        check_tokenizer(tokenizer, model, run.init)
        return model
    shape = preset(config.size, tokenizer.vocab_size)
    shape.context, shape.eos_id = config.context, tokenizer.eos_id
    return Transformer(shape, config.seed).to(device)


def load_data(config: Config, tokenizer: Tokenizer) -> tuple[Mixture, dict[str, np.ndarray]]:
    """The mixture to train on, and held-out windows [B, T + 1] by source. Raises InputError."""
    weights = config.weights or {name: len(Shards(path)) for name, path in config.data.items()}
    mixture = Mixture(config.data, weights, config.context, config.seed)
    mixture.check(tokenizer.hash)
    held_out = {}
    for name, path in config.valid.items():
        Shards(path).check(tokenizer.hash)
        held_out[name] = windows(path, config.context, config.valid_windows)
    return mixture, held_out


def main(config: Config) -> None:
    if not (config.init or config.tokenizer):
        raise InputError("--tokenizer DIR is needed for a new model, or --init DIR to continue one")
    world = setup(config.device, config.kernels, config.bf16, config.compile)
    run = Run(config, world)

    # --- model and data
    tokenizer = Tokenizer.load(run.init or config.tokenizer)
    model = load_model(run, tokenizer, world.device)
    shape, eos = model.config, tokenizer.eos_id
    mixture, held_out = load_data(config, tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    tokens = config.batch * config.context
    run.say(f"{parameters / 1e6:.2f} M parameters, {tokens} tokens a step")

    for block in model.layers:
        block.dropout = config.dropout
    model = shard(model, world)
    optimizer = adamw(model, config.lr, (0.9, config.beta2), config.weight_decay)
    run.checkpointing(model, tokens=config.micro_batch * config.context)
    start, state = run.resume(model, optimizer)
    if state:
        mixture.load_state_dict(state["mixture"])

    for step in range(start + 1, config.steps + 1):
        run.phase("update")
        torch.manual_seed(seeded(config.seed, "dropout", step, world.rank))

        # --- a batch of windows, by the weights of the sources (2.3)
        rows, sources = mixture.next_batch(config.batch)  # [B, T + 1]

        # --- the gradient of the mean cross-entropy
        loss = batch_loss(model, rows, eos, config.micro_batch, world)

        # --- one step of AdamW, at the rate of the multi-step schedule (2.2.1)
        rate = set_lr(optimizer, config.lr * lr_multistep(step, config.warmup, config.steps))
        norm = clip_grad_norm(model, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        # --- validate, log, save
        run.phase("validate")
        metrics: dict = {"loss": loss, "grad_norm": norm, "lr": rate, "tokens": step * tokens}
        metrics["sources"] = {name: sources.count(name) for name in config.data}
        if held_out and (step % config.valid_every == 0 or step == config.steps):
            metrics |= validation_losses(model, held_out, eos, config.micro_batch, world)
        run.log(step, metrics, Work(tokens, step_flops(shape, rows, eos)))
        run.checkpoint(step, model, tokenizer, optimizer, {"mixture": mixture.state_dict()})
    run.finish(model, tokenizer, {"parameters": parameters})


if __name__ == "__main__":
    command(main, Config)
