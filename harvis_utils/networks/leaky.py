"""SF-HF whose rectifiers are Leaky ReLUs, in training too."""

from torch import Tensor

from harvis_utils.networks import backward
from harvis_utils.networks.sfhf import SFHF


class LeakySFHF(SFHF):
    """SF-HF with Leaky ReLUs of ``settings.slope``; a slope of 0 is SF-HF itself."""

    def feature_maps(self, x: Tensor, upto: str | None = None) -> dict[str, Tensor]:
        """Outputs of the trunk's layers by name, as :meth:`SFHF.feature_maps`; below zero where units are closed."""
        with backward.leaking(self.settings.slope):
            return super().feature_maps(x, upto)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores before softmax: (batch, axis, time) -> (batch, class)."""
        with backward.leaking(self.settings.slope):
            return super().forward(x)
