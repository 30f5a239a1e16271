"""A sentence turned into the cards it describes: "units that detect a rising edge and matter for running"."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from harvis_utils.lenses.cards import Card

_BETWEEN = re.compile(r"\s*(?:[,;]|\band\b|\bthat\b|\bwhich\b)\s*")
_CLAUSES = {
    "detects": re.compile(r"detects?\s+(.+)"),
    "matters_for": re.compile(r"matters?\s+(?:for|to)\s+(.+)"),
    "layer": re.compile(r"(?:units?\s+)?(?:in|of)\s+(.+)"),
    "nearest_activity": re.compile(r"looks?\s+like\s+(.+)"),
}
_EXAMPLE = "units in conv2 that detect a rising edge and matter for running"
_SMALL_WORDS = {"a", "an", "the", "layer"}


def understood(cards: Sequence[Card], text: str) -> dict[str, tuple[str, ...]]:
    """What a search asks for: clause to the names it may be, of concepts, activities or layers.

    Clauses are "detect ...", "matter for ...", "in ..." and "look like ...", joined by "and", "that" or commas. A name
    is meant where each word asked for begins one of its words: "edge" is a rising or a falling one. Raises
    ``ValueError`` for a clause that is none, and where no name is meant, listing the valid ones.
    """
    valid = {
        "detects": list(dict.fromkeys(c for card in cards for c in card.iou)),
        "matters_for": list(dict.fromkeys(a for card in cards for a in card.cost)),
        "layer": list(dict.fromkeys(card.layer for card in cards)),
    }
    valid["nearest_activity"] = valid["matters_for"]
    asked = {}
    for part in filter(None, _BETWEEN.split(text.strip().lower().rstrip(".?!"))):
        if part in ("unit", "units", "all units"):
            continue
        for clause, pattern in _CLAUSES.items():
            if found := pattern.fullmatch(part):
                words = [w for w in re.findall(r"[\w+-]+", found[1]) if w not in _SMALL_WORDS]
                names = tuple(name for name in valid[clause] if words and _meant(words, name))
                if not names:
                    raise ValueError(f"{found[1]!r} is no name that is known here; valid: {', '.join(valid[clause])}")
                asked[clause] = names
                break
        else:
            raise ValueError(f"{part!r} is not understood; a search reads like {_EXAMPLE!r}")
    if not asked:
        raise ValueError(f"the search asks for nothing; it reads like {_EXAMPLE!r}")
    return asked


def _meant(words: Sequence[str], name: str) -> bool:
    own = re.findall(r"[\w+-]+", name.lower())
    return all(any(word.startswith(asked) for word in own) for asked in words)


def example(cards: Sequence[Card]) -> str:
    """A search that finds something in most decks: what most units detect and matter for, else the first layer."""
    detected = Counter(name for card in cards for name in card.detects).most_common(1)
    costly = Counter(name for card in cards for name in card.matters_for).most_common(1)
    if detected and costly:
        return f"units that detect {detected[0][0]} and matter for {costly[0][0]}"
    return f"units in {cards[0].layer}"


def search(cards: Sequence[Card], text: str) -> list[Card]:
    """The cards that a sentence like "units that detect a rising edge and matter for running" describes, best first.

    A unit *detects* what its mask overlaps by an IoU above 0.04 (not only its best concept), and *matters for* an
    activity as in :data:`harvis_utils.lenses.cards.MATTERS`; of several names meant by one clause any will do. Best are
    those with the best ranks in what was asked for, on average. Raises ``ValueError`` as :func:`understood` does.
    """
    asked = understood(cards, text)

    def has(card: Card, clause: str) -> bool:
        own = getattr(card, clause)
        return bool(set(asked[clause]) & set(own if isinstance(own, tuple) else [own]))

    found = [card for card in cards if all(has(card, clause) for clause in asked)]
    values = {"detects": "iou", "matters_for": "cost"}
    ranks = np.zeros(len(found))
    for clause in asked.keys() & values.keys():
        strength = [max(getattr(card, values[clause]).get(n, -np.inf) for n in asked[clause]) for card in found]
        ranks += np.argsort(np.argsort(-np.array(strength), kind="stable"), kind="stable")
    return [found[i] for i in np.argsort(ranks, kind="stable")]
