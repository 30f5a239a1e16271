"""Networks that travel: what is published is what was trained, and everything else is said."""

import dataclasses
import os
import re
import resource
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from harvis_utils.figures import draw
from harvis_utils.networks import taps
from harvis_utils.settings import REPOSITORY, HarvisError, ModelSettings, TrainingSettings, load_settings
from harvis_utils.store.files import file_digest, read_json, write_json
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


def test_another_model_is_refused(made, tiny_windows):
    with pytest.raises(published.PublishedError, match="on other settings of the model than these; train them"):
        published.load(made[0], tiny_windows, dataclasses.replace(SMALL, n_units=5), (3,))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"best_epochs": [9, 9]}, "networks.json is missing or damaged"),
        ({"seeds": [5, 3]}, "networks.json is missing or damaged"),
        ({"files": {}}, "signals.nc is missing or damaged|trunks.safetensors is missing or damaged"),
        (None, "networks.json does not hold what it should .KeyError: 'files'"),
    ],
)
def test_what_the_list_says_is_checked_too(made, changes, said):
    path = made[0] / "networks.json"
    about = read_json(path)
    if changes and "files" not in changes:
        write_json(made[0].parent / "digests.json", {"files": {"networks/networks.json": file_digest(path)}})
    write_json(path, {} if changes is None else about | changes)
    with pytest.raises(HarvisError, match=said):
        published.judging(made[0], [3])


@pytest.mark.parametrize("seed", [True, 0.0, [0], "0"])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(published.PublishedError, match=f"networks {re.escape(repr(seed))} are not published"):
        published.network("dsads", seed=seed)


# ---------------------------------------------------------------------------------------------- without any data

DSADS = REPOSITORY / "reports" / "published" / "desk" / "dsads"
SHOWN = """
assert isinstance(figure, __import__("matplotlib").figure.Figure) and figure.axes
"""


def test_three_lines_show_a_unit_in_half_a_minute_without_data(tmp_path):
    (lines,) = re.findall("```python\n(.+?)```", (DSADS.parents[1] / "NETWORKS.md").read_text(), re.DOTALL)
    assert len(lines.splitlines()) == 3
    elsewhere = {name: str(tmp_path) for name in ("HARVIS_DATA", "HARVIS_ARTIFACTS", "HARVIS_REPORTS")}
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = {"env": os.environ | elsewhere, "cwd": REPOSITORY, "capture_output": True, "text": True}
    done = subprocess.run((sys.executable, "-c", lines + SHOWN), **told)
    assert done.returncode == 0, done.stderr
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime  # of this process, whatever runs beside it
    assert took < 30 and not list(tmp_path.iterdir())


def test_a_published_unit_is_the_published_signal_and_its_network_gives_the_published_activation():
    one = published.network("dsads")
    stored = xr.load_dataset(DSADS / "networks" / "signals.nc", engine="h5netcdf")["signal"].sel(seed=0)
    cards = pd.read_csv(DSADS / "tables" / "14_cards.csv", index_col="unit")
    axes = len(one.network.model.dense.weight[0]) // (30 * 64)
    for layer, unit in (("conv1", 53), ("conv2", 45), ("conv3", 9)):
        made, levels = one.unit(layer, unit)
        assert made.identical(made.transpose("technique", "time")) and float(levels["th_eap"]) > 0
        expected = stored.sel(layer=layer, unit=unit, preset="calibrated")
        assert np.array_equal(made["signal"], expected) and list(made["technique"].values) == list(
            expected["technique"]
        )
        proposed = made.sel(technique="L2+TV+EAP+clip")
        x = torch.zeros(1, axes, 30)
        x[0, 4] = torch.as_tensor(proposed["signal"].values)
        with torch.no_grad():
            whole = one.network.model.feature_maps(x, layer)[layer][0, unit, 4].numpy()
        assert np.allclose(whole, proposed["map"], rtol=1e-4, atol=1e-5)
        activation = min(float(whole.max() / levels["th_eap"]), 1)
        assert activation == pytest.approx(cards["activation"][f"{layer}-{unit}"], rel=1e-4)
    assert one.provenance["arguments"]["seed"] == 0 and one.network.seed == 0


def test_what_is_not_published_is_refused_without_data_too(made, monkeypatch):
    second = published.network("dsads", seed=1)
    with pytest.raises(published.PublishedError, match="of network 1 only the trunk is published"):
        second.network.model(torch.zeros(1, 6, 30))
    for call, said in (
        (lambda: published.network("dsads", seed=9), "networks 9 are not published"),
        (lambda: published.network("dsads", seed=100), "network 100 in .* is kept for choosing, without signals"),
        (lambda: published.network("nowhere"), "no networks are published in"),
        (lambda: published.learning_curves("nowhere"), "no networks of nowhere are published"),
    ):
        with pytest.raises(published.PublishedError, match=said):
            call()
    with pytest.raises(ValueError, match="unknown layer 'conv4'; valid layers: conv1, conv2, conv3"):
        second.unit("conv4", 0)


def test_learning_curves_are_those_of_the_judging_networks():
    curves = published.learning_curves("dsads")
    assert curves.groupby("profile", sort=False)["epoch"].max().to_dict() == {"desk": 10, "paper": 200}
    assert set(curves["seed"]) == {0, 1, 2, 3, 4} and curves.groupby(["profile", "seed"])["chosen"].sum().eq(1).all()
    desk = curves[(curves["profile"] == "desk") & curves["chosen"]].set_index("seed")
    table = pd.read_csv(DSADS / "tables" / "02_f1.csv", index_col="seed")
    assert desk["epoch"].tolist() == table["chosen epoch"].tolist()
    assert desk["test_f1"].tolist() == table["test F1"].tolist()
    look = {"colour": "profile", "each": "seed", "ringed": "chosen", "scale": "log"}
    figure = draw.curves(curves, "epoch", "test_f1", label="macro F1, test people", **look)
    drawn = [line.get_xdata() for line in figure.axes[0].lines]
    assert sum(len(x) == 10 for x in drawn) == sum(len(x) == 200 for x in drawn) == 6, "five networks and their mean"


def test_made_up_data_are_published_without_the_whole_network(cfg, tiny_windows, tmp_path):
    networks = supervised.networks(cfg, tiny_windows)
    nothing = xr.Dataset({"signal": (("seed", "time"), np.zeros((2, 30)))}, {"seed": [3, 5]})
    folder = published.save(tmp_path / "few", tiny_windows, networks, nothing, nothing, whole=False)
    assert not (folder / "network.safetensors").exists()
    first = published.load(folder, tiny_windows, SMALL, (3,))[0]
    assert torch.equal(first.trunk.weights[1], networks[0].trunk.weights[1])
    with pytest.raises(published.PublishedError, match="of network 3 only the trunk"):
        first.model(torch.as_tensor(tiny_windows.test.x))
