"""Figures of network dissection, drawn as :mod:`harvis_utils.figures.plots` draws: nothing is computed here."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from harvis_utils.figures import plots
from harvis_utils.figures.plots import ACCENT, SIGNAL, WIDTH, _finish, _legend_above

#: networks as they are, with another basis, without training
WHO_COLOURS = {"trained": SIGNAL, "rotated": "#edae49", "random weights": "#8a8a8a"}
WHO_MARKERS = {"trained": "o", "rotated": "s", "random weights": "v"}
CONCEPT, UNIT = "#7fb069", ACCENT


def plot_concepts(
    signals: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    names: Sequence[str],
    titles: Sequence[str],
    rate_hz: float = 30.0,
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Examples beside each other: a signal (time,) in G, and below it when which concept holds, (concept, time)."""
    heights = {"height_ratios": (1.5, 0.26 * len(names))}
    height = 1.6 + 1.5 + 0.22 * len(names)
    figure, axes = plots._grid(2, len(signals), WIDTH, height, sharex=True, sharey="row", gridspec_kw=heights)
    for column, (signal, mask, name) in enumerate(zip(signals, masks, titles, strict=True)):
        top, bottom = axes[:, column]
        seconds = np.arange(len(signal)) / rate_hz
        top.plot(seconds, signal, color=SIGNAL)
        top.set_title(name)
        extent = (-0.5 / rate_hz, (len(signal) - 0.5) / rate_hz, len(names) - 0.5, -0.5)
        bottom.imshow(mask, aspect="auto", cmap="Greens", vmin=0, vmax=1.4, extent=extent, interpolation="nearest")
        bottom.set_yticks(np.arange(len(names)), names)
        bottom.set_xlabel("time [s]")
        bottom.grid(visible=False)
        for y in range(len(names) - 1):
            bottom.axhline(y + 0.5, color="#e6e6e6", linewidth=0.7)
    axes[0, 0].set_ylabel("signal [G]")
    return _finish(figure, caveat, title)


def plot_detections(
    signals: Sequence[np.ndarray],
    units: Sequence[np.ndarray],
    concepts: Sequence[np.ndarray],
    titles: Sequence[str],
    rate_hz: float = 30.0,
    columns: int = 4,
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Signals (time,) in G, a unit's mask as a band above and a concept's below, bool (time,) both."""
    rows, columns = plots._panels(len(signals), columns)
    figure, axes = plots._grid(rows, columns, WIDTH, 1.0 + 1.75 * rows, sharex=True)
    for ax, signal, unit, concept, name in zip(axes.flat, signals, units, concepts, titles, strict=False):
        seconds = np.arange(len(signal)) / rate_hz
        width = 1 / rate_hz
        ax.bar(seconds[unit], 0.1, width, bottom=0.9, color=UNIT, transform=ax.get_xaxis_transform())
        ax.bar(seconds[concept], 0.1, width, bottom=0.0, color=CONCEPT, transform=ax.get_xaxis_transform())
        ax.plot(seconds, signal, color=SIGNAL)
        ax.margins(y=0.22)
        ax.set_xlim(-0.6 / rate_hz, (len(signal) - 0.4) / rate_hz)
        ax.set_title(name, fontsize=9)
        ax.grid(visible=False)
    plots._hide_rest(axes, len(signals))
    for ax in axes[:, 0]:
        ax.set_ylabel("signal [G]")
    for ax in axes[-1]:
        ax.set_xlabel("time [s]")
    handles = [Patch(color=UNIT), Patch(color=CONCEPT)]
    _legend_above(figure, handles, ["among the unit's strongest 0.5 %", "the concept holds"], columns=2, title=title)
    return _finish(figure, caveat)


def plot_best_iou(
    best: Mapping[str, Mapping[str, np.ndarray]], threshold: float, chance: float, title: str = "", caveat: str = ""
) -> Figure:
    """IoU of every unit with its best concept: ``best`` maps whose units to layers to (unit,) values of all networks.

    The dashed line is the source's threshold, the dotted one what half of the units exceed by chance no more often than
    once in twenty times.
    """
    layers = list(next(iter(best.values())))
    figure, axes = plots._grid(1, len(layers), WIDTH, 3.6, sharey=True)
    for ax, layer in zip(axes[0], layers, strict=True):
        for k, (who, values) in enumerate(best.items()):
            colour = WHO_COLOURS[who]
            across = k + np.linspace(-0.32, 0.32, len(values[layer]))
            ax.plot(across, np.sort(values[layer]), ".", color=colour, markersize=3)
            ax.hlines(np.median(values[layer]), k - 0.4, k + 0.4, color=colour, linewidth=2)
        ax.axhline(threshold, color="black", linestyle="--", linewidth=1, label=f"IoU {threshold:g}")
        ax.axhline(chance, color="black", linestyle=":", linewidth=1, label="chance, median of the units' limits")
        ax.set_xticks(range(len(best)), [textwrap.fill(who, 9) for who in best])
        ax.set_xlabel("units, sorted")
        ax.grid(axis="x", visible=False)
        ax.set_title(layer)
    axes[0, 0].set_ylim(bottom=0)  # once all is drawn: it fixes the top, too
    axes[0, 0].set_ylabel("IoU with the best concept")
    _legend_above(figure, *axes[0, 0].get_legend_handles_labels(), columns=2, title=title)
    return _finish(figure, caveat)


def plot_unique(
    counts: Mapping[str, Mapping[str, np.ndarray]],
    layers: Sequence[str],
    label: str = "unique detectors",
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Counts by layer, one panel per rule: ``counts`` maps a rule to whose units to (layer, 3), mean and interval."""
    figure, axes = plots._grid(1, len(counts), WIDTH, 3.5, sharey=True)
    places = np.arange(len(layers))
    for ax, (rule, by) in zip(axes[0], counts.items(), strict=True):
        width = 0.8 / len(by)
        for k, (who, values) in enumerate(by.items()):
            ends = np.abs(values[:, 1:].T - values[:, 0])
            style = {"color": WHO_COLOURS[who], "label": who, "error_kw": {"elinewidth": 1, "capsize": 2}}
            ax.bar(places + (k - (len(by) - 1) / 2) * width, values[:, 0], width * 0.9, yerr=ends, **style)
        ax.set_xticks(places, layers)
        ax.set_xlabel("layer")
        ax.set_title(textwrap.fill(rule, 34))
        ax.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel(label)
    _legend_above(figure, *axes[0, 0].get_legend_handles_labels(), columns=len(WHO_COLOURS), title=title)
    return _finish(figure, caveat)


def plot_rotation(
    angles: Sequence[float],
    curves: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]],
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Curves over the rotation: measure (a row) -> layer (a column) -> whose units -> (angle, 3), mean and interval."""
    layers = list(next(iter(curves.values())))
    figure, axes = plots._grid(len(curves), len(layers), WIDTH, 1.2 + 2.3 * len(curves), sharex=True, sharey="row")
    for row, (measure, by_layer) in zip(axes, curves.items(), strict=True):
        for ax, layer in zip(row, layers, strict=True):
            for who, values in by_layer[layer].items():
                ax.plot(angles, values[:, 0], marker=WHO_MARKERS[who], color=WHO_COLOURS[who], label=who)
                ax.fill_between(angles, values[:, 1], values[:, 2], color=WHO_COLOURS[who], alpha=0.18, linewidth=0)
        row[0].set_ylim(0, 1.05 * row[0].get_ylim()[1])
        row[0].set_ylabel(textwrap.fill(measure, 22))
    for ax, layer in zip(axes[0], layers, strict=True):
        ax.set_title(layer)
    for ax in axes[-1]:
        ax.set_xlabel("rotation, from the network's basis (0)\nto a random one (1)")
    _legend_above(figure, *axes[0, 0].get_legend_handles_labels(), columns=3, title=title)
    return _finish(figure, caveat)


def plot_factors(
    values: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]], label: str, title: str = "", caveat: str = ""
) -> Figure:
    """Small networks: layer (a panel) -> level (a row) -> "trained" or "random weights" -> (network,) values."""
    layers, levels = list(values), list(next(iter(values.values())))
    figure, axes = plots._grid(1, len(layers), WIDTH, 1.4 + 0.45 * len(levels), sharey=True, sharex=True)
    for ax, layer in zip(axes[0], layers, strict=True):
        for y, level in enumerate(levels):
            for k, (who, own) in enumerate(values[layer][level].items()):
                at = y + 0.2 * (k - 0.5)
                colour = WHO_COLOURS[who]
                style = {"color": colour, "alpha": 0.6, "markersize": 5, "linestyle": "none"}
                ax.plot(own, np.full(len(own), at), WHO_MARKERS[who], label=who if y == 0 else None, **style)
                ax.vlines(np.mean(own), at - 0.13, at + 0.13, color=colour, linewidth=2)
        ax.set_yticks(range(len(levels)), levels)
        ax.set_title(layer)
        ax.set_xlabel(label)
    axes[0, 0].set_ylabel("small networks")
    axes[0, 0].set_ylim(len(levels) - 0.5, -0.5)
    axes[0, 0].set_xlim(left=0)
    _legend_above(figure, *axes[0, 0].get_legend_handles_labels(), columns=2, title=title)
    return _finish(figure, caveat)


def plot_ablation(
    overlap: Mapping[str, np.ndarray], drop: Mapping[str, np.ndarray], label: str, title: str = "", caveat: str = ""
) -> Figure:
    """Each unit's overlap with each activity against what that activity loses without it: layer -> (point,) each."""
    figure, axes = plots._grid(1, len(overlap), WIDTH, 3.4, sharey=True)
    for ax, (layer, values) in zip(axes[0], overlap.items(), strict=True):
        ax.axhline(0, color="black", linewidth=0.8)
        ax.plot(values, drop[layer], ".", color=SIGNAL, markersize=4, alpha=0.5)
        ax.set_title(layer)
        ax.set_xlabel("IoU of unit and activity")
        ax.locator_params(axis="x", nbins=5)
    axes[0, 0].set_ylabel(label)
    return _finish(figure, caveat, title)


def plot_motif_iou(
    values: Mapping[str, Mapping[str, np.ndarray]], motifs: Sequence[str], title: str = "", caveat: str = ""
) -> Figure:
    """Largest IoU of any unit with each planted motif: layer (a panel) -> whose units -> (motif, network)."""
    figure, axes = plots._grid(1, len(values), WIDTH, 1.5 + 0.3 * len(motifs), sharey=True, sharex=True)
    for ax, (layer, by) in zip(axes[0], values.items(), strict=True):
        for k, (who, own) in enumerate(by.items()):
            at = np.arange(len(motifs)) + 0.22 * (k - (len(by) - 1) / 2)
            style = {"color": WHO_COLOURS[who], "markersize": 5, "linestyle": "none", "alpha": 0.7}
            ax.plot(own, np.repeat(at[:, None], own.shape[1], 1), WHO_MARKERS[who], **style)
            ax.plot([], [], WHO_MARKERS[who], color=WHO_COLOURS[who], label=who)
        ax.set_yticks(range(len(motifs)), motifs)
        ax.set_title(layer)
        ax.set_xlabel("largest IoU of a unit")
    axes[0, 0].set_ylabel("planted motif")
    axes[0, 0].set_ylim(len(motifs) - 0.5, -0.5)
    axes[0, 0].set_xlim(left=0)
    _legend_above(figure, *axes[0, 0].get_legend_handles_labels(), columns=3, title=title)
    return _finish(figure, caveat)
