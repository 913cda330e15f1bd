"""Converts the English model of PyPI's glassllm (MIT) to a Hugging Face folder of the Llama family.

    convert_glassllm.py WHEEL DESTINATION

A really trained Llama-style model small enough for tests: 852,608 parameters, 4 blocks, hidden 128, 4 heads of 32, 2 kv
heads, FFN 341 (no multiple of 4), vocabulary 1024, context 128. The package stores matrices as [C, R] and rotates adjacent
pairs; Hugging Face wants [R, C] and the two halves. The weights are float16 in the package and stay so.

Its tokenizer is BPE over characters, with spaces as U+2581 and words that keep their leading space: `tokenizers` can say
all of that. One difference: "<pad>", "<unk>", "<bos>" and "<eos>" written out in a text are special tokens here, plain
characters there. Needs numpy and safetensors, no torch. The same input gives the same bytes.
"""

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np

from hf_folder import bpe_tokenizer, half_split_rotary, write_folder

SPACE = "\u2581"
SPECIALS = ["<pad>", "<unk>", "<bos>", "<eos>"]

# Name in the package (without "blocks.N.") -> Hugging Face name (without "model.layers.N.").
BLOCK_TENSORS = {
    "norm1.gamma": "input_layernorm.weight",
    "attn.W_Q": "self_attn.q_proj.weight",
    "attn.W_K": "self_attn.k_proj.weight",
    "attn.W_V": "self_attn.v_proj.weight",
    "attn.W_O": "self_attn.o_proj.weight",
    "norm2.gamma": "post_attention_layernorm.weight",
    "ffn.W1": "mlp.gate_proj.weight",
    "ffn.W3": "mlp.up_proj.weight",
    "ffn.W2": "mlp.down_proj.weight",
}

CARD = """---
license: mit
---
# glassllm-en

Made by llm-surgeon's `scripts/convert_glassllm.py` from `glassllm/weights/en.npz` in the PyPI package `glassllm` 0.1.0 (MIT).
A model for tests: really trained, on 229,390 tokens of English, and of no use beyond showing that numbers are right.
"""


def make_config(package: dict, ffn: int) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": SPECIALS.index("<bos>"),
        "eos_token_id": SPECIALS.index("<eos>"),
        "head_dim": package["d_model"] // package["n_heads"],
        "hidden_act": "silu",
        "hidden_size": package["d_model"],
        "initializer_range": package["init_std"],
        "intermediate_size": ffn,
        "max_position_embeddings": package["max_len"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": package["n_heads"],
        "num_hidden_layers": package["n_layers"],
        "num_key_value_heads": package["n_kv_heads"],
        "pad_token_id": SPECIALS.index("<pad>"),
        "rms_norm_eps": package["eps"],
        "rope_scaling": None,
        "rope_theta": package["rope_base"],
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": package["vocab_size"],
    }


def make_tensors(weights, config: dict) -> dict[str, np.ndarray]:
    rotary_heads = {"attn.W_Q": config["num_attention_heads"], "attn.W_K": config["num_key_value_heads"]}
    tensors = {"model.embed_tokens.weight": weights["E"], "model.norm.weight": weights["norm_f.gamma"]}
    for block in range(config["num_hidden_layers"]):
        for theirs, ours in BLOCK_TENSORS.items():
            weight = weights[f"blocks.{block}.{theirs}"].T
            if theirs in rotary_heads:
                weight = half_split_rotary(weight, rotary_heads[theirs])
            tensors[f"model.layers.{block}.{ours}"] = np.ascontiguousarray(weight)
    return tensors


def make_tokenizer(alphabet: list[str], merges: list[list[str]]) -> dict:
    # Where two merges spell the same token, the later one's id counts, as in the package.
    vocabulary = {token: i for i, token in enumerate(SPECIALS + alphabet + [a + b for a, b in merges])}
    words = "\n|" + SPACE + "*[^" + SPACE + "\n]+|" + SPACE + "+"
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    parts = {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, spaces]},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False},
        "decoder": {
            "type": "Sequence",
            "decoders": [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "Fuse"}],
        },
    }
    special = {token: i for i, token in enumerate(SPECIALS)}
    return bpe_tokenizer(vocabulary, [f"{a} {b}" for a, b in merges], special, "<unk>", parts)


def main() -> None:
    wheel, destination = Path(sys.argv[1]), Path(sys.argv[2])
    with zipfile.ZipFile(wheel) as archive:
        weights = np.load(io.BytesIO(archive.read("glassllm/weights/en.npz")))
        tokenizer = json.loads(archive.read("glassllm/weights/en.tokenizer.json"))
        licence_name = next(name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE"))
        licence = archive.read(licence_name).decode("utf-8")
    config = make_config(json.loads(str(weights["__config__"])), weights["blocks.0.ffn.W1"].shape[1])
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
    }
    documents = {
        "config.json": config,
        "generation_config.json": {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "tokenizer.json": make_tokenizer(tokenizer["alphabet"], tokenizer["merges"]),
        "tokenizer_config.json": tokenizer_config,
        "special_tokens_map.json": special,
    }
    write_folder(destination, make_tensors(weights, config), documents, {"LICENSE": licence, "README.md": CARD})


if __name__ == "__main__":
    main()
