"""How far a layer's output moves when a window is shifted, stretched, strengthened, or its sensors are turned.

Zeiler and Fergus (2014) moved, scaled and rotated pictures and saw the first layer change at once and the last one
little. Here distances are shares of the distance to the same window with another one's movement, for the input too: a
layer is invariant as far as it moves less than its input, and random weights tell how much of that is built in. The
means stay, because gravity differs most between windows and would make every change of a movement look small.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.lenses.concepts import whole_sensors
from harvis_utils.networks import taps
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import Network

#: Choice: how much of each change
AMOUNTS = {
    "shift [samples]": (1, 2, 4, 8),
    "tempo [times]": (1.05, 1.1, 1.25, 1.5),
    "strength [times]": (1.1, 1.25, 1.5, 2.0),
    "turn about gravity [degrees]": (10, 30, 90, 180),
}
SHIFT, TEMPO, STRENGTH, TURN = AMOUNTS
#: the input, and by their places what the last layer gets and gives
INPUT, FEATURES, SCORES = "input", "last features", "class scores"
ENDS = {"dropout": FEATURES, "classes": SCORES}


def surrounded(split: Split, n: int) -> np.ndarray:
    """At most ``n`` windows spread evenly, with as much of their recordings on both sides as the windows' step.

    (window, axis, time). Windows at the end of a recording are left out, so that nothing is made up beyond it; raises
    ``ValueError`` where no others are left, or the step is too short for ``AMOUNTS``.
    """
    same = split.recording[1:] == split.recording[:-1]
    inner = np.flatnonzero(same[1:] & same[:-1]) + 1
    if not len(inner):
        raise ValueError("no window has another one before and behind it in its recording")
    chosen = inner[np.unique(np.linspace(0, len(inner) - 1, min(n, len(inner))).astype(int))]
    more, needed = int(np.diff(split.offset)[same].min()), max(*AMOUNTS[SHIFT], -(-split.length // 4))
    if more < needed:
        raise ValueError(f"changes need {needed} samples on both sides, the step between windows is {more}")
    views = np.lib.stride_tricks.sliding_window_view(split.series, split.length + 2 * more, axis=0)
    return views[split.start[chosen] - more]


def changed(
    surrounded: np.ndarray, length: int, change: str, amount: float, sensors: Sequence[Sequence[int]]
) -> np.ndarray:
    """The middle ``length`` samples of windows (window, axis, time) after one of ``AMOUNTS``' changes; 0 or 1 is none.

    A shift and another tempo show what the recording really has there. Each of the ``sensors``, three axes as indices,
    is turned about its mean over the window, which is mostly gravity; other axes stay.
    """
    before = (surrounded.shape[2] - length) // 2
    x = surrounded[:, :, before : before + length]
    if change == SHIFT:
        return surrounded[:, :, before + int(amount) : before + int(amount) + length]
    if change == TEMPO:
        middle = before + (length - 1) / 2
        at = middle + (np.arange(length) - (length - 1) / 2) * amount
        low = np.minimum(at.astype(int), surrounded.shape[2] - 2)
        return surrounded[..., low] + (surrounded[..., low + 1] - surrounded[..., low]) * (at - low)
    mean = x.mean(2, keepdims=True)
    if change == STRENGTH:
        return mean + amount * (x - mean)
    of_sensors = x[:, np.array(sensors)]
    up = of_sensors.mean(3, keepdims=True)
    up = up / np.maximum(np.linalg.norm(up, axis=2, keepdims=True), 1e-9)
    along, angle = up * (up * of_sensors).sum(2, keepdims=True), np.deg2rad(amount)
    turned = x.copy()
    turned[:, np.array(sensors)] = (
        along + np.cos(angle) * (of_sensors - along) + np.sin(angle) * np.cross(up, of_sensors, axis=2)
    )
    return turned


@kept("invariance")
def distances(network: Network, windows: Windows, n: int) -> pd.DataFrame:
    """How far ``n`` test windows move under every change and amount: one row for each layer.

    ``distance`` is the mean Euclidean distance of a layer's output before and after, as a share of the mean distance
    to the window with the movement, what is left without the means, of the one a third of all windows further; ``input
    distance`` that of the input; ``same class`` the share of windows whose most probable class stays. Where no
    sensor has three axes, none is turned.
    """
    long, length, sensors = surrounded(windows.test, n), windows.test.length, whole_sensors(windows.axes)

    def outputs(x: np.ndarray) -> dict[str, Tensor]:
        x = torch.as_tensor(np.ascontiguousarray(x, dtype=np.float32))
        chunks = list(taps.chunks(network.model, [*network.model.layers, *ENDS], x))
        found = {ENDS.get(name, name): torch.cat([of[name] for of in chunks]) for name in chunks[0]}
        return {name: of.flatten(1) for name, of in ({INPUT: x} | found).items()}

    def moved(found: dict[str, Tensor]) -> pd.Series:
        return pd.Series({name: float((of - plain[name]).norm(dim=1).mean()) for name, of in found.items()})

    x, rows = changed(long, length, SHIFT, 0, sensors), []
    plain, mean = outputs(x), x.mean(2, keepdims=True)
    unrelated = moved(outputs(mean + np.roll(x - mean, -(-len(x) // 3), 0)))
    kinds = {change: amounts for change, amounts in AMOUNTS.items() if sensors or change != TURN}
    for change, amount in ((change, amount) for change, amounts in kinds.items() for amount in amounts):
        found = outputs(changed(long, length, change, amount, sensors))
        shares = moved(found) / unrelated
        stays = float((found[SCORES].argmax(1) == plain[SCORES].argmax(1)).double().mean())
        about = {"change": change, "amount": amount, "input distance": shares[INPUT], "same class": stays}
        rows += [about | {"layer": name, "distance": of} for name, of in shares.items()]
    return pd.DataFrame(rows)


def invariances(found: pd.DataFrame) -> pd.DataFrame:
    """How much less than the input each layer moves, one row per network, change and layer, from :func:`distances`.

    ``found`` has the columns "network" (a kind) and "seed" too. ``invariance`` is 1 less the distance over that of the
    input, the mean over amounts: 0 moves as the input does, 1 stays where it was.
    """
    own = found[found["layer"] != INPUT]
    own = own.assign(invariance=1 - own["distance"] / own["input distance"])
    return own.groupby(["network", "change", "layer", "seed"], sort=False)["invariance"].mean().reset_index()
