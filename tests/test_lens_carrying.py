"""A trunk carried to another data set, with other axes and classes."""

import dataclasses

import pytest
import torch

from harvis_utils.data import windowing
from harvis_utils.data.kinds import DataError
from harvis_utils.lenses import carrying
from harvis_utils.settings import (
    APPROXIMATE,
    ArchitectureSettings,
    ModelSettings,
    TrainingSettings,
    TransferSettings,
    load_settings,
)
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
    assert list(table["way"].unique()) == ways and len(table) == 2 * 5 * 4 * 2
    assert table["F1"].between(0, 1).all()
    assert (table.loc[table["arm"] == carrying.SCRATCH, "gain"] == 0).all()
    assert (table.loc[table["arm"] == carrying.RANDOM, "more than random"] == 0).all()
    there = windowing.cut(recordings)
    own = carrying.carried(networks[1], there, MODEL, TRAINING, cfg.transfer).set_index(["arm", "windows a class"])[
        "F1"
    ]
    table = table.set_index(["way", "arm", "windows a class", "seed"])
    row = table.loc[(ways[0], carrying.TUNED, 5, 1)]
    assert row["F1"] == own[carrying.TUNED, 5] and row["gain"] == own[carrying.TUNED, 5] - own[carrying.SCRATCH, 5]
    judged = supervised.networks(cfg, there)
    whole = [supervised.macro_f1(there.test, net.predicted["test"]) for net in judged]
    assert table.loc[(ways[0], carrying.ALL, 1), "F1"].tolist() == whole


def test_the_trunk_that_is_carried_is_the_source_s(cfg, both, one_thread, monkeypatch):
    windows, recordings = both
    source, seen = supervised.untrained(cfg, windows)[0], []
    monkeypatch.setattr(carrying.supervised, "fit", lambda network, *about, **how: seen.append(network.state_dict()))
    carrying.carried.function(source, windowing.cut(recordings), MODEL, TRAINING, cfg.transfer)
    for arm, found in zip((carrying.FROZEN, carrying.TUNED, carrying.RANDOM, carrying.SCRATCH), seen, strict=False):
        same = [
            torch.equal(found[k], v)
            for k, v in source.model.state_dict().items()
            if k in ("conv1.weight", "conv3.weight")
        ]
        assert all(same) if arm in (carrying.FROZEN, carrying.TUNED) else not any(same)
        assert torch.equal(found["dense.weight"], seen[0]["dense.weight"]), "all arms begin with one head"


def test_random_and_scratch_arms_do_not_depend_on_the_source(cfg, both, one_thread):
    windows, _ = both
    first, *_ = supervised.networks(cfg, windows)
    blank = supervised.untrained(cfg, windows)[0]
    found = [carrying.carried(net, windows, MODEL, TRAINING, cfg.transfer).set_index("arm") for net in (first, blank)]
    for arm in (carrying.RANDOM, carrying.SCRATCH):
        assert found[0].loc[arm, "F1"].tolist() == found[1].loc[arm, "F1"].tolist()


def test_the_other_data_set_is_the_one_that_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(carrying.archive, "locate", lambda name, archive: None)
    assert carrying.other_recordings("dsads") == (None, "mhealth is not on this machine")
    assert carrying.other_recordings("mhealth-approximate") == (None, "dsads is not on this machine")
    assert carrying.other_recordings("my own")[1] == "no other data set goes with my own"
    noisy, why = carrying.other_recordings("synthetic")
    assert noisy.name != "synthetic" and noisy.dataset.made_up and not why
    monkeypatch.setattr(carrying.archive, "locate", lambda name, archive: tmp_path)

    def load(name: str, download: bool):
        if bad == "both" or not name.endswith(APPROXIMATE):
            raise DataError("its digest is another one")
        return name, download

    monkeypatch.setattr(carrying.archive, "load_recordings", load)
    bad = "the verified one"
    assert carrying.other_recordings("dsads") == (("mhealth-approximate", False), "")
    bad = "both"
    assert carrying.other_recordings("dsads")[1] == "mhealth-approximate cannot be read: its digest is another one"
