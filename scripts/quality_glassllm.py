#!/usr/bin/env python3
"""Compares methods, schedules and predictions on glassllm-en and text sampled from it, in minutes on one core.

On text that a model was not trained for it is not at a minimum of its loss, and removal can even help. So text is sampled
from the model itself (glassllm.py). Tables go to docs/quality-glassllm.md, figures to docs/quality-glassllm.json, which
quality_glassllm_plot.py draws. Runs that are done are kept in the cache, so the command can be stopped.

    make quality-quick            everything
    scripts/quality_glassllm.py --binary llm-surgeon --cache ~/.cache/llm-surgeon --parts methods,shots
"""

import argparse
import hashlib
import itertools
import json
import math
import pathlib
import statistics
import subprocess
import sys

import numpy

import glassllm
import glassllm_fisher
import quality_table

COMMON = "--seq-len 128 --multiple-of 1 --threads 1 --device cpu"
SAMPLES = 64
SEGMENTS = 200
SEEDS = [0, 1, 2]
EXAMINED = 64  # each so many-th sequence of the calibration text is one that glassllm_fisher.py looks at
SIZES = [0.9, 0.8, 0.7, 0.6, 0.5]
STRUCTURES = {
    "row-column": "--structure row-column",
    "coupled": "--structure coupled --shape per-layer",
    "element": "--structure element",
}
# In the order in which they are expected to get worse.
METHODS = {
    "LLM Surgeon": "",
    "independent": "--scoring independent --update independent",
    "K-OBD": "--update none",
    "L-OBD": "--curvature activations --update none",
    "magnitude": "--curvature identity --update none",
}


class Runs:
    """Runs of one binary on the sampled text, kept."""

    def __init__(self, options):
        self.binary, self.only_done = options.binary, options.done
        self.source, self.folder = options.cache / "models" / "glassllm-en", options.cache / "glassllm-sampled"
        self.text = glassllm.prepare(self.source, self.folder)
        files = "".join(self.text["files"][name] for name in sorted(self.text["files"]))
        text = hashlib.sha256(files.encode()).hexdigest()[:8]
        self.work = quality_table.folder_of(options.cache, f"quality-glassllm-{text}", options.binary)
        self.program = self.work.name
        lines = (self.folder / "calibration.ids.jsonl").read_text().splitlines()
        self.ids_bt = numpy.array([json.loads(line)["text"].split() for line in lines[::EXAMINED]], int)
        self.missing, self.seconds = 0, 0.0

    def prune(self, arguments, text=("calibration", "heldout"), look=None):
        """Returns the summary of a run, or `None` where it is not done and must not be."""
        work = self.work / "-".join(text)
        work.mkdir(exist_ok=True)
        files = [self.folder / f"{name}.ids.jsonl" for name in text]
        words = f"{arguments} {COMMON}".split()
        summary = quality_table.prune(self.binary, work, self.folder / "model", files, words, (), self.only_done, look, True)
        self.missing += summary is None
        if summary and "seconds" in summary:
            self.seconds += summary["seconds"]["total"]
        return summary

    def measure(self, arguments, seeds=SEEDS, **more):
        """Returns what was found for each seed that is done, or the reason for which a run failed."""
        found = []
        for seed in seeds:
            run = self.prune(f"{arguments} --eval-samples {SEGMENTS} --seed {seed}", **more)
            if run is None:
                continue
            if run["event"] == "failed":
                return run["reason"]
            before, after = run["evaluation_before"], run["evaluation_after"]
            seconds = run["seconds"]["total"] - run["seconds"]["evaluate"]
            rise = after["loss"] - before["loss"]
            found.append({"ratio": math.exp(rise), "rise": rise, "predicted": run["predicted"], "seconds": seconds} | run.get("looked", {}))
        return found

    def examine(self, out):
        """Returns what glassllm_fisher.py finds, and the least and the most that is left of a layer."""
        shares = [float((w != 0).mean()) for name, w in glassllm.read_tensors(out).items() if name.endswith("proj.weight")]
        found = glassllm_fisher.examine(glassllm.Glassllm(self.folder / "model"), out, self.ids_bt)
        return found | {"least": min(shares), "most": max(shares)}

    def evaluation(self, model, file):
        """Returns what `eval` says of all segments of a text."""
        kept = self.work / f"eval-{model.name}-{file}.json"
        if not kept.exists():
            command = [self.binary, "eval", model, "--data", self.folder / file, "--seq-len", "128", "--threads", "1"]
            command += ["--device", "cpu", "--quiet", "--json"]
            kept.write_text(subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True, check=True).stdout)
        return json.loads(kept.read_text())[0]["evaluation"]


def table(head, rows):
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def mean(found, of="ratio"):
    """Returns the mean over the seeds."""
    return statistics.mean(point[of] for point in found)


def cell(found, seconds=False):
    """Returns the ratio as text: mean and half the range over the seeds."""
    if isinstance(found, str):
        return "fails"
    if not found:
        return ""
    ratios = [point["ratio"] for point in found]
    half = (max(ratios) - min(ratios)) / 2
    text = f"× {mean(found):.4f}" if mean(found) < 2 else f"× {mean(found):.3f}"
    text += f" ± {half:.4f}" if len(ratios) > 1 else ""
    return text + (f", {mean(found, 'seconds'):.1f} s" if seconds else "")


def shot(structure, size, method="", samples=SAMPLES):
    """Returns the arguments of one shot."""
    return f"--target-size {size} --shots 1 --samples {samples} {STRUCTURES.get(structure, structure)} {method}"


def text_part(runs, figures):
    folders = {"ids": runs.folder / "model", "text": runs.source}
    rows = []
    for name, of in runs.text["sets"].items():
        measured = [runs.evaluation(folder, f"{name}.{form}.jsonl")["perplexity"] for form, folder in folders.items()]
        sampled = [math.exp(of["entropy"]), math.exp(of["surprise"])]
        rows.append([name, of["seed"], f"{of['tokens']:,}", *(f"{perplexity:.4f}" for perplexity in sampled + measured)])
    head = ["text", "seed", "tokens", "exp(mean entropy)", "exp(mean −log p of what was drawn)", "`eval` of the ids"]
    return table([*head, "`eval` of decoded text"], rows)


def methods_part(runs, figures):
    page = ""
    for structure in STRUCTURES:
        of = {m: [runs.measure(shot(structure, size, options)) for size in SIZES] for m, options in METHODS.items()}
        order = ["**expected order**"]
        for at in range(len(SIZES)):
            wrong = []
            for better, worse in itertools.pairwise(METHODS):
                pairs = [(x["ratio"], y["ratio"]) for x, y in zip(of[better][at], of[worse][at])]
                if pairs and statistics.mean(x - y for x, y in pairs) > 0:
                    seeds = sum(x > y for x, y in pairs)
                    wrong.append(f"{worse} < {better} ({seeds} of {len(pairs)} seeds)")
            order.append("; ".join(wrong) or "holds")
        rows = [[method, *map(cell, found)] for method, found in of.items()]
        page += f"\n### {structure}\n\n" + table(["method", *(f"{size:.0%}" for size in SIZES)], [*rows, order])
        figures[structure] = {m: [mean(found) if found else None for found in sizes] for m, sizes in of.items()}
    return page


# λ of G: whether a prediction that is too good is the reason.
LAMBDAS = ["0.01", "0.1", "0.3", "1"]


def causes_part(runs, figures):
    scorings = {"sequential": "", "independent": "--scoring independent"}
    updates = {"correlated": "", "independent": "--update independent", "none": "--update none"}
    one = SEEDS[:1]

    def apart(arguments):
        found = runs.measure(arguments, one)
        return found and f"{cell(found)} ({found[0]['predicted']:.4f} / {found[0]['rise']:.4f})"

    page = "\n### Scoring and update apart\n\nIn brackets: predicted and measured rise, nats per token.\n\n"
    rows = [
        [structure, scoring, *(apart(shot(structure, size, f"{scorings[scoring]} {update}")) for size in (0.8, 0.5) for update in updates.values())]
        for structure, scoring in itertools.product(STRUCTURES, scorings)
    ]
    page += table(["structure", "scoring", *(f"update {update}, {size:.0%}" for size in (0.8, 0.5) for update in updates)], rows)

    page += "\n### Eight shots to 50 %\n\n"
    many = lambda structure, options: cell(runs.measure(f"--target-size 0.5 --shots 8 --samples {SAMPLES} {STRUCTURES[structure]} {options}", one))
    page += table(["method", *STRUCTURES], [[m, *(many(s, options) for s in STRUCTURES)] for m, options in METHODS.items()])

    page += "\n### The same share of every layer, 50 %\n\n"
    even = ["--structure 2:4", "--structure 4:8", "--structure coupled --shape uniform"]
    rows = [[m, *(cell(runs.measure(shot(s, 0.5, options), one)) for s in even)] for m, options in METHODS.items()]
    page += table(["method", *(f"`{s}`" for s in even)], rows)

    page += "\n### λ of G under row-column\n\n"
    surgeon, rows = list(METHODS)[:3], []
    for value in LAMBDAS:
        damping = f"--damping 0.1,{value}"
        row = [cell(runs.measure(shot("row-column", size, f"{METHODS[m]} {damping}"), one)) for m in surgeon for size in (0.8, 0.5)]
        row.append(cell(runs.measure(f"--target-size 0.5 --shots 8 --samples {SAMPLES} {STRUCTURES['row-column']} {damping}", one)))
        rows.append([value, *row])
    page += table(["λ", *(f"{m}, {size:.0%}" for m in surgeon for size in (0.8, 0.5)), "LLM Surgeon, 8 shots, 50%"], rows) + "\n"
    rows = []
    for size, value in itertools.product((0.9, 0.5), LAMBDAS):
        run = runs.prune(f"{shot('row-column', size, f'--damping 0.1,{value}')} --eval-samples 100 --seed 0", look=runs.examine)
        if run:
            of = run["looked"]
            row = [f"{x:.4f}" for x in (run["predicted"], of["tokens"], of["blocks"], of["fisher"], of["kl"])]
            rows.append([f"{size:.0%}", value, *row, f"{of['kl'] / of['fisher']:.2f}"])
    page += table(["size", "λ", "predicted", "of single tokens", "of blocks", "of all of F", "KL", "KL ÷ F"], rows)

    page += "\n### More samples, 50 %\n\n"
    counts = [SAMPLES, 256, 1024]
    rows = [
        [structure, m, *(cell(runs.measure(shot(structure, 0.5, METHODS[m], count), one)) for count in counts)]
        for structure in ("row-column", "coupled")
        for m in surgeon
    ]
    page += table(["structure", "method", *(f"{count} samples" for count in counts)], rows)

    page += "\n### element: divergence from the dense model, and the least and the most that is left of a layer\n\n"
    rows = []
    for method, options in METHODS.items():
        row = []
        for size in (0.9, 0.8):
            found = [runs.prune(f"{shot('element', size, options)} --eval-samples 100 --seed {seed}", look=runs.examine) for seed in SEEDS]
            of = [run["looked"] for run in found if run]
            if of:
                kl = [point["kl"] for point in of]
                row += [f"{statistics.mean(kl):.2e} ± {(max(kl) - min(kl)) / 2:.0e}", f"{of[0]['least']:.0%} to {of[0]['most']:.0%}"]
        rows.append([method, *row])
    page += table(["method", *(f"{what}, {size:.0%}" for size in (0.9, 0.8) for what in ("KL, nats per token", "left"))], rows)
    return page


CURVATURES = {
    "G ⊗ A of plain means": "",
    "nearest product, 4 half-steps": "--half-steps 4",
    "nearest sum of two, 4 half-steps each": "--kronecker-rank 2",
    "no update: G ⊗ A of plain means": "--update none",
    "no update: exact diagonal": "--curvature diagonal --update none",
}


def curvature_part(runs, figures):
    sizes = [0.9, 0.8, 0.5]
    page = ""
    for structure in ("coupled", "element"):
        # Costs of two terms are those of each unit alone, and single weights in one round.
        alike = "--scoring independent" if structure == "coupled" else "--rounds 1"
        rows = [
            [name, *(cell(runs.measure(shot(structure, size, f"{options} {alike}")), True) for size in sizes)]
            for name, options in CURVATURES.items()
        ]
        page += f"\n### {structure} (`{alike}`)\n\n" + table(["curvature", *(f"{size:.0%}" for size in sizes)], rows)
    return page


ROUNDS = [1, 2, 4, 8, 16]


def rounds_part(runs, figures):
    rows = []
    for name, size in (("element", 0.8), ("element", 0.5), ("element", 0.3), ("2:4", 0.5), ("4:8", 0.5)):
        row = [name, f"{size:.0%}"]
        row += [cell(runs.measure(shot(f"--structure {name}", size, f"--rounds {rounds}")), True) for rounds in ROUNDS]
        arguments = f"--target-size {size} --samples {SAMPLES} --structure {name} --shots 8 --rounds 1"
        rows.append([*row, cell(runs.measure(arguments), True)])
    head = ["structure", "size", *(f"{rounds} round{'s' * (rounds > 1)}" for rounds in ROUNDS), "8 shots of one round"]
    return table(head, rows)


# Shots to 50 %.
SHOTS = [1, 2, 4, 8, 24, 40]
MANY = 4  # from here on one seed
SCHEDULED = ["coupled", "row-column"]
SCHEDULES = {
    "sequential": "",
    "sequential, decay 1": "--decay 1",
    "independent": "--scoring independent",
    "independent, decay 1": "--scoring independent --decay 1",
}
# (name, shots, samples a shot, options)
OTHERWISE = [
    *((f"the same data, decay {decay}", shots, SAMPLES, f"--shot-data same --decay {decay}") for shots in (4, 8, 24) for decay in (0, 1)),
    *(("more data", shots, samples, "") for shots in (1, 4) for samples in (256, 640)),
    *(("λ of G 0.3", shots, SAMPLES, "--damping 0.1,0.3") for shots in (1, 4, 8, 24)),
]


def shots_part(runs, figures):
    page = ""
    for structure in SCHEDULED:
        points = []

        def measure(name, shots, samples, options):
            arguments = f"--target-size 0.5 --shots {shots} --samples {samples} {STRUCTURES[structure]} {options}"
            found = runs.measure(arguments, SEEDS if shots < MANY else SEEDS[:1])
            if found and not isinstance(found, str):
                points.append({"name": name, "shots": shots, "samples": samples, "ratio": mean(found), "seconds": mean(found, "seconds")})
            return cell(found, True)

        rows = [[name, *(measure(name, shots, SAMPLES, options) for shots in SHOTS)] for name, options in SCHEDULES.items()]
        page += f"\n### {structure}\n\n" + table(["schedule", *(f"{n} shot{'s' * (n > 1)}" for n in SHOTS)], rows) + "\n"
        others = [[name, shots, samples, measure(name, shots, samples, options)] for name, shots, samples, options in OTHERWISE]
        page += table(["otherwise, sequential", "shots", "samples a shot", "perplexity, time"], others)
        best = []
        for point in sorted(points, key=lambda point: point["seconds"]):
            if not best or point["ratio"] < best[-1]["ratio"]:
                best.append(point)
        rows = [[p["name"], p["shots"], p["samples"], f"× {p['ratio']:.4f}", f"{p['seconds']:.1f} s"] for p in best]
        page += "\nNothing that was faster was better than these:\n\n"
        page += table(["schedule", "shots", "samples a shot", "perplexity", "time"], rows)
        figures[structure] = points
    return page


SMALL = [0.99, 0.98, 0.97, 0.95, 0.9]
FISHERS = {
    f"{fisher}, {name}": f"--fisher {fisher} {damping}"
    for fisher in ("empirical", "sampled")
    for name, damping in (("default damping", ""), ("damping 0.001", "--damping 0.001"))
}
STEPS = ["measured", "kl", "fisher", "blocks", "tokens", "predicted"]
TRIED = 400  # samples: every token of theirs is in the curvature and in the measurement


def prediction_part(runs, figures):
    lines = (runs.folder / "calibration.ids.jsonl").read_text().splitlines(keepends=True)[:TRIED]
    (runs.folder / "predicted.ids.jsonl").write_text("".join(lines))

    def average(points, over, certain=lambda point: True):
        """Mean and range of a ratio to the prediction."""
        ratios = [point[over] / point["predicted"] for point in points if over in point and certain(point)]
        return f"{statistics.mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""

    def correlation(points, of):
        if of not in points[0]:
            return ""
        return f"{statistics.correlation([p['predicted'] for p in points], [p[of] for p in points]):.4f}"

    # the drawn tokens alone move the measured rise by about √(2 rise / tokens)
    certain = lambda point: abs(point["measured"]) > 2 * math.sqrt(2 * point["predicted"] / (TRIED * 127))
    summary, chain = [], []
    for (name, options), structure in itertools.product(FISHERS.items(), STRUCTURES):
        points = []
        for size in SMALL:
            arguments = f"{shot(structure, size, options, TRIED)} --eval-samples {TRIED} --seed 0"
            run = runs.prune(arguments, ("predicted", "predicted"), runs.examine if "empirical" in name else None)
            if run:
                rise = run["evaluation_after"]["loss"] - run["evaluation_before"]["loss"]
                points.append({"size": size, "predicted": run["predicted"], "measured": rise, **run.get("looked", {})})
        figures.setdefault(name, {})[structure] = points
        if len(points) < len(SMALL):
            continue
        rises = [f"{p['predicted']:.2e} / " + (f"{p['measured']:.2e}" if certain(p) else "noise") for p in points]
        ratios = [correlation(points, "measured"), average(points, "measured", certain)]
        summary.append([name, structure, *rises, *ratios, correlation(points, "kl"), average(points, "kl")])
        if "kl" in points[0]:
            for p in points:
                shares = [f"{p[over] / p[under]:.2f}" for over, under in itertools.pairwise(STEPS[1:])]
                measured = f"{p['measured'] / p['kl']:.2f}" if certain(p) else "noise"
                chain.append([name, structure, f"{p['size']:.0%}", f"{p['kl']:.2e}", measured, *shares])
    head = ["curvature", "structure"]
    ratios = ["correlation", "measured ÷ predicted", "correlation of KL", "KL ÷ predicted"]
    page = table([*head, *(f"{size:.0%}" for size in SMALL), *ratios], summary) + "\n"
    names = {"kl": "KL", "fisher": "F", "blocks": "its blocks", "tokens": "single tokens"}
    factors = [f"{names.get(over, over)} ÷ {names.get(under, under)}" for over, under in itertools.pairwise(STEPS)]
    return page + table([*head, "size", "KL", *factors], chain)


PARTS = {
    "text": (text_part, "Text", "Perplexity of the dense model."),
    "methods": (
        methods_part,
        "Methods",
        f"Held-out perplexity relative to dense after one shot of {SAMPLES} samples of 128 tokens, mean ± half the range over the seeds.",
    ),
    "causes": (causes_part, "Causes", f"Held-out perplexity relative to dense, one shot of {SAMPLES} samples, seed 0 unless it says otherwise."),
    "rounds": (
        rounds_part,
        "Single weights in rounds",
        f"One shot of {SAMPLES} samples, in which the weights to go are chosen in rounds, costs taken anew after each; and as many "
        "shots with one round each. Held-out perplexity relative to dense, and seconds without those for measuring it.",
    ),
    "curvature": (
        curvature_part,
        "Curvature",
        f"One shot of {SAMPLES} samples; held-out perplexity relative to dense, and seconds without those for measuring it.",
    ),
    "shots": (
        shots_part,
        "Shots to 50 %",
        f"Held-out perplexity relative to dense, and seconds without those for measuring it; {SAMPLES} samples a shot; seed 0 alone from {MANY} shots on.",
    ),
    "prediction": (
        prediction_part,
        "Prediction and measurement",
        f"One shot on {TRIED} samples; predicted / measured rise of the loss on these same samples, nats per token; \"noise\" where the "
        "drawn tokens alone may move it as much. KL, from the dense to the pruned model, is the expected rise and has no such noise; "
        "`glassllm_fisher.py` says what the other figures are.",
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, help="llm-surgeon")
    parser.add_argument("--cache", required=True, type=pathlib.Path, help="the cache with models")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of " + ", ".join(PARTS))
    parser.add_argument("--done", action="store_true", help="only what was done before: starts no run")
    options = parser.parse_args()
    runs = Runs(options)
    page = pathlib.Path(__file__).resolve().parent.parent / "docs" / "quality-glassllm.md"
    file = page.with_suffix(".json")
    figures = json.loads(file.read_text()) if file.exists() else {}
    text = ", ".join(f"{name} {digest[:12]}" for name, digest in sorted(runs.text["files"].items()) if ".ids." in name)
    for part in options.parts.split(","):
        make, _, _ = PARTS[part]
        runs.missing, runs.seconds, found = 0, 0.0, {}
        said = make(runs, found)
        print(said, flush=True)
        if runs.missing:
            print(f"{part}: {runs.missing} runs are not done yet, left as it was", file=sys.stderr)
            continue
        of = {"program": runs.program, "minutes": runs.seconds / 60, "text": text, "page": said}
        figures = figures | {part: found, "sections": figures.get("sections", {}) | {part: of}}
        file.write_text(json.dumps(figures, indent=1) + "\n")
    page.write_text(whole_page(runs, figures.get("sections", {})))


def whole_page(runs, sections):
    """Returns the page of all parts that were ever measured, each with the program that did it."""
    picture = "![Perplexity by size and method, by seconds, and predicted against measured rise](quality-glassllm.svg)\n\n"
    head = (
        "# Quality on glassllm-en\n\n"
        "Methods, schedules and predictions compared on a small trained model (4 blocks, 0.85 M parameters) and text sampled from "
        "it, so that it is at a minimum of its loss. What the figures say: [notes](quality-glassllm-notes.md).\n\n"
        + picture * ({"methods", "shots", "prediction"} <= sections.keys())
        + f"Made by `make quality-quick`: `llm-surgeon prune {COMMON} --eval-samples {SEGMENTS}` and what each table names, seeds "
        f"{', '.join(map(str, SEEDS))}, f32; weights {runs.text['made_by']['weights'][:12]} (SHA-256). Each part names the program "
        "that measured it, the text, and (where it was written down) the minutes that its runs took together, on one thread of a "
        "machine that was not quiet.\n"
    )
    for part, (_, title, says) in PARTS.items():
        if of := sections.get(part):
            minutes = f", {of['minutes']:.0f} minutes" if of["minutes"] else ""
            made = f"`QUICK_ARGS=\"--parts {part}\"`, program {of['program']}, {of['text']}{minutes}."
            head += f"\n## {title}\n\n{says} {made}\n\n{of['page']}"
    return head


if __name__ == "__main__":
    main()
