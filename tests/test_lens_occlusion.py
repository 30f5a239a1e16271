"""Occlusion: what a cover is; covers in batches as one by one; nothing left on the network.

That drops are those of covering one place after another is tested for every network in ``test_matrix.py``.
"""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lens_taps import CLASSES, LAYERS, LENGTH, MODELS, N_AXES, hooks_of, windows
from torch import nn

from harvis_utils.lenses import deconvnet, occlusion
from harvis_utils.lenses.occlusion import Occluder
from harvis_utils.settings import ModelSettings, TrainingSettings, load_settings
from harvis_utils.training import supervised

AXES = occlusion.by_axis(N_AXES)


@settings(max_examples=40)
@given(
    st.integers(0, 1000),
    st.sampled_from([1, 3, 7, 15]),
    st.sampled_from(occlusion.FILLS),
    st.integers(0, LENGTH - 1),
    st.sampled_from([(0,), (1, 2)]),
)
def test_windows_are_covered_as_sample_by_sample(seed, width, fill, centre, axes):
    x = windows(2, seed)
    expected = x.numpy().copy()
    low, high = max(0, centre - width // 2), min(LENGTH - 1, centre + width // 2)
    beside = [s for s in (low - 1, high + 1) if 0 <= s < LENGTH]
    for window, axis, t in np.ndindex(2, len(axes), high - low + 1):
        own, t = x[window, axes[axis]].numpy(), low + t
        value = {"mean": own.mean(), "zero": 0.0, "line": np.interp(t, beside, own[beside])}[fill]
        expected[window, axes[axis], t] = value
    before = x.clone()
    assert np.allclose(occlusion.covered(x, axes, centre, Occluder(width, fill)), expected, atol=1e-6)
    assert torch.equal(x, before), "the windows themselves are left alone"


@pytest.mark.parametrize("name", MODELS)
def test_more_windows_than_one_batch_are_the_same_as_by_hand_one_by_one(name, monkeypatch):
    model, x, y, occluder = MODELS[name]().eval(), windows(3), [0, 1, 3], Occluder(5, "line")
    whole = occlusion.drops(model, x, y, AXES, occluder, LAYERS[name])
    monkeypatch.setattr(occlusion, "BATCH", 2 * LENGTH)
    parts = occlusion.drops(model, x, y, AXES, occluder, LAYERS[name])
    assert all(np.allclose(whole[of], parts[of], atol=1e-5) for of in whole)
    with torch.no_grad():
        p, q = (
            torch.softmax(model(of).double(), 1)[[0, 1, 2], y] for of in (x, occlusion.covered(x, [1], 9, occluder))
        )
    here = whole.isel(group=1, time=9)
    assert np.allclose(here["probability"], p - q, atol=1e-5)
    assert np.allclose(here["log_odds"], torch.logit(p) - torch.logit(q), atol=1e-4)


def test_a_cover_on_every_third_sample_costs_what_it_does_there():
    name = next(iter(MODELS))
    model, x, y = MODELS[name]().eval(), windows(3), [0, 1, 3]
    whole, some = (occlusion.drops(model, x, y, AXES, Occluder(5), LAYERS[name], every) for every in (1, 3))
    assert some["time"].values.tolist() == list(range(0, LENGTH, 3))
    assert all(
        np.allclose(whole[of].isel(time=slice(None, None, 3)), some[of], atol=1e-5) for of in ("log_odds", "activity")
    )


def test_a_cover_that_says_what_was_there_changes_nothing():
    straight = torch.linspace(-1, 1, LENGTH).expand(2, N_AXES, LENGTH).clone()
    inner = occlusion.drops(MODELS["sfhf"](), straight, [0, 1], AXES, Occluder(5, "line"))
    assert np.abs(inner["log_odds"].values[:, :, 3:-3]).max() < 1e-4


class Looks(nn.Module):
    """Class 1 is the sample at axis 1, time 20; class 0 its opposite."""

    def forward(self, x):
        return torch.stack([-x[:, 1, 20], x[:, 1, 20]], 1)


def test_the_peak_is_where_the_network_looks():
    x = windows(6).abs() + 1
    for occluder in (Occluder(1, "zero"), Occluder(3, "zero")):
        axis, time = occlusion.peaks(occlusion.drops(Looks(), x, [1] * 6, AXES, occluder)["log_odds"].values)
        assert (axis == 1).all() and (abs(time - 20) <= occluder.width // 2).all()
    assert occlusion.peaks(np.zeros((2, 3, 4)))[1].tolist() == [0, 0], "the earliest of equals"


def test_log_odds_tell_what_the_probability_rounds_away():
    scores = torch.tensor([[60.0, 0.0, 0.0], [90.0, 0.0, 0.0], [0.3, -0.2, 1.0]])
    found = occlusion.log_odds(scores, torch.tensor([0, 0, 2]))
    assert torch.softmax(scores.double(), 1)[0, 0] == torch.softmax(scores.double(), 1)[1, 0]
    assert found[1] - found[0] == pytest.approx(30)
    assert found[2] == pytest.approx(float(torch.logit(torch.softmax(scores[2].double(), 0)[2])))


@pytest.mark.parametrize("name", MODELS)
def test_the_network_is_left_as_it_was_also_after_an_error(name):
    model, x, groups = MODELS[name]().train(), windows(), {"all": (0, 1, 2)}
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    occlusion.drops(model, x, [0] * 5, groups, Occluder(3), LAYERS[name])
    with pytest.raises(ValueError, match=f"classes 0 to {CLASSES - 1}, not \\[0, 9\\]"):
        occlusion.drops(model, x, [0, 0, 0, 0, 9], groups, Occluder(3), LAYERS[name])
    with pytest.raises(ValueError, match="unknown layer"):
        occlusion.drops(model, x, [0] * 5, groups, Occluder(3), "conv9")
    assert [m.training for m in model.modules()] == modes and not hooks_of(model)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Occluder(4), "width 4 has no middle"),
        (lambda: Occluder(3, "grey"), "unknown fill 'grey'; valid fills: mean, line, zero"),
        (lambda: occlusion.covered(windows(), [0], 15, Occluder(61, "line")), "leaves no sample"),
        (lambda: occlusion.drops(Looks(), windows(), [1] * 4, AXES, Occluder()), "a class for each of 5 windows"),
    ],
)
def test_bad_requests_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_axes_belong_to_their_sensors():
    assert occlusion.by_sensor(["arm x", "arm y", "left leg x", "arm z"]) == {"arm": (0, 1, 3), "left leg": (2,)}
    assert occlusion.by_sensor("xyz") == {"all axes": (0, 1, 2)}


def test_agreement_is_high_where_a_unit_loses_what_its_projection_shows():
    rng = np.random.default_rng(0)
    projection = rng.normal(size=(4, 2, 12))
    activity = np.stack([np.abs(projection), rng.normal(size=(4, 2, 12))], 1).reshape(4, 4, 12)
    found = xr.Dataset(
        {"projection": (("window", "axis", "time"), projection), "activity": (("window", "group", "time"), activity)},
        coords={"group": ["arm x", "arm y", "arm", "leg"]},
    )

    def alike(width, recording):
        return occlusion.agreement(found, ["arm x", "arm y"], width, np.array(recording)).values()

    own, other = alike(1, [7, 7, 3, 3])
    size = np.abs(projection).reshape(4, -1)
    assert np.allclose(own, 1)
    assert np.allclose(other, [np.corrcoef(size[i], size[j])[0, 1] for i, j in enumerate([2, 3, 0, 1])])
    # three windows of one recording cannot all get another
    assert np.isnan([*alike(1, [7, 3, 7, 7])][1]).tolist() == [True, False, True, False]
    summed = np.stack([np.convolve(row, np.ones(3), "same") for row in np.abs(projection).reshape(8, 12)])
    expected = [np.corrcoef(size[i], summed.reshape(4, -1)[i])[0, 1] for i in range(4)]
    assert np.allclose([*alike(3, range(4))][0], expected)


def test_covering_is_stored_with_its_projection_and_tabulated(tiny_windows, one_thread):
    training = TrainingSettings(seeds=(0,), epochs=2, learning_rate=2e-3, batch_size=16)
    cfg = dataclasses.replace(load_settings(), model=ModelSettings(n_units=4, n_dense=8), training=training)
    (network,) = supervised.networks(cfg, tiny_windows)
    found = occlusion.covering(network, network, tiny_windows, Occluder(3), 40)
    groups = {"axis 0": (0,), "axis 1": (1,), "axis 2": (2,), "axis": (0, 1, 2)}
    chosen, y, unit = (found[name].values for name in ("window", "activity_class", "unit"))
    assert (network.predicted["test"][chosen] == tiny_windows.test.activity[chosen]).all()
    x = tiny_windows.test.x[chosen]
    plain = occlusion.drops(network.model, x, y, groups, Occluder(3), "conv3")
    assert list(found["group"].values) == list(groups) and np.allclose(found["log_odds"], plain["log_odds"], atol=1e-5)
    back = deconvnet.project(network.model, "conv3", x, deconvnet.places(unit)).numpy()
    assert np.array_equal(found["projection"], back)
    costs = occlusion.sensor_costs({"trained": [found, found]}, tiny_windows).loc["trained", "axis"]
    cost = found["log_odds"].sel(group="axis").mean("time").values
    assert costs[y[0]] == pytest.approx(cost[y == y[0]].mean())
    table = occlusion.agreement_table({"trained": [found, found.isel(window=slice(3))]}, tiny_windows, 3)
    own = occlusion.agreement(found, tiny_windows.axes, 3, tiny_windows.test.recording[chosen])["own projection"]
    assert table.loc["trained", "own projection"] == pytest.approx(np.nanmean([*own, *own[:3]]))
