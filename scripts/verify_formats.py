"""Loads folders that `write_formats` wrote with the runtimes they are for, and compares logits with the pruned model's.

    verify_formats.py hf DIR      transformers + torch: with and without cache, then greedy text by generate()
    verify_formats.py gguf DIR    llama.cpp, through llama-cpp-python
    verify_formats.py read DIR    only the `gguf` package: keys, names and shapes of the GGUF files
    verify_formats.py say FILE PROMPT TOKENS    the text by which llama.cpp goes on from a prompt, greedily
    verify_formats.py eight F32 Q8_0 OWN        whether our q8_0 file holds what llama.cpp's quantiser makes of our f32 file;
                                                writes that to OWN

Beside each folder NAME lies NAME.safetensors with ids and logits. Exits 1 where one differs by more than its number format
allows: 1e-4 of the logits' scale for f32, 2e-2 for 16 bits. Eight bits are left to a real model.
"""

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def allowed(name: str, scale: float) -> float:
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
    model = llama(folder / "model.gguf", 64)
    model.eval(ids.tolist())
    found = np.array(model.scores[: len(ids)])
    model.close()
    return compare(folder.name, "llama.cpp", expected, found, allowed(folder.name, float(np.abs(expected).max())))


def llama(file: Path, context: int):
    """Returns a model with keys and values in f32, so that nothing but its file is rounded."""
    import llama_cpp

    f32 = llama_cpp.GGML_TYPE_F32
    return llama_cpp.Llama(str(file), n_ctx=context, n_batch=context, logits_all=True, verbose=False, n_threads=2, type_k=f32, type_v=f32)


def say(file: Path, prompt: str, tokens: int) -> str:
    return llama(file, 256)(prompt, max_tokens=tokens, temperature=0.0, top_k=1)["choices"][0]["text"]


def eight(f32: Path, ours: Path, own: Path) -> bool:
    import ctypes

    import llama_cpp
    from gguf import GGUFReader

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    if llama_cpp.llama_model_quantize(str(f32).encode(), str(own).encode(), ctypes.byref(options)) != 0:
        sys.exit("llama.cpp's quantiser refuses our f32 file")
    found, wanted = ({tensor.name: tensor for tensor in GGUFReader(file).tensors} for file in (ours, own))
    if {name: t.tensor_type for name, t in found.items()} != {name: t.tensor_type for name, t in wanted.items()}:
        sys.exit("names or types of tensors differ from those of llama.cpp's quantiser")
    bytes_in_all = sum(tensor.data.size for tensor in wanted.values())
    equal = sum(int((tensor.data == wanted[name].data).sum()) for name, tensor in found.items())
    # Halves are rounded away from zero there, to even here.
    share = equal / bytes_in_all
    print(f"q8_0: {share:.6%} of the bytes are those of llama.cpp's quantiser")
    return share > 0.999


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
    if mode == "say":
        print(say(place, sys.argv[3], int(sys.argv[4])))
        return
    if mode == "eight":
        sys.exit(0 if eight(*map(Path, sys.argv[2:5])) else 1)
    check = {"hf": hf, "gguf": gguf, "read": read}[mode]
    good, count = True, 0
    for file in sorted(place.glob("*.safetensors")):
        folder = file.with_suffix("")
        if (mode == "hf") != folder.name.endswith("-hf"):
            continue
        if mode == "gguf" and folder.name.endswith("-q8_0"):
            continue
        tensors = load_file(file)
        good &= check(folder, tensors["ids"], tensors["logits"])
        count += 1
    print(f"{count} folders: {'all equal' if good and count else 'NOT ALL EQUAL'}")
    sys.exit(0 if good and count else 1)


if __name__ == "__main__":
    main()
