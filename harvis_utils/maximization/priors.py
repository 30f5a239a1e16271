"""Training windows turned into a denoising autoencoder: what a real window looks like, learned (Vincent et al. 2008).

A small network is shown windows with noise and returns them without. The difference between its output and its input
points where training windows are denser (Alain and Bengio 2014). Nguyen et al. (2017) use such a prior for feature
visualization: steps alternate between raising the objective and denoising
(:func:`harvis_utils.maximization.visualization.visualize`).
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from harvis_utils.data.windowing import Windows
from harvis_utils.parallel import progress
from harvis_utils.settings import PriorSettings, Settings
from harvis_utils.store.results import kept


class Denoiser(nn.Module):
    """Windows (window, axis, time) in G with noise into windows without, each axis by itself: any number of axes.

    The autoencoder returns what is to be added. Choice: the noise, not a narrow layer, keeps it from copying; single
    axes, because the units that are looked at see single axes, and because whole windows are too few to learn from.
    ``key`` is the address of its weights where they are stored.
    """

    key: str | None = None

    def __init__(self, length: int, settings: PriorSettings):
        super().__init__()
        hidden, code = settings.n_hidden, settings.n_code
        sizes = (length, hidden, code, hidden, length)
        layers = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """The same windows with less noise."""
        return x + self.layers(x)


def fit(segments: np.ndarray, settings: PriorSettings) -> tuple[Denoiser, np.ndarray]:
    """A denoiser of single-axis segments (segment, time) in G and its loss, mean squared error in G^2 at every step.

    Adam on the squared error of segments with noise against the same without; all draws come from ``settings.seed``.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = Denoiser(segments.shape[1], settings)
    x = torch.tensor(np.ascontiguousarray(segments))
    optimizer = torch.optim.Adam(model.parameters(), settings.learning_rate)
    losses = np.empty(settings.n_steps)
    for step in progress(range(settings.n_steps), desc="prior", leave=False):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * (1 + math.cos(math.pi * step / settings.n_steps)) / 2
        clean = x[torch.randint(len(x), (settings.batch_size,), generator=generator)]
        loss = (model(corrupted(clean, settings.most_noise_g, generator)) - clean).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses[step] = loss.item()
    return model.eval(), losses


def corrupted(clean: Tensor, most_noise_g: float, generator: torch.Generator) -> Tensor:
    """Segments (segment, time) with white noise, each of its own standard deviation between 0 and ``most_noise_g``."""
    std = most_noise_g * torch.rand(len(clean), 1, generator=generator)
    return clean + std * torch.randn(clean.shape, generator=generator)


def linear_denoiser(segments: np.ndarray, noise_g: float) -> tuple[np.ndarray, np.ndarray]:
    """The best linear map (Wiener): mean (time,) and matrix (time, time), clean = mean + M (noisy - mean).

    ``segments`` are (segment, time) in G. The yardstick for the learned prior.
    """
    covariance = np.cov(segments.T.astype(np.float64))
    mean = segments.mean(0, dtype=np.float64)
    return mean, covariance @ np.linalg.inv(covariance + noise_g**2 * np.eye(len(mean)))


@torch.no_grad()
def errors(model: Denoiser, train: np.ndarray, held_out: np.ndarray, noises_g: Sequence[float]) -> pd.DataFrame:
    """Root mean squared error in G on held-out segments (segment, time) with noise, a row for each of ``noises_g``.

    Of doing nothing, of the best linear map (given this very noise), and of the learned prior, which is not told.
    """
    rows = {}
    for noise_g in noises_g:
        noisy = held_out + noise_g * np.random.default_rng(0).standard_normal(held_out.shape).astype(np.float32)
        mean, matrix = linear_denoiser(train, noise_g)
        linear, learned = mean + (noisy - mean) @ matrix.T, model(torch.tensor(noisy)).numpy()
        found = {"nothing": noisy, "best linear map": linear, "learned prior": learned}
        wrong = {name: np.sqrt(((values - held_out) ** 2).mean()) for name, values in found.items()}
        rows[f"{noise_g:g} G of noise"] = wrong
    return pd.DataFrame(rows, dtype=float).T


@kept("priors")
def weights(windows: Windows, settings: PriorSettings) -> dict[str, Tensor]:
    """Weights of the prior learned from the training windows."""
    return fit(windows.train.segments, settings)[0].state_dict()


def prior(cfg: Settings, windows: Windows) -> Denoiser:
    """The prior learned from the training windows; learned where it is not there yet."""
    model = Denoiser(windows.train.length, cfg.prior)
    model.load_state_dict(weights(windows, cfg.prior))
    model.key = weights.key(windows, cfg.prior)
    return model.eval().requires_grad_(False)
