"""runtime/hf.py against transformers, directories both ways; shards, .bin files, score heads, damaged directories."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_model import CASES, DOCUMENTS, SMALL, close, made, meta, reference, small

from data.io import InputError
from model import ModelConfig
from runtime.hf import from_pretrained, save_pretrained

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=list(CASES))
def oracle(request, tmp_path_factory):
    """See `made`."""
    return made(request.param, tmp_path_factory.mktemp(request.param))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_transformers_loads_what_we_save(oracle, dtype, tmp_path):
    theirs, directory = oracle
    model = from_pretrained(directory)
    if dtype:
        model.source = None  # else no tensor is stored less exactly than there
    save_pretrained(model, tmp_path, dtype=dtype, shard_bytes=15_000 if dtype is None else 2**30)
    sizes = [file.stat().st_size for file in tmp_path.glob("*.safetensors")]
    assert (
        len(sizes) == 1 if dtype else len(sizes) > 2 and max(sizes) < 18_000
    )  # 15,000 and the header
    loaded, info = type(theirs).from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [
        type(theirs).__name__
    ]
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (
        info
    )
    again, ids = from_pretrained(tmp_path), torch.tensor(DOCUMENTS[0])
    assert again.config == model.config
    close(again.logits(again(ids)), reference(loaded, ids))
    if dtype is None:
        close(reference(loaded, ids), reference(theirs, ids), 1e-6)
        configs = [json.loads((d / "config.json").read_text()) for d in (directory, tmp_path)]
        assert configs[0] == configs[1]  # every field, in the words of transformers
    else:
        kept = from_pretrained(tmp_path, dtype=None)
        assert {p.dtype for p in kept.parameters()} == {torch.bfloat16}
        assert (
            kept.logits(kept(ids)).float() - reference(theirs, ids)
        ).abs().mean() < 0.1  # bf16 activations too
        pairs = zip(theirs.parameters(), loaded.parameters(), strict=True)
        assert all(torch.equal(p.bfloat16().float(), q) for p, q in pairs)


@torch.no_grad()
@pytest.mark.parametrize("shards", [1, 2])
def test_reads_bin_files(shards, tmp_path):
    model = small(qk_norm=True, family="qwen3", tied=True)
    save_pretrained(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = ["pytorch_model.bin", "pytorch_model-2.bin"][:shards]
    weight_map = {tensor: names[i % shards] for i, tensor in enumerate(tensors)}
    for name in names:
        torch.save({t: tensors[t] for t in tensors if weight_map[t] == name}, tmp_path / name)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    ids = torch.tensor(DOCUMENTS[0])
    assert torch.equal(from_pretrained(tmp_path)(ids), model(ids))
    for (
        name
    ) in names:  # both formats' indexes, and one format's files: what a partial download leaves
        (tmp_path / name).unlink()
    save_pretrained(model, tmp_path)
    assert torch.equal(from_pretrained(tmp_path)(ids), model(ids))


@pytest.mark.parametrize("sizes", [(2**30, 5_000), (5_000, 2**30), (5_000, 9_000)])
def test_saving_over_an_older_save_leaves_only_the_new(sizes, tmp_path):
    """The new weights come as a state dict, as a sharded model gathers them."""
    new = small()
    new.initialize(seed=5)
    save_pretrained(small(), tmp_path, shard_bytes=sizes[0])
    save_pretrained(meta(new.config), tmp_path, new.state_dict(), shard_bytes=sizes[1])
    loaded = from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in new.state_dict().items())
    assert sum(f.stat().st_size for f in tmp_path.glob("*.safetensors")) < 1.2 * sum(
        p.nbytes for p in new.parameters()
    )


PEAK = """
import sys, threading, time
from runtime.hf import from_pretrained

def resident():  # bytes of anonymous memory: the mapped files' pages are the system's to drop
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

def watch():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.001)

for directory in sys.argv[1:]:
    peak, done, model = 0, False, None
    baseline = resident()
    thread = threading.Thread(target=watch)
    thread.start()
    model = from_pretrained(directory)
    done = True
    thread.join()
    print(peak - baseline)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_loading_takes_the_size_of_the_file(tmp_path):
    model = meta(
        ModelConfig(vocab_size=12_000, width=1024, layers=1, heads=8, kv_heads=8, ffn=2816)
    )
    save_pretrained(model.to_empty(device="cpu"), tmp_path / "safetensors")
    shutil.copytree(tmp_path / "safetensors", tmp_path / "bin")
    torch.save(load_file(tmp_path / "bin/model.safetensors"), tmp_path / "bin/pytorch_model.bin")
    (tmp_path / "bin/model.safetensors").unlink()
    size = (tmp_path / "bin/pytorch_model.bin").stat().st_size
    command = [sys.executable, "-c", PEAK, tmp_path / "safetensors", tmp_path / "bin"]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    peaks = [int(peak) / size for peak in out.stdout.split()]
    assert len(peaks) == 2 and all(0.7 < peak < 1.3 for peak in peaks), (peaks, out.stderr)


@torch.no_grad()
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_score_head_is_transformers_token_classification(family, tied, tmp_path):
    """Both ways: what transformers writes is read, what we write it reads; with the same score for every token."""
    import transformers

    config = getattr(transformers, f"{family}Config")(
        **SMALL,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        num_labels=1,
        id2label={0: "process"},
    )
    theirs = getattr(transformers, f"{family}ForTokenClassification")(config).eval()
    theirs.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    theirs.score.bias.fill_(0.7)
    theirs.save_pretrained(tmp_path / "theirs")
    ids = torch.tensor([DOCUMENTS[0]])
    expected = theirs(ids).logits[0, :, 0]
    model = from_pretrained(tmp_path / "theirs", score="process")
    assert model.config.score == "process" and model.head is None
    close(model.score(model(ids[0]))[:, 0], expected)
    save_pretrained(model, tmp_path / "ours")
    again, report = getattr(transformers, f"{family}ForTokenClassification").from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert again.config.id2label == {0: "process"}
    close(again(ids).logits[0, :, 0], expected)


def test_a_language_model_gets_a_score_head_and_a_scorer_is_none(tmp_path):
    save_pretrained(small(), tmp_path / "model")
    scorer = from_pretrained(tmp_path / "model", score="outcome")
    assert scorer.head is None and not scorer.score.weight.any() and not scorer.score.bias.any()
    torch.nn.init.normal_(scorer.score.weight)
    save_pretrained(scorer, tmp_path / "scorer")
    again = from_pretrained(tmp_path / "scorer", score="outcome").state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in scorer.state_dict().items())
    for score, asked in (("", "a language model"), ("process", "a model that scores process")):
        with pytest.raises(InputError, match=f"scorer: a model that scores outcome; give {asked}$"):
            from_pretrained(tmp_path / "scorer", score=score)


def change(directory, **fields):
    path = directory / "config.json"
    path.write_text(
        json.dumps(
            {k: v for k, v in {**json.loads(path.read_text()), **fields}.items() if v != "absent"}
        )
    )


SHARD = "model-00002-of-00003.safetensors"
ERRORS = {  # what the message must name: what to spoil in a good directory
    "config.json.*not found": lambda d: (d / "config.json").unlink(),
    "config.json.*not valid JSON": lambda d: (d / "config.json").write_text("{"),
    "config.json.*not a JSON object": lambda d: (d / "config.json").write_text("[1]"),
    "config.json.*model_type 'mamba'": lambda d: change(d, model_type="mamba"),
    "config.json.*hidden_size": lambda d: change(d, hidden_size="absent"),
    "config.json.*mlp_bias": lambda d: change(d, mlp_bias=True),
    "config.json.*rope type 'dynamic'.*length": lambda d: change(
        d, rope_scaling={"type": "dynamic", "factor": 2.0}
    ),
    "config.json.*yarn needs the field factor": lambda d: change(d, rope_scaling={"type": "yarn"}),
    "config.json.*low_freq_factor": lambda d: change(
        d, rope_scaling={"rope_type": "llama3", "factor": 2.0}
    ),
    "config.json.*kv_heads 3": lambda d: change(d, num_key_value_heads=3),
    "no .*safetensors": lambda d: [f.unlink() for f in d.glob("model*")],
    "pytorch_model.bin: cannot be read": lambda d: [
        f.rename(d / "pytorch_model.bin") for f in d.glob("model*")
    ],
    f"{SHARD}.*missing": lambda d: (d / SHARD).unlink(),
    f"{SHARD}.*cannot be read": lambda d: (d / SHARD).write_bytes((d / SHARD).read_bytes()[:-100]),
    "index.json: not valid": lambda d: (d / "model.safetensors.index.json").write_text("{}"),
    "with a weight_map": lambda d: (d / "model.safetensors.index.json").write_text(
        '{"weight_map": {"lm_head.weight": 1}}'
    ),
    "model.layers.0.self_attn.q_proj.bias is missing": lambda d: change(d, model_type="qwen2"),
    "model.layers.2.self_attn.q_proj.weight is missing": lambda d: change(d, num_hidden_layers=3),
    r"k_proj.weight.*\(8, 16\).*\(4, 16\)": lambda d: change(d, num_key_value_heads=1),
    r"embed_tokens.*\(60, 16\).*\(61, 16\)": lambda d: change(d, vocab_size=61),
    r"gate_proj.*\(24, 16\).*\(25, 16\)": lambda d: change(d, intermediate_size=25),
    "config.json.*2 labels in id2label": lambda d: change(
        d, architectures=["LlamaForTokenClassification"], id2label={"0": "a", "1": "b"}
    ),
    "config.json.*head width 5": lambda d: change(d, head_dim=5),
}


@pytest.mark.parametrize("message", list(ERRORS))
def test_a_bad_directory_gets_one_line_that_names_the_fault(message, tmp_path):
    save_pretrained(small(), tmp_path, shard_bytes=9_000)
    assert from_pretrained(tmp_path) and (tmp_path / SHARD).exists()
    ERRORS[message](tmp_path)
    with pytest.raises(InputError, match=message) as error:
        from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
