"""Real windows turned into dreams of another class and into the smallest changes that reach it, side by side.

Both start from the same window and climb the score of the same class: the one that the smallest change leads to. What
they become is judged by the network itself, by the other networks, which were trained on the same windows, and by the
learned prior, which knows windows only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import xarray as xr

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.lenses import flips
from harvis_utils.maximization import coordinates, objectives, priors, visualization
from harvis_utils.metrics.intervals import interval
from harvis_utils.parallel import progress
from harvis_utils.settings import Settings
from harvis_utils.store import stages
from harvis_utils.store.files import read_dataset, write_dataset
from harvis_utils.training.supervised import Network

STAGE = stages.Stage(
    "dreams",
    notebook="10_visualization",
    modules=(
        *(
            "data.windowing",
            "networks.sfhf",
            "maximization.paper_methods",
            "networks.taps",
            "networks.backward",
            "maximization.objectives",
        ),
        *(
            "maximization.coordinates",
            "maximization.transforms",
            "maximization.visualization",
            "maximization.priors",
            "lenses.flips",
        ),
        "lenses.dreams",
    ),
)

FLIPS = stages.Stage(
    "flips", notebook="10_visualization", modules=("data.windowing", "networks.sfhf", "networks.taps", "lenses.flips")
)

#: what becomes of a window
VARIANTS = {
    "window": "the real window",
    "smallest change": "the nearest point found beyond the border to another class",
    "noise of that size": "white noise as large as the smallest change",
    "dream": "ascent of the other class's score",
    "dream with prior": "the same, every step followed by one of denoising",
    "noise as large as the dream": "white noise as large as the dream's change",
}


@dataclass(frozen=True)
class DreamSettings:
    """Choice."""

    n_windows: int = 24
    n_steps: int = 100
    step_size: float = 0.03
    prior_rate: float = 0.1
    seed: int = 0


#: by profile
SETTINGS = {"quick": DreamSettings(n_windows=12, n_steps=50), "desk": DreamSettings(), "paper": DreamSettings()}


def choose(networks: Sequence[Network], split: Split, n: int, seed: int = 0) -> np.ndarray:
    """``n`` windows that every network classifies correctly, as many of each class as can be: indices, ascending.

    Raises ``ValueError`` where there are not as many.
    """
    order = np.random.default_rng(seed).permutation(len(split))[: 100 * n]
    right = np.stack([flips.predicted(net.model, split.x[order]) == split.activity[order] for net in networks])
    order = order[right.all(0)]
    if len(order) < n:
        raise ValueError(f"{n} windows that all networks classify correctly are wanted, but {len(order)} were found")
    activity = split.activity[order]
    turn = np.empty(len(order), int)  # how many windows of its class come before each
    for a in np.unique(activity):
        turn[activity == a] = np.arange((activity == a).sum())
    return np.sort(order[np.argsort(turn, kind="stable")[:n]])


def dream(network: Network, windows: Windows, x: np.ndarray, settings: DreamSettings, denoiser) -> xr.Dataset:
    """All :data:`VARIANTS` of windows (window, axis, time), dims (variant, window, axis, time).

    ``before`` and ``after`` (window,) are the classes of the window and beyond the border.
    """
    flipped = flips.smallest_change(network.model, x)
    bound = visualization.amplitude_bound(windows.train, 1.0)
    found = {"window": x, "smallest change": flipped.signal}
    for name, of_prior in (("dream", None), ("dream with prior", denoiser)):
        made = visualization.visualize(
            network.model,
            objectives.class_score(flipped.after.tolist()),
            x,
            coordinates.in_frequency(x.shape[2], bound),
            prior=of_prior,
            prior_rate=settings.prior_rate,
            n_steps=settings.n_steps,
            step_size=settings.step_size,
            seed=settings.seed,
        )
        found[name] = made.signal
    sizes = {"noise of that size": "smallest change", "noise as large as the dream": "dream"}
    for k, (name, of) in enumerate(sizes.items()):
        change = flips.random_change(x.shape, flips.rms(found[of] - x), settings.seed + network.seed + k)
        found[name] = x + change
    signal = np.stack([found[name] for name in VARIANTS]).astype(np.float32)
    return xr.Dataset(
        {
            "signal": (("variant", "window", "axis", "time"), signal),
            "before": ("window", flipped.before),
            "after": ("window", flipped.after),
        },
        coords={"variant": list(VARIANTS)},
    )


def dreams(
    cfg: Settings, windows: Windows, networks: Sequence[Network], chosen: np.ndarray, denoiser: priors.Denoiser
) -> xr.Dataset:
    """:func:`dream` of chosen test windows for all networks, dims (seed, variant, window, axis, time).

    One stored result per network.
    """
    settings = SETTINGS[cfg.profile]
    stacked = []
    for net in progress(networks, desc="dreams", leave=False):

        def build(folder, net=net) -> None:
            made = dream(net, windows, np.ascontiguousarray(windows.test.x[chosen]), settings, denoiser)
            write_dataset(folder / "dreams.nc", made)

        about = stages.provenance(cfg, data=windows.digest, caveat=windows.caveat, seed=net.seed)
        of_prior = priors.key(cfg, windows, priors.SETTINGS[cfg.profile])
        key = STAGE.key([cfg.windows, settings, chosen.tolist()], windows.digest, net.key, of_prior)
        folder = STAGE.obtain(key, build, about)
        stacked.append(read_dataset(folder / "dreams.nc").expand_dims(seed=[net.seed]))
    return xr.concat(stacked, "seed")


def smallest_changes(cfg: Settings, windows: Windows, networks: Sequence[Network], chosen: np.ndarray) -> np.ndarray:
    """Size in G RMS of the smallest change found for chosen test windows: (network, window), NaN where none was found.

    One stored result per network. Networks with random weights are the control for trained ones.
    """

    def folder(net: Network):
        def build(part) -> None:
            found = flips.smallest_change(net.model, np.ascontiguousarray(windows.test.x[chosen]))
            write_dataset(part / "flips.nc", xr.Dataset({"rms_g": ("window", found.rms_g)}))

        about = stages.provenance(cfg, data=windows.digest, caveat=windows.caveat, seed=net.seed)
        return FLIPS.obtain(FLIPS.key([cfg.windows, chosen.tolist()], windows.digest, net.key), build, about)

    return np.stack([read_dataset(folder(net) / "flips.nc")["rms_g"].values for net in networks])


def measures(networks: Sequence[Network], made: xr.Dataset, denoiser: priors.Denoiser) -> xr.Dataset:
    """What became of the windows, dims (seed, variant, window).

    ``size_g``: root mean square of the change in G. ``own``: whether the network itself sees the class the smallest
    change led to, ``others``: the share of the other networks that do (NaN where there are none). ``unreal_g``: root
    mean square in G of what the prior would change, ``along``: cosine between the change and the smallest change.
    Windows for which no flip was found are NaN.
    """
    x = made["signal"].transpose("seed", "variant", "window", "axis", "time").values
    shape, after = x.shape[:3], made["after"].transpose("seed", "window").values
    flat = x.reshape(-1, *x.shape[3:])
    seen = np.stack([flips.predicted(net.model, flat).reshape(shape) for net in networks])  # (network, seed, ...)
    as_after = seen == after[:, None]
    own = np.stack([as_after[i, i] for i in range(len(networks))]).astype(float)
    others = (as_after.sum(0) - own) / (len(networks) - 1) if len(networks) > 1 else np.full(shape, np.nan)
    with torch.no_grad():
        cleaned = denoiser(torch.tensor(flat)).numpy()
    change = x - x[:, [list(VARIANTS).index("window")]]
    small = change[:, [list(VARIANTS).index("smallest change")]]
    norms = np.sqrt((change**2).sum((3, 4)) * (small**2).sum((3, 4)))
    values = {
        "size_g": flips.rms(change.reshape(flat.shape)).reshape(shape),
        "own": own,
        "others": others,
        "unreal_g": flips.rms(cleaned - flat).reshape(shape),
        "along": np.where(norms > 0, (change * small).sum((3, 4)) / np.where(norms > 0, norms, 1), np.nan),
    }
    missed = (after == made["before"].transpose("seed", "window").values)[:, None] & np.ones(shape, bool)
    dims = ("seed", "variant", "window")
    return xr.Dataset(
        {name: (dims, np.where(missed, np.nan, v)) for name, v in values.items()},
        coords={"seed": made["seed"].values, "variant": made["variant"].values},
    )


def table(measured: xr.Dataset) -> pd.DataFrame:
    """Mean and interval of every measure for each variant, over networks and windows: one row each."""
    rows = []
    for name in measured["variant"].values:
        row: dict = {"variant": str(name), "networks": measured.sizes["seed"]}
        for column in measured.data_vars:
            values = measured[column].sel(variant=name).transpose("seed", "window").values
            point, bounds = interval(values)
            low, high = bounds or (np.nan, np.nan)
            row |= {str(column): point, f"{column} low": low, f"{column} high": high}
        rows.append(row)
    return pd.DataFrame(rows).set_index("variant")
