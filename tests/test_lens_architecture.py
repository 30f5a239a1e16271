"""Variants of the network, what their filters show, and features that carry over."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harvis_utils.data import windowing
from harvis_utils.lenses import architecture
from harvis_utils.lenses.architecture import BASE, BY_NAME, VARIANTS
from harvis_utils.networks.sfhf import SFHF
from harvis_utils.settings import ArchitectureSettings, ModelSettings, TrainingSettings, TransferSettings, load_settings
from harvis_utils.training import supervised

MODEL = ModelSettings(n_units=4, n_dense=8)
TINY = ArchitectureSettings(
    variants=(BASE, "width 9, stride 4", "one convolution, no dense layer"),
    seeds=(1, 2),
    n_windows=24,
    model=MODEL,
    training=TrainingSettings(epochs=2, learning_rate=2e-3, batch_size=8),
)


@pytest.fixture
def cfg():
    transferred = TransferSettings(n_steps=2, n_head_steps=10)
    return dataclasses.replace(load_settings(), model=MODEL, architecture=TINY, transfer=transferred)


def test_every_variant_has_its_first_layer_and_classifies_and_the_base_is_sfhf(tiny_windows):
    x = torch.as_tensor(tiny_windows.val.x[:2])
    for variant in VARIANTS:
        model = architecture.new_model(tiny_windows, MODEL, variant, 0).eval()
        maps = model.feature_maps(x)
        assert maps["conv1"].shape == (2, 4, 3, -(-30 // variant.stride)) and len(maps) == variant.n_layers
        assert model.conv1.weight.shape[3] == variant.kernel and model(x).shape == (2, 3)
        again = architecture.new_model(tiny_windows, MODEL, variant, 0).state_dict()
        assert all(torch.equal(v, again[k]) for k, v in model.state_dict().items())
    base, plain = architecture.new_model(tiny_windows, MODEL, BY_NAME[BASE], 0).eval(), SFHF(3, 30, 3, MODEL).eval()
    plain.load_state_dict(base.state_dict())
    assert torch.equal(base(x), plain(x))


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([3, 5, 15]), st.sampled_from([1, 2, 4]))
def test_shares_of_power_are_those_of_a_plain_transform(seed, width, stride):
    filters = np.random.default_rng(seed).normal(size=(3, width))
    shares = architecture.shares(filters, 30.0, stride)
    power = np.abs(np.fft.fft(filters, 256, axis=1)) ** 2
    hertz = np.abs(np.fft.fftfreq(256, 1 / 30))
    for name, (low, high) in architecture.BANDS.items():
        inside = (hertz >= low) & ((hertz < high) | (high == 15))
        assert np.allclose(shares[name], power[:, inside].sum(1) / power.sum(1))
    assert np.allclose(shares["aliased"], power[:, hertz > 15 / stride].sum(1) / power.sum(1))
    assert np.allclose(sum(shares[name] for name in architecture.BANDS), 1)


def test_shares_of_known_filters():
    filters = np.stack([np.ones(15), np.cos(np.pi * np.arange(15)), np.zeros(15)])
    shares = architecture.shares(filters, 30.0, 2)
    assert shares["low"][0] > 0.85 and shares["high"][1] > 0.95 and np.isnan(shares["middle"][2])
    assert shares["aliased"][0] < 0.05 and shares["aliased"][1] > 0.95


def test_dead_units_are_counted(tiny_windows):
    model = architecture.new_model(tiny_windows, MODEL, BY_NAME[BASE], 0)
    with torch.no_grad():
        model.norm_conv1.weight[:3], model.norm_conv1.bias[:3] = 0, -1
    looks = architecture.looks(model, tiny_windows)
    assert looks["dead"] == 0.75 and looks["score"] == pytest.approx(looks["evenness"] / 4)


def test_variants_are_trained_stored_and_tabulated(cfg, tiny_windows, one_thread):
    found = architecture.outcomes(cfg, tiny_windows)
    jobs = [(variant, seed) for variant in TINY.variants for seed in TINY.seeds]
    assert list(zip(found["variant"], found["seed"], strict=True)) == jobs
    few = tiny_windows.thinned(TINY.n_windows)
    model = architecture.new_model(few, MODEL, BY_NAME[BASE], 1)
    supervised.fit_best(model, few, TINY.training, 1)
    assert found.loc[0, "test F1"] == supervised.macro_f1(few.test, supervised.predict(model, few.test))
    assert found.loc[0, "weights"] == sum(p.numel() for p in model.parameters())
    again = architecture.outcomes(cfg, tiny_windows)
    pd.testing.assert_frame_equal(again, found)  # with its seconds: not trained again
    table = architecture.table(found)
    assert list(table.index) == list(TINY.variants) and table.loc[BASE, "gain"] == 0
    other = table.loc["width 9, stride 4"]
    assert other["gain"] == pytest.approx(other["test F1"] - table.loc[BASE, "test F1"]) and other["aliased"] > 0.2


# --------------------------------------------------------------------------------------------------- carried over


def test_source_and_targets_share_no_person_and_the_new_one_no_activity(make_recordings):
    data = windowing.cut(make_recordings({(s, a): 60 for s in (1, 2, 3, 4) for a in range(5)}))
    of = architecture.tasks(data)
    source, people, both = (of[name] for name in ("source", *architecture.TARGETS))
    assert set(source.train.subject).isdisjoint(people.train.subject) and set(people.train.subject) == {2}
    assert source.activities == people.activities and set(source.activities).isdisjoint(both.activities)
    assert set(source.activities) | set(both.activities) == set(data.activities)
    assert set(both.test.subject) == {4}
    for task in of.values():
        assert all(
            set(split.activity) == set(range(len(task.activities))) for split in (task.train, task.val, task.test)
        )
    first = both.train.x[both.train.activity == 0]
    assert np.array_equal(first, data.train.x[(data.train.activity == 1) & (data.train.subject == 2)])
    thin = architecture.tasks(data, data.thinned(len(data.train) // 2))
    assert len(thin["source"].train) < len(source.train) and len(thin["source"].test) < len(source.test)
    assert np.array_equal(thin[architecture.TARGETS[0]].train.x, people.train.x), "what is drawn from is whole"
    with pytest.raises(ValueError, match="four activities, not 2 and 3"):
        architecture.tasks(windowing.cut(make_recordings({(s, a): 60 for s in (1, 2, 3, 4) for a in range(3)})))


def test_larger_draws_hold_smaller_ones(tiny_windows):
    drawn = [architecture.few_of_each(tiny_windows.train, n, 3) for n in (1, 5, 1000)]
    assert set(drawn[0]) < set(drawn[1]) < set(drawn[2]) and len(drawn[2]) == len(tiny_windows.train)
    assert np.bincount(tiny_windows.train.activity[drawn[1]]).tolist() == [5, 5, 5]


def test_a_new_last_layer_learns_what_is_separable_of_what_the_last_layer_gets(tiny_windows):
    rng = np.random.default_rng(0)
    y = torch.as_tensor(rng.integers(3, size=60))
    x = torch.nn.functional.one_hot(y, 3).float() * 5 + torch.as_tensor(rng.normal(size=(60, 3)), dtype=torch.float32)
    predicted = architecture.new_last_layer(x[:30], y[:30], x[30:], 3, TransferSettings())
    assert (predicted == y[30:].numpy()).mean() > 0.9
    model = architecture.new_model(tiny_windows, MODEL, BY_NAME[BASE], 0).train()
    found = architecture.last_inputs(model, tiny_windows.val.x)
    assert model.training and not model.dropout._forward_hooks
    with torch.no_grad():
        assert torch.allclose(model.classes(found), model.eval()(torch.as_tensor(tiny_windows.val.x)), atol=1e-6)


def test_carrying_over_gives_every_arm_a_score(cfg, make_recordings, one_thread):
    data = windowing.cut(make_recordings({(s, a): 60 for s in (1, 2, 3, 4) for a in range(4)}))
    table, (target, _), (frozen, scratch, _) = (
        architecture.carrying_over(cfg, data),
        architecture.TARGETS,
        architecture.ARMS,
    )
    assert len(table) == 2 * 3 * len(architecture.N_PER_CLASS) and table["F1"].between(0, 1).all()
    assert (table.xs(scratch, level="arm")["gain"] == 0).all() and (table["networks"] == 2).all()
    found = pd.concat([architecture.carried(data, TINY, cfg.transfer, seed) for seed in TINY.seeds])
    own = found[(found["target"] == target) & (found["windows a class"] == 5)].groupby("arm")["F1"].mean()
    assert table.loc[(target, frozen, 5), "F1"] == pytest.approx(own[frozen])
    assert table.loc[(target, frozen, 5), "gain"] == pytest.approx(own[frozen] - own[scratch])
