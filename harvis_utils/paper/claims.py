"""The paper's claims C1-C12 and the rule behind each verdict.

A claim is one or more criteria, the paper's own statistic first. A criterion is a number taken of the evidence as a
whole, so that its interval comes from drawing the evidence anew: networks, then units within each layer, the same for
all methods and controls (:mod:`harvis_utils.paper.evidence`). Criteria of *direction* ask whether what the paper says
is so, against a control that would say the same if it were not (``Claim.control``); criteria of *size* ask whether it
is so by as much as the paper states.

Directions and sizes follow from their intervals as :mod:`harvis_utils.paper.verdicts` says.

These rules were committed before this code was run on real data. They replace rules that had been run on DSADS and an
approximate MHEALTH, whose results were known when they were written; some ranges (7.5 to 30, 1.5 to 3, 0.8 to 1.2)
come from before and contain values that a first look at DSADS had shown. Runs store the digest of the rules they were
judged by (:func:`rule`), and a test compares it with the rules of the commit they were made with.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from harvis_utils.maximization.paper_methods import BASELINE, PROPOSED
from harvis_utils.paper.evidence import (
    AAP,
    EAP,
    EXPLODED,
    LAYERS,
    Evidence,
    above,
    all_different,
    beyond_real,
    deeper,
    deeper_unexplained,
    hopkins_above_noise,
    layer_ratios,
    layers_near,
    lift,
    lower,
    matched,
    mean,
    median,
    near_threshold,
    smaller_p,
    smoother,
    ssim_ratio,
    ssim_ratio_moving,
    ssim_ratio_to_conv1,
    still_moving,
)
from harvis_utils.paper.verdicts import Claim, Criterion, Statistic, judge
from harvis_utils.store.code import code_digest

#: Paper section 4.2 and 4.4, by data set without its "-approximate"
PAPER_F1 = {"dsads": 0.737, "mhealth": 0.955}
PAPER_AMPLITUDE_G = {"dsads": 1.37, "mhealth": 1.57}
PAPER_EPOCHS = 200
#: Choice: what a person calls "strongly" lower, or smoother: at most half
HALF = 0.5


# ------------------------------------------------------------------------------------------------------- the criteria


def _above(claim: str, what: str, statistic: Statistic, low: float, unit: str = "") -> Criterion:
    return Criterion(claim, what, statistic, low, np.inf, unit)


def _below(claim: str, what: str, statistic: Statistic, high: float, unit: str = "") -> Criterion:
    return Criterion(claim, what, statistic, -np.inf, high, unit)


def _size(claim: str, what: str, statistic: Statistic, low: float, high: float, unit: str = "") -> Criterion:
    return Criterion(claim, what, statistic, low, high, unit, "size")


def _f1(e: Evidence, paper: bool) -> np.ndarray:
    return mean(e.once(e.macro_f1 - (PAPER_F1[e.base] if paper else 1 / e.scores.sizes["activity"])))


def _threshold(e: Evidence) -> np.ndarray:
    return np.asarray(e.amplitude_threshold_g - PAPER_AMPLITUDE_G[e.base])


def _mean(method: str, variable: str, level: float | None = None) -> Statistic:
    """Mean of a method's values; of a ``level`` the share of units above it."""
    return lambda e: mean(e.of(method, variable) if level is None else above(e.of(method, variable), level))


def _peak(method: str, layer: str | None = None, moving: bool = False) -> Statistic:
    """Largest output over the 95 % point, of the median unit."""
    return lambda e: median(e.of(method, "activation_ratio_p95", layer), e.moves(method, layer) if moving else None)


def _minus(first: Statistic, second: Statistic) -> Statistic:
    return lambda e: first(e) - second(e)


def _width(name: str) -> Statistic:
    return lambda e: mean(e.once(e.widths[name]))


def _named(shape: str, words: str) -> list[Criterion]:
    """Nearest windows of one shape: its activity, and that this is not just as near to other shapes."""
    own, other = (partial(lift, shape=shape, words=words, same=same) for same in (True, False))
    return [
        _above("C9", f"{shape}s: {words} near them over its share of all windows", own, 1.0, "times"),
        _above("C9", f"{shape}s: {words} minus the same near other shapes", _minus(own, other), 0.0, "times"),
    ]


_LOWPASS, _BASELINE = _mean("lowpass", "failed"), _mean(BASELINE, "failed")
_NOISY = _minus(_mean("naive", "high_frequency_share"), _mean("held-out-strongest", "high_frequency_share"))
_NEAR, _BASELINE_NEAR = (partial(near_threshold, method=method) for method in (PROPOSED, BASELINE))
_DUPLICATES = _minus(_width("near_duplicates"), _width("near_duplicates_null"))
_MATCHED = partial(matched, method=PROPOSED)
_SSIM = {layer: partial(ssim_ratio, layer=layer) for layer in LAYERS}
_EXPLODED = _mean(EAP, "activation_ratio", EXPLODED)
_NEARER = partial(lower, first=PROPOSED, second=BASELINE, variable="s_u")
_LOWER = partial(lower, first=PROPOSED, second=AAP, variable="max_output", layer="conv1")

CRITERIA = (
    _size("C1", "macro F1 minus the paper's", partial(_f1, paper=True), -0.02, 0.02, "F1"),
    _above("C1", "macro F1 minus that of guessing", partial(_f1, paper=False), 0.0, "F1"),
    _size("C2", "threshold minus the paper's, to its rounding", _threshold, -0.01, 0.01, "G"),
    Criterion("C2", "threshold minus the paper's", _threshold, -0.1, 0.1, "G"),
    _size("C3", "naive: largest output over the 95 % point, median unit", _peak("naive"), 7.5, 30.0, "times"),
    _above("C3", "naive: share of units above 3 G, twice what real movement keeps to",
        _mean("naive", "peak_amplitude_g", 3.0), 0.5, "share"),
    _above("C3", "naive: share of power above 5 Hz minus that of the strongest real window", _NOISY, 0.05, "share"),
    _above("C4", "share of low-pass signals above 10 G", _LOWPASS, 0.5, "share"),
    _above("C4", "share of low-pass signals above 10 G minus the same of L2+TV",
        _minus(_LOWPASS, _BASELINE), 0.0, "share"),
    *(_below("C5", f"{la}: Ssim over that of L2+TV", _SSIM[la], HALF, "times") for la in LAYERS),
    *(_below("C5", f"{la}: Ssim over that of L2+TV, over the same at conv1",
        partial(ssim_ratio_to_conv1, layer=la), 1.0, "times") for la in LAYERS[1:]),
    _above("C5", "share of units nearer than with L2+TV, failed ones worst, flat ties half", _NEARER, 0.5, "share"),
    _below("C5", "Ssim over that of L2+TV where both signals move, mean of the layers",
        ssim_ratio_moving, 1.0, "times"),
    Criterion("C5", "Ssim over that of L2+TV with each person left out in turn, mean of people and layers",
        lambda e: 10 ** mean(e.of_people("log10 Ssim ratio")), *(-np.inf, HALF, "times", "direction", "people")),
    _above("C6", "share of layers whose mean largest output / th is within 20 % of 1", layers_near, 0.5, "share"),
    _above("C6", "share of units within 20 % of th minus the same of L2+TV",
        _minus(_NEAR, _BASELINE_NEAR), 0.0, "share"),
    _size("C6", "mean largest output / th over the layers", lambda e: layer_ratios(e).mean(0), 0.8, 1.2, "times"),
    Criterion("C6", "mean largest output / th with each person left out in turn, mean of people and layers",
        lambda e: mean(e.of_people("largest output / threshold")), *(0.8, 1.2, "times", "size", "people")),
    _size("C7", "conv1, AAP: largest output over the 95 % point, median moving unit",
        _peak(AAP, "conv1", moving=True), 1.5, 3.0, "times"),
    _above("C7", "conv1, AAP: largest output over the 95 % point, median of all units",
        _peak(AAP, "conv1"), 1.0, "times"),
    _above("C7", "conv1: share of units that peak lower than with AAP, flat ties half", _LOWER, 0.5, "share"),
    _above("C8", "EAP alone: share of units above 1.5 x th", _EXPLODED, 0.01, "share"),
    _size("C8", "EAP alone: share of units above 1.5 x th, sometimes: 1 % to 50 %", _EXPLODED, 0.01, 0.5, "share"),
    _below("C8", "total variation with clipping over that without, median exploding unit", smoother, HALF, "times"),
    _above("C8", "share of exploding units that still move with clipping", still_moving, 0.5, "share"),
    _above("C9", "correlation of moving pieces with their nearest real piece, median unit", _MATCHED, 0.9, "r"),
    _above("C9", "correlation with the nearest real piece minus that of the untouched sine",
        _minus(_MATCHED, partial(matched, method="starting-sine")), 0.0, "r"),
    _above("C9", "correlation with the nearest real piece minus that of noise",
        _minus(_MATCHED, partial(matched, method="spectrum-noise")), 0.0, "r"),
    _above("C9", "correlation with the nearest real piece minus that of real pieces of the shape",
        beyond_real, -0.05, "r"),
    *(c for shape, words in (("rising edge", "basketball"), ("peak", "running")) for c in _named(shape, words)),
    _above("C10", "conv1: Hopkins statistic minus noise's", hopkins_above_noise, 0.0),
    _above("C10", "conv1: Hopkins statistic minus noise's, moving signals",
        partial(hopkins_above_noise, which="_moving"), 0.0),
    _above("C10", "spread of moving signals minus noise's, conv3 minus conv1",
        partial(deeper, name="spread_moving", null="spread_moving_null"), 0.0),
    _below("C10", "p that clusters and activities are unrelated, all networks, two layers", smaller_p, 0.05, "p"),
    _above("C10", "share of networks with three activities in three clusters minus chance",
        all_different, 0.0, "share"),
    _above("C11", "effective rank of equally many moving signals, conv3 minus conv1",
        partial(deeper, name="variety"), 0.0),
    _above("C11", "share of distinct moving signals, conv3 minus conv1",
        partial(deeper, name="distinct"), 0.0, "share"),
    _above("C11", "outputs that no linear filter explains, moving units, conv3 minus conv1",
        deeper_unexplained, 0.0, "share"),
    _above("C12", "macro F1 at half the width minus at full width", _width("f1_change"), -0.02, "F1"),
    _above("C12", "share of near-duplicate units minus noise's", _DUPLICATES, 0.0, "share"),
    _above("C12", "macro F1 with near-duplicates merged minus with others merged", _width("merging"), 0.0, "F1"),
)  # fmt: skip


# --------------------------------------------------------------------------------------------------------- the claims


def _only(name: str) -> Callable[[Evidence], str]:
    return lambda e: "" if e.base == name else f"the paper tells this of {name.upper()} only"


def _in_paper(e: Evidence) -> str:
    return "" if e.base in PAPER_F1 else "the paper has no figure for this data set"


def _original(e: Evidence) -> str:
    return _in_paper(e) or ("" if e.dataset == e.base else "needs the original archive; this copy is approximate")


def _fully_trained(e: Evidence) -> str:
    short = f"needs networks trained for {PAPER_EPOCHS} epochs; these were trained for {e.epochs}"
    return _in_paper(e) or ("" if e.epochs >= PAPER_EPOCHS else short)


def _has_widths(e: Evidence) -> str:
    return "needs networks of several widths, which this run did not train" if e.widths is None else ""


CLAIMS = (
    Claim("C1", "section 4.2", "macro F1 0.737 (DSADS), 0.955 (MHEALTH)", "guessing",
        "macro F1 minus the paper's is {}, minus that of guessing {}", _fully_trained),
    Claim("C2", "section 4.4", "2-sigma amplitude thresholds 1.37 G and 1.57 G", "data in another unit",
        "the threshold minus the paper's is {}", _original, by_networks=False),
    Claim("C3", "Fig. 1",
        "naive AM is noisy, has a very large amplitude, and peaks at about 15 x the unit's 95 % point",
        "the real window that excites the unit most",
        "without penalties the median unit peaks at {} its 95 % point (stated: about 15), {} of the signals exceed 3 G,"
        " and of their power above 5 Hz they have {} against real windows"),
    Claim("C4", "section 5", "low-pass AM: most generated signals exceed 10 G", "L2+TV",
        "{} of the low-pass signals exceed 10 G ({} against L2+TV)"),
    Claim("C5", "Fig. 3", "EAP and clipping lower Ssim strongly against L2+TV, most at Conv2 and Conv3",
        "failures ranked worst, and flat signals left out",
        "Ssim becomes {} that of L2+TV at Conv1, {} at Conv2 and {} at Conv3 (at Conv2 {} and at Conv3 {} "
        "what it becomes at Conv1), {} of the units get nearer, and where both signals move Ssim becomes {}"),
    Claim("C6", "Fig. 4", "proposed method: maximum output / th close to 1.0 in most cases", "L2+TV, unit by unit",
        "the mean of largest output / th is within 20 % of 1 in {} of the layers, the share of units so near "
        "has {} against L2+TV, and the mean over layers is {}"),
    Claim("C7", "Fig. 6", "AAP still lets the output peak at about 2 x the 95 % point",
        "the proposed method, and flat signals",
        "with AAP the median moving Conv1 unit peaks at {} its 95 % point (stated: about 2), the median of all at {}, "
        "and the proposed method peaks lower in {} of the units"),
    Claim("C8", "Fig. 7", "EAP without clipping sometimes still explodes; clipping gives a smoother signal",
        "the same signals without clipping, and a flat line",
        "{0} of the units explode under EAP alone; with clipping their total variation becomes {2} as large, and {3} of"
        " them still move"),
    Claim("C9", "Fig. 5",
        "the nearest training windows share the shape: rising edge - playing basketball, peak - running",
        "the untouched sine, noise, real pieces of the same shape, and other shapes",
        "the median piece correlates {} with its nearest real piece ({} against the untouched sine, {} against noise,"
        " {} against real pieces); basketball is {} as frequent near rising edges as elsewhere ({} against other"
        " shapes), and running {} near peaks ({})", _only("dsads")),
    Claim("C10", "Fig. 8",
        "MHEALTH atlas: Conv1 forms clusters, Conv3 is more scattered, three large clusters differ in activity",
        "noise with the same covariance, activities traded among units, and flat units apart",
        "Conv1's Hopkins statistic has {} against noise ({} without flat signals), Conv3 is {} more scattered than"
        " Conv1, clusters and activities are unrelated with p = {}, and three clusters have three activities with {}"
        " against chance", _only("mhealth")),
    Claim("C11", "section 6.1", "deeper layers extract more complex features",
        "equally many signals, near-duplicates as one, and Conv1's own rectifier",
        "from Conv1 to Conv3 the effective rank of the moving signals changes by {}, the share of distinct ones by {},"
        " and the share of a unit's output that no linear filter explains by {}"),
    Claim("C12", "section 1", "if many units are similar, a smaller network would suit the data",
        "noise with the same covariance, and random groups",
        "half the width changes macro F1 by {}, near-duplicates have {} against noise, and merging them changes macro"
        " F1 by {} against merging others", _has_widths),
)  # fmt: skip


#: what turns a verdict that is already decided into a sentence
WORDING = ("harvis_utils.paper.verdicts.told", "harvis_utils.paper.verdicts.number")


def criteria_of(claim: str) -> list[Criterion]:
    """The criteria of a claim, in the order of :data:`CRITERIA`."""
    return [criterion for criterion in CRITERIA if criterion.claim == claim]


def judge_all(evidence: Evidence, robust: Mapping[str, Mapping[str, float]] | None = None) -> list[dict]:
    """Verdicts on all claims, in the paper's order.

    ``robust`` has for each claim that depends on the reading the shares of admissible readings in which it is "yes"
    and "no"; the share of the verdict's own direction is told.
    """
    drawn, robust = evidence.resampled(), robust or {}
    return [judge(claim, criteria_of(claim.id), evidence, drawn, robust.get(claim.id, {})) for claim in CLAIMS]


def rule() -> str:
    """Digest of the code behind the verdicts: the claims, their numbers and ranges, intervals and the decision.

    The words that tell a verdict are no rule.
    """
    return code_digest(__name__, "judge_all", WORDING)
