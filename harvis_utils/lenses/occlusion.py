"""Parts of a window covered, one after another: what the class and the strongest unit lose (Zeiler and Fergus 2014).

An occluder covers a stretch of time of one axis, or of all axes of one sensor. A grey square says nothing in a picture;
zero says "free fall" to an accelerometer, so that the cover's value is a choice of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor, nn

from harvis_utils.data.kinds import sensors_of
from harvis_utils.data.windowing import Split, Windows
from harvis_utils.lenses import deconvnet
from harvis_utils.metrics.intervals import with_interval
from harvis_utils.metrics.similarity import correlation
from harvis_utils.networks import taps
from harvis_utils.networks.sfhf import known
from harvis_utils.networks.taps import Tap
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import Network

#: what stands in the covered samples: the axis' own mean over the window, a straight line between the samples beside
#: the cover (at the window's edge, the one that is there), or 0 G
FILLS = ("mean", "line", "zero")
#: covered windows pushed through a network at once
BATCH = 1024


@dataclass(frozen=True)
class Occluder:
    """``width`` samples (odd) centred on a sample, cut at the window's edges, filled with one of ``FILLS``."""

    width: int = 3
    fill: str = "mean"

    def __post_init__(self) -> None:
        if self.width < 1 or self.width % 2 == 0:
            raise ValueError(f"an occluder of width {self.width} has no middle sample; use 1, 3, 5, ...")
        known("fill", self.fill, FILLS)

    @property
    def name(self) -> str:
        """Width and fill in words."""
        return f"{self.width} sample{'s' if self.width > 1 else ''}, {self.fill}"


def by_axis(n_axes: int) -> dict[str, tuple[int, ...]]:
    """Every axis covered by itself."""
    return {str(axis): (axis,) for axis in range(n_axes)}


def by_sensor(axes: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """All axes of a sensor covered together: "right arm x" belongs to the sensor "right arm"."""
    return {sensor or "all axes": of for sensor, of in sensors_of(axes).items()}


def covered(x: Tensor, axes: Sequence[int], centre: int, occluder: Occluder) -> Tensor:
    """Windows (window, axis, time) with the occluder centred on one sample of the given axes; ``x`` is left alone."""
    length = x.shape[2]
    low, high = max(0, centre - occluder.width // 2), min(length, centre + occluder.width // 2 + 1)
    chosen = x[:, list(axes)]
    if occluder.fill == "mean":
        value = chosen.mean(2, keepdim=True).expand(-1, -1, high - low)
    elif occluder.fill == "zero":
        value = chosen.new_zeros((*chosen.shape[:2], high - low))
    elif high - low == length:
        raise ValueError(f"an occluder of {occluder.width} samples leaves no sample of {length} to draw a line from")
    else:
        left, right = chosen[:, :, low - 1 if low else high], chosen[:, :, high if high < length else low - 1]
        share = torch.arange(1, high - low + 1, device=x.device) / (high - low + 1)
        value = left[:, :, None] + (right - left)[:, :, None] * share
    changed = x.clone()
    changed[:, list(axes), low:high] = value
    return changed


def log_odds(scores: Tensor, classes: Tensor) -> Tensor:
    """log(p / (1 - p)) of one class per window, (window,), float64, from scores (window, class).

    The probability rounds to 1 where a network is sure, and all drops to 0; the log odds do not, and rank the same.
    """
    scores = scores.double()
    own = scores.gather(1, classes[:, None])
    others = scores.scatter(1, classes[:, None], -torch.inf)
    return own[:, 0] - torch.logsumexp(others, 1)


def drops(
    network: nn.Module,
    x: np.ndarray | Tensor,
    classes: Sequence[int],
    groups: dict[str, tuple[int, ...]],
    occluder: Occluder,
    tap: str | Tap | None = None,
    every: int = 1,
) -> xr.Dataset:
    """What is lost as the occluder's centre moves over every time step and group of axes: dims (window, group, time).

    Of long windows it can stand on ``every`` n-th step alone, which ``time`` says.

    ``log_odds`` and ``probability`` of each window's class in ``classes``; with a ``tap`` also ``unit`` (window,), the
    strongest in the whole window, and its ``activity``: the sum of its map, behind the ReLU where one follows, as a
    share of what it was (Paper: that of the strongest map of the top convolution; NaN where it was 0). The network is
    used in evaluation mode and left as it was. Raises ``ValueError`` for an unknown layer, listing the valid ones, a
    class or an axis that there is not, and a network that gives no class scores.
    """
    x = taps.as_windows(network, x)
    tap = None if tap is None else taps.behind(network, tap, x)
    classes = torch.as_tensor(np.asarray(classes), dtype=torch.int64, device=x.device)
    if len(classes) != len(x) or max(max(axes) for axes in groups.values()) >= x.shape[1]:
        raise ValueError(f"a class for each of {len(x)} windows and groups of their {x.shape[1]} axes are wanted")
    centres = range(0, x.shape[2], every)
    n_at_once = max(1, BATCH // len(centres))
    with taps.evaluating(network), torch.no_grad():
        batches = zip(x.split(n_at_once), classes.split(n_at_once), strict=True)
        parts = [_drops(network, some, wanted, groups, occluder, tap, centres) for some, wanted in batches]
    found = {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}
    dims = ("window", "group", "time")
    coords = {"group": list(groups)} | ({"time": list(centres)} if every > 1 else {})
    return xr.Dataset({name: (dims[: of.ndim], of) for name, of in found.items()}, coords)


def labels(
    network: nn.Module, x: np.ndarray | Tensor, groups: dict[str, tuple[int, ...]], occluder: Occluder
) -> xr.Dataset:
    """The most probable class as the occluder's centre moves over every time step and group: (window, group, time).

    A dataset of ``label`` and its ``probability``, and ``before`` (window,), the most probable one of the whole window.
    Raises ``ValueError`` for a network that gives no class scores.
    """
    x, found = taps.as_windows(network, x), []
    with taps.evaluating(network), torch.no_grad():
        before = taps.scores_of(network, x).argmax(1)
        for axes in groups.values():
            covers = (covered(x, axes, t, occluder) for t in range(x.shape[2]))
            found.append(torch.stack([torch.stack(taps.scores_of(network, c).softmax(1).max(1)) for c in covers]))
    most, which = torch.stack(found).permute(2, 3, 0, 1).cpu().numpy()  # (probability and class, window, group, time)
    dims = ("window", "group", "time")
    found = {"label": (dims, which.astype(int)), "probability": (dims, most), "before": ("window", before.cpu())}
    return xr.Dataset(found, {"group": list(groups)})


def _drops(
    network, x: Tensor, classes: Tensor, groups, occluder: Occluder, tap, centres: Sequence[int]
) -> dict[str, Tensor]:
    """:func:`drops` of one batch of windows."""
    odds, maps = _answers(network, x, classes, tap)
    unit = None if maps is None else maps.argmax(1)
    length, found = len(centres), {}
    for axes in groups.values():  # one batch of all centres, (time * window, axis, time)
        covers = torch.cat([covered(x, axes, t, occluder) for t in centres])
        after, sums = _answers(network, covers, classes.repeat(length), tap)
        after = after.view(length, -1)
        found.setdefault("log_odds", []).append(odds - after)
        found.setdefault("probability", []).append(torch.sigmoid(odds) - torch.sigmoid(after))
        if maps is not None:
            before = maps.gather(1, unit[:, None])[:, 0]
            now = sums.gather(1, unit.repeat(length)[:, None]).view(length, -1)
            found.setdefault("activity", []).append(torch.where(before > 0, (before - now) / before, torch.nan))
    found = {name: torch.stack(of).permute(2, 0, 1) for name, of in found.items()}  # (window, group, time)
    return found if unit is None else found | {"unit": unit}


def _answers(network: nn.Module, x: Tensor, classes: Tensor, tap: str | Tap | None) -> tuple[Tensor, Tensor | None]:
    """Log odds (window,) and, with a tap, the activity of every unit: the sum of its map, (window, unit)."""
    with taps.record(network, [] if tap is None else [tap]) as maps:
        scores = taps.scores_of(network, x)
    if not 0 <= int(classes.min()) <= int(classes.max()) < scores.shape[1]:
        raise ValueError(f"the network has classes 0 to {scores.shape[1] - 1}, not {sorted(set(classes.tolist()))}")
    return log_odds(scores, classes), next((m.double().sum((2, 3)) for m in maps.values()), None)


def peaks(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each map (window, group, time) is largest: group and time, (window,) each; the earliest of equals."""
    return np.unravel_index(maps.reshape(len(maps), -1).argmax(1), maps.shape[1:])


def classified(judge: Network, windows: Windows, name: str, n: int) -> tuple[np.ndarray, Split]:
    """At most ``n`` windows of a split that ``judge`` classifies correctly, spread evenly: indices, and the split."""
    split = getattr(windows, name)
    correct = np.flatnonzero(judge.predicted[name] == split.activity)
    return correct[np.unique(np.linspace(0, len(correct) - 1, min(n, len(correct))).astype(int))], split


@kept("occlusion")
def covering(judge: Network, network: Network, windows: Windows, occluder: Occluder, n: int) -> xr.Dataset:
    """:func:`drops` over every axis and every sensor, and what the strongest unit's projection says of it.

    ``n`` test windows that ``judge`` classifies correctly (:func:`classified`); ``network`` is what is looked at: the
    judge, or one with random weights. Groups are the axes, then the sensors. Beside the drops: ``window`` (index into
    the split), ``activity_class``, ``projection`` (window, axis, time), deconvnet from the strongest unit's whole map.
    """
    chosen, split = classified(judge, windows, "test", n)
    x, y, layer = split.x[chosen], split.activity[chosen], network.model.layers[-1]
    groups = {name: (axis,) for axis, name in enumerate(windows.axes)} | by_sensor(windows.axes)
    found = drops(network.model, x, y, groups, occluder, layer)
    projection = deconvnet.project(network.model, layer, x, deconvnet.places(found["unit"].values))
    found["projection"] = (("window", "axis", "time"), projection.numpy())
    return found.assign_coords(window=chosen, activity_class=("window", y))


def sensor_costs(covered: Mapping[str, Sequence[xr.Dataset]], windows: Windows) -> pd.DataFrame:
    """Mean drop of the log odds by covered sensor (column), for each kind of :func:`covering` and number of a class."""
    sensors, costs = list(by_sensor(windows.axes)), {}
    for kind, of in covered.items():
        each = [
            one["log_odds"].sel(group=sensors).mean("time").to_pandas().set_axis(one["activity_class"]) for one in of
        ]
        costs[kind] = pd.concat(each).groupby(level=0).mean().reindex(range(len(windows.activities)))
    return pd.concat(costs, names=["network", "class"])


def elsewhere(recording: np.ndarray) -> np.ndarray:
    """For each window, (window,), the number of one of another recording, or of its own where no other is left.

    Choice: another recording, because neighbours in one overlap and are alike; windows are shifted by as many as the
    longest recording has.
    """
    order, other = np.argsort(recording, kind="stable"), np.empty(len(recording), int)
    other[order] = np.roll(order, np.unique(recording, return_counts=True)[1].max())
    return other


def agreement(found: xr.Dataset, axes: Sequence[str], width: int, recording: np.ndarray) -> dict[str, np.ndarray]:
    """Does covering cost the strongest unit most where its projection is large? Correlations per window, (window,).

    "own projection": Pearson correlation over axes and time of the drop of the unit's activity with its projection
    (absolute, summed over what the occluder of ``width`` covers); "other projection": with that of a window of another
    recording (:func:`elsewhere`), which tells how much is the same in every window. NaN where one of them is constant,
    or no other recording is left.
    """
    padded = np.pad(np.abs(found["projection"].values), ((0, 0), (0, 0), (width // 2, width // 2)))
    size = np.lib.stride_tricks.sliding_window_view(padded, width, axis=2).sum(-1)
    lost = found["activity"].sel(group=list(axes)).transpose("window", "group", "time").values
    lost, size, other = lost.reshape(len(lost), -1), size.reshape(len(size), -1), elsewhere(recording)
    of_others = np.where(recording[other] != recording, correlation(lost, size[other]), np.nan)
    return {"own projection": correlation(lost, size), "other projection": of_others}


def agreement_table(covered: Mapping[str, Sequence[xr.Dataset]], windows: Windows, width: int) -> pd.DataFrame:
    """:func:`agreement` of several kinds of networks' :func:`covering`, with intervals: one row per kind."""
    rows: dict = {kind: {} for kind in covered}
    for kind, of in covered.items():
        found = [agreement(one, windows.axes, width, windows.test.recording[one["window"].values]) for one in of]
        for name in found[0]:
            rows[kind] |= with_interval(name, pd.DataFrame([pd.Series(one[name]) for one in found]))
    return pd.DataFrame.from_dict(rows, "index")
