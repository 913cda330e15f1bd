#!/usr/bin/env python3
"""Writes tiny random models with what an independent implementation computes from them.

    python testdata/make_golden.py [--out testdata/golden]

needs scripts/requirements/golden.txt. Each folder is a Hugging Face model and holds besides

    expected.safetensors    ids [b, t], logits [b, t, v] of transformers in f32, eager attention
    factors.safetensors     (llama-gqa, opt) ids, loss (mean negative log-likelihood per target, nats) and, in f64 by
                            autograd: A:<layer> = mean over tokens of x xT (a bias is a last 1) and G:<layer> = mean over
                            tokens of g gT, where g is the gradient of the loss summed over all targets
                            (o_proj / out_proj and down_proj / fc2 of every block; every linear layer of block 0)

The result is committed. Run it again only to change the set, and review the difference.
"""

import argparse
import json
import pathlib
import shutil

import torch
import transformers
from safetensors.torch import save_file
from transformers.models.llama import modeling_llama

VOCABULARY = 96
COMMON = dict(vocab_size=VOCABULARY, num_hidden_layers=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0)


def models():
    """Yields name, config and how to store it."""
    yield "llama-gqa", transformers.LlamaConfig(
        **COMMON, hidden_size=24, intermediate_size=32, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False), {}
    yield "llama-tied-llama3", transformers.LlamaConfig(
        **{**COMMON, "eos_token_id": [2, 3]}, hidden_size=32, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, head_dim=12,
        tie_word_embeddings=True, rms_norm_eps=1e-5,
        rope_parameters=dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)), {"old_keys": True}
    yield "llama-bias", transformers.LlamaConfig(
        **COMMON, hidden_size=32, intermediate_size=40, num_attention_heads=4, num_key_value_heads=4, attention_bias=True, mlp_bias=True,
        tie_word_embeddings=False), {"dtype": torch.float16}
    yield "mistral", transformers.MistralConfig(
        **COMMON, hidden_size=32, intermediate_size=56, num_attention_heads=4, num_key_value_heads=1, sliding_window=None, tie_word_embeddings=False), {"dtype": torch.bfloat16}
    yield "qwen2", transformers.Qwen2Config(
        **COMMON, hidden_size=32, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="linear", rope_theta=1000.0, factor=2.0)), {}
    yield "qwen3", transformers.Qwen3Config(
        **{**COMMON, "num_hidden_layers": 3}, hidden_size=32, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, head_dim=12,
        tie_word_embeddings=False), {"shard": "40KB"}
    yield "opt", transformers.OPTConfig(
        **COMMON, hidden_size=24, ffn_dim=32, num_attention_heads=4, word_embed_proj_dim=24, tie_word_embeddings=True, dropout=0.0), {}


def randomise(model, generator):
    """Gives every parameter values that matter: a dropped bias, norm or position shows in the logits."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1 and name.endswith("weight"):
            parameter.data = 1 + 0.3 * noise
        elif parameter.dim() == 1:
            parameter.data = 0.3 * noise
        elif "embed" in name:
            parameter.data = 0.7 * noise
        else:
            parameter.data = noise * 1.2 / parameter.shape[1] ** 0.5
    model.tie_weights()


def use_old_keys(folder):
    """Rewrites a config as transformers 4 and older wrote it."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    config["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2) + "\n")


def write(out, name, config, generator, dtype=torch.float32, shard="1GB", old_keys=False):
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    randomise(model, generator)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if old_keys:
        use_old_keys(folder)

    # What is stored, not what was in memory: numbers are rounded to the stored format by now.
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.randint(3, VOCABULARY, (2, 20), generator=generator)
    with torch.no_grad():
        logits = model(ids).logits
    print(f"{name:20} logits std {logits.std():.3f}, max {logits.abs().max():.3f}")
    save_file({"ids": ids, "logits": logits.contiguous()}, folder / "expected.safetensors")
    return folder, model


def rms_norm_f64(self, x):
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def rotary_f64(self, x, position_ids):
    size = self.config.hidden_size // self.config.num_attention_heads
    frequency = 1.0 / self.config.rope_parameters["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    angle = position_ids[..., None].double() * frequency
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def factors(folder, model, generator):
    """Writes A and G of a model by hooks and autograd, all in f64 (transformers' norms, rotary and eager softmax fall back to f32)."""
    modeling_llama.LlamaRMSNorm.forward = rms_norm_f64
    modeling_llama.LlamaRotaryEmbedding.forward = rotary_f64
    model.set_attn_implementation("sdpa")
    model = model.double()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    consumers = ("o_proj", "out_proj", "down_proj", "fc2")
    wanted = {name: module for name, module in model.named_modules()
              if isinstance(module, torch.nn.Linear) and ".layers." in name and (".layers.0." in name or name.endswith(consumers))}
    inputs, outputs = {}, {}

    def hook(name):
        def record(_module, x, y):
            inputs[name] = x[0].detach()
            y.retain_grad()
            outputs[name] = y
        return record

    handles = [module.register_forward_hook(hook(name)) for name, module in wanted.items()]
    ids = torch.randint(3, VOCABULARY, (3, 16), generator=generator)
    logits = model(ids).logits
    targets = ids[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), targets.reshape(-1), reduction="sum")
    loss.backward()
    for handle in handles:
        handle.remove()

    tensors = {"ids": ids, "loss": (loss / targets.numel()).detach()}
    for name, module in wanted.items():
        x = inputs[name].reshape(-1, module.in_features)
        if module.bias is not None:
            x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
        g = outputs[name].grad.reshape(-1, module.out_features)
        tensors[f"A:{name}"] = x.T @ x / ids.numel()
        tensors[f"G:{name}"] = g.T @ g / ids.numel()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "factors.safetensors")
    print(f"{'':20} loss {tensors['loss']:.6f}, {len(wanted)} layers")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "golden")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    written = []
    for seed, (name, config, storage) in enumerate(models()):
        generator = torch.Generator().manual_seed(seed)
        written.append((name, generator, *write(out, name, config, generator, **storage)))
    # Last, because it changes transformers' classes.
    for name, generator, folder, model in written:
        if name in ("llama-gqa", "opt"):
            factors(folder, model, generator)


if __name__ == "__main__":
    main()
