"""Windows that are shifted, stretched, strengthened and turned, and how far layers move."""

import numpy as np
import pytest

from harvis_utils.data import windowing
from harvis_utils.lenses import invariance
from harvis_utils.lenses.invariance import AMOUNTS, INPUT, SHIFT, STRENGTH, TEMPO, TURN
from harvis_utils.settings import ModelSettings, TrainingSettings, WindowSettings
from harvis_utils.training.supervised import Network, new_model, trained

RNG = np.random.default_rng(0)
LONG = RNG.normal(size=(4, 6, 60))
X = LONG[:, :, 15:45]
SENSORS = [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(("change", "nothing"), [(SHIFT, 0), (TEMPO, 1), (STRENGTH, 1), (TURN, 0), (TURN, 360)])
def test_no_change_is_none(change, nothing):
    assert np.allclose(invariance.changed(LONG, 30, change, nothing, SENSORS), X)


def test_shifts_and_tempos_show_what_is_there():
    assert np.array_equal(invariance.changed(LONG, 30, SHIFT, 8, SENSORS), LONG[:, :, 23:53])
    line = np.arange(60.0) * np.ones((1, 3, 1))
    assert np.allclose(invariance.changed(line, 30, TEMPO, 1.5, SENSORS), 29.5 + 1.5 * (np.arange(30) - 14.5))
    stronger = invariance.changed(LONG, 30, STRENGTH, 2.0, SENSORS)
    assert np.allclose(stronger.mean(2), X.mean(2)) and np.allclose(np.ptp(stronger, 2), 2 * np.ptp(X, 2))


def test_turns_keep_gravity_and_lengths_and_add_up():
    turned = invariance.changed(LONG, 30, TURN, 40, SENSORS)
    sensors, before = (of.reshape(4, 2, 3, 30) for of in (turned, X))
    assert np.allclose(turned.mean(2), X.mean(2)), "gravity stays"
    assert np.allclose(np.linalg.norm(sensors, axis=2), np.linalg.norm(before, axis=2))
    twice = np.concatenate([LONG[:, :, :15], turned, LONG[:, :, 45:]], 2)
    assert np.allclose(
        invariance.changed(twice, 30, TURN, 50, SENSORS), invariance.changed(LONG, 30, TURN, 90, SENSORS)
    )
    up = np.zeros((1, 6, 30))
    up[:, [2, 5]] = 1  # gravity on z
    up[:, [0, 3]] = np.where(np.arange(30) % 2, 0.5, -0.5)  # along x, which turns to y
    quarter = invariance.changed(np.pad(up, ((0, 0), (0, 0), (4, 4)), "wrap"), 30, TURN, 90, SENSORS)
    assert np.allclose(quarter[:, [1, 4]], up[:, [0, 3]], atol=1e-12) and np.allclose(quarter[:, [0, 3]], 0, atol=1e-12)


def test_what_belongs_together_is_turned_together_wherever_it_stands():
    order = [4, 0, 3, 5, 2, 1]
    turned = invariance.changed(LONG, 30, TURN, 40, SENSORS)
    moved = [[order.index(axis) for axis in sensor] for sensor in SENSORS]
    assert np.allclose(invariance.changed(LONG[:, order], 30, TURN, 40, moved), turned[:, order])
    one = invariance.changed(LONG, 30, TURN, 40, SENSORS[1:])
    assert np.array_equal(one[:, :3], X[:, :3]) and np.allclose(one[:, 3:], turned[:, 3:]), "others stay"


def test_windows_are_surrounded_by_their_own_recording(make_recordings):
    data = windowing.cut(make_recordings({(s, a): 120 for s in (1, 2, 3, 4) for a in range(2)}))
    long = invariance.surrounded(data.test, 100)
    inner = [i for i in range(len(data.test)) if 15 <= data.test.offset[i] <= 120 - 45]
    assert len(long) == len(inner) and np.array_equal(long[:, :, 15:45], data.test.x[inner])
    short = windowing.cut(make_recordings({(s, a): 45 for s in (1, 2, 3, 4) for a in range(2)}))
    with pytest.raises(ValueError, match="no window has another one before and behind it"):
        invariance.surrounded(short.test, 5)
    dense = windowing.cut(
        make_recordings({(s, a): 120 for s in (1, 2, 3, 4) for a in range(2)}), WindowSettings(step=5)
    )
    with pytest.raises(ValueError, match="changes need 8 samples on both sides, the step between windows is 5"):
        invariance.surrounded(dense.test, 5)


def test_distances_are_shares_of_unrelated_windows_and_invariance_counts_from_the_input(tiny_windows, one_thread):
    model = ModelSettings(n_units=4, n_dense=8)
    key = trained.key(tiny_windows, model, TrainingSettings(seeds=(), epochs=0), 0)
    network = Network(0, new_model(tiny_windows, model, 0).eval(), {}, -1, {}, {}, key, 0.0)
    found = invariance.distances(network, tiny_windows, 12)
    assert len(found) == 16 * 6 and (found["distance"] > 0).all() and found["same class"].between(0, 1).all()
    own = found[found["layer"] == INPUT]
    assert (own["distance"] == own["input distance"]).all()
    small, large = (own[(own["change"] == STRENGTH) & (own["amount"] == a)]["distance"].item() for a in (1.25, 1.5))
    assert large == pytest.approx(2 * small, rel=1e-4), "a movement that is stronger by twice as much"
    table = invariance.invariances(found.assign(network="one", seed=0))
    assert len(table) == len(AMOUNTS) * 5
    row = found[(found["layer"] == "conv2") & (found["change"] == SHIFT)]
    expected = (1 - row["distance"] / row["input distance"]).mean()
    assert table.set_index(["change", "layer"]).loc[(SHIFT, "conv2"), "invariance"] == pytest.approx(expected)
