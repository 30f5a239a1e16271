"""One page about anyone's network: on every network of the matrix; its words are its tables'; a call goes on."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import other_networks
import pandas as pd
import pytest
import torch
from example_network import OneD
from torch import nn
from torch.nn import functional as F

import harvis_utils
from harvis_utils.data.arrays import from_arrays
from harvis_utils.data.windowing import Windows
from harvis_utils.figures import page
from harvis_utils.networks import taps
from harvis_utils.own import looking, one_page, telling
from harvis_utils.own.telling import METHOD, NOISE, REAL
from harvis_utils.settings import HarvisError, MaximizationSettings, VisualSettings
from harvis_utils.store import results

MATRIX = pd.read_csv(Path(__file__).with_name("matrix.csv"), index_col="network")
CAVEAT = "own data, not verified"
#: so few steps climb nowhere: what is looked at here is what becomes of the signals
FAST = {"settings": MaximizationSettings(n_steps=2), "visual": VisualSettings(n_steps=2)}


@pytest.fixture(autouse=True)
def single(one_thread):
    """One computing thread for every test here."""


@cache
def networks_for(n_axes: int) -> ModuleType:
    """The networks of the matrix, for windows of so many axes."""
    said = f"N_AXES, LENGTH, CLASSES = {other_networks.N_AXES},"
    source = Path(other_networks.__file__).read_text(encoding="utf-8")
    assert source.count(said) == 1
    module = ModuleType(f"networks_for_{n_axes}_axes")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(source.replace(said, f"N_AXES, LENGTH, CLASSES = {n_axes},"), module.__name__, "exec"), vars(module))
    return module


def tables_of(folder: Path) -> dict[str, pd.DataFrame]:
    return {path.stem: pd.read_csv(path) for path in (folder / "tables").glob("*.csv")}


def words_of(text: str) -> str:
    words = re.search(r'<p id="words">(.*?)</p>', text, re.DOTALL)[1].replace("&#39;", "'")
    return " ".join(re.sub(r"</?b>", "", words).split())


def is_offline(text: str) -> bool:
    """Nothing that a browser would fetch: no address but those of this page, of its tables, and of pictures in it."""
    addresses = re.findall(r"""(?:href|src|action|data|poster|srcset)=["']([^"']*)""", text)
    inside = ("#", "tables/", "data:image/png;base64,")
    return (
        all(address.startswith(inside) for address in addresses)
        and not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\(", text)
        and re.findall(r"https?://[^\s\"'<]+", text) in ([], ["http://www.w3.org/2000/svg"])
        and "default-src 'none'" in text
    )


#: all on many channels, some on few: one page takes seconds
EVERY = [(name, 30) for name in other_networks.NAMES] + [(name, 3) for name in other_networks.NAMES[::4]]


@pytest.mark.parametrize(("name", "n_axes"), EVERY)
def test_every_network_of_the_matrix_gets_its_page(name, n_axes, tmp_path):
    of, windows = networks_for(n_axes).case(name), networks_for(n_axes).made_windows()
    windows = dataclasses.replace(windows, caveat=CAVEAT)
    before = {key: value.clone() for key, value in of.network.state_dict().items()}
    made = harvis_utils.explain(
        of.network, of.tap, windows, tmp_path / "page", units=[0, 2, 3], even_untrained=True, **FAST
    )
    text, about = made.read_text(encoding="utf-8"), json.loads((made.parent / "explanation.json").read_text())
    assert about["finished"] and set(tables_of(made.parent)) == set(one_page.TABLES)
    refused = MATRIX.loc[name, "deconvnet"].startswith("refused") and "deconvnet"
    assert set(about["refused"]) == {"atlas", *([refused] if refused else [])}, "three units make no map"
    assert all(f"<dt>{lens}</dt>" in text for lens in about["refused"]) and is_offline(text)
    assert ("(gradient, own scale)" in text) == bool(refused) == ("(deconvnet, own scale)" not in text)
    assert text.count(CAVEAT) > 8 and json.loads(re.search(r'type="application/json">(.*?)</script>', text)[1])["cards"]
    assert all(torch.equal(before[key], value) for key, value in of.network.state_dict().items())
    assert not [m for m in of.network.modules() if m.training or m._forward_hooks or m._forward_pre_hooks]


# ------------------------------------------------------------------------------------------- one network in detail


def trained(network: OneD, windows: Windows, factor: float, n_steps: int = 40) -> OneD:
    """The network after some steps; those of its first weights are as much smaller as its windows are larger."""
    x, y = torch.tensor(windows.train.x), torch.as_tensor(windows.train.activity)
    first, *others = network.parameters()
    optimizer = torch.optim.Adam([{"params": [first], "lr": 0.02 / factor}, {"params": others}], 0.02)
    for _ in range(n_steps):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network.eval()


def made_arrays(n_axes: int, length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows (window, channel, time) of five people who rest, sway and shake, in this order."""
    rng, time = np.random.default_rng(seed), np.arange(length) / 50
    y, who = np.tile(np.repeat(np.arange(3), 4), 5), np.repeat(np.arange(5), 12)
    hertz = np.array([0.0, 2.0, 6.0])[y]
    wave = np.sin(2 * np.pi * hertz[:, None, None] * time + rng.uniform(0, 6, (len(y), n_axes, 1)))
    return (wave * (y > 0)[:, None, None] + 0.1 * rng.normal(size=wave.shape)).astype(np.float32), y, who


@cache
def subject(n_axes: int = 3, length: int = 40, factor: float = 1.0, unit: str = "g") -> tuple[nn.Module, Windows]:
    x, y, who = made_arrays(n_axes, length)
    axes = [f"place {k // 3} {'xyz'[k % 3]}" for k in range(n_axes)]
    with warnings.catch_warnings(action="ignore"):  # so short recordings are told of
        windows = from_arrays(
            factor * x, y, who, rate_hz=50, axes=axes, unit=unit, activities=["rest", "sway", "shake"]
        )
    torch.manual_seed(0)
    network = OneD(n_axes, 3)
    with torch.no_grad():
        network.body[0].weight /= factor
    return trained(network, windows, factor), windows


def posture(folder: Path) -> Path:
    """The page of a network whose units answer to levels of the last axis alone."""
    x, y, who = made_arrays(3, 40)
    x[:, 2] = 0.1 * x[:, 2] + y[:, None] - 1.0
    axes = {"place 0": "xyz"}
    with warnings.catch_warnings(action="ignore"):
        windows = from_arrays(x, y, who, rate_hz=50, axes=axes, unit="V", activities=["rest", "sway", "shake"])
    network = OneD(3, 3)
    with torch.no_grad():
        for value in network.parameters():
            value.zero_()
        network.body[0].weight[:2, 2] = 0.2 * torch.tensor([[1.0], [-1.0]])
        network.body[0].bias -= 0.05
        network.body[3].weight[:2, :2, 1] = torch.eye(2)
        network.out.weight[0, 1], network.out.bias[1], network.out.weight[2, 0] = 4.0, 1.0, 4.0
    about = {"units": [0, 1], "even_untrained": True, "settings": MaximizationSettings(n_steps=400)}
    return harvis_utils.explain(network.eval(), "body.0", windows, folder, **(FAST | about))


def explained(folder: Path | None, place="last conv", **more) -> Path:
    network, windows = subject()
    return harvis_utils.explain(network, place, windows, folder, **(FAST | {"units": [0, 3, 5, 7, 8, 11]} | more))


def test_the_words_say_what_the_tables_say(tmp_path):
    made = explained(tmp_path / "page", settings=MaximizationSettings(n_steps=60))
    tables, text = tables_of(made.parent), words_of(made.read_text(encoding="utf-8"))
    thresholds, each = tables["thresholds"], tables["signals"].set_index(["signal", "unit"])
    network, windows = subject()
    for name, split in {"training": windows.train, "test": windows.test}.items():
        with torch.no_grad():
            right = network(torch.tensor(split.x)).argmax(1).numpy() == split.activity
        mean = np.mean([right[split.activity == k].mean() for k in range(3)])
        commonest = np.bincount(split.activity).max() / len(right)
        assert f"{right.mean():.0%} of the {name} people's windows right (always the commonest activity: " in text
        assert f"activity: {commonest:.0%}), {mean:.0%} in the mean over activities (guessing: 33%)" in text
    n_silent = thresholds["silent"].sum()
    said = (
        f"{n_silent} of the 12 units of layer body.3"
        if n_silent
        else "All 12 units of layer body.3 answer to training windows"
    )
    assert said in text and len(thresholds) == 12
    waves = tables["waves"].set_index(["signal", "unit", "axis"])
    ranges = np.ptp(waves.loc[METHOD].to_numpy(), axis=1).reshape(6, 3).max(1)
    assert each.loc[METHOD, "range"].to_numpy() == pytest.approx(ranges, abs=1e-4)
    assert re.search(rf"\b{(ranges < 0.05).sum()} of 6 signals that the paper's method made (is|are) flat", text)
    reached = each["reached"].unstack("signal")
    assert (reached[REAL] > 1).any(), "what goes beyond the threshold is told"
    assert reached[METHOD].clip(upper=1).to_numpy() == pytest.approx(
        each.loc[METHOD, "activation"].to_numpy(), abs=1e-5
    )
    near = each["nearness"].unstack("signal")
    difference = (near[METHOD] - near[NOISE]).mean()
    said = f"nearness {near[NOISE].mean():.2f}, the method {near[METHOD].mean():.2f}, the method minus noise "
    said += f"{difference:.2f} ("
    assert said in text
    low, high = map(float, re.search(r"minus noise \S+ \((\S+) to (\S+)\)", text).groups())
    standing = "is nearer" if high < 0 else "is farther" if low > 0 else "is not surely nearer or farther"
    assert f"{standing} than the method" in text and low <= difference <= high
    right = each["right answers"].unstack("signal").mean()
    assert f"in: {', '.join(f'{name} {right[name]:.0%}' for name in telling.READINGS)}; guessing" in text
    assert right.to_dict() == pytest.approx(tables["measures"].set_index("signal")["right answers"].to_dict(), abs=1e-5)
    about = json.loads((made.parent / "explanation.json").read_text())
    assert f"The likeliest reading: {about['numbers']['reading']}." in text and text.count("; nor ") == 2


def test_a_flat_signal_shows_nothing_only_where_it_does_no_better_than_flat_zero(tmp_path):
    """A unit of a level on one axis is reached by a signal that is flat; its words say so."""
    made = posture(tmp_path / "page")
    each = tables_of(made.parent)["signals"].set_index(["signal", "unit"])
    flat = each.loc[METHOD].loc[each.loc[METHOD, "flat"]].index
    own, zero = (each.loc[name, "reached"].loc[flat] for name in (METHOD, looking.FLAT))
    assert len(flat) == 2 and (own > 0.9).all() and (zero < 0.2).all(), "a posture, not rest"
    text = words_of(made.read_text(encoding="utf-8"))
    assert "2 of 2 signals that the paper's method made are flat" in text and "All reach more than flat zero." in text
    assert f"reach {own.median():.2f} of the threshold, flat zero {zero.median():.2f}" in text


MADE = "likeliest trigger"
#: nine real windows, one, likeliest triggers and the method's signals; what is to be read, and beside what
READ = {
    "nine real windows": (
        0.8,
        0.7,
        0.5,
        0.5,
        f"read the units from {telling.TRUE[telling.NINE]} (79.5% right): nothing",
    ),
    "one real window": (0.5, 0.7, 0.5, 0.5, f"read the units from {telling.TRUE[REAL]} (69.5% right): nothing made"),
    "better than one but not than nine": (0.8, 0.6, 0.7, 0.5, f"read the units from {telling.TRUE[telling.NINE]}"),
    "likeliest triggers": (0.75, 0.7, 0.9, 0.8, f"{telling.MADE[MADE]} (89.5% right): they tell surely more than the"),
    "the method": (0.75, 0.7, 0.5, 0.9, f"{telling.MADE[METHOD]} (89.5% right): they tell surely more than the best"),
    "neither": (np.nan, np.nan, 0.6, 0.4, f"look at {telling.MADE[MADE]} (59.5% right), surely better than guessing"),
    "nothing": (0.5, 0.5, 0.45, 0.5, telling.NO_READING),
}


@pytest.mark.parametrize("better", READ)
def test_the_reading_is_compared_with_the_best_that_is_real(better):
    """Signals of twelve units, right in about so many cases, or unsure."""
    *means, expected = READ[better]
    spread = 0.02 * np.linspace(-1, 1, 12) - 0.005
    unsure = np.where(np.arange(12) % 2, 0.1, 0.9)
    rows = {
        (name, unit): unsure[unit] if np.isnan(mean) else mean + spread[unit]
        for name, mean in zip((telling.NINE, REAL, MADE, METHOD), means, strict=True)
        for unit in range(12)
    }
    each = pd.DataFrame({"right answers": rows, "flat": 0.0}).rename_axis(["signal", "unit"])
    means = telling._measures(None, each)
    right = {name: [means.loc[name, f"right answers{end}"] for end in ("", " low", " high")] for name in means.index}
    assert expected in telling._reading(each, right)


class Interrupted(KeyboardInterrupt):
    """A person's Ctrl-C."""


def test_it_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    """Half of the parts are made, then it ends; the same call makes the others alone, and the files are the same."""
    built: list[str] = []

    def entering(stop: int | None):
        class Counted:
            def __enter__(self):
                built.append("a part")
                if len(built) == stop:
                    raise Interrupted

            def __exit__(self, *_):
                return None

        return results.around_builds(lambda stage, key: Counted())

    monkeypatch.setenv("HARVIS_ARTIFACTS", str(tmp_path / "one"))
    with entering(None):
        whole = explained(tmp_path / "whole")
    n, expected = len(built), {p.relative_to(whole.parent): p.read_bytes() for p in whole.parent.rglob("*.*")}
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(tmp_path / "two"))
    built.clear()
    with entering(n // 2), pytest.raises(Interrupted):
        explained(tmp_path / "halves")
    text = (tmp_path / "halves" / "index.html").read_text(encoding="utf-8")
    assert "This page is not finished." in text and "occlusion" in text and is_offline(text)
    assert not list((tmp_path / "halves").rglob("*.part"))
    built.clear()
    with entering(None):
        again = explained(tmp_path / "halves")
    assert len(built) == n - n // 2 + 1
    assert {p.relative_to(again.parent): p.read_bytes() for p in again.parent.rglob("*.*")} == expected


def test_other_units_renew_the_page_and_another_network_leaves_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HARVIS_REPORTS", str(tmp_path))
    first = explained(None, units=[0, 1])
    (first.parent / "tables" / "mine.csv").write_text("kept")
    again = explained(None, units=[0, 2])
    assert again == first == tmp_path / "explained" / "body.3" / "index.html"
    assert set(tables_of(again.parent)["signals"]["unit"]) == {0, 2} and (first.parent / "tables" / "mine.csv").exists()
    before = {path: path.read_bytes() for path in first.parent.rglob("*.*")}
    network, windows = subject()
    other = OneD(3, 3)
    other.load_state_dict(network.state_dict())
    other.out.bias.data[0] += 0.01
    for of in (
        (other.eval(), "last conv", windows),
        (network, "last conv", windows.every(2)),
        (network, "body.0", windows),
    ):
        with pytest.raises(HarvisError, match="page of another network, place or windows; name another folder"):
            harvis_utils.explain(*of, first.parent, units=[0, 1], **FAST)
    with pytest.raises(HarvisError, match=r"body\.3-\w{6}"):
        harvis_utils.explain(other, "last conv", windows, units=[0, 1], **FAST)
    assert {path: path.read_bytes() for path in first.parent.rglob("*.*")} == before


def test_a_page_whose_first_writing_failed_is_gone_on_with(tmp_path, monkeypatch):
    """The folder is known as its own from the first file on."""
    real, written = one_page.files.write_text, []

    def failing(path, text):
        written.append(path)
        if len(written) == 2:
            raise Interrupted
        real(path, text)

    monkeypatch.setattr(one_page.files, "write_text", failing)
    with pytest.raises(Interrupted):
        explained(tmp_path / "page", units=[0, 1])
    monkeypatch.setattr(one_page.files, "write_text", real)
    assert json.loads((explained(tmp_path / "page", units=[0, 1]).parent / "explanation.json").read_text())["finished"]


def silent(network: nn.Module) -> nn.Module:
    """A copy whose first units never answer."""
    torch.manual_seed(0)
    other = OneD(3, 3)
    other.load_state_dict(network.state_dict())
    other.body[0].weight.data.zero_(), other.body[0].bias.data.fill_(-1.0)
    return other


def with_more_outputs(network: nn.Module, before: int, after: int) -> nn.Module:
    """The network with outputs of further classes, which it never gives, before its own and after them."""

    class More(nn.Module):
        def __init__(self):
            super().__init__()
            self.of = network

        def forward(self, x):
            return F.pad(self.of(x), (before, after), value=-50.0)

    return More()


def shifted(network: nn.Module) -> nn.Module:
    return with_more_outputs(network, 3, 0)


BAD = {
    "other channels": (lambda n, w: (n, "body.0", subject(4)[1]), {}, "does not take windows of 4 axes (place 0 x"),
    "other channels, any place": (lambda n, w: (n, "last conv", subject(4)[1]), {}, "does not take windows of 4 axes"),
    "fewer outputs": (
        lambda n, w: (OneD(3, 2), "body.0", w),
        {},
        "2 outputs, the windows have 3 activities (rest, sway",
    ),
    "outputs of others": (lambda n, w: (shifted(n), "of.body.0", w), {}, "its outputs are not rest, sway, shake"),
    "arrays": (lambda n, w: (n, "body.0", w.train.x), {}, "from_arrays"),
    "an unknown place": (lambda n, w: (n, "conv9", w), {}, "unknown layer 'conv9'"),
    "no convolution": (
        lambda n, w: (nn.Sequential(nn.Flatten(), nn.Linear(120, 3)), "last conv", w),
        {},
        "no convolution",
    ),
    "no network": (lambda n, w: (n.forward, "body.0", w), {}, "torch.nn.Module"),
    "an untrained network": (lambda n, w: (OneD(3, 3), "body.0", w), {}, "names shuffled"),
    "silent units": (lambda n, w: (silent(n), "body.0", w), {"even_untrained": True}, "all 8 units give the same"),
    "units that there are not": (lambda n, w: (n, "body.0", w), {"units": [3, 8]}, "units 0 to 7"),
    "units named twice": (lambda n, w: (n, "body.0", w), {"units": [3, 3]}, "each once"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_is_one_clear_error_and_leaves_nothing(what, tmp_path):
    make, more, told = BAD[what]
    torch.manual_seed(3)
    with pytest.raises(ValueError, match=re.escape(told)):
        harvis_utils.explain(*make(*subject()), tmp_path / "page", **FAST, **more)
    assert not (tmp_path / "page").exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(HarvisError, match="holds other files"):
        explained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["null", "[]", "{}", '{"asked": null}'])
def test_a_folder_whose_description_is_of_no_page_is_left_alone(content, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "explanation.json").write_text(content)
    with pytest.raises(HarvisError, match=re.escape(f"{tmp_path / 'page' / 'explanation.json'} is that of no page")):
        explained("~/page")
    assert (tmp_path / "page" / "explanation.json").read_text() == content


def test_a_channel_without_movement_is_named():
    network, windows = subject(3, 40, 1.0, "V")
    series = windows.train.series.copy()
    series[:, 1] = 2.0
    still = dataclasses.replace(windows, train=dataclasses.replace(windows.train, series=series))
    with pytest.raises(ValueError, match="no scale without movement: place 0 y constant or NaN; leave that out"):
        looking.looked(network, "body.0", still)


def test_a_place_that_no_gradient_reaches_is_told_and_the_rest_is_there(tmp_path):
    network, windows = subject()

    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.of = network

        def forward(self, x):
            return self.of(x.detach())

    made = harvis_utils.explain(Cut(), "of.body.3", windows, tmp_path / "page", units=[0, 1], **FAST)
    text, about = made.read_text(encoding="utf-8"), json.loads((made.parent / "explanation.json").read_text())
    assert {METHOD, "likeliest trigger", "deconvnet", "gradient"} <= set(about["refused"])
    assert "no gradient leads" in about["refused"][METHOD] and "no gradient leads" in text
    assert {"thresholds", "signals", "measures", "silenced", "covered"} <= set(tables_of(made.parent))
    assert "The paper's method could not make signals" in words_of(text)


def test_values_in_another_unit_are_scaled_and_labelled(tmp_path):
    """The same network, told of the same data in another unit, has the same signals in that unit."""
    network, windows = subject(unit="deg/s", factor=50.0)
    made = harvis_utils.explain(network, "body.0", windows, tmp_path / "page", units=[1, 4], **FAST)
    text, tables = made.read_text(encoding="utf-8"), tables_of(made.parent)
    assert text.count("own data, not verified; place 0 in deg/s, not G") > 8 and " deg/s</text>" in text
    assert "0.05 of two standard deviations" in words_of(text) and "concepts of waveforms" in text
    x = tables["waves"].set_index(["signal", "unit", "axis"]).loc[METHOD].to_numpy().reshape(2, 3, -1)
    sigma = 2 * windows.train.series.astype(float).std(0)
    own = tables["signals"].set_index(["signal", "unit"]).loc[METHOD, "range"]
    assert own.to_numpy() == pytest.approx((np.ptp(x, axis=2) / sigma).max(1), rel=1e-3)
    assert set(tables["concepts"]["concept"]) <= {"rest", "sway", "shake"}


def test_further_outputs_are_wrong_answers_and_not_a_reason_to_stop():
    network, windows = subject()
    own, more = looking.judged(network, windows), looking.judged(with_more_outputs(network, 0, 4), windows)
    assert own == more and own["train"]["windows"] > 0.9
    wrong = looking.judged(shifted(network), windows, even_untrained=True)
    assert wrong["train"]["windows"] == wrong["train"]["mean"] == 0.0
    assert looking.judged(network.body, windows) == {}, "what gives no scores cannot be asked"


def test_windows_on_another_scale_than_the_network_was_trained_on_are_doubted(tmp_path):
    """Values smaller than the network was trained on: the call and the page say so; of its own windows nobody does."""
    network, windows = subject()

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.of = network

        def forward(self, x):
            return self.of(0.35 * x)

    with pytest.warns(UserWarning, match=r"tells only 72% .* place 0 in G .* was it trained on m/s"):
        made = harvis_utils.explain(Scaled(), "of.body.0", windows, tmp_path / "page", units=[1, 4], **FAST)
    text = made.read_text(encoding="utf-8")
    assert '<p id="doubt">' in text and text.index('id="doubt"') < text.index('<p id="words">')
    with warnings.catch_warnings(action="error"):
        own = explained(tmp_path / "own", units=[1, 4])
    assert '<p id="doubt">' not in own.read_text(encoding="utf-8")


def test_axes_are_drawn_by_level_too_and_those_left_out_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(one_page, "N_DRAWN", 2)
    text = posture(tmp_path / "page").read_text(encoding="utf-8")
    drawn = re.findall(r'<b style="color: [^"]*">([^<]*)</b>', text.split('id="pictures"')[1].split("<h3>")[0])
    assert "place 0 z" in drawn and len(drawn) == 2
    (left,) = {f"place 0 {one}" for one in "xyz"} - set(drawn)
    assert f"<dt>not drawn</dt><dd>{left}: " in text


@pytest.mark.parametrize(("n_axes", "length"), [(3, 20), (9, 1000)])
def test_short_and_long_windows(n_axes, length, tmp_path):
    network, windows = subject(n_axes, length, unit="V")
    made = harvis_utils.explain(network, "last conv", windows, tmp_path / "page", units=[0, 1, 5], **FAST)
    about = json.loads((made.parent / "explanation.json").read_text())
    assert set(about["refused"]) <= {"atlas", "deconvnet"} and about["place"] == "body.3"
    assert made.stat().st_size < 3e6 and len(tables_of(made.parent)["waves"].columns) == 3 + length


def test_the_last_convolution_is_the_one_that_runs_last_and_units_are_behind_their_rectifier():
    network, windows = subject()
    assert looking.looked(network, "last conv", windows).name == "body.3"
    assert looking.looked(network, "body.0", windows).tap.rectified
    raw = looking.looked(network, taps.find(network, "body.0"), windows)
    assert not raw.tap.rectified and raw.key != looking.looked(network, "body.0", windows).key
    assert looking.looked(network, "body.0", windows).width == 5
    assert looking.looked(network, "last conv", windows).width == 10  # 3 pooled pairs of 5 samples


def test_the_address_holds_weights_place_and_windows():
    network, windows = subject()
    key = looking.looked(network, "body.0", windows).key
    assert key == looking.looked(network, "body.0", windows).key
    other = OneD(3, 3)
    other.load_state_dict(network.state_dict())
    assert looking.looked(other.eval(), "body.0", windows).key == key
    with torch.no_grad():
        other.out.bias[0] += 1e-6
    assert looking.looked(other, "body.0", windows).key != key
    assert looking.looked(network, "body.0", windows.every(2)).key != key


class Behind(nn.Module):
    """A network's scores as another one's, by what is done behind its convolutions."""

    def __init__(self, network: nn.Module, change):
        super().__init__()
        self.of, self._change = network, change

    def forward(self, x):
        return self._change(self.of(x))


def test_the_address_holds_what_the_network_does_behind_the_place():
    network, windows = subject()
    mask = torch.tensor([1.0, 0.0, 1.0])
    changes = [lambda y: y, lambda y: y * mask, lambda y: y.roll(1, 1), lambda y: y * 1.001, lambda y: (y, y.argmax(1))]
    changes += [lambda y: {"scores": y, "told": y.argmin(1)}, lambda y: y + torch.randn_like(y)]
    keys = [looking.looked(Behind(network, change), "of.body.0", windows).key for change in changes]
    assert len(set(keys)) == len(changes)
    assert keys[-1] == looking.looked(Behind(network, changes[-1]), "of.body.0", windows).key, "chance is no change"
    rounded = Behind(network, lambda y: y * (1 + 1e-7))
    assert looking.looked(rounded, "of.body.0", windows).key == keys[0]


def test_the_package_alone_stays_light():
    asked = (
        "import sys, harvis_utils; print('torch' in sys.modules, 'numpy' in sys.modules, harvis_utils.explain.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "explain"]
    with pytest.raises(AttributeError, match="no attribute 'explainn'"):
        harvis_utils.explainn  # noqa: B018


def test_no_peak_of_a_long_curve_is_lost_in_a_small_picture():
    curve = np.zeros(5000)
    curve[[17, 3210]] = 3.0, -2.0
    points = [tuple(map(float, point.split(","))) for point in page._polyline(curve, 4.0).split()]
    times, heights = zip(*points, strict=True)
    assert len(points) <= 400 and {17.0, 3210.0} <= set(times) and list(times) == sorted(times)
    middle = max(set(heights), key=heights.count)
    assert min(heights) < middle < max(heights)


# ---------------------------------------------------------------------------------------------------- in a browser


def test_the_page_opens_without_an_error_or_a_request_and_fits_small_screens(browser, tmp_path):
    made = explained(tmp_path / "page")
    browser.get_log("performance")
    browser.get(made.as_uri())
    cards = json.loads(browser.execute_script("return document.getElementById('content').textContent"))["cards"]
    assert cards == [f"body.3-{unit}" for unit in (0, 3, 5, 7, 8, 11)]
    for key in cards:
        browser.execute_script("location.hash = arguments[0]", key)
        (shown,) = browser.find_elements("css selector", "#card article")
        assert shown.get_attribute("id") == f"card-{key}" and shown.is_displayed()
    screen = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    log = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [of["params"]["request"]["url"] for of in log if of["method"] == "Network.requestWillBeSent"]
    assert asked and all(url.startswith((made.as_uri(), "data:")) for url in asked)
