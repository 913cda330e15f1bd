"""Loads folders that `write_formats` wrote with the runtimes they are for, and compares logits with the pruned model's.

    verify_formats.py hf DIR      transformers + torch: with and without cache, then greedy text by generate()
    verify_formats.py gguf DIR    llama.cpp, through llama-cpp-python
    verify_formats.py read DIR    only the `gguf` package: keys, names and shapes of the GGUF files

Beside each folder NAME lies NAME.safetensors with ids and logits. Exits 1 where one differs by more than its number format
allows: 1e-4 of the logits' scale for f32, 2e-2 for 16 bits, 2e-1 for 8. For llama.cpp 1e-3 at least, because its own sums
are in other orders and number formats.
"""

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def allowed(name: str, scale: float) -> float:
    if name.endswith("-q8_0"):
        return 2e-1 * scale
    # The base models of these are stored in 16 bits, which a GGUF file of f32 begins with.
    rounded = name.endswith("-f16") or (name.endswith("-f32") and name.startswith(("mistral", "llama-bias")))
    return (2e-2 if rounded else 1e-4) * max(scale, 1.0)


def compare(name: str, what: str, expected: np.ndarray, found: np.ndarray, limit: float) -> bool:
    difference = float(np.abs(found - expected).max())
    equal = difference <= limit
    print(f"{name}: {what}: largest difference of a logit {difference:.1e} of {np.abs(expected).max():.2f}: {'ok' if equal else 'DIFFERENT'}")
    return equal


def hf(folder: Path, ids: np.ndarray, expected: np.ndarray) -> bool:
    import torch
    from transformers import AutoModelForCausalLM

    own_code = (folder / "modeling_per_layer.py").exists()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=own_code).eval()
    batch = torch.from_numpy(ids)[None]
    limit = allowed(folder.name, float(np.abs(expected).max()))
    with torch.no_grad():
        whole = model(batch, use_cache=False).logits[0].numpy()
        cache, steps = None, []
        for at in range(batch.shape[1]):
            out = model(batch[:, at : at + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits[0].numpy())
        text = model.generate(batch[:, :4], max_new_tokens=4, do_sample=False)
    good = compare(folder.name, "transformers", expected, whole, limit)
    good &= compare(folder.name, "token by token", expected, np.concatenate(steps), limit)
    return good and text.shape[1] > 4


def gguf(folder: Path, ids: np.ndarray, expected: np.ndarray) -> bool:
    from llama_cpp import Llama

    model = Llama(str(folder / "model.gguf"), n_ctx=64, logits_all=True, verbose=False, n_threads=2)
    model.eval(ids.tolist())
    found = np.array(model.scores[: len(ids)])
    limit = max(allowed(folder.name, float(np.abs(expected).max())), 1e-3)
    return compare(folder.name, "llama.cpp", expected, found, limit)


def read(folder: Path, ids: np.ndarray, expected: np.ndarray) -> bool:
    from gguf import GGUFReader

    del ids, expected  # llama.cpp is needed to compute logits
    reader = GGUFReader(folder / "model.gguf")
    text = lambda key: bytes(reader.fields[key].parts[reader.fields[key].data[0]]).decode()
    architecture = text("general.architecture")
    wanted = "deci" if "per-layer" in folder.name else {"mistral": "llama"}.get(folder.name.split("-")[0], folder.name.split("-")[0])
    shapes = {tensor.name: [int(size) for size in reversed(tensor.shape)] for tensor in reader.tensors}
    field = lambda key: reader.fields[f"{architecture}.{key}"]
    numbers = lambda key: [int(field(key).parts[at][0]) for at in field(key).data]
    blocks, channels = numbers("block_count")[0], numbers("feed_forward_length")
    heads, key_length = numbers("attention.head_count_kv"), numbers("attention.key_length")[0]
    hidden = numbers("embedding_length")[0]
    each = lambda values, block: values[block if len(values) > 1 else 0]
    faults = [] if architecture == wanted else [f"architecture {architecture}, expected {wanted}"]
    for block in range(blocks):
        expected_shapes = {
            f"blk.{block}.ffn_down.weight": [hidden, each(channels, block)],
            f"blk.{block}.ffn_gate.weight": [each(channels, block), hidden],
            f"blk.{block}.attn_k.weight": [each(heads, block) * key_length, hidden],
        }
        faults += [f"{name} is {shapes.get(name)}, the keys say {shape}" for name, shape in expected_shapes.items() if shapes.get(name) != shape]
    tokens = len(reader.fields["tokenizer.ggml.tokens"].data)
    if shapes["token_embd.weight"] != [tokens, hidden]:
        faults.append(f"token_embd.weight is {shapes['token_embd.weight']} for {tokens} tokens")
    print(f"{folder.name}: {architecture}, {len(shapes)} tensors: {'; '.join(faults) or 'ok'}")
    return not faults


def main() -> None:
    mode, place = sys.argv[1], Path(sys.argv[2])
    check = {"hf": hf, "gguf": gguf, "read": read}[mode]
    good, count = True, 0
    for file in sorted(place.glob("*.safetensors")):
        folder = file.with_suffix("")
        if (mode == "hf") != folder.name.endswith("-hf"):
            continue
        tensors = load_file(file)
        good &= check(folder, tensors["ids"], tensors["logits"])
        count += 1
    print(f"{count} folders: {'all equal' if good and count else 'NOT ALL EQUAL'}")
    sys.exit(0 if good and count else 1)


if __name__ == "__main__":
    main()
