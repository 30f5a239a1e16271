"""Settings turned into networks with named layers and a shared per-axis trunk."""

from harvis_utils.models.sfhf import SFHF, Dropout, Trunk, folded_trunk

__all__ = ["SFHF", "Dropout", "Trunk", "folded_trunk"]
