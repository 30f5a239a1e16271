"""Style and colours of every figure, set once, and what each figure begins and ends with."""

import io
import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from PIL import Image

#: widest figure in inches: a notebook page shows it unscaled, so that 9 pt stay 9 pt
WIDTH = 10.0
SIGNAL, MAP, ACCENT, GREY, REAL, GOOD = "#1b4965", "#c9d6df", "#d1495b", "#8a8a8a", "#c08a2b", "#2f6f4e"

#: the paper's methods, the proposed one darkest, and the one that explains
METHOD_COLOURS = {
    "naive": "#d1495b",
    "L2+TV": "#edae49",
    "L2+TV+AAP": "#b5838d",
    "L2+TV+EAP": "#7fb069",
    "L2+TV+clip": "#5fa8d3",
    "L2+TV+EAP+clip": "#1b4965",
    "lowpass": "#9d6fbf",
    "unit-norm": "#3fb8a5",
    "likeliest trigger": "#e0218a",
}
#: greys for what methods are compared with, told apart by hatching too
CONTROL_GREYS = ("#3d3d3d", "#6b6b6b", "#919191", "#b4b4b4", "#d5d5d5", "#7d7d7d")
CONTROL_HATCHES = ("", "///", "...", "\\\\\\", "xxx", "|||")
#: what stands for the same thing in every figure
COLOURS = {
    **METHOD_COLOURS,
    **{"train": "#1b4965", "val": "#edae49", "test": "#d1495b"},
    **{"conv1": "#5fa8d3", "conv2": "#1b4965", "conv3": "#d1495b"},
    **{"trained": SIGNAL, "rotated": "#edae49", "random weights": GREY, "phase-scrambled": "#b5838d"},
    **{"motif": GOOD, "decoy": ACCENT, "elsewhere": "#e6e6e6"},
}
#: colour and marker of controls in a plane: black did nothing, grey knew nothing of the unit, brown is real
CONTROL_LOOKS = {
    "starting-sine": ("#111111", "s"),
    "flat-zero": ("#111111", "X"),
    "random-weights": (GREY, "v"),
    "spectrum-noise": (GREY, "^"),
    "held-out-windows": (REAL, "P"),
    "held-out-strongest": (REAL, "*"),
    "held-out-strong": (REAL, "D"),
}
COMPONENT_COLOURS = ("#1b4965", "#d1495b", "#e09f3e", "#5fa8d3", "#7fb069", "#9d6fbf")
#: of a signal's axes: three more, as many as a page draws into one frame; greys follow
AXIS_COLOURS = (*COMPONENT_COLOURS, "#111111", "#8c564b", "#3fb8a5")
MARKERS = ("o", "s", "^", "D", "v", "P")


def use_style() -> None:
    """Set fonts, grid and layout for every figure of the companion."""
    mpl.rcParams.update(
        {
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.fontsize": 9,
            "legend.frameon": False,
            "figure.titlesize": 11,
            "figure.constrained_layout.use": True,
            "figure.dpi": 100,
            "savefig.dpi": 120,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e6e6e6",
            "grid.linewidth": 0.7,
            "lines.linewidth": 1.4,
            "hatch.linewidth": 0.6,
        }
    )


def class_colours(names: Sequence[str]) -> dict[str, str]:
    """One colour per class: hues spread evenly, lightness alternating so that neighbouring hues differ twice."""
    shades = [sns.husl_palette(len(names), h=0.04, s=0.85, l=light).as_hex() for light in (0.42, 0.70)]
    return {name: shades[i % 2][i] for i, name in enumerate(names)}


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """The colour each name has in every figure, and for names that have none the next free one."""
    free = iter([c for c in COMPONENT_COLOURS if c not in {COLOURS.get(n) for n in names}] + [*CONTROL_GREYS] * 9)
    return {name: COLOURS.get(name) or next(free) for name in names}


def axis_colours(signal: np.ndarray, names: Sequence[str] = ()) -> dict[str, str]:
    """The colour of each axis of a signal (axis, time), by ``names`` or counted; none for one of a single axis (time,).

    Raises ``ValueError`` for other than one name for each axis.
    """
    n = len(signal) if np.ndim(signal) > 1 else 0
    if n and len(set(names)) not in (0, n):
        raise ValueError(f"{n} axes need {n} different names, not {', '.join(names)}")
    counted = [f"axis {i}" for i in range(n)]
    return dict(zip(names if n and len(names) else counted, [*AXIS_COLOURS, *CONTROL_GREYS * 9][:n], strict=True))


def axis_entries(signal: np.ndarray, names: Sequence[str] = ()) -> dict[str, Line2D]:
    """:func:`axis_colours` for a legend."""
    return {name: Line2D([], [], color=colour) for name, colour in axis_colours(signal, names).items()}


def plot_axes(ax: Axes, x: np.ndarray, signal: np.ndarray, colour: str, **look) -> None:
    """Draw a signal (time,) in ``colour``, or every axis of one (axis, time) in its own."""
    for curve, own in zip(np.atleast_2d(signal), axis_colours(signal).values() or [colour], strict=True):
        ax.plot(x, curve, color=own, **look)


def grid(
    n_rows: int, n_columns: int, width: float, height: float, xlabel: str = "", ylabel: str = "", **more
) -> tuple[Figure, np.ndarray]:
    """A figure that is closed for pyplot, so that a cell shows it once, and its axes, always two-dimensional.

    ``xlabel`` stands below the last row, ``ylabel`` beside the first column.
    """
    figure, axes = plt.subplots(n_rows, n_columns, figsize=(width, height), squeeze=False, layout="constrained", **more)
    plt.close(figure)
    for ax in axes[-1]:
        ax.set_xlabel(xlabel)
    for ax in axes[:, 0]:
        ax.set_ylabel(ylabel)
    return figure, axes


def wrapped(n: int, columns: int, width: float, height: float, **more) -> tuple[Figure, np.ndarray]:
    """As :func:`grid`: axes for ``n`` panels in at most so many columns, each row ``height`` high; the rest hidden."""
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    figure, axes = grid(rows, columns, width, 0.9 + height * rows, **more)
    for ax in axes.flat[n:]:
        ax.set_visible(False)
    return figure, axes


def entries(axes: Sequence[Axes]) -> dict:
    """What several axes have for a legend: label to artist, each label once."""
    found: dict = {}
    for ax in axes:
        for artist, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, artist)
    return found


def finish(figure: Figure, legend: Mapping | None = None, columns: int = 4, title: str = "") -> Figure:
    """Write title and legend, label to artist, outside the axes, so that none covers data or another."""
    figure.set_label(title)
    if legend:
        place = {"loc": "outside upper center", "handlelength": 1.6, "columnspacing": 1.2}
        above = figure.legend(legend.values(), legend.keys(), ncols=min(columns, len(legend)), title=title, **place)
        above.get_title().set_fontsize(11)
    elif title:
        figure.suptitle(title)
    return figure


def picture(figure: Figure) -> bytes:
    """The figure as a PNG in at most 256 colours, enough for plots: a third of the size."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    # an octree keeps rare colours, which the default merges; no dithering, which puts dots into plain areas
    colours = Image.open(drawn).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    colours.save(small := io.BytesIO(), "PNG", optimize=True)
    return small.getvalue()


def add_caveat(figure: Figure, caveat: str) -> None:
    """Say in the lower right corner that data are made up or not verified; nothing where there is nothing to say.

    The figure's label, its alt text, says that too, after its title or, where it has none, those of its axes.
    """
    of_axes = "; ".join(filter(None, dict.fromkeys(map(_named, figure.axes))))
    said = figure.get_label() or figure.get_suptitle() or of_axes
    figure.set_label(said if said.endswith(caveat) else f"{said}. {caveat}".removeprefix(". "))
    about = {"ha": "right", "fontsize": 9, "color": ACCENT, "style": "italic"}
    if caveat and isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        figure.supxlabel(caveat, x=0.995, **about)  # it gets room of its own and never covers data
    elif caveat:
        figure.text(0.995, 0.012, caveat, **about)


def _named(ax: Axes) -> str:
    return ax.get_title() or " against ".join(filter(None, (ax.get_ylabel(), ax.get_xlabel())))
