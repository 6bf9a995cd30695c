"""Hugging Face model directories: read by memory map, written so that transformers loads them unchanged.

Only this file translates between the names, shapes and settings of transformers and those of
model.py, which knows nothing of files.
"""

import functools
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from data.io import InputError, find_model
from model import ModelConfig, Transformer

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
NUMBERS: dict = {
    int: (int,),
    float: (int, float),
}  # types of ModelConfig's fields, and those of values
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
    scored = str(hf.get("architectures")).endswith("ForTokenClassification']")
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

    # SmolLM3: a 0 in no_rope_layers is a layer without RoPE.
    every = hf.get("no_rope_layer_interval", 4 if family == "smollm3" else layers + 1)
    rotated = hf.get("no_rope_layers") or [int((i + 1) % every != 0) for i in range(layers)]
    for i in range(layers):
        if not rotated[i] and (family != "smollm3" or kinds[i] == "sliding"):
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
    kind = rope.pop("type", None) or rope.get("rope_type") or "default"
    rope["rope_type"] = kind
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
    kind, labels = "ForCausalLM", {}
    if config.score:
        kind = "ForTokenClassification"
        labels = {"id2label": {"0": config.score}, "label2id": {config.score: 0}}

    # Layers that are not alike.
    kinds = config.layer_kinds or ["full"] * config.layers
    special: dict = {}
    if config.family in ("smollm3", "olmo2", "olmo3"):
        special["pad_token_id"] = None  # the default may be beyond the vocabulary
    if config.family == "smollm3":
        special["no_rope_layers"] = [int(one != "nope") for one in kinds]
    if config.family == "mistral":
        special["sliding_window"] = config.window or None
    elif config.family == "olmo3" or "sliding" in kinds:
        types = ["sliding_attention" if one == "sliding" else "full_attention" for one in kinds]
        special |= {"layer_types": types, "sliding_window": config.window or config.context}
        special["use_sliding_window"] = True
    if config.family == "olmo3":
        full = {"rope_type": "default", **(config.rope_scaling or {})}
        special["rope_parameters"] = {
            "full_attention": full | {"rope_theta": config.rope_theta},
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": config.sliding_theta or config.rope_theta,
            },
        }
    return (
        labels
        | special
        | {
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
    )


def read_config(directory) -> ModelConfig:
    """The ModelConfig of a Hugging Face directory. Raises InputError, which names the file or field.

    Its eos_id has the ids of config.json and those of generation_config.json.
    """
    path = Path(directory) / "config.json"
    find_model(path)
    hf = _read_json(path)
    for key in ("quantization_config", "quantization", "compression_config"):
        if how := hf.get(key):
            method = how.get("quant_method", key) if isinstance(how, dict) else key
            raise InputError(f"{path}: {method}: {UNQUANTIZED}")
    try:
        config = config_from_hf(hf, str(path))
        for field in fields(config):
            value, kinds = getattr(config, field.name), NUMBERS.get(field.type)
            if kinds and (type(value) not in kinds or value != value or abs(value) == math.inf):
                raise InputError(f"{path}: {field.name} is {value!r}; it must be a number")
    except InputError:
        raise
    except (TypeError, AttributeError, IndexError, ValueError) as error:
        raise InputError(f"{path}: not as transformers writes it ({error})") from None
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


def sequence_tokens(context: int, init: str) -> int:
    """Tokens of a training sequence: --context, or for 0 the model's context, at most 4,096.

    Raises InputError for more than the model of --init takes.
    """
    longest = read_config(init).context if init else 4096
    if init and context > longest:
        raise InputError(
            f"--context {context}: {init} takes {longest} tokens; give at most that, or raise "
            "max_position_embeddings in its config.json"
        )
    return context or min(longest, 4096)


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
HEAD = "lm_head.weight"
OTHER = ("consolidated", "adapter_")  # beginnings of files that hold weights of another form
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
UNQUANTIZED = "quantized weights are not supported; give the model in bfloat16 or float32"
Reader = Callable[[], Tensor]


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


def _open_weights(directory: Path) -> dict[str, Reader]:
    """{name: function that reads the tensor by memory map}, over all weight files of a directory.

    They are safetensors, or torch's .bin. Names are those of `hf_names`, whatever stands in front of
    them in the file. Raises InputError.
    """
    files = sorted(directory.glob("*.safetensors")) or sorted(directory.glob("pytorch_model*.bin"))
    files = [file for file in files if not file.name.startswith(OTHER)]
    if not files:
        raise InputError(
            f"{directory}: no *.safetensors or pytorch_model*.bin in it; give a model directory"
        )
    # As in transformers: a single file comes before shards, whose index says where a tensor is.
    kind = files[0].suffix
    weight_map: dict[str, str] = {}
    for index in directory.glob(f"*{kind}.index.json"):
        if not index.name.startswith(OTHER):
            weight_map = _read_index(index)
    single = directory / ("pytorch_model.bin" if kind == ".bin" else "model.safetensors")
    if single in files and single.name not in weight_map.values():
        files, weight_map = [single], {}

    readers: dict[str, Reader] = {}
    aliases: dict[str, str] = {}
    for file in files:
        tensors, same = _open_file(file)
        aliases |= same
        for name, reader in tensors.items():
            if name not in readers or weight_map.get(name) == file.name:
                readers[name] = reader
            elif name not in weight_map and not torch.equal(readers[name](), reader()):
                raise InputError(
                    f"{directory}: {file.name} and another file differ in tensor {name}; "
                    "remove the files that do not belong to the model"
                )
    for name, other in aliases.items():
        if other in readers:
            readers.setdefault(name, readers[other])
    return _plain_names(readers)


def _read_index(index: Path) -> dict[str, str]:
    """{tensor: file} of an index. Raises InputError."""
    try:
        weight_map = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{index}: not valid, it must be JSON with a weight_map; download it again"
        ) from None
    for name in sorted(set(weight_map.values())):
        if not index.with_name(name).exists():
            raise InputError(
                f"{index.parent}: {name}, listed in {index.name}, is missing; download it again"
            )
    return weight_map


def _open_file(file: Path) -> tuple[dict[str, Reader], dict[str, str]]:
    """The tensors of a weight file, and {name: other name} of those that share memory with another."""
    try:
        if file.suffix == ".bin":
            tensors = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
            return {name: functools.partial(tensors.__getitem__, name) for name in tensors}, {}
        opened = safe_open(file, framework="pt")
        readers: dict[str, Reader] = {}
        for name in opened.keys():
            readers[name] = functools.partial(opened.get_tensor, name)
        return readers, opened.metadata() or {}
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{file}: cannot be read as model weights ({reason}); get it again"
        ) from None


def _plain_names(readers: dict[str, Reader]) -> dict[str, Reader]:
    """Tensors under the names of a causal model of transformers.

    A base model's names lack "model." in front; those of a wrapped model have more.
    """
    mark = "layers.0.mlp.down_proj.weight"
    prefix = next((name for name in readers if name.endswith(mark)), mark).removesuffix(mark)
    plain = {}
    for name, reader in readers.items():
        head, _, leaf = name.rpartition(".")
        if head.rpartition(".")[2] in ("lm_head", "score"):
            name = f"{head.rpartition('.')[2]}.{leaf}"
        elif name.startswith(prefix):
            name = "model." + name.removeprefix(prefix)
        plain[name] = reader
    return plain


def _find_head(readers: dict[str, Reader], config: ModelConfig, directory: Path) -> None:
    """Set config.tied by the weights: files may hold a shared matrix once or twice.

    Raises InputError for a base model, which has no LM head.
    """
    embedding, head = readers.get(EMBEDDING), readers.get(HEAD)
    if config.score or not (embedding or head):
        return
    if not embedding:
        readers[EMBEDDING] = readers[HEAD]
        config.tied = True
    elif head:
        config.tied = config.tied and torch.equal(embedding(), head())
    elif not config.tied:
        made = _read_json(directory / "config.json").get("architectures") or ["ForCausalLM"]
        if not str(made[0]).endswith("ForCausalLM"):
            raise InputError(f"{directory}: {made[0]} has no LM head (tensor {HEAD} is missing)")
        config.tied = True


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
    if not score:
        _find_head(readers, config, directory)
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
            if tensor.dtype not in FLOATS:
                kind = str(tensor.dtype).removeprefix("torch.")
                raise InputError(f"{directory}: tensor {theirs} is stored as {kind}; {UNQUANTIZED}")
            dtypes[theirs] = tensor.dtype
        stored = _widest(tensor.dtype for tensor in tensors)
        target = torch.empty(shape, dtype=dtype or stored, device=device)
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
        theirs.pop("rope_parameters", None)
        hf = theirs | now
    return hf


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + os.linesep, encoding="utf-8")
