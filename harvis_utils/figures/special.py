"""Figures of one shape each: the atlas, a unit's card, the readings, ascents on made-up functions, the pipeline."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch, Patch
from matplotlib.ticker import MaxNLocator
from scipy.optimize import linear_sum_assignment

from harvis_utils.figures.style import (
    ACCENT,
    CONTROL_GREYS,
    GOOD,
    MAP,
    MARKERS,
    SIGNAL,
    WIDTH,
    axis_entries,
    class_colours,
    entries,
    finish,
    grid,
    plot_axes,
)

#: a fact of a reading: below the paper's range, in it, above it, not measured
STANDINGS = {
    "below what the paper reports": "#edae49",
    "as the paper reports": "#1b4965",
    "above it": "#d1495b",
    "not measurable": "#e6e6e6",
}
#: levels of a factor, from the smallest to the largest
LEVEL_COLOURS = ("#f1eef6", "#d0d1e6", "#a6bddb", "#74a9cf", "#2b8cbe", "#045a8d")
TOP_COLOUR = "#e09f3e"
#: empty samples between curves that stand side by side
GAP = 4


def pipeline(stages: Sequence[tuple[str, str]], title: str = "", copies: Sequence[int] = ()) -> Figure:
    """Stages as boxes joined by arrows; each is (what is in it, what is said below), as often as ``copies`` say."""
    figure, ((ax,),) = grid(1, 1, WIDTH, 1.9)
    box = {"boxstyle": "round,pad=0.45", "facecolor": "#eef3f7", "edgecolor": SIGNAL}
    for i, (name, below) in enumerate(stages):
        for k in reversed(range(copies[i] if copies else 1)):  # the last one in front
            at = (i + 0.025 * k, 0.52 + 0.06 * k)
            ax.text(*at, name, ha="center", va="center", fontsize=9.5, bbox=box, zorder=3 - 0.1 * k)
        ax.text(i, 0.1, below, ha="center", va="center", fontsize=9, color="#555555")
        if i:
            ax.annotate("", (i - 0.36, 0.52), (i - 0.6, 0.52), arrowprops={"arrowstyle": "->", "color": SIGNAL})
    ax.set(xlim=(-0.5, len(stages) - 0.4), ylim=(0, 1))
    ax.set_axis_off()
    return finish(figure, title=title)


def amplitude_histogram(
    counts: np.ndarray, edges_g: np.ndarray, threshold_g: float, paper_g: float | None = None, title: str = ""
) -> Figure:
    """Histogram of |acceleration| (``counts`` between ``edges_g``) with the line of mean + 2 std (claim C2)."""
    figure, ((ax,),) = grid(1, 1, WIDTH * 0.75, 3.6, "|acceleration| [G]", "samples")
    ax.stairs(counts, edges_g, fill=True, color=MAP, edgecolor=SIGNAL)
    ax.set_yscale("log")
    ax.axvline(threshold_g, color=ACCENT, label=f"mean + 2 std = {threshold_g:.3f} G")
    if paper_g is not None:
        ax.axvline(paper_g, color="black", linestyle=":", label=f"paper: {paper_g:.2f} G")
    ax.margins(x=0)
    return finish(figure, entries([ax]), title=title)


def _by_activity(ax: Axes, positions: np.ndarray, activities: np.ndarray, names: Sequence[str], **style) -> None:
    """Units (unit, 2) on a map, in the colour and with the marker of their activity; negative: none."""
    colours = class_colours(names)
    for a in np.unique(activities):
        name, marker = (names[a], MARKERS[a % len(MARKERS)]) if a >= 0 else ("none", "X")
        look = {"color": colours.get(name, "#999999"), "marker": marker, "label": name}
        ax.scatter(*positions[activities == a].T, **look, **style)
    ax.set(xticks=[], yticks=[])


def atlas(
    positions: np.ndarray,
    signals: np.ndarray,
    activities: Sequence[int],
    names: Sequence[str],
    title: str = "",
    n_thumbnails: int = 20,
    axis_names: Sequence[str] = (),
) -> Figure:
    """Map of the units (Fig. 8): colour = activity of the nearest real window, waveforms around it.

    ``positions`` (unit, 2) of a t-SNE map, ``signals`` (unit[, axis], time) in G, ``activities`` (unit,) indices into
    ``names`` (negative: none). Units with NaN positions are left out and counted. Thin lines lead from a waveform to
    its unit. A waveform has the colour of its unit's activity, or of several axes each its own, by ``axis_names``.
    """
    activities, shown = np.asarray(activities), np.flatnonzero(np.isfinite(positions).all(1))
    n_lost = len(positions) - len(shown)
    positions, signals, activities = positions[shown], signals[shown], activities[shown]
    side = max(1, min(n_thumbnails, len(positions)) // 4)
    figure = plt.figure(figsize=(WIDTH, 7.2), layout="constrained")
    plt.close(figure)
    cells = figure.add_gridspec(side + 2, side + 2)  # the map in the middle, small frames around it
    ax = figure.add_subplot(cells[1:-1, 1:-1])
    _by_activity(ax, positions, activities, names, s=42, edgecolor="white", linewidth=0.5)
    ax.set_xlabel("t-SNE 1 (no unit)", fontsize=9)
    ax.set_ylabel("t-SNE 2 (no unit)", fontsize=9)
    ax.margins(0.08)
    ax.spines[:].set(visible=True, color="#cccccc")
    ax.patch.set_visible(False)
    chosen = _spread_choice(positions, min(4 * side, len(positions)))
    ax.scatter(*positions[chosen].T, s=70, facecolor="none", edgecolor="#555555", linewidth=0.8)
    limit = float(np.quantile(np.abs(signals[chosen]).reshape(len(chosen), -1).max(1), 0.9)) * 1.1 or 1.0
    slots = [at for i in range(1, side + 1) for at in ((0, i), (side + 1, i), (i, 0), (i, side + 1))]
    low, high = positions.min(0), positions.max(0)
    x, y = (((positions[chosen] - low) / np.where(high > low, high - low, 1)) * side + 0.5).T
    cost = ((np.array(slots)[:, None] - np.stack([side + 1 - y, x], 1)) ** 2).sum(-1)
    colours = class_colours(names)
    for slot, c in zip(*linear_sum_assignment(cost), strict=True):
        unit = chosen[c]
        small = figure.add_subplot(cells[slots[slot]], xticks=[], yticks=[], ylim=(-limit, limit))
        own = colours[names[activities[unit]]] if activities[unit] >= 0 else "#999999"
        plot_axes(small, np.arange(signals.shape[-1]), signals[unit], own)
        small.axhline(0, color="#cccccc", linewidth=0.6, zorder=0)
        peak = float(np.abs(signals[unit]).max())
        said = f"{shown[unit]}" if peak <= limit else f"{shown[unit]} (to {peak:.1f} G)"
        small.set_title(said, fontsize=9, pad=2, loc="left", color="#555555")
        small.spines[:].set(visible=True, color="#dddddd")
        style = {"color": "#bbbbbb", "linewidth": 0.5, "zorder": -1}  # from behind the small frame
        figure.add_artist(ConnectionPatch((0.5, 0.5), positions[unit], small.transAxes, ax.transData, **style))
    outside = {"loc": "outside right center", "alignment": "left"}
    figure.legend(*ax.get_legend_handles_labels(), title="activity of the\nnearest real window", **outside)
    lost = f"; {n_lost} units without a place" if n_lost else ""
    note = f"small frames: signal over time, ±{limit:.2g} G, number = unit{lost}"
    return finish(figure, axis_entries(signals[0], axis_names), 6, "\n".join(part for part in (title, note) if part))


def _spread_choice(positions: np.ndarray, n: int) -> np.ndarray:
    """Units far from each other on the map: each next one is the farthest from those already taken."""
    chosen = [int(((positions - positions.mean(0)) ** 2).sum(1).argmax())]
    distance = ((positions - positions[chosen[0]]) ** 2).sum(1)
    while len(chosen) < n:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, ((positions - positions[chosen[-1]]) ** 2).sum(1))
    return np.array(chosen)


def readings(
    standing: np.ndarray,
    facts: Sequence[str],
    score: Sequence[float],
    admissible: Sequence[bool],
    factors: Mapping[str, Sequence],
    winner: int,
    title: str = "",
) -> Figure:
    """All readings at a glance, one per column: what each is, which facts it meets, and its score.

    ``standing`` is (fact, reading): -1 below the fact's range, 0 in it, 1 above, NaN not measurable. ``score`` is in
    [0, 1], ``admissible`` marks the readings that cannot be told apart from the best; ``factors`` maps each open
    parameter to its value in every reading; ``winner`` is the place of the reading that won.
    """
    n_facts, n = standing.shape
    heights = (1.1, 0.32 * n_facts, 0.28 * len(factors))
    ratios = {"height_ratios": heights, "hspace": 0.03}
    figure, axes = grid(3, 1, WIDTH, 1.7 + sum(heights), f"{n} readings, best first", sharex=True, gridspec_kw=ratios)
    top, middle, bottom = axes[:, 0]
    score, colours = np.asarray(score), np.where(admissible, GOOD, CONTROL_GREYS[3])
    top.bar(np.arange(n), score, width=1.0, color=colours)
    top.plot(winner, score[winner] + 0.08, "v", color="black", markersize=7)
    top.set(ylim=(0, 1.15), yticks=[0, 0.5, 1], ylabel="score")
    code, norm = np.nan_to_num(standing + 1, nan=3), BoundaryNorm(np.arange(-0.5, 4), 4)
    pixels = {"aspect": "auto", "interpolation": "nearest"}
    middle.imshow(code, cmap=ListedColormap(list(STANDINGS.values())), norm=norm, **pixels)
    # each factor on its own scale of levels
    levels = {name: np.unique(values, return_inverse=True) for name, values in factors.items()}
    shade = [places / max(1, len(found) - 1) for found, places in levels.values()]
    bottom.imshow(shade, cmap=ListedColormap(LEVEL_COLOURS), vmin=0, vmax=1, **pixels)
    of_levels = [
        f"{k}: {', '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in vs)}" for k, (vs, _) in levels.items()
    ]
    for ax, names in ((middle, [textwrap.fill(fact, 52) for fact in facts]), (bottom, of_levels)):
        ax.set_yticks(range(len(names)), names, fontsize=9)
        ax.grid(visible=False)
        for y in range(len(names) - 1):
            ax.axhline(y + 0.5, color="white", linewidth=1)
    legend = {name: Patch(color=colour) for name, colour in STANDINGS.items()}
    legend["score: cannot be told apart from the best"] = Patch(color=GOOD)
    legend["winner: the nearest of these to the paper"] = Line2D([], [], color="black", marker="v", linestyle="")
    return finish(figure, legend, 3, title=title)


def landscapes(
    surfaces: Mapping[str, tuple[np.ndarray, np.ndarray]],
    paths: Mapping[str, Mapping[str, np.ndarray]],
    tops: Mapping[str, Sequence[float]],
    title: str = "",
) -> Figure:
    """Functions (columns) and the ascents on them, one row for each way to climb.

    ``surfaces`` maps a function to its coordinates (n,) and values, (n,) or (n, n) with rows for the second input;
    ``paths`` maps a way to climb to each function's paths, (step, point, dimension); ``tops`` says where the highest
    value is (star). A circle is where an ascent starts, a dot where it ends.
    """
    size = (WIDTH, 0.4 + 2.5 * len(paths))
    figure, axes = grid(len(paths), len(surfaces), *size, "first input", sharex=True, sharey="col")
    for row, (way, by_name) in zip(axes, paths.items(), strict=True):
        for ax, (name, (ticks, values)) in zip(row, surfaces.items(), strict=True):
            path, top = by_name[name], tops[name]
            if values.ndim == 1:
                ax.plot(ticks, values, color="black", linewidth=1)
                begin, end = (np.stack([path[k, :, 0], np.interp(path[k, :, 0], ticks, values)]) for k in (0, -1))
                arrow = {"arrowstyle": "->", "color": SIGNAL, "alpha": 0.6}
                for at, to in zip(begin.T, end.T, strict=True):
                    ax.annotate("", to, at, arrowprops=arrow)
                top = (top[0], values.max())
            else:
                span, above = (ticks[0], ticks[-1], ticks[0], ticks[-1]), values.max() + 0.6 * np.ptp(values)
                style = {"cmap": "Greys", "origin": "lower", "aspect": "auto", "interpolation": "bilinear"}
                ax.imshow(values, extent=span, vmax=above, **style)
                ax.plot(path[:, :, 0], path[:, :, 1], color=SIGNAL, linewidth=1)
                begin, end = path[0].T, path[-1].T
            ax.plot(*begin, "o", color=SIGNAL, markerfacecolor="white", markersize=4)
            ax.plot(*end, "o", color=ACCENT, markersize=6, clip_on=False)
            ax.plot(*top, "*", color=TOP_COLOUR, markersize=12, markeredgecolor="black", clip_on=False)
            ax.set_ylabel("value" if values.ndim == 1 else "second input")
            ax.set_title(f"{name}: {way}")
    return finish(figure, title=title)


def card(of, cards: Mapping, rate_hz: float, axis_names: Sequence[str] = ()) -> Figure:
    """One page about one unit, ``of`` a card (:class:`harvis_utils.lenses.cards.Card`, or what has its attributes).

    Above: its signal, its twin's in another network, and those of its neighbours on the atlas, by name in ``cards``.
    Below: the real windows that excite it most, with the projections of these activations; the concepts its mask
    overlaps; what activities lose when it is silenced. A unit that mixes axes has a line for each, by ``axis_names``.
    """
    figure = plt.figure(figsize=(WIDTH, 8.4), layout="constrained")
    plt.close(figure)
    cells = figure.add_gridspec(3, 1, height_ratios=(1.0, 1.45, 1.15))
    above = [figure.add_subplot(c) for c in cells[0].subgridspec(1, 3, width_ratios=(1, 1, 1.6))]
    middle = [figure.add_subplot(c) for c in cells[1].subgridspec(2, 1)]
    below = [figure.add_subplot(c) for c in cells[2].subgridspec(1, 2)]
    neighbours = [cards[f"{of.layer}-{u}"].signal for u in of.neighbours]
    curves = [of.signal, *([of.twin.signal] if of.twin else []), *neighbours]
    limit = 1.1 * largest(curves)
    for ax in above:
        ax.set(ylim=(-limit, limit), ylabel=f"signal [{of.units}]", xlabel="time [s]")
    time = np.arange(of.signal.shape[-1]) / rate_hz
    plot_axes(above[0], time, of.signal, ACCENT)
    above[0].set_title(textwrap.fill(f"its signal; {nearest(of)}", 36))
    match = "no match in another network"
    if of.twin:
        plot_axes(above[1], time, of.twin.signal, SIGNAL)
        alike = f"alike {of.twin.similarity:.2f} (chance {of.twin.chance:.2f})"
        match = f"its match: unit {of.twin.unit} of network {of.twin.seed}, {alike}"
    above[1].set_title(textwrap.fill(match, 36))
    _side_by_side(above[2], neighbours, [f"unit {u}" for u in of.neighbours], rate_hz, CONTROL_GREYS[0])
    above[2].set_title("nearest units on the atlas" if len(neighbours) else "without a place on the atlas")
    names = [f"{_short(w.activity, 24)}\n{w.axis}\nperson {w.subject}: {w.activation:.2f}" for w in of.windows]
    _side_by_side(middle[0], [w.signal for w in of.windows], [""] * len(names), rate_hz, SIGNAL)
    _side_by_side(middle[1], [w.projection for w in of.windows], names, rate_hz, ACCENT)
    strong = "real windows that excite it most, and below what comes back of these activations"
    strong = f"{strong} ({of.windows[0].rule})" if names else "no real window excites it"
    middle[0].set(title=strong, ylabel=f"signal [{of.units}]")
    middle[1].set(ylabel="projection [1]", xlabel="one window each: activity, axis, person, activation")
    _bars(below[0], of.iou, of.detects, "concepts in its strongest samples (red: detected)", "IoU")
    _bars(below[1], of.cost, of.matters_for, "silenced: who loses (red: it matters)", "drop of F1")
    who = f"{of.layer.capitalize()}, unit {of.unit} of network {of.seed}"
    who += "" if of.status == "used" else f" ({of.status})"
    return finish(figure, axis_entries(of.signal, axis_names), 6, title=", ".join([who, *measured(of)]))


def nearest(of) -> str:
    """The activity of the real window nearest to a card's signal, in words."""
    return f"nearest real window: {of.nearest_activity}" if of.nearest_activity else "no nearest real window"


def measured(of) -> list[str]:
    """How strong a card's signal is and how near to real windows, in words, where it is known."""
    found = {"reaches {:.2f} of its threshold": of.activation, "nearness to real windows {:.2f}": of.nearness}
    return [text.format(value) for text, value in found.items() if not np.isnan(value)]


def largest(curves: Sequence[np.ndarray]) -> float:
    """Largest finite absolute value of the curves, 1 where there is none or it is 0."""
    return max([float(np.nanmax(np.abs(c))) for c in curves if np.isfinite(c).any()], default=0.0) or 1.0


def _short(name: str, width: int) -> str:
    return textwrap.shorten(name, width, placeholder="...")


def _side_by_side(ax: Axes, curves: Sequence[np.ndarray], names: Sequence[str], rate_hz: float, colour: str) -> None:
    """Curves ([axis,] time) one after the other; their names below, where a time axis would say little."""
    width = curves[0].shape[-1] if len(curves) else 1
    starts = np.arange(len(curves)) * (width + GAP)
    for start, curve in zip(starts, curves, strict=True):
        plot_axes(ax, np.arange(width) + start, curve, colour, linewidth=1.2)
    for start in starts[1:]:
        ax.axvline(start - GAP / 2 - 0.5, color=MAP, linewidth=0.8)
    ax.set_xticks(starts + width / 2, names, fontsize=9)
    ax.tick_params(axis="x", length=0)
    ax.grid(False, axis="x")
    ax.set_xlabel(f"{width / rate_hz:.0f} s each" if len(curves) else "")


def _bars(ax: Axes, values: Mapping[str, float], marked: Sequence[str], title: str, label: str) -> None:
    """One bar a value, those that count in colour."""
    colours = [ACCENT if name in marked else CONTROL_GREYS[3] for name in values]
    ax.barh([_short(name, 30) for name in values], list(values.values()), color=colours)
    ax.invert_yaxis()
    ax.set(title=title, xlabel=label)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.grid(False, axis="y")
