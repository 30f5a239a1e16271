"""Figures of projections, occlusion, evolution and architecture, drawn as :mod:`harvis_utils.figures.plots` draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from harvis_utils.figures import plots
from harvis_utils.figures.plots import ACCENT, CONTROL_GREYS, MAP, SIGNAL, WIDTH, _finish, _legend_above

TRAINED, RANDOM = SIGNAL, "#919191"
MOTIF, DECOY, ELSEWHERE = "#2f6f4e", "#d1495b", "#e6e6e6"
LAYER_COLOURS = ("#5fa8d3", "#1b4965", "#d1495b", "#edae49")
ARM_COLOURS = (SIGNAL, ACCENT, RANDOM)
BAND_COLOURS = ("#9d6fbf", "#7fb069", "#edae49")


def plot_projections(
    signals: np.ndarray,
    projections: np.ndarray,
    units: Sequence[str],
    activities: Sequence[Sequence[str]],
    rate_hz: float,
    title: str = "",
    caveat: str = "",
) -> Figure:
    """A unit's strongest activations: the windows above, their projections below (Zeiler and Fergus, Fig. 2).

    ``signals`` (unit, rank, time) in G with their mean taken off and ``projections`` of the same shape, on the axis
    that caused the activation; ``activities`` names each window's, as short as can be.
    """
    n_units, n_rank, length = signals.shape
    figure, axes = plots._grid(2 * n_units, n_rank, WIDTH, 0.9 + 1.5 * n_units, sharex=True, sharey="row")
    time = np.arange(length) / rate_hz
    for u in range(n_units):
        for r in range(n_rank):
            above, below = axes[2 * u, r], axes[2 * u + 1, r]
            above.plot(time, signals[u, r], color=SIGNAL, linewidth=1)
            below.plot(time, projections[u, r], color=ACCENT, linewidth=1)
            above.set_title(activities[u][r], fontsize=9, pad=2)
            for ax in (above, below):
                ax.set_xticks([0, time[-1]], ["0", f"{time[-1]:.1f}"])
                ax.set_yticks([])
        axes[2 * u, 0].set_ylabel(units[u], rotation=0, ha="right", va="center")
    axes[-1, n_rank // 2].set_xlabel("time [s]")
    handles = [Line2D([], [], color=SIGNAL), Line2D([], [], color=ACCENT)]
    _legend_above(figure, handles, ["window, its mean taken off [G]", "projection [1]"], 2, title)
    return _finish(figure, caveat)


def plot_windows(
    signals: np.ndarray,
    maps: Mapping[str, np.ndarray],
    names: Sequence[str],
    axis_names: Sequence[str],
    rate_hz: float,
    spans: np.ndarray | None = None,
    peaks: Mapping[str, Sequence[tuple[int, int]]] | None = None,
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Windows, and beside each what every lens says of it: one row per window.

    ``signals`` (window, axis, time) in G, drawn with their means taken off by the caller; ``maps`` by lens (window,
    axis, time), each drawn on its own scale, zero in the middle. ``spans`` (window, axis, time, bool) outlines what is
    known to be there; ``peaks`` marks (axis, time) per lens and window.
    """
    n, n_axes, length = signals.shape
    figure, axes = plots._grid(n, 1 + len(maps), WIDTH, 0.9 + 1.75 * n)
    time = np.arange(length) / rate_hz
    step = 1.6 * max(1e-9, float(np.quantile(np.abs(signals), 0.995)))
    for i in range(n):
        ax = axes[i, 0]
        for a in range(n_axes):
            ax.plot(time, signals[i, a] / step - a, color=SIGNAL, linewidth=1)
            if spans is not None:
                ax.fill_between(time, -a - 0.5, -a + 0.5, where=spans[i, a], color=MAP, linewidth=0, step="mid")
        ax.set_ylim(-n_axes + 0.3, 0.7)
        ax.set_yticks(-np.arange(n_axes), axis_names)
        ax.set_ylabel(names[i])
        for j, (lens, values) in enumerate(maps.items(), 1):
            ax = axes[i, j]
            extent = (-0.5 / rate_hz, (length - 0.5) / rate_hz, n_axes - 0.5, -0.5)
            top = float(np.abs(values[i]).max()) or 1.0
            ax.imshow(values[i], aspect="auto", cmap="RdBu_r", vmin=-top, vmax=top, extent=extent)
            if spans is not None:
                for a in range(n_axes):
                    _outline(ax, spans[i, a], a, rate_hz)
            if peaks is not None:
                where = peaks[lens][i]
                ax.plot(where[1] / rate_hz, where[0], "k+", markersize=10, markeredgewidth=2)
            ax.set_yticks([])
            ax.grid(visible=False)
            if i == 0:
                ax.set_title(lens)
    axes[0, 0].set_title("window")
    for ax in axes[-1]:
        ax.set_xlabel("time [s]")
    for ax in axes[:-1].flat:
        ax.set_xticklabels([])
    return _finish(figure, caveat, title)


def _outline(ax, span: np.ndarray, axis: int, rate_hz: float) -> None:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], span.astype(int), [0]])))
    for begin, end in edges.reshape(-1, 2):
        x0, x1 = (begin - 0.5) / rate_hz, (end - 0.5) / rate_hz
        ax.plot([x0, x1, x1, x0, x0], np.array([-0.42, -0.42, 0.42, 0.42, -0.42]) + axis, color="black", linewidth=0.9)


def plot_locating(
    plain: Mapping[str, Mapping[str, Sequence[float]]],
    decoys: Mapping[str, Mapping[str, tuple[float, float]]],
    chance: float,
    wanted: float,
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Do peaks lie in motifs? Left: share with interval, by lens and kind of network. Right: motif or decoy.

    ``plain`` maps lens -> {"trained": (value, low, high), "random": ...}; ``decoys`` lens -> {kind: (share in motifs,
    share in decoys)}. ``chance`` is the share of the plane that motifs cover, ``wanted`` a level to be reached.
    """
    n = len(plain)
    figure, (row,) = plots._grid(1, 2, WIDTH, 1.6 + 0.36 * n, sharey=True)
    left, right = row
    places = -np.arange(n, dtype=float)
    for kind, colour, shift in (("trained", TRAINED, 0.12), ("random", RANDOM, -0.12)):
        known = [(y, by[kind]) for y, by in zip(places, plain.values(), strict=True) if kind in by]
        y, values = np.array([k[0] for k in known]), np.array([k[1] for k in known], dtype=float)
        spread = np.abs(values[:, 1:].T - values[:, 0])
        left.errorbar(
            values[:, 0], y + shift, xerr=spread, fmt="o", color=colour, capsize=2, elinewidth=1, markersize=5
        )
    left.axvline(chance, color="black", linestyle=":", linewidth=1)
    left.axvline(wanted, color=MOTIF, linestyle="--", linewidth=1)
    left.set_xlim(-0.03, 1.03)
    left.set_yticks(places, list(plain))
    left.set_ylim(places[-1] - 0.6, 0.6)
    left.set_xlabel("peaks inside a motif [share of windows]")
    left.set_ylabel("lens")
    for y, by in zip(places, decoys.values(), strict=True):
        for kind, shift, alpha in (("trained", 0.17, 1.0), ("random", -0.17, 0.45)):
            motif, decoy = by[kind]
            parts = ((0, motif, MOTIF), (motif, decoy, DECOY), (motif + decoy, 1 - motif - decoy, ELSEWHERE))
            for begin, width, colour in parts:
                right.barh(y + shift, width, left=begin, height=0.3, color=colour, alpha=alpha)
    right.set_xlim(0, 1)
    right.set_xlabel("with decoys: peak in motif, decoy, elsewhere [share]")
    right.grid(visible=False)
    handles = [Line2D([], [], color=c, marker="o", ls="") for c in (TRAINED, RANDOM)]
    handles += [Line2D([], [], color="black", ls=":"), Line2D([], [], color=MOTIF, ls="--")]
    handles += [Patch(color=c) for c in (MOTIF, DECOY, ELSEWHERE)]
    names = ["trained (right: upper bar)", "random weights (lower bar)", "chance", f"{wanted:.0%}"]
    _legend_above(figure, handles, [*names, "motif", "decoy", "elsewhere"], 7, title)
    return _finish(figure, caveat)


def plot_evolution(
    epochs: Sequence[int],
    values: Mapping[str, Mapping[str, np.ndarray]],
    level: float,
    settled: Mapping[str, Mapping[str, int]],
    title: str = "",
    caveat: str = "",
) -> Figure:
    """How much units are like their last state, one panel per measure: ``values`` measure -> layer -> (3, epoch).

    The three are median, lower and upper quartile over units; ``settled`` measure -> layer -> the epoch that is marked.
    """
    figure, (row,) = plots._grid(1, len(values), WIDTH, 3.6, sharey=True)
    for ax, (measure, by_layer) in zip(row, values.items(), strict=True):
        for colour, (layer, curves) in zip(LAYER_COLOURS, by_layer.items(), strict=False):
            median, low, high = curves
            ax.plot(epochs, median, color=colour, marker="o", markersize=3)
            ax.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
            at = settled[measure][layer]
            ax.plot(at, median[list(epochs).index(at)], "o", color=colour, markersize=9, markerfacecolor="none")
        ax.axhline(level, color="black", linestyle=":", linewidth=1)
        ax.set_title(measure)
        ax.set_xlabel("epoch")
    row[0].set_ylabel("correlation with the last epoch")
    layers = list(next(iter(values.values())))
    handles = [Line2D([], [], color=c, marker="o", markersize=3) for c in LAYER_COLOURS[: len(layers)]]
    handles.append(Line2D([], [], color="black", marker="o", markersize=9, markerfacecolor="none", ls=""))
    _legend_above(figure, handles, [*layers, "settled"], len(layers) + 1, title)
    return _finish(figure, caveat)


def plot_units_over_epochs(
    projections: np.ndarray,
    epochs: Sequence[int],
    rows: Sequence[str],
    changed: np.ndarray,
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Projections (unit, epoch, sample) of the strongest activation as training goes on (Zeiler and Fergus, Fig. 4).

    Each is drawn on its own scale, as there contrast is; ``changed`` (unit, epoch) marks in colour where the strongest
    activation comes from another window than in the last epoch.
    """
    n_units, n_epochs, n_sample = projections.shape
    figure, axes = plots._grid(n_units, n_epochs, WIDTH, 0.9 + 0.62 * n_units, sharex=True)
    for u in range(n_units):
        for e in range(n_epochs):
            ax, y = axes[u, e], projections[u, e]
            ax.plot(y / (np.abs(y).max() or 1.0), color=ACCENT if changed[u, e] else SIGNAL, linewidth=1.2)
            ax.set_ylim(-1.15, 1.15)
            ax.set_xticks([])
            ax.set_yticks([])
            if u == 0:
                ax.set_title(str(epochs[e]))
        axes[u, 0].set_ylabel(rows[u], rotation=0, ha="right", va="center")
    axes[-1, 0].set_xlabel(f"{n_sample} samples")
    handles = [Line2D([], [], color=c) for c in (SIGNAL, ACCENT)]
    _legend_above(figure, handles, ["the window it is in the end", "another window"], 2, title)
    return _finish(figure, caveat)


def plot_variants(
    f1: Mapping[str, Mapping[str, Sequence[float]]],
    bands: Mapping[str, Mapping[str, float]],
    aliased: Mapping[str, float],
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Left: F1 (value, low, high) of the variants by question; right: what their first layer's filters cover.

    ``bands`` variant -> band -> mean share of power; ``aliased`` variant -> share that the stride folds back.
    """
    n = sum(map(len, f1.values()))
    figure, (row,) = plots._grid(1, 2, WIDTH, 1.7 + 0.33 * n, sharey=True)
    left, right = row
    names, y, rules = [], 0.0, []
    places = {}
    for question, variants in f1.items():
        for name, (value, low, high) in variants.items():
            spread = None if np.isnan(low) else [[value - low], [high - value]]
            left.errorbar(value, -y, xerr=spread, fmt="o", color=TRAINED, capsize=3, elinewidth=1)
            places[name] = -y
            names.append(name)
            y += 1
        rules.append((-y + 0.5, question))
    for name, at in places.items():
        begin = 0.0
        for colour, share in zip(BAND_COLOURS, bands[name].values(), strict=True):
            right.barh(at, share, left=begin, height=0.6, color=colour)
            begin += share
        right.plot(aliased[name], at, "kx", markersize=7, markeredgewidth=2)
    for at, _ in rules[:-1]:
        left.axhline(at, color=CONTROL_GREYS[3], linewidth=1)
        right.axhline(at, color=CONTROL_GREYS[3], linewidth=1)
    left.set_yticks(list(places.values()), names)
    left.set_ylim(-n + 0.4, 0.6)
    left.set_xlabel("macro F1, test people")
    left.set_ylabel("variant")
    right.set_xlim(-0.02, 1.02)
    right.set_xlabel("share of the first layer's power")
    right.grid(visible=False)
    handles = [Patch(color=c) for c in BAND_COLOURS] + [Line2D([], [], color="black", marker="x", ls="")]
    bands_of = list(next(iter(bands.values())))
    _legend_above(figure, handles, [*bands_of, "folded back by the stride"], 4, title)
    return _finish(figure, caveat)


def plot_transfer(
    curves: Mapping[str, Mapping[str, np.ndarray]],
    numbers: Sequence[int],
    title: str = "",
    caveat: str = "",
) -> Figure:
    """F1 by the number of windows a class, one panel per target: ``curves`` target -> arm -> (3, number).

    The three are value, low and high.
    """
    figure, (row,) = plots._grid(1, len(curves), WIDTH, 3.6, sharey=True)
    for ax, (target, arms) in zip(row, curves.items(), strict=True):
        for colour, (value, low, high) in zip(ARM_COLOURS, arms.values(), strict=True):
            ax.plot(numbers, value, color=colour, marker="o", markersize=4)
            if not np.isnan(low).any():
                ax.fill_between(numbers, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.set_xscale("log")
        ax.set_xticks(list(numbers), [str(n) for n in numbers])
        ax.minorticks_off()
        ax.set_xlabel("windows a class")
        ax.set_title(target)
    row[0].set_ylabel("macro F1, test people")
    row[0].set_ylim(0, 1)
    arms = list(next(iter(curves.values())))
    handles = [Line2D([], [], color=c, marker="o") for c in ARM_COLOURS[: len(arms)]]
    _legend_above(figure, handles, arms, len(arms), title)
    return _finish(figure, caveat)


def plot_sensor_drops(
    drops: Mapping[str, np.ndarray],
    activities: Sequence[str],
    sensors: Sequence[str],
    title: str = "",
    caveat: str = "",
) -> Figure:
    """What covering a sensor costs each class: ``drops`` kind of network -> (activity, sensor), NaN where unknown."""
    figure, (row,) = plots._grid(1, len(drops), WIDTH, 1.6 + 0.27 * len(activities), sharey=True)
    top = max(float(np.nanmax(np.abs(values))) for values in drops.values())
    for ax, (kind, values) in zip(row, drops.items(), strict=True):
        image = ax.imshow(values, aspect="auto", cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest")
        ax.set_xticks(np.arange(len(sensors)), sensors)
        ax.set_xlabel("sensor covered")
        ax.set_title(kind)
        ax.grid(visible=False)
    row[0].set_yticks(np.arange(len(activities)), activities)
    row[0].set_ylabel("activity")
    figure.colorbar(image, ax=list(row), label="drop of the log odds, mean")
    return _finish(figure, caveat, title)
