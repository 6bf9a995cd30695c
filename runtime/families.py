"""The model families that transformers knows and model.py computes: their settings, and the names of their weights.

Only this file translates between the words of a config.json and those of model.py.
"""

import math
import re
from collections.abc import Iterator

import torch

from data.io import InputError
from model import ModelConfig

# ----------------------------------------------------------------------------------------------------
# Configuration

# Scalings of RoPE's positions, and the numbers that each needs.
ROPE_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}
# model_type -> its name in transformers' classes, and what its config.json leaves out where it is the default.
FAMILIES: dict[str, tuple[str, dict]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"num_key_value_heads": 8, "sliding_window": 4096}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 128}),
    "smollm3": ("SmolLM3", {"rope_theta": 2e6, "tie_word_embeddings": True}),
    "olmo2": ("Olmo2", {"rms_norm_eps": 1e-5}),
    "olmo3": ("Olmo3", {"rms_norm_eps": 1e-5, "rope_theta": 5e5, "sliding_window": 4096}),
}
# Fields that change the mathematics. Where a file has them, they must be off (null, false, 0 or empty) or 1.
OFF = re.compile(
    "mlp_bias|bias|use_mrope|rope_interleaved?|alibi|clip_qkv|.*expert.*|quantization.*|pruned_heads|"
    "attention_chunk_size|attn_temperature_tuning|.*soft_?cap.*|query_pre_attn_scalar|scale_depth|"
    "dim_model_base|num_nextn_predict_layers|add_cross_attention|is_encoder_decoder|.*sink.*"
)
ONE = re.compile("partial_rotary_factor|logits?_scal(e|ing)|scale_emb|.*_multiplier")


def config_from_hf(hf: dict, where: str = "config.json") -> ModelConfig:
    """Translate the config.json of a model of FAMILIES, written by transformers 4 or 5.

    where: the file; it begins the message of an InputError.
    """
    family = hf.get("model_type")
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise InputError(f"{where}: model_type {family!r} is not supported; {known} are")
    hf = {key: value for key, value in (FAMILIES[family][1] | hf).items() if value is not None}

    # Switches that we do not have.
    for key, value in hf.items():
        off = not OFF.fullmatch(key) or not value
        one = not ONE.fullmatch(key) or value == 1
        silu = key != "hidden_act" or value in ("silu", "swish")
        if not (off and one and silu and (key != "is_causal" or value)):
            raise InputError(f"{where}: {key} = {value!r} is not supported")
    try:
        kinds = _layer_kinds(hf)
        rope, theta, sliding = _rope(hf)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    if "sliding" in kinds and family != "olmo3" and rope["rope_type"] != "default":
        what = f"rope type {rope['rope_type']!r} with sliding_window"
        raise InputError(f"{where}: {what} is not supported for model_type {family!r}")

    # A reward or value model has a head with one label.
    labels = list((hf.get("id2label") or {}).values())
    architecture = str(hf.get("architectures"))
    if "ForSequenceClassification" in architecture:  # with tied embeddings it would load
        raise InputError(f"{where}: {architecture} is a classifier; give a language model")
    scored = architecture.endswith("ForTokenClassification']")
    if scored and len(labels) != 1:
        raise InputError(
            f"{where}: {len(labels)} labels in id2label; a reward or value model has one"
        )
    try:
        biased = family not in ("qwen2", "mistral") and bool(hf.get("attention_bias"))
        return ModelConfig(
            vocab_size=hf["vocab_size"],
            width=hf["hidden_size"],
            layers=hf["num_hidden_layers"],
            heads=hf["num_attention_heads"],
            kv_heads=hf.get("num_key_value_heads") or hf["num_attention_heads"],
            ffn=hf["intermediate_size"],
            head_width=hf.get("head_dim", 0),
            context=hf.get("max_position_embeddings", 4096),
            rope_theta=theta,
            rope_scaling=None if rope["rope_type"] == "default" else rope,
            norm_eps=hf.get("rms_norm_eps", 1e-6),
            tied=bool(hf.get("tie_word_embeddings", False)),
            qkv_bias=family == "qwen2" or biased,
            out_bias=biased,
            qk_norm=family in ("qwen3", "olmo2", "olmo3"),
            post_norm=family in ("olmo2", "olmo3"),
            layer_kinds=None if set(kinds) == {"full"} else kinds,
            window=hf.get("sliding_window", 0) if "sliding" in kinds else 0,
            sliding_theta=0.0 if sliding == theta else sliding,
            family=family,
            eos_id=hf.get("eos_token_id"),
            bos_id=hf.get("bos_token_id"),
            score=labels[0] if scored else "",
        )
    except KeyError as error:
        raise InputError(f"{where}: the field {error} is missing") from None
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _layer_kinds(hf: dict) -> list[str]:
    """ModelConfig.layer_kinds of a config.json. Raises ValueError for layers that we do not have."""
    family, layers = hf["model_type"], hf.get("num_hidden_layers", 0)
    window = hf.get("sliding_window") if family in ("mistral", "olmo3") else None
    if family in ("qwen2", "qwen3", "smollm3") and hf.get("use_sliding_window"):
        window = hf.get("sliding_window", 4096)

    # By default, every layer of Mistral has a window, the last ones of Qwen, three of four of OLMo 3.
    types = ["full_attention"] * layers
    for i in range(layers if window else 0):
        qwen = family.startswith("qwen") and i >= hf.get("max_window_layers", 28)
        if family == "mistral" or qwen or (family == "olmo3" and i % 4 != 3):
            types[i] = "sliding_attention"
    given = hf.get("layer_types", types)[:layers]
    if family in ("llama", "mistral", "olmo2") and given != types:
        raise ValueError(f"layer_types is not supported for model_type {family!r}")
    kinds = [kind.removesuffix("_attention") for kind in given]
    if unknown := [kind for kind in given if kind not in ("full_attention", "sliding_attention")]:
        raise ValueError(f"the layer type {unknown[0]!r} in layer_types is not supported")
    if len(kinds) != layers:
        raise ValueError(f"layer_types has {len(kinds)} entries for {layers} layers")
    if "sliding" in kinds and not window:
        raise ValueError("layer_types has sliding_attention, but there is no sliding_window")
    # A window as long as the context hides nothing. (In OLMo 3 such layers have another RoPE.)
    if window and window >= hf.get("max_position_embeddings", math.inf) and family != "olmo3":
        kinds = ["full"] * layers

    # SmolLM3: a 0 in no_rope_layers is a layer without RoPE.
    every = hf.get("no_rope_layer_interval", 4 if family == "smollm3" else layers + 1)
    rotated = hf.get("no_rope_layers") or [int((i + 1) % every != 0) for i in range(layers)]
    by_default = window and "layer_types" not in hf  # then layers without RoPE have the window
    for i in range(layers):
        windowed = kinds[i] == "sliding" or by_default
        if not rotated[i] and (family != "smollm3" or windowed):
            raise ValueError(f"layer {i} of no_rope_layers is not supported here")
        kinds[i] = kinds[i] if rotated[i] else "nope"
    return kinds


def _rope(hf: dict) -> tuple[dict, float, float]:
    """(rope_scaling with its rope_type, rope_theta, rope_theta of sliding layers) of a config.json.

    transformers 5 keeps all of it in rope_parameters, of OLMo 3 for each type of layer.
    Raises ValueError for a scaling that we do not have.
    """
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    other = rope.get("sliding_attention") or {}
    rope = dict(rope.get("full_attention", rope))
    theta = float(rope.pop("rope_theta", None) or hf.get("rope_theta") or 10_000.0)
    sliding = float(other.get("rope_theta") or theta)
    kind = rope.pop("type", None)  # its older name
    kind = rope["rope_type"] = rope.get("rope_type") or kind or "default"
    for part in (rope, other):
        if part.get("partial_rotary_factor", 1) != 1:
            raise ValueError("partial_rotary_factor is not supported")
    if other.get("rope_type", "default") != "default":
        raise ValueError("a rope type of sliding_attention is not supported")
    if kind not in ROPE_FIELDS:
        long = (
            "; it rotates by the length of the whole text"
            if kind in ("dynamic", "longrope")
            else ""
        )
        raise ValueError(f"rope type {kind!r} is not supported{long}; {', '.join(ROPE_FIELDS)} are")

    # Numbers that may be missing.
    context = hf.get("max_position_embeddings", 4096)
    original = hf.get("original_max_position_embeddings")
    original = original or rope.get("original_max_position_embeddings")
    if kind in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = original or context
    if kind == "yarn" and original and rope.get("factor") is None:
        rope["factor"] = context / original
    if missing := [field for field in ROPE_FIELDS[kind] if rope.get(field) is None]:
        raise ValueError(f"rope type {kind} needs the field {missing[0]}")
    if kind == "yarn":
        rope["beta_fast"], rope["beta_slow"] = (
            rope.get("beta_fast") or 32,
            rope.get("beta_slow") or 1,
        )
        rope["truncate"] = rope.get("truncate", True)
        # The factor of cos and sin (arXiv 2309.00071, 3.4), in DeepSeek's form with mscale.
        top, bottom = rope.get("mscale"), rope.get("mscale_all_dim")
        top, bottom = (top, bottom) if top and bottom else (1, 0)
        grown = 0.1 * math.log(max(rope["factor"], 1))
        if rope.get("attention_factor") is None:
            rope["attention_factor"] = (grown * top + 1) / (grown * bottom + 1)
    return rope, theta, sliding


def config_to_hf(config: ModelConfig, dtype: torch.dtype) -> dict:
    """The config.json that transformers and vLLM read. dtype: of the stored weights."""
    family = FAMILIES[config.family][0]
    kind = "ForTokenClassification" if config.score else "ForCausalLM"
    hf: dict = {
        "architectures": [family + kind],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.ffn,
        "head_dim": config.head_width,
        "max_position_embeddings": config.context,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "attention_bias": config.out_bias if config.family != "qwen2" else True,
        "hidden_act": "silu",
        "eos_token_id": config.eos_id,
        "bos_token_id": config.bos_id,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }

    if config.score:
        hf |= {"id2label": {"0": config.score}, "label2id": {config.score: 0}}
    if config.family in ("smollm3", "olmo2", "olmo3"):
        hf["pad_token_id"] = None  # the default may be beyond the vocabulary

    # Layers that are not alike.
    kinds = config.layer_kinds or ["full"] * config.layers
    if config.family == "smollm3":
        hf["no_rope_layers"] = [int(layer != "nope") for layer in kinds]
    if config.family == "mistral":
        hf["sliding_window"] = config.window or None
    elif config.family == "olmo3" or "sliding" in kinds:
        types = ["sliding_attention" if layer == "sliding" else "full_attention" for layer in kinds]
        hf |= {"layer_types": types, "sliding_window": config.window or config.context}
        hf["use_sliding_window"] = True
    if config.family == "olmo3":
        full = {"rope_type": "default", **(config.rope_scaling or {})}
        hf["rope_parameters"] = {
            "full_attention": full | {"rope_theta": config.rope_theta},
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": config.sliding_theta or config.rope_theta,
            },
        }
    return hf


# ----------------------------------------------------------------------------------------------------
# Names of the weights

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def hf_names(config: ModelConfig) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """(our parameter, [(Hugging Face name, rows)]).

    A fused matrix of ours has the rows of several of theirs, one after the other.
    """
    E = config.head_width
    qkv = [
        ("q_proj", config.heads * E),
        ("k_proj", config.kv_heads * E),
        ("v_proj", config.kv_heads * E),
    ]
    yield "embed.weight", [(EMBEDDING, config.vocab_size)]
    for i in range(config.layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
            yield (
                f"{ours}attn.qkv.{kind}",
                [(f"{theirs}self_attn.{name}.{kind}", rows) for name, rows in qkv],
            )
        for kind in ("weight", "bias") if config.out_bias else ("weight",):
            yield f"{ours}attn.out.{kind}", [(f"{theirs}self_attn.o_proj.{kind}", config.width)]
        if config.qk_norm:
            q_rows, k_rows = (qkv[0][1], qkv[1][1]) if config.post_norm else (E, E)
            yield f"{ours}attn.q_norm.weight", [(f"{theirs}self_attn.q_norm.weight", q_rows)]
            yield f"{ours}attn.k_norm.weight", [(f"{theirs}self_attn.k_norm.weight", k_rows)]
        norms = ("input_layernorm", "post_attention_layernorm")
        if config.post_norm:
            norms = ("post_attention_layernorm", "post_feedforward_layernorm")
        yield f"{ours}attn_norm.weight", [(f"{theirs}{norms[0]}.weight", config.width)]
        yield f"{ours}mlp_norm.weight", [(f"{theirs}{norms[1]}.weight", config.width)]
        gate_up = [
            (f"{theirs}mlp.gate_proj.weight", config.ffn),
            (f"{theirs}mlp.up_proj.weight", config.ffn),
        ]
        yield f"{ours}mlp.gate_up.weight", gate_up
        yield f"{ours}mlp.down.weight", [(f"{theirs}mlp.down_proj.weight", config.width)]
    yield "norm.weight", [("model.norm.weight", config.width)]
    if config.score:
        yield "score.weight", [("score.weight", 1)]
        yield "score.bias", [("score.bias", 1)]
    elif not config.tied:
        yield "head.weight", [(HEAD, config.vocab_size)]
