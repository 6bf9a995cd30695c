"""Instruction tuning (paper 3): chain of thought, programs and tool-integrated solutions in one mixture.

    for step in 1..M:
        a batch of sequences, each packed with examples up to the context length
        minimize the cross-entropy of the responses (eq. 5 with coefficient 1)

Examples are packed in random order. Attention does not cross from one example to another. Only the response is learned,
its end token included. The paper: 776K examples, batches of 256 sequences of 4K tokens, 500 steps, learning rate 5e-5.

    python train_sft.py --init runs/demo/pretrain/model --data runs/demo/data/sft.jsonl --to runs/demo/sft
    torchrun --nproc_per_node 8 train_sft.py --config configs/paper/sft.toml --init DIR --data FILE --to DIR
"""

from collections.abc import Iterator
from dataclasses import dataclass
from runtime.options import local_main, option

import numpy as np
import torch
from torch import Tensor

from batch import Group, hidden_states, logprobs, micro_batches, pack_completions
from data import prompts
from data.chat import load_tokenizer
from data.io import InputError
from data.problems import examples as layouts
from data.tokenizer import Tokenizer, check_tokenizer
from kernels import definition
from model import Transformer
from runtime.distributed import World, seeded, setup, shard
from runtime.hf import from_pretrained
from runtime.optim import (
    Work,
    adamw,
    clip_grad_norm,
    forward_flops,
    lr_linear_decay,
    set_lr,
)
from runtime.run import Run, command


@dataclass
class Config:
    # model and data
    init: str = option("", "model directory to start from, ours or Hugging Face's", required=True)
    data: list[str] = option([], "examples: files of a layout in docs/data.md", required=True)
    to: str = option("", "run directory; the result is TO/model", required=True)
    valid: str = option("", "such a file held out for the validation loss")
    template: str = option("plain", "prompt template", choices=prompts.TEMPLATES)
    system: str = option("", "system message of --template chat; empty: the template's")
    # optimization
    context: int = option(0, "tokens of a sequence, at most; 0: by the model", least=0)
    batch: int = option(256, "packed sequences a step, over all processes", least=1)
    steps: int = option(500, "optimizer steps", least=1)
    lr: float = option(5e-5, "learning rate, constant after the warm-up", least=0)
    warmup: int = option(0, "steps of linear warm-up", least=0)
    decay: float = option(0.0, "last share of the steps, where the rate falls", least=0, most=1)
    weight_decay: float = option(0.1, "AdamW weight decay, on matrices", least=0)
    beta2: float = option(0.95, "AdamW beta2 (beta1 is 0.9)", least=0, below=1)
    max_grad_norm: float = option(1.0, "largest norm of the gradient; 0: any", least=0)
    dropout: float = option(0.0, "share of each block's output that is dropped", least=0, below=1)
    # speed and memory
    micro_tokens: int = option(16_384, "tokens of one forward and backward pass", least=1)
    valid_every: int = option(100, "steps between validation losses", least=1)
    save_every: int = option(100, "steps between checkpoints", least=1)
    keep: int = option(2, "checkpoints kept", least=1)
    activation_checkpointing: bool | None = option(None, "recompute activations; none: if needed")
    bf16: bool | None = option(None, "products in bfloat16; none: on GPUs, and where faster")
    compile: bool | None = option(None, "compile the blocks with torch.compile; none: on GPUs")
    kernels: str = option("fast", "plain: without accelerators", choices=("fast", "plain"))
    seed: int = option(0, "seed of the packing order", least=0)
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))


# ----------------------------------------------------------------------------------------------------
# Examples


@dataclass
class Example:
    """Token ids of a prompt and of what follows. Of those, the ids with mask True are learned."""

    prompt: list[int]
    response: list[int]
    mask: list[bool]

    @property
    def group(self) -> Group:
        return self.prompt, [self.response]


def load_examples(
    paths: list[str], tokenizer: Tokenizer, template: str, context: int
) -> tuple[list[Example], int]:
    """Examples as token ids, and how many were left out as longer than `context`.

    Raises InputError for a row that is no example, or where no example is left.
    """
    found = [pair for path in paths for pair in layouts.load_examples(path)]
    if template == "chat":
        examples = encode_chats(found, tokenizer)
    else:
        questions, responses = [], []
        for where, example in found:
            question, response = example.question_and_response(where)
            questions.append(prompts.prompt(question, example.format, template))
            responses.append(prompts.response_text(response, example.format, template))
        question_ids = prompts.encode(tokenizer, questions, template)
        response_ids = tokenizer.encode_batch(responses)
        examples = []
        for question, response in zip(question_ids, response_ids, strict=True):
            response.append(tokenizer.eos_id)
            examples.append(Example(question, response, [True] * len(response)))

    fitting = [example for example in examples if length(example) <= context]
    if not fitting:
        where = ", ".join(paths) or "--data"
        advice = "give data or raise --context"
        raise InputError(f"{where}: no example of at most {context} tokens; {advice}")
    return fitting, len(examples) - len(fitting)


def encode_chats(found: list[tuple[str, layouts.Example]], tokenizer: Tokenizer) -> list[Example]:
    """Conversations in the model's chat template: every answer of the assistant is learned."""
    examples, passed_over = [], 0
    for where, example in found:
        try:
            messages = example.in_chat()
            ids, learned, count = tokenizer.chat.encode_example(messages, example.learned)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        first = learned.index(True)
        examples.append(Example(ids[:first], ids[first:], learned[first:]))
        passed_over += count
    if passed_over and local_main():
        print(
            f"{passed_over} answers are not learned: the chat template changes them in later turns"
        )
    return examples


def length(example: Example) -> int:
    """Tokens of an example."""
    return len(example.prompt) + len(example.response)


def pack(
    lengths: list[int], capacity: int, rng: np.random.Generator | None = None
) -> list[list[int]]:
    """Sequences of example numbers, whose lengths sum to at most `capacity` (section 3.2).

    Examples are taken in a random order (as they come without `rng`). The first that does not fit closes a sequence.
    Nothing is split: no example loses its beginning. Raises InputError for an example that is too long.
    """
    order = range(len(lengths)) if rng is None else rng.permutation(len(lengths)).tolist()
    sequences: list[list[int]] = []
    room = -1
    for number in order:
        if lengths[number] > capacity:
            size = f"item {number} has {lengths[number]} tokens and the context holds {capacity}"
            raise InputError(f"{size}; raise the context length or leave the item out")
        if lengths[number] > room:
            sequences.append([])
            room = capacity
        sequences[-1].append(number)
        room -= lengths[number]
    return sequences


def batches(lengths: list[int], context: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of example numbers. A batch is `batch` packed sequences; every epoch is packed anew."""
    epoch = 0
    packed: list[list[int]] = []
    while True:
        while len(packed) < batch:
            packed += pack(lengths, context, np.random.default_rng([seed, epoch]))
            epoch += 1
        yield [example for sequence in packed[:batch] for example in sequence]
        packed = packed[batch:]


# ----------------------------------------------------------------------------------------------------
# The loss


@definition
def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, tokens: int) -> Tensor:
    """Minus the log-probs of the targets, summed and divided by the global number of tokens.

    This is eq. 5 with instruction data and the gradient coefficient 1 (eq. 7). The mean is over the tokens of the
    batch. Eq. 6 takes the mean of each example first, where a token of a short answer weighs more.
    hidden [N, D], head [V, D] (the LM head), targets [N] -> loss [].
    """
    logp, _ = logprobs(hidden, head, targets)  # [N]
    return -logp.sum() / tokens


def sft_loss(model: Transformer, examples: list[Example], tokens: int) -> Tensor:
    """The loss of some examples, as their part of the mean over `tokens` tokens."""
    groups = [example.group for example in examples]
    batch = pack_completions(groups, shared=False, device=model.device)
    mask = np.concatenate([example.mask for example in examples])
    learned = torch.from_numpy(np.flatnonzero(mask)).to(model.device)
    batch.index, batch.targets = batch.index[learned], batch.targets[learned]
    return cross_entropy(hidden_states(model, batch), model.head_weight, batch.targets, tokens)


def batch_loss(model, examples: list[Example], micro_tokens: int, world: World) -> float:
    """Mean loss per response token over all processes. Adds up its gradient where gradients are on.

    Every process holds all `examples` and takes its share of the micro-batches, in equal number.
    """
    tokens = sum(sum(example.mask) for example in examples)
    lengths = [length(example) for example in examples]
    total = torch.zeros((), device=model.device)
    for micro in micro_batches(lengths, micro_tokens, world.size)[world.rank]:
        # The processes call a sharded model equally often, so one without examples runs without effect.
        loss = sft_loss(model, [examples[i] for i in micro or [0]], tokens)
        loss = loss if micro else 0.0 * loss
        if torch.is_grad_enabled():
            loss.backward()
        total += loss.detach()
    return float(world.all_sum(total))


# ----------------------------------------------------------------------------------------------------
# Training


def main(config: Config) -> None:
    world = setup(config.device, config.kernels, config.bf16, config.compile)
    run = Run(config, world)

    # --- model and data
    tokenizer = load_tokenizer(run.init, config.template, config.system)
    model = from_pretrained(run.init, world.device)
    check_tokenizer(tokenizer, model, run.init)
    examples, left_out = load_examples(config.data, tokenizer, config.template, config.context)
    held_out: list[Example] = []
    if config.valid:
        files = [config.valid]
        held_out, _ = load_examples(files, tokenizer, config.template, config.context)
    run.say(f"{len(examples)} examples, {left_out} longer than {config.context} tokens left out")

    for block in model.layers:
        block.dropout = config.dropout
    model = shard(model, world)
    optimizer = adamw(model, config.lr, (0.9, config.beta2), config.weight_decay)
    run.checkpointing(model, tokens=max(config.micro_tokens, config.context))
    start, _ = run.resume(model, optimizer)
    lengths = [length(example) for example in examples]
    stream = batches(lengths, config.context, config.batch, config.seed)
    for _ in range(start):
        next(stream)

    for step in range(start + 1, config.steps + 1):
        run.phase("update")
        torch.manual_seed(seeded(config.seed, "dropout", step, world.rank))

        # --- a batch of packed sequences
        batch = [examples[i] for i in next(stream)]

        # --- the gradient of the mean cross-entropy of the responses
        loss = batch_loss(model, batch, config.micro_tokens, world)

        # --- one step of AdamW
        factor = lr_linear_decay(step, config.warmup, config.steps, config.decay)
        rate = set_lr(optimizer, config.lr * factor)
        norm = clip_grad_norm(model, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        # --- validate, log, save
        run.phase("validate")
        metrics = {"loss": loss, "grad_norm": norm, "lr": rate, "examples": len(batch)}
        if held_out and (step % config.valid_every == 0 or step == config.steps):
            with torch.no_grad():
                metrics["valid_loss"] = batch_loss(model, held_out, config.micro_tokens, world)
        flops = 3 * forward_flops(model.config, [example.group for example in batch])
        run.log(step, metrics, Work(sum(map(length, batch)), flops))
        run.checkpoint(step, model, tokenizer, optimizer)
    run.finish(model, tokenizer, {"examples": len(examples), "left_out": left_out})


if __name__ == "__main__":
    command(main, Config)
