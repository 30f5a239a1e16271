"""Networks that travel: what is published is what was trained, and everything else is said."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr

from harvis_utils.networks import taps
from harvis_utils.settings import ModelSettings, TrainingSettings, load_settings
from harvis_utils.store.files import read_json
from harvis_utils.training import published, supervised

SMALL = ModelSettings(n_units=4, n_dense=8)


@pytest.fixture(scope="module")
def cfg():
    training = TrainingSettings(seeds=(3, 5), epochs=2, learning_rate=1e-3)
    return dataclasses.replace(load_settings("quick", "synthetic", "cpu"), model=SMALL, training=training)


@pytest.fixture
def made(cfg, tiny_windows, tmp_path):
    """A folder of published networks and what went into it."""
    networks = supervised.networks(cfg, tiny_windows)
    statistics = xr.Dataset({"th_eap": (("seed", "unit"), np.ones((2, 4)))}, {"seed": [3, 5]})
    dims = ("seed", "technique", "time")
    signals = xr.Dataset({"signal": (dims, np.ones((2, 1, 30))), "map": (dims, np.ones((2, 1, 30)))})
    return published.save(tmp_path / "networks", tiny_windows, networks, statistics, signals), networks


def test_what_comes_back_is_what_was_trained(cfg, made, tiny_windows):
    folder, networks = made
    for net, back in zip(networks, published.load(folder, tiny_windows, SMALL, (3, 5)), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(net.trunk.weights, back.trunk.weights, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(net.trunk.biases, back.trunk.biases, strict=True))
        assert (back.seed, back.best_epoch, back.wall_s) == (net.seed, net.best_epoch, net.wall_s)
        for of in ("history", "predicted", "predicted_last"):
            one, other = getattr(net, of), getattr(back, of)
            assert one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)
    trunks, statistics, signals = published.without_data(folder)
    assert list(trunks) == list(statistics["seed"]) == [3, 5] and signals.sizes["time"] == 30
    assert all(torch.equal(trunks[net.seed].weights[2], net.trunk.weights[2]) for net in networks)
    first = published.load(folder, tiny_windows, SMALL, (3,))[0]
    x = torch.as_tensor(tiny_windows.test.x)
    assert torch.equal(first.model(x), networks[0].model(x))


def test_keys_tell_networks_and_their_origin_apart(made, tiny_windows):
    folder, networks = made
    keys = {net.key for net in (*networks, *published.load(folder, tiny_windows, SMALL, (3, 5)))}
    assert len(keys) == 4 and {n.key for n in published.load(folder, tiny_windows, SMALL, (5, 3))} <= keys


def test_each_says_how_it_was_trained(made):
    about = read_json(made[0] / "networks.json")
    assert [one["arguments"]["seed"] for one in about["provenance"]] == about["seeds"] == [3, 5]
    assert all(one["device"].startswith("cpu") and one["git"] for one in about["provenance"])


def test_signals_and_statistics_lie_beside_them(made):
    folder, _ = made
    assert set(xr.load_dataset(folder / "signals.nc", engine="h5netcdf").data_vars) == {"signal"}
    assert xr.load_dataset(folder / "signals.nc", engine="h5netcdf")["signal"].dtype == np.float32
    assert "th_eap" in xr.load_dataset(folder / "statistics.nc", engine="h5netcdf")
    assert {p.name for p in folder.iterdir()} == {*published.FILES, "networks.json"}


@pytest.mark.parametrize(
    "use",
    [
        lambda model, x: model(x),
        lambda model, x: model.layers,
        lambda model, x: list(model.parameters()),
        lambda model, x: taps.maps_of(model, "conv1", x),
    ],
)
def test_where_only_the_trunk_is_known_the_whole_network_is_refused(made, tiny_windows, use):
    folder, _ = made
    second = published.load(folder, tiny_windows, SMALL, (5,))[0]
    with pytest.raises(published.PublishedError, match="of network 5 only the trunk is published"):
        use(second.model, torch.as_tensor(tiny_windows.test.x))


def test_wrong_ones_are_refused(made, tiny_windows, tmp_path):
    folder, _ = made
    others = tiny_windows.every(2)
    for call, said in (
        (lambda: published.load(tmp_path / "nowhere", tiny_windows, SMALL, (3,)), "no networks are published"),
        (lambda: published.load(folder, others, SMALL, (3,)), "on other windows"),
        (
            lambda: published.load(folder, tiny_windows, SMALL, (3, 4)),
            "networks 4 are not published.*published are 3, 5",
        ),
    ):
        with pytest.raises(published.PublishedError, match=said):
            call()
    whole = bytearray((folder / "trunks.safetensors").read_bytes())
    whole[-3] ^= 1  # one bit of one number
    for content in (b"", bytes(whole)):
        (folder / "trunks.safetensors").write_bytes(content)
        with pytest.raises(published.PublishedError, match="trunks.safetensors is missing or damaged"):
            published.load(folder, tiny_windows, SMALL, (3,))
        with pytest.raises(published.PublishedError, match="trunks.safetensors is missing or damaged"):
            published.without_data(folder)
