"""config.json of published models: which families and switches are read, which are refused by name."""

import json

import pytest
import torch
import transformers
from test_model import close

import kernels
from data.io import InputError
from generate import Sampling, generate
from kernels import Setting
from kernels.decoding import Ids
from model import Layout
from runtime.families import config_from_hf, config_to_hf
from runtime.hf import from_pretrained, read_config, save_pretrained

LLAMA = dict(
    model_type="llama",
    vocab_size=60,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=256,
)
# Settings of published files that change nothing.
HARMLESS = dict(
    attention_bias=False,
    attention_dropout=0.0,
    mlp_bias=False,
    head_dim=None,
    pretraining_tp=2,
    rope_scaling=None,
    partial_rotary_factor=1.0,
    quantization_config=None,
    use_mrope=False,
    use_sliding_window=False,
    sliding_window=4096,
    max_window_layers=2,
    layer_types=["full_attention"] * 4,
    residual_multiplier=1.0,
    num_experts=0,
    final_logit_softcapping=None,
)
REFUSED = {
    "partial_rotary_factor = 0.5": dict(partial_rotary_factor=0.5),
    "partial_rotary_factor": dict(rope_parameters=dict(partial_rotary_factor=0.5)),
    "attn_logit_softcapping": dict(attn_logit_softcapping=50.0),
    "residual_multiplier": dict(residual_multiplier=0.22),
    "embedding_multiplier": dict(embedding_multiplier=12.0),
    "logits_scaling": dict(logits_scaling=8.0),
    "quantization_config": dict(quantization_config=dict(quant_method="awq")),
    "clip_qkv": dict(clip_qkv=8.0),
    "num_local_experts": dict(num_local_experts=8),
    "num_nextn_predict_layers": dict(num_nextn_predict_layers=1),
    "hidden_act": dict(hidden_act="gelu"),
    "no_rope_layers": dict(no_rope_layers=[1, 1, 1, 0]),
    "layer_types is not": dict(layer_types=["sliding_attention"] * 4),
    "linear_attention": dict(model_type="qwen3", layer_types=["linear_attention"] * 4),
    "2 entries for 4": dict(model_type="qwen3", layer_types=["full_attention"] * 2),
    "no sliding_window": dict(model_type="qwen3", layer_types=["sliding_attention"] * 4),
    "'yarn' with sliding_window": dict(
        model_type="mistral", sliding_window=8, rope_scaling=dict(type="yarn", factor=4.0)
    ),
    "layer 3 of no_rope_layers": dict(
        model_type="smollm3",
        use_sliding_window=True,
        sliding_window=8,
        layer_types=["sliding_attention"] * 4,
    ),
    "no_rope_layers is not supported here": dict(
        model_type="smollm3", use_sliding_window=True, sliding_window=8
    ),
    "rope type 'longrope'": dict(rope_scaling=dict(type="longrope")),
    "rope type 'mrope'": dict(rope_scaling=dict(type="mrope")),
    "rope type 'dynamic'": dict(rope_scaling=dict(type="linear", rope_type="dynamic", factor=2.0)),
    "model_type 'granite'": dict(model_type="granite"),
    "is_causal": dict(is_causal=False),
    "is a classifier": dict(architectures=["LlamaForSequenceClassification"]),
}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_settings_that_change_nothing_are_read(family):
    plain = LLAMA | dict(model_type=family)
    expected = config_from_hf(plain | dict(head_dim=16))
    assert config_from_hf(plain | HARMLESS) == expected


@pytest.mark.parametrize("named", REFUSED)
def test_what_we_do_not_compute_is_refused_by_name(named):
    with pytest.raises(InputError) as error:
        config_from_hf(LLAMA | REFUSED[named], "config.json")
    assert named in str(error.value) and str(error.value).startswith("config.json: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(rope_parameters=[1]), "not as transformers writes it"),
        (dict(num_hidden_layers="2"), "not as transformers writes it"),
        (dict(model_type=["llama"]), "not as transformers writes it"),
        (dict(model_type="smollm3", no_rope_layers=[1]), "not as transformers writes it"),
        (dict(vocab_size="many"), "vocab_size is 'many'; it must be a number"),
        (dict(rms_norm_eps="1e-5"), "norm_eps is '1e-5'; it must be a number"),
        (dict(rms_norm_eps=-1e-5), "norm_eps is -1e-05; it must be a number from 0"),
        (dict(vocab_size=-1), "vocab_size is -1; it must be a number from 0"),
        (dict(no_rope_layer_interval=0), "not as transformers writes it"),
        (dict(no_rope_layers={"a": 1}), "not as transformers writes it"),
    ],
)
def test_a_field_of_another_type_is_one_line(wrong, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | wrong))
    with pytest.raises(InputError) as error:
        read_config(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/config.json: {message}")
    assert "\n" not in str(error.value)


# What the published config.json says, of the sizes aside.
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, rope_type="llama3")
YARN8 = dict(rope_type="yarn", factor=8.0, attention_factor=1.2079, beta_fast=32.0, beta_slow=1.0)
PUBLISHED = {
    "deepseek-coder-1.3b": dict(
        rope_scaling=dict(factor=4.0, type="linear"), rope_theta=100000, pretraining_tp=1
    ),
    "Llama-3.2-1B": dict(
        rope_scaling=LLAMA3 | dict(original_max_position_embeddings=32),
        rope_theta=500000.0,
        tie_word_embeddings=True,
        num_key_value_heads=2,
        head_dim=16,
        rms_norm_eps=1e-5,
    ),
    "Qwen2.5 with yarn": dict(
        model_type="qwen2",
        rope_scaling=dict(factor=4.0, original_max_position_embeddings=32, type="yarn"),
        rope_theta=1000000.0,
        use_sliding_window=False,
        sliding_window=131072,
        max_window_layers=28,
        num_key_value_heads=2,
    ),
    "Mistral-7B-v0.1": dict(
        model_type="mistral", sliding_window=12, num_key_value_heads=2, rope_theta=10000.0
    ),
    "Yarn-Mistral-7b-128k": dict(
        model_type="mistral",
        sliding_window=1024,
        num_key_value_heads=2,
        rope_scaling=dict(
            type="yarn", factor=16.0, finetuned=True, original_max_position_embeddings=32
        ),
    ),
    "SmolLM3-3B": dict(
        model_type="smollm3",
        no_rope_layer_interval=4,
        no_rope_layers=[1, 1, 1, 0],
        rope_theta=5000000.0,
        num_key_value_heads=2,
        use_sliding_window=False,
        sliding_window=None,
        max_window_layers=28,
        pad_token_id=4,
        bos_token_id=None,
        eos_token_id=5,
    ),
    "Olmo-3-7B": dict(
        model_type="olmo3",
        sliding_window=12,
        rope_theta=500000,
        rope_scaling=YARN8 | dict(original_max_position_embeddings=32),
        num_key_value_heads=4,
        attention_bias=False,
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_computes_what_transformers_computes(name, tmp_path):
    """Packed logits and sampled log-probs, by definitions and by accelerators; then what we save."""
    hf = LLAMA | PUBLISHED[name]
    theirs = reference(hf)
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs/config.json").write_text(json.dumps(hf))
    model = from_pretrained(tmp_path / "theirs")
    model.source = None  # else the file is kept as it is
    save_pretrained(model, tmp_path / "ours")
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(saved) is type(theirs) and from_pretrained(tmp_path / "ours").config == model.config

    draw = torch.Generator().manual_seed(0)
    documents = [torch.randint(60, (n,), generator=draw).tolist() for n in (41, 5, 13)]
    expected = [theirs(torch.tensor([ids])).logits[0] for ids in documents]
    close(saved(torch.tensor(documents[:1])).logits[0], expected[0], 1e-5)
    for mode in ("plain", "fast"):
        choice = kernels.use(mode, Setting(model.config))
        assert not choice.set_aside
        hidden = model(torch.tensor(sum(documents, [])), Layout([41, 5, 13]))
        close(model.logits(hidden), torch.cat(expected), 1e-5)
        groups = generate(model, Ids(), documents, Sampling(2, 1.0, 1.0, 12, max_rows=4))
        for ids, group in zip(documents, groups, strict=True):
            for sample in group:
                logits = theirs(torch.tensor([ids + sample.ids])).logits[0, len(ids) - 1 : -1]
                logprobs = logits.log_softmax(-1)[range(len(sample.ids)), sample.ids]
                close(torch.tensor(sample.logprobs), logprobs, 1e-5)


def reference(hf: dict):
    """The model of transformers with random weights of every tensor."""
    fields = {"num_key_value_heads": hf["num_attention_heads"], **hf}
    config = transformers.AutoConfig.for_model(**fields)
    torch.manual_seed(1)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    for weight in theirs.parameters():
        noise = torch.randn(weight.shape)
        weight.copy_(noise * weight.shape[-1] ** -0.5 if weight.dim() == 2 else 1 + 0.3 * noise)
    return theirs


def test_the_written_config_names_the_layers():
    smollm3 = config_to_hf(config_from_hf(LLAMA | dict(model_type="smollm3")), torch.float32)
    assert smollm3["architectures"] == ["SmolLM3ForCausalLM"]
    assert smollm3["no_rope_layers"] == [1, 1, 1, 0] and smollm3["tie_word_embeddings"]
    olmo3 = config_to_hf(config_from_hf(LLAMA | dict(model_type="olmo3")), torch.float32)
    assert olmo3["layer_types"] == ["sliding_attention"] * 3 + ["full_attention"]
    assert olmo3["sliding_window"] == 4096 and olmo3["rope_theta"] == 500_000
    llama = config_to_hf(config_from_hf(LLAMA), torch.float32)
    assert not {"layer_types", "sliding_window", "no_rope_layers"} & llama.keys()
