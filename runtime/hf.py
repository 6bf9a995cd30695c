"""Hugging Face model directories: read by memory map, written so that transformers loads them unchanged.

Only this file translates between the names, shapes and settings of transformers and those of
model.py, which knows nothing of files.
"""

import functools
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
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
    """The ModelConfig of a Hugging Face directory. Raises InputError, which names the file or field.

    Its eos_id has the ids of config.json and those of generation_config.json.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise InputError(f"{path}: not found; give a Hugging Face model directory")
    config = config_from_hf(_read_json(path), str(path))
    ends = _token_ids(config.eos_id, path)
    generation = path.with_name("generation_config.json")
    if generation.is_file():
        ends += _token_ids(_read_json(generation).get("eos_token_id"), generation)
    ends = list(dict.fromkeys(ends))
    config.eos_id = ends if len(ends) > 1 else next(iter(ends), None)
    return config


def _token_ids(value, path: Path) -> list[int]:
    """eos_token_id as a list. Raises InputError."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(id) is int for id in ids):
        raise InputError(f"{path}: eos_token_id {value!r} is not an id or a list of ids")
    return list(ids)


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object; give a Hugging Face model directory")
    return value


# ----------------------------------------------------------------------------------------------------
# The directory that a model was read from

# Endings of weights and of a trainer's states. They are not carried; nor is a file of LARGEST bytes.
WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".distcp", ".gguf", ".ggml", ".h5", ".npz"),
    *(".msgpack", ".onnx", ".onnx_data", ".ot", ".tflite", ".pkl", ".index.json"),
    "trainer_state.json",
)
LARGEST = 64 * 2**20


@dataclass
class Source:
    """Where a model comes from. `save_pretrained` keeps what training did not change."""

    directory: Path
    dtypes: dict[str, torch.dtype]  # of the stored tensors, by Hugging Face name


def carry(source: Path, directory: Path) -> None:
    """Copy the side files of a model directory: tokenizer, chat template, license, whatever it has.

    Not copied are config.json, weights, what is hidden, a folder that holds weights or folders, and
    links that lead out of the directory, except those of the Hugging Face cache to its blobs.
    """
    root = source.resolve()
    blobs = root.parent.parent / "blobs"
    files = [path for path in root.iterdir() if path.name != "config.json"]
    for folder in root.glob("[!.]*/"):
        inside = list(folder.iterdir())
        if not any(path.is_dir() or path.name.endswith(WEIGHTS) for path in inside):
            files += inside
    for path in files:
        target = path.resolve()
        if path.name.startswith(".") or path.name.endswith(WEIGHTS) or not target.is_file():
            continue
        within = target.is_relative_to(root) or target.is_relative_to(blobs)
        if within and target.stat().st_size <= LARGEST:
            place = directory / path.relative_to(root)
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, place)


# ----------------------------------------------------------------------------------------------------
# Weights

EMBEDDING = "model.embed_tokens.weight"


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
    dtypes: dict[str, torch.dtype] = {}
    if score != config.score:
        config.score = score
        readers |= {
            "score.weight": lambda: torch.zeros(1, config.width, dtype=dtypes[EMBEDDING]),
            "score.bias": lambda: torch.zeros(1, dtype=dtypes[EMBEDDING]),
        }

    with torch.device("meta"):
        model = Transformer(config)
    model.source = Source(directory, dtypes)
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
            dtypes[theirs] = tensor.dtype
        target = torch.empty(shape, dtype=dtype or tensors[0].dtype, device=device)
        for part, tensor in zip(target.split([rows for _, rows in parts]), tensors, strict=True):
            part.copy_(tensor)
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, nn.Parameter(target))
    return model


def save_pretrained(
    model: Transformer, directory, state_dict=None, dtype=None, shard_bytes: int = 5 * 2**30
) -> None:
    """Write config.json, safetensors and side files, which transformers loads unchanged.

    What training did not change stays as it is in the directory that the model was read from: the
    side files, the settings of config.json, and the type of a tensor that this type still holds
    exactly. Other tensors are stored as `dtype`, or as in that directory where that is more exact.

    state_dict: the whole weights, if those of the model are split over processes.
    dtype: None: that of the weights. shard_bytes: the largest file.
    """
    directory, config, source = Path(directory), model.config, model.source
    directory.mkdir(parents=True, exist_ok=True)
    state = state_dict if state_dict is not None else model.state_dict()
    dtypes = source.dtypes if source else {}

    # Fill the files in the order of the layers.
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, parts in hf_names(config):
        weight = state[name].detach().to("cpu")
        for (theirs, _), part in zip(parts, weight.split([rows for _, rows in parts]), strict=True):
            part = _stored(part, dtype or part.dtype, dtypes.get(theirs)).contiguous()
            if size + part.nbytes > shard_bytes and shards[-1]:
                shards.append({})
                size = 0
            shards[-1][theirs] = part
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

    stored = _widest(part.dtype for tensors in shards for part in tensors.values())
    if source is None:
        _write_json(directory / "config.json", config_to_hf(config, stored))
        ends = {"eos_token_id": config.eos_id, "bos_token_id": config.bos_id}
        _write_json(directory / "generation_config.json", ends)
        return

    # What the source has beside its weights.
    hf = _changed_config(config, stored, source)
    new_ends = config.eos_id != read_config(source.directory).eos_id
    if source.directory.resolve() != directory.resolve():
        carry(source.directory, directory)
    _write_json(directory / "config.json", hf)
    generation = directory / "generation_config.json"
    if new_ends and generation.is_file():
        _write_json(generation, _read_json(generation) | {"eos_token_id": config.eos_id})


def _stored(part: Tensor, dtype: torch.dtype, before: torch.dtype | None) -> Tensor:
    """A tensor as it is stored. before: its type in the source."""
    if before is None:
        return part.to(dtype)
    same = part.to(before)
    if torch.equal(same.to(part.dtype), part):
        return same
    return part.to(torch.promote_types(before, dtype))


def _widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    return functools.reduce(torch.promote_types, dtypes)


def _changed_config(config: ModelConfig, stored: torch.dtype, source: Source) -> dict:
    """The source's config.json, in its words, with the settings that differ now."""
    path = source.directory / "config.json"
    theirs = _read_json(path)
    before = config_to_hf(read_config(source.directory), _widest(source.dtypes.values()))
    now = config_to_hf(config, stored)
    changed = {key: value for key, value in now.items() if value != before.get(key)}
    if "torch_dtype" in changed and "dtype" in theirs:
        changed["dtype"] = changed.pop("torch_dtype")  # as transformers 5 calls it
    hf = theirs | changed
    # A setting that theirs says in other words, such as rope_parameters: use ours.
    if replace(config_from_hf(hf, str(path)), eos_id=config.eos_id) != config:
        hf = theirs | now
        hf.pop("rope_parameters", None)
    return hf


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + os.linesep, encoding="utf-8")
