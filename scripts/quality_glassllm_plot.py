#!/usr/bin/env python3
"""Draws docs/quality-glassllm.svg from docs/quality-glassllm.json: methods by size, shots by seconds, predictions."""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "llm-surgeon", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3})
import matplotlib.pyplot as plt  # noqa: E402

from quality_glassllm import SHOTS, SIZES, STRUCTURES  # noqa: E402

MARKS = "osD^vP*X"
SECONDS = [1, 2, 5, 10, 20, 50, 100]


def draw_methods(axes, structure, methods):
    for (method, ratios), mark in zip(methods.items(), MARKS):
        rises = [(size, ratio - 1) for size, ratio in zip(SIZES, ratios) if ratio and ratio > 1]
        axes.plot(*zip(*rises), marker=mark, markersize=4, label=method)
    axes.invert_xaxis()
    axes.set(title=structure, yscale="log", xlabel="share of the prunable weights left")
    axes.set_xticks(SIZES)


def draw_shots(axes, structure, points):
    for name, mark in zip(dict.fromkeys(point["name"] for point in points), MARKS):
        of = [point for point in points if point["name"] == name]
        grouped = [[p for p in of if p["samples"] == samples] for samples in dict.fromkeys(p["samples"] for p in of)]
        colour = None
        for group in grouped:
            (line,) = axes.plot(
                [p["seconds"] for p in group],
                [p["ratio"] for p in group],
                marker=mark,
                markersize=4,
                color=colour,
                label=None if colour else name,
            )
            colour = line.get_color()
    axes.set(title=f"{structure} to 50 %, {SHOTS[0]} to {SHOTS[-1]} shots", xscale="log", xlabel="seconds")
    axes.set_xticks(SECONDS, [str(tick) for tick in SECONDS])
    axes.minorticks_off()
    axes.legend(fontsize=7)


def draw_predictions(axes, predictions):
    kinds = [("default damping", "kl", "full", 5), ("damping 0.001", "kl", "none", 5)]
    for number, (structure, mark) in enumerate(zip(STRUCTURES, MARKS)):
        for damping, of, fill, size in kinds:
            points = predictions[f"empirical, {damping}"][structure]
            label = f"{structure}, {damping}"
            at = [p["predicted"] for p in points], [p[of] for p in points]
            axes.plot(*at, mark, color=f"C{number}", markersize=size, fillstyle=fill, label=label)
    ends = [2e-8, 3e-2]
    axes.plot(ends, ends, color="grey", linewidth=1)
    axes.set(title="one shot, 99 to 90 % left", xscale="log", yscale="log", xlabel="predicted rise of the loss, nats per token")
    axes.legend(fontsize=7)


def main():
    docs = pathlib.Path(__file__).resolve().parent.parent / "docs"
    of = json.loads((docs / "quality-glassllm.json").read_text())
    missing = {"methods", "shots", "prediction"} - of.keys()
    if missing:
        print(f"no plot: {', '.join(sorted(missing))} not measured")
        return
    figure, ((row_column, coupled, element), (few, many, rises)) = plt.subplots(2, 3, figsize=(12, 7.5), layout="constrained")
    for axes, structure in ((row_column, "row-column"), (coupled, "coupled"), (element, "element")):
        draw_methods(axes, structure, of["methods"][structure])
    row_column.set_ylabel("held-out perplexity, × dense, less 1")
    row_column.legend(fontsize=7)
    for axes, structure in ((few, "coupled"), (many, "row-column")):
        draw_shots(axes, structure, of["shots"][structure])
    few.set_ylabel("held-out perplexity, × dense")
    draw_predictions(rises, of["prediction"])
    rises.set_ylabel("divergence from the dense model")
    # a picture of another kind is for looking at it while working on this script
    targets = sys.argv[1:] or [docs / "quality-glassllm.svg"]
    for target in targets:
        figure.savefig(target, **({"metadata": {"Date": None}} if str(target).endswith("svg") else {"dpi": 110}))


if __name__ == "__main__":
    main()
