"""Beside other libraries: the same attributions, networks that others trained, data in others' forms.

None of them is needed by the package; where one is not installed, its tests are skipped and say so::

    .venv/bin/python -m pip install -c constraints.txt -e '.[interop]'
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from harvis_utils.data import arrays
from harvis_utils.data.kinds import DataError
from harvis_utils.lenses import deconvnet, occlusion
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.networks import taps
from harvis_utils.settings import MaximizationSettings, WindowSettings

pytestmark = pytest.mark.usefixtures("one_thread")

X = np.random.default_rng(0).normal(size=(24, 3, 30)).astype(np.float32)
Y = np.arange(24) % 4


def library(name: str):
    return pytest.importorskip(name, reason=f"{name} is not installed; it is in the extra [interop]")


def body() -> nn.Sequential:
    """Two convolutions, with rectifiers that are modules, and class scores."""
    convolutions = nn.Conv1d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv1d(5, 6, 3, padding=1), nn.ReLU()
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 4))


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return body().eval()


# ------------------------------------------------------------------------------------------------------- captum


@pytest.mark.parametrize(
    ("rule", "theirs"), [("gradient", "Saliency"), ("guided", "GuidedBackprop"), ("deconvnet", "Deconvolution")]
)
def test_what_goes_back_is_what_captum_sends_back(network, rule, theirs):
    attr, x = library("captum.attr"), torch.tensor(X, requires_grad=True)
    how = {"abs": False} if theirs == "Saliency" else {}
    expected = getattr(attr, theirs)(network).attribute(x, target=Y.tolist(), **how).detach()
    found = deconvnet.project(network, "6", X, deconvnet.classes(Y), rule)
    assert expected.abs().max() > 0 and torch.allclose(found, expected, atol=1e-6)


def test_covering_costs_what_captum_says(network):
    """Captum spreads what a cover costs over the samples below it, and lets no cover reach over the window's edge."""
    attr, x, y = library("captum.attr"), torch.tensor(X), torch.tensor(Y)
    drops = occlusion.drops(network, X, Y, occlusion.by_axis(3), occlusion.Occluder(3, "zero"))["log_odds"].values
    whole = np.pad(drops[:, :, 1:-1], ((0, 0), (0, 0), (2, 2)), constant_values=np.nan)
    expected = np.nanmean(np.lib.stride_tricks.sliding_window_view(whole, 3, axis=2), -1)

    def odds(covered: torch.Tensor) -> torch.Tensor:
        return occlusion.log_odds(network(covered), y)

    found = attr.Occlusion(odds).attribute(x, (1, 3), strides=(1, 1), baselines=0).numpy()
    assert np.allclose(found, expected, atol=1e-5)
    gradients = attr.IntegratedGradients(network).attribute(x, target=Y.tolist()).numpy()
    correlation = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(gradients, expected, strict=True)]
    print(f"correlation of covering with integrated gradients: {np.mean(correlation):.2f}")
    assert np.mean(correlation) > 0.3, "another question, and not another answer"


# --------------------------------------------------------------------------------------------- trained by others


def looked_at(network: nn.Module, layer: str, inner: nn.Sequential) -> None:
    """A place of a network that another library trained: its maps, a signal that climbs, and nothing left behind."""
    training = network.training
    maps = taps.maps_of(network, taps.find(network, layer), torch.tensor(X))
    with taps.evaluating(network):
        assert torch.equal(maps[:, :, 0], inner[:1](torch.tensor(X)))
    assert layer in set(taps.places(network, X[:3])["layer"])
    place = taps.find(network, layer, rectified=True)
    statistics = unit_statistics.collect(network, X, place=place)
    unit = int(statistics["p95"].argmax())
    about = {"methods": ["naive"], "units": [unit], "n_axes": 3, "length": 30}
    about["settings"] = MaximizationSettings(n_steps=40)
    made = paper_methods.maximize(network, place, statistics["th_eap"].values, **about)
    activation = made["history"] if "history" in made else made["activation"]
    assert float(activation.values.ravel()[-1]) > float(activation.values.ravel()[0])
    assert network.training == training and not [m for m in network.modules() if m._forward_hooks]


def test_a_network_that_skorch_trained_is_looked_at_by_its_module():
    skorch = library("skorch")
    torch.manual_seed(0)
    net = skorch.NeuralNetClassifier(body, criterion=nn.CrossEntropyLoss, max_epochs=2, verbose=0, train_split=None)
    net.fit(X, Y.astype(np.int64))
    looked_at(net.module_, "0", net.module_)
    drops = occlusion.drops(net.module_, X, net.predict(X), occlusion.by_axis(3), occlusion.Occluder())
    assert np.isfinite(drops["log_odds"]).all()


def test_a_lightning_module_is_looked_at_as_it_is():
    lightning = library("lightning")

    class Lit(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = body()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 0.01)

    torch.manual_seed(0)
    lit, data = Lit(), torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", **quiet)
    trainer.fit(lit, torch.utils.data.DataLoader(data, 8))
    looked_at(lit, "net.0", lit.net)


# ------------------------------------------------------------------------------------------------- data of others

CUT = WindowSettings(50, 50, 50)


def moving(seed: int, seconds: int = 20) -> np.ndarray:
    """A sensor that rests with some noise, (time, x y z) in g at 50 Hz."""
    return np.random.default_rng(seed).normal(0, 0.05, (50 * seconds, 3)) + [0, 0, 1]


def test_sessions_of_whar_datasets_come_in_as_recordings():
    """The common format of its parsers: three tables, sessions with times of their own."""
    about = pd.DataFrame({"session_id": range(8), "subject_id": np.repeat(range(4), 2), "activity_id": [0, 1] * 4})
    activities = pd.DataFrame({"activity_id": [0, 1], "activity_name": ["Walking", "Unknown"]})
    channels = [f"lankle_acc_{axis}" for axis in "xyz"]
    sessions = {}
    for k in range(8):
        table = pd.DataFrame(moving(k).astype(np.float32) * 9.80665, columns=channels).assign(ecg_1=np.float32(0.1))
        times = pd.to_datetime(np.arange(len(table)) * 20, unit="ms").astype("datetime64[ms]")
        sessions[k] = table.assign(timestamp=times)
    table = arrays.of_sessions(activities, about, sessions, channels)
    found = arrays.from_arrays(table, "activity", "person", unit="m/s^2", windows=CUT)
    assert found.axes == ("lankle_acc x", "lankle_acc y", "lankle_acc z") and found.rate_hz == 50
    assert found.activities == ("Unknown", "Walking") and sum(found.counts().values()) == 8 * 20
    expected = [moving(k) for k in range(8) if about["subject_id"][k] == found.test.subject[0]]
    assert len(np.unique(found.test.recording)) == 2
    assert np.allclose(found.test.series, np.concatenate(expected), atol=1e-5)
    assert arrays.of_sessions(activities, about, sessions).columns[3] == "ecg 1"
    with pytest.raises(DataError, match="session 0 has no column 'chest_acc_x'; its columns: lankle_acc_x, "):
        arrays.of_sessions(activities, about, sessions, ["chest_acc_x"])
    with pytest.raises(DataError, match="session 7, its activity 1 or its person .* is named and not there"):
        arrays.of_sessions(activities, about, {k: sessions[k] for k in range(7)})


def of_people(read) -> pd.DataFrame:
    """Tables of actipy with labels, one below the other."""
    tables = []
    for k, person in enumerate("abcd"):
        data = read(k).dropna()[["x", "y", "z"]]
        tables.append(
            data.assign(activity=np.where(np.arange(len(data)) < len(data) / 2, "rest", "walk"), person=person)
        )
    return pd.concat(tables)


def as_actipy_reads(seed: int) -> pd.DataFrame:
    """The form that its documentation describes: times as index, x, y, z in g, temperature; NaN where not worn."""
    signal = moving(seed)
    signal[300:400] = np.nan
    times = pd.date_range("2026-01-01 10:00:00", periods=len(signal), freq="20ms", name="time")
    return pd.DataFrame(signal.astype(np.float32), times, ["x", "y", "z"]).assign(temperature=np.float32(20))


def test_tables_of_actipys_form_come_in_with_labels():
    found = arrays.from_arrays(of_people(as_actipy_reads), "activity", "person", axes={"wrist": "xyz"}, windows=CUT)
    assert found.axes == ("wrist x", "wrist y", "wrist z") and found.rate_hz == 50
    # 6 s, a gap of 2 s, 3 s until the label changes in the middle of what is left, 9 s
    assert found.counts() == {"train": 36, "val": 18, "test": 18} and len(np.unique(found.test.recording)) == 3


def test_tables_that_actipy_processed_come_in():
    actipy = library("actipy")

    def read(seed: int) -> pd.DataFrame:
        raw = as_actipy_reads(seed)[["x", "y", "z"]].interpolate()
        return actipy.process(raw, 50, lowpass_hz=None, calibrate_gravity=False, detect_nonwear=False, verbose=False)[0]

    found = arrays.from_arrays(of_people(read), "activity", "person", axes={"wrist": "xyz"}, windows=CUT)
    assert sum(found.counts().values()) >= 4 * 19 and abs(np.median(found.train.series[:, 2]) - 1) < 0.05
