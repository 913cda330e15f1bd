"""What the two converters share: rotary order, the BPE part of a tokenizer.json, and writing the files of a folder."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def half_split_rotary(w_rc: np.ndarray, heads: int) -> np.ndarray:
    """Returns the rows of a q or k weight, [R, C], moved from adjacent-pair to half-split rotary order."""
    rows, columns = w_rc.shape
    head_dim = rows // heads
    return w_rc.reshape(heads, head_dim // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def bpe_tokenizer(vocabulary: dict[str, int], merges: list[str], special: dict[str, int], unknown: str | None, parts: dict) -> dict:
    """Returns a tokenizer.json: BPE with these merges, `parts` giving normalizer, pre_tokenizer and decoder. No BOS."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": token, **flags} for token, i in special.items()],
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": None,
        "decoder": parts["decoder"],
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def write_folder(folder: Path, tensors: dict[str, np.ndarray], documents: dict[str, dict], texts: dict[str, str]) -> None:
    """Writes model.safetensors, the JSON documents and the texts into a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
