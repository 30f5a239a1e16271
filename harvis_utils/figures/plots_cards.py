"""The figure of a unit's card, drawn as :mod:`harvis_utils.figures.plots` draws."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harvis_utils.figures import plots
from harvis_utils.figures.plots import ACCENT, CONTROL_GREYS, MAP, SIGNAL, WIDTH
from harvis_utils.lenses.cards import N_ACTIVITIES, N_CONCEPTS, Card
from harvis_utils.lenses.dissection import DETECTOR_IOU

#: empty samples between curves that stand side by side
GAP = 4


def plot_card(card: Card, neighbours: Sequence[np.ndarray], rate_hz: float, caveat: str = "") -> Figure:
    """One page about one unit (:class:`harvis_utils.lenses.cards.Card`).

    Above: its signal, its twin's in another network, and the signals (time,) in G of its ``neighbours`` on the atlas.
    Below: the real windows that excite it most, with the projections of these activations; the concepts its mask
    overlaps; what activities lose when it is silenced.
    """
    figure, grid = plots._grid(3, 1, WIDTH, 8.4)
    for ax in grid[:, 0]:
        ax.remove()
    cells = figure.add_gridspec(3, 1, height_ratios=(1.0, 1.45, 1.15))
    above = [figure.add_subplot(c) for c in cells[0].subgridspec(1, 3, width_ratios=(1, 1, 1.6))]
    middle = [figure.add_subplot(c) for c in cells[1].subgridspec(2, 1)]
    below = [figure.add_subplot(c) for c in cells[2].subgridspec(1, 2)]
    _signals(above, card, neighbours, rate_hz)
    _windows(middle, card, rate_hz)
    _bars(
        below[0],
        card.iou,
        N_CONCEPTS,
        set(card.detects),
        "concepts in its strongest samples",
        "IoU",
        limit=DETECTOR_IOU,
    )
    _bars(below[1], card.cost, N_ACTIVITIES, set(card.matters_for), "silenced: who loses", "drop of F1")
    reached = "" if np.isnan(card.activation) else f", reaches {card.activation:.2f} of its threshold"
    near = "" if np.isnan(card.nearness) else f", nearness to real windows {card.nearness:.2f}"
    note = "" if card.status == "used" else f" ({card.status})"
    title = f"{card.layer.capitalize()}, unit {card.unit} of network {card.seed}{note}{reached}{near}"
    return plots._finish(figure, caveat, title)


def _signals(axes: Sequence[Axes], card: Card, neighbours: Sequence[np.ndarray], rate_hz: float) -> None:
    curves = [card.signal, *([card.twin.signal] if card.twin else []), *neighbours]
    limit = 1.1 * max([np.nanmax(np.abs(c)) for c in curves if np.isfinite(c).any()], default=1.0)
    limit = limit if limit > 0 else 1.0
    for ax in axes:
        ax.set_ylim(-limit, limit)
        ax.set_ylabel("acceleration [G]")
        ax.set_xlabel("time [s]")
    time = np.arange(len(card.signal)) / rate_hz
    axes[0].plot(time, card.signal, color=ACCENT)
    nearest = f"nearest real window: {card.nearest_activity}" if card.nearest_activity else "no nearest real window"
    axes[0].set_title(textwrap.fill(f"its signal; {nearest}", 36))
    if card.twin:
        axes[1].plot(time, card.twin.signal, color=SIGNAL)
        alike = f"alike {card.twin.similarity:.2f} (chance {card.twin.chance:.2f})"
        axes[1].set_title(textwrap.fill(f"its match: unit {card.twin.unit} of network {card.twin.seed}, {alike}", 36))
    else:
        axes[1].set_title("no match in another network")
    _side_by_side(axes[2], neighbours, [f"unit {u}" for u in card.neighbours], rate_hz, CONTROL_GREYS[0])
    axes[2].set_title("nearest units on the atlas" if len(neighbours) else "without a place on the atlas")


def _windows(axes: Sequence[Axes], card: Card, rate_hz: float) -> None:
    names = [
        f"{textwrap.shorten(w.activity, 24, placeholder='...')}\n{w.axis}, person {w.subject}: {w.activation:.2f}"
        for w in card.windows
    ]
    _side_by_side(axes[0], [w.signal for w in card.windows], [""] * len(names), rate_hz, SIGNAL)
    _side_by_side(axes[1], [w.projection for w in card.windows], names, rate_hz, ACCENT)
    axes[0].set_title(
        "real windows that excite it most, and below what comes back of these activations (deconvnet)"
        if names
        else "no real window excites it"
    )
    axes[0].set_ylabel("acceleration [G]")
    axes[1].set_ylabel("projection [1]")
    axes[1].set_xlabel("one window each: activity, axis, person, activation")


def _side_by_side(ax: Axes, curves: Sequence[np.ndarray], names: Sequence[str], rate_hz: float, colour: str) -> None:
    """Curves one after the other; their names below, where a time axis would say little."""
    for i, curve in enumerate(curves):
        step = len(curve) + GAP
        ax.plot(np.arange(len(curve)) + i * step, curve, color=colour, linewidth=1.2)
        if i:
            ax.axvline(i * step - GAP / 2 - 0.5, color=MAP, linewidth=0.8)
    width = len(curves[0]) if len(curves) else 1
    ax.set_xticks([i * (width + GAP) + width / 2 for i in range(len(curves))], names, fontsize=8)
    ax.tick_params(axis="x", length=0)
    ax.grid(False, axis="x")
    ax.set_xlabel(f"{width / rate_hz:.0f} s each" if len(curves) else "")


def _bars(
    ax: Axes, values: dict[str, float], n: int, marked: set[str], title: str, label: str, limit: float | None = None
) -> None:
    """The ``n`` largest values; those that count in colour."""
    shown = [(name, value) for name, value in values.items() if not np.isnan(value)][:n][::-1]
    ax.barh(
        [textwrap.shorten(name, 30, placeholder="...") for name, _ in shown],
        [value for _, value in shown],
        color=[ACCENT if name in marked else CONTROL_GREYS[3] for name, _ in shown],
    )
    if limit is not None:
        ax.axvline(limit, color=SIGNAL, linewidth=1, linestyle="--")
    ax.set_title(title)
    ax.set_xlabel(label)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.grid(False, axis="y")
