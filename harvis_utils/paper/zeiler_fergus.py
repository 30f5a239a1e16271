"""What Zeiler and Fergus (2014) say of pooling and of features on other data, asked with margins and controls.

Whatever needs no network (the window's own deviation and its square, equal chances) is taken off before a difference is
judged. Other networks stand beside it as controls: the same difference of random weights, of other switches, of no
pooling. All is taken network by network, over networks with the same seed.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from harvis_utils.lenses import carrying, invariance
from harvis_utils.lenses.locating import NO_NETWORK
from harvis_utils.lenses.pooling import CLASS, MAX, NO_POOLING, RANDOM, RANDOM_SWITCHES, SQUARED, STRONGEST, WAYS
from harvis_utils.metrics.intervals import interval
from harvis_utils.paper.systems import FEWEST_NETWORKS, Question, ahead, best_rival, direction_of, judge
from harvis_utils.paper.verdicts import YES, number

_CONTROLS = "random switches, random weights, no pooling"
#: Choice: margins, fixed before any pooled network was trained, and any trunk carried, on recordings of people
POOLING = (
    Question("structure", "Zeiler and Fergus, section 2.1", "switches keep the structure of the stimulus",
             "correlation of a projection with its window by its own switches, minus the better of random ones and "
             "another window's", "random weights", 0.1),
    Question("grouping", "Zeiler and Fergus, Fig. 2", "projections of a unit are alike, more than their windows",
             "mean correlation of a unit's strongest projections minus that of their windows, less the same with "
             "random weights and switches of the same kind, because projections through any filters are alike",
             "random switches", 0.05),
    Question("exaggeration", "Zeiler and Fergus, Fig. 2", "discriminative parts of a window are exaggerated",
             "share of the projection on these parts, as a multiple of that of the window's deviation from its means, "
             "minus the larger of 1 and the multiple of the squared deviation", _CONTROLS, 0.1, "times"),
    Question("decoys", "Zeiler and Fergus, section 2.1", "projections show which parts are discriminative",
             "AUC of the class score's projection for planted motifs against decoys, minus the larger of 0.5 and that "
             "of the deviation", _CONTROLS, 0.05),
    Question("invariance", "Zeiler and Fergus, Fig. 2", "upper layers are more invariant",
             "invariance of the features before the classes minus that of the first convolution, mean over changes",
             "random weights, no pooling", 0.05),
    Question("moving cover", "Zeiler and Fergus, Fig. 6", "the most probable label changes where the object is covered",
             "share of cover positions that change the label, in motifs minus in decoys (without planted motifs: where "
             "most moves minus elsewhere)", "random weights, no pooling", 0.05, "share"),
)  # fmt: skip
#: the run's data set to the other one, and back
WAYS_OF_CARRYING, CARRIED = ("there", "back"), {carrying.FROZEN: "frozen", carrying.TUNED: "fine-tuned"}
CARRYING = tuple(
    Question(f"{arm} {way}", "Zeiler and Fergus, section 5",
             "features of one data set serve on another with few examples",
             "macro F1 minus the better of training from scratch and a frozen random trunk, mean over all numbers of "
             "windows a class",
             "a random trunk, minus training from scratch", 0.02, "share")
    for way in WAYS_OF_CARRYING for arm in CARRIED.values()
)  # fmt: skip
_NO_MOTIFS = "no motifs are planted in these data"


def judged_pooling(
    structure: pd.DataFrame, parts: pd.DataFrame, moved: pd.DataFrame, labels: pd.DataFrame
) -> list[dict]:
    """Verdicts on ``POOLING``, from tables with one row per network of the measures in :mod:`lenses.pooling`.

    ``moved`` is that of :func:`invariance.invariances`.
    """
    top = structure["layer"].iloc[-1]
    shape = structure[structure["layer"] == top].pivot(index="seed", columns="way").drop(columns="layer")
    found = parts.pivot(index="seed", columns=["lens", "way"])
    shares, planted = found["exaggeration"], "AUC against decoys" in parts
    layers = moved.groupby(["network", "layer", "seed"])["invariance"].mean().unstack(["network", "layer"])
    first = moved["layer"].iloc[0]
    by_place = labels.pivot(index="seed", columns=["network", "place"], values="changed")
    here, there = ("in motifs", "in decoys") if planted else ("where most moves", "elsewhere")
    projected, weighted = (RANDOM_SWITCHES, RANDOM, NO_POOLING), (RANDOM, NO_POOLING)
    grouped = shape["likeness"] - shape["windows"]
    own = {kind: shape["resemblance"][[way for way, of in WAYS.items() if of[0] == kind]] for kind in (MAX, RANDOM)}
    values = {
        "structure": {kind: of[kind] - best_rival(of, of.columns.drop(kind)) for kind, of in own.items()},
        "grouping": {of: grouped[of] - grouped[of.replace(MAX, RANDOM)] for of in (MAX, RANDOM_SWITCHES)},
        "exaggeration": {
            way: shares[STRONGEST][way] - np.maximum(1, shares[SQUARED][way]) for way in (MAX, *projected)
        },
        "invariance": {kind: layers[kind][invariance.FEATURES] - layers[kind][first] for kind in (MAX, *weighted)},
        "moving cover": {kind: by_place[kind][here] - by_place[kind][there] for kind in (MAX, *weighted)},
    }
    if planted:
        pointed = found["AUC against decoys"]
        least = np.maximum(0.5, pointed[NO_NETWORK])
        values["decoys"] = {way: pointed[CLASS][way] - least[way] for way in (MAX, *projected)}
    return [_judged(of, values.get(of.id), "" if of.id in values else _NO_MOTIFS) for of in POOLING]


def changes_without(moved: pd.DataFrame) -> list[str]:
    """Changes under which the question "invariance", asked of a mean over all, is not answered by yes.

    None where networks are fewer than ``FEWEST_NETWORKS``. ``moved`` is that of :func:`invariance.invariances`.
    """
    margin = next(of.margin for of in POOLING if of.id == "invariance")
    own = moved[moved["network"] == MAX].pivot(index=["change", "seed"], columns="layer", values="invariance")
    more = (own[invariance.FEATURES] - own[moved["layer"].iloc[0]]).groupby("change", sort=False)
    enough = [(str(change), of) for change, of in more if of.count() >= FEWEST_NETWORKS]
    return [change for change, of in enough if direction_of(*interval(of), margin) != YES]


def judged_carrying(found: pd.DataFrame | None, missing: str = "") -> list[dict]:
    """Verdicts on ``CARRYING`` from :func:`carrying.carrying`, or what is ``missing``."""
    values = {}
    for id, (own, control) in _carried(found).items():
        values[id] = {"carried": own.groupby("seed").mean(), carrying.RANDOM: control.groupby("seed").mean()}
    return [_judged(of, values.get(of.id), missing) for of in CARRYING]


def _carried(found: pd.DataFrame | None) -> dict[str, tuple[pd.Series, pd.Series]]:
    """By question, over (seed, windows a class): a carried trunk's F1 minus that of the better of training from scratch
    and a random trunk, and the random trunk's minus that of training from scratch.
    """
    values, ways = {}, [] if found is None else found["way"].unique()
    for way, name in zip(WAYS_OF_CARRYING[: len(ways)], ways, strict=True):
        f1 = found[found["way"] == name].pivot(index=["seed", "windows a class"], columns="arm", values="F1")
        f1 = f1.dropna()  # seeds of the ceiling alone
        best = best_rival(f1, [carrying.SCRATCH, carrying.RANDOM])
        for arm, said in CARRIED.items():
            values[f"{said} {way}"] = f1[arm] - best, f1[carrying.RANDOM] - f1[carrying.SCRATCH]
    return values


def numbers_without(found: pd.DataFrame | None, verdicts: Sequence[dict]) -> str:
    """Of ``CARRYING`` answered by yes, a mean over numbers of windows a class: those that alone are not; "" for none.

    ``found`` is that of :func:`carrying.carrying`, ``verdicts`` that of :func:`judged_carrying`.
    """
    so, told = {v["id"] for v in verdicts if v["direction"] == YES}, []
    margin = {of.id: of.margin for of in CARRYING}
    for id, (own, _) in _carried(found).items():
        by_number = own.groupby("windows a class")
        less = [str(n) for n, of in by_number if direction_of(*interval(of), margin[id]) != YES]
        told += [f"{id} with {', '.join(less)}"] if id in so and less else []
    return f" Alone it is not so for: {'; '.join(told)} windows a class." if told else ""


def _judged(question: Question, values: dict | None, missing: str = "") -> dict:
    """The first of ``values`` judged, with the others as its controls."""
    first, *others = (values or {"": [np.nan]}).items()
    return judge(question, first[1], dict(others), missing=missing)


def as_well(verdicts: Sequence[dict]) -> str:
    """Which controls reach a difference above zero, by the rule of :func:`systems.ahead`, in one sentence."""
    found = []
    for v in verdicts:
        for name in ahead(v) if (v["value"] or 0) > 0 else ():
            theirs, own = (number(of["value"], v["unit"], signed=True) for of in (v["controls"][name], v))
            found.append(f"{v['id']} ({name} {theirs}, against {own})")
    return (
        f"**Controls do as well, within the margin, in {'; '.join(found)}.**" if found else "No control does as well."
    )


def answer(verdicts: Sequence[dict], what: str) -> str:
    """How many of the statements are so, are not, or stay open, by name."""
    by = pd.Series([v["id"] for v in verdicts]).groupby([v["direction"] for v in verdicts], sort=False)
    told = "; ".join(f"{direction}: {', '.join(ids)}" for direction, ids in by)
    return f"**{what}** {told[0].upper()}{told[1:]}."


def by_random(verdicts: Sequence[dict]) -> str:
    """What a random trunk gains over training from scratch, each way, beside what the carried one has above both; ""
    where nothing was carried.
    """
    frozen = [v for v in verdicts if v["id"].startswith("frozen") and carrying.RANDOM in v["controls"]]
    told = [(v, v["controls"][carrying.RANDOM]["value"]) for v in frozen]
    way = "{}: {} by a random trunk; the carried one has {} more than the better of the two"
    said = [
        way.format(v["id"].split()[-1], *(number(of, v["unit"], signed=True) for of in (gain, v["value"])))
        for v, gain in told
    ]
    return f" **Gained over training from scratch** {'; '.join(said)}." if said else ""
