#!/usr/bin/env python3
"""Prunes SmolLM2-135M by size and method, and prints a Markdown table of held-out perplexity relative to dense.

Every row is one method on the same data and machine: one `llm-surgeon prune` a seed, whose other sizes
`llm-surgeon materialise` cuts from the same curvature (what a run of its own to that size gives). The table goes to
standard output and to docs/quality.md, the figures to docs/quality.json, which quality_plot.py draws. What is done is kept
in a folder and not done again, so the command can be stopped. Rows that are not asked for stay as they were measured; the
page says which program measured which.

    make quality                  all rows (about two hours on 2 quiet cores), table and plot
    scripts/quality_table.py --binary llm-surgeon --cache ~/.cache/llm-surgeon --rows 'correlated'
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib
import shutil
import statistics
import subprocess
import sys

COMMON = "--samples 32 --seq-len 512 --eval-samples 64 --multiple-of 2"
SIZES = [0.9, 0.8, 0.7, 0.5]


@dataclasses.dataclass
class Row:
    """A line of the table."""

    name: str
    options: str
    sizes: list = dataclasses.field(default_factory=lambda: SIZES)
    seeds: int = 1
    one_by_one: bool = True  # the sizes are cut from kept paths; otherwise they lie on the way of one run of several shots


PER_LAYER = "--shape per-layer --shots 1"
CORRECTION = "--correct-rank 8"
FOUR = "--shape per-layer --shots 4 --decay 1"
THREE = [0.9, 0.8, 0.7]
ROWS = [
    Row("LLM Surgeon (correlated), per-layer", PER_LAYER, seeds=3),
    Row("LLM Surgeon, uniform", "--shape uniform --shots 1"),
    Row("4 shots, corrected", f"{FOUR} {CORRECTION}", THREE, one_by_one=False),
    Row("independent, per-layer", f"{PER_LAYER} --scoring independent --update independent", THREE),
    Row("K-OBD (no update), per-layer", f"{PER_LAYER} --update none", THREE),
    Row("L-OBD (no G, no update), per-layer", f"{PER_LAYER} --curvature activations --update none", THREE),
    Row("magnitude, per-layer", f"{PER_LAYER} --curvature identity --update none", THREE),
    Row("4 shots, running curvature", FOUR, THREE, one_by_one=False),
    Row("row-column, λ of G 0.3", "--shots 1 --structure row-column --damping 0.1,0.3", [0.8]),
    Row("row-column, λ of G 0.01", "--shots 1 --structure row-column --damping 0.1,0.01", [0.8]),
    Row("2:4", "--shots 1 --structure 2:4", [0.5]),
    Row("single weights", "--shots 1 --structure element", [0.5]),
]


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
    remove(*outputs)
    command = prune_command(binary, model, text, (out, state)) + ["--json", *arguments]
    summary = said(command, may_fail)
    if look and summary.get("event") != "failed":
        summary["looked"] = look(out)
    kept.write_text(json.dumps(summary))
    remove(*outputs)
    return summary


def folder_of(cache, name, binary):
    """Returns the folder in which a binary's finished runs are kept: another program, other figures."""
    folder = cache / name / hashlib.sha256(pathlib.Path(binary).read_bytes()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cut(binary, work, model, text, row, seed, only_done):
    """Returns the summaries of a row's sizes for a seed; the ways of one run of several shots count as summaries, too."""
    common = f"{row.options} {COMMON} --seed {seed}".split()
    if not row.one_by_one:
        targets = ["--targets", ",".join(map(str, row.sizes))]
        summary = prune(binary, work, model, text, targets + common, row.sizes, only_done)
        return summary and [summary]
    first, *others = row.sizes
    kept = work / (hashlib.sha256(f"{row.sizes} {common}".encode()).hexdigest()[:16] + ".json")
    if kept.exists():
        return json.loads(kept.read_text())
    if only_done:
        return None
    output, state = work / "out", work / "out.state"
    remove(output, state)
    ends = ["--json", "--quiet"]
    command = prune_command(binary, model, text, (output, state)) + ["--target-size", first, *common]
    summaries = [said([*command, *(["--keep-paths"] if others else []), *ends])]
    for size in others:
        remove(output)
        summaries.append(said([binary, "materialise", state, "--target-size", size, "--out", output, *ends]))
    remove(output, state)
    kept.write_text(json.dumps(summaries))
    return summaries


def remove(*folders):
    """Removes folders that earlier runs left over, or that are no longer of use."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def prune_command(binary, model, text, folders):
    """Returns the words that every `prune` begins with; `text`: calibration and held-out, `folders`: output and state."""
    return [binary, "prune", model, "--data", text[0], "--eval-data", text[1], "--out", folders[0], "--state", folders[1]]


def said(command, may_fail=False):
    """Returns the summary that a command prints as its last line, or, if it may fail by its numbers, the event that says why."""
    command = [str(part) for part in command]
    print("  " + " ".join(command[1:]), file=sys.stderr, flush=True)
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    summary = json.loads((run.stdout.splitlines() or ["{}"])[-1])
    numerical = summary.get("event") == "failed" and summary["code"] == "NUMERICAL"
    if run.returncode != 0 and not (may_fail and numerical):
        sys.exit(f"{' '.join(command)} ended with {run.returncode}")
    return summary


def measured(summaries, sizes):
    """Returns (size, ratio of perplexities, share of the prunable weights left) of each model that was written."""
    points = []
    for summary in summaries:
        ends = [*summary["on_the_way"], {"perplexity": summary["evaluation_after"]["perplexity"], "sizes": summary["after"]}]
        dense, prunable = summary["evaluation_before"]["perplexity"], summary["before"]["prunable"]
        points += [(end["perplexity"] / dense, end["sizes"]["prunable"] / prunable) for end in ends]
    return [(size, *point) for size, point in zip(sizes, points, strict=True)]


def cell(found):
    """Returns the ratios of one method and size as text: the mean over the seeds and half their range."""
    if not found:
        return ""
    ratios, left = zip(*found)
    half = f" ± {(max(ratios) - min(ratios)) / 2:.3f}" if len(ratios) > 1 else ""
    return f"× {statistics.mean(ratios):.3f}{half} ({statistics.mean(left):.1%} left)"


def render(dense, figures):
    """Returns the table: one line a method, one column a size; and what it was measured with."""
    lines = ["| method | " + " | ".join(f"{size:.0%} of the prunable weights" for size in SIZES) + " |"]
    lines.append("|---" * (len(SIZES) + 1) + "|")
    for name in dict.fromkeys(row["name"] for row in figures):
        ends = [end for row in figures if row["name"] == name for end in row["sizes"]]
        found = lambda size: [(end["ratio"], end["size"]) for end in ends if end["target"] == size]
        lines.append(f"| {name} | " + " | ".join(cell(found(size)) for size in SIZES) + " |")
    data = dense["data"]
    programs = dict.fromkeys(row["program"] for row in figures)
    by = "; ".join(f"{program[:8]}: " + " · ".join(names_of(figures, program)) for program in programs)
    lines += [
        "",
        f"SmolLM2-135M-Instruct, {COMMON.replace('--', '')}, seeds from 0 (± is half their range); held-out perplexity of the dense model "
        f"{dense['perplexity']:.3f} ({dense['segments']} of {dense['segments_in_data']} segments of {dense['seq_len']} "
        f"tokens, {dense['dtype']}, data {data['digest'][:12]}, tokenizer {data['tokenizer_digest'][:12]}, no BOS). "
        f"Made by `make quality`. Programs, by digest: {by}.",
    ]
    return "\n".join(lines) + "\n"


def names_of(figures, program):
    """Returns the rows that a program measured."""
    return dict.fromkeys(row["name"] for row in figures if row["program"] == program)


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
    page = pathlib.Path(__file__).resolve().parent.parent / "docs" / "quality.md"
    figures, dense = [], None
    for seed, row in sorted((seed, at) for at, row in enumerate(ROWS) for seed in range(row.seeds) if options.rows in row.name):
        row = ROWS[row]
        summaries = cut(options.binary, work, model, text, row, seed, options.done)
        if summaries is None:
            print(f"  not done yet: {row.name}, seed {seed}", file=sys.stderr)
            continue
        of_shot = lambda shot: {key: shot[key] for key in ("shot", "predicted", "measured")}
        shots = [of_shot(shot) for summary in summaries for shot in summary["shots"]]
        sizes = [{"target": size, "size": left, "ratio": ratio} for size, ratio, left in measured(summaries, row.sizes)]
        figures.append({"name": row.name, "options": row.options, "seed": seed, "program": work.name, "shots": shots, "sizes": sizes})
        dense = summaries[0]["evaluation_before"]
    if not figures:
        sys.exit("no row is done")
    figures = with_earlier(figures, json.loads(page.with_suffix(".json").read_text()), dense)
    table = render(dense, figures)
    print(table)
    page.write_text(
        "# Quality\n\nHeld-out perplexity relative to the dense model, by size and method.\n\n"
        + table
        + "\n![Perplexity by size, and predicted against measured rise of the loss](quality.svg)\n\n"
        "Right: each point is one shot; the prediction ½ δᵀ F δ is of the calibration loss under the damped curvature of "
        "that shot's samples, the measurement is on held-out text.\n"
    )
    page.with_suffix(".json").write_text(json.dumps({"dense": dense, "common": COMMON, "rows": figures}, indent=1))


def with_earlier(figures, before, dense):
    """Returns the rows measured now and those of the page that were not, in the order of the table."""
    if before["common"] != COMMON or before["dense"]["data"] != dense["data"]:
        return figures  # of other text or by another protocol: not to be set side by side
    if abs(before["dense"]["perplexity"] / dense["perplexity"] - 1) > 1e-4:
        sys.exit(f"the dense model's perplexity was {before['dense']['perplexity']}, now it is {dense['perplexity']}: measure all rows")
    now = {(row["name"], row["seed"]) for row in figures}
    options = {row.name: row.options for row in ROWS}
    kept = [row for row in before["rows"] if (row["name"], row["seed"]) not in now and options.get(row["name"]) == row["options"]]
    order = [row.name for row in ROWS]
    return sorted(figures + kept, key=lambda row: (row["seed"], order.index(row["name"])))


if __name__ == "__main__":
    main()
