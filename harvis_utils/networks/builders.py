"""Settings of a network turned into that network: which settings belong to which class."""

from collections.abc import Callable
from typing import Any

from torch import nn

from harvis_utils.networks import self_attention
from harvis_utils.networks.attention_branch import AttentionBranch
from harvis_utils.networks.leaky import LeakySFHF
from harvis_utils.networks.pooled import Pooled
from harvis_utils.networks.recurrent import Recurrent
from harvis_utils.networks.sfhf import SFHF
from harvis_utils.settings import (
    BranchSettings,
    LeakySettings,
    ModelSettings,
    PooledSettings,
    RecurrentSettings,
    SelfAttentionSettings,
)

#: (axes, samples, classes, settings) into a network that takes (window, axis, time) and returns (window, class) scores
BUILDERS: dict[type, Callable[[int, int, int, Any], nn.Module]] = {
    ModelSettings: SFHF,
    LeakySettings: LeakySFHF,
    BranchSettings: AttentionBranch,
    PooledSettings: Pooled,
    SelfAttentionSettings: self_attention.network,
    RecurrentSettings: Recurrent,
}


def build(n_axes: int, length: int, n_classes: int, settings) -> nn.Module:
    """The network that ``settings`` describe, its weights drawn from torch's generator.

    Raises ``TypeError`` for settings of no known network.
    """
    if type(settings) not in BUILDERS:
        known = ", ".join(kind.__name__ for kind in BUILDERS)
        raise TypeError(f"{type(settings).__name__} are the settings of no network; known: {known}")
    return BUILDERS[type(settings)](n_axes, length, n_classes, settings)
