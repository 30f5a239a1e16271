"""The atlas as a page of its own, without anything to load: units to point at, and their cards to open by a click.

The page is ``page.html``, a card on it ``card.html``; both are filled here.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
from matplotlib import colormaps
from PIL import Image

from harvis_utils.figures.special import largest, measured, nearest
from harvis_utils.figures.style import ACCENT, SIGNAL, axis_colours

#: size of a small picture, in units of its own
_WIDTH, _HEIGHT = 200, 90
#: of a curve in it; more could not be told apart
_MOST_POINTS = 400


def atlas(
    layers: Sequence,
    names: Sequence[str],
    colours: Mapping[str, str],
    piece: int = 10,
    rate_hz: float = 30.0,
    title: str = "Atlas of what the units respond to",
    caveat: str = "",
    cards: Sequence = (),
    axis_names: Sequence[str] = (),
    units: str = "G",
    template: str = "page.html",
    **more,
) -> str:
    """The page's HTML: pointing at a unit shows its waveform and its nearest real window.

    ``layers`` have the attributes of :class:`harvis_utils.metrics.embedding.AtlasLayer`, ``cards`` those of
    :class:`harvis_utils.lenses.cards.Card`; ``colours`` maps each of the activity ``names`` to a colour.
    ``page.html#conv1-3`` opens with unit 3 of conv1. Units with NaN positions are left out and counted on the page.
    With ``cards`` a click opens the unit's card, units without a position get a button below the map, and what cards
    can be found by becomes lists to search by. Units that mix axes have a line for each, by ``axis_names``. Raises
    ``ValueError`` when a layer's arrays do not fit together, for the card of a unit that no layer has, and for other
    than one name for each axis.

    ``units`` are those of signals. A ``template`` built upon the page's has ``more`` to show around the atlas.
    """
    known = {f"{layer.name}-{u}" for layer in layers for u in _numbers(layer)}
    by_key = {card.key: card for card in cards}
    if strangers := sorted(set(by_key) - known):
        raise ValueError(f"cards of units that no layer of the page has: {', '.join(strangers[:5])}")
    # escaped where they are put in; no "<" of the JSON can end its script
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    blocks = {"trim_blocks": True, "lstrip_blocks": True}
    templates = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, **blocks)
    templates.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    templates.filters |= {"lines": _lines, "polyline": _polyline, "share": _share}
    mixed = [layer.signals[0] for layer in layers if np.ndim(layer.signals) > 2 and len(layer.signals)]
    axes = axis_colours(mixed[0], axis_names) if mixed else {}
    made = [{"key": key, "html": _card_html(templates, card, by_key, rate_hz)} for key, card in by_key.items()]
    content = {
        "names": list(names),
        "colours": [colours[name] for name in names],
        "rate": rate_hz,
        "piece": piece,
        "axes": list(axes.values()),
        "units": units,
        "layers": [_layer_content(layer, len(names)) for layer in layers],
        "cards": list(by_key),
        "tags": {key: _tags(card) for key, card in by_key.items()},
    }
    page, look = templates.get_template(template), _look(rate_hz) if more else {}
    return page.render(title=title, caveat=caveat, axes=axes, content=content, cards=made, **look, **more)


def _numbers(layer) -> np.ndarray:
    """The numbers of a layer's units."""
    given = getattr(layer, "units", None)
    return np.arange(len(layer.positions)) if given is None else given


def _layer_content(layer, n_names: int) -> dict:
    n = len(layer.positions)
    for name in ("signals", "activities", "windows", "starts", "offsets", "distances"):
        if len(getattr(layer, name)) != n:
            raise ValueError(f"layer {layer.name}: {name} has {len(getattr(layer, name))} units, positions has {n}")
    if np.max(layer.activities, initial=-1) >= n_names:
        raise ValueError(f"layer {layer.name}: activity {np.max(layer.activities)} has no name ({n_names} names)")
    inner = tuple(range(1, np.ndim(layer.signals)))
    number = _numbers(layer)
    shown = np.isfinite(layer.positions).all(1) & np.isfinite(layer.signals).all(inner)

    def numbers(values, digits: int = 4) -> list:
        rounded = np.round(np.asarray(values, np.float64), digits)
        return np.where(np.isfinite(rounded), rounded, None).tolist()

    units = [
        {
            "unit": int(number[u]),
            "at": numbers(layer.positions[u]),
            "activity": int(layer.activities[u]),
            "signal": numbers(layer.signals[u]),
            "window": numbers(layer.windows[u]),
            "start": int(layer.starts[u]),
            "offset": int(layer.offsets[u]),
            "distance": numbers(layer.distances[u], 6),
        }
        for u in np.flatnonzero(shown)
    ]
    return {"name": layer.name, "left_out": number[~shown].tolist(), "units": units}


def _card_html(templates: jinja2.Environment, card, by_key: Mapping, rate_hz: float) -> str:
    """The card as one ``<article>``."""
    neighbours = [by_key[f"{card.layer}-{u}"] for u in card.neighbours]
    facts = (
        ([] if card.seed is None else [f"network {card.seed}"])
        + ([] if card.status == "used" else [card.status])
        + measured(card)
    )
    return templates.get_template("card.html").render(
        card=card,
        neighbours=neighbours,
        facts=facts,
        nearest=nearest(card),
        limit=largest([c.signal for c in (card, *([card.twin] if card.twin else []), *neighbours)]),
        strongest=largest([w.signal for w in card.windows]),
        back=largest([w.projection for w in card.windows]),
        **_look(rate_hz),
    )


def _look(rate_hz: float) -> dict:
    """What small pictures are drawn with."""
    look = {"rate_hz": rate_hz, "accent": ACCENT, "colour": SIGNAL, "width": _WIDTH, "height": _HEIGHT}
    return look | {"middle": _HEIGHT / 2 - 6}


def _tags(card) -> dict[str, Sequence[str]]:
    """What a card can be found by on the page."""
    return {
        "detects": card.detects,
        "matters for": card.matters_for,
        "in": (card.layer,),
        "looks like": (card.nearest_activity,) if card.nearest_activity else (),
    }


def _lines(curve: np.ndarray, colour: str) -> list[tuple[np.ndarray, str]]:
    """A curve (time,) with its colour, or every axis of one (axis, time) with its own."""
    return list(zip(np.atleast_2d(curve), axis_colours(curve).values() or [colour], strict=True))


def _polyline(curve: np.ndarray, limit: float) -> str:
    """Points of a curve (time,) between -limit and limit in a small picture, one unit wide a sample.

    Of a long one the lowest and the highest sample of each stretch, so that no peak is lost.
    """
    middle, curve = _HEIGHT / 2 - 6, np.asarray(curve, np.float64)
    times = np.arange(len(curve))
    if len(curve) > _MOST_POINTS and np.isfinite(curve).all():
        parts = np.array_split(times, _MOST_POINTS // 2)
        times = np.unique([part[of(curve[part])] for part in parts for of in (np.argmin, np.argmax)])
    y = middle - (middle - 6) / limit * curve[times]
    return " ".join(f"{t},{value:.1f}" for t, value in zip(times, y, strict=True) if np.isfinite(value))


def heat(values: np.ndarray) -> str:
    """A picture of (row, column), a pixel each, as an address: red above zero, blue below, as far as the largest."""
    scaled = 0.5 + 0.5 * values / (np.abs(values).max() or 1.0)
    drawn = io.BytesIO()
    Image.fromarray(colormaps["RdBu_r"](scaled, bytes=True)[..., :3]).save(drawn, "PNG")
    return f"data:image/png;base64,{base64.b64encode(drawn.getvalue()).decode()}"


def _share(value: float, values: Mapping[str, float]) -> str:
    """How long the bar of a value is, in percent of the largest one's."""
    return f"{100 * value / (max(map(abs, values.values())) or 1.0):.0f}"
