"""Checks that stock transformers, without torch, accepts the folders we write and that their tensors are what the config says.

    check_autoconfig.py FOLDER...

For each folder: AutoConfig loads it (its own validation catches the head-count traps), the class it names is the one
transformers would build, every tensor that class needs is in the safetensors files with the shape the config implies and
nothing else is, the files' headers are sound, and the tokenizer loads and encodes as tokenizer.json says. Does not run the
model: `make verify-hf` does. Exits 1 with one line per fault.
"""

import json
import os
import struct
import sys
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ["HF_HUB_OFFLINE"] = "1"

from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
SAMPLE = "Fellow-Citizens of the Senate: in 1790 the revenues were $4,399,473 — more than we had hoped.\n\n  Thank you."


class Fault(Exception):
    """What is wrong with a folder."""


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Returns the shapes in a safetensors file after checking that its data is exactly what the header describes."""
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
    if header.pop("__metadata__", {}).get("format") != "pt":
        raise Fault(f'{path.name}: the header\'s metadata lacks "format": "pt", which transformers asks for')
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        count = 1
        for size in entry["shape"]:
            count *= size
        start, stop = entry["data_offsets"]
        if start != end or stop - start != count * ITEM_BYTES[entry["dtype"]]:
            raise Fault(f"{path.name}: {name} does not fill its place: {entry}")
        end = stop
    if path.stat().st_size != 8 + length + end:
        raise Fault(f"{path.name}: {path.stat().st_size} bytes, the header describes {8 + length + end}")
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    index_path = folder / "model.safetensors.index.json"
    if not index_path.exists():
        return read_header(folder / "model.safetensors")
    index = json.loads(index_path.read_text(encoding="utf-8"))
    shapes: dict[str, tuple[int, ...]] = {}
    for shard in sorted(set(index["weight_map"].values())):
        for name, shape in read_header(folder / shard).items():
            if index["weight_map"].get(name) != shard:
                raise Fault(f"{name} is in {shard}, the index says {index['weight_map'].get(name)}")
            shapes[name] = shape
    absent = sorted(set(index["weight_map"]) - set(shapes))
    if absent:
        raise Fault(f"the index names tensors that no shard has: {', '.join(absent[:5])}")
    return shapes


def of_layer(config, layer: int):
    """Returns the config of one layer, which differs where `per_layer_config` says so."""
    return config.per_layer_config[layer] if getattr(config, "is_heterogeneous", False) else config


def gated_shapes(config) -> dict[str, tuple[int, ...]]:
    """Shapes of Llama, Mistral, Qwen2 and Qwen3."""
    hidden = config.hidden_size
    head_dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    attention_bias = getattr(config, "attention_bias", False)
    qkv_bias, o_bias = config.model_type == "qwen2" or attention_bias, attention_bias and config.model_type != "qwen2"
    mlp_bias = getattr(config, "mlp_bias", False)
    shapes = {"model.embed_tokens.weight": (config.vocab_size, hidden), "model.norm.weight": (hidden,)}
    for i in range(config.num_hidden_layers):
        own = of_layer(config, i)
        q, kv, ffn = own.num_attention_heads * head_dim, own.num_key_value_heads * head_dim, own.intermediate_size
        linears = {
            "self_attn.q_proj": (q, hidden, qkv_bias),
            "self_attn.k_proj": (kv, hidden, qkv_bias),
            "self_attn.v_proj": (kv, hidden, qkv_bias),
            "self_attn.o_proj": (hidden, q, o_bias),
            "mlp.gate_proj": (ffn, hidden, mlp_bias),
            "mlp.up_proj": (ffn, hidden, mlp_bias),
            "mlp.down_proj": (hidden, ffn, mlp_bias),
        }
        for name, (rows, columns, bias) in linears.items():
            shapes[f"model.layers.{i}.{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"model.layers.{i}.{name}.bias"] = (rows,)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{i}.{norm}.weight"] = (hidden,)
        if config.model_type == "qwen3":
            for norm in ("q_norm", "k_norm"):
                shapes[f"model.layers.{i}.self_attn.{norm}.weight"] = (head_dim,)
    return shapes


def opt_shapes(config) -> dict[str, tuple[int, ...]]:
    hidden, embed = config.hidden_size, config.word_embed_proj_dim
    affine = config.layer_norm_elementwise_affine
    shapes = {
        "model.decoder.embed_tokens.weight": (config.vocab_size, embed),
        "model.decoder.embed_positions.weight": (config.max_position_embeddings + 2, hidden),
    }
    norms = []
    if embed != hidden:
        shapes["model.decoder.project_in.weight"] = (hidden, embed)
        shapes["model.decoder.project_out.weight"] = (embed, hidden)
    if config.do_layer_norm_before and not config._remove_final_layer_norm:
        norms.append("model.decoder.final_layer_norm")
    for i in range(config.num_hidden_layers):
        block, ffn = f"model.decoder.layers.{i}", of_layer(config, i).ffn_dim
        linears = {f"self_attn.{name}_proj": (hidden, hidden) for name in ("q", "k", "v", "out")}
        for name, shape in {**linears, "fc1": (ffn, hidden), "fc2": (hidden, ffn)}.items():
            shapes[f"{block}.{name}.weight"] = shape
            if config.enable_bias:
                shapes[f"{block}.{name}.bias"] = (shape[0],)
        norms += [f"{block}.self_attn_layer_norm", f"{block}.final_layer_norm"]
    if affine:
        shapes.update({f"{norm}.{part}": (hidden,) for norm in norms for part in ("weight", "bias")})
    return shapes


def expected_shapes(config) -> dict[str, tuple[int, ...]]:
    shapes = opt_shapes(config) if config.model_type == "opt" else gated_shapes(config)
    if not config.tie_word_embeddings:
        width = config.word_embed_proj_dim if config.model_type == "opt" else config.hidden_size
        shapes["lm_head.weight"] = (config.vocab_size, width)
    return shapes


def check_shapes(config, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    wanted = expected_shapes(config)
    faults = [f"{name} is missing" for name in sorted(wanted.keys() - shapes.keys())]
    faults += [f"{name} is not a tensor of this config" for name in sorted(shapes.keys() - wanted.keys())]
    faults += [
        f"{name} is {list(shapes[name])}, the config says {list(wanted[name])}"
        for name in sorted(wanted.keys() & shapes.keys())
        if shapes[name] != wanted[name]
    ]
    return faults


def check_config(config, raw: dict) -> list[str]:
    faults = []
    if config.model_type != raw.get("model_type"):
        faults.append(f"model_type {raw.get('model_type')} was read as {config.model_type}")
    wanted = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if "per_layer_config" in raw:
        wanted = f"PerLayer{wanted}"
        if raw.get("auto_map") != {"AutoModelForCausalLM": f"modeling_per_layer.{wanted}"}:
            faults.append(f"auto_map {raw.get('auto_map')} does not name {wanted} in modeling_per_layer.py")
    if raw.get("architectures") != [wanted]:
        faults.append(f"architectures is {raw.get('architectures')}, model_type {config.model_type} builds {wanted}")
    if config.model_type == "mistral" and "sliding_window" not in raw:
        faults.append("a mistral config without sliding_window gets a window of 4096; write null")
    if "head_dim" not in raw and config.model_type != "opt":
        faults.append("head_dim is not written; readers would guess hidden_size / num_attention_heads")
    kv_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    if config.num_attention_heads % kv_heads:
        faults.append(f"{config.num_attention_heads} heads are no multiple of {kv_heads} key-value heads")
    return faults


def check_tokenizer(folder: Path) -> list[str]:
    if not (folder / "tokenizer.json").exists():
        return ["tokenizer.json is missing"]
    ours = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(SAMPLE).ids
    theirs = AutoTokenizer.from_pretrained(folder)(SAMPLE)["input_ids"]
    return [] if ours == theirs else ["AutoTokenizer encodes a sample text differently from tokenizer.json"]


def check(folder: Path) -> list[str]:
    if not (folder / "config.json").is_file():
        return ["no config.json: not a model folder"]
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = AutoConfig.from_pretrained(folder)
        shapes = read_shapes(folder)
        faults = check_config(config, raw) + check_shapes(config, shapes) + check_tokenizer(folder)
        if not faults:
            parameters = sum(int(rows) * (columns[0] if columns else 1) for rows, *columns in shapes.values())
            print(f"{folder}: {raw['architectures'][0]}, {len(shapes)} tensors, {parameters:,} parameters: ok")
        return faults
    except (Fault, ValueError, KeyError, OSError, struct.error, AttributeError) as error:
        return [f"{type(error).__name__}: {error}"]
    except Exception as error:  # transformers raises its own kinds for a config it refuses
        return [f"transformers refuses it: {type(error).__name__}: {error}"]


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("usage: check_autoconfig.py FOLDER...")
    failed = False
    for folder in map(Path, sys.argv[1:]):
        for fault in check(folder):
            failed = True
            print(f"{folder}: {fault}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
