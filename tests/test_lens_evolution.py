"""Evolution: the same training as the chain's, kept on the way, resumable; settling by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from other_networks import LENGTH, N_AXES, case, made_windows

from harvis_utils.lenses import evolution
from harvis_utils.networks import taps
from harvis_utils.settings import EvolutionSettings, ModelSettings, TrainingSettings, load_settings
from harvis_utils.training import supervised

SEED = 300


@pytest.fixture
def cfg():
    training = TrainingSettings(seeds=(SEED,), epochs=3, learning_rate=2e-3, batch_size=16)
    return dataclasses.replace(load_settings(), model=ModelSettings(n_units=4, n_dense=8), training=training)


def states(moments):
    return [m.model.state_dict() for m in moments]


def equal(a, b):
    return all(torch.equal(v, b[k]) for k, v in a.items())


def test_moments_are_those_of_the_chains_own_training(cfg, tiny_windows, one_thread):
    moments = evolution.train(cfg, tiny_windows)
    assert [m.epoch for m in moments] == [0, 1, 2, 3] and not any(m.model.training for m in moments)
    found = states(moments)
    assert equal(found[0], supervised.new_model(tiny_windows, cfg.model, SEED).state_dict())
    network = supervised.train(cfg, tiny_windows, SEED)
    assert equal(found[network.best_epoch + 1], network.model.state_dict()), "bit for bit"
    assert not equal(found[2], found[3])


def test_a_killed_training_goes_on_after_its_last_epoch(cfg, tiny_windows, one_thread, monkeypatch, tmp_path):
    expected = states(evolution.train(cfg, tiny_windows))
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(tmp_path))
    save, saved = supervised.save_state, []

    def interrupted(path, state):
        saved.append(path)
        if len(saved) == 2:  # after the mark of the second epoch
            raise KeyboardInterrupt
        save(path, state)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(supervised, "save_state", interrupted)
        evolution.train(cfg, tiny_windows)
    assert all(equal(a, b) for a, b in zip(expected, states(evolution.train(cfg, tiny_windows)), strict=True))


def test_of_too_many_windows_every_nth_is_trained_on(cfg, tiny_windows, one_thread):
    few = evolution.train(dataclasses.replace(cfg, evolution=EvolutionSettings(n_trained=20)), tiny_windows)
    third = dataclasses.replace(tiny_windows, train=tiny_windows.train.every(3))
    assert len(third.train) <= 20 < len(tiny_windows.train.every(2))
    assert equal(states(few)[-1], states(evolution.train(cfg, third))[-1])


def test_features_end_like_themselves(cfg, tiny_windows, one_thread):
    moments = evolution.train(cfg, tiny_windows)[::2]
    found = evolution.features(tiny_windows, moments)
    assert [*found["epoch"].values] == [0, 2] and list(found["layer"].values) == ["conv1", "conv2", "conv3"]
    alike = evolution.likeness(found)
    for measure in evolution.MEASURES:
        last = alike[measure].sel(epoch=2).values
        assert np.allclose(last[~np.isnan(last)], 1) and not np.isnan(last).all()
        assert np.nanmin(alike[measure].sel(epoch=0)) < 0.99
    assert (alike["same_window"].sel(epoch=2) == 1).all()
    maps = (
        moments[0].model.feature_maps(torch.as_tensor(tiny_windows.val.x))["conv2"].detach().transpose(0, 1).flatten(1)
    )
    assert np.allclose(found["maps"].sel(epoch=0, layer="conv2"), maps[:, :: evolution.PLACES], atol=1e-6)
    table = evolution.settling(alike)
    assert set(table.index.get_level_values("measure")) == set(evolution.MEASURES)
    assert (table["epoch low"] <= table["epoch"]).all() and (table["epoch"] <= table["last epoch"]).all()
    course = evolution.course(alike, table)
    row = course.query("layer == 'conv2' and measure == 'maps' and epoch == 0").iloc[0]
    quartiles = np.nanquantile(alike["maps"].sel(layer="conv2", epoch=0), [0.5, 0.25, 0.75])
    assert row[["likeness", "likeness low", "likeness high"]].tolist() == pytest.approx(quartiles)
    assert (
        course[course["settled"]].set_index(["layer", "measure"])["epoch"].sort_index() == table["epoch"].sort_index()
    ).all()


def moments_of(name):
    return [evolution.Moment(epoch, case(name, seed).network, f"{name} {epoch}") for epoch, seed in ((1, 1), (2, 0))]


def test_layers_of_any_width_length_and_mixing_stand_side_by_side(one_thread):
    moments = moments_of("DeepConvLSTM (B, 1, T, S)")
    layers = [taps.find(moments[0].model, f"network.{layer}") for layer in ("conv4", "classes")]
    together = evolution.features(made_windows(), moments, layers)
    assert together["rule"].values.tolist() == 2 * [["deconvnet", "gradient"]]
    found = evolution.likeness(together)
    assert evolution.settling(found).loc[("network.classes", "maps"), "units"] == 3
    alone = evolution.features(made_windows(), moments, layers[1:])
    assert "input_axis" in alone["projection"].dims
    for name, values in evolution.likeness(alone).items():
        own = found[name].sel(layer="network.classes").values
        assert own[:, :3] == pytest.approx(values.values[:, 0], nan_ok=True) and not np.isnan(own).all()
        assert values.sizes["unit"] == 3 and np.isnan(own[:, 3:]).all() and found.sizes["unit"] == 8


@pytest.mark.parametrize(("name", "reach"), [("1-D CNN", (5, 4)), ("DeepConvLSTM (B, 1, T, S)", (8, 8))])
def test_projections_lie_around_where_the_maps_sample_looks(name, reach, one_thread):
    of = case(name)
    found = evolution.features_of(evolution.Moment(1, of.network, name), made_windows(), [of.tap])
    seen = np.abs(found["projection"].values[0]).reshape(found.sizes["unit"], -1, 2 * LENGTH - 1)
    assert seen.shape[1] == (1 if of.by_axis else N_AXES)
    before, after = reach
    lit = seen.max((0, 1)) > 0
    assert lit[LENGTH - 1 - before : LENGTH + after].all(), "what units see"
    assert not lit[: LENGTH - 1 - before].any() and not lit[LENGTH + after :].any()


def test_of_other_networks_layers_must_be_named():
    with pytest.raises(ValueError, match="say which layers"):
        evolution.features(made_windows(), moments_of("1-D CNN"))


def test_marks_go_as_far_as_the_training():
    assert evolution.marks(6) == [1, 2, 3, 4, 5, 6]
    assert evolution.marks(25) == [*range(1, 11), 20, 25]
    assert set(evolution.PAPER_MARKS) <= set(evolution.marks(200))


def test_settled_by_hand():
    epochs = [0, 1, 2, 5]
    always, late = np.full((4, 3), 0.95), np.array([[0.1] * 3, [0.95] * 3, [0.5, 0.95, 0.8], [1] * 3])
    never = np.array([[0.1] * 3, [0.2] * 3, [0.3] * 3, [1] * 3])
    assert [evolution.settled(epochs, v) for v in (always, late, never)] == [0, 5, 5]
    rises = np.array([[0.1, 0.1], [0.95, 0.99], [0.95, np.nan], [1, 1]])
    assert evolution.settled(epochs, rises) == 1
