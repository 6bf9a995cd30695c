"""A training step on the meta device: what it holds and computes, by the trainer's own functions.

`measure` makes the models as the trainer holds them, runs two micro-batches forward and backward
and a decoding step, and scales the arithmetic to the whole step.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import torch

import train_dpo
import train_grpo
import train_ppo
import train_pretrain
import train_reward
import train_sft
from batch import (
    MicroBatch,
    cut_group,
    pack_rollouts,
    token_logprobs,
    token_scores,
    token_values,
)
from generate import Decoder, Sequence, sample_tokens
from kernels.cpu import decoder as cpu_decoder
from kernels.triton.decoder import SharedCache
from model import KVCache, Layout, ModelConfig, Transformer
from runtime.distributed import World
from runtime.hf import read_config
from runtime.optim import model_flops
from tools.fast_path import tracing
from tools.ledger import ELSEWHERE, Ledger
from tools.sharded import Model
from tools.work import Work, response_tokens, work_of

META = World(device=torch.device("meta"))
# The kinds of memory, in the order of the table
KINDS = {
    "weights": "weights, float32",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "gathered": "gathered, bf16 copies",
    "reference": "reference, float32",
    "sampler": "sampler's copy",
    "reward model": "reward model",
    "cache": "KV cache",
    "activations": "activations",
    "logits": "logits, [V, D] gradient",
}


@dataclass
class Plan:
    """What a step takes, on the process that has most to do."""

    shape: ModelConfig
    work: Work
    parameters: int
    phases: dict[str, dict[str, int]]  # bytes by kind at the moment when most is held
    most: dict[str, int]  # the most bytes of each kind at any time
    flops: dict[str, float] = field(default_factory=dict)  # by phase
    learned: dict[str, int] = field(default_factory=dict)  # bytes by kind with all gradients
    decoded: int = 0  # completions decoded at once
    decode_steps: int = 0
    decode_bytes: float = 0.0  # weights and cache that decoding reads
    cache_capacity: int = 0

    def held(self, phase: str) -> int:
        """The most bytes in a phase."""
        return sum(self.phases[phase].values())

    @property
    def peak(self) -> int:
        return max(map(self.held, self.phases))

    @property
    def update_flops(self) -> float:
        """Without those of sampling."""
        return sum(flops for name, flops in self.flops.items() if name != "rollout")


def measure(stage: str, config, shape: ModelConfig) -> Plan:
    """Trace a step of a trainer. config: its options and those of a plan. shape: of the model."""
    step = Step(stage, with_context(config, shape), shape)
    with tracing(step.ledger, step.gpu):
        step.make_models()
        if stage in ("grpo", "ppo"):
            step.reinforce()
            step.sample()
            step.score()
        else:
            step.phase("update", step.learn)
            step.plan.learned = dict(step.ledger.live)
        step.zero_grad()
        if getattr(config, "reward_questions", 0):
            step.renew()
    return step.plan


def with_context(config, shape: ModelConfig):
    """The options, where --context 0 is a number, as in a trainer."""
    if getattr(config, "context", None) == 0:
        config = copy.copy(config)
        config.context = min(shape.context, 4096)
    return config


class Step:
    """A step of a trainer while it is traced."""

    policy: Model
    value: Model | None = None  # PPO's value model
    reference: Model | None = None
    sampler: Model
    reward_model: Model | None = None

    def __init__(self, stage: str, config, shape: ModelConfig):
        self.stage, self.config, self.shape = stage, config, shape
        self.work = work_of(stage, config)
        self.gpu = config.device != "cpu"
        self.dtype = torch.bfloat16 if self.gpu else torch.float32
        self.ledger = Ledger(shape.vocab_size)

    @property
    def trained(self) -> list[Model]:
        return [model for model in (self.policy, self.value) if model is not None]

    def zero_grad(self) -> None:
        for model in self.trained:
            model.zero_grad()

    def phase(
        self,
        name: str,
        run: Callable[[], object],
        times: float | None = None,
    ) -> None:
        """Trace a phase. The step computes `times` as much: by default all micro-batches."""
        before = self.ledger.flops
        with self.ledger.phase(name):
            run()
        if times is None:
            times = self.work.own / self.work.traced
        self.plan.flops[name] = (self.ledger.flops - before) * times

    # ---- models

    def make_models(self) -> None:
        """The models as the trainer's main makes them, with optimizer state."""
        config, shape = self.config, self.shape
        with self.ledger.phase("start"):
            self.policy = self.trained_model(config.kind if self.stage == "reward" else "")
            if self.stage == "ppo":
                self.value = self.trained_model("value")
            if getattr(config, "algorithm", "grpo") == "grpo" and getattr(config, "beta", 0):
                self.reference = self.model(shape, "reference")
            if self.stage in ("grpo", "ppo"):
                self.sampler = self.model(shape, "sampler")
                if getattr(config, "algorithm", "") == "rft":  # its samples come from another model
                    self.sft_sampler = self.model(shape, "sampler")
                if config.reward != "rule":
                    scored = read_config(config.reward_model) if config.reward_model else shape
                    scored = replace(scored, score="value")
                    self.reward_model = self.model(scored, "reward model")
        for model in self.trained:
            model.add_optimizer()
            model.module.activation_checkpointing = config.activation_checkpointing
            for block in model.module.layers:
                block.dropout = getattr(config, "dropout", 0.0)
        parameters = sum(p.numel() for p in self.policy.module.parameters())
        self.plan = Plan(
            shape,
            self.work,
            parameters,
            self.ledger.phases,
            self.ledger.most,
        )

    def model(self, shape: ModelConfig, kind: str) -> Model:
        return Model(self.ledger, shape, self.config.gpus, self.dtype, kind)

    def trained_model(self, score: str) -> Model:
        return self.model(replace(self.shape, score=score), "weights")

    # ---- learning

    def learn(self) -> None:
        """Forward and backward of the traced micro-batches."""
        model, items, config = self.policy.module, self.work.items, self.config
        if self.stage == "pretrain":
            train_pretrain.batch_loss(model, items, 1, config.micro_batch, META)
        elif self.stage == "sft":
            train_sft.batch_loss(model, items, config.micro_tokens, META)
        elif self.stage == "reward":
            train_reward.batch_loss(model, items, config, META)
        else:
            reference = self.reference.module if self.reference else None
            train_dpo.batch_loss(model, reference, items, config, META)

    def reinforce(self) -> None:
        """The reference's log-probs, PPO's values, and the update."""
        config, items = self.config, self.work.items
        trainer = train_ppo if self.value else train_grpo
        micros: list[MicroBatch] = []

        def pack() -> None:
            micros.extend(pack_rollouts(items, config.micro_tokens, META))
            trainer.set_weights(micros, items, config)

        def pack_with_reference() -> None:
            pack()
            with torch.no_grad():
                for micro in micros:
                    logp, _ = token_logprobs(self.reference.module, micro, config.temperature)
                    micro.ref_logp = logp

        if self.stage == "grpo" and self.reference:
            self.phase("reference", pack_with_reference)
        else:
            pack()
        if self.value:
            self.phase("assess", lambda: self.assess(micros))

        def update() -> None:
            if self.value:
                train_ppo.policy_gradient(self.policy.module, micros, config)
                train_ppo.value_gradient(self.value.module, micros, items, config)
            else:
                train_grpo.grpo_gradient(self.policy.module, micros, config)

        self.phase(
            "update",
            update,
            config.mu * self.work.own / self.work.traced,
        )
        self.plan.learned = dict(self.ledger.live)
        micros.clear()
        self.zero_grad()

    def assess(self, micros: list[MicroBatch]) -> None:
        """The models that PPO reads before it learns: values, and the reference's log-probs."""
        temperature = self.config.temperature
        with torch.no_grad():
            for micro in micros:
                values = token_values(self.value.module, micro)
                if self.reference:
                    logp, _ = token_logprobs(self.reference.module, micro, temperature)
                    torch.stack([values, logp])

    # ---- sampling

    def sample(self) -> None:
        """Cache, prefill and decoding steps of the sampler."""
        config, plan, ledger = self.config, self.plan, self.ledger
        prompts = -(-config.questions // config.gpus)
        G, P, mean = config.samples, config.prompt_tokens, response_tokens(config)
        completions = prompts * G
        rows = min(config.max_rows, completions)
        longest = P + min(config.max_new_tokens, self.shape.context - P)
        plan.decoded = rows
        plan.decode_steps = math.ceil(completions * mean / rows)

        # what decoding holds
        in_cpp = not self.gpu and cpu_decoder.suits(self.shape)
        with ledger.of_kind("cache"), ledger.phase("rollout"):
            cache = self.make_cache(rows, prompts, longest, in_cpp)
        copied = int(model_flops(self.shape, 1, 1, 0) / 2) if in_cpp else 0
        copy = ledger.new(copied, torch.float32, "weights")  # the C++ decoder's matrices
        # A GPU's step is a kernel that meta tensors cannot run: the plain decoder stands for it.
        with ledger.of_kind(ELSEWHERE):
            plain = KVCache(
                self.shape,
                rows,
                longest,
                META.device,
                self.sampler.dtype,
            )

        # arithmetic: prompts together, and a step with caches of mean length
        model = self.sampler.module
        with torch.no_grad(), ledger.phase("rollout"):
            largest = max(p.numel() for p in self.policy.module.parameters())
            ledger.new(largest, torch.float32, "gathered")  # the sampler takes the policy's weights
            pack = cpu_decoder.CpuDecoder.pack if in_cpp else Decoder.pack
            together = min(-(-rows // G), max(1, pack // P))
            before = ledger.flops
            prefill(model, P, together)
            of_prefill = (ledger.flops - before) / together
            decode(model, plain, config.temperature, longest)
            before = ledger.flops
            decode(model, plain, config.temperature, P + (mean + 1) // 2)
            of_token = (ledger.flops - before) / rows
        plan.flops["rollout"] = of_prefill * prompts + of_token * completions * mean

        # bytes that decoding reads: weights at each step, and keys and values of what a token sees
        weights = sum(weight.nbytes for weight in self.sampler.weights)
        if not self.shape.tied:  # only the rows of new tokens are read of the embedding
            weights -= self.shape.vocab_size * self.shape.width * self.sampler.dtype.itemsize
        token = 2 * cache.keys.nbytes / (cache.rows * cache.capacity)
        readers = min(G, rows) if self.gpu else 1  # rows that read a prompt at once
        seen = completions * (mean * P / readers + mean * (mean - 1) / 2)
        plan.cache_capacity = cache.capacity
        plan.decode_bytes = plan.decode_steps * weights + token * seen
        del cache, plain, copy

    def make_cache(
        self,
        rows: int,
        prompts: int,
        longest: int,
        in_cpp: bool,
    ):
        """The KV cache of the decoder that runs: in C++, plain, or on a GPU."""
        place = META.device, self.sampler.dtype
        if in_cpp:
            return cpu_decoder.BlockCache(self.shape, rows, longest, *place)
        if not self.gpu:
            return KVCache(self.shape, rows, longest, *place)
        P = self.config.prompt_tokens
        sequences = [Sequence(p, 0, P, longest - P, 0, 0) for p in range(prompts)]
        return SharedCache(self.shape, rows, self.config.samples, sequences, *place)

    # ---- reward model

    def score(self) -> None:
        """Scores by the reward model, in its micro-batches: parts of a group, or several groups."""
        if self.reward_model is None:
            return
        config = self.config
        prompts = -(-config.questions // config.gpus)
        G, P, L = config.samples, config.prompt_tokens, response_tokens(config)
        parts = cut_group(
            [0] * P,
            [[0] * L] * G,
            config.micro_tokens,
        )
        together = min(prompts, max(1, config.micro_tokens // (P + G * L)))

        def run() -> None:
            for part in parts:
                count = len(part)
                groups = [([0] * P, [[0] * L] * count)] * together
                token_scores(
                    self.reward_model.module,
                    groups,
                    [[L - 1]] * (count * together),
                )

        with torch.no_grad():
            self.phase("reward", run, prompts / together)

    def renew(self) -> None:
        """The reward model learns on while all other models stay in memory (4.1.4)."""
        config, ledger = self.config, self.ledger
        options = SimpleNamespace(**vars(train_reward.renewal_options(config)))
        options.kind = config.reward.removesuffix("_model")
        options.completions = config.samples
        for name in ("device", "gpus", "prompt_tokens", "response_tokens"):
            setattr(options, name, getattr(config, name))
        shape = read_config(config.reward_model) if config.reward_model else self.shape
        shape = replace(
            shape,
            score="",
            context=max(shape.context, options.context),
        )
        inner = measure("reward", options, shape)
        held = {kind: size for kind, size in ledger.live.items() if size and kind in KINDS}
        for name, phase in inner.phases.items():
            both = {kind: held.get(kind, 0) + phase.get(kind, 0) for kind in KINDS}
            ledger.phases[f"reward {name}"] = {kind: size for kind, size in both.items() if size}
        for kind, most in inner.most.items():
            ledger.most[kind] = max(ledger.most[kind], ledger.live[kind] + most)


def prefill(model: Transformer, prompt: int, count: int) -> None:
    """`count` prompts together, with their keys and values."""
    store: list = []
    ids = torch.zeros(count * prompt, dtype=torch.int64, device="meta")
    hidden = model(ids, Layout([prompt] * count, device="meta"), store)
    kept = [torch.stack(part) for part in zip(*store, strict=True)]
    model.logits(hidden[:count]).float()
    del kept


def decode(
    model: Transformer,
    cache: KVCache,
    temperature: float,
    longest: int,
) -> None:
    """A token for every row of a cache in which the longest row has `longest` tokens."""
    ids = torch.zeros(cache.rows, dtype=torch.int64, device="meta")
    draws = torch.zeros(cache.rows, dtype=torch.float64, device="meta")
    logits = model.logits(model.decode(ids, cache, ids, longest)).float()
    sample_tokens(logits, temperature, 1.0, draws)
