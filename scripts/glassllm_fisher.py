"""What the Fisher of glassllm-en says of a removal, by differences of logits: no gradients and no Kronecker factors.

On text drawn from the model the expected rise of the loss is the divergence KL(p ‖ p of the pruned model), and ½ δᵀ F δ is
half the variance, under p, of how the logits move with δ, to first order. Both have no noise from the drawn tokens. Signs
that are drawn for each sequence and layer remove what different layers share, as a block-diagonal F does; signs drawn for each
token as well remove what different tokens of a sequence share, as a sum of g gᵀ ⊗ x xᵀ over tokens does. What then is left
between that and the program's prediction is G ⊗ A for the mean of the products, and damping.
"""

import json

import numpy as np

from glassllm import Glassllm, probabilities, read_tensors

STEP = 0.05
BATCH = 20
DRAWS = 2


def moves(dense, folder):
    """Returns Δ of every layer that a run changed, in the shapes of the dense model."""
    old, new = dense.tensors, read_tensors(folder)
    changed = {name: new[name] - w for name, w in old.items() if name.endswith("proj.weight") and new[name].shape == w.shape}
    report = json.loads((folder / "pruning_report.json").read_text())
    for layer in report["kept"]:
        if layer["kind"] not in ("ffn-channel", "kv-group"):
            continue
        # consumers alone change; what is removed from producers then goes for free
        name = f"{layer['layer']}.weight"
        columns = dense.head_dim * dense.heads // dense.kv_heads if layer["kind"] == "kv-group" else 1
        kept = np.add.outer(np.array(layer["kept"], int) * columns, np.arange(columns)).ravel()
        changed[name] = -old[name]
        changed[name][:, kept] += new[name][:, : len(kept)]
        for producer in {"kv-group": ["q_proj", "k_proj", "v_proj"], "ffn-channel": ["gate_proj", "up_proj"]}[layer["kind"]]:
            changed.pop(name.replace("o_proj", producer).replace("down_proj", producer), None)
    return {name: delta.astype(np.float32) for name, delta in changed.items() if delta.any()}


def examine(dense, folder, ids_bt):
    """Returns, in nats per token: KL, and ½ δᵀ F δ of all of F, of its blocks, and of single tokens."""
    delta, pruned = moves(dense, folder), Glassllm(folder)
    rng = np.random.default_rng(0)
    sums = {"kl": [], "fisher": [], "blocks": [], "tokens": []}
    for at in range(0, len(ids_bt), BATCH):
        ids = ids_bt[at : at + BATCH]

        def logits(model, epsilon=None, signs=None):
            """The logits at `epsilon` along δ, with `signs` of this shape in front of each layer's."""
            model.moves = {}
            if epsilon:
                draw = lambda: 1.0 if signs is None else rng.choice(np.float32([-1, 1]), signs)
                model.moves = {name: (d, epsilon * draw()) for name, d in delta.items()}
            found = model.logits(ids, model.cache(len(ids)))[:, :-1]
            model.moves = {}
            return found

        z = logits(dense)
        p = probabilities(z)
        change = centred(logits(pruned) - z, p)
        # log of the mean of exp(change) under p: accurate where the change is small
        sums["kl"].append(np.log1p((p * np.expm1(change)).sum(-1, dtype=np.float64)).mean())
        for name, signs in (("fisher", None), ("blocks", (len(ids), 1, 1)), ("tokens", (*ids.shape, 1))):
            for _ in range(1 if signs is None else DRAWS):
                state = rng.bit_generator.state
                up = logits(dense, STEP, signs)
                rng.bit_generator.state = state  # the same signs again
                slope = centred((up - logits(dense, -STEP, signs)) / (2 * STEP), p)
                sums[name].append(0.5 * (p * slope**2).sum(-1, dtype=np.float64).mean())
    return {name: float(np.mean(values)) for name, values in sums.items()}


def centred(change, p):
    """Returns the change of the logits less its mean under p."""
    return change - (p * change).sum(-1, keepdims=True)
