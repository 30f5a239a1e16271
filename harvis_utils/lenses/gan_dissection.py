"""What single units of generators and discriminators stand for (Bau et al. 2019), and what a window lacks without them.

A discriminator has seen no label. Its units are compared with the concepts of real windows, those of one without
training beside them. A generator's units are compared with the waveforms of the windows that it makes; then each is
silenced, and the share of samples is counted at which every waveform held and now does not.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from harvis_utils.data.synthetic import PlantedMotifs
from harvis_utils.data.windowing import Split, Windows
from harvis_utils.lenses import ablation, concepts, dissection
from harvis_utils.lenses.concepts import MOTIF, Concepts
from harvis_utils.networks import taps
from harvis_utils.networks.generator import LENGTH, Generator
from harvis_utils.settings import GanSettings
from harvis_utils.store.results import kept
from harvis_utils.training import adversarial

#: Choice: draws of the null in which a layer's units trade their effects
N_TRADED = 999
#: draws of chance where nobody looks at chance
FEWEST_DRAWS = 19
#: Choice: windows in which the costliest unit is looked for
N_LOOKED = 60


def known_concepts(windows: Windows, split: Split, truth: PlantedMotifs | None) -> Concepts:
    """Activities, waveforms and, where they are known, planted motifs of the windows of ``split``."""
    found = concepts.of_windows(windows, split)
    if truth is None:
        return found
    planted = concepts.of_motifs(truth, split)
    masks = np.concatenate([found.masks, planted.masks])
    return Concepts(found.names + planted.names, found.kinds + planted.kinds, masks, found.left_out)


def _told(stage: str, found, kinds: dict[str, str]) -> dict:
    labels = dissection.detectors(found)
    own = labels["detector"].sel(rule=dissection.RULES[1])
    detected = labels["concept"].values[own.values]
    row = {"stage": stage, "units": len(own), "mean best IoU": float(labels["best"].mean())}
    row |= {"detectors": float(own.mean()), "unique": len(set(detected))}
    return row | {"of motifs": float(np.mean([kinds[of] == MOTIF for of in detected])) if len(detected) else np.nan}


@kept("gans")
def of_discriminator(
    windows: Windows, settings: GanSettings, seed: int, thinning: int, known: Concepts, n_draws: int, trained: bool
) -> pd.DataFrame:
    """Each stage dissected on every ``thinning``-th training window, whose concepts are ``known``: a row per stage.

    "mean best IoU", the share of units that detect a concept above chance ("detectors"), how many concepts that are
    ("unique"), and which share of these units detects a planted motif ("of motifs").
    """
    split, kinds = windows.train.every(thinning), dict(zip(known.names, known.kinds, strict=True))
    if trained:
        game = adversarial.read(windows, settings, adversarial.trained(windows, settings, seed))
    else:
        game = adversarial.Game(windows.train, settings, seed, "cpu")
    network, rows = game.discriminator.eval(), []
    for stage in network.stages:
        maps, at = taps.outputs(network, stage, split.x), taps.positions(network, stage, split.x[:2])
        about = (known.masks, known.names, n_draws, None, split.recording)
        rows.append(_told(stage, dissection.dissect(maps, *about, positions=at), kinds))
    return pd.DataFrame(rows)


@contextmanager
def silenced(own: Generator, stage: str, unit: int) -> Iterator[None]:
    """While the block runs, a unit of a generator's stage puts out nothing."""
    index = torch.tensor([unit])
    hook = getattr(own, stage).register_forward_hook(lambda module, given, out: out.index_fill(1, index, 0.0))
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def effects(own: Generator, z: Tensor, windows: Windows, n_draws: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A generator's units and the waveforms of its windows: a table by stage, and one by unit and waveform.

    ``z`` are latent vectors (window, latent); ``windows`` say the rate and the axes. The first has what
    :func:`of_discriminator` has, "change", how far a silenced unit moves windows (root mean square, G), and
    "correlation": do the units that overlap a waveform cost most of it when they are silent, with the "p" of units
    that trade their effects. The second has "iou", and in "cost" the share of samples at which the waveform held only
    while the unit was not silent.
    """
    *maps, whole = own.eval().maps(z)

    def holding(x: Tensor) -> dict[str, np.ndarray]:
        return concepts.waveforms(x.numpy(), windows.rate_hz, windows.axes)[0]

    there = holding(whole)
    names, masks = list(there), np.stack(list(there.values()))
    rows, parts = [], []
    for stage, h in zip(own.stages, maps, strict=True):
        step = LENGTH / h.shape[2]  # of samples of the window that one of the map is about
        at = (np.arange(h.shape[2]) + 0.5) * step - 0.5
        about = (masks, names, n_draws, None, np.arange(len(z)))
        found = dissection.dissect(h.unsqueeze(2), *about, positions=at)
        cost, change = np.zeros((h.shape[1], len(names))), np.zeros(h.shape[1])
        for unit in range(h.shape[1]):
            with silenced(own, stage, unit):
                x = own(z)
            cost[unit] = masks.mean((1, 2, 3)) - [of.mean() for of in holding(x).values()]
            change[unit] = float((x - whole).square().mean().sqrt())
        explained = ablation.explained(found["iou"].values, cost, N_TRADED, np.random.default_rng(0))
        row = _told(stage, found, dict.fromkeys(names, "")) | {"change": change.mean()}
        rows.append(row | {"correlation": explained[0], "p": ablation.p_value(explained)})
        each = found["iou"].to_dataframe()[["iou"]].assign(cost=cost.ravel()).reset_index()
        parts.append(each.assign(stage=stage))
    return pd.DataFrame(rows).drop(columns="of motifs"), pd.concat(parts, ignore_index=True)


@kept("gans")
def of_generator(windows: Windows, settings: GanSettings, seed: int, n: int, n_draws: int) -> pd.DataFrame:
    """The stages of the first generator of a trained game in ``n`` of its windows, by :func:`effects`."""
    own = adversarial.read(windows, settings, adversarial.trained(windows, settings, seed)).generators[0]
    z = torch.randn(n, settings.n_latent, generator=torch.Generator().manual_seed(seed))
    return effects(own, z, windows, n_draws)[0]


@torch.no_grad()
def costliest(own: Generator, windows: Windows, n: int) -> tuple[pd.Series, dict[str, np.ndarray]]:
    """The unit that costs a waveform most (a row of :func:`effects`), and ``n`` windows that it changes most.

    These are "whole" and "unit silenced", (axis, window, time) each.
    """
    z = torch.randn(N_LOOKED, own.stage1[0].in_channels, generator=torch.Generator().manual_seed(0))
    found = effects(own, z, windows, FEWEST_DRAWS)[1].sort_values("cost").iloc[-1]
    with silenced(own, found["stage"], int(found["unit"])):
        without = own(z)
    both = {"whole": own(z), "unit silenced": without}
    most = (both["whole"] - without).abs().mean((1, 2)).argsort(descending=True)[:n]
    return found, {name: x[most].transpose(0, 1).numpy() for name, x in both.items()}
