"""Each person left out in turn, sensors that were lost, networks of several widths, and units merged."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from harvis_utils.data import windowing
from harvis_utils.data.windowing import Split, Windows
from harvis_utils.networks.sfhf import SFHF
from harvis_utils.paper import people, widths
from harvis_utils.paper.stages import Stages
from harvis_utils.settings import MaximizationSettings, ModelSettings, PeopleSettings, WidthSettings, load_settings

AXES = ("arm x", "arm y", "leg x", "leg y")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Stages:
    """Synthetic windows, and networks of 6 units that are trained for one epoch."""
    cfg = load_settings("quick", "synthetic")
    small = dataclasses.replace(
        cfg,
        model=ModelSettings(n_units=6, n_dense=8),
        training=dataclasses.replace(cfg.training, epochs=1, seeds=(0, 1)),
        maximization=MaximizationSettings(n_steps=20),
        people=PeopleSettings(n_people=2, n_windows=300),
        widths=WidthSettings(n_units=(3,), n_networks=2, thinning=10, n_draws=2),
    )
    made = Stages(small)
    made.data = made.data.thinned(300)
    return made


def split_of(series: np.ndarray, length: int = 12, step: int = 3) -> Split:
    start = np.arange(0, len(series) - length + 1, step)
    zeros = np.zeros(len(start), int)
    return Split(series.astype(np.float32), start, zeros, zeros, zeros, start, length)


def test_each_person_is_left_out_of_a_network_of_its_own(run):
    last = people.left_out(run, 10)
    who = {name: set(getattr(last.data, name).subject.tolist()) for name in windowing.SPLITS}
    assert who == {"train": set(range(2, 10)), "val": {1}, "test": {10}}
    assert last.cfg.training.seeds == (510,) and people.left_out(run, 3).cfg.training.seeds == (503,)


def test_people_have_one_row_for_each_layer_and_an_interval(run):
    table = people.measured(run)
    assert table[["person", "layer"]].values.tolist() == [[p, f"conv{k}"] for p in (1, 2) for k in (1, 2, 3)]
    assert (table["F1"] == table["F1 without dropouts"]).all(), "made-up sensors are never lost"
    assert table["flat share"].between(0, 1).all()
    summary = people.over_people(table.assign(F1=[0.5, 0.5, 0.5, 0.7, 0.7, 0.7]))
    low, high = stats.t.interval(0.95, 1, 0.6, 0.1)
    assert np.allclose(summary[["F1", "F1 low", "F1 high"]], [0.6, low, high]) and (summary["people"] == 2).all()
    same = people.over_people(table.assign(F1=0.5))
    assert np.allclose(same[["F1 low", "F1 high"]], 0.5)


def test_a_lost_sensor_is_found_where_a_naive_search_finds_it():
    rng = np.random.default_rng(0)
    series = rng.normal(size=(200, 4))
    for begin, length, axes in ((20, 5, [0, 1]), (60, 9, [2, 3]), (90, 20, [1]), (120, 4, [0, 1]), (192, 8, range(4))):
        series[begin : begin + length, list(axes)] = 0
    split = split_of(series)

    def naive(window: np.ndarray) -> bool:
        pairs = [(window[list(sensor)] == 0).all(0) for sensor in ((0, 1), (2, 3))]
        return any(lost[i : i + 5].all() for lost in pairs for i in range(len(lost) - 4))

    found = windowing.dropouts(split, AXES, 5)
    assert found.tolist() == [naive(window) for window in split.x]
    assert found.any() and not windowing.dropouts(split, AXES, 10).any()
    windows = Windows(split, split, split, ("rest",), AXES, 30.0, "")
    assert len(windowing.without_dropouts(windows, 5).train) == (~found).sum()
    assert windowing.without_dropouts(windows, 10).digest == windows.digest
    assert people.dropout_table(windows, 5)["dropouts"].tolist() == [found.sum()] * 3
    assert people.dropout_table(windows, 10).empty


@pytest.mark.parametrize(
    "changes", [{}, {"mixing": "conv"}, {"n_dense": 0}, {"pool": "max2"}, {"pool": "mean", "n_dense": 0}], ids=str
)
def test_merging_twins_changes_nothing_and_merging_others_does(changes):
    torch.manual_seed(0)
    model = SFHF(2, 30, 3, ModelSettings(n_units=4, n_dense=5) if not changes else ModelSettings(n_units=4, **changes))
    model.eval()
    with torch.no_grad():
        for layer in model.layers:
            conv = getattr(model, layer)
            conv.weight[3] = 2 * conv.weight[1]
            conv.bias[3] = 2 * conv.bias[1]
        x = torch.randn(6, 2, 30)
        for layer in model.layers:
            same = widths.merged(model, layer, [[1, 3]], np.array([1.0, 1.0, 1.0, 2.0]))
            assert torch.allclose(same(x), model(x), atol=1e-5)
            assert (widths.outgoing(same, layer)[:, 3] == 0).all() and (widths.outgoing(model, layer)[:, 3] != 0).any()
            assert not torch.allclose(widths.merged(model, layer, [[0, 1]], np.ones(4))(x), model(x), atol=1e-5)


def test_random_groups_have_the_same_sizes_and_no_unit_twice():
    rng = np.random.default_rng(1)
    groups = widths.same_sizes([[1, 5, 6], [2, 3]], np.array([1, 2, 3, 5, 6, 8, 9]), rng)
    assert list(map(len, groups)) == [3, 2]
    units = np.concatenate(groups)
    assert len(set(units)) == 5 and set(units) <= {1, 2, 3, 5, 6, 8, 9}


def test_widths_and_merged_units_have_a_row_for_each_network_and_layer(run):
    table, merging = widths.measured(run), widths.merging_table(run)
    assert table.groupby(["units", "seed"]).size().to_dict() == {(n, s): 3 for n in (3, 6) for s in (0, 1)}
    assert widths.of_width(run, 6) is run and len(merging) == 6
    assert ((merging["merged"] == 0) == merging["change"].isna()).all()
    assert widths.by_width(table).index.tolist() == [(n, f"conv{k}") for n in (3, 6) for k in (1, 2, 3)]
    assert widths.by_layer(merging)["gain low"].isna().all(), "two networks have no interval"
    found = widths.evidence(table, merging)
    assert {name: values.shape for name, values in found.items()} == {
        "near_duplicates": (2, 3),
        "near_duplicates_null": (2, 3),
        "f1_change": (2,),
        "merging": (2, 3),
    }
    f1 = table.drop_duplicates(["units", "seed"]).set_index(["units", "seed"])["F1"]
    assert np.allclose(found["f1_change"], (f1[3] - f1[6]).to_numpy())


def test_flat_signals_have_no_twins():
    sine = np.sin(np.linspace(0, 6, 30))
    signal = np.stack([sine, 2 * sine, np.full(30, np.nan), np.cos(np.linspace(0, 20, 30))])
    found = widths.alike(signal)
    assert found["duplicates"] == pytest.approx(2 / 3) and found["groups"] == 2
    assert pd.isna(list(widths.alike(signal[2:]).values())).all()
