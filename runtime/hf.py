"""Hugging Face model directories: read by memory map, written so that transformers loads them unchanged.

Only this file translates between the names, shapes and settings of transformers and those of
model.py, which knows nothing of files.
"""

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from data.io import InputError
from model import ModelConfig, Transformer

# ----------------------------------------------------------------------------------------------------
# Configuration

# Scalings of RoPE's positions, and the numbers that each needs.
ROPE_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def config_from_hf(hf: dict, where: str = "config.json") -> ModelConfig:
    """Translate the config.json of a LLaMA, Qwen2 or Qwen3 model, written by transformers 4 or 5.

    where: the file; it begins the message of an InputError.
    """
    family = hf.get("model_type")
    if family not in ("llama", "qwen2", "qwen3"):
        raise InputError(
            f"{where}: model_type {family!r} is not supported; use a llama, qwen2 or qwen3 model"
        )

    # Switches that we do not have.
    for key, only in (("mlp_bias", False), ("use_sliding_window", False), ("hidden_act", "silu")):
        if hf.get(key) not in (None, only):
            raise InputError(f"{where}: {key} = {hf[key]!r} is not supported")

    # RoPE: transformers 5 keeps all of it in rope_parameters.
    rope = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
    theta = rope.pop("rope_theta", None) or hf.get("rope_theta") or 10_000.0
    kind = rope.pop("type", None) or rope.get("rope_type") or "default"
    rope["rope_type"] = kind
    if kind not in ROPE_FIELDS:
        raise InputError(
            f"{where}: rope type {kind!r} is not supported; {', '.join(ROPE_FIELDS)} are"
        )
    if missing := [field for field in ROPE_FIELDS[kind] if field not in rope]:
        raise InputError(f"{where}: rope type {kind} needs the field {missing[0]}")

    # A reward or value model has a head with one label.
    labels = list((hf.get("id2label") or {}).values())
    scored = str(hf.get("architectures")).endswith("ForTokenClassification']")
    if scored and len(labels) != 1:
        raise InputError(
            f"{where}: {len(labels)} labels in id2label; a reward or value model has one"
        )
    try:
        return ModelConfig(
            vocab_size=hf["vocab_size"],
            width=hf["hidden_size"],
            layers=hf["num_hidden_layers"],
            heads=hf["num_attention_heads"],
            kv_heads=hf.get("num_key_value_heads") or hf["num_attention_heads"],
            ffn=hf["intermediate_size"],
            head_width=hf.get("head_dim") or (128 if family == "qwen3" else 0),
            context=hf.get("max_position_embeddings", 4096),
            rope_theta=float(theta),
            rope_scaling=None if kind == "default" else rope,
            norm_eps=hf.get("rms_norm_eps", 1e-6),
            tied=bool(hf.get("tie_word_embeddings", False)),
            qkv_bias=family == "qwen2" or bool(hf.get("attention_bias")),
            out_bias=family != "qwen2" and bool(hf.get("attention_bias")),
            qk_norm=family == "qwen3",
            family=family,
            eos_id=hf.get("eos_token_id"),
            bos_id=hf.get("bos_token_id"),
            score=labels[0] if scored else "",
        )
    except KeyError as error:
        raise InputError(f"{where}: the field {error} is missing") from None
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def config_to_hf(config: ModelConfig, dtype: torch.dtype) -> dict:
    """The config.json that transformers and vLLM read. dtype: of the stored weights."""
    family = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[config.family]
    kind, labels = "ForCausalLM", {}
    if config.score:
        kind = "ForTokenClassification"
        labels = {"id2label": {"0": config.score}, "label2id": {config.score: 0}}
    return labels | {
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


def read_config(directory) -> ModelConfig:
    """The ModelConfig of a Hugging Face directory. Raises InputError, which names the file or field."""
    path = Path(directory) / "config.json"
    try:
        hf = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{path}: not found; give a Hugging Face model directory") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(hf, dict):
        raise InputError(f"{path}: not a JSON object; give a Hugging Face model directory")
    return config_from_hf(hf, str(path))


# ----------------------------------------------------------------------------------------------------
# Weights


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
    yield "embed.weight", [("model.embed_tokens.weight", config.vocab_size)]
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
            yield f"{ours}attn.q_norm.weight", [(f"{theirs}self_attn.q_norm.weight", E)]
            yield f"{ours}attn.k_norm.weight", [(f"{theirs}self_attn.k_norm.weight", E)]
        yield f"{ours}attn_norm.weight", [(f"{theirs}input_layernorm.weight", config.width)]
        yield f"{ours}mlp_norm.weight", [(f"{theirs}post_attention_layernorm.weight", config.width)]
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
        yield "head.weight", [("lm_head.weight", config.vocab_size)]


def _open_weights(directory: Path) -> dict:
    """{name: function that reads the tensor by memory map}, over all weight files of a directory.

    They are safetensors, or torch's .bin. Raises InputError.
    """
    files = sorted(directory.glob("*.safetensors")) or sorted(directory.glob("pytorch_model*.bin"))
    if not files:
        raise InputError(
            f"{directory}: no *.safetensors or pytorch_model*.bin in it; give a model directory"
        )

    # An index lists the files. A directory may hold both kinds, and the index of the other kind.
    kind = files[0].suffix
    if index := next(iter(directory.glob(f"*{kind}.index.json")), None):
        try:
            listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f"{index}: not valid, it must be JSON with a weight_map; download it again"
            ) from None
        if missing := sorted(name for name in listed if not (directory / name).exists()):
            raise InputError(
                f"{directory}: {missing[0]}, listed in {index.name}, is missing; download it again"
            )
        files = [file for file in files if file.name in listed]

    readers = {}
    for file in files:
        try:
            if file.suffix == ".bin":
                tensors = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
                for name in tensors:
                    readers[name] = functools.partial(tensors.get, name)
            else:
                opened = safe_open(file, framework="pt")
                for name in opened.keys():
                    readers[name] = functools.partial(opened.get_tensor, name)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"{file}: cannot be read as model weights ({reason}); get it again"
            ) from None
    return readers


@torch.no_grad()
def from_pretrained(
    directory, device="cpu", dtype: torch.dtype | None = torch.float32, score: str = ""
) -> Transformer:
    """Read a Hugging Face directory.

    The files are mapped, and each parameter is copied once, so that a 7B checkpoint in bf16 takes
    no more than its size. dtype None keeps the stored type.
    score: "" for a language model; "outcome", "process" or "value" for a model that scores tokens.
    A language model gets a new head for that, which scores 0 until it is trained. So does a reward
    model that becomes a value model, because its head gives the logit of a probability.

    Raises InputError: it names the file, or the tensor and its shapes; also for another kind of model.
    """
    directory = Path(directory)
    config = read_config(directory)
    if config.score and config.score != score and score != "value":
        kind = f"a model that scores {score}" if score else "a language model"
        raise InputError(f"{directory}: a model that scores {config.score}; give {kind}")
    readers = _open_weights(directory)
    if score != config.score:
        config.score = score
        readers |= {
            "score.weight": lambda: torch.zeros(1, config.width),
            "score.bias": lambda: torch.zeros(1),
        }

    with torch.device("meta"):
        model = Transformer(config)
    parameters = dict(model.named_parameters())
    for name, parts in hf_names(config):
        for theirs, _ in parts:
            if theirs not in readers:
                raise InputError(f"{directory}: tensor {theirs} is missing from its weight files")
        tensors = [readers[theirs]() for theirs, _ in parts]
        shape = parameters[name].shape
        for tensor, (theirs, rows) in zip(tensors, parts, strict=True):
            found, needed = tuple(tensor.shape), (rows, *shape[1:])
            if found != needed:
                raise InputError(
                    f"{directory}: tensor {theirs} has shape {found}, its config.json asks for {needed}"
                )
        target = torch.empty(shape, dtype=dtype or tensors[0].dtype, device=device)
        for part, tensor in zip(target.split([rows for _, rows in parts]), tensors, strict=True):
            part.copy_(tensor)
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, nn.Parameter(target))
    return model


def save_pretrained(
    model: Transformer, directory, state_dict=None, dtype=None, shard_bytes: int = 5 * 2**30
) -> None:
    """Write config.json, generation_config.json and safetensors, which transformers loads unchanged.

    state_dict: the whole weights, if those of the model are split over processes.
    dtype: the type to store; None: that of the weights. shard_bytes: the largest file.
    """
    directory, config = Path(directory), model.config
    directory.mkdir(parents=True, exist_ok=True)
    state = state_dict if state_dict is not None else model.state_dict()

    # Fill the files in the order of the layers.
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, parts in hf_names(config):
        weight = state[name].detach()
        weight = weight.to("cpu", dtype or weight.dtype)
        for (theirs, _), part in zip(parts, weight.split([rows for _, rows in parts]), strict=True):
            if size + part.nbytes > shard_bytes and shards[-1]:
                shards.append({})
                size = 0
            shards[-1][theirs] = part.contiguous()
            size += part.nbytes

    # Write them. A single file has another name, and no index.
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    names = ["model.safetensors"] if len(shards) == 1 else names
    for name, tensors in zip(names, shards, strict=True):
        save_file(tensors, directory / name, metadata={"format": "pt"})
    index = directory / "model.safetensors.index.json"
    for old in (*directory.glob("model*.safetensors"), index):
        if old.name not in names:  # of an earlier save with other files
            old.unlink(missing_ok=True)
    if len(shards) > 1:
        weight_map: dict[str, str] = {}
        total = 0
        for name, tensors in zip(names, shards, strict=True):
            weight_map |= dict.fromkeys(tensors, name)
            total += sum(part.nbytes for part in tensors.values())
        _write_json(index, {"metadata": {"total_size": total}, "weight_map": weight_map})

    stored = next(iter(shards[0].values())).dtype
    _write_json(directory / "config.json", config_to_hf(config, stored))
    ends = {"eos_token_id": config.eos_id, "bos_token_id": config.bos_id}
    _write_json(directory / "generation_config.json", ends)


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + os.linesep, encoding="utf-8")
