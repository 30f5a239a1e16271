"""A run makes what is missing and reads what is there, each once."""

import base64
import dataclasses
import json

import pandas as pd
import pytest
from matplotlib.figure import Figure

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


def test_networks_for_choosing_have_their_own_seeds(run, cfg):
    kept = dataclasses.replace(cfg.training, seeds=cfg.readings.seeds)
    made = supervised.networks(dataclasses.replace(cfg, training=kept), run.data)
    assert [n.seed for n in run.choosing.networks] == [n.seed for n in made] == list(cfg.readings.seeds)
    assert set(cfg.readings.seeds).isdisjoint(cfg.training.seeds)


def test_what_is_shown_is_what_is_written(run, cfg):
    figure, again = (Figure(figsize=(2, 1), layout="constrained", label="A line goes up") for _ in range(2))
    for of in (figure, again):
        of.subplots().plot([1, 2])
    shown, picture = run.figure("03_gallery", figure), cfg.reports / "figures" / "03_gallery.png"
    assert shown.data == picture.read_bytes() and shown.data.startswith(b"\x89PNG")
    data, about = shown._repr_mimebundle_()
    assert about["image/png"] == {"width": 200, "alt": "A line goes up"}
    assert base64.b64decode(data["image/png"]) == shown.data
    assert figure.get_supxlabel() == run.data.caveat != ""
    assert run.figure("03_gallery", again).data == shown.data, "the same figure gives the same file"
    table = pd.DataFrame({"f1": [0.5, 0.25]}, index=pd.Index(["walking", "sitting"], name="activity"))
    assert run.table("02_f1", table) is table
    pd.testing.assert_frame_equal(pd.read_csv(cfg.reports / "tables" / "02_f1.csv", index_col=0), table)
    found = run.findings("found", {"f1": 0.5, "none": float("nan")})
    written = json.loads((cfg.reports / "found.json").read_text(encoding="utf-8"))
    assert written == {
        "dataset": cfg.dataset,
        "profile": cfg.profile,
        "caveat": run.data.caveat,
        "f1": 0.5,
        "none": None,
    }
    assert found["f1"] == 0.5
