"""The paper's claims C1-C12 and the rule behind each verdict, fixed in code before any real data are looked at.

A claim is one or more criteria. A criterion is a quantity with one value per network and unit, summarized by
its mean or median, with a 95 % bootstrap interval, and a range that the paper's words stand for. The interval
decides: wholly inside the range, the criterion is met; wholly outside, it is not; across an edge, it is open.
All met: *holds*. All missed: *does not hold*. Anything between: *partly*.

With fewer than five networks the interval is over units only and no verdict is better than *partly*.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr

from harvis_utils.maximization.paper_methods import BASELINE, PROPOSED
from harvis_utils.metrics.intervals import ENOUGH_SEEDS, interval

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
        return self.dataset.removesuffix("-approximate")


@dataclass(frozen=True)
class Criterion:
    """One quantity and the range that the paper's words stand for.

    ``values(evidence)`` is (seed, unit) with NaN for what is left out, or (seed,), or a plain number that needs no
    interval; ``summary`` is "mean" or "median"; ``low`` and ``high`` bound the range, both included.
    """

    what: str
    values: Callable[[Evidence], np.ndarray | float]
    low: float = -np.inf
    high: float = np.inf
    summary: str = "mean"


@dataclass(frozen=True)
class Claim:
    """One claim of the paper: where it stands, what it says, and its criteria."""

    id: str
    where: str
    paper: str
    criteria: tuple[Criterion, ...]
    needs: Callable[[Evidence], str] = lambda evidence: ""  # why it cannot be tested here; empty: it can
    by_networks: bool = True  # False: no network is involved, so the number of networks says nothing


# --------------------------------------------------------------------------------------------- the quantities


def _log_ratio(above: str, below: str, variable: str, layer: str | None = None):
    """Per unit: log10 of one method's value over another's, paired."""

    def values(e: Evidence) -> np.ndarray:
        a, b = e.of(above, variable, layer), e.of(below, variable, layer)
        ok = (a > 0) & (b > 0)
        return np.where(ok, np.log10(np.where(ok, a, 1) / np.where(ok, b, 1)), np.nan)

    return values


def _share(method: str, variable: str, low: float = -np.inf, high: float = np.inf, layer: str | None = None):
    """Per unit: 1 where the value lies in [low, high], else 0; NaN stays NaN."""

    def values(e: Evidence) -> np.ndarray:
        v = e.of(method, variable, layer)
        return np.where(np.isnan(v), np.nan, (v >= low) & (v <= high))

    return values


def _mean(values: np.ndarray) -> float:
    """Mean without NaN; NaN where nothing is left."""
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def _extra_gain(layer: str):
    """Per unit: how much more the proposed method lowers Ssim in ``layer`` than, on average, in Conv1 (log10)."""

    def values(e: Evidence) -> np.ndarray:
        deep, first = (_log_ratio(PROPOSED, BASELINE, "s_u", name)(e) for name in (layer, "conv1"))
        return deep - _mean(first)

    return values


def _above_real(method: str, variable: str):
    """Per unit: a method's value minus that of the held-out real window which excites the unit most."""

    def values(e: Evidence) -> np.ndarray:
        real = e.controls.sel(control="held-out-strongest")[variable].stack(each=("layer", "unit"))
        return e.of(method, variable) - real.transpose("seed", ...).values.astype(float)

    return values


def _lift(shape: str, activity_words: str):
    """Per unit of that shape: share of its nearest windows from the activity over that activity's share of all."""

    def values(e: Evidence) -> np.ndarray:
        names = [str(a) for a in e.scores["activity"].values]
        index = [i for i, name in enumerate(names) if activity_words in name]
        chosen = e.scores.sel(preset=e.preset, technique=PROPOSED)
        found = chosen["nearest_share"].isel(activity=index).sum("activity") / float(
            e.scores["activity_share"][index].sum()
        )
        wanted = (chosen["shape"] == shape) & ~chosen["dead"] & ~chosen["failed"]
        return found.where(wanted).stack(each=("layer", "unit")).transpose("seed", ...).values.astype(float)

    return values


def _only(*names: str):
    return lambda e: "" if e.base in names else f"the paper tells this of {' and '.join(n.upper() for n in names)} only"


def _needs_full_training(e: Evidence) -> str:
    if e.base not in PAPER_F1:
        return "the paper has no figure for this data set"
    return "" if e.epochs >= PAPER_EPOCHS else f"training was shortened to {e.epochs} of {PAPER_EPOCHS} epochs"


def _layer_measure(layer: str, name: str):
    return lambda e: np.asarray(e.atlas[layer][name], dtype=float)


# -------------------------------------------------------------------------------------------------- the table

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C1",
        "section 4.2",
        "macro F1 0.737 (DSADS), 0.955 (MHEALTH)",
        (
            Criterion(
                "macro F1 on the test subjects, minus the paper's",
                lambda e: e.macro_f1 - PAPER_F1[e.base],
                -0.02,
                0.02,
            ),
        ),
        needs=_needs_full_training,
    ),
    Claim(
        "C2",
        "section 4.4",
        "2-sigma amplitude thresholds 1.37 G and 1.57 G",
        (
            Criterion(
                "threshold minus the paper's, G: to its rounding",
                lambda e: e.amplitude_threshold_g - PAPER_AMPLITUDE_G[e.base],
                -0.01,
                0.01,
            ),
            Criterion(
                "threshold minus the paper's, G: within 0.1 G",
                lambda e: e.amplitude_threshold_g - PAPER_AMPLITUDE_G[e.base],
                -0.1,
                0.1,
            ),
        ),
        needs=lambda e: "" if e.base in PAPER_AMPLITUDE_G else "the paper has no figure for this data set",
        by_networks=False,
    ),
    Claim(
        "C3",
        "Fig. 1",
        "naive AM is noisy, has a very large amplitude, and peaks at about 15 x the unit's 95 % point",
        (
            Criterion(
                "naive: peak output / 95 % point, median unit",
                lambda e: e.of("naive", "activation_ratio_p95"),
                7.5,
                30.0,
                "median",
            ),
            Criterion(
                "naive: share of units with an amplitude above 3 G (twice th_aap)",
                _share("naive", "peak_amplitude_g", low=3.0),
                0.5,
                1.0,
            ),
            Criterion(
                "naive: share of power above 5 Hz, minus that of the real window exciting the unit most",
                _above_real("naive", "high_frequency_share"),
                0.05,
            ),
        ),
    ),
    Claim(
        "C4",
        "section 5",
        "low-pass AM: most generated signals exceed 10 G",
        (Criterion("lowpass: share of failed units", lambda e: e.of("lowpass", "failed"), 0.5, 1.0),),
    ),
    Claim(
        "C5",
        "Fig. 3",
        "EAP and clipping lower Ssim strongly against L2+TV, most at Conv2 and Conv3",
        (
            *(
                Criterion(
                    f"{layer}: log10 of Ssim per unit, proposed / L2+TV, median (at least halved: below -0.301)",
                    _log_ratio(PROPOSED, BASELINE, "s_u", layer),
                    -np.inf,
                    -0.301,
                    "median",
                )
                for layer in ("conv1", "conv2", "conv3")
            ),
            *(
                Criterion(
                    f"{layer}: that change minus its mean at conv1 (below 0: stronger than at conv1)",
                    _extra_gain(layer),
                    -np.inf,
                    BELOW_ZERO,
                )
                for layer in ("conv2", "conv3")
            ),
        ),
    ),
    Claim(
        "C6",
        "Fig. 4",
        "proposed method: maximum output / th close to 1.0 in most cases",
        tuple(
            Criterion(
                f"{layer}: share of units whose maximum output is within 20 % of th",
                _share(PROPOSED, "activation_ratio", 0.8, 1.2, layer),
                0.5,
                1.0,
            )
            for layer in ("conv1", "conv2", "conv3")
        ),
    ),
    Claim(
        "C7",
        "Fig. 6",
        "AAP still lets the output peak at about 2 x the 95 % point",
        (
            Criterion(
                "conv1, AAP: peak output / 95 % point, median unit",
                lambda e: e.of("L2+TV+AAP", "activation_ratio_p95", "conv1"),
                1.5,
                3.0,
                "median",
            ),
            Criterion(
                "conv1: log10 of peak output, proposed / AAP, median unit (below 0: lower)",
                _log_ratio(PROPOSED, "L2+TV+AAP", "activation_ratio", "conv1"),
                -np.inf,
                BELOW_ZERO,
                "median",
            ),
        ),
    ),
    Claim(
        "C8",
        "Fig. 7",
        "EAP without clipping sometimes still explodes; clipping gives a smoother signal",
        (
            Criterion(
                "EAP alone: share of units peaking above 1.5 x th (sometimes: 1 % to 50 %)",
                _share("L2+TV+EAP", "activation_ratio", low=1.5),
                0.01,
                0.5,
            ),
            Criterion(
                "log10 of total variation, proposed / EAP alone, median unit (below 0: smoother)",
                _log_ratio(PROPOSED, "L2+TV+EAP", "total_variation_g", None),
                -np.inf,
                BELOW_ZERO,
                "median",
            ),
        ),
    ),
    Claim(
        "C9",
        "Fig. 5",
        "the nearest training windows share the shape: rising edge - playing basketball, peak - running",
        (
            Criterion(
                "proposed: correlation of the piece with its nearest real piece, median unit",
                lambda e: e.of(PROPOSED, "shape_match"),
                0.9,
                1.0,
                "median",
            ),
            Criterion(
                "rising edges: basketball among nearest windows, times its share of all",
                _lift("rising edge", "basketball"),
                2.0,
            ),
            Criterion("peaks: running among nearest windows, times its share of all", _lift("peak", "running"), 2.0),
        ),
        needs=_only("dsads"),
    ),
    Claim(
        "C10",
        "Fig. 8",
        "MHEALTH atlas: Conv1 forms clusters, Conv3 is more scattered, three large clusters differ in activity",
        (
            Criterion("conv1: Hopkins statistic (1 clustered, 0.5 random)", _layer_measure("conv1", "hopkins"), 0.75),
            Criterion(
                "spread of the signals, conv3 minus conv1 (above 0: more scattered)",
                lambda e: _layer_measure("conv3", "spread")(e) - _layer_measure("conv1", "spread")(e),
                0.0,
            ),
            Criterion(
                "conv1: p of three clusters' activities under permutation",
                _layer_measure("conv1", "clusters_p"),
                0.0,
                0.05,
            ),
            Criterion(
                "conv3: p of three clusters' activities under permutation",
                _layer_measure("conv3", "clusters_p"),
                0.0,
                0.05,
            ),
        ),
        needs=_only("mhealth"),
    ),
    Claim(
        "C11",
        "section 6.1",
        "deeper layers extract more complex features",
        (
            Criterion(
                "effective number of frequencies, conv3 minus conv1",
                lambda e: e.of(PROPOSED, "n_frequencies", "conv3") - _mean(e.of(PROPOSED, "n_frequencies", "conv1")),
                0.0,
            ),
        ),
    ),
    Claim(
        "C12",
        "section 1",
        "if many units are similar, a smaller network would suit the data",
        (
            Criterion(
                "share of near-duplicate units at full width",
                lambda e: np.asarray(e.widths["near_duplicates"]),
                0.3,
                1.0,
            ),
            Criterion("macro F1 at half width minus at full width", lambda e: np.asarray(e.widths["f1_change"]), -0.02),
        ),
        needs=lambda e: "" if e.widths else "needs networks of several widths, which this run did not train",
    ),
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
    """Verdict on one claim as an entry of ``results.json``; ``why`` quotes every criterion with its interval."""
    entry = {"id": claim.id, "paper": f"{claim.paper} ({claim.where})", "ours": None, "interval": None, "criteria": []}
    if reason := claim.needs(evidence):
        return entry | {"verdict": UNTESTABLE, "why": reason}
    n_seeds = len(evidence.macro_f1)
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
    stands = [c["standing"] for c in entry["criteria"]]
    verdict = HOLDS if set(stands) == {"met"} else FAILS if set(stands) == {"missed"} else PARTLY
    if set(stands) == {"open"} and all(c["ours"] is None for c in entry["criteria"]):
        return entry | {"verdict": UNTESTABLE, "why": "no unit is left to measure it on"}
    why = f"{stands.count('met')} of {len(stands)} criteria met, {stands.count('open')} open"
    if claim.by_networks and n_seeds < ENOUGH_SEEDS:
        why += f"; {n_seeds} networks: intervals over units only, no verdict better than partly"
        verdict = PARTLY if verdict == HOLDS else verdict
    return entry | {"verdict": verdict, "why": why}


def judge_all(evidence: Evidence) -> list[dict]:
    """Verdicts on all claims, in the paper's order."""
    return [judge(claim, evidence) for claim in CLAIMS]
