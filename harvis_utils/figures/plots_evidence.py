"""Figures of the evidence notebooks, drawn as :mod:`harvis_utils.figures.plots` draws: nothing is computed here."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from harvis_utils.figures import plots
from harvis_utils.figures.plots import SIGNAL, WIDTH, _finish, _legend_above

#: below the range, in it, above it, not measured
STANDING_COLOURS = ("#edae49", "#1b4965", "#d1495b", "#e6e6e6")
STANDING_NAMES = ("below what the paper reports", "as the paper reports", "above it", "not measurable")
BEST, REST = "#2f6f4e", "#b4b4b4"
#: levels of a factor, from the smallest to the largest
LEVEL_COLOURS = ("#f1eef6", "#d0d1e6", "#a6bddb", "#74a9cf", "#2b8cbe", "#045a8d")


def plot_readings(
    standing: np.ndarray,
    facts: Sequence[str],
    score: Sequence[float],
    admissible: Sequence[bool],
    factors: Mapping[str, Sequence],
    winner: int = 0,
    title: str = "",
    caveat: str = "",
) -> Figure:
    """All readings at a glance, one per column: what each is, which facts it meets, and its score.

    ``standing`` is (fact, reading): -1 below the fact's range, 0 in it, 1 above, NaN not measurable. ``score`` is in
    [0, 1], ``admissible`` marks the readings that cannot be told apart from the best; ``factors`` maps each open
    parameter to its value in every reading; ``winner`` is the place of the reading that won.
    """
    n_facts, n = standing.shape
    heights = (1.1, 0.32 * n_facts, 0.28 * len(factors))
    figure, axes = plots._grid(
        3, 1, WIDTH, 1.7 + sum(heights), sharex=True, gridspec_kw={"height_ratios": heights, "hspace": 0.03}
    )
    top, middle, bottom = axes[:, 0]
    chosen = np.asarray(admissible, bool)
    places = np.arange(n)
    top.bar(places[~chosen], np.asarray(score)[~chosen], width=1.0, color=REST)
    top.bar(places[chosen], np.asarray(score)[chosen], width=1.0, color=BEST)
    top.plot(winner, np.asarray(score)[winner] + 0.08, "v", color="black", markersize=7)
    top.set_ylim(0, 1.15)
    top.set_yticks([0, 0.5, 1])
    top.set_ylabel("score")
    code = np.where(np.isnan(standing), 3, np.nan_to_num(standing) + 1)
    norm = BoundaryNorm(np.arange(-0.5, 4), 4)
    middle.imshow(code, aspect="auto", cmap=ListedColormap(STANDING_COLOURS), norm=norm, interpolation="nearest")
    middle.set_yticks(np.arange(n_facts), [textwrap.fill(fact, 52) for fact in facts], fontsize=9)
    # each factor on its own scale of levels
    levels = {name: sorted(set(values)) for name, values in factors.items()}
    shade = np.array(
        [[levels[name].index(v) / max(1, len(levels[name]) - 1) for v in values] for name, values in factors.items()]
    )
    bottom.imshow(shade, aspect="auto", cmap=ListedColormap(LEVEL_COLOURS), vmin=0, vmax=1, interpolation="nearest")
    bottom.set_yticks(np.arange(len(factors)), [f"{k}: {_levels(v)}" for k, v in levels.items()], fontsize=9)
    bottom.set_xlabel(f"{n} readings, best first")
    for ax in (middle, bottom):
        ax.grid(visible=False)
        for y in range(len(ax.get_yticks()) - 1):
            ax.axhline(y + 0.5, color="white", linewidth=1)
    handles = [*(Patch(color=c) for c in (*STANDING_COLOURS, BEST)), Line2D([], [], color="black", marker="v", ls="")]
    names = [*STANDING_NAMES, "score: cannot be told apart from the best", "winner: the nearest of these to the paper"]
    _legend_above(figure, handles, names, columns=3, title=title)
    return _finish(figure, caveat)


def _levels(values: Sequence) -> str:
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def plot_reading_factors(
    means: Mapping[str, Mapping[str, tuple[float, float, float]]], title: str = "", caveat: str = ""
) -> Figure:
    """Score of the readings by each open parameter: (mean, smallest, largest) per level, one panel per parameter."""
    figure, axes = plots._grid(1, len(means), WIDTH, 3.0, sharey=True)
    for ax, (name, levels) in zip(axes[0], means.items(), strict=True):
        values = np.array(list(levels.values()))
        spread = np.abs(values[:, 1:].T - values[:, 0])
        ax.errorbar(np.arange(len(levels)), values[:, 0], yerr=spread, fmt="o", color=SIGNAL, capsize=3, elinewidth=1)
        ax.set_xticks(np.arange(len(levels)), list(levels), rotation=90)
        ax.set_xlim(-0.5, len(levels) - 0.5)
        ax.set_xlabel(name)
    axes[0, 0].set_ylabel("score: mean and range")
    axes[0, 0].set_ylim(0, 1)
    return _finish(figure, caveat, title)


#: controls that do nothing, controls that are real, and others that no method made
CONTROL_COLOURS = {
    "starting-sine": "#111111",
    "flat-zero": "#111111",
    "random-weights": "#8a8a8a",
    "spectrum-noise": "#8a8a8a",
    "held-out-windows": "#c08a2b",
    "held-out-strongest": "#c08a2b",
    "held-out-strong": "#c08a2b",
}
CONTROL_MARKERS = {
    "starting-sine": "s",
    "flat-zero": "X",
    "random-weights": "v",
    "spectrum-noise": "^",
    "held-out-windows": "P",
    "held-out-strongest": "*",
    "held-out-strong": "D",
}


def plot_two_axes(
    methods: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]],
    controls: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]],
    layers: Sequence[str],
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Activation reached against nearness to real windows, one panel per layer: good is up and to the right.

    Both map a name to one ``(nearness, activation)`` per layer, each (3,): mean and the ends of its interval. Methods
    are circles in their colours, controls other markers: black did nothing, grey knew nothing of the unit, brown is
    real. The dotted line is where real windows are to one another.
    """
    figure, axes = plots._grid(1, len(layers), WIDTH, 4.9, sharex=True, sharey=True)
    styles = {name: (plots.METHOD_COLOURS.get(name, BEST), "o") for name in methods}
    styles |= {name: (CONTROL_COLOURS.get(name, REST), CONTROL_MARKERS.get(name, "d")) for name in controls}
    for i, (ax, layer) in enumerate(zip(axes[0], layers, strict=True)):
        for name, points in {**methods, **controls}.items():
            near, reached = points[i]
            colour, marker = styles[name]
            ends = [np.abs(np.asarray(v)[1:, None] - np.asarray(v)[0]) for v in (near, reached)]
            ax.errorbar(
                [near[0]], [reached[0]], xerr=ends[0], yerr=ends[1], fmt=marker, color=colour, markersize=7,
                markeredgecolor="white", markeredgewidth=0.6, elinewidth=1, label=name,
            )  # fmt: skip
        ax.axvline(0.5, color="black", linestyle=":", linewidth=1)
        ax.set_title(layer)
        ax.set_xlim(0, 0.6)
        ax.set_ylim(-0.03, 1.05)
        ax.set_xlabel("nearness to real strong windows")
    axes[0, 0].set_ylabel("activation: share of th reached (at most 1)")
    handles, names = axes[0, 0].get_legend_handles_labels()
    _legend_above(figure, handles, names, columns=5, title=title)
    return _finish(figure, caveat)


def plot_recall(
    recall: Mapping[str, np.ndarray], groups: Sequence[str], chance: float, title: str = "", caveat: str = ""
) -> Figure:
    """Share of planted motifs recovered: ``recall`` maps a method to (group, 3), mean and the ends of its interval.

    ``chance`` is what a null recovers at most by construction.
    """
    figure, axes = plots._grid(1, 1, WIDTH, 3.9)
    ax, width = axes[0, 0], 0.8 / len(recall)
    places = np.arange(len(groups))
    grey = [name for name in recall if name not in plots.METHOD_COLOURS]
    for k, (name, values) in enumerate(recall.items()):
        at = places + (k - (len(recall) - 1) / 2) * width
        style = {"color": plots.METHOD_COLOURS.get(name, "white"), "label": name}
        if name in grey:
            n = grey.index(name)
            style |= {"edgecolor": plots.CONTROL_GREYS[n], "hatch": plots.CONTROL_HATCHES[n + 1], "color": "#eeeeee"}
        ends = np.abs(values[:, 1:].T - values[:, 0])
        ax.bar(at, values[:, 0], width * 0.9, yerr=ends, error_kw={"elinewidth": 1, "capsize": 2}, **style)
    ax.axhline(chance, color=BEST, linestyle="--", linewidth=1, label=f"chance: {chance:.0%} at most")
    ax.set_xticks(places, groups)
    ax.set_xlabel("planted motifs by length")
    ax.set_ylim(0, 1.02)
    ax.set_ylabel("recall")
    ax.grid(axis="x", visible=False)
    handles, names = ax.get_legend_handles_labels()
    _legend_above(figure, handles, names, columns=5, title=title)
    return _finish(figure, caveat)


def plot_dependence(
    factors: Mapping[str, Mapping[str, np.ndarray]],
    labels: Mapping[str, str],
    chance: float,
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Recall and macro F1 over the levels of each factor: one panel per factor.

    ``factors`` maps a factor to ``level`` (level,) and any of "recall", "random weights", "macro F1", each
    (level, network); the mean is drawn as a line, each network as a dot. ``labels`` are the axes' labels.
    """
    figure, axes = plots._grid(1, len(factors), WIDTH, 3.6, sharey=True)
    styles = {"recall": (SIGNAL, "o", "-"), "random weights": ("#8a8a8a", "v", "--"), "macro F1": ("#edae49", "s", ":")}
    for ax, (factor, values) in zip(axes[0], factors.items(), strict=True):
        places = np.arange(len(values["level"]))
        for name, (colour, marker, line) in styles.items():
            if name in values:
                ax.plot(places, values[name].mean(1), marker + line, color=colour, label=name)
                ax.plot(places, values[name], marker, color=colour, alpha=0.35, markersize=4, linestyle="none")
        ax.axhline(chance, color=BEST, linestyle="--", linewidth=1, label=f"chance: {chance:.0%} at most")
        ax.set_xticks(places, [f"{v:g}" for v in values["level"]])
        ax.set_xlabel(labels[factor])
        ax.set_ylim(-0.02, 1.02)
    axes[0, 0].set_ylabel("recall, macro F1")
    handles, names = axes[0, 0].get_legend_handles_labels()
    _legend_above(figure, handles, names, columns=4, title=title)
    return _finish(figure, caveat)


def plot_agreement(
    agreement: Mapping[str, np.ndarray],
    nulls: Mapping[str, Mapping[str, np.ndarray]],
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Agreement of every pair of networks per layer, beside its nulls: ``agreement`` maps a layer to (pair,).

    ``nulls`` maps the name of a null to the same.
    """
    figure, axes = plots._grid(1, 1, WIDTH * 0.75, 3.4)
    ax, layers = axes[0, 0], list(agreement)
    shown = {"trained networks": agreement, **nulls}
    colours = (SIGNAL, "#8a8a8a", "#b5838d")
    for k, (name, values) in enumerate(shown.items()):
        for i, layer in enumerate(layers):
            at = i + 0.22 * (k - (len(shown) - 1) / 2)
            spread = np.linspace(-0.06, 0.06, len(values[layer])) if len(values[layer]) > 1 else [0]
            ax.plot(at + np.asarray(spread), values[layer], plots.MARKERS[k], color=colours[k], markersize=5, alpha=0.7,
                    label=name if i == 0 else None)  # fmt: skip
            ax.hlines(np.mean(values[layer]), at - 0.09, at + 0.09, color=colours[k])
    ax.set_xticks(range(len(layers)), layers)
    ax.set_xlabel("layer")
    ax.set_ylabel("mean correlation of matched units")
    ax.set_ylim(top=1)
    handles, names = ax.get_legend_handles_labels()
    _legend_above(figure, handles, names, columns=3, title=title)
    return _finish(figure, caveat)


def plot_recipes(
    recipes: Mapping[str, tuple[np.ndarray, np.ndarray]],
    chosen: str,
    families: Sequence[str],
    title: str = "",
    caveat: str = "",
) -> Figure:
    """What each recipe gains over the paper's method: ``recipes`` maps a name to (activation, nearness), each (3,).

    The three are the mean paired difference and the ends of its interval. Up and to the right is better on both axes.
    ``families`` is each recipe's family, in the same order.
    """
    figure, axes = plots._grid(1, 1, WIDTH, 5.6)
    ax = axes[0, 0]
    kinds = list(dict.fromkeys(families))
    palette = dict(zip(kinds, plots.class_colours(kinds).values(), strict=True))
    ax.axhline(0, color="black", linewidth=0.8)
    ax.axvline(0, color="black", linewidth=0.8)
    for k, ((name, (reached, near)), family) in enumerate(zip(recipes.items(), families, strict=True), start=1):
        ends = [np.abs(np.asarray(v)[1:, None] - np.asarray(v)[0]) for v in (near, reached)]
        ax.errorbar(
            [near[0]], [reached[0]], xerr=ends[0], yerr=ends[1], fmt="o", color=palette[family], elinewidth=1,
            markersize=10 if name == chosen else 6, markeredgecolor="black" if name == chosen else "white",
            label=f"{k} {name}",
        )  # fmt: skip
        ax.annotate(str(k), (near[0], reached[0]), xytext=(5, 4), textcoords="offset points", fontsize=9)
    ax.set_xlabel("nearness to real strong windows, minus the paper's method")
    ax.set_ylabel("activation reached,\nminus the paper's method")
    handles, names = ax.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", fontsize=9)
    ax.set_title(textwrap.fill(title, 56))
    return _finish(figure, caveat)
