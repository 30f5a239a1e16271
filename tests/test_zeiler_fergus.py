"""Verdicts on pooling and on carried features: nothing that knows no network wins, and what is missing is said."""

import itertools

import pandas as pd
import pytest

from harvis_utils.lenses import carrying, invariance, pooling
from harvis_utils.paper import zeiler_fergus
from harvis_utils.paper.verdicts import NO, UNTESTABLE, YES

SEEDS = (0, 1, 2)


def rows(*names: str, **values) -> pd.DataFrame:
    """One row per network and combination of ``values``, which are lists; ``names`` are measures, 0 at first."""
    table = pd.DataFrame(itertools.product(*values.values(), SEEDS), columns=[*values, "seed"])
    return table.assign(**dict.fromkeys(names, 0.0))


def tables() -> dict[str, pd.DataFrame]:
    """All measures of networks in which nothing is to be seen."""
    lenses = [pooling.STRONGEST, pooling.CLASS, pooling.NO_NETWORK, pooling.SQUARED]
    kinds = [pooling.MAX, pooling.RANDOM, pooling.MEAN, pooling.NO_POOLING]
    return {
        "structure": rows("resemblance", "likeness", "windows", way=list(pooling.WAYS), layer=["conv1", "conv2"]),
        "parts": rows("exaggeration", "AUC against decoys", way=list(pooling.WAYS), lens=lenses),
        "moved": rows("invariance", network=kinds, change=["shift"], layer=["conv1", "conv2", invariance.FEATURES]),
        "labels": rows("changed", network=kinds, place=["in motifs", "in decoys", "elsewhere", "everywhere"]),
    }


def directions(found: dict[str, pd.DataFrame]) -> dict[str, str]:
    return {of["id"]: of["direction"] for of in zeiler_fergus.judged_pooling(**found)}


def test_nothing_is_no():
    assert set(directions(tables()).values()) == {NO}


@pytest.mark.parametrize(
    ("question", "table", "measure", "where"),
    [
        ("structure", "structure", "resemblance", "way == @pooling.MAX"),
        ("grouping", "structure", "likeness", "way == @pooling.MAX"),
        ("exaggeration", "parts", "exaggeration", "way == @pooling.MAX and lens == @pooling.STRONGEST"),
        ("decoys", "parts", "AUC against decoys", "way == @pooling.MAX and lens == @pooling.CLASS"),
        ("invariance", "moved", "invariance", "network == @pooling.MAX and layer == @invariance.FEATURES"),
        ("moving cover", "labels", "changed", "network == @pooling.MAX and place == 'in motifs'"),
    ],
)
def test_what_is_measured_decides_its_question_alone_and_what_all_have_decides_none(question, table, measure, where):
    found, none = tables(), directions(tables())
    found[table].loc[found[table].query(where).index, measure] = 2.0
    assert directions(found) == none | {question: YES}
    found[table][measure] = 2.0  # of other switches, of the deviation without a network, of all layers and places too
    assert directions(found) == none


def test_each_kind_of_switches_is_judged_against_random_weights_with_the_same_kind():
    found = tables()
    way, likeness = found["structure"]["way"], {pooling.RANDOM_SWITCHES: 0.5, f"{pooling.RANDOM}, random switches": 0.4}
    found["structure"]["likeness"] = way.map(likeness).fillna(0.0)
    grouping = {of["id"]: of for of in zeiler_fergus.judged_pooling(**found)}["grouping"]
    assert list(grouping["controls"]) == [pooling.RANDOM_SWITCHES]  # no untrained network without pooling is there
    assert grouping["value"] == 0 and grouping["controls"][pooling.RANDOM_SWITCHES]["value"] == pytest.approx(0.1)


def test_a_control_that_does_as_well_is_named():
    found = tables()
    own = found["structure"]["way"].isin([pooling.MAX, pooling.RANDOM])
    found["structure"].loc[own, "resemblance"] = 0.5
    assert "structure (random weights +0.5, against +0.5)" in zeiler_fergus.as_well(
        zeiler_fergus.judged_pooling(**found)
    )
    assert zeiler_fergus.as_well(zeiler_fergus.judged_pooling(**tables())) == "No control does as well."


def test_changes_that_the_mean_over_changes_hides_are_named():
    found = rows("invariance", network=[pooling.MAX], change=["shift", "turn"], layer=["conv1", invariance.FEATURES])
    found.loc[(found["change"] == "shift") & (found["layer"] == invariance.FEATURES), "invariance"] = 0.5
    assert zeiler_fergus.changes_without(found) == ["turn"]


def test_without_planted_motifs_there_are_no_decoys():
    found = tables()
    del found["parts"]["AUC against decoys"]
    found["labels"]["place"] = found["labels"]["place"].replace({"in motifs": "where most moves"})
    decided = directions(found)
    assert decided.pop("decoys") == UNTESTABLE and set(decided.values()) == {NO}


def carried(**f1: float) -> pd.DataFrame:
    arms = [*zeiler_fergus.CARRIED, carrying.RANDOM, carrying.SCRATCH, carrying.ALL]
    found = rows("F1", way=["a to b", "b to a"], arm=arms, **{"windows a class": list(carrying.N_PER_CLASS)})
    for arm, value in f1.items():
        found.loc[found["arm"] == getattr(carrying, arm), "F1"] = value
    return found


def test_a_carried_trunk_has_to_be_better_than_a_random_one_and_than_none():
    better = zeiler_fergus.judged_carrying(carried(FROZEN=0.5, RANDOM=0.4, SCRATCH=0.3))
    assert [of["direction"] for of in better] == [YES, NO, YES, NO]
    assert better[0]["value"] == pytest.approx(0.1) and "+10 points by a random trunk" in zeiler_fergus.by_random(
        better
    )
    for other in ("RANDOM", "SCRATCH"):
        found = zeiler_fergus.judged_carrying(carried(FROZEN=0.5, TUNED=0.5, **{other: 0.5}))
        assert {of["direction"] for of in found} == {NO}


def test_numbers_of_windows_that_the_mean_over_them_hides_are_named():
    table = carried(FROZEN=0.5, RANDOM=0.4, SCRATCH=0.3)
    most = carrying.N_PER_CLASS[-1]
    table.loc[(table["arm"] == carrying.FROZEN) & (table["windows a class"] == most), "F1"] = 0.41
    told = zeiler_fergus.numbers_without(table, zeiler_fergus.judged_carrying(table))
    assert told == f" Alone it is not so for: frozen there with {most}; frozen back with {most} windows a class."
    table = carried(FROZEN=0.5, RANDOM=0.4, SCRATCH=0.3)
    assert zeiler_fergus.numbers_without(table, zeiler_fergus.judged_carrying(table)) == ""


def test_without_another_data_set_nothing_is_judged_and_it_is_said_why():
    found = zeiler_fergus.judged_carrying(None, "mhealth is not on this machine")
    assert {of["direction"] for of in found} == {UNTESTABLE} and len(found) == 4
    assert all("mhealth is not on this machine" in of["why"] for of in found)
    assert zeiler_fergus.by_random(found) == zeiler_fergus.numbers_without(None, found) == ""
