"""Hugging Face model directories: read by memory map, written so that transformers loads them unchanged.

families.py translates their settings and names. model.py knows nothing of files.
"""

import functools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from data.io import InputError, find_model, read_json
from model import ModelConfig, Transformer
from runtime.families import EMBEDDING, HEAD, config_from_hf, config_to_hf, hf_names

# ----------------------------------------------------------------------------------------------------
# Configuration

# Types of ModelConfig's fields, and those of values.
NUMBERS: dict = {int: (int,), float: (int, float)}


def read_config(directory) -> ModelConfig:
    """The ModelConfig of a Hugging Face directory. Raises InputError, which names the file or field.

    Its eos_id has the ids of config.json and those of generation_config.json.
    """
    path = Path(directory) / "config.json"
    find_model(path)
    hf = read_json(path)
    for key in ("quantization_config", "quantization", "compression_config"):
        if how := hf.get(key):
            method = how.get("quant_method", key) if isinstance(how, dict) else key
            raise InputError(f"{path}: {method}: {UNQUANTIZED}")
    try:
        config = config_from_hf(hf, str(path))
        for field in fields(config):
            value, kinds = getattr(config, field.name), NUMBERS.get(field.type)
            if kinds and (type(value) not in kinds or not 0 <= value < math.inf):
                raise InputError(f"{path}: {field.name} is {value!r}; it must be a number from 0")
    except InputError:
        raise
    except (TypeError, AttributeError, LookupError, ArithmeticError, ValueError) as error:
        raise InputError(f"{path}: not as transformers writes it ({error})") from None
    ends = _token_ids(config.eos_id, path)
    generation = path.with_name("generation_config.json")
    if generation.is_file():
        ends += _token_ids(read_json(generation).get("eos_token_id"), generation)
    ends = list(dict.fromkeys(ends))
    config.eos_id = ends if len(ends) > 1 else next(iter(ends), None)
    return config


def _token_ids(value, path: Path) -> list[int]:
    """eos_token_id as a list. Raises InputError."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(id) is int for id in ids):
        raise InputError(f"{path}: eos_token_id {value!r} is not an id or a list of ids")
    return list(ids)


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

OTHER = ("consolidated", "adapter_")  # beginnings of files that hold weights of another form
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
UNQUANTIZED = "quantized weights are not supported; give the model in bfloat16 or float32"
Reader = Callable[[], Tensor]


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
        names = sorted(set(weight_map.values()))
        missing = [name for name in names if not (index.parent / name).exists()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{index}: not valid, it must be JSON with a weight_map; download it again"
        ) from None
    if missing:
        raise InputError(
            f"{index.parent}: {missing[0]}, listed in {index.name}, is missing; download it again"
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
        made = read_json(directory / "config.json").get("architectures") or ["ForCausalLM"]
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
        _write_json(generation, read_json(generation) | {"eos_token_id": config.eos_id})


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
    theirs = read_json(path)
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
