"""Networks dissected, with the basis of their units as it is or rotated, and ablated: one stored result per network.

The baselines of network dissection are the same networks with random weights, and rotated bases (Bau, Zhou et al. 2017,
section 3.2).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.lenses import ablation, dissection, rotation
from harvis_utils.lenses.concepts import Concepts
from harvis_utils.networks import taps
from harvis_utils.networks.sfhf import SFHF
from harvis_utils.parallel import side_by_side, torch_device
from harvis_utils.settings import Settings
from harvis_utils.store import stages
from harvis_utils.store.files import read_dataset, write_dataset
from harvis_utils.training.supervised import Network

_MODULES = ("windows", "models.sfhf", "training", "lenses.taps", "lenses.concepts", "lenses.dissection")
STAGE = stages.Stage(
    "dissection", notebook="11_dissection", modules=(*_MODULES, "lenses.rotation", "lenses.dissection_runs")
)
ABLATION = stages.Stage(
    "ablation", notebook="11_dissection", modules=(*_MODULES, "lenses.ablation", "lenses.dissection_runs")
)


@dataclass(frozen=True)
class DissectionSettings:
    """How many windows, draws, angles and small networks."""

    thinning: int = 30  # every n-th training window is dissected: thinned windows share no samples
    n_draws: int = 39  # draws of each null; a 95 % point needs 19
    angles: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)  # alpha of Q^alpha; each network has a Q of its own
    ablation_thinning: int = 40  # every n-th test window
    factor_thinning: int = 10  # every n-th window of all splits, for the small networks
    factor_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    widths: tuple[int, ...] = (4, 8, 32)  # beside the base's
    n_permutations: int = 999  # of whether concepts explain effects


SETTINGS: dict[str, DissectionSettings] = {
    "quick": DissectionSettings(
        thinning=6,
        n_draws=19,
        angles=(0.0, 0.5, 1.0),
        ablation_thinning=4,
        factor_thinning=1,
        factor_seeds=(0,),
        widths=(4,),
    ),
    "desk": DissectionSettings(),
    "paper": DissectionSettings(thinning=10, ablation_thinning=5),
}


def dissected_windows(windows: Windows, settings: DissectionSettings) -> Split:
    """The training windows that are dissected."""
    return windows.train.every(settings.thinning)


def dissect(
    cfg: Settings,
    windows: Windows,
    networks: Sequence[Network],
    concepts: Concepts,
    settings: DissectionSettings,
    alpha: float = 0.0,
) -> xr.Dataset:
    """All layers of all networks dissected, as :func:`dissection.dissect` does: dims (seed, layer, unit, ...).

    ``concepts`` are those of :func:`dissected_windows`; ``alpha`` is how far each layer's basis is rotated, towards a
    rotation that depends on the network's seed and the layer. One stored result per network.
    """
    split = dissected_windows(windows, settings)

    def one(net: Network) -> xr.Dataset:
        def build(part: Path) -> None:
            layers = taps.layers(net.model)
            parts = [_layer(cfg, net, depth, split, concepts, settings, alpha) for depth in range(len(layers))]
            write_dataset(part / "dissection.nc", xr.concat(parts, "layer"))

        key = STAGE.key(
            [settings.thinning, settings.n_draws, float(alpha), list(concepts.names)], windows.digest, net.key
        )
        about = stages.provenance(cfg, data=windows.digest, caveat=windows.caveat, seed=net.seed, alpha=alpha)
        return read_dataset(STAGE.obtain(key, build, about) / "dissection.nc").expand_dims(seed=[net.seed])

    return xr.concat(side_by_side(cfg, one, networks), "seed")


def _layer(
    cfg: Settings,
    net: Network,
    depth: int,
    split: Split,
    concepts: Concepts,
    settings: DissectionSettings,
    alpha: float,
) -> xr.Dataset:
    model, device = _on_device(cfg, net)
    tap = taps.layers(model)[depth]
    maps = dissection.kept(dissection.stream(model, tap, split.x, device))
    if alpha:
        n_units = next(maps()).shape[1]
        q = rotation.random_rotation(n_units, np.random.default_rng((net.seed, depth)))
        maps = dissection.kept(dissection.rotated(maps, rotation.power(q, alpha)))
    found = dissection.dissect(maps, concepts.masks, concepts.names, settings.n_draws, split.activity)
    return found.expand_dims(layer=[tap.name])


def _on_device(cfg: Settings, net: Network) -> tuple[SFHF, torch.device]:
    """A copy of the network where the run computes; networks of a run are shared, also between threads."""
    device = torch_device(cfg.device)
    return copy.deepcopy(net.model).to(device), device


def curve(
    cfg: Settings, windows: Windows, networks: Sequence[Network], concepts: Concepts, settings: DissectionSettings
) -> xr.Dataset:
    """:func:`dissection.detectors` at every angle: dims (alpha, seed, layer, unit[, rule])."""
    found = [
        dissection.detectors(dissect(cfg, windows, networks, concepts, settings, alpha)).expand_dims(alpha=[alpha])
        for alpha in settings.angles
    ]
    return xr.concat(found, "alpha")


# --------------------------------------------------------------------------------------------------- ablation


def ablate(cfg: Settings, windows: Windows, networks: Sequence[Network], settings: DissectionSettings) -> xr.Dataset:
    """Every unit of every network silenced, on thinned test windows: :func:`ablation.drops` over (seed, ...).

    One stored result per network.
    """
    split = windows.test.every(settings.ablation_thinning)

    def one(net: Network) -> xr.Dataset:
        def build(part: Path) -> None:
            model, device = _on_device(cfg, net)
            found = ablation.drops(model, taps.layers(model), split, len(windows.activities), device=device)
            write_dataset(part / "ablation.nc", found)

        key = ABLATION.key([settings.ablation_thinning], windows.digest, net.key)
        about = stages.provenance(cfg, data=windows.digest, caveat=windows.caveat, seed=net.seed)
        return read_dataset(ABLATION.obtain(key, build, about) / "ablation.nc").expand_dims(seed=[net.seed])

    return xr.concat(side_by_side(cfg, one, networks), "seed")
