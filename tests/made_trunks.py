"""Networks made by seed, for tests that need no training."""

import torch

from harvis_utils.networks.sfhf import Trunk


def made_trunk(n_units: int = 4, seed: int = 0, dtype=torch.float32, n_layers: int = 3, kernel: int = 5) -> Trunk:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    first = normal(n_units, 1, kernel)
    later = [normal(n_units, n_units, kernel) * (0.4 / n_units) ** 0.5 for _ in range(n_layers - 1)]
    return Trunk((first, *later), tuple(0.1 * normal(n_units) for _ in range(n_layers)))
