"""The one ascent: equal to the fast one on per-axis trunks, and right on networks that mix the sensor axes."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from made_trunks import made_trunk, naive
from torch import nn
from torch.nn import functional as F

from harvis_utils.fast import ascent
from harvis_utils.fast.gradients import TERMS
from harvis_utils.maximization import coordinates, paper_methods, transforms, unit_statistics
from harvis_utils.maximization.ascent import climb
from harvis_utils.maximization.starting import starting_signal
from harvis_utils.metrics import signal_measures
from harvis_utils.networks import backward, taps, trunks
from harvis_utils.networks.sfhf import SFHF, Trunk, folded_trunk
from harvis_utils.settings import PRESETS, MaximizationSettings, ModelSettings, Step

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTH = 30
FEW = MaximizationSettings(n_steps=120)
STEPS = PRESETS | {"momentum": Step("momentum", 0.02, 0.995)}
N_AXES = 3
WEIGHTS = dict.fromkeys(paper_methods.PENALTIES, FEW.weight)
WINDOWS = {"n_axes": N_AXES, "length": LENGTH}


def steps(n, **more):
    return WINDOWS | {"settings": MaximizationSettings(n_steps=n)} | more


def both(trunk, layer, recipes, start, step, **how):
    """What the fast ascent and this one find for units 0 to 2, each from ``start`` (time,)."""
    th = np.linspace(0.2, 0.8, len(trunk.biases[0]))
    rows = paper_methods.climbing_rows(recipes, [0, 1, 2], th, WEIGHTS)
    x = np.tile(start, (len(rows), 1))
    how = {"n_steps": 120, "record": (0, 7, 120)} | how
    how["lowpass"] = paper_methods.lowpass_matrix(LENGTH, FEW.lowpass_hz, FEW.lowpass_order, 30.0)
    fast = ascent.climb(trunk, layer, rows, x, step, dtype=torch.float64, **how)
    plain = climb(
        lambda seen: trunk.feature_map(seen[:, 0], layer)[:, :, None],
        rows,
        torch.tensor(x, dtype=torch.float64)[:, None],
        step,
        gradient=ascent.steepest(trunk, layer, rows, LENGTH),
        chunk=10,
        **how,
    )
    return fast, plain


@pytest.mark.parametrize(("layer", "preset"), list(zip(["conv1", "conv2", "conv3"], STEPS, strict=True)))
def test_it_ends_where_the_fast_ascent_ends(layer, preset):
    """All eight methods in float64, also for a unit that is silent, at every recorded step."""
    trunk = made_trunk(dtype=torch.float64)
    trunk.biases[2][1] = -100.0
    recipes = list(paper_methods.METHODS.values())
    fast, plain = both(trunk, layer, recipes, starting_signal(FEW, LENGTH), STEPS[preset])
    assert np.abs(plain.signal[:, 0] - fast.signal).max() < 1e-12
    assert np.abs(plain.map[:, 0] - fast.map).max() < 1e-11
    assert all(np.abs(plain.history[name] - fast.history[name]).max() < 1e-11 for name in TERMS)


@settings(max_examples=8)
@given(
    seed=st.integers(0, 10_000),
    layer=st.sampled_from(["conv1", "conv2", "conv3"]),
    step=st.sampled_from(list(STEPS)),
    tolerance_g=st.sampled_from([0.0, 1e-2]),
)
def test_any_trunk_and_start_climb_as_in_the_fast_ascent(seed, layer, step, tolerance_g):
    trunk, random = made_trunk(3, seed, torch.float64), np.random.default_rng(seed)
    recipes = [*paper_methods.METHODS.values(), paper_methods.Method(tv=True, clip=True)]
    quick = dataclasses.replace(STEPS[step], decay=0.9)
    start = random.normal(size=LENGTH)
    fast, plain = both(trunk, layer, recipes, start, quick, n_steps=40, tolerance_g=tolerance_g)
    assert np.array_equal(fast.steps, plain.steps)
    assert np.abs(plain.signal[:, 0] - fast.signal).max() < 1e-11
    assert all(np.abs(plain.history[name] - fast.history[name]).max() < 1e-10 for name in TERMS)


# ------------------------------------------------------------------------------------- any network, any place


class Mixing(nn.Module):
    """Convolutions that see all axes at once, pooled and rectified by a function."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.pool, self.second = nn.Conv1d(N_AXES, 5, 5), nn.MaxPool1d(2), nn.Conv1d(5, 4, 3)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(F.relu(self.second(self.pool(torch.tanh(self.first(x))))).mean(2))


def sfhf(**changes):
    torch.manual_seed(0)
    model = SFHF(N_AXES, LENGTH, 4, ModelSettings(n_units=6, n_dense=8, **changes))
    for _ in range(3):
        model(torch.randn(32, N_AXES, LENGTH))
    return model.eval()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_unit_that_mixes_axes_climbs_as_in_a_plain_loop(preset):
    network, few = Mixing().double().train(), MaximizationSettings(n_steps=40, th_aap_g=0.5)
    tap, th = taps.find(network, "second", rectified=True), np.array([0.2, 0.1, np.nan, 0.3])
    start = 0.4 * torch.randn(N_AXES, LENGTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    about = WINDOWS | {"units": [1, 3], "preset": preset, "settings": few, "dtype": torch.float64}
    found = paper_methods.maximize(network, tap, th, start=start.numpy(), **about)
    assert network.training and all(p.requires_grad for p in network.parameters())
    assert dict(found["signal"].sizes) == {"technique": 8, "unit": 2, "axis": N_AXES, "time": LENGTH}
    assert dict(found["map"].sizes) == {"technique": 8, "unit": 2, "map_time": 11}
    for name, recipe in paper_methods.METHODS.items():
        for unit in (1, 3):
            own = lambda x, unit=unit: taps.maps_of(network, tap, x[None])[0, unit]  # noqa: E731
            one = naive(own, th[unit], recipe, PRESETS[preset], few, start)
            assert np.abs(found["signal"].sel(technique=name, unit=unit).values - one).max() < 1e-9
    assert not {"method", "indexers", "tolerance", "drop"} & set(found.dims), "which selecting takes"
    last = found.isel(step=-1)
    assert np.allclose(last["amplitude_g"], np.abs(found["signal"]).max(("axis", "time")))
    assert np.allclose(last["l2"], np.linalg.norm(found["signal"], axis=-1).sum(-1))


def test_rows_of_any_network_stop_when_nothing_can_move_them():
    about = WINDOWS | {"preset": Step("adam", 0.3, 0.9)}
    made = [
        paper_methods.maximize(
            Mixing(), "second", np.full(4, 0.2), settings=MaximizationSettings(n_steps=200, tolerance_g=of), **about
        )
        for of in (1e-3, 0.0)
    ]
    assert (made[1]["steps"] == 200).all() and (made[0]["steps"].sel(technique="lowpass") == 200).all()
    assert int(made[0]["steps"].drop_sel(technique="lowpass").max()) < 180
    assert np.abs(made[0]["signal"] - made[1]["signal"]).max() < 1e-3


def test_several_threads_climb_what_one_climbs(monkeypatch):
    network, th = Mixing(), np.full(4, 0.2)
    about = steps(20, dtype=torch.float64, preset=Step("adam", 0.1, 0.95))
    alone = paper_methods.maximize(network.double(), "second", th, workers=1, **about)
    monkeypatch.setattr(paper_methods, "SHARED", 1)
    several = paper_methods.maximize(network, "second", th, workers=3, **about)
    assert all(np.allclose(several[name], alone[name], atol=1e-9) for name in alone.data_vars)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())

    class Broken(Mixing):
        calls = 0

        def forward(self, x):
            self.calls += not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
            if self.calls > 15:
                raise RuntimeError("too dark")
            return super().forward(x)

    with pytest.raises(RuntimeError, match="too dark"):
        paper_methods.maximize(Broken(), "second", th, workers=2, **about)
    network.memory = torch.ones(3, requires_grad=True) * 2  # which cannot be copied
    one = paper_methods.maximize(network, "second", th, workers=3, **about)
    assert one.identical(alone)


def test_a_place_that_sees_single_axes_climbs_as_its_trunk():
    network = sfhf()
    trunk, th = folded_trunk(network), np.linspace(0.2, 1, 6)
    about = {"settings": dataclasses.replace(FEW, n_steps=30), "preset": "literal", "units": range(5)}
    whole = paper_methods.maximize(network, "conv2", th, **WINDOWS, **about)
    alone = paper_methods.maximize(trunk, "conv2", th, **about)
    assert whole.sizes == alone.sizes and whole["steps"].equals(alone["steps"])
    assert all(np.allclose(whole[name], alone[name], atol=1e-4) for name in alone.data_vars)


class Placed(nn.Module):
    """Layers whose maps look elsewhere than at the sample of the same number, and one that no layer before it tells."""

    def __init__(self):
        super().__init__()
        self.early, self.padded = nn.Conv1d(N_AXES, 4, 5), nn.Conv1d(N_AXES, 4, 5, padding=2)
        self.strided, self.mixed = nn.Conv1d(4, 4, 3, stride=2), nn.Linear(LENGTH, 7)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        causal = self.early(F.pad(x, (4, 0)))
        return self.out(self.strided(causal).mean(2) + self.mixed(self.padded(x)).mean(2))


def test_maps_say_which_samples_they_are_about():
    """Receptive fields' centres by hand: the early layer sees samples t - 4 to t, the strided one three of its maps."""
    network, about = Placed(), steps(2, methods=["naive"])
    expected = {"early": np.arange(LENGTH) - 2.0, "strided": 2.0 * np.arange(14) - 1}
    for layer, at in expected.items():
        found = paper_methods.maximize(network, layer, np.ones(4), **about)["map"]
        assert found.dims == ("technique", "unit", "map_time") and np.array_equal(found["map_time"], at), layer
        target = paper_methods.target_of(network, layer, N_AXES, LENGTH)
        own = paper_methods.own_maps(target, layer, np.arange(4), np.zeros((4, N_AXES, LENGTH), np.float32))
        assert np.array_equal(own["map_time"], at)
    assert paper_methods.maximize(network, "padded", np.ones(4), **about)["map"].dims[-1] == "time"
    said = paper_methods.maximize(network, "strided", np.ones(4), at=np.arange(14) + 8, **about)
    assert np.array_equal(said["map_time"], np.arange(14) + 8)
    tap = taps.find(network, "mixed", layout="window unit time")
    unknown = paper_methods.maximize(network, tap, np.ones(4), **about)["map"]
    assert unknown.sizes["map_time"] == 7 and "map_time" not in unknown.coords
    with pytest.raises(ValueError, match="do not say which of a window's 30 samples"):
        signal_measures.in_time(unknown, LENGTH)


def test_starts_transforms_coordinates_and_rules_are_arguments():
    network, start = Mixing(), 0.3 * np.random.default_rng(0).normal(size=(2, 1, 1, N_AXES, LENGTH))
    about = {
        "methods": ["naive"],
        "n_axes": N_AXES,
        "length": LENGTH,
        "settings": MaximizationSettings(n_steps=30),
        "start": start,
    }
    plain, *others = (
        paper_methods.maximize(network, "second", np.ones(4), **about, **aids)
        for aids in (
            {},
            {"transforms": [transforms.shift(3)]},
            {"coordinates": coordinates.in_frequency(LENGTH, 2.0)},
            {"after": lambda x: x.clamp(-0.5, 0.5)},
        )
    )
    assert dict(plain["signal"].sizes) == {"start": 2, "technique": 1, "unit": 4, "axis": N_AXES, "time": LENGTH}
    assert not any(np.allclose(plain["signal"], other["signal"]) for other in others)
    assert np.abs(others[1]["signal"]).max() <= 2 and np.abs(others[2]["signal"]).max() <= 0.5
    network = nn.Sequential(nn.Conv1d(N_AXES, 1, 1), nn.ReLU())
    network[0].bias.data.fill_(-3.0)
    closed, leaking = (
        paper_methods.maximize(network, "1", np.ones(1), **about, rule=rule) for rule in (None, backward.sloped(0.1))
    )
    assert np.allclose(closed["signal"][:, 0, 0], start[:, 0, 0]) and not np.allclose(
        leaking["signal"], closed["signal"]
    )


@pytest.mark.parametrize("layer", ["dense", "classes", "norm_conv3"])
def test_dense_layers_and_places_below_zero_climb_too(layer):
    """All eight methods, with the thresholds of their own statistics; the objective rises."""
    network, x = sfhf(), real(60).numpy()
    th = unit_statistics.collect(network, x, place=layer)["th_eap"].values
    about = steps(20, preset=Step("adam", 1e-3, 1.0))
    found = paper_methods.maximize(network, layer, th, **about)
    assert ("axis" in found["signal"].dims) == (layer != "norm_conv3")
    assert found["map"].sizes.get("map_time", LENGTH) == (LENGTH if layer == "norm_conv3" else 1)
    rise = (found["objective"].isel(step=-1) - found["objective"].isel(step=0)).drop_sel(technique="lowpass")
    assert float(rise.min()) > -1e-4 and float((rise > 0).mean()) > 0.8


def test_what_is_missing_is_said():
    for part in ({}, {"n_axes": N_AXES}, {"length": LENGTH}):
        with pytest.raises(ValueError, match="needs n_axes and length"):
            paper_methods.maximize(Mixing(), "second", np.ones(4), **part)
    with pytest.raises(ValueError, match="unknown layer 'conv9'; valid layers: first, pool, second, out"):
        paper_methods.maximize(Mixing(), "conv9", np.ones(4), **WINDOWS)
    with pytest.raises(ValueError, match=r"a place and windows \(window, axis, time\), not \(5, 30\)"):
        unit_statistics.collect(Mixing(), np.zeros((5, LENGTH)), place="second")


def test_windows_too_short_for_the_filter_are_climbed_without_it():
    about = steps(2, length=8, preset=STEPS["momentum"])
    methods = [name for name, method in paper_methods.METHODS.items() if method.after != "lowpass"]
    short = nn.Sequential(nn.Conv1d(N_AXES, 4, 3), nn.ReLU())
    assert paper_methods.maximize(short, "1", np.ones(4), methods=methods, **about).sizes["technique"] == 7
    with pytest.raises(ValueError, match="8 samples are too few for a low-pass filter of order 4"):
        paper_methods.maximize(short, "1", np.ones(4), **about)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_any_precision_climb(dtype):
    about = steps(5, methods=["naive", "L2+TV+EAP+clip"])
    found = paper_methods.maximize(Mixing().to(dtype), "second", np.ones(4), **about)
    single = paper_methods.maximize(Mixing(), "second", np.ones(4), **about)
    assert found["signal"].dtype == np.float32 and np.isfinite(found["signal"]).all()
    assert float(np.abs(found["map"] - single["map"]).median()) < 0.05


# ---------------------------------------------------------------------------------------- standardized inputs


class Raw(nn.Module):
    """The network that standardized inputs would be given, given raw ones."""

    def __init__(self, network, mean, sigma):
        super().__init__()
        self.network, self.mean, self.sigma = network, mean[:, None], sigma[:, None]

    def forward(self, x):
        return self.network((x - self.mean) / self.sigma)


@pytest.mark.parametrize("preset", PRESETS)
def test_standardized_data_and_network_give_the_same_signals(preset):
    """First with the mean taken away too, then by weights of the first convolution alone."""
    rng = np.random.default_rng(0)
    data = rng.normal(size=(400, N_AXES)) * [2.0, 30.0, 0.1] + [9.8, -5.0, 1.0]
    mean, sigma = (torch.tensor(v) for v in (data.mean(0), data.std(0)))
    network, by_axis = Mixing().double(), xr.DataArray(data.std(0), dims="axis")
    about, th = steps(40, preset=preset, dtype=torch.float64), np.full(4, 0.2)

    def climbed(network, layer, *scale):
        tap = taps.find(network, layer, rectified=True)
        return paper_methods.maximize(network, tap, th, scale=coordinates.Scale.of(*scale), **about)

    z = climbed(network, "second", (data - data.mean(0)) / data.std(0))
    raw = climbed(Raw(network, mean, sigma), "network.second", data, "m/s²")
    assert np.abs((raw["signal"] - xr.DataArray(data.mean(0), dims="axis")) / by_axis - z["signal"]).max() < 1e-9
    assert np.abs(raw["map"] - z["map"]).max() < 1e-9 and raw["signal"].attrs["units"] == "m/s²"
    literal = np.abs(z["signal"].sel(technique="naive") / 2 - starting_signal(FEW, LENGTH)).max()
    assert preset != "literal" or 0 < literal < 0.02  # s is 2 sigma, and sigma is 1
    copy, resting = Mixing().double(), data - data.mean(0)
    copy.first.weight.data /= torch.tensor(resting.std(0))[:, None]
    assert np.abs(climbed(copy, "second", resting)["signal"] / by_axis - z["signal"]).max() < 1e-9


def test_a_trunk_of_another_unit_and_one_in_g():
    trunk, th = made_trunk(dtype=torch.float64), np.full(4, 0.5)
    other = Trunk((trunk.weights[0] / 9.81, *trunk.weights[1:]), trunk.biases)
    about = {"settings": MaximizationSettings(n_steps=40), "dtype": torch.float64}
    scale = coordinates.Scale(torch.zeros(1, 1), torch.full((1, 1), 9.81, dtype=torch.float64))
    plain, scaled = (
        paper_methods.maximize(t, "conv3", th, **about, **s) for t, s in ((trunk, {}), (other, {"scale": scale}))
    )
    assert np.abs(scaled["signal"] / 9.81 - plain["signal"]).max() < 1e-9
    same = paper_methods.maximize(trunk, "conv3", th, fast=False, scale=coordinates.Scale(), **about)
    assert np.abs(same["signal"] - plain["signal"]).max() < 1e-11


def test_scales_come_back_and_bad_ones_are_refused():
    data = np.random.default_rng(0).normal(size=(50, N_AXES)) * [1, 2, 3] + 5
    scale = coordinates.Scale.of(data)
    assert np.allclose(scale.windows(scale.signals(data.T)), data.T)
    assert np.allclose(scale.signals(data.T).std(1, correction=0), 0.5)
    with pytest.raises(ValueError, match="axis 0, axis 1 constant or NaN; leave that out"):
        coordinates.Scale.of(np.ones((5, 2)))
    with pytest.raises(ValueError, match="treats all axes alike, but their scales differ"):
        paper_methods.maximize(sfhf(), "conv1", np.ones(6), **WINDOWS, scale=scale)


# ------------------------------------------------------------------------------------------------ statistics


def test_a_unit_that_always_says_the_same_below_zero_is_dead():
    network = nn.Sequential(nn.Conv1d(N_AXES, 2, 1))
    network[0].weight.data[1] = 0.0
    network[0].bias.data[1] = -1.0
    found = unit_statistics.collect(network, np.random.default_rng(0).normal(size=(20, N_AXES, LENGTH)), place="0")
    assert found["dead"].values.tolist() == [False, True] and np.isnan(found["th_eap"].values[1])
    with pytest.raises(ValueError, match="needs a place"):
        unit_statistics.collect(network, np.zeros((1, N_AXES, LENGTH)))
    with pytest.raises(ValueError, match="windows .* not \\(0, "):
        unit_statistics.collect(network, np.zeros((0, N_AXES, LENGTH)), place="0")
    with pytest.raises(ValueError, match="0 is NaN or infinite for some windows"):
        unit_statistics.collect(network, np.full((4, N_AXES, LENGTH), np.nan), place="0")


def test_units_that_stay_below_zero_behind_a_leaky_rectifier_have_their_own_numbers():
    network = nn.Sequential(nn.Conv1d(N_AXES, 4, 3), nn.LeakyReLU(0.1))
    x = torch.randn(50, N_AXES, LENGTH, generator=torch.Generator().manual_seed(0))
    network[0].bias.data -= 9
    found = unit_statistics.collect(network, x.numpy(), place=taps.find(network, "0", rectified=True))
    maps = network(x).detach().numpy().transpose(1, 0, 2).reshape(4, -1)
    assert maps.max() < 0 and np.allclose(found["maximum"], maps.max(1))
    assert np.allclose(found["p95"], np.quantile(maps, 0.95, axis=1))


# -------------------------------------------------------------------------------------- a front part as a trunk


class Front(nn.Module):
    """The convolutions of DeepConvLSTM: along time, for each axis, with what an LSTM would see behind them."""

    def __init__(self, padding="same", kernel=5, stride=1):
        super().__init__()
        torch.manual_seed(0)
        parts = [
            part
            for i, o in [(1, 6), (6, 6), (6, 4)]
            for part in (nn.Conv2d(i, o, (1, kernel), stride, padding), nn.BatchNorm2d(o), nn.ReLU())
        ]
        self.convs, self.out = nn.Sequential(*parts, nn.Dropout()), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.convs(x[:, None]).mean((2, 3)))


def real(n=8, dtype=torch.float32):
    return torch.randn(n, N_AXES, LENGTH, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("place", ["convs.2", "convs.5", "convs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_front_part_becomes_a_trunk(place, dtype):
    network = Front().to(dtype)
    for _ in range(3):
        network(real(dtype=dtype))
    trunk, x = trunks.trunk_of(network, place, real(dtype=dtype)), real(5, dtype)
    assert network.training and not [m for m in network.modules() if m._forward_hooks]
    with taps.evaluating(network):
        maps = taps.maps_of(network, place, x)
    found = trunk.feature_map(x.flatten(0, 1), trunk.layers[-1]).unflatten(0, (5, N_AXES)).transpose(1, 2)
    assert torch.allclose(found, maps, atol=1e-5)


def test_functional_rectifiers_and_unpadded_convolutions_become_trunks_when_said():
    network = sfhf()
    trunk = trunks.trunk_of(network, "conv3", real())
    assert all(torch.equal(a, b) for a, b in zip(trunk.weights, folded_trunk(network).weights, strict=True))
    bare = Front(padding=0)
    with pytest.raises(ValueError, match="convs.0 has no padding"):
        trunks.trunk_of(bare, "convs.5", real())
    trunk = trunks.trunk_of(bare, "convs.5", real(), unpadded=True)
    with taps.evaluating(bare):
        inner = trunk.feature_map(real().flatten(0, 1), "conv2")[:, :, 4:-4].unflatten(0, (8, N_AXES)).transpose(1, 2)
        assert torch.allclose(inner, taps.maps_of(bare, "convs.5", real()), atol=1e-5)


def changed(at, module):
    network = Front()
    network.convs[at] = module
    return network


class Stacked(taps.WithChannel):
    """Each axis and its negative, as two channels."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Conv2d(2, 4, (1, 5), padding="same")))

    def forward(self, x):
        return self.network(torch.stack([x, -x], 1))


REFUSED = {
    r"convs.0 has the kernel \(1, 4\)": (Front(kernel=4), "convs.2"),
    r"convs.0 has the kernel \(3, 5\)": (changed(0, nn.Conv2d(1, 6, (3, 5), padding="same")), "convs.2"),
    "convs.0 has a stride": (Front(stride=(1, 2), padding=(0, 2)), "convs.2"),
    r"convs.0 has a padding of \(0, 1\)": (Front(padding=(0, 1)), "convs.2"),
    "name the rectifier": (Front(), "convs.1"),
    "its maps have 1 axes, the windows 3": (Mixing(), "second"),
    "convs.2 is a GELU": (changed(2, nn.GELU()), "convs.5"),
    "the norm convs.0.0 does not follow a convolution": (
        changed(0, nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 6, (1, 5), padding="same"))),
        "convs.2",
    ),
    "no convolution comes before it": (taps.WithChannel(nn.Sequential(nn.Identity())), "network.0"),
    "its maps are not those of its convolutions": (changed(2, nn.Identity()), "convs.5"),
    "network.0 takes 2 channels, not the 1": (Stacked(), "network.0"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_no_trunk_is_refused_with_the_reason(reason):
    network, place = REFUSED[reason]
    with pytest.raises(ValueError, match=reason):
        trunks.trunk_of(network, place, real())


class Own(nn.Module):
    """Each axis by itself, but not all in the same way."""

    def __init__(self):
        super().__init__()
        self.here = nn.Identity()

    def forward(self, x):
        return self.here(x[:, None] * torch.arange(1.0, N_AXES + 1)[:, None])


def test_who_treats_axes_one_by_one():
    assert trunks.by_axis(sfhf(), "conv3", N_AXES, LENGTH) and not trunks.by_axis(sfhf(), "dense", N_AXES, LENGTH)
    over = nn.Sequential(nn.Conv2d(1, 4, (3, 5), padding=(1, 2)))
    assert not trunks.by_axis(taps.WithChannel(over), "network.0", N_AXES, LENGTH)
    assert not trunks.by_axis(Mixing(), "first", N_AXES, LENGTH)
    assert not trunks.by_axis(Own(), "here", N_AXES, LENGTH)
