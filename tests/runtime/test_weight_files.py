"""Weights in any files that safetensors allows, against transformers; directories that are not the model's."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from test_model import DOCUMENTS, small

from data.io import InputError
from data.tokenizer import Tokenizer
from runtime.families import EMBEDDING, HEAD
from runtime.hf import from_pretrained, save_pretrained, sequence_tokens

IDS = torch.tensor(DOCUMENTS[0])
SINGLE = "model.safetensors"


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def saved(request, tmp_path):
    """A model, its directory and its tensors; the weights are not written."""
    model = small(tied=request.param)
    save_pretrained(model, tmp_path)
    tensors = load_file(tmp_path / SINGLE)
    (tmp_path / SINGLE).unlink()
    return model, tmp_path, tensors


def write(path, tensors):
    save_file({name: part.clone() for name, part in tensors.items()}, path, {"format": "pt"})


def shard(directory, tensors, names):
    """Deal the tensors to files. Returns {tensor: file}."""
    weight_map = {tensor: names[i % len(names)] for i, tensor in enumerate(tensors)}
    for name in names:
        write(directory / name, {t: tensors[t] for t in tensors if weight_map[t] == name})
    return weight_map


def index(directory, weight_map, name="model"):
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (directory / f"{name}.safetensors.index.json").write_text(text)


@torch.no_grad()
def same(model, directory, theirs=True):
    """Our logits are the model's, and transformers' are."""
    ours = from_pretrained(directory)
    torch.testing.assert_close(ours.logits(ours(IDS)), model.logits(model(IDS)))
    if theirs:
        import transformers

        other = transformers.AutoModelForCausalLM.from_pretrained(directory)
        logits = other(IDS[None]).logits[0]
        torch.testing.assert_close(logits, model.logits(model(IDS)), atol=1e-4, rtol=0)


def change_config(directory, **fields):
    path = directory / "config.json"
    hf = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in hf.items() if value is not ...}))


def test_shards(saved):
    model, directory, tensors = saved
    names = [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "more.safetensors",
    ]
    weight_map = shard(directory, tensors, names)
    same(model, directory, theirs=False)  # without an index
    index(directory, weight_map)
    same(model, directory)
    some = {tensor: file for tensor, file in weight_map.items() if file == names[0]}
    index(directory, some)  # one that names some
    same(model, directory, theirs=False)


def test_files_that_are_not_the_model(saved):
    """Other forms of the weights, and what an older save left."""
    model, directory, tensors = saved
    wrong = {name: part + 1 for name, part in tensors.items()}
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index(directory, shard(directory, tensors, names))
    for name in ("consolidated.safetensors", "adapter_model.safetensors", "pytorch_model.bin"):
        write(directory / name, wrong)
    index(directory, dict.fromkeys(tensors, "consolidated.safetensors"), "consolidated")
    older = ["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"]
    shard(directory, wrong, older)
    same(model, directory)
    (directory / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match="-of-0000.* and another file differ in tensor "):
        from_pretrained(directory)
    write(directory / SINGLE, tensors)  # transformers takes it first
    same(model, directory)


def test_a_shared_matrix_is_stored_once_or_twice(saved):
    model, directory, tensors = saved
    if not model.config.tied:
        pytest.skip("nothing is shared")
    write(directory / SINGLE, tensors | {HEAD: tensors[EMBEDDING]})
    same(model, directory)
    for stated in (False, ...):
        change_config(directory, tie_word_embeddings=stated)
        write(directory / SINGLE, tensors)
        same(model, directory, theirs=False)  # transformers draws a random head
        save_pretrained(from_pretrained(directory), directory / "again")
        same(model, directory / "again")
    change_config(directory, tie_word_embeddings=True)
    rest = {name: part for name, part in tensors.items() if name != EMBEDDING}
    write(directory / SINGLE, rest | {HEAD: tensors[EMBEDDING]})
    same(model, directory)

    # Two different matrices are not tied, whatever config.json says.
    untied = small()
    untied.load_state_dict(model.state_dict() | {"head.weight": model.embed.weight.flip(0)})
    write(directory / SINGLE, tensors | {HEAD: tensors[EMBEDDING].flip(0)})
    same(untied, directory)


def test_what_safetensors_drops_is_found(tmp_path):
    """save_model keeps one of the names of a shared tensor, and says so in the file's metadata."""
    import transformers

    save_pretrained(small(tied=True), tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    first, second = theirs.model.layers
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    save_model(theirs, str(tmp_path / SINGLE))
    stored = load_file(tmp_path / SINGLE)
    assert EMBEDDING not in stored and len(stored) == len(theirs.state_dict()) - 2
    ours = from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(IDS)), theirs(IDS[None]).logits[0])


@pytest.mark.parametrize("prefix", ["", "module.model.", "_orig_mod.model."])
def test_names_of_base_and_wrapped_models(saved, prefix):
    model, directory, tensors = saved
    renamed = {}
    for name, part in tensors.items():
        front = prefix.removesuffix("model.") if name == HEAD else prefix
        renamed[front + name.removeprefix("model.")] = part
    write(directory / SINGLE, renamed)
    same(model, directory, theirs=not prefix)


def test_a_base_model_has_no_head(saved):
    model, directory, tensors = saved
    tensors.pop(HEAD, None)
    write(directory / SINGLE, {name.removeprefix("model."): t for name, t in tensors.items()})
    change_config(directory, architectures=["LlamaModel"])
    if model.config.tied:
        same(model, directory)
    else:
        with pytest.raises(InputError, match="LlamaModel has no LM head"):
            from_pretrained(directory)
        assert from_pretrained(directory, score="outcome").score is not None


def test_mixed_types(saved):
    model, directory, tensors = saved
    types = [torch.float16, torch.bfloat16, torch.float32]
    mixed = {name: part.to(types[i % 3]) for i, (name, part) in enumerate(tensors.items())}
    write(directory / SINGLE, mixed)
    save_pretrained(from_pretrained(directory), directory / "again")
    again = load_file(directory / "again" / SINGLE)
    assert all(again[name].equal(mixed[name]) for name in mixed)
    assert all(again[name].dtype == mixed[name].dtype for name in mixed)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8])
def test_quantized_weights_are_refused(saved, kind):
    _, directory, tensors = saved
    name = "model.layers.0.mlp.up_proj.weight"
    write(directory / SINGLE, tensors | {name: tensors[name].to(kind)})
    stored = str(kind).removeprefix("torch.")
    with pytest.raises(InputError, match=f"{name} is stored as {stored}; quantized weights are"):
        from_pretrained(directory)
    change_config(directory, quantization_config={"quant_method": "fp8", "fmt": "e4m3"})
    with pytest.raises(InputError, match="config.json: fp8: quantized weights are not supported"):
        from_pretrained(directory)


# ----------------------------------------------------------------------------------------------------
# Directories


@pytest.mark.parametrize("load", [from_pretrained, Tokenizer.load])
def test_a_directory_with_the_model_elsewhere(load, tmp_path):
    def said(path) -> str:
        with pytest.raises(InputError) as error:
            load(path)
        assert "\n" not in str(error.value)
        return str(error.value).removeprefix(str(path))

    def put(*parts):
        for name in ("config.json", "tokenizer.json"):
            path = tmp_path.joinpath(*parts, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")

    assert (
        said(tmp_path / "absent") == ": no such directory; give a model directory on this machine"
    )
    assert re.fullmatch("/(config|tokenizer).json: not found; .*", said(tmp_path))
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text("")
    assert said(run).startswith(": a run without a checkpoint; start it again")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert said(tmp_path).startswith(": an adapter (LoRA); merge it into its base model")
    put("run", "step_999999")
    put("run", "step_1000000")
    last = run / "step_1000000"
    assert said(run) == f": a run that has not finished; its last checkpoint is {last}"
    put("run", "model")
    assert said(run) == f": its model is {run / 'model'}; give that"
    put("cache", "snapshots", "c0ffee")
    assert said(tmp_path / "cache").endswith("snapshots/c0ffee; give that")
    if load is from_pretrained:
        assert said(last / "config.json").startswith(
            ": a file; give a Hugging Face model directory"
        )


def test_no_sequence_is_longer_than_the_models_context(tmp_path):
    save_pretrained(small(), tmp_path)
    longest = from_pretrained(tmp_path).config.context
    assert sequence_tokens(longest, str(tmp_path)) == longest
    change_config(tmp_path, max_position_embeddings=96)
    assert sequence_tokens(0, str(tmp_path)) == 96
    with pytest.raises(InputError, match="--context 97: .* takes 96 tokens"):
        sequence_tokens(97, str(tmp_path))
    change_config(tmp_path, max_position_embeddings=131_072)
    assert sequence_tokens(0, str(tmp_path)) == sequence_tokens(0, "") == 4096
    assert sequence_tokens(100_000, str(tmp_path)) == 100_000
