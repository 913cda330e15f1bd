"""glassllm-en in numpy: its logits, and text sampled from it, which is the one text on which it is at its minimum.

A sequence is as long as the model's context and has no BOS, as the model was trained on windows that begin anywhere. Each
begins with the token that the model would have added to the one before, as the package's own generation does where the
context ends; the first of each chain begins at a line's end and is thrown away. So each next token of a sequence, but the
first token, is a draw from the model at temperature 1.

The text is written twice: as token ids in decimal, with a folder whose tokenizer reads such ids (`ids.jsonl`, `model`), and
decoded (`text.jsonl`). Decoded text comes back from the model's own tokenizer as other tokens here and there, and from then
on at other places of the context; ids come back as they were drawn.
"""

import hashlib
import json
import pathlib
import shutil
import sys

import numpy as np

SETS = {"calibration": (1, 3200), "heldout": (2, 800)}  # seed, sequences
CHAINS = 400


class Glassllm:
    """The weights and the forward pass of a folder of the Llama family, in f32."""

    def __init__(self, folder):
        self.folder = folder
        self.config = config = json.loads((folder / "config.json").read_text())
        self.tensors = {name: tensor.astype(np.float32) for name, tensor in read_tensors(folder).items()}
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.head_dim, self.context = config["head_dim"], config["max_position_embeddings"]
        frequencies = config["rope_theta"] ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        angles = np.outer(np.arange(self.context), np.tile(frequencies, 2))
        # by name of a layer: Δ and ε, a number or [batch, tokens, 1]; the layer computes x Wᵀ + ε x Δᵀ
        self.moves = {}
        self.rotary = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def cache(self, batch):
        """Returns room for the keys and values of every block, each [batch, kv heads, context, head size]."""
        shape = (batch, self.kv_heads, self.context, self.head_dim)
        blocks = range(self.config["num_hidden_layers"])
        return [(np.empty(shape, np.float32), np.empty(shape, np.float32)) for _ in blocks]

    def logits(self, ids_bt, cache, start=0):
        """Returns the logits, [batch, tokens, vocabulary], of tokens that follow the `start` ones in the cache."""
        x = self.tensors["model.embed_tokens.weight"][ids_bt]
        for block, keys_and_values in enumerate(cache):
            name = f"model.layers.{block}."
            linear = lambda x, layer: self.linear(x, f"{name}{layer}.weight")
            h = self.norm(x, self.tensors[f"{name}input_layernorm.weight"])
            x = x + linear(self.attention(h, linear, keys_and_values, start), "self_attn.o_proj")
            h = self.norm(x, self.tensors[f"{name}post_attention_layernorm.weight"])
            gate = linear(h, "mlp.gate_proj")
            x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, "mlp.up_proj"), "mlp.down_proj")
        return self.norm(x, self.tensors["model.norm.weight"]) @ self.tensors["model.embed_tokens.weight"].T

    def linear(self, x, name):
        y = x @ self.tensors[name].T
        if name in self.moves:
            delta, epsilon = self.moves[name]
            y += epsilon * (x @ delta.T)
        return y

    def norm(self, x, weight):
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + self.config["rms_norm_eps"]) * weight

    def attention(self, h, linear, keys_and_values, start):
        batch, tokens, _ = h.shape
        end = start + tokens
        cos, sin = (table[start:end] for table in self.rotary)

        def split(name, heads):
            return linear(h, name).reshape(batch, tokens, heads, self.head_dim).swapaxes(1, 2)

        def rotated(x):
            low, high = np.split(x, 2, -1)
            return x * cos + np.concatenate([-high, low], -1) * sin

        keys, values = keys_and_values
        keys[:, :, start:end] = rotated(split("self_attn.k_proj", self.kv_heads))
        values[:, :, start:end] = split("self_attn.v_proj", self.kv_heads)
        group = self.heads // self.kv_heads
        q = rotated(split("self_attn.q_proj", self.heads)).reshape(batch, self.kv_heads, group * tokens, self.head_dim)
        scores = q @ keys[:, :, :end].swapaxes(2, 3) / np.float32(np.sqrt(self.head_dim))
        hidden = np.triu(np.full((tokens, end), -np.inf, np.float32), start + 1)
        weights = probabilities(scores.reshape(batch, self.heads, tokens, end) + hidden)
        mixed = weights.reshape(batch, self.kv_heads, group * tokens, end) @ values[:, :, :end]
        return mixed.reshape(batch, self.heads, tokens, self.head_dim).swapaxes(1, 2).reshape(batch, tokens, -1)


def read_tensors(folder):
    """Returns the tensors of model.safetensors by name."""
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    kinds = {"F16": np.float16, "F32": np.float32}
    at = lambda tensor: data[8 + length + tensor["data_offsets"][0] : 8 + length + tensor["data_offsets"][1]]
    return {name: np.frombuffer(at(t), kinds[t["dtype"]]).reshape(t["shape"]) for name, t in header.items()}


def probabilities(logits):
    """Returns the softmax over the last axis."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def sample(model, seed, sequences):
    """Returns token ids, [sequences, context], the mean -log p of the tokens drawn and the mean entropy, in nats."""
    rng = np.random.default_rng(seed)
    vocabulary = json.loads((model.folder / "tokenizer.json").read_text())["model"]["vocab"]
    first = np.full(CHAINS, vocabulary["\n"])
    kept, surprise, entropy = [], [], []
    for round_ in range(1 + sequences // CHAINS):
        ids = np.empty((CHAINS, model.context + 1), np.int64)
        ids[:, 0] = first
        cache = model.cache(CHAINS)
        for at in range(model.context):
            p = probabilities(model.logits(ids[:, at : at + 1], cache, at)[:, 0].astype(np.float64))
            drawn = (np.cumsum(p, -1) < rng.random((CHAINS, 1))).sum(-1)
            ids[:, at + 1] = np.minimum(drawn, p.shape[-1] - 1)
            if round_ and at + 1 < model.context:
                surprise.append(-np.log(p[np.arange(CHAINS), ids[:, at + 1]]).mean())
                entropy.append(-(p * np.log(np.maximum(p, 1e-300))).sum(-1).mean())
        first = ids[:, -1]
        if round_:
            kept.append(ids[:, :-1])
        print(f"  sampled {round_ * CHAINS} of {sequences} sequences", file=sys.stderr, flush=True)
    # chain after chain, so that text which belongs together stays together
    return np.stack(kept, 1).reshape(-1, model.context), float(np.mean(surprise)), float(np.mean(entropy))


def id_tokenizer(vocabulary):
    """Returns a tokenizer.json for text that is token ids in decimal, with blanks between them."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {str(i): i for i in range(vocabulary)}, "unk_token": "0"},
    }


def prepare(source, folder):
    """Makes the sampled text and its model in `folder`, unless they are there, and returns what is known of them."""
    about = folder / "about.json"
    wanted = {
        "program": digest(pathlib.Path(__file__)),
        "weights": digest(source / "model.safetensors"),
        "numpy": np.__version__,
    }
    if about.exists():
        known = json.loads(about.read_text())
        if known["made_by"] == wanted and all(digest(folder / name) == of for name, of in known["files"].items()):
            return known
    made, folder = folder, folder.with_suffix(".new")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "model").mkdir(parents=True)
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copyfile(source / name, folder / "model" / name)
    model = Glassllm(source)
    (folder / "model" / "tokenizer.json").write_text(json.dumps(id_tokenizer(model.config["vocab_size"])))
    words = {i: word for word, i in json.loads((source / "tokenizer.json").read_text())["model"]["vocab"].items()}
    known = {"made_by": wanted, "files": {}, "sets": {}}
    for name, (seed, sequences) in SETS.items():
        ids_bt, surprise, entropy = sample(model, seed, sequences)
        # a document of at most 1,024 bytes is never cut: every sample and every segment is one drawn sequence
        documents = {"ids": (" ".join(map(str, ids_t)) for ids_t in ids_bt)}
        documents["text"] = ("".join(words[i] for i in chain).replace("\u2581", " ") for chain in ids_bt.reshape(CHAINS, -1))
        for form, texts in documents.items():
            file = folder / f"{name}.{form}.jsonl"
            file.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
            known["files"][file.name] = digest(file)
        known["sets"][name] = {"seed": seed, "tokens": ids_bt.size, "surprise": surprise, "entropy": entropy}
    (folder / about.name).write_text(json.dumps(known, indent=1))
    shutil.rmtree(made, ignore_errors=True)
    folder.rename(made)
    return known


def digest(file):
    """Returns the SHA-256 of a file, in hex."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
