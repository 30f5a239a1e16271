"""Generators of windows and the discriminator that tells theirs from real ones: DCGAN in one dimension.

Radford et al. (2016) with four doublings of time, for windows of 64 samples; k generators against one discriminator of
k + 1 classes are MAD-GAN (Ghosh et al. 2018). Windows are in G: scaling is part of the networks.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from harvis_utils.data.windowing import Split
from harvis_utils.networks.sfhf import known
from harvis_utils.settings import GanSettings

#: samples that the ladder ends at: 4, 8, 16, 32, 64
LENGTH = 64
#: what keeps the discriminator smooth
NORMS = ("spectral", "batch")


class Generator(nn.Module):
    """Latent vectors (window, latent) into windows (window, axis, time) in G.

    Choice: no tanh at the end but each axis' mean and standard deviation in training, ``center`` and ``spread``
    (axis,): windows reach 8 G where 99.9 % of the samples are below 3.3 G.
    """

    #: stages of which outputs are compared between generators, each rectified
    stages = ("stage1", "stage2", "stage3", "stage4")

    def __init__(self, settings: GanSettings, center: Sequence[float], spread: Sequence[float]):
        super().__init__()
        units = [settings.n_units * factor for factor in (8, 4, 2, 1)]
        before = settings.n_latent
        for name, after in zip(self.stages, units, strict=True):
            first = name == self.stages[0]
            up = nn.ConvTranspose1d(before, after, 4, 1 if first else 2, 0 if first else 1, bias=False)
            setattr(self, name, nn.Sequential(up, nn.BatchNorm1d(after), nn.ReLU()))
            before = after
        self.out = nn.ConvTranspose1d(before, len(center), 4, 2, 1)
        for name, values in (("center", center), ("spread", spread)):
            self.register_buffer(name, torch.as_tensor(np.asarray(values), dtype=torch.float32)[:, None])

    def maps(self, z: Tensor) -> list[Tensor]:
        """Outputs of the stages, each (window, unit, time), and last the windows."""
        found, h = [], z.unsqueeze(2)
        for name in self.stages:
            found.append(h := getattr(self, name)(h))
        return [*found, self.out(h) * self.spread + self.center]

    def forward(self, z: Tensor) -> Tensor:
        """Windows of latent vectors."""
        return self.maps(z)[-1]


class Discriminator(nn.Module):
    """Windows (window, axis, time) in G into scores: of each of k generators, and last of real windows (window, k + 1).

    Choice: k + 1 also for one generator, which is the one logit of a DCGAN written as a difference. With the norm
    "spectral" every layer's largest singular value is held at 1 (Miyato et al. 2018), and there is no batch norm.
    """

    stages = ("stage1", "stage2", "stage3", "stage4")

    def __init__(self, settings: GanSettings, center: Sequence[float], spread: Sequence[float]):
        super().__init__()
        spectral = known("norm", settings.norm, NORMS) == "spectral"
        bound = parametrizations.spectral_norm if spectral else nn.Identity()
        before = len(center)
        for i, name in enumerate(self.stages):
            after = settings.n_units * 2**i
            conv = bound(nn.Conv1d(before, after, 4, 2, 1))
            norm = nn.Identity() if spectral or i == 0 else nn.BatchNorm1d(after)  # none at the input, as in DCGAN
            setattr(self, name, nn.Sequential(conv, norm, nn.LeakyReLU(0.2)))
            before = after
        self.classes = bound(nn.Conv1d(before, settings.n_generators + 1, LENGTH // 2 ** len(self.stages)))
        for name, values in (("center", center), ("spread", spread)):
            self.register_buffer(name, torch.as_tensor(np.asarray(values), dtype=torch.float32)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        """Scores before softmax."""
        h = (x - self.center) / self.spread
        for name in self.stages:
            h = getattr(self, name)(h)
        return self.classes(h)[..., 0]


def networks(train: Split, settings: GanSettings) -> tuple[list[Generator], Discriminator]:
    """New generators and their discriminator for windows like those of ``train``; weights by torch's generator.

    Raises ``ValueError`` for windows of another length than 64 samples.
    """
    if train.length != LENGTH:
        raise ValueError(f"windows have {train.length} samples; generators make {LENGTH}: cut settings.LONG_WINDOWS")
    scale = train.series.mean(0), train.series.std(0)
    made = [Generator(settings, *scale) for _ in range(settings.n_generators)]
    both = made, Discriminator(settings, *scale)
    for module in (inner for network in (*made, both[1]) for inner in network.modules()):
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d) and not hasattr(module, "parametrizations"):
            nn.init.normal_(module.weight, 0, 0.02)  # as in DCGAN; bounded weights have one scale anyway
    return both
