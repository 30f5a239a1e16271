"""Occlusion: equal to covering one place after another by hand; what a cover is; nothing left on the network."""

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
from harvis_utils.networks import taps
from harvis_utils.settings import ModelSettings, TrainingSettings, load_settings
from harvis_utils.training import supervised

widths = st.sampled_from([1, 3, 7, 15])
fills = st.sampled_from(list(occlusion.FILLS))


def by_hand(x: np.ndarray, axes, centre: int, width: int, fill: str) -> np.ndarray:
    """One window (axis, time) covered, sample by sample."""
    found = x.copy()
    low, high = max(0, centre - width // 2), min(x.shape[1] - 1, centre + width // 2)
    for axis in axes:
        for t in range(low, high + 1):
            if fill == "mean":
                found[axis, t] = x[axis].mean()
            elif fill == "zero":
                found[axis, t] = 0
            else:
                beside = [s for s in (low - 1, high + 1) if 0 <= s < x.shape[1]]
                found[axis, t] = np.interp(t, beside, x[axis, beside])
    return found


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(list(MODELS)), st.integers(0, 1000), widths, fills, st.booleans())
def test_drops_are_those_of_covering_one_place_after_another(name, seed, width, fill, sensors):
    model, x, layer = MODELS[name]().eval(), windows(2, seed), LAYERS[name]
    groups = {"first two": (0, 1), "third": (2,)} if sensors else occlusion.by_axis(N_AXES)
    classes = [1, 3]
    found = occlusion.drops(model, x, classes, groups, Occluder(width, fill), layer)

    def answers(one):
        with torch.no_grad():
            scores = model(one[None])[0].double()
            maps = taps.maps_of(model, taps.behind(model, layer, x), one[None])[0].double().sum((1, 2))
        return torch.softmax(scores, 0), maps

    for i in range(2):
        p, maps = answers(x[i])
        unit = int(maps.argmax())
        assert int(found["unit"][i]) == unit
        for g, axes in enumerate(groups.values()):
            for t in range(0, LENGTH, 4):
                changed = torch.as_tensor(by_hand(x[i].numpy(), axes, t, width, fill))
                q, now = answers(changed)
                here = found.isel(window=i, group=g, time=t)
                c = classes[i]
                assert np.isclose(here["probability"], p[c] - q[c], atol=1e-5)
                assert np.isclose(here["log_odds"], torch.logit(p[c]) - torch.logit(q[c]), atol=1e-4)
                assert np.isclose(here["activity"], 1 - now[unit] / maps[unit], atol=1e-4)


def test_more_windows_than_one_batch_are_the_same_as_one_by_one(monkeypatch):
    model, x = MODELS["sfhf"](), windows(5)
    whole = occlusion.drops(model, x, [0] * 5, occlusion.by_axis(N_AXES), Occluder(), "conv1")
    monkeypatch.setattr(occlusion, "BATCH", 2 * LENGTH)
    parts = occlusion.drops(model, x, [0] * 5, occlusion.by_axis(N_AXES), Occluder(), "conv1")
    for name in whole:
        assert np.allclose(whole[name], parts[name], atol=1e-5)


def test_a_cover_that_says_what_was_there_changes_nothing():
    model = MODELS["sfhf"]()
    straight = torch.linspace(-1, 1, LENGTH).expand(2, N_AXES, LENGTH).clone()
    inner = occlusion.drops(model, straight, [0, 1], occlusion.by_axis(N_AXES), Occluder(5, "line"))
    assert np.abs(inner["log_odds"].values[:, :, 3:-3]).max() < 1e-4
    flat = torch.full((1, N_AXES, LENGTH), 0.25)
    for fill in ("mean", "line"):
        assert (
            np.abs(occlusion.drops(model, flat, [0], occlusion.by_axis(N_AXES), Occluder(5, fill))["log_odds"]).max()
            < 1e-5
        )
    x = windows()
    before = x.clone()
    occlusion.covered(x, [0], 3, Occluder(5, "zero"))
    assert torch.equal(x, before), "the windows themselves are left alone"


class Looks(nn.Module):
    """Class 1 is the sample at axis 1, time 20; class 0 its opposite."""

    def forward(self, x):
        return torch.stack([-x[:, 1, 20], x[:, 1, 20]], 1)


def test_the_peak_is_where_the_network_looks():
    x = windows(6).abs() + 1
    for occluder in (Occluder(1, "zero"), Occluder(3, "zero")):
        maps = occlusion.drops(Looks(), x, [1] * 6, occlusion.by_axis(N_AXES), occluder)["log_odds"].values
        axis, time = occlusion.peaks(maps)
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
    model, x = MODELS[name]().train(), windows()
    model.register_buffer("nothing", torch.zeros(()))
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    occlusion.drops(model, x, [0] * 5, {"all": (0, 1, 2)}, Occluder(3), LAYERS[name])
    with pytest.raises(ValueError, match=f"classes 0 to {CLASSES - 1}, not \\[0, 9\\]"):
        occlusion.drops(model, x, [0, 0, 0, 0, 9], {"all": (0, 1, 2)}, Occluder(3), LAYERS[name])
    with pytest.raises(ValueError, match="unknown layer"):
        occlusion.drops(model, x, [0] * 5, {"all": (0, 1, 2)}, Occluder(3), "conv9")
    assert [m.training for m in model.modules()] == modes and not hooks_of(model)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())


def test_bad_occluders_are_named():
    with pytest.raises(ValueError, match="width 4 has no middle"):
        Occluder(4)
    with pytest.raises(ValueError, match="unknown fill 'grey'; valid fills: mean, line, zero"):
        Occluder(3, "grey")
    with pytest.raises(ValueError, match="leaves no sample"):
        occlusion.covered(windows(), [0], 15, Occluder(61, "line"))


def test_axes_belong_to_their_sensors():
    assert occlusion.by_sensor(["arm x", "arm y", "left leg x", "arm z"]) == {"arm": (0, 1, 3), "left leg": (2,)}
    assert occlusion.by_axis(2) == {"0": (0,), "1": (1,)}


def test_agreement_is_high_where_a_unit_loses_what_its_projection_shows():
    rng = np.random.default_rng(0)
    projection = rng.normal(size=(4, 2, 12))
    activity = np.stack([np.abs(projection), rng.normal(size=(4, 2, 12))], 1).reshape(4, 4, 12)
    found = xr.Dataset(
        {"projection": (("window", "axis", "time"), projection), "activity": (("window", "group", "time"), activity)},
        coords={"group": ["arm x", "arm y", "arm", "leg"]},
    )
    alike = occlusion.agreement(found, ["arm x", "arm y"], 1, np.array([7, 7, 3, 3]))
    assert np.allclose(alike["own"], 1)
    size = np.abs(projection).reshape(4, -1)
    expected = [np.corrcoef(size[i], size[j])[0, 1] for i, j in enumerate([2, 3, 0, 1])]  # of the other recording
    assert np.allclose(alike["other"], expected)
    uneven = occlusion.agreement(found, ["arm x", "arm y"], 1, np.array([7, 3, 7, 7]))["other"].values
    assert np.isnan(uneven).tolist() == [True, False, True, False]  # three windows of one cannot all get another
    wide = occlusion.agreement(found, ["arm x", "arm y"], 3, np.arange(4))["own"].values
    summed = np.stack([np.convolve(row, np.ones(3), "same") for row in np.abs(projection).reshape(8, 12)])
    expected = [np.corrcoef(size[i], summed.reshape(4, -1)[i])[0, 1] for i in range(4)]
    assert np.allclose(wide, expected)


def test_covering_is_stored_with_its_projection(tiny_windows, one_thread):
    cfg = dataclasses.replace(
        load_settings(),
        model=ModelSettings(n_units=4, n_dense=8),
        training=TrainingSettings(seeds=(0,), epochs=2, learning_rate=2e-3, batch_size=16),
    )
    (network,) = supervised.networks(cfg, tiny_windows)
    found = occlusion.covering(network, network, tiny_windows, Occluder(3), 40)
    assert list(found["group"].values) == ["axis 0", "axis 1", "axis 2", "axis"]
    chosen = found["window"].values
    assert (network.predicted["test"][chosen] == tiny_windows.test.activity[chosen]).all()
    x = tiny_windows.test.x[chosen]
    groups = {"axis 0": (0,), "axis 1": (1,), "axis 2": (2,), "axis": (0, 1, 2)}
    plain = occlusion.drops(network.model, x, found["activity_class"].values, groups, Occluder(3), "conv3")
    assert np.allclose(found["log_odds"], plain["log_odds"], atol=1e-5)
    maps = network.model.feature_maps(torch.as_tensor(x))["conv3"]
    kept = deconvnet.places(found["unit"].values)(maps, torch.ones(len(maps), dtype=torch.bool))
    rows = torch.arange(len(x))
    assert torch.equal(kept[rows, found["unit"].values], maps[rows, found["unit"].values])
    assert torch.count_nonzero(kept.detach()) == torch.count_nonzero(maps[rows, found["unit"].values].detach())
