"""Charts of what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

_COLOURS: Final = {"bare": "#9aa5b1", "sdk": "#d98c3f", "ours": "#2f6f9f"}
_NAMES: Final = {"bare": "bare FastAPI, unpaid", "sdk": "x402 SDK middleware", "ours": "Tollseal"}


def draw_paid(connections: Mapping[str, Any], directory: Path) -> tuple[Path, Path]:
    """Throughput and 99th percentile by the number of connections, both on logarithmic axes.

    Args:
        connections: the member of that name of bench/out/paid.json.
        directory: where ``paid.svg`` and ``paid.png`` are written.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    panels = (("rps", "requests per second", "{:,.0f}"), ("p99_ms", "99th percentile, ms", "{:.1f}"))
    for axis, (key, label, form) in zip(axes, panels, strict=True):
        for offset, name in enumerate(_NAMES):
            values = [row[name][key] for row in connections.values()]
            places = [index + (offset - 1) * 0.27 for index in range(len(values))]
            bars = axis.bar(places, values, width=0.25, color=_COLOURS[name], label=_NAMES[name])
            axis.bar_label(bars, labels=[form.format(value) for value in values], fontsize=7)
        axis.set_yscale("log")
        axis.set_xticks(range(len(connections)), list(connections))
        axis.set_xlabel("connections")
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(_NAMES), frameon=False)
    figure.suptitle("One paid request, each server on one core")
    paths = directory / "paid.svg", directory / "paid.png"
    for path in paths:
        figure.savefig(path, dpi=150)
    plt.close(figure)
    return paths
