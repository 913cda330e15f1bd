#!/usr/bin/env python3
"""Prints docs/scale.md: what `llm-surgeon plan` says of four well-known shapes on 1, 8 and 64 GPUs.

    python3 scripts/scale_table.py path/to/llm-surgeon > docs/scale.md
"""

import json
import pathlib
import subprocess
import sys
import tempfile

# hidden, blocks, heads, kv heads, ffn, vocabulary
SHAPES = {
    "Llama-2-7B": (4096, 32, 32, 32, 11008, 32000),
    "Llama-3-8B": (4096, 32, 32, 8, 14336, 128256),
    "Llama-3-70B": (8192, 80, 64, 8, 28672, 128256),
    "Llama-3.1-405B": (16384, 126, 128, 8, 53248, 128256),
}
GPUS = (1, 8, 64)
OPTIONS = "--samples 128 --seq-len 2048 --flops 400e12 --network 100e9 --gpu-memory 80GiB"

HEAD = f"""# Scale

What `llm-surgeon plan` says, per shot; made by `scripts/scale_table.py`. Options: `{OPTIONS}`.

Sizes are exact: packed f32 triangles, shared inputs once, and the run's own rule for shards. Seconds are operations over the rate
of plain matrix products, by the shares of it that were measured on a CPU: 0.68 for the sweep (`make bench`), 0.045 for removal
paths. A forecast of the bench's sweep is within a factor of 2 of it (test `a_measured_sweep_is_forecast_within_the_tolerance`); on
a GPU no figure has been measured yet.

The store holds of each block one sum of the shards so far, and shards that came before their turn: at worst one shard's factors
for each GPU, little more than one shard's in all while the GPUs keep pace.

"*lacks*": all weights, activations and one block's factors together do not fit one device. `calibrator --weights stream` has one block's
weights there at a time; these tables are without it.
"""


def config(shape):
    hidden, blocks, heads, kv_heads, ffn, vocabulary = shape
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "hidden_size": hidden, "num_hidden_layers": blocks, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": ffn, "vocab_size": vocabulary,
        "max_position_embeddings": 8192, "rope_theta": 10000.0, "tie_word_embeddings": False,
    }


def table(binary, structure):
    lines = [
        "| model | GPUs | sweep | factors on their way | removal paths | factors a shard | through the network | in the store, at most | a calibrator |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "config.json"
            path.write_text(json.dumps(config(shape)))
            for gpus in GPUS:
                command = [binary, "plan", path, *OPTIONS.split(), "--gpus", gpus, "--structure", structure, "--json"]
                run = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True)
                found = json.loads(run.stdout)
                seconds = [f"{found[f'{stage}_seconds_a_shot']:.0f} s" for stage in ("sweep", "network", "score")]
                size = lambda key: f"{found[key] / 1e9:.1f} GB"
                memory = size("calibrator_bytes")
                if found["lacking_bytes"]:
                    memory += f", *lacks* {found['lacking_bytes'] / 1e9:.0f} GB"
                sizes = [size(f"{what}_bytes_{per}") for what, per in (("factor", "a_shard"), ("traffic", "a_shot"), ("store", "a_shot"))]
                cells = [name, str(gpus), *seconds, *sizes, memory]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    binary = sys.argv[1]
    print(HEAD)
    print("## Units that make tensors smaller (`--structure coupled`)\n")
    print(table(binary, "coupled"))
    print("\n## Single weights, n:m, rows and columns\n")
    print(table(binary, "row-column"))


if __name__ == "__main__":
    main()
