"""The paper's claims C1-C12 and the rule behind each verdict.

A claim is one or more criteria. A criterion is a quantity with one value per network and unit, summarized by
its mean or median, with a 95 % bootstrap interval, and a range that the paper's words stand for. The interval
decides: wholly inside the range, the criterion is met; wholly outside, it is not; across an edge, it is open.
All met: *holds*. All missed: *does not hold*. Anything between: *partly*.

With fewer than five networks the interval is over units only and no verdict is better than *partly*.

The rules were committed before any real data were run. One was changed after the first run on DSADS: in C5, C7 and
C8 a tie is not "below 0" any more (:data:`BELOW_ZERO`). Later runs store the digest of the rules they were judged by
(:func:`rule`), and a test compares it with the rules of the commit they were made with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from harvis_utils.maximization.paper_methods import BASELINE, PROPOSED
from harvis_utils.metrics.intervals import ENOUGH_SEEDS, interval
from harvis_utils.store.code import code_digest

HOLDS, PARTLY, FAILS, UNTESTABLE = "holds", "partly", "does not hold", "not testable here"

#: Paper section 4.2 and 4.4, by data set without its "-approximate"
PAPER_F1 = {"dsads": 0.737, "mhealth": 0.955}
PAPER_AMPLITUDE_G = {"dsads": 1.37, "mhealth": 1.57}
PAPER_EPOCHS = 200

#: upper edge of "below 0": a tie, such as two methods ending in the same signal, is not below
BELOW_ZERO = -1e-6


@dataclass(frozen=True)
class Evidence:
    """What the verdicts are read from.

    ``scores`` has dims (seed, layer, preset, technique, unit) and ``controls`` (seed, layer, control, unit), both as
    :mod:`harvis_utils.metrics.similarity` makes them. ``atlas`` maps a layer to the measures of notebook 05,
    ``preset`` names the reading that is judged, ``widths`` the experiment over network widths, where it was run.
    """

    dataset: str
    epochs: int
    macro_f1: np.ndarray  # (seed,)
    amplitude_threshold_g: float
    scores: xr.Dataset
    controls: xr.Dataset
    atlas: dict[str, dict]
    preset: str = "calibrated"
    widths: dict | None = None

    def of(self, method: str, variable: str, layer: str | None = None) -> np.ndarray:
        """(seed, unit) values of one layer, or of all layers side by side; failed and dead units are NaN."""
        chosen = self.scores.sel(preset=self.preset, technique=method)
        values = chosen[variable].where(~chosen["dead"])
        if variable in ("s_u", "shape_match"):  # Paper: failed units are left out of Ssim
            values = values.where(~chosen["failed"])
        values = values.sel(layer=layer) if layer else values.stack(each=("layer", "unit"))
        return values.transpose("seed", ...).values.astype(float)

    @property
    def base(self) -> str:
        """The data set's name without "-approximate"."""
        return self.dataset.removesuffix("-approximate")


@dataclass(frozen=True)
class Criterion:
    """One quantity of a claim and the range that the paper's words stand for.

    ``values(evidence)`` is (seed, unit) with NaN for what is left out, or (seed,), or a plain number that needs no
    interval; ``summary`` is "mean" or "median"; ``low`` and ``high`` bound the range, both included.
    """

    claim: str
    what: str
    values: Callable[[Evidence], np.ndarray | float]
    low: float = -np.inf
    high: float = np.inf
    summary: str = "mean"


@dataclass(frozen=True)
class Claim:
    """One claim of the paper: where it stands and what it says."""

    id: str
    where: str
    paper: str
    needs: Callable[[Evidence], str] = lambda evidence: ""  # why it cannot be tested here; empty: it can
    by_networks: bool = True  # False: no network is involved, so the number of networks says nothing

    @property
    def criteria(self) -> list[Criterion]:
        """Its criteria, in the order of :data:`CRITERIA`."""
        return [criterion for criterion in CRITERIA if criterion.claim == self.id]


# --------------------------------------------------------------------------------------------- the quantities

#: one value per network and unit, from the evidence
Quantity = Callable[[Evidence], np.ndarray | float]


def _of(method: str, variable: str, layer: str | None = None) -> Quantity:
    return lambda e: e.of(method, variable, layer)


def _log_ratio(above: str, below: str, variable: str, layer: str | None = None) -> Quantity:
    """Per unit: log10 of one method's value over another's, paired."""

    def values(e: Evidence) -> np.ndarray:
        a, b = e.of(above, variable, layer), e.of(below, variable, layer)
        ok = (a > 0) & (b > 0)
        return np.where(ok, np.log10(np.where(ok, a, 1) / np.where(ok, b, 1)), np.nan)

    return values


def _share(method: str, variable: str, low: float, high: float = np.inf, layer: str | None = None) -> Quantity:
    """Per unit: 1 where the value lies in [low, high], else 0; NaN stays NaN."""

    def values(e: Evidence) -> np.ndarray:
        v = e.of(method, variable, layer)
        return np.where(np.isnan(v), np.nan, (v >= low) & (v <= high))

    return values


def _minus_mean(first: Quantity, second: Quantity) -> Quantity:
    """Per unit: the first minus the mean of the second; NaN where nothing is left of that."""

    def values(e: Evidence) -> np.ndarray:
        base = second(e)
        return first(e) - (float(np.nanmean(base)) if not np.isnan(base).all() else np.nan)

    return values


def _above_real(method: str, variable: str) -> Quantity:
    """Per unit: a method's value minus that of the held-out real window which excites the unit most."""

    def values(e: Evidence) -> np.ndarray:
        real = e.controls.sel(control="held-out-strongest")[variable].stack(each=("layer", "unit"))
        return e.of(method, variable) - real.transpose("seed", ...).values.astype(float)

    return values


def _lift(shape: str, activity_words: str) -> Quantity:
    """Per unit of that shape: share of its nearest windows from the activity over that activity's share of all."""

    def values(e: Evidence) -> np.ndarray:
        index = [i for i, name in enumerate(e.scores["activity"].values) if activity_words in str(name)]
        share = float(e.scores["activity_share"][index].sum())
        chosen = e.scores.sel(preset=e.preset, technique=PROPOSED)
        found = chosen["nearest_share"].isel(activity=index).sum("activity") / share
        wanted = (chosen["shape"] == shape) & ~chosen["dead"] & ~chosen["failed"]
        return found.where(wanted).stack(each=("layer", "unit")).transpose("seed", ...).values.astype(float)

    return values


def _atlas(name: str, layer: str) -> Quantity:
    return lambda e: np.asarray(e.atlas[layer][name], dtype=float)


def _scattered(e: Evidence) -> np.ndarray:
    return _atlas("spread", "conv3")(e) - _atlas("spread", "conv1")(e)


def _f1(e: Evidence) -> np.ndarray:
    return e.macro_f1 - PAPER_F1[e.base]


def _amplitude(e: Evidence) -> float:
    return e.amplitude_threshold_g - PAPER_AMPLITUDE_G[e.base]


def _widths(name: str) -> Quantity:
    return lambda e: np.asarray(e.widths[name])


def _only(name: str) -> Callable[[Evidence], str]:
    return lambda e: "" if e.base == name else f"the paper tells this of {name.upper()} only"


def _in_paper(e: Evidence) -> str:
    return "" if e.base in PAPER_F1 else "the paper has no figure for this data set"


def _has_widths(e: Evidence) -> str:
    return "" if e.widths else "needs networks of several widths, which this run did not train"


def _fully_trained(e: Evidence) -> str:
    short = "" if e.epochs >= PAPER_EPOCHS else f"training was shortened to {e.epochs} of {PAPER_EPOCHS} epochs"
    return _in_paper(e) or short


# ------------------------------------------------------------------------------------------------- the criteria

_RATIO, _PEAK = "activation_ratio", "activation_ratio_p95"  # largest output over th, and over the 95 % point
_SSIM = {layer: _log_ratio(PROPOSED, BASELINE, "s_u", layer) for layer in ("conv1", "conv2", "conv3")}
_HIGH = "high_frequency_share"
_ACTIVITIES = {layer: f"{layer}: p of three clusters' activities under permutation" for layer in ("conv1", "conv3")}
_FREQUENCIES = [_of(PROPOSED, "n_frequencies", layer) for layer in ("conv3", "conv1")]

CRITERIA = (
    Criterion("C1", "macro F1 on the test subjects, minus the paper's", _f1, -0.02, 0.02),
    Criterion("C2", "threshold minus the paper's, G: to its rounding", _amplitude, -0.01, 0.01),
    Criterion("C2", "threshold minus the paper's, G: within 0.1 G", _amplitude, -0.1, 0.1),
    Criterion("C3", "naive: peak output / 95 % point, median unit", _of("naive", _PEAK), 7.5, 30.0, "median"),
    Criterion(
        "C3",
        "naive: share of units with an amplitude above 3 G (twice th_aap)",
        _share("naive", "peak_amplitude_g", 3.0),
        0.5,
        1.0,
    ),
    Criterion(
        "C3",
        "naive: share of power above 5 Hz, minus that of the real window exciting the unit most",
        _above_real("naive", _HIGH),
        0.05,
    ),
    Criterion("C4", "lowpass: share of failed units", _of("lowpass", "failed"), 0.5, 1.0),
    *(
        Criterion(
            "C5",
            f"{layer}: log10 of Ssim per unit, proposed / L2+TV, median (at least halved: below -0.301)",
            _SSIM[layer],
            high=-0.301,
            summary="median",
        )
        for layer in _SSIM
    ),
    *(
        Criterion(
            "C5",
            f"{layer}: that change minus its mean at conv1 (below 0: stronger than at conv1)",
            _minus_mean(_SSIM[layer], _SSIM["conv1"]),
            high=BELOW_ZERO,
        )
        for layer in ("conv2", "conv3")
    ),
    *(
        Criterion(
            "C6",
            f"{layer}: share of units whose maximum output is within 20 % of th",
            _share(PROPOSED, _RATIO, 0.8, 1.2, layer),
            0.5,
            1.0,
        )
        for layer in _SSIM
    ),
    Criterion(
        "C7", "conv1, AAP: peak output / 95 % point, median unit", _of("L2+TV+AAP", _PEAK, "conv1"), 1.5, 3.0, "median"
    ),
    Criterion(
        "C7",
        "conv1: log10 of peak output, proposed / AAP, median unit (below 0: lower)",
        _log_ratio(PROPOSED, "L2+TV+AAP", _RATIO, "conv1"),
        high=BELOW_ZERO,
        summary="median",
    ),
    Criterion(
        "C8",
        "EAP alone: share of units peaking above 1.5 x th (sometimes: 1 % to 50 %)",
        _share("L2+TV+EAP", _RATIO, 1.5),
        0.01,
        0.5,
    ),
    Criterion(
        "C8",
        "log10 of total variation, proposed / EAP alone, median unit (below 0: smoother)",
        _log_ratio(PROPOSED, "L2+TV+EAP", "total_variation_g"),
        high=BELOW_ZERO,
        summary="median",
    ),
    Criterion(
        "C9",
        "proposed: correlation of the piece with its nearest real piece, median unit",
        _of(PROPOSED, "shape_match"),
        0.9,
        1.0,
        "median",
    ),
    Criterion(
        "C9",
        "rising edges: basketball among nearest windows, times its share of all",
        _lift("rising edge", "basketball"),
        2.0,
    ),
    Criterion("C9", "peaks: running among nearest windows, times its share of all", _lift("peak", "running"), 2.0),
    Criterion("C10", "conv1: Hopkins statistic (1 clustered, 0.5 random)", _atlas("hopkins", "conv1"), 0.75),
    Criterion("C10", "spread of the signals, conv3 minus conv1 (above 0: more scattered)", _scattered, 0.0),
    *(Criterion("C10", what, _atlas("clusters_p", layer), 0.0, 0.05) for layer, what in _ACTIVITIES.items()),
    Criterion("C11", "effective number of frequencies, conv3 minus conv1", _minus_mean(*_FREQUENCIES), 0.0),
    Criterion("C12", "share of near-duplicate units at full width", _widths("near_duplicates"), 0.3, 1.0),
    Criterion("C12", "macro F1 at half width minus at full width", _widths("f1_change"), -0.02),
)

CLAIMS = (
    Claim("C1", "section 4.2", "macro F1 0.737 (DSADS), 0.955 (MHEALTH)", _fully_trained),
    Claim("C2", "section 4.4", "2-sigma amplitude thresholds 1.37 G and 1.57 G", _in_paper, by_networks=False),
    Claim(
        "C3", "Fig. 1", "naive AM is noisy, has a very large amplitude, and peaks at about 15 x the unit's 95 % point"
    ),
    Claim("C4", "section 5", "low-pass AM: most generated signals exceed 10 G"),
    Claim("C5", "Fig. 3", "EAP and clipping lower Ssim strongly against L2+TV, most at Conv2 and Conv3"),
    Claim("C6", "Fig. 4", "proposed method: maximum output / th close to 1.0 in most cases"),
    Claim("C7", "Fig. 6", "AAP still lets the output peak at about 2 x the 95 % point"),
    Claim("C8", "Fig. 7", "EAP without clipping sometimes still explodes; clipping gives a smoother signal"),
    Claim(
        "C9",
        "Fig. 5",
        "the nearest training windows share the shape: rising edge - playing basketball, peak - running",
        _only("dsads"),
    ),
    Claim(
        "C10",
        "Fig. 8",
        "MHEALTH atlas: Conv1 forms clusters, Conv3 is more scattered, three large clusters differ in activity",
        _only("mhealth"),
    ),
    Claim("C11", "section 6.1", "deeper layers extract more complex features"),
    Claim("C12", "section 1", "if many units are similar, a smaller network would suit the data", _has_widths),
)


# ------------------------------------------------------------------------------------------------- the verdict


def standing(bounds: list[float] | None, low: float, high: float) -> str:
    """ "met" when the interval lies in [low, high], "missed" when outside, "open" across an edge or without one."""
    if bounds is None:
        return "open"
    if bounds[0] >= low and bounds[1] <= high:
        return "met"
    return "missed" if bounds[1] < low or bounds[0] > high else "open"


def judge(claim: Claim, evidence: Evidence) -> dict:
    """Verdict on one claim as an entry of ``results.json``; ``why`` quotes how many criteria are met."""
    entry = {"id": claim.id, "paper": f"{claim.paper} ({claim.where})", "ours": None, "interval": None, "criteria": []}
    if reason := claim.needs(evidence):
        return entry | {"verdict": UNTESTABLE, "why": reason}
    for criterion in claim.criteria:
        point, bounds = interval(criterion.values(evidence), criterion.summary)
        entry["criteria"].append(
            {
                "what": criterion.what,
                "ours": None if np.isnan(point) else point,
                "interval": bounds,
                "range": [None if np.isinf(b) else b for b in (criterion.low, criterion.high)],
                "standing": standing(bounds, criterion.low, criterion.high),
            }
        )
    entry |= {name: entry["criteria"][0][name] for name in ("ours", "interval")}
    return entry | decide(claim, entry["criteria"], len(evidence.macro_f1))


def decide(claim: Claim, criteria: list[dict], n_networks: int) -> dict[str, str]:
    """The verdict that a claim's judged criteria lead to, and why."""
    stands = [c["standing"] for c in criteria]
    if set(stands) == {"open"} and all(c["ours"] is None for c in criteria):
        return {"verdict": UNTESTABLE, "why": "no unit is left to measure it on"}
    verdict = HOLDS if set(stands) == {"met"} else FAILS if set(stands) == {"missed"} else PARTLY
    why = f"{stands.count('met')} of {len(stands)} criteria met, {stands.count('open')} open"
    if claim.by_networks and n_networks < ENOUGH_SEEDS:
        why += f"; {n_networks} networks: intervals over units only, no verdict better than partly"
        verdict = PARTLY if verdict == HOLDS else verdict
    return {"verdict": verdict, "why": why}


def judge_all(evidence: Evidence) -> list[dict]:
    """Verdicts on all claims, in the paper's order."""
    return [judge(claim, evidence) for claim in CLAIMS]


def rule() -> str:
    """Digest of the code behind the verdicts: the claims, their quantities and ranges, intervals and the decision."""
    return code_digest(__name__, "judge_all")


# ------------------------------------------------------------------------------------------------- what to believe

#: share of the admissible readings under which a claim has to be met to hold whatever the hyper-parameters were. Choice
MOST = 0.5


def belief(verdict: str, share: float | None) -> str:
    """What to believe of a claim: its verdict under `calibrated`, beside the share of readings under which it is met.

    ``share`` is that of the readings which the other claims admit, None or NaN where the claim does not depend on the
    reading or was not tried. Fixed before the shares on real data were known.
    """
    if verdict == UNTESTABLE:
        return "open: not tested here"
    if share is None or np.isnan(share):
        return {HOLDS: "believe it", PARTLY: "believe what the criteria meet"}.get(verdict, "doubt it")
    mostly = share >= MOST
    if verdict == HOLDS:
        return "believe it" if mostly else "it holds, but the hyper-parameters decided it"
    if verdict == PARTLY:
        return "believe what the criteria meet" if mostly else "believe little: it depends on the hyper-parameters"
    return "doubt it" if not mostly else "doubt it here; other readings meet it"


def beliefs(results: dict, shares: dict[str, dict]) -> pd.DataFrame:
    """One row per claim: what the paper says, verdict, share of readings under which it is met, and :func:`belief`.

    ``results`` is a ``results.json``, ``shares`` the entry of that name in notebook 07's ``readings.json``.
    """
    columns = ["claim", "the paper says", "verdict", "readings under which it is met", "what to believe"]
    rows = []
    for claim in results["claims"]:
        share, verdict = shares.get(claim["id"], {}).get("all facts met in"), claim["verdict"]
        said = "" if share is None else f"{share:.0%}"
        rows.append((claim["id"], claim["paper"], verdict, said, belief(verdict, share)))
    return pd.DataFrame(rows, columns=columns).set_index("claim")
