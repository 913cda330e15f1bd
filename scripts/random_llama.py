"""Writes a tiny random Llama with six heads of 16 and hidden size 96, with the tokenizer of another folder.

    random_llama.py TOKENIZER_FOLDER DESTINATION

For checking what glassllm cannot show: without one of its heads the hidden size is no multiple of the head count, which
transformers' Llama refuses, so that the result must be written in another form. Same call, same bytes.
"""

import json
import sys
from pathlib import Path

import numpy as np

from hf_folder import write_folder

HIDDEN, HEADS, HEAD_DIM, FFN, BLOCKS = 96, 6, 16, 64, 2


def main() -> None:
    source, destination = Path(sys.argv[1]), Path(sys.argv[2])
    names = ("config.json", "tokenizer.json", "tokenizer_config.json")
    documents = {name: json.loads((source / name).read_text(encoding="utf-8")) for name in names}
    config = documents["config.json"]
    config.update(hidden_size=HIDDEN, num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=HEAD_DIM)
    config.update(intermediate_size=FFN, num_hidden_layers=BLOCKS, torch_dtype="float32")

    random = np.random.default_rng(0)
    shapes = {"model.embed_tokens": (config["vocab_size"], HIDDEN)}
    tensors = {"model.norm.weight": np.ones(HIDDEN, dtype=np.float32)}
    for block in (f"model.layers.{i}" for i in range(BLOCKS)):
        shapes.update({f"{block}.self_attn.{name}_proj": (HEADS * HEAD_DIM, HIDDEN) for name in "qkv"})
        shapes[f"{block}.self_attn.o_proj"] = (HIDDEN, HEADS * HEAD_DIM)
        shapes.update({f"{block}.mlp.{name}_proj": (FFN, HIDDEN) for name in ("gate", "up")})
        shapes[f"{block}.mlp.down_proj"] = (HIDDEN, FFN)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{block}.{norm}.weight"] = np.ones(HIDDEN, dtype=np.float32)
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = (random.standard_normal(shape) * 0.1).astype(np.float32)
    write_folder(destination, tensors, documents, {})


if __name__ == "__main__":
    main()
