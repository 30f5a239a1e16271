"""Choosing among readings: the rule against plain loops, and choices planted in made-up scores."""

import functools

import numpy as np
import pytest
import xarray as xr

from harvis_utils.paper import choosing, claims, variants
from harvis_utils.paper.choosing import Facts

LAYERS, UNITS, SEEDS = ("conv1", "conv2", "conv3"), 6, 3
GRID = variants.READINGS[:12]
LABELS = [r.name for r in GRID]
METHODS = (*variants.FREE, *variants.PENALIZED)


def made(good=(), seed=0):
    """Scores of twelve readings: those in ``good`` meet the paper's facts, the others hardly move."""
    rng = np.random.default_rng(seed)
    coords = {"reading": LABELS, "technique": list(METHODS), "layer": list(LAYERS)}
    dims, shape = ("seed", *coords, "unit"), (SEEDS, len(GRID), len(METHODS), 3, UNITS)

    def table(fill):
        return xr.DataArray(fill * rng.uniform(0.9, 1.1, shape), coords, dims)

    sizes = {"s_u": 0.001, "activation_ratio": 0.3, "activation_ratio_p95": 0.4, "peak_amplitude_g": 0.3}
    sizes |= {"high_frequency_share": 0.05, "total_variation_g": 1.0, "n_frequencies": 3.0, "shape_match": 0.95}
    scores = xr.Dataset({name: table(size) for name, size in sizes.items()})
    scores["failed"] = xr.zeros_like(scores["s_u"], dtype=bool)
    scores["dead"] = xr.zeros_like(scores["failed"])
    wanted = {
        "naive": {"activation_ratio_p95": 15, "peak_amplitude_g": 12, "high_frequency_share": 0.5},
        "L2+TV": {"s_u": 1.0, "activation_ratio": 3},
        "L2+TV+AAP": {"activation_ratio_p95": 2, "activation_ratio": 2},
        "L2+TV+EAP": {"activation_ratio": 1.0, "total_variation_g": 4},
        "L2+TV+EAP+clip": {"activation_ratio": 1.0, "s_u": 0.01},
    }
    for k in good:
        for method, name, value in ((m, *change) for m, changes in wanted.items() for change in changes.items()):
            where = {"reading": LABELS[k], "technique": method}
            scores[name].loc[where] *= value / float(scores[name].sel(where).mean())
        scores["failed"].loc[{"reading": LABELS[k], "technique": "lowpass"}] = True
        scores["failed"].loc[{"reading": LABELS[k], "technique": "L2+TV", "unit": 0}] = True
        scores["activation_ratio"].loc[{"reading": LABELS[k], "technique": "L2+TV+EAP", "unit": 1}] = 2.0
        for layer, gain in (("conv1", 10.0), ("conv2", 3.0), ("conv3", 3.0)):
            scores["s_u"].loc[{"reading": LABELS[k], "technique": "L2+TV+EAP+clip", "layer": layer}] *= gain
    real = xr.Dataset(
        {"high_frequency_share": (("seed", "layer", "unit"), np.full((SEEDS, 3, UNITS), 0.1))},
        {"layer": list(LAYERS)},
    ).expand_dims(control=["held-out-strongest"])
    return scores, real


@functools.cache
def judged(*good, seed=0):
    found = choosing.facts(*made(good, seed), GRID)
    return found, found.draws(UNITS, n=60)


def test_facts_are_the_claims_criteria_unchanged_and_one_more():
    wanted = judged(7)[0].criteria
    assert list(dict.fromkeys(c.claim for c in wanted)) == list(choosing.CHOOSING)
    of_claims = [c for c in claims.CRITERIA if c.claim in choosing.CHOOSING]
    assert [c for c in wanted if c is not choosing.SOME_FAIL] == of_claims and len(wanted) == len(of_claims) + 1


def test_the_reading_that_meets_the_facts_is_found():
    table = choosing.table(GRID, *judged(7))
    assert table.attrs["winner"] == table.index[0] == LABELS[7]
    assert table["score"].iloc[0] == 1 and table["admissible"].sum() == 1
    assert (table["difference high"].iloc[1:] < 0).all()
    by_weight = choosing.by_parameter(table).loc["weight: 0.1"]
    own = table.loc[table["weight"] == 0.1, "score"]
    assert by_weight.tolist() == [own.mean(), own.min(), own.max()]


def test_readings_that_agree_cannot_be_told_apart_and_the_nearest_to_the_paper_wins():
    table = choosing.table(GRID, *judged(2, 1, 8))
    assert set(table.index[table["admissible"]]) == {LABELS[k] for k in (1, 2, 8)}
    fewest = min((1, 2, 8), key=lambda k: (variants.departures(GRID[k]), k))
    assert table.attrs["winner"] == LABELS[fewest]


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
    scores, real = made(good=[3, 4])
    scores["failed"].loc[{"reading": LABELS[4], "technique": "lowpass"}] = False
    own = choosing.facts(scores, real, GRID)
    found = choosing.shares(GRID, own, own.draws(UNITS, n=60))
    assert found.loc["C4", "admissible readings"] == 2 and found.loc["C4", "all facts met in"] == 0.5
    assert found.loc["C6", "admissible readings"] == 1 and found.loc["C6", "all facts met in"] == 1
    assert found.loc["C4", "in all readings"] == pytest.approx(1 / len(GRID))


def test_claims_that_chose_nothing_are_judged_too():
    deep, real = made(good=[3])
    deep["n_frequencies"].loc[{"layer": "conv3", "reading": LABELS[3]}] += 1
    found = choosing.shares(GRID, *judged(3), choosing.facts(deep, real, GRID, ("C11",)))
    assert found.loc["C11", "admissible readings"] == 1 and found.loc["C11", "all facts met in"] == 1


def test_points_scores_and_draws_equal_plain_loops():
    facts, _ = judged(0, 5, seed=3)
    for array in facts.values:
        array[:, 0, 1] = np.nan
    rng = np.random.default_rng(5)
    network, unit = rng.integers(SEEDS, size=SEEDS), rng.integers(UNITS, size=(SEEDS, 3, UNITS))
    found, standing = facts.points(network, unit), facts.standing(network, unit)
    for r in range(len(GRID)):
        for k, (array, criterion) in enumerate(zip(facts.values, facts.criteria, strict=True)):
            values = [
                array[r, network[n], layer * UNITS + unit[n, layer, u]]
                for n in range(SEEDS)
                for layer in range(array.shape[2] // UNITS)
                for u in range(UNITS)
            ]
            values = [v for v in values if not np.isnan(v)]
            expected = np.median(values) if criterion.summary == "median" else np.mean(values)
            assert found[r, k] == pytest.approx(expected)
            ends = (expected < criterion.low, expected > criterion.high)
            assert standing[r, k] == ends[1] * 1 - ends[0]
    met = facts.met(network, unit)
    total, drawn = facts.score(met, without="C5"), facts.score(np.stack([met, ~met]), without="C5")
    assert np.array_equal(drawn, [total, facts.score(~met, without="C5")])
    for r in range(len(GRID)):
        shares = []
        for claim in choosing.CHOOSING:
            own = [met[r, k] for k, criterion in enumerate(facts.criteria) if criterion.claim == claim]
            if claim != "C5":
                shares.append(sum(own) / len(own))
        assert total[r] == pytest.approx(sum(shares) / len(shares))


def test_what_was_not_measured_is_not_met():
    facts, _ = judged(7)
    assert not Facts(facts.criteria, [facts.values[0] * np.nan, *facts.values[1:]]).met()[:, 0].any()
