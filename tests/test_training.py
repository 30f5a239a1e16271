"""Tiny networks trained, interrupted and read back; scores against readable loops."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import re
import shutil
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.networks.sfhf import Dropout
from harvis_utils.parallel import threads_inside
from harvis_utils.settings import MaximizationSettings, ModelSettings, Settings, TrainingSettings, load_settings
from harvis_utils.store import results
from harvis_utils.store.files import read_json
from harvis_utils.training import supervised

pytestmark = pytest.mark.usefixtures("one_thread")

EPOCHS = 5


def tiny(seeds: tuple[int, ...] = (0,), epochs: int = EPOCHS, **model) -> Settings:
    return dataclasses.replace(
        load_settings("quick", "synthetic", "cpu"),
        model=ModelSettings(**({"n_units": 4, "n_dense": 16, "dropout": 0.2} | model)),
        training=TrainingSettings(seeds=seeds, epochs=epochs, learning_rate=1e-2, batch_size=8),
    )


def stored(network: supervised.Network) -> dict[str, torch.Tensor]:
    """All tensors of a network's file."""
    return results.read_result(results.folder_of("networks", network.key))


def key_of(cfg: Settings, windows: Windows, seed: int) -> str:
    return supervised.trained.key(windows, cfg.model, dataclasses.replace(cfg.training, seeds=()), seed)


def checkpoint_of(key: str) -> Path:
    return results.folder_of("networks", key).with_name(f"{key}.checkpoint") / supervised.CHECKPOINT


@pytest.fixture(scope="module")
def trained(tiny_windows, tmp_path_factory):
    """One network that was never interrupted, and what is stored of it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HARVIS_ARTIFACTS", str(tmp_path_factory.mktemp("trained")))
        network = supervised.train(tiny(), tiny_windows, 0)
        return network, stored(network)


def assert_same(network: supervised.Network, other: supervised.Network) -> None:
    """Bit-equal weights, history and predictions."""
    first, second = network.model.state_dict(), other.model.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(v, second[k]) for k, v in first.items())
    assert (network.seed, network.key, network.best_epoch) == (other.seed, other.key, other.best_epoch)
    for name in ("history", "predicted", "predicted_last"):
        one, two = getattr(network, name), getattr(other, name)
        assert one.keys() == two.keys()
        for key, values in one.items():
            np.testing.assert_array_equal(values, two[key])


def interrupt(monkeypatch, where: str, at: int, module=supervised) -> None:
    """Make the ``at``-th call of ``module.<where>`` from now on end as Ctrl-C would."""
    real, calls = getattr(module, where), iter(range(at + 1))

    def stopped(*args):
        if next(calls) == at:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, where, stopped)


# --------------------------------------------------------------------------------------------------- training


def test_the_loss_falls_and_the_classes_are_learned(tiny_windows):
    network = supervised.train(tiny(epochs=15), tiny_windows, 1)
    loss = network.history["loss"]
    assert loss.shape == (15,) and 0.9 < loss[0] < 1.6, "about log(3) before anything is learned"
    assert loss[-1] < 0.5 * loss[0]
    assert network.history["test_f1"][network.best_epoch] > 0.8 > 2 * network.history["test_f1"][0]
    assert set(network.history) == {"loss", "val_f1", "test_f1"} and network.wall_s > 0


def test_predictions_are_those_of_the_two_epochs(trained, tiny_windows):
    network, tensors = trained
    last = supervised.new_model(tiny_windows, tiny().model, 0)
    last.load_state_dict(supervised.part_of(tensors, "last_weights."))
    for name in ("val", "test"):
        split, history = getattr(tiny_windows, name), network.history[f"{name}_f1"]
        for model, predicted, epoch in (
            (network.model, network.predicted, network.best_epoch),
            (last, network.predicted_last, -1),
        ):
            with torch.no_grad():
                scores = torch.stack([model.eval()(torch.as_tensor(x)[None])[0] for x in split.x])
            np.testing.assert_array_equal(predicted[name], scores.argmax(1))
            assert supervised.macro_f1(split, predicted[name]) == history[epoch]


def test_the_first_of_the_best_epochs_is_kept(tiny_windows, monkeypatch):
    """Made-up validation scores with a tie: the weights are those of the earlier epoch."""
    scores = iter([0.2, 0.9, 0.5, 0.9, 0.9])
    seen = []

    def made_f1(split, classes):
        return next(scores) if split is tiny_windows.val else 0.5

    real = supervised._epoch

    def noting(model, *args):
        loss = real(model, *args)
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return loss

    monkeypatch.setattr(supervised, "macro_f1", made_f1)
    monkeypatch.setattr(supervised, "_epoch", noting)
    network = supervised.train(tiny(), tiny_windows, 0)
    assert network.best_epoch == 1 and network.history["val_f1"].tolist() == [0.2, 0.9, 0.5, 0.9, 0.9]
    assert all(torch.equal(v, seen[1][k]) for k, v in network.model.state_dict().items())
    last = supervised.part_of(stored(network), "last_weights.")
    assert all(torch.equal(v, seen[-1][k]) for k, v in last.items())


# --------------------------------------------------------------------------------------------- the same means


def test_the_same_seed_gives_bit_equal_networks(trained, tiny_windows):
    torch.manual_seed(99)  # what was drawn before does not matter
    assert_same(supervised.train(tiny(), tiny_windows, 0), trained[0])


@pytest.mark.parametrize("epoch", [0, 1, EPOCHS - 1])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(epoch, trained, tiny_windows, monkeypatch):
    with monkeypatch.context() as patched:
        interrupt(patched, "_epoch", epoch)
        with pytest.raises(KeyboardInterrupt):
            supervised.train(tiny(), tiny_windows, 0)
    key = trained[0].key
    assert not results.folder_of("networks", key).exists()
    assert checkpoint_of(key).exists() == (epoch > 0)
    torch.rand(epoch + 1)
    with monkeypatch.context() as patched:
        interrupt(patched, "_epoch", EPOCHS - epoch)  # epochs that are done are not done again
        assert_same(supervised.train(tiny(), tiny_windows, 0), trained[0])
    assert not checkpoint_of(key).parent.exists()


@pytest.mark.parametrize(
    ("module", "where", "at"),
    [(supervised, "predict", 5), (supervised, "save_state", 2), (results, "write_result", 0)],
)
def test_interrupted_anywhere_else(module, where, at, trained, tiny_windows, monkeypatch):
    """Between training and scoring an epoch, before its checkpoint, and while the result is written."""
    with monkeypatch.context() as patched:
        interrupt(patched, where, at, module)
        with pytest.raises(KeyboardInterrupt):
            supervised.train(tiny(), tiny_windows, 0)
    assert checkpoint_of(trained[0].key).exists()
    assert_same(supervised.train(tiny(), tiny_windows, 0), trained[0])


def test_resuming_with_another_shape_and_without_batch_norm(tiny_windows, monkeypatch, tmp_path):
    """Adam's moments are kept row by row, the weights channels last: it makes no difference to a bit."""
    cfg = tiny(epochs=3, n_units=12, batch_norm=False, mixing="conv", pool="max2")
    with monkeypatch.context() as patched:
        patched.setenv("HARVIS_ARTIFACTS", str(tmp_path / "whole"))
        whole = supervised.train(cfg, tiny_windows, 1)
    with monkeypatch.context() as patched:
        interrupt(patched, "_epoch", 2)
        with pytest.raises(KeyboardInterrupt):
            supervised.train(cfg, tiny_windows, 1)
    assert_same(supervised.train(cfg, tiny_windows, 1), whole)


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone():
    class Noting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.order, self.noise = torch.nn.Parameter(torch.zeros(3)), [], []
            self.dropout = Dropout(0.5)

        def forward(self, x):
            self.order += x[:, 0].int().tolist()
            self.noise += self.dropout(torch.ones(5)).tolist()
            return self.weight.expand(len(x), 3)

    x, y = torch.arange(10.0)[:, None], torch.zeros(10, dtype=torch.int64)

    def walk(seed: int, epoch: int, batch_size: int = 4):
        torch.rand(seed + epoch)  # something else was drawn before
        model = Noting()
        sgd = torch.optim.SGD(model.parameters(), 0.1)
        step = partial(supervised._step, model, sgd, x, y)
        loss = supervised._epoch(model, step, x, batch_size, seed, epoch, lambda: None)
        return model.order, model.noise, loss

    first, again = walk(1, 2), walk(1, 2)
    assert first == again and sorted(first[0]) == list(range(10))
    others = [walk(1, 3), walk(2, 2), walk(2, 1)]
    assert all(other[0] != first[0] and other[1] != first[1] for other in others)
    assert sorted(walk(1, 2, batch_size=3)[0]) != list(range(10)), "a single leftover window is left out"
    assert len(walk(1, 2, batch_size=3)[0]) == 9


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_replayed_steps_are_the_steps_themselves(tiny_windows):
    cfg = tiny(epochs=4, batch_size=16)
    data = [torch.as_tensor(a, device="cuda") for a in (tiny_windows.train.x, tiny_windows.train.activity)]

    def fitted(replay: bool):
        model = supervised.new_model(tiny_windows, cfg.model, 0).cuda()
        losses = supervised.fit(model, *data, cfg.training, 0, replay=replay)
        return [losses, *(v.cpu().numpy() for v in model.state_dict().values())]

    # Adam corrects its bias on the device where it is recorded, in float32
    for one, other in zip(fitted(True), fitted(False), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_the_key_knows_what_decides_the_weights_and_nothing_else(tiny_windows):
    cfg = tiny(seeds=(0, 1))
    key = key_of(cfg, tiny_windows, 0)
    for section in ("model", "training"):
        part = getattr(cfg, section)
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            other = not value if isinstance(value, bool) else f"{value}x" if isinstance(value, str) else None
            if field.name == "seeds":
                continue
            other = value + 1 if other is None else other
            changed = dataclasses.replace(cfg, **{section: dataclasses.replace(part, **{field.name: other})})
            assert key_of(changed, tiny_windows, 0) != key, field.name
    assert len({key, key_of(cfg, tiny_windows, 1), key_of(cfg, tiny_windows.every(2), 0)}) == 3
    same = dataclasses.replace(
        tiny(seeds=(0, 7)), device="cuda", profile="other", maximization=MaximizationSettings(n_steps=1)
    )
    assert key_of(same, tiny_windows, 0) == key


def test_a_setting_that_came_later_keeps_the_keys_from_before(monkeypatch, tiny_windows):
    cfg = tiny()
    key = key_of(cfg, tiny_windows, 0)
    held = results.described(cfg.training)
    assert "evaluate_every" not in held and held.keys() < {f.name for f in dataclasses.fields(cfg.training)}
    seldom = dataclasses.replace(cfg, training=dataclasses.replace(cfg.training, evaluate_every=2))
    assert key_of(seldom, tiny_windows, 0) != key
    monkeypatch.setattr(supervised.trained, "version", 2)
    assert key_of(cfg, tiny_windows, 0) != key


def test_scoring_seldom_changes_no_weight_after_the_last_epoch(trained, tiny_windows):
    whole, tensors = trained
    every = dataclasses.replace(tiny().training, evaluate_every=2)
    network = supervised.train(dataclasses.replace(tiny(), training=every), tiny_windows, 0)
    last = supervised.part_of(stored(network), "last_weights.")
    assert all(torch.equal(v, last[k]) for k, v in supervised.part_of(tensors, "last_weights.").items())
    scored = [1, 3, 4]  # every second one, and the last
    for name in ("val_f1", "test_f1"):
        assert np.flatnonzero(~np.isnan(network.history[name])).tolist() == scored
        np.testing.assert_array_equal(network.history[name][scored], whole.history[name][scored])
    np.testing.assert_array_equal(network.history["loss"], whole.history["loss"])
    assert network.best_epoch == max(scored, key=lambda epoch: whole.history["val_f1"][epoch])


#: SHA-256 of the weights after twenty steps of training, by torch, instructions and maker of the processor
GOLDEN = {("2.13", "AVX512", "AuthenticAMD"): "533650577ae0b0ddc6c6b7001712bd6a04be84c3c6dd89b40cf832c0206f2e71"}


def arithmetic() -> tuple[str, str, str]:
    """What decides how torch sums and rounds: its version, the instructions it uses, the processor MKL looks at."""
    cpu = Path("/proc/cpuinfo")
    maker = re.search(r"vendor_id\s*: (\w+)", cpu.read_text()) if cpu.exists() else None
    release = ".".join(torch.__version__.split(".")[:2])
    return release, torch.backends.cpu.get_cpu_capability(), maker[1] if maker else platform.machine()


def test_training_is_what_its_version_says(tiny_windows):
    """Networks are addressed by ``version`` and not by the code, so no edit may change their weights unnoticed.

    If this fails after a change of the code, raise ``version`` in ``@kept("networks", version=...)`` and write down
    the new digest: all networks are trained anew. Other versions of torch and other processors sum in another order
    and round differently; there is nothing to compare with there.
    """
    here = arithmetic()
    if here not in GOLDEN:
        pytest.skip(f"no digest is written down for torch, instructions and processor {here}")
    model = supervised.new_model(tiny_windows, ModelSettings(n_units=4, n_dense=8), 0)
    x, y = torch.as_tensor(tiny_windows.train.x[:40]), torch.as_tensor(tiny_windows.train.activity[:40])
    settings = TrainingSettings(seeds=(), epochs=4, learning_rate=1e-2, batch_size=8)
    supervised.fit(model, x, y, settings, 0)
    weights = torch.cat([v.flatten() for k, v in sorted(model.state_dict().items()) if v.is_floating_point()])
    assert (supervised.trained.version, hashlib.sha256(weights.numpy().tobytes()).hexdigest()) == (1, GOLDEN[here])


# --------------------------------------------------------------------------------------------- side by side


def test_networks_trained_side_by_side_equal_those_trained_alone(tiny_windows):
    cfg = tiny(seeds=(0, 1, 2))
    with threads_inside(3):
        together = supervised.networks(cfg, tiny_windows)
        assert torch.get_num_threads() == 3
    for network in together:
        shutil.rmtree(results.folder_of("networks", network.key))
        assert_same(supervised.train(cfg, tiny_windows, network.seed), network)


def test_networks_take_turns(tiny_windows, monkeypatch):
    begun, real, start = [], supervised._epoch, threading.Barrier(3)

    def noting(model, step, x, batch_size, seed, epoch, check):
        begun.append(seed)
        time.sleep(0.1)  # longer than a busy machine keeps a thread from asking for its next turn
        return real(model, step, x, batch_size, seed, epoch, check)

    def together(*arguments):
        start.wait(60)  # one of them could be done before the last one has begun
        return resume(*arguments)

    resume = supervised.resume
    monkeypatch.setattr(supervised, "resume", together)
    monkeypatch.setattr(supervised, "_epoch", noting)
    supervised.networks(tiny(seeds=(0, 1, 2), epochs=6), tiny_windows)
    assert len(begun) == 18
    for i in range(18):
        done = [begun[:i].count(seed) for seed in (0, 1, 2)]
        assert max(done) - min(done) <= 2, "each in its turn"


def test_an_error_in_one_network_stops_the_others(tiny_windows, monkeypatch):
    cfg, real, begun, before = tiny(seeds=(0, 1, 2, 3), epochs=50), supervised._epoch, [], []
    other = checkpoint_of(key_of(cfg, tiny_windows, 0))

    def failing(model, step, x, batch_size, seed, epoch, check):
        begun.append((seed, epoch))
        if seed == 1 and other.exists():  # threads begin in any order: fail once there is something to lose
            before.append(len(begun))
            raise supervised.TrainingError("network 1: made to fail")
        return real(model, step, x, batch_size, seed, epoch, check)

    monkeypatch.setattr(supervised, "_epoch", failing)
    with pytest.raises(supervised.TrainingError, match="network 1: made to fail"):
        supervised.networks(cfg, tiny_windows)
    assert len(before) == 1 and len(begun) < before[0] + 20, "the others went on"
    assert not [t for t in threading.enumerate() if "Pool" in t.name]
    assert other.exists(), "what the others had done is not lost"


# ------------------------------------------------------------------------------------------------ reading back


def test_networks_are_trained_once_and_read_afterwards(tiny_windows, monkeypatch):
    cfg = tiny(epochs=1)
    (network,) = supervised.networks(cfg, tiny_windows)
    interrupt(monkeypatch, "_epoch", 0)
    assert_same(supervised.networks(cfg, tiny_windows)[0], network)
    about = read_json(results.folder_of("networks", network.key) / "manifest.json")["provenance"]
    assert about["caveat"] == "made-up data" and about["arguments"]["seed"] == 0
    assert about["arguments"]["windows"] == tiny_windows.digest
    assert results.seconds_by_stage()["networks"] > 0


def test_untrained_networks_are_the_start_of_the_trained_ones(tiny_windows):
    cfg = tiny(seeds=(0, 1))
    first, again = supervised.untrained(cfg, tiny_windows), supervised.untrained(cfg, tiny_windows)
    for network, other, seed in zip(first, again, (0, 1), strict=True):
        assert_same(network, other)
        start = supervised.new_model(tiny_windows, cfg.model, seed)
        assert all(torch.equal(v, start.state_dict()[k]) for k, v in network.model.state_dict().items())
        assert not network.model.training and network.trunk.layers == ("conv1", "conv2", "conv3")
    assert not torch.equal(first[0].model.conv1.weight, first[1].model.conv1.weight)
    keys = {n.key for n in first} | {key_of(cfg, tiny_windows, s) for s in (0, 1)}
    assert len(keys) == 4


# ----------------------------------------------------------------------------------------------------- scores


def naive_f1(true, predicted, c: int) -> float:
    hits = sum(t == c and p == c for t, p in zip(true, predicted, strict=True))
    said, there = sum(p == c for p in predicted), sum(t == c for t in true)
    return 2 * hits / (said + there) if said + there else 0.0


def naive_macro(true, predicted) -> float:
    classes = sorted(set(true))
    return sum(naive_f1(true, predicted, c) for c in classes) / len(classes)


N_CLASSES = 4
rows = st.lists(st.tuples(*(st.integers(0, N_CLASSES - 1),) * 2, st.integers(1, 3)), min_size=1, max_size=40)


@settings(max_examples=60)
@given(rows=rows)
def test_scores_against_their_twins(rows):
    true, predicted, subject = (np.array(column) for column in zip(*rows, strict=True))
    zero = np.zeros(len(true), dtype=np.int64)
    split = Split(np.zeros((30, 1), np.float32), zero, true, subject, zero, zero, 30)
    t, p = true.tolist(), predicted.tolist()
    assert supervised.macro_f1(split, predicted) == pytest.approx(naive_macro(t, p))
    expected = [naive_f1(t, p, c) for c in range(N_CLASSES)]
    np.testing.assert_allclose(supervised.class_f1(split, predicted, N_CLASSES), expected)
    by_subject = {
        s: naive_macro([a for a, _, w in rows if w == s], [b for _, b, w in rows if w == s])
        for s in set(subject.tolist())
    }
    assert supervised.subject_f1(split, predicted) == pytest.approx(by_subject)
    shares = supervised.confusion(split, predicted, N_CLASSES)
    for c in range(N_CLASSES):
        for d in range(N_CLASSES):
            pairs = sum((a, b) == (c, d) for a, b in zip(t, p, strict=True))
            assert shares[c, d] == pytest.approx(pairs / t.count(c) if c in t else 0.0)


def test_a_diverging_loss_is_told_at_once(tiny_windows):
    cfg = dataclasses.replace(
        Settings("quick", "synthetic"),
        model=ModelSettings(n_units=4, n_dense=8),
        training=TrainingSettings(seeds=(0,), epochs=3, learning_rate=1e25, batch_size=8),
    )
    with pytest.raises(supervised.TrainingError, match="network 0: the loss is (nan|inf) in epoch .*learning_rate"):
        supervised.train(cfg, tiny_windows, 0)


def test_a_checkpoint_of_other_settings_is_not_taken_for_ones_own(tiny_windows, tmp_path):
    x, y = torch.as_tensor(tiny_windows.train.x), torch.as_tensor(tiny_windows.train.activity)
    mine, other = tmp_path / "a.checkpoint", tmp_path / "b.checkpoint"
    for rate, folder in ((0.1, other), (0.001, mine)):
        settings = TrainingSettings(epochs=1, learning_rate=rate)
        model = supervised.new_model(tiny_windows, ModelSettings(n_units=2, n_dense=2), 0)
        supervised.fit(model, x, y, settings, 0, checkpoint=folder)
    (other / supervised.CHECKPOINT).replace(mine / supervised.CHECKPOINT)
    with pytest.raises(supervised.TrainingError, match=f"{mine}.*of another training: b.checkpoint.; delete it"):
        supervised.fit(model, x, y, settings, 0, checkpoint=mine)


def test_a_damaged_checkpoint_is_named(tiny_windows, tmp_path):
    model = supervised.new_model(tiny_windows, tiny().model, 0)
    x, y = torch.as_tensor(tiny_windows.train.x), torch.as_tensor(tiny_windows.train.activity)
    settings = tiny(epochs=1).training
    supervised.fit(model, x, y, settings, 0, checkpoint=tmp_path)
    path = tmp_path / supervised.CHECKPOINT
    whole = path.read_bytes()
    for content in (b"", b"not a checkpoint", whole[:-900], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(content)
        with pytest.raises(supervised.TrainingError, match=r"training.safetensors is damaged .*delete it"):
            supervised.fit(model, x, y, settings, 0, checkpoint=tmp_path)


def test_fit_goes_on_with_what_was_noted(tiny_windows, tmp_path):
    """A plain loop of one's own: any model, notes of any epoch, cut after the third epoch."""
    x, y = torch.as_tensor(tiny_windows.train.x).flatten(1), torch.as_tensor(tiny_windows.train.activity)
    settings = TrainingSettings(epochs=5, learning_rate=1e-2, batch_size=8, weight_decay=0.1)

    def walk(folder, stop=None):
        with supervised.drawing(3):
            model = torch.nn.Linear(x.shape[1], 3)
        notes: dict = {}

        def note(epoch, loss):
            if epoch == stop:
                raise KeyboardInterrupt
            notes[str(epoch)] = [loss, model.bias.detach().clone()]

        return supervised.fit(model, x, y, settings, 7, each_epoch=note, checkpoint=folder, notes=notes), notes, model

    losses, notes, model = walk(None)
    with pytest.raises(KeyboardInterrupt):
        walk(tmp_path, stop=3)
    again, noted, resumed = walk(tmp_path)
    assert again == losses == [loss for loss, _ in noted.values()] and len(losses) == 5 and losses[-1] < losses[0]
    assert all(torch.equal(bias, noted[epoch][1]) for epoch, (_, bias) in notes.items())
    assert torch.equal(model.weight, resumed.weight)
    assert supervised.fit(model, x, y, settings, 7, epochs=2, around=lambda: pytest.MonkeyPatch.context())[0] > 0
