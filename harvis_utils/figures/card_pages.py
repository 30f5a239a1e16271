"""Unit cards as HTML: fragments that the atlas' page opens by a click, and pages of their own."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from harvis_utils.figures.atlas_page import PageCard
from harvis_utils.figures.plots import ACCENT, SIGNAL
from harvis_utils.lenses.cards import N_ACTIVITIES, N_CONCEPTS, Card
from harvis_utils.lenses.dissection import DETECTOR_IOU

STYLE = """
.card { font: 14px/1.4 system-ui, sans-serif; color: #222; max-width: 1180px; }
.card h2 { font-size: 1.15rem; margin: .2rem 0; }
.card h3 { font-size: .9rem; margin: .7rem 0 .2rem; font-weight: 600; }
.card .row { display: flex; flex-wrap: wrap; gap: .9rem; }
.card figure { margin: 0; flex: 0 1 215px; }
.card figcaption { font-size: 12px; color: #555; } .card svg { width: 100%; display: block; }
.card .bars { flex: 1 1 420px; } .card table { border-collapse: collapse; font-size: 13px; width: 100%; }
.card td { padding: 1px 6px 1px 0; } .card td.n { text-align: right; width: 4.5em; } .card td.b { width: 45%; }
.card .bar { height: 10px; background: #c4c4c4; } .card .bar.on { background: #d1495b; }
.card .note { color: #555; font-size: 13px; }
"""
#: size of a small picture, in units of its own
_WIDTH, _HEIGHT = 200, 90


def fragment(card: Card, neighbours: dict[str, np.ndarray], rate_hz: float) -> str:
    """The card as one ``<article>``; ``neighbours`` maps names like "conv1-3" to their signals (time,) in G."""
    limit = _limit([card.signal, *([card.twin.signal] if card.twin else []), *neighbours.values()])
    nearest = f"nearest real window: {card.nearest_activity}" if card.nearest_activity else "no nearest real window"
    own = [_picture(card.signal, f"its signal; {nearest}", rate_hz, ACCENT, limit)]
    if card.twin:
        said = f"its match in network {card.twin.seed}: unit {card.twin.unit}, alike {card.twin.similarity:.2f}"
        own.append(_picture(card.twin.signal, f"{said} (chance {card.twin.chance:.2f})", rate_hz, SIGNAL, limit))
    near = [_picture(x, key, rate_hz, "#3d3d3d", limit, link=key) for key, x in neighbours.items()]
    strongest = _limit([w.signal for w in card.windows])
    back = _limit([w.projection for w in card.windows])
    real = [
        _picture(
            w.signal,
            f"{w.activity}, {w.axis}, person {w.subject}: {w.activation:.2f}",
            rate_hz,
            SIGNAL,
            strongest,
            (w.projection / back * strongest, "projection"),
        )
        for w in card.windows
    ]
    facts = [f"network {card.seed}"] + ([] if card.status == "used" else [card.status])
    facts += [] if np.isnan(card.activation) else [f"reaches {card.activation:.2f} of its threshold"]
    facts += [] if np.isnan(card.nearness) else [f"nearness to real windows {card.nearness:.2f}"]
    parts = [
        f'<article class="card" id="card-{escape(card.key)}">',
        f"<h2>{escape(card.layer.capitalize())}, unit {card.unit}</h2>",
        f'<div class="note">{escape("; ".join(facts))}</div>',
        _row("What excites it, and what the matching unit of another network is excited by", own),
        _row("Real windows that excite it most; red: what comes back of that activation (deconvnet, own scale)", real),
        '<div class="row">',
        _table(
            f"Concepts in its strongest samples (IoU; red: above {DETECTOR_IOU:g})", card.iou, N_CONCEPTS, card.detects
        ),
        _table("Silenced: who loses F1 (red: it matters)", card.cost, N_ACTIVITIES, card.matters_for),
        "</div>",
        _row("Nearest units on the atlas", near),
        "</article>",
    ]
    return "\n".join(parts)


def page(card: Card, neighbours: dict[str, np.ndarray], rate_hz: float, caveat: str = "") -> str:
    """The card as a page of its own that loads nothing."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(card.key)}</title>'
        f"<style>{STYLE}</style></head><body>\n"
        f'<div style="color:{ACCENT};font-style:italic">{escape(caveat)}</div>\n'
        f"{fragment(card, neighbours, rate_hz)}\n</body></html>\n"
    )


def page_cards(cards: Sequence[Card], rate_hz: float) -> dict[str, PageCard]:
    """What :func:`harvis_utils.figures.atlas_page.interactive_html` opens and searches by: all cards by their names."""
    of = {card.key: card for card in cards}
    return {key: PageCard(fragment(card, neighbours_of(card, of), rate_hz), tags(card)) for key, card in of.items()}


def neighbours_of(card: Card, cards: dict[str, Card]) -> dict[str, np.ndarray]:
    """Signals of the card's neighbours, by their names; ``cards`` are those of its layer, or of all."""
    keys = [f"{card.layer}-{u}" for u in card.neighbours]
    return {key: cards[key].signal for key in keys}


def tags(card: Card) -> dict[str, tuple[str, ...]]:
    """What a card can be found by on the page, as :func:`harvis_utils.lenses.card_search.search` finds it."""
    return {
        "detects": card.detects,
        "matters for": card.matters_for,
        "in": (card.layer,),
        "looks like": (card.nearest_activity,) if card.nearest_activity else (),
    }


# --------------------------------------------------------------------------------------------------------- parts


def _limit(curves: Sequence[np.ndarray]) -> float:
    """Largest finite value of the curves, never 0."""
    largest = max([float(np.nanmax(np.abs(c))) for c in curves if np.isfinite(c).any()], default=0.0)
    return largest or 1.0


def _row(title: str, pictures: Sequence[str]) -> str:
    content = "".join(pictures) or '<span class="note">none</span>'
    return f'<h3>{escape(title)}</h3><div class="row">{content}</div>'


def _picture(
    curve: np.ndarray,
    caption: str,
    rate_hz: float,
    colour: str,
    limit: float,
    second: tuple[np.ndarray, str] | None = None,
    link: str = "",
) -> str:
    """A curve (time,) in G between -limit and limit, with its scale, and its caption."""
    middle, scale = _HEIGHT / 2 - 6, (_HEIGHT / 2 - 12) / limit
    lines = [_line(curve, middle, scale, colour)]
    lines += [_line(second[0], middle, scale, ACCENT)] if second else []
    text = escape(caption)
    text = f'<a href="#{escape(link)}">{text}</a>' if link else text
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(caption)}">'
        f'<line x1="0" x2="{_WIDTH}" y1="{middle}" y2="{middle}" stroke="#ddd"/>{"".join(lines)}'
        f'<text x="0" y="{_HEIGHT - 2}" font-size="10" fill="#555">±{limit:.2g} G</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT - 2}" font-size="10" fill="#555" text-anchor="end">'
        f"{len(curve) / rate_hz:.1f} s</text></svg><figcaption>{text}</figcaption></figure>"
    )


def _line(curve: np.ndarray, middle: float, scale: float, colour: str) -> str:
    x = np.linspace(0, _WIDTH, len(curve))
    points = " ".join(f"{a:.1f},{middle - scale * b:.1f}" for a, b in zip(x, curve, strict=True) if np.isfinite(b))
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>'


def _table(title: str, values: dict[str, float], n: int, marked: Sequence[str]) -> str:
    shown = [(name, value) for name, value in values.items() if not np.isnan(value)][:n]
    largest = max([abs(value) for _, value in shown], default=0.0) or 1.0
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{value:.3f}</td><td class="b"><div class="{_bar(name in marked)}" '
        f'style="width:{100 * max(value, 0) / largest:.0f}%"></div></td></tr>'
        for name, value in shown
    )
    return f'<div class="bars"><h3>{escape(title)}</h3><table>{rows}</table></div>'


def _bar(marked: bool) -> str:
    return "bar on" if marked else "bar"
