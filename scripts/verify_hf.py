"""Measures a folder's perplexity with transformers and torch and compares it with what `llm-surgeon eval --json` said.

    verify_hf.py FOLDER DATA EVAL_JSON

DATA is a folder of .txt files. The protocol is written here a second time, from its description: documents joined by an
empty line, tokenised once, cut into segments that do not overlap, evenly spaced ones of them scored in f32 with the mean
negative log-likelihood. Exits 1 where the two differ by more than 1e-4 nats per token.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

TOLERANCE_NATS = 1e-4


def main() -> None:
    folder, data, (ours,) = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    evaluation = ours["evaluation"]
    seq_len, taken = evaluation["seq_len"], evaluation["segments"]
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    text = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(data.glob("*.txt")))
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    segments = len(ids) // seq_len
    starts = [i * segments // taken * seq_len for i in range(taken)]
    own_code = (Path(folder) / "modeling_per_layer.py").exists()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=own_code).eval()
    losses = []
    with torch.no_grad():
        for start in starts:
            window = torch.tensor([ids[start : start + seq_len]])
            losses.append(model(window, labels=window).loss.double())
    theirs = torch.stack(losses).mean().item()

    same = segments == evaluation["segments_in_data"] and abs(theirs - evaluation["loss"]) <= TOLERANCE_NATS
    print(
        f"{folder}: transformers {theirs:.6f} nats per token, llm-surgeon {evaluation['loss']:.6f} "
        f"(perplexity {torch.tensor(theirs).exp():.4f}, {taken} of {segments} segments of {seq_len}): {'equal' if same else 'DIFFERENT'}"
    )
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
