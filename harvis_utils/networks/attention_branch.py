"""ST-ABN for sensors and time: a network that says where it attends, and weighs its features by that.

The attention branch network for video (Fukui et al. 2019 and its spatio-temporal form) has frames, rows and columns;
SF-HF has samples and sensor axes. So *spatial* attention M_s says how much each axis counts at each sample, *temporal*
attention M_t how much each sample counts. With f, the maps of the second convolution:

    f' = ReLU(BN(conv([(1 + M_s) f, M_t f]))),    loss = that of the class scores + that of the branch's own

The second term of the concatenation has no residual: a map that is small everywhere takes it away.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harvis_utils.networks.sfhf import Dropout, known
from harvis_utils.settings import BranchSettings

SPATIAL, TEMPORAL = "spatial", "temporal"
#: "absolute": samples are channels of dense layers, as in the source; "conv": convolutions along time; "none"
TEMPORALS = ("absolute", "conv", "none")
#: "concat" as above; "residual": (1 + M_s) (1 + M_t) f, as the branch network for images, without a convolution
FUSIONS = ("concat", "residual")
#: what the branch's own class scores learn from: each window's label, another window's (a control), or no branch
BRANCHES = ("labels", "other labels", "none")
#: Choice: kernel along time and width of convolutional temporal attention
CONV_KERNEL, CONV_UNITS = 9, 16

#: maps by name, spatial (window, 1, axis, time) and temporal (window, 1, 1, time)
Maps = Mapping[str, Tensor]


class Branch(nn.Module):
    """Features (window, unit, axis, time) into attention maps and class scores of their own.

    ``k1`` has one map for each class: what the branch's scores and both kinds of attention are made of.
    """

    def __init__(self, length: int, n_classes: int, settings: BranchSettings):
        super().__init__()
        units = settings.n_units
        self.conv = nn.Conv2d(units, units, (1, 5), padding=(0, 2), bias=False)
        self.norm_conv = nn.BatchNorm2d(units)
        self.k1 = nn.Conv2d(units, n_classes, 1, bias=False)
        self.norm_k1 = nn.BatchNorm2d(n_classes)
        self.k2 = nn.Conv2d(n_classes, n_classes, 1, bias=False)
        self.space = self.time = None
        if settings.spatial:
            self.space = nn.Sequential(nn.Conv2d(n_classes, 1, 1, bias=False), nn.BatchNorm2d(1))
        if settings.temporal != "none":
            self.time = nn.Sequential(nn.Conv2d(n_classes, 1, 3, padding=1, bias=False), nn.BatchNorm2d(1), nn.ReLU())
        if settings.temporal == "absolute":
            self.frames = nn.Conv2d(length, length, 1, bias=False)
            # Paper: "dense layer, ReLU and sigmoid"; a sigmoid of a ReLU is 0.5 at least, so a layer stands between
            self.weigh = nn.Sequential(nn.Linear(length, length), nn.ReLU(), nn.Linear(length, length))
        elif settings.temporal == "conv":
            along = {"kernel_size": CONV_KERNEL, "padding": CONV_KERNEL // 2}
            self.frames = None
            self.weigh = nn.Sequential(nn.Conv1d(1, CONV_UNITS, **along), nn.ReLU(), nn.Conv1d(CONV_UNITS, 1, **along))

    def forward(self, f: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Maps, each in (0, 1), and class scores (window, class)."""
        h = F.relu(self.norm_k1(self.k1(F.relu(self.norm_conv(self.conv(f))))))
        maps = {}
        if self.space is not None:
            maps[SPATIAL] = torch.sigmoid(self.space(h))
        if self.time is not None:
            by_time = self.time(h)  # (window, 1, axis, time)
            if self.frames is not None:
                by_time = F.relu(self.frames(by_time.permute(0, 3, 1, 2))).mean((2, 3))
                weights = self.weigh(by_time)
            else:
                weights = self.weigh(by_time.mean(2))[:, 0]
            maps[TEMPORAL] = torch.sigmoid(weights)[:, None, None]
        return maps, self.k2(h).mean((2, 3))


class AttentionBranch(nn.Module):
    """SF-HF's convolutions with an attention branch behind the second, and a head that pools over time.

    Input: (window, axis, time) in G. Output: (window, class) scores before softmax. Without a branch it is the baseline
    that the network with one is compared with. Raises ``ValueError`` for settings that are none of the valid choices,
    and for attention without a branch.
    """

    def __init__(self, n_axes: int, length: int, n_classes: int, settings: BranchSettings):
        super().__init__()
        known("temporal attention", settings.temporal, TEMPORALS)
        known("fusion", settings.fusion, FUSIONS)
        known("branch", settings.branch, BRANCHES)
        n_maps = settings.spatial + (settings.temporal != "none")
        if n_maps and settings.branch == "none":
            raise ValueError("attention needs a branch: set spatial to False and temporal to 'none', or name a branch")
        units, self.settings = settings.n_units, settings
        for i, name in enumerate(("conv1", "conv2", "conv3")):
            convolution = nn.Conv2d(units if i else 1, units, (1, 5), padding=(0, 2), bias=False)
            setattr(self, name, convolution)
            setattr(self, f"norm_{name}", nn.BatchNorm2d(units))
        self.branch = None if settings.branch == "none" else Branch(length, n_classes, settings)
        self.fuse = None
        if n_maps and settings.fusion == "concat":
            self.fuse = nn.Conv2d(n_maps * units, units, 1, bias=False)
            self.norm_fuse = nn.BatchNorm2d(units)
        self.mix = nn.Conv2d(units, units, (n_axes, 1), bias=False)
        self.norm_mix = nn.BatchNorm2d(units)
        self.dropout = Dropout(settings.dropout)
        self.classes = nn.Linear(units, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """What attention weighs, f: (window, axis, time) -> (window, unit, axis, time)."""
        h = F.relu(self.norm_conv1(self.conv1(x.unsqueeze(1))))
        return F.relu(self.norm_conv2(self.conv2(h)))

    def attend(self, x: Tensor) -> dict[str, Tensor]:
        """The attention maps of windows: spatial (window, 1, axis, time), temporal (window, 1, 1, time)."""
        return {} if self.branch is None else self.branch(self.features(x))[0]

    def weighed(self, f: Tensor, maps: Maps) -> Tensor:
        """Features as attention leaves them, f', of the same shape as f."""
        if self.fuse is None:
            for of in maps.values():
                f = (1 + of) * f
            return f
        # Paper: eq. 2 prints 1 + M_s f; its text says that f itself is added
        parts = {SPATIAL: lambda of: (1 + of) * f, TEMPORAL: lambda of: of * f}
        joined = torch.cat([part(maps[name]) for name, part in parts.items() if name in maps], 1)
        return F.relu(self.norm_fuse(self.fuse(joined)))

    def perceive(self, f: Tensor, maps: Maps) -> Tensor:
        """Class scores (window, class) of features under given maps."""
        h = F.relu(self.norm_conv3(self.conv3(self.weighed(f, maps))))
        h = F.relu(self.norm_mix(self.mix(h))).mean(3)[:, :, 0]
        return self.classes(self.dropout(h))

    def forward(self, x: Tensor, change: Callable[[Maps], Maps] | None = None) -> Tensor:
        """Class scores before softmax; with ``change``, those under what it makes of the attention maps."""
        f = self.features(x)
        maps = {} if self.branch is None else self.branch(f)[0]
        return self.perceive(f, change(maps) if change else maps)

    def heads(self, x: Tensor) -> list[Tensor]:
        """Class scores that are learned from: the network's, and the branch's where it has one."""
        f = self.features(x)
        if self.branch is None:
            return [self.perceive(f, {})]
        maps, scores = self.branch(f)
        if self.settings.branch == "other labels":
            scores = scores.roll(1, 0)  # the order of the windows is drawn anew in each epoch
        return [self.perceive(f, maps), scores]


class Edited(nn.Module):
    """A network whose attention maps are changed in every pass, as a network of its own for all lenses."""

    def __init__(self, network: AttentionBranch, change: Callable[[Maps], Maps]):
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (window, class) under the changed maps."""
        return self.network(x, change=self.change)
