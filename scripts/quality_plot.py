#!/usr/bin/env python3
"""Draws docs/quality.svg from docs/quality.json: perplexity by size and method, and predicted against measured rises."""

import itertools
import json
import pathlib
import statistics

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "llm-surgeon", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3})
import matplotlib.pyplot as plt  # noqa: E402

# Far above the others: its row of the table tells it.
HIGHEST = 4


def main():
    docs = pathlib.Path(__file__).resolve().parent.parent / "docs"
    figures = json.loads((docs / "quality.json").read_text())
    figure, (sizes, rises) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    names = list(dict.fromkeys(row["name"] for row in figures["rows"]))
    colours = dict(zip(names, itertools.cycle(plt.get_cmap("tab20").colors)))
    for name in names:
        rows = [row for row in figures["rows"] if row["name"] == name]
        # The same place in each seed's list is the same target.
        points = [
            [statistics.mean(point[of] for point in seeds) for of in ("size", "ratio")]
            for seeds in zip(*(row["sizes"] for row in rows))
        ]
        shown = [point for point in points if point[1] < HIGHEST]
        if shown:
            sizes.plot(*zip(*shown), marker="o", color=colours[name], label=name)
        shots = [shot for row in rows for shot in row["shots"] if abs(shot["measured"]) < HIGHEST]
        if shots and "magnitude" not in name:  # its prediction is no loss
            rises.plot([s["predicted"] for s in shots], [s["measured"] for s in shots], "o", color=colours[name])
    sizes.invert_xaxis()
    sizes.set(xlabel="share of the prunable weights left", ylabel="held-out perplexity, × dense")
    sizes.legend(fontsize=7)
    ends = [0.02, 1.5]
    rises.plot(ends, ends, color="grey", linewidth=1)
    rises.set(xscale="log", yscale="log", xlabel="predicted rise of the loss, nats per token", ylabel="measured (held-out)")
    figure.savefig(docs / "quality.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
