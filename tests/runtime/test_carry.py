"""What a result keeps of the directory that its model came from: a comparison of directories, file by file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_model import DOCUMENTS, close, small
from training import run

from data.io import InputError
from data.tokenizer import Tokenizer
from runtime.checkpoint import Checkpoints
from runtime.hf import carry, from_pretrained, read_config, save_pretrained

SIDE_FILES = {
    "chat_template.jinja": "{{ messages[0].content }}",
    "additional_chat_templates/tool.jinja": "tools",
    "special_tokens_map.json": '{"pad_token":"<pad>"}',
    "added_tokens.json": "{}",
    "vocab.json": "{}",
    "merges.txt": "#version: 0.2\n",
    "LICENSE": "Apache License\r\n",
    "USE_POLICY.md": "Be kind.",
    "README.md": "---\nlicense: apache-2.0\n---\n",
    "preprocessor_config.json": "{}",
    "modeling_custom.py": "raise SystemExit",
    "figures/curve.png": "PNG",
}
LEFT = {
    "pytorch_model.bin.index.json": "{}",
    "consolidated.00.pth": "weights",
    "model.Q4_K_M.gguf": "weights",
    "training_args.bin": "x",
    "trainer_state.json": "{}",
    "original/params.json": "{}",
    "original/consolidated.00.pth": "weights",
    "runs/one/events": "x",
    ".git/config": "x",
    ".env": "SECRET=1",
}


def write(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(text.encode())


def contents(directory: Path) -> dict[str, bytes]:
    """Every file but weights and what a resume needs."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    names = {str(path.relative_to(directory)): path.read_bytes() for path in files}
    return {
        name: text
        for name, text in names.items()
        if not name.startswith("trainer/") and not name.endswith(".safetensors")
    }


@pytest.fixture(scope="module")
def published(tiny, tmp_path_factory):
    """A directory as transformers 5 writes it, in bfloat16, with all that may stand beside the weights."""
    import transformers

    directory = tmp_path_factory.mktemp("published")
    eos = tiny.tokenizer.eos_id
    config = transformers.LlamaConfig(
        vocab_size=tiny.tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
        tie_word_embeddings=True,
        eos_token_id=eos,
        pad_token_id=3,
        use_cache=False,
        made_by="somebody",
    )
    model = transformers.LlamaForCausalLM(config).bfloat16()
    sampling = dict(do_sample=True, temperature=0.6, top_p=0.95, pad_token_id=3)
    model.generation_config = transformers.GenerationConfig(eos_token_id=[eos, 5], **sampling)
    model.save_pretrained(directory)
    tiny.tokenizer.save(directory)
    text = (directory / "tokenizer.json").read_text()
    (directory / "tokenizer.json").write_text(json.dumps(json.loads(text)))  # another layout
    write(directory, SIDE_FILES)
    write(directory, LEFT)
    return directory


def test_only_the_weights_of_a_result_differ(tiny, published, tmp_path):
    """Through two trainers: the result of the first is the source of the second."""
    before = {name: text for name, text in contents(published).items() if name not in LEFT}
    assert set(SIDE_FILES) < set(before)
    first = run("sft", tiny.root, tmp_path / "sft", init=published, steps=1, valid="")
    second = run("grpo", tiny.root, tmp_path / "grpo", init=first / "model", iterations=2, steps=1)
    for directory in (
        first / "step_000001",
        first / "model",
        second / "reference_1",
        second / "model",
    ):
        after = contents(directory)
        configs = [json.loads(files.pop("config.json")) for files in (dict(before), after)]
        assert after == {name: text for name, text in before.items() if name != "config.json"}
        assert configs[1] == configs[0] | {"dtype": "float32"}  # trained on a CPU


def test_transformers_computes_what_we_do(tiny, published, tmp_path):
    import transformers

    result = run("sft", tiny.root, tmp_path / "sft", init=published, steps=3, valid="") / "model"
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        result, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.generation_config.temperature == 0.6 and theirs.config.pad_token_id == 3
    model, ids = from_pretrained(result), torch.tensor(DOCUMENTS[0])
    with torch.no_grad():
        close(model.logits(model(ids)), theirs(ids[None]).logits[0])


def test_a_reward_model_changes_the_head_and_its_labels(tiny, published, tmp_path):
    result = run("reward", tiny.root, tmp_path, init=published, steps=1, valid="") / "model"
    before, after = (json.loads((d / "config.json").read_text()) for d in (published, result))
    assert after == before | {
        "architectures": ["LlamaForTokenClassification"],
        "id2label": {"0": "process"},
        "label2id": {"process": 0},
        "dtype": "float32",
    }
    assert (result / "LICENSE").read_bytes() == (published / "LICENSE").read_bytes()


def test_a_tensor_that_did_not_change_keeps_its_type(published, tmp_path):
    """A change that bfloat16 does not hold is kept: float32 in a run on a CPU."""
    model = from_pretrained(published)
    save_pretrained(model, tmp_path / "same")
    old, new = (load_file(d / "model.safetensors") for d in (published, tmp_path / "same"))
    assert old.keys() == new.keys()
    assert all(old[name].equal(new[name]) for name in old)  # also of the same type
    assert contents(tmp_path / "same")["config.json"] != b""
    assert json.loads((tmp_path / "same/config.json").read_text())["dtype"] == "bfloat16"

    with torch.no_grad():
        model.norm.weight += 1e-6
    save_pretrained(model, tmp_path / "changed", dtype=torch.float32)
    stored = load_file(tmp_path / "changed" / "model.safetensors")
    kinds = {name for name, tensor in stored.items() if tensor.dtype != torch.bfloat16}
    assert kinds == {"model.norm.weight"}
    assert torch.equal(stored["model.norm.weight"], model.norm.weight)
    save_pretrained(model, tmp_path / "gpu", dtype=torch.bfloat16)  # what a GPU computes with
    stored = load_file(tmp_path / "gpu" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


def test_a_setting_that_changed_is_written(published, tmp_path):
    """Also where the source says it in other words (rope_parameters)."""
    eos = read_config(published).eos_id
    assert eos == [eos[0], 5]  # the first is of config.json, the second of generation_config.json
    model = from_pretrained(published)
    model.config.context = 128
    model.config.rope_theta = 7000.0
    model.config.eos_id = 7
    save_pretrained(model, tmp_path)
    assert read_config(tmp_path) == model.config
    sampling = json.loads((tmp_path / "generation_config.json").read_text())
    assert sampling["eos_token_id"] == 7 and sampling["temperature"] == 0.6


def test_links_lead_to_files_of_the_directory_alone(tmp_path):
    """The Hugging Face cache has links too, to blobs beside its snapshots."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    write(tmp_path, {"secret": "key", "models--a--b/blobs/1": "license", "folder/x": "key"})
    write(snapshot, {"README.md": "read"})
    (snapshot / "LICENSE").symlink_to("../../blobs/1")
    (snapshot / "COPY.md").symlink_to("README.md")
    (snapshot / "NOTICE").symlink_to(tmp_path / "secret")
    (snapshot / "figures").symlink_to(tmp_path / "folder")
    (snapshot / "broken").symlink_to("nowhere")
    target = tmp_path / "target"
    target.mkdir()
    carry(snapshot, target)
    expected = {"LICENSE": b"license", "README.md": b"read", "COPY.md": b"read"}
    assert contents(target) == expected
    assert not any(path.is_symlink() for path in target.rglob("*"))


def test_a_source_that_is_gone(tiny, published, tmp_path, capsys):
    """The last checkpoint stands for it; before the first one, there are no side files."""
    source = tmp_path / "source"
    shutil.copytree(published, source)
    tokenizer, checkpoints = Tokenizer.load(source), Checkpoints(tmp_path / "run", keep=1)
    model = from_pretrained(source)
    optimizer = torch.optim.SGD(model.parameters())
    checkpoints.save(1, model, tokenizer, optimizer)
    shutil.rmtree(source)
    for step in (2, 3):
        checkpoints.save(step, model, tokenizer, optimizer)
    assert contents(tmp_path / "run/step_000003")["LICENSE"] == b"Apache License\r\n"
    shutil.rmtree(tmp_path / "run")
    checkpoints.write(tmp_path / "run/model", model, tokenizer)
    assert "no side files" in capsys.readouterr().err
    assert Tokenizer.load(tmp_path / "run/model").hash == tokenizer.hash


@pytest.mark.parametrize("trainer", ["sft", "pretrain", "reward"])
def test_a_run_goes_on_without_its_source(trainer, tiny, published, tmp_path):
    """A trainer that has no use for the first weights needs the source no more after a checkpoint."""
    source = tmp_path / "source"
    shutil.copytree(published, source)
    changes = dict(valid="", save_every=1, steps=2, context=0)
    whole = run(trainer, tiny.root, tmp_path / "whole", init=published, **changes)
    part = run(trainer, tiny.root, tmp_path / "part", init=source, **changes)
    for gone in (source, part / "model", part / "step_000002"):
        shutil.rmtree(gone)
    run(trainer, tiny.root, part, init=source, **changes)
    first, second = (load_file(d / "model" / "model.safetensors") for d in (whole, part))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert contents(whole / "model") == contents(part / "model")


def test_a_run_does_not_write_into_its_source(tiny, published):
    """Its own files would be carried as side files."""
    with pytest.raises(InputError, match="it is the model of --init; give another directory"):
        run("sft", tiny.root, published, init=str(published) + "/")


def test_a_bad_id_of_the_end(tmp_path):
    save_pretrained(small(), tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(InputError, match="generation_config.json: eos_token_id '</s>' is not"):
        from_pretrained(tmp_path)
