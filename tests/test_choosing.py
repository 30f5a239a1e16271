"""Choosing among readings: the rule against plain loops, and choices planted in made-up scores."""

import functools
import itertools

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from harvis_utils.maximization.paper_methods import BASELINE, PROPOSED
from harvis_utils.paper import choosing, claims, variants
from harvis_utils.settings import ReadingSettings

LAYERS, UNITS, SEEDS = ("conv1", "conv2", "conv3"), 6, 3
GRID = variants.readings(ReadingSettings(weights=(0.03, 0.1, 0.3)))[5:17]
LABELS = [r.name for r in GRID]
METHODS = (*variants.FREE, *variants.PENALIZED)
AAP, EAP = "L2+TV+AAP", "L2+TV+EAP"


def made(good=(), seed=0):
    """Scores of twelve readings: those in ``good`` meet the paper's facts, the others hardly move, and are flat."""
    rng = np.random.default_rng(seed)
    coords = {"reading": LABELS, "technique": list(METHODS), "layer": list(LAYERS)}
    dims, shape = ("seed", *coords, "unit"), (SEEDS, len(GRID), len(METHODS), 3, UNITS)

    def table(fill):
        return xr.DataArray(fill * rng.uniform(0.9, 1.1, shape), coords | {"unit": np.arange(UNITS)}, dims)

    sizes = {"s_u": 0.001, "activation_ratio": 0.3, "activation_ratio_p95": 0.4, "peak_amplitude_g": 0.3}
    sizes |= {"high_frequency_share": 0.05, "total_variation_g": 1.0, "max_output": 0.3, "range_g": 0.01}
    scores = xr.Dataset({name: table(size) for name, size in sizes.items()})
    scores["failed"] = xr.zeros_like(scores["s_u"], dtype=bool)
    scores["dead"] = xr.zeros_like(scores["failed"])
    scores["at_rest"] = xr.zeros_like(scores["dead"].isel(reading=0, technique=0, drop=True))
    wanted = {
        "naive": {"activation_ratio_p95": 15, "peak_amplitude_g": 12, "high_frequency_share": 0.5},
        BASELINE: {"s_u": 1.0, "activation_ratio": 3},
        AAP: {"activation_ratio_p95": 2, "activation_ratio": 2, "max_output": 2},
        EAP: {"activation_ratio": 1.0, "total_variation_g": 4},
        PROPOSED: {"activation_ratio": 1.0, "s_u": 0.01, "max_output": 1.0},
    }
    for k in good:
        mine = {"reading": LABELS[k]}
        scores["range_g"].loc[mine] *= 100
        for method, name, value in ((m, *change) for m, changes in wanted.items() for change in changes.items()):
            where = mine | {"technique": method}
            scores[name].loc[where] *= value / float(scores[name].sel(where).mean())
        scores["failed"].loc[mine | {"technique": "lowpass"}] = True
        scores["failed"].loc[mine | {"technique": BASELINE, "unit": 0}] = True
        scores["activation_ratio"].loc[mine | {"technique": EAP, "unit": 1}] = 2.0
        for layer, gain in (("conv1", 10.0), ("conv2", 3.0), ("conv3", 3.0)):
            scores["s_u"].loc[mine | {"technique": PROPOSED, "layer": layer}] *= gain
    controls = scores[["high_frequency_share", "dead", "range_g"]].isel(reading=0, technique=[0], drop=True)
    controls = controls.rename(technique="control").assign_coords(control=["held-out-strongest"])
    return scores, controls


@functools.cache
def judged(*good, seed=0):
    found = choosing.facts(*made(good, seed), "synthetic")
    return found, found.draws(60)


def test_facts_are_the_claims_criteria_unchanged_and_those_about_failures_and_shape():
    wanted = judged(7)[0].criteria
    assert list(dict.fromkeys(c.claim for c in wanted)) == [*choosing.CHOOSING, choosing.SHAPE]
    of_claims = [c for c in claims.CRITERIA if c.claim in choosing.CHOOSING and not c.needs]
    assert [c for c in wanted if c not in choosing.MORE] == of_claims and set(choosing.MORE) < set(wanted)
    assert len(choosing.MORE) == 1 + len(LAYERS)


def test_the_reading_that_meets_the_facts_is_found():
    table = choosing.table(GRID, *judged(7))
    assert table.attrs["winner"] == table.index[0] == LABELS[7]
    assert table["score"].iloc[0] == 1 and table["admissible"].sum() == 1
    assert (table["difference high"].iloc[1:] < 0).all()


def test_a_parameter_decides_by_what_it_alone_changes():
    """Two groups of readings differ in the weight only, by 0.3 and 0.1; the step never differs alone."""
    what = [("a", 1, "sum", 0.1, 1), ("a", 1, "sum", 0.3, 1), ("b", 1, "mean", 0.1, 1), ("b", 1, "mean", 1.0, 1)]
    rows = pd.DataFrame(what, columns=choosing.OPEN).assign(score=[0.2, 0.5, 0.8, 0.7])
    found = choosing.deciding(rows, ("score",))["score"]
    assert found["weight"] == pytest.approx((0.15 + 0.05) / 2) and found.drop("weight").isna().all()


def test_the_table_tells_flat_shares_and_how_far_the_printed_numbers_are():
    scores, controls = made([4, 7])
    scores["range_g"].loc[{"reading": LABELS[4], "technique": PROPOSED, "unit": [0, 1, 2]}] = 0.04
    scores["at_rest"].loc[{"unit": [0, 5]}] = True
    scores["activation_ratio_p95"].loc[{"reading": LABELS[4], "technique": "naive"}] = 60.0
    scores["activation_ratio_p95"].loc[{"reading": LABELS[7], "technique": AAP}] = 20.0
    found = choosing.facts(scores, controls, "synthetic")
    table = choosing.table(GRID, found, found.draws(20))
    half = table.loc[LABELS[4]]
    assert (half["flat"], half["flat where windows are"], half["flat where windows move"]) == (0.5, 0.5, 0.5)
    assert half["shape conv3: share of flat signals"] == 0.5 and table.loc[LABELS[7], "flat"] == 0
    assert half["Fig. 1"] == 60 and table.loc[LABELS[7], "Fig. 6"] == pytest.approx(20)
    assert table.loc[LABELS[7], "off"] == pytest.approx(1) and half["off"] == pytest.approx(np.log10(4))
    assert set(table.index[table["frontier"]]) == {LABELS[4], LABELS[7]}, "one is nearer, the other has shapes"


def test_the_frontier_is_what_no_other_reading_beats():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(rng.integers(0, 4, (30, 3)) / 4, columns=["score", "flat", "off"])
    rows.loc[3, "off"] = np.nan
    found = choosing.undominated(rows)
    ordered = rows.assign(score=-rows["score"]).values
    for i, own in enumerate(ordered):
        beaten = any((other <= own).all() and (other < own).any() for other in ordered)
        assert found[i] == (not beaten and i != 3)
    assert 0 < found.sum() < 30


def test_readings_that_agree_cannot_be_told_apart_and_the_nearest_to_the_paper_wins():
    table = choosing.table(GRID, *judged(2, 1, 8))
    assert set(table.index[table["admissible"]]) == {LABELS[k] for k in (1, 2, 8)}
    nearest = min((1, 2, 8), key=lambda k: (variants.departures(GRID[k]), k))
    assert table.attrs["winner"] == LABELS[nearest]


def test_the_winner_is_the_nearest_to_the_paper_among_those_that_cannot_be_told_apart():
    departures = [variants.departures(r) for r in GRID]
    near, far = departures.index(min(departures)), departures.index(max(departures))
    scores = np.full(len(GRID), 0.1)
    scores[[near, far]] = 0.7, 0.8
    assert choosing.admissible(scores, scores[None], GRID)[0] == far
    alike = scores > 0.5
    assert choosing.winner(scores, alike, GRID) == near
    assert choosing.winner(scores, scores > 0.75, GRID) == far, "one that can be told apart does not win"
    same = [k for k, d in enumerate(departures) if d == min(departures)]
    assert len(same) > 1
    scores[same[-1]] = 0.75
    assert choosing.winner(scores, scores > 0.5, GRID) == same[-1], "of equally near ones the higher score wins"


def test_a_claim_is_judged_under_readings_chosen_by_the_others():
    """A reading that meets all but C4 is admissible for C4, where it counts against the claim."""
    scores, controls = made(good=[3, 4])
    scores["failed"].loc[{"reading": LABELS[4], "technique": "lowpass"}] = False
    found = choosing.every_share(scores, controls, GRID, "synthetic")
    assert found.loc["C4", "admissible readings"] == 2 and found.loc["C4", "yes in"] == 0.5
    assert found.loc["C4", "no in"] == 0.5
    assert found.loc["C6", "admissible readings"] == 1 and found.loc["C6", "yes in"] == 1
    assert found.loc["C4", "yes in all"] == pytest.approx(1 / len(GRID))
    nearest = min((3, 4), key=lambda k: (variants.departures(GRID[k]), k))
    assert found.loc["C4", "chosen without it"] == LABELS[nearest]
    assert found.loc["C4", "yes there"] == (nearest == 3)
    assert found.loc["C3", "as stated in"] == 1 and np.isnan(found.loc["C4", "as stated in"])


def test_facts_that_exclude_each_other_are_told():
    """One reading meets all but shape at Conv3, another only that."""
    scores, controls = made(good=[3])
    scores["range_g"].loc[{"reading": LABELS[3], "technique": PROPOSED, "layer": "conv3"}] = 0.0
    scores["range_g"].loc[{"reading": LABELS[5], "technique": PROPOSED, "layer": "conv3"}] = 1.0
    found = choosing.excluding(choosing.facts(scores, controls, "synthetic"))
    last = found[found["excludes"] == "shape conv3: share of flat signals"]
    assert "C4 share of low-pass signals above 10 G" in set(last["fact"])
    assert (last["readings with the second"] == 1).all()
    assert "shape conv1: share of flat signals" in set(last["fact"])


def test_points_scores_and_draws_equal_plain_loops():
    facts, drawn = judged(0, 5, seed=3)
    points, standing = facts.points, facts.standing
    for k, criterion in enumerate(facts.criteria):
        for r, label in enumerate(LABELS[:6]):
            alone = choosing.facts(facts.evidence.scores.sel(reading=[label]), facts.evidence.controls, "synthetic")
            (expected,) = criterion.statistic(alone.evidence)
            assert points[r, k] == pytest.approx(expected, nan_ok=True)
            if not np.isnan(expected):
                assert standing[r, k] == (0 if criterion.right(expected) else 1 if expected >= criterion.high else -1)
                assert (standing[r, k] == 0) == facts.met[r, k]
    assert drawn.shape == (60, len(GRID), len(facts.criteria))
    total = facts.score(facts.met, without="C5")
    assert np.array_equal(facts.score(np.stack([facts.met, ~facts.met]), without="C5")[0], total)
    for r in range(len(GRID)):
        own = {name: list(of) for name, of in itertools.groupby(range(len(points[r])), lambda k: facts.claims[k])}
        shares = [facts.met[r, of].mean() for name, of in own.items() if name != "C5"]
        assert total[r] == pytest.approx(sum(shares) / len(shares))


def test_what_was_not_measured_is_not_met():
    scores, controls = made([7])
    scores["activation_ratio_p95"] = scores["activation_ratio_p95"] * np.nan
    found = choosing.facts(scores, controls, "synthetic")
    gone = ["95 % point" in criterion.what for criterion in found.criteria]
    assert sum(gone) == 3 and not found.met[:, gone].any() and np.isnan(found.standing[:, gone]).all()
