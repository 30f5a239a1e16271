"""A trunk carried to another data set, with other axes and classes."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from harvis_utils.data import windowing
from harvis_utils.lenses import carrying
from harvis_utils.settings import ArchitectureSettings, ModelSettings, TrainingSettings, TransferSettings, load_settings
from harvis_utils.training import supervised

MODEL = ModelSettings(n_units=4, n_dense=8)
TRAINING = TrainingSettings(seeds=(0, 1), epochs=2, learning_rate=2e-3, batch_size=8)


@pytest.fixture
def cfg():
    small = ArchitectureSettings(model=MODEL, training=TRAINING)
    changes = {"model": MODEL, "training": TRAINING, "architecture": small, "transfer": TransferSettings(n_steps=3)}
    return dataclasses.replace(load_settings(), **changes)


@pytest.fixture
def both(make_recordings):
    """Windows on three axes of three activities, and recordings on two axes of two."""
    own = windowing.cut(make_recordings({(s, a): 120 for s in (1, 2, 3, 4) for a in range(3)}))
    return own, make_recordings({(s, a): 130 for s in (1, 2, 3, 4) for a in range(2)}, 25.0, 2, name="other")


def test_a_head_on_maps_is_the_network_and_cannot_move_its_trunk(tiny_windows):
    network = supervised.new_model(tiny_windows, MODEL, 0).eval()
    x = torch.as_tensor(tiny_windows.train.x)
    with torch.no_grad():
        scores, maps = network(x), network.feature_maps(x)["conv3"]
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network.__class__ = carrying.OnMaps
    with torch.no_grad():
        assert torch.equal(network(maps), scores)
    supervised.fit(network, maps, torch.as_tensor(tiny_windows.train.activity), TRAINING, 0)
    moved = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"dense.weight", "dense.bias", "classes.weight", "classes.bias"}


def test_both_ways_and_all_arms_have_scores_over_networks(cfg, both, one_thread):
    windows, recordings = both
    recordings = dataclasses.replace(recordings, name="other")
    networks = supervised.networks(cfg, windows)
    table = carrying.carrying(cfg, windows, networks, recordings)
    ways = ["synthetic to other", "other to synthetic"]
    assert list(table.index.get_level_values("way").unique()) == ways and len(table) == 2 * 5 * 4
    assert table["F1"].between(0, 1).all() and (table["networks"] == 2).all()
    assert (table.xs(carrying.SCRATCH, level="arm")["gain"] == 0).all()
    assert (table.xs(carrying.RANDOM, level="arm")["more than random"] == 0).all()
    there = windowing.cut(recordings)
    found = [carrying.carried(net, there, MODEL, TRAINING, cfg.transfer) for net in networks]
    own = pd.concat(found).set_index(["arm", "windows a class", "seed"])["F1"].sort_index()
    expected = own[carrying.TUNED, 5] - own[carrying.SCRATCH, 5]
    row = table.loc[(ways[0], carrying.TUNED, 5)]
    assert row["gain"] == pytest.approx(expected.mean()) and row["gain low"] <= row["gain"] <= row["gain high"]
    judged = supervised.networks(cfg, there)
    whole = [supervised.macro_f1(there.test, net.predicted["test"]) for net in judged]
    assert table.loc[(ways[0], carrying.ALL, 1), "F1"] == pytest.approx(np.mean(whole))


def test_random_and_scratch_arms_do_not_depend_on_the_source(cfg, both, one_thread):
    windows, _ = both
    first, *_ = supervised.networks(cfg, windows)
    blank = supervised.untrained(cfg, windows)[0]
    found = [carrying.carried(net, windows, MODEL, TRAINING, cfg.transfer).set_index("arm") for net in (first, blank)]
    for arm in (carrying.RANDOM, carrying.SCRATCH):
        assert found[0].loc[arm, "F1"].tolist() == found[1].loc[arm, "F1"].tolist()


def test_the_other_data_set_is_the_one_that_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(carrying.archive, "locate", lambda name, archive: None)
    assert carrying.other_recordings("dsads") is None and carrying.other_recordings("mhealth-approximate") is None
    noisy = carrying.other_recordings("synthetic")
    assert noisy.name != "synthetic" and noisy.dataset.made_up
    monkeypatch.setattr(carrying.archive, "locate", lambda name, archive: tmp_path if "approx" in name else None)
    monkeypatch.setattr(carrying.archive, "load_recordings", lambda name, download: (name, download))
    assert carrying.other_recordings("dsads") == ("mhealth-approximate", False)
