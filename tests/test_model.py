"""model.py against transformers' logits, and packed layouts against documents run alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import model as ours
from data.io import InputError
from kernels import flex_attention, packed_attention
from model import KVCache, Layout, ModelConfig, Transformer, attention
from presets import PRESETS, preset
from runtime.hf import from_pretrained
from runtime.optim import model_flops

V = 60
DOCUMENTS = [
    [int(i) for i in np.random.default_rng(n).integers(0, V, n)] for n in (24, 5, 13, 1, 9)
]

# name: (family, fields that differ). The rope's wavelengths lie on both sides of llama3's thresholds, 8 and 32 tokens.
SMALL = dict(
    vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
)
LINEAR = {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "rope_theta": 100.0,
}
LLAMA3["original_max_position_embeddings"] = 32
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "beta_fast": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 100.0,
}
MSCALE = {"mscale": 1.3, "mscale_all_dim": 0.7, "truncate": False}
CASES = {
    "llama": ("Llama", dict(num_key_value_heads=4)),
    "llama-linear": ("Llama", dict(rope_parameters=LINEAR)),
    "llama-llama3": (
        "Llama",
        dict(rope_parameters=LLAMA3, tie_word_embeddings=True, rms_norm_eps=1e-3),
    ),
    "llama-bias": ("Llama", dict(attention_bias=True, num_key_value_heads=1)),
    "qwen2": ("Qwen2", dict(rope_parameters={"rope_type": "default", "rope_theta": 30.0})),
    "qwen2-tied": ("Qwen2", dict(tie_word_embeddings=True, num_key_value_heads=4)),
    "qwen3": ("Qwen3", dict(head_dim=12)),
    "qwen3-tied-bias": ("Qwen3", dict(head_dim=6, tie_word_embeddings=True, attention_bias=True)),
    "llama-yarn": ("Llama", dict(rope_parameters=YARN)),
    "qwen2-window": (
        "Qwen2",
        dict(use_sliding_window=True, sliding_window=7, max_window_layers=1),
    ),
    "mistral-window": ("Mistral", dict(sliding_window=7, head_dim=12)),
    "smollm3-yarn": (
        "SmolLM3",
        dict(no_rope_layers=[0, 1], rope_parameters=YARN | MSCALE, pad_token_id=None),
    ),
    "olmo2": ("Olmo2", dict(num_key_value_heads=4, attention_bias=True)),
    "olmo3-yarn": (
        "Olmo3",
        dict(
            layer_types=["sliding_attention", "full_attention"],
            sliding_window=7,
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
                "full_attention": YARN | {"attention_factor": 1.4},
            },
        ),
    ),
}


def made(case, directory):
    """(a transformers model with random weights, the directory in several shards that it wrote)."""
    import transformers

    family, fields = CASES[case]
    config = getattr(transformers, f"{family}Config")(
        **SMALL, **{"num_key_value_heads": 2, **fields}
    )
    torch.manual_seed(1)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():  # far from the initial values: biases of 0, norms of 1 and flat attention would hide mistakes
        for name, p in model.named_parameters():
            p.normal_(0, 1.5 * p.shape[-1] ** -0.5) if p.dim() == 2 else p.normal_(
                0.0 if "bias" in name else 1.0, 0.3
            )
    model.save_pretrained(directory, max_shard_size="20KB")
    assert (directory / "model.safetensors.index.json").exists()
    return model, directory


@pytest.fixture(scope="module", params=list(CASES))
def oracle(request, tmp_path_factory):
    """See `made`."""
    return made(request.param, tmp_path_factory.mktemp(request.param))


def close(a, b, tolerance=1e-4):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


@torch.no_grad()
def reference(model, ids):
    """transformers' logits of one document [T] or of several of one length [B, T]."""
    ids = torch.as_tensor(ids)
    return model(ids if ids.dim() == 2 else ids[None]).logits.view(*ids.shape, V)


def small(**changes) -> Transformer:
    return Transformer(
        ModelConfig(vocab_size=V, width=16, layers=2, heads=4, kv_heads=2, ffn=24, **changes)
    )


def meta(config) -> Transformer:
    with torch.device("meta"):
        return Transformer(config)


@torch.no_grad()
def test_logits_equal_transformers(oracle):
    theirs, directory = oracle
    model = from_pretrained(directory)
    rows = torch.randint(0, V, (3, 11), generator=torch.Generator().manual_seed(3))
    close(model.logits(model(rows)), reference(theirs, rows))  # whole [B, T]
    packed = model.logits(
        model(torch.tensor(sum(DOCUMENTS, [])), Layout([len(d) for d in DOCUMENTS]))
    )
    close(packed, torch.cat([reference(theirs, d) for d in DOCUMENTS]))


@torch.no_grad()
def test_token_by_token_equals_transformers(oracle):
    """Row b starts b steps late and repeats its document's last token at the end: every step's lengths are ragged."""
    theirs, directory = oracle
    model = from_pretrained(directory)
    documents = sorted(DOCUMENTS, key=len)[::-1]
    cache = KVCache(model.config, len(documents), len(documents[0]))
    cache.keys.fill_(7.0), cache.values.fill_(7.0)  # what a row held before must not be seen
    expected = [reference(theirs, document) for document in documents]
    for step in range(len(documents[0]) + len(documents)):
        length = [
            min(step - b, len(document) - 1) for b, document in enumerate(documents) if b <= step
        ]
        ids = torch.tensor([document[n] for document, n in zip(documents, length, strict=False)])
        out = model.logits(model.decode(ids, cache, torch.tensor(length), max(length) + 1))
        close(out, torch.stack([logits[n] for logits, n in zip(expected, length, strict=False)]))


@torch.no_grad()
def test_prefill_then_decode_equals_transformers(oracle):
    """Two prompts prefilled packed, one forked to two rows, one row moved: each row goes on with tokens of its own."""
    theirs, directory = oracle
    model = from_pretrained(directory)
    prompts, tails = (
        [DOCUMENTS[1], DOCUMENTS[2]],
        [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9]],
    )
    owner, lengths, store = [0, 1, 1], [len(p) for p in prompts], []
    hidden = model(torch.tensor(sum(prompts, [])), Layout(lengths), store)
    close(
        model.logits(hidden[[lengths[0] - 1, -1]]),
        torch.stack([reference(theirs, p)[-1] for p in prompts]),
    )
    parts = (torch.stack(part).transpose(1, 2) for part in zip(*store, strict=True))
    keys, values = (
        part.split(lengths, dim=2) for part in parts
    )  # [layers, K, L, E] of each prompt
    cache = KVCache(model.config, 4, 32)
    cache.put(0, 1, keys[0], values[0])
    cache.put(2, 4, keys[1], values[1])
    cache.move(3, 1, lengths[1])
    length = torch.tensor([lengths[p] for p in owner])
    for step in range(5):
        out = model.logits(
            model.decode(
                torch.tensor([t[step] for t in tails]), cache, length, int(length.max()) + 1
            )
        )
        for row, prompt in enumerate(owner):
            close(out[row], reference(theirs, prompts[prompt] + tails[row][: step + 1])[-1])
        length += 1


# --- Layout: packed equals alone -------------------------------------------------------------------------------------


@st.composite
def layouts(draw, longest=9, segments=14):
    """(lengths, parents): roots and children in any order, children of any root, segments without tokens among them."""
    roots = draw(st.integers(1, 4))
    parents = draw(
        st.permutations(
            [-1] * roots + draw(st.lists(st.integers(0, roots - 1), max_size=segments - roots))
        )
    )
    where = [i for i, p in enumerate(parents) if p < 0]
    lengths = draw(st.lists(st.integers(0, longest), min_size=len(parents), max_size=len(parents)))
    lengths = [n or int(p < 0) for n, p in zip(lengths, parents, strict=True)]
    return lengths, [where[p] if p >= 0 else -1 for p in parents]


@settings(max_examples=25)
@given(layouts(), st.integers(0, 2**31))
def test_packed_equals_each_document_alone(layout, seed):
    """Hidden states, and parameter gradients of a loss over all segments, which the parents' tokens gather."""
    lengths, parents = layout
    model, layout = small(), Layout(lengths, parents)
    generator = torch.Generator().manual_seed(seed)
    segments = [torch.randint(0, V, (n,), generator=generator) for n in lengths]
    with (
        torch.inference_mode()
    ):  # as old log-probs are taken: the layout's tensors must then serve the update as well
        before = model(torch.cat(segments), layout)
    hidden = model(torch.cat(segments), layout)
    close(before, hidden, 1e-5)
    starts = np.cumsum(lengths) - lengths
    packed, alone, expected = 0, 0, []
    for i, parent in enumerate(parents):
        here, document = torch.arange(starts[i], starts[i] + lengths[i]), segments[i]
        if parent >= 0:  # its first token is predicted by the parent's last
            here = torch.cat([torch.tensor([starts[parent] + lengths[parent] - 1]), here])
            document = torch.cat([segments[parent], document])
        own = model(document)[len(document) - len(here) :]
        weight = torch.randn(own.shape, generator=generator)
        packed, alone = packed + (hidden[here] * weight).sum(), alone + (own * weight).sum()
        expected.append(own[int(parent >= 0) :])
    close(hidden, torch.cat(expected), 2e-5)
    parameters = list(model.parameters())[:-1]  # without the head
    for a, b in zip(
        *(torch.autograd.grad(loss, parameters) for loss in (packed, alone)), strict=True
    ):
        close(a, b, 1e-5 * max(1.0, float(b.abs().max())))


@settings(max_examples=150)
@given(layouts(longest=40, segments=40))
def test_buckets_say_what_the_definition_says(layout):
    layout = Layout(*layout)
    T, (blocks, inverse) = layout.tokens, packed_attention.buckets(layout)
    asked, dense, order = np.zeros((T, T), dtype=int), np.zeros((T, T), dtype=int), []
    spans = [
        slice(start, start + length)
        for start, length in zip(layout.starts, layout.lengths, strict=True)
    ]
    for span, parent in zip(spans, layout.parents, strict=True):
        asked[span, span] = np.tri(span.stop - span.start)
        if parent >= 0:
            asked[span, spans[parent]] = 1
    for queries, keys, mask in blocks:
        queries, keys = queries.numpy(), keys.numpy()
        N, L = queries.shape
        mask = np.tri(L, dtype=bool)[None].repeat(N, 0) if mask is None else mask[:, 0].numpy()
        assert mask.any(-1).all(), "a query without a key is NaN"
        length = layout.lengths[layout.document.numpy()[queries[:, 0]]]
        real = np.arange(L) < length[:, None]  # [N, L]
        order.append(np.where(real, queries, -1).ravel())
        for n, i in np.argwhere(real):
            np.add.at(dense[queries[n, i]], keys[n, mask[n, i]], 1)
        # a row is at most half padding, but for up to three that would else be a block of their own
        assert (2 * length < L).sum() <= 3 and L == length.max()
    order, index = torch.from_numpy(np.concatenate(order)), torch.arange(T)
    assert torch.equal(order[order >= 0].sort().values, index), "every token once"
    assert torch.equal(order if inverse is None else order[inverse], index)
    assert np.array_equal(dense, asked)
    assert np.array_equal(
        flex_attention.visible(layout)(0, 0, index[:, None], index[None]).numpy(), asked
    )


def test_many_segments_are_at_most_half_padding():
    generator = np.random.default_rng(0)
    lengths = np.concatenate(
        [generator.integers(20, 80, 32), generator.lognormal(3.5, 1, 256).astype(int) + 1]
    )
    layout = Layout(lengths, np.concatenate([np.full(32, -1), np.repeat(np.arange(32), 8)]))
    sizes = [queries.numel() for queries, _, _ in packed_attention.buckets(layout)[0]]
    assert sum(sizes) < 2 * layout.tokens and len(sizes) < 12


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@settings(max_examples=10)
@given(layouts())
def test_flex_attention_is_the_definition(layout):
    """What CUDA runs compiled, run eagerly here."""
    from torch.nn.attention.flex_attention import flex_attention as eager

    layout = Layout(*layout)
    qkv = torch.randn(layout.tokens, 8, 8)
    rope = ours.rope_table(small(head_width=8).config, layout.max_position)
    out = flex_attention.attend(qkv, rope, layout, 4, ours.rotate, eager)
    close(attention.definition(qkv, rope, layout, 4), out, 1e-5)


def test_layout_by_hand():
    layout = Layout([3, 2, 2], parents=[-1, 0, 0])
    assert layout.positions.tolist() == [0, 1, 2, 3, 4, 3, 4] and layout.max_position == 5
    seen = flex_attention.visible(layout)(0, 0, torch.tensor(6), torch.arange(7))
    assert seen.tolist() == [1, 1, 1, 0, 0, 1, 1]
    with pytest.raises(ValueError, match="parent"):
        Layout([1, 1, 1], parents=[-1, 0, 1])
    with pytest.raises(ValueError, match="7 tokens"):
        small()(torch.zeros(6, dtype=torch.long), layout)


def test_activation_checkpointing_gives_the_same_gradients():
    ids, layout, gradients = (
        torch.tensor(sum(DOCUMENTS, [])),
        Layout([len(d) for d in DOCUMENTS]),
        [],
    )
    for activation_checkpointing in (False, True):
        model, calls = small(), []
        model.layers[0].attn_norm.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model.activation_checkpointing = activation_checkpointing
        model.logits(model(ids, layout)).logsumexp(-1).sum().backward()
        assert len(calls) == 1 + activation_checkpointing, (
            "the block runs again in the backward pass"
        )
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


# --- Sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PRESETS))
def test_parameters_and_flops_of_the_sizes(name):
    nominal = float(name[:-1]) * {"m": 1e6, "b": 1e9}[name[-1]]
    paper = {
        "1.3b": (32_256, 1.346e9),
        "7b": (102_400, 6.910e9),
    }  # DeepSeek-Coder 1.3B, DeepSeek-LLM 7B
    vocab_size, expected = paper.get(name, (2048 if nominal < 1e8 else 32_000, nominal))
    model = meta(preset(name, vocab_size))
    total = sum(p.numel() for p in model.parameters())
    assert math.isclose(total, expected, rel_tol=0.001 if name in paper else 0.3)
    products = total - (
        0 if model.config.tied else vocab_size * model.config.width
    )  # an untied embedding is a look-up
    assert math.isclose(
        model_flops(model.config, 1, 1, 0), 2 * products, rel_tol=3e-3
    )  # norms aside


def test_preset_changes_and_unknown_name():
    assert preset("1m", 2048, context=77, kv_heads=4).context == 77
    with pytest.raises(InputError, match="'2b'.*1.3b"):
        preset("2b", 100)
    assert model_flops(ModelConfig(10, 4, 1, 2, 1, 8), 1, 1, 0) == 2 * (
        4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 8 + 10 * 4
    )
