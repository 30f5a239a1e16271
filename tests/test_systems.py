"""Verdicts on what the sources of the systems say."""

import importlib
import pkgutil

import fastjsonschema
import numpy as np
import pandas as pd
import pytest

from harvis_utils import paper
from harvis_utils.networks import builders
from harvis_utils.paper import report, systems, verdicts
from harvis_utils.settings import LONG_WINDOWS, ModelSettings
from harvis_utils.store.files import read_json

ASKED = systems.Question("B9", "Tab. 9", "more is better", "F1 with more minus F1 without", "the same again", 0.02)


@pytest.mark.parametrize(
    ("values", "direction"),
    [
        ((0.05, 0.06, 0.07), "yes"),
        ((0.01, 0.012, 0.011), "no"),  # surely above zero and surely too little
        ((-0.05, -0.06, -0.07), "no"),
        ((0.0, 0.0, 0.0), "no"),
        ((-0.05, 0.06, 0.07), "undecided"),
        ((0.015, 0.018, 0.026), "undecided"),  # above zero, but the margin lies inside the interval
        ((0.05, 0.06), "not testable"),
        ((np.nan, 0.05, np.nan), "not testable"),
    ],
)
def test_a_difference_counts_from_its_margin_on(values, direction):
    found = systems.judge(ASKED, values, {"the same again": values})
    assert found["direction"] == direction
    assert found["networks"] == np.isfinite(values).sum() and len(found["per_network"]) == len(values)
    schema = {"definitions": read_json(report.SCHEMA)["definitions"], "$ref": "#/definitions/question"}
    fastjsonschema.validate(schema, found)
    assert list(systems.table([found]).index) == ["B9"]


def test_without_a_margin_a_tie_is_no():
    asked = systems.Question("B3", "text", "it grows", "rank correlation", "shuffled")
    assert systems.judge(asked, (0.0, 0.0, 0.0))["direction"] == "no"
    assert systems.judge(asked, (0.1, 0.2, 0.3))["direction"] == "yes"
    assert systems.judge(asked, (-0.1, 0.2, 0.3))["direction"] == "undecided"


def test_what_is_missing_is_named():
    found = systems.judge(ASKED, (0.05, 0.06, 0.07), missing="smoke runs judge nothing")
    assert found["direction"] == "not testable" and found["why"].startswith("Not testable: smoke runs judge nothing.")


def test_an_interval_goes_over_networks_alone_however_many_people_or_units_each_has():
    apart = np.array([0.0, 0.1, 0.2])[:, None] + np.tile([-0.5, 0.5], 10)
    found = systems.judge(ASKED, apart, {"the same again": apart})
    assert found["interval"] == pytest.approx([0.0, 0.2]) and found["per_network"] == pytest.approx([0, 0.1, 0.2])
    assert found["controls"]["the same again"]["interval"] == found["interval"] and found["networks"] == 3


def test_rows_that_are_equal_do_not_beat_each_other_by_the_luck_of_single_networks():
    rng = np.random.default_rng(0)
    lost = []
    for _ in range(300):
        table = pd.DataFrame(rng.normal(size=(3, 4)), columns=list("abcd"))
        each = table["a"] - systems.best_rival(table, "bcd")
        lost.append([each.mean(), (table["a"] - table[list("bcd")].max(axis=1)).mean()])
        worst = table["a"] - systems.best_rival(table, "bcd", lowest=True)
        assert worst.mean() == pytest.approx((table["a"].mean() - table[list("bcd")].mean()).max())
    ours, luck = np.mean(lost, axis=0)
    assert luck < ours - 0.2 < 0


def test_controls_that_reach_as_much_are_named():
    controls = {"less": (0.01, 0.02, 0.03), "as much": (0.06 - 0.9 * ASKED.margin,) * 3, "none": (np.nan,) * 3}
    assert systems.ahead(systems.judge(ASKED, (0.05, 0.06, 0.07), controls)) == ["as much"]
    assert systems.ahead(systems.judge(ASKED, (np.nan,) * 3, controls)) == []


def test_a_finding_says_what_was_measured_and_names_rivals_without_their_numbers():
    controls = {"as much": (0.06,) * 3, "less": (0.01,) * 3}
    found = systems.judge(ASKED, (0.05, 0.06, 0.07), controls)
    assert systems.finding(found).startswith(f"Yes. {ASKED.difference}: ")
    assert systems.finding(found).endswith(". As much, within the margin: *as much*.")
    found = systems.judge(ASKED, (0.05, 0.06, 0.07), {"less": (0.01,) * 3})
    assert systems.finding(found).endswith(". No control reaches as much, within the margin.")
    assert "control" not in systems.finding(systems.judge(ASKED, (0.05, 0.06, 0.07)))
    lost = systems.judge(ASKED, (0.05, 0.06, 0.07), controls, missing="nothing learned")
    assert systems.finding(lost) == "Not testable: nothing learned."


def test_what_is_measured_is_told_in_one_piece():
    rooms = [importlib.import_module(f"harvis_utils.paper.{of.name}") for of in pkgutil.iter_modules(paper.__path__)]
    held = [of for room in rooms for of in vars(room).values() if isinstance(of, tuple | list | dict)]
    asked = [q for of in held for q in (of.values() if isinstance(of, dict) else of) if isinstance(q, systems.Question)]
    assert len({of.id for of in asked}) > 30
    assert [of.id for of in asked if "; " in of.difference] == []


def test_settings_of_no_network_are_refused():
    network = builders.build(3, 30, 4, ModelSettings(n_units=4, n_dense=8))
    assert network.layers == ("conv1", "conv2", "conv3")
    with pytest.raises(TypeError, match="WindowSettings are the settings of no network; known: ModelSettings"):
        builders.build(3, 30, 4, LONG_WINDOWS)


def test_shares_below_one_point_are_not_written_as_nothing():
    assert verdicts.number(-0.0006, "share", (-0.011, 0.0), signed=True) == "-0.06 points (-1.1 to +0)"
    assert verdicts.number(0.044, "share", (0.04, 0.12), signed=True) == "+4.4 points (+4 to +12)"
    assert verdicts.number(0.5, "share", (0.004, 0.7)) == "50 % (0.4 to 70)"
    assert verdicts.number(12.3, "times", (1, 200)) == "12 times (1 to 200)"
