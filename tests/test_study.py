"""The study of what F1 depends on: its settings, its rule, and the setting that it chose."""

from __future__ import annotations

import dataclasses
import re
import sys

import numpy as np
import pandas as pd
import pytest

from harvis_utils.data import windowing
from harvis_utils.settings import ModelSettings, TrainingSettings, as_json, load_settings
from harvis_utils.training import supervised
from workflow import study

pytestmark = pytest.mark.usefixtures("one_thread")

BASE = load_settings("desk", "dsads")
PUBLISHED = sorted(study.table_path("x").parents[1].glob("*/f1.csv"))


def test_every_variant_changes_what_it_names_and_nothing_else():
    plain = as_json(study.PLAIN) | as_json(study.TRAINING)
    for variant, changes in study.VARIANTS.items():
        cfg = study.settings_of(variant, BASE)
        values = as_json(cfg.model) | as_json(cfg.training)
        assert {k: v for k, v in values.items() if v != plain[k]} == changes
        assert dataclasses.replace(cfg, model=BASE.model, training=BASE.training) == BASE
    assert len({str(changes) for changes in study.VARIANTS.values()}) == len(study.VARIANTS), "no setting twice"


def test_additions_count_what_the_paper_does_not_mention():
    expected = {"no dropout": 0, "plain head": 1, "dense 512": 1, "batch size 32": 1, "batch norm, no dropout": 1}
    expected |= {"axes mixed by the dense layer": 1, "weight decay 1e-4": 2, "mean pooling": 2, "batch norm": 2}
    expected |= {"batch norm, max pooling by 2": 3}
    assert {v: study.additions(study.settings_of(v, BASE)) for v in expected} == expected


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ({"a": (0, 0.50), "b": (3, 0.70)}, "b"),  # better by more than the tolerance
        ({"a": (0, 0.69), "b": (3, 0.70)}, "a"),  # within it: fewer additions
        ({"a": (0, 0.6801), "b": (1, 0.69), "c": (2, 0.70)}, "a"),
        ({"a": (0, 0.6799), "b": (1, 0.69), "c": (2, 0.70)}, "b"),  # the simplest is out of reach
        ({"a": (1, 0.69), "b": (1, 0.70), "c": (1, 0.695)}, "b"),  # as simple: the better one
    ],
)
def test_the_rule_on_made_tables(rows, expected):
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["additions", "val_f1"])
    table["test_f1"] = [0.9 - i / 10 for i in range(len(table))]
    assert study.choose(table) == study.choose(table[::-1]) == expected
    table["test_f1"] = table["test_f1"].to_numpy()[::-1]
    assert study.choose(table) == expected, "test F1 chooses nothing"


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda p: p.parent.name)
def test_the_published_choice_is_what_the_package_uses(path):
    table = pd.read_csv(path, index_col="setting")
    assert list(table.index) == list(study.VARIANTS)
    assert table.index[table["chosen"]].tolist() == [study.choose(table)]
    for variant, row in table.iterrows():
        assert row["additions"] == study.additions(study.settings_of(variant, BASE))
        assert row["test_f1_min"] <= row["test_f1"] <= row["test_f1_max"] and row["seeds"] >= 2
    if path.parent.name == "dsads":
        chosen, plain = study.settings_of(study.choose(table), BASE), TrainingSettings()
        assert chosen.model == ModelSettings(), "the default model is the one that the study chose"
        assert (chosen.training.batch_size, chosen.training.weight_decay) == (plain.batch_size, plain.weight_decay)


def test_the_command_publishes_every_setting(make_recordings, tmp_path, monkeypatch, capsys):
    """On made recordings: three settings, two epochs, four units."""
    recordings = make_recordings({(s, a): 30 + 15 * 7 for s in (1, 2, 3, 4) for a in range(2)})
    variants = {v: study.VARIANTS[v] for v in ("plain head", "batch size 32", "batch norm, mean pooling")}
    monkeypatch.setattr(study, "VARIANTS", variants)
    monkeypatch.setattr(study, "PLAIN", dataclasses.replace(study.PLAIN, n_units=4, n_dense=4))
    monkeypatch.setattr(study, "TRAINING", dataclasses.replace(study.TRAINING, epochs=2))
    monkeypatch.setattr(study.archive, "load_recordings", lambda name: recordings)
    monkeypatch.setattr(study, "REPOSITORY", tmp_path)
    monkeypatch.setattr(sys, "argv", ["study", "synthetic"])
    study.main()
    table = pd.read_csv(study.table_path("synthetic"), index_col="setting")
    assert study.table_path("synthetic").is_relative_to(tmp_path)
    assert list(table.index) == list(study.VARIANTS) and table["chosen"].sum() == 1
    assert (table["seeds"] == 2).all() and (table["epochs"] == 2).all()
    assert table.index[table["chosen"]].tolist() == [study.choose(table)]
    assert re.findall(r"^(.*): val 0\.\d{3} test 0\.\d{3}$", capsys.readouterr().out, re.M) == list(study.VARIANTS)

    # one row again, from the networks that the study kept
    variant = "batch norm, mean pooling"
    cfg = study.settings_of(variant, load_settings("desk", "synthetic"))
    found = supervised.networks(cfg, windowing.cut(recordings).every(3))
    tests = [n.history["test_f1"][n.best_epoch] for n in found]
    expected = [np.mean([n.history["val_f1"][1:].mean() for n in found])]
    expected += [np.mean([n.history["val_f1"].max() for n in found]), np.mean(tests), min(tests), max(tests)]
    columns = ["val_f1", "val_f1_best_epoch", "test_f1", "test_f1_min", "test_f1_max"]
    assert table.loc[variant, columns].astype(float).tolist() == pytest.approx(expected, abs=1e-4)

    monkeypatch.setenv("HARVIS_THREADS", "none")
    assert study.main(["dsads"]) == 1 and "HARVIS_THREADS='none' is not a number" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["study", "nothing"])
    with pytest.raises(SystemExit):
        study.main()
    assert "'dsads', 'mhealth', 'synthetic'" in capsys.readouterr().err
