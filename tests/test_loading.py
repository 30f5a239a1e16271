"""A run makes what is missing and reads what is there, each once."""

import dataclasses

import pytest

from harvis_utils.data import archive
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.run import Run
from harvis_utils.training import supervised


@pytest.fixture
def run(cfg, make_recordings, monkeypatch):
    made, opened = make_recordings({(s, a): 30 + 15 * 7 for s in (1, 2, 3, 4) for a in range(3)}), []
    monkeypatch.setattr(archive, "load_recordings", lambda name: opened.append(name) or made)
    run = Run(cfg)
    run.opened = opened
    return run


def test_nothing_is_read_before_it_is_asked_for_and_nothing_twice(run, cfg):
    assert run.opened == []
    assert run.data is run.data and run.recordings is run.recordings and run.opened == [cfg.dataset]
    assert run.choosing.data is run.data and run.opened == [cfg.dataset]


def test_it_opens_what_the_stages_made(run, cfg):
    networks = supervised.networks(cfg, run.data)
    statistics = unit_statistics.statistics(cfg, run.data, networks)
    signals = paper_methods.signals(cfg, networks, statistics)
    assert [n.seed for n in run.networks] == [n.seed for n in networks] == list(cfg.training.seeds)
    assert run.layers == list(networks[0].trunk.layers) and [n.seed for n in run.untrained] == list(cfg.training.seeds)
    assert run.statistics.identical(statistics) and run.signals.identical(signals)
    caveat = run.data.caveat.capitalize()
    assert caveat and run.headline() == f"**{cfg.dataset}**, profile {cfg.profile}, {len(networks)} networks. {caveat}"
    assert run.headline("one thing").startswith(f"**{cfg.dataset}**, profile {cfg.profile}, one thing.")
    assert run.summary() == {"dataset": cfg.dataset, "profile": cfg.profile, "caveat": run.data.caveat}


def test_networks_for_choosing_have_their_own_seeds(run, cfg):
    kept = dataclasses.replace(cfg.training, seeds=cfg.readings.seeds)
    made = supervised.networks(dataclasses.replace(cfg, training=kept), run.data)
    assert [n.seed for n in run.choosing.networks] == [n.seed for n in made] == list(cfg.readings.seeds)
    assert set(cfg.readings.seeds).isdisjoint(cfg.training.seeds)
