"""What every test gets: folders of its own for artifacts and reports, so that none writes where people work."""

from __future__ import annotations

import os

# One thread for all tests, said before torch is loaded: arrays are bit-equal for one number of threads only, and a
# fixture of a module is made before any fixture of a test could say so.
os.environ["OMP_NUM_THREADS"] = os.environ["HARVIS_THREADS"] = "1"

import dataclasses
import shutil

import hypothesis
import numpy as np
import pytest
import torch

from harvis_utils.data import windowing
from harvis_utils.data.kinds import Dataset, Recording, Recordings
from harvis_utils.settings import (
    MaximizationSettings,
    ModelSettings,
    SimilaritySettings,
    TrainingSettings,
    WindowSettings,
    load_settings,
)

# how long an example takes says more about what else the machine does
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory, monkeypatch):
    """Artifacts and reports of a test go to an empty folder; returns it."""
    folder = tmp_path_factory.mktemp("own")
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(folder / "derived"))
    monkeypatch.setenv("HARVIS_REPORTS", str(folder / "reports"))
    return folder


@pytest.fixture
def one_thread(monkeypatch):
    """One computing thread: tiny networks get no faster by more, and a run is bit-equal to another one."""
    before = torch.get_num_threads()
    monkeypatch.setenv("HARVIS_THREADS", "1")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made_recordings(lengths: dict[tuple[int, int], int], rate_hz: float = 30.0, n_axes: int = 3, **changes):
    """Recordings of (subject, activity) with a number of samples each: an activity is a tempo, noise is added.

    Subjects 1 and 2 train, 3 validates, 4 tests; ``changes`` replace fields of the data set.
    """
    activities = tuple(f"activity {i}" for i in range(1 + max((activity for _, activity in lengths), default=0)))
    fields = {"name": "made", "title": "Made", "source": "made by the tests", "licence": "MIT", "made_up": True}
    fields |= {"rate_hz": rate_hz, "activities": activities, "axes": tuple(f"axis {i}" for i in range(n_axes))}
    fields |= {"split": {"train": (1, 2), "val": (3,), "test": (4,)}, "read": lambda _: ()}
    items = []
    for index, ((subject, activity), n_samples) in enumerate(lengths.items()):
        rng = np.random.default_rng((index, n_samples))
        wave = np.sin(2 * np.pi * (activity + 1) * 1.5 * np.arange(n_samples) / rate_hz + subject)
        signal = 0.5 * wave[:, None] + 0.2 * rng.normal(size=(n_samples, n_axes))
        items.append(Recording(subject, activity, signal.astype(np.float32)))
    return Recordings("made", Dataset(**(fields | changes)), tuple(items), verified=True, digest="made by the tests")


@pytest.fixture(scope="session")
def make_recordings():
    """The function above."""
    return made_recordings


@pytest.fixture(scope="session")
def tiny_windows():
    """48 training, 24 validation and 24 test windows of 3 activities on 3 axes."""
    lengths = {(s, a): 30 + 15 * 7 for s in (1, 2, 3, 4) for a in range(3)}
    return windowing.cut(made_recordings(lengths), WindowSettings())


@pytest.fixture(scope="module")
def cfg():
    """Settings of two tiny networks, few steps and few neighbours."""
    return dataclasses.replace(
        load_settings("quick", "synthetic", "cpu"),
        model=ModelSettings(n_units=6, n_dense=8),
        training=TrainingSettings(seeds=(0, 1), epochs=1, learning_rate=1e-2, batch_size=8),
        maximization=MaximizationSettings(n_steps=25),
        similarity=SimilaritySettings(n_similar=5),
    )


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium by Debian's packages chromium and chromium-driver; it keeps logs of errors and of requests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver on this machine; Debian: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    quiet = ("disable-gpu", "disable-background-networking", "disable-component-update", "disable-sync", "no-first-run")
    for flag in ("headless=new", "no-sandbox", "window-size=1300,1800", *quiet):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as found:
        yield found
