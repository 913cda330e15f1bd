#!/usr/bin/env python3
"""Prunes SmolLM2-135M by size and method, and prints a Markdown table of held-out perplexity relative to dense.

Every row is one `llm-surgeon prune` on the same data, seed and machine. The table goes to standard output and to
docs/quality.md, the figures to docs/quality.json, which quality_plot.py draws. Rows that are done are kept in a folder and
not done again, so the command can be stopped.

    make quality                  all rows (about 40 minutes on 2 quiet cores), table and plot
    scripts/quality_table.py --binary llm-surgeon --cache ~/.cache/llm-surgeon --rows 'per-layer'
"""

import argparse
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys

COMMON = "--samples 32 --seq-len 512 --eval-samples 64 --multiple-of 2 --seed 0"

# (name of the row, sizes that one run writes a model at, options)
ROWS = [
    ("uniform, one shot", [0.9], "--shots 1 --shape uniform"),
    ("uniform, one shot", [0.8], "--shots 1 --shape uniform"),
    ("per-layer, one shot", [0.9], "--shots 1 --shape per-layer"),
    ("per-layer, one shot", [0.8], "--shots 1 --shape per-layer"),
    ("per-layer, one shot", [0.7], "--shots 1 --shape per-layer"),
    ("per-layer, 4 shots, running curvature", [0.9, 0.8, 0.7], "--shots 4 --shape per-layer --decay 1"),
    ("per-layer, one shot, no update", [0.8], "--shots 1 --shape per-layer --update none"),
    ("per-layer, magnitude", [0.8], "--shots 1 --shape per-layer --curvature identity --update none"),
    ("single weights, one shot", [0.5], "--shots 1 --structure element"),
    ("2:4, one shot", [0.5], "--shots 1 --structure 2:4"),
]
SIZES = [0.9, 0.8, 0.7, 0.5]


def prune(binary, work, model, text, arguments, sizes=(), only_done=False, look=None, may_fail=False):
    """Returns the summary of one run, from `work` if it was done before; `None` if it was not and must not be done.

    `text`: calibration and held-out. `sizes`: those of a run that writes several models. `look`, if given, is called with
    the folder that was written; what it returns becomes the summary's `looked`. `may_fail`: a run that fails by its numbers
    is a result too, the event that says why.
    """
    kept = work / (hashlib.sha256(" ".join(arguments).encode()).hexdigest()[:16] + ".json")
    if kept.exists():
        return json.loads(kept.read_text())
    if only_done:
        return None
    out = work / "out"
    state = work / "out.state"
    outputs = [out, state, *(work / f"out-{size}" for size in sizes)]
    for left_over in outputs:
        shutil.rmtree(left_over, ignore_errors=True)
    command = [binary, "prune", model, "--data", text[0], "--eval-data", text[1]]
    command += ["--out", out, "--state", state, "--json", *arguments]
    print("  " + " ".join(arguments), file=sys.stderr, flush=True)
    run = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    summary = json.loads((run.stdout.splitlines() or ["{}"])[-1])
    numerical = summary.get("event") == "failed" and summary["code"] == "NUMERICAL"
    if run.returncode != 0 and not (may_fail and numerical):
        sys.exit(f"llm-surgeon prune {' '.join(arguments)} ended with {run.returncode}")
    if look and run.returncode == 0:
        summary["looked"] = look(out)
    kept.write_text(json.dumps(summary))
    for done in outputs:
        shutil.rmtree(done, ignore_errors=True)
    return summary


def folder_of(cache, name, binary):
    """Returns the folder in which a binary's finished runs are kept: another program, other figures."""
    folder = cache / name / hashlib.sha256(pathlib.Path(binary).read_bytes()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def measured(summary, sizes):
    """Returns (size, perplexity, share of the prunable weights left) of each model that a run wrote."""
    share = lambda of: of["prunable"] / summary["before"]["prunable"]
    way = [(w["perplexity"], share(w["sizes"])) for w in summary["on_the_way"]]
    return zip(sizes, [*way, (summary["evaluation_after"]["perplexity"], share(summary["after"]))])


def render(before, results):
    """Returns the table: one line a method, one column a size."""
    lines = ["| method | " + " | ".join(f"{size:.0%} of the prunable weights" for size in SIZES) + " |"]
    lines.append("|---" * (len(SIZES) + 1) + "|")
    for name in dict.fromkeys(name for name, _ in results):
        cells = []
        for size in SIZES:
            perplexity, left = results.get((name, size), (None, None))
            cells.append(perplexity and f"× {perplexity / before['perplexity']:.3f} ({left:.1%} left)" or "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    data = before["data"]
    lines += [
        "",
        f"SmolLM2-135M-Instruct, {COMMON.replace('--', '')}; held-out perplexity of the dense model "
        f"{before['perplexity']:.3f} ({before['segments']} of {before['segments_in_data']} segments of {before['seq_len']} "
        f"tokens, {before['dtype']}, data {data['digest'][:12]}, tokenizer {data['tokenizer_digest'][:12]}, no BOS). "
        "Made by `make quality`.",
    ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, help="llm-surgeon")
    parser.add_argument("--cache", required=True, type=pathlib.Path, help="the cache with models and text")
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    parser.add_argument("--done", action="store_true", help="only rows that were done before: starts no run")
    options = parser.parse_args()
    work = folder_of(options.cache, "quality", options.binary)
    model = options.cache / "models" / "SmolLM2-135M-Instruct"
    text = [options.cache / "sotu" / name for name in ("calibration", "heldout")]
    results, figures = {}, []
    page = pathlib.Path(__file__).resolve().parent.parent / "docs" / "quality.md"
    for name, sizes, row in ROWS:
        if options.rows not in name:
            continue
        target = f"--target-size {sizes[0]}" if len(sizes) == 1 else f"--targets {','.join(map(str, sizes))}"
        arguments = f"{target} {row} {COMMON}".split()
        summary = prune(options.binary, work, model, text, arguments, sizes, options.done)
        if summary is None:
            print(f"  not done yet: {name} at {sizes}", file=sys.stderr)
            continue
        found = list(measured(summary, sizes))
        results.update({(name, size): of_size for size, of_size in found})
        shots = [{key: shot[key] for key in ("shot", "predicted", "measured")} for shot in summary["shots"]]
        figures.append({"name": name, "options": row, "run": summary["run"], "shots": shots})
        before = summary["evaluation_before"]
        figures[-1]["sizes"] = [{"size": left, "ratio": p / before["perplexity"]} for _, (p, left) in found]
    if not figures:
        sys.exit("no row is done")
    table = render(before, results)
    print(table)
    if not options.rows:
        page.write_text(
            "# Quality\n\nHeld-out perplexity relative to the dense model, by size and method.\n\n"
            + table
            + "\n![Perplexity by size, and predicted against measured rise of the loss](quality.svg)\n\n"
            "Right: each point is one shot; the prediction ½ δᵀ F δ is of the calibration loss under the damped curvature of "
            "that shot's samples, the measurement is on held-out text.\n"
        )
        page.with_suffix(".json").write_text(json.dumps({"dense": before, "common": COMMON, "rows": figures}, indent=1))


if __name__ == "__main__":
    main()
