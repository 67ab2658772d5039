"""A figure of one's own from results: ``python examples/own_figure.py results/measured/digits-full.csv figure.png``.

The first argument may as well be a run directory.
"""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

import kdbench


def main(source: str, target: str) -> None:
    """Gain over training from scratch on each pair: one point for each seed."""
    cells = kdbench.load_results(source)
    done = cells[cells["state"] == "done"]
    # One row for each pair and seed, one column for each method: differences within a row are of the same batches and weights.
    top1 = done.pivot_table(index=["pair", "seed"], columns="method", values="top1")
    gains = top1.drop(columns="scratch").sub(top1["scratch"], axis=0)
    pairs = list(dict.fromkeys(gains.index.get_level_values("pair")))

    figure, axes = plt.subplots(figsize=(6, 0.5 * len(pairs) + 1.5), layout="constrained")
    for shift, method in enumerate(gains):
        rows = gains[method].dropna()
        height = [pairs.index(pair) + 0.12 * (shift - len(gains.columns) / 2) for pair, _ in rows.index]
        axes.plot(rows, height, "o", markersize=4, label=method)
    axes.axvline(0, color="grey", linewidth=1)
    axes.set_yticks(range(len(pairs)), pairs)
    axes.set_xlabel("top-1 minus that of scratch, same seed (points)")
    axes.legend(frameon=False, ncols=len(gains.columns), loc="lower center", bbox_to_anchor=(0.5, 1))
    figure.savefig(target, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
