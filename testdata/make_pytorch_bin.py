#!/usr/bin/env python3
"""Writes a tiny OPT as torch.save stores it, whole and in shards, and the same tensors as safetensors.

    python testdata/make_pytorch_bin.py [--out testdata/pytorch_bin]

needs scripts/requirements/golden.txt. `whole` and `sharded` hold the model as pytorch_model.bin; `plain` holds the same
tensors, contiguous and each on its own, as model.safetensors. The state dict has what occurs in the wild: float16 and
bfloat16 beside float32, a head that shares the embedding's storage, a transposed view, slices of one storage,
parameters, and `_metadata`.
"""

import argparse
import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file

HIDDEN, FFN, VOCABULARY, POSITIONS = 8, 12, 16, 10
CONFIG = dict(
    model_type="opt", architectures=["OPTForCausalLM"], hidden_size=HIDDEN, ffn_dim=FFN, num_hidden_layers=1, num_attention_heads=2,
    vocab_size=VOCABULARY, max_position_embeddings=POSITIONS, word_embed_proj_dim=HIDDEN, do_layer_norm_before=True,
    activation_function="relu", tie_word_embeddings=True, bos_token_id=2, eos_token_id=2, pad_token_id=1, torch_dtype="float16")


def state_dict():
    """Returns the tensors by name; `_metadata` is that of a module."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape, dtype=torch.float16):
        return torch.randn(*shape, generator=generator).mul(0.3).to(dtype)

    holder = torch.nn.Module()
    state = holder.state_dict()
    embedding = random(VOCABULARY, HIDDEN)
    state["decoder.version"] = torch.tensor([3.0])
    state["decoder.embed_tokens.weight"] = embedding
    state["decoder.embed_positions.weight"] = random(POSITIONS + 2, HIDDEN)
    for norm in ("decoder.final_layer_norm", "decoder.layers.0.self_attn_layer_norm", "decoder.layers.0.final_layer_norm"):
        state[f"{norm}.weight"] = 1 + random(HIDDEN, dtype=torch.bfloat16)
        state[f"{norm}.bias"] = random(HIDDEN, dtype=torch.bfloat16)
    together = random(3, HIDDEN, HIDDEN)
    for i, part in enumerate(("q_proj", "k_proj", "v_proj")):
        state[f"decoder.layers.0.self_attn.{part}.weight"] = together[i]
        state[f"decoder.layers.0.self_attn.{part}.bias"] = random(HIDDEN)
    state["decoder.layers.0.self_attn.out_proj.weight"] = random(HIDDEN, HIDDEN, dtype=torch.float32)
    state["decoder.layers.0.self_attn.out_proj.bias"] = random(HIDDEN, dtype=torch.float32)
    state["decoder.layers.0.fc1.weight"] = random(HIDDEN, FFN).t()
    state["decoder.layers.0.fc1.bias"] = torch.nn.Parameter(random(FFN))
    state["decoder.layers.0.fc2.weight"] = torch.nn.Parameter(random(HIDDEN, FFN))
    state["decoder.layers.0.fc2.bias"] = random(HIDDEN)
    state["lm_head.weight"] = embedding
    return state


def folder(out, name):
    path = out / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "pytorch_bin")
    out = parser.parse_args().out
    state = state_dict()
    torch.save(state, folder(out, "whole") / "pytorch_model.bin")

    sharded = folder(out, "sharded")
    names = list(state)
    places = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2:]), 1):
        shard = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: state[name] for name in part}, sharded / shard)
        places.update(dict.fromkeys(part, shard))
    index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": places}
    (sharded / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")

    tensors = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    save_file(tensors, folder(out, "plain") / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
