"""Latent vectors of a generator turned into signals that excite units: what it makes windows of is a learned prior.

Nguyen et al. (2016) climb through a generator G, so that only what it can make is found:

    z* = argmax a(G(z)),    z <- z + step,    z <- sqrt(latent) z / |z|

where a is the mean of a unit's outputs, those beyond its threshold counting as that (the paper's f with clipping).
Normal vectors lie near the shell |z| = sqrt(latent); of others G makes what it never learned to make.

G makes all axes of 64 samples, units see one axis, and networks shorter windows. Each axis is climbed for itself and
the best is kept; convolutions take windows of any length; and of the best window the piece as long as the network's is
cut out that, by itself, has the largest mean. :func:`random_search` has as many windows to choose from.
"""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from harvis_utils.data.windowing import Windows
from harvis_utils.maximization.ascent import path, uphill
from harvis_utils.maximization.paper_methods import recorded_steps, unit_maps
from harvis_utils.networks import generator
from harvis_utils.networks.sfhf import Trunk
from harvis_utils.settings import GanSettings, LatentSettings, Step
from harvis_utils.store.results import kept
from harvis_utils.training import adversarial, supervised
from harvis_utils.training.supervised import Network

#: latent vectors that are climbed together, of any number of generators up to four; bounds the memory
CHUNK = 384
#: windows by which an untrained generator is brought to the scale of real ones
N_SCALED = 512
#: points of the history
N_RECORDED = 20
#: what is added to a prior's name
RANDOM = ", random search"


class Prior(nn.Module):
    """Latent vectors (row, latent) into windows (row, axis, time) in G, by one generator or several in turn.

    Choice: generators that were trained together have equal shares of the rows, whose number they have to divide.
    ``key`` is the address.
    """

    def __init__(self, name: str, key: str, generators: Sequence[nn.Module], n_latent: int):
        super().__init__()
        self.name, self.key, self.n_latent = name, key, n_latent
        self.generators = nn.ModuleList(generators)
        self.cpu().eval().requires_grad_(False)

    def forward(self, z: Tensor) -> Tensor:
        """Windows of latent vectors."""
        k = len(self.generators)
        return torch.stack([own(z[i::k]) for i, own in enumerate(self.generators)], 1).flatten(0, 1)

    def drawn(self, n: int, noise: torch.Generator) -> Tensor:
        """``n`` latent vectors, evenly distributed over the shell."""
        return shell(torch.randn(n, self.n_latent, generator=noise))


class Principal(nn.Module):
    """A linear generator: the mean of real windows, and their largest principal directions at their own sizes."""

    def __init__(self, x: np.ndarray, n_latent: int):
        super().__init__()
        flat = x.reshape(len(x), -1).astype(np.float64)
        power, directions = (of[..., ::-1][..., :n_latent] for of in np.linalg.eigh(np.cov(flat.T)))
        self.shape = x.shape[1:]
        self.register_buffer("center", torch.tensor(flat.mean(0)).float())
        self.register_buffer("directions", torch.tensor(directions * np.sqrt(power.clip(min=0))).T.float())

    def forward(self, z: Tensor) -> Tensor:
        """Windows of latent vectors."""
        return (self.center + z @ self.directions).unflatten(1, self.shape)


def of_gan(name: str, windows: Windows, settings: GanSettings, seed: int, device: str | None = None) -> Prior:
    """The generators of a training (:func:`adversarial.trained`), which is made where it is not there."""
    game = adversarial.read(windows, settings, adversarial.trained(windows, settings, seed, device=device))
    key = f"{name} {adversarial.trained.key(windows, settings, seed)}"
    return Prior(name, key, game.generators, settings.n_latent)


def untrained(windows: Windows, settings: GanSettings, seed: int) -> Prior:
    """A generator of random weights, its batch norms and its output brought to the scale of training windows.

    Choice: without that it would make flat windows, and be no control of what training gives.
    """
    with supervised.drawing(seed):
        own = generator.networks(windows.train, settings)[0][0]
        z = shell(torch.randn(N_SCALED, settings.n_latent))
    for part in own.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.momentum = None  # the mean of what it sees, not a running one
    with torch.no_grad():
        own.train()(z)
        own.spread *= own.spread / own.eval()(z).std((0, 2))[:, None]
    return Prior("untrained generator", f"untrained {windows.digest} {settings} {seed}", [own], settings.n_latent)


def principal(windows: Windows, n_latent: int) -> Prior:
    """The linear generator of training windows, with as many latent numbers."""
    own = Principal(windows.train.x, n_latent)
    return Prior(f"PCA-{n_latent}", f"PCA {n_latent} {windows.digest}", [own], n_latent)


def shell(z: Tensor, rows: Tensor | None = None) -> Tensor:
    """The same directions, (row, latent), at the length sqrt(latent)."""
    return z * (z.shape[1] ** 0.5 / torch.linalg.vector_norm(z, dim=1, keepdim=True))


def mean_output(trunk: Trunk, layer: str, unit: Tensor, x: Tensor, th: Tensor) -> Tensor:
    """What is climbed, (row,): mean of own units' outputs up to their thresholds; x is (row, time), others (row,)."""
    return torch.minimum(unit_maps(trunk, layer, unit, x), th[:, None]).mean(1)


def climb_rows(
    prior: Prior, trunk: Trunk, layer: str, unit: Tensor, axis: Tensor, th: Tensor, z: Tensor, settings: LatentSettings
) -> tuple[Tensor, Tensor]:
    """Ascents from ``z`` (row, latent): of each the best window that it passes, (row, time), and the best so far.

    The latter is (row, step), at the first step the objective of the start; ``unit``, ``axis`` and ``th`` are (row,).
    """
    record, step = recorded_steps(settings.n_steps, N_RECORDED), Step("adam", settings.step_size, 1.0)
    every, best, at, history = torch.arange(len(z)), z.new_full((len(z),), -torch.inf), z.clone(), []

    def score(z: Tensor, rows: Tensor, number: int) -> Tensor:
        values = mean_output(trunk, layer, unit, prior(z)[every, axis], th)
        better = values.detach() > best
        best[better], at[better] = values.detach()[better], z.detach()[better]
        if number in record:
            history.append(best.clone())
        return values

    *_, (last, _, z) = path(uphill(score), z, step, settings.n_steps, after=shell)
    with torch.no_grad():
        score(z, every, last)
        return prior(at)[every, axis], torch.stack(history, 1)


def climb(
    prior: Prior, trunk: Trunk, layer: str, th: Tensor, n_axes: int, settings: LatentSettings, noise: torch.Generator
) -> tuple[Tensor, Tensor]:
    """For each unit of a layer the best window (unit, time) that its ascents pass, ``n_starts`` on each axis.

    Also the history (unit, step), the best so far; ``th`` is (unit,).
    """
    n, found = n_axes * settings.n_starts, []
    rows = torch.cartesian_prod(torch.arange(len(th)), torch.arange(n_axes), torch.arange(settings.n_starts))
    for unit, axis, _ in (part.T for part in rows.split(CHUNK)):
        start = prior.drawn(len(unit), noise)
        found.append(climb_rows(prior, trunk, layer, unit, axis, th[unit], start, settings))
    windows, history = (torch.cat(of).unflatten(0, (-1, n)) for of in zip(*found, strict=True))
    return windows[torch.arange(len(th)), history[..., -1].argmax(1)], history.amax(1)


@torch.no_grad()
def random_search(
    prior: Prior, trunk: Trunk, layer: str, th: Tensor, n_axes: int, settings: LatentSettings, noise: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What :func:`climb` gives, of random vectors on the shell: as many windows as a unit's ascents pass.

    Each window counts with all its axes, and all units look at the same ones.
    """
    best, windows, history = torch.full((len(th),), -torch.inf), torch.zeros(len(th), 1), []
    for number in range(settings.n_steps + 1):
        x = prior(prior.drawn(n_axes * settings.n_starts, noise)).flatten(0, 1)
        score, row = torch.minimum(trunk.feature_map(x, layer), th[:, None]).mean(2).max(0)
        better = score > best
        windows = torch.where(better[:, None], x[row], windows)
        best = torch.where(better, score, best)
        if number in recorded_steps(settings.n_steps, N_RECORDED):
            history.append(best)
    return windows, torch.stack(history, 1)


def cut(trunk: Trunk, layer: str, x: Tensor, th: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Of each unit's signal (unit, time) the piece of ``length`` samples that alone has the largest
    :func:`mean_output`, the earliest of equals, and that.
    """
    pieces = x.unfold(1, length, 1)
    unit, n = torch.arange(len(x)), pieces.shape[1]
    every = unit.repeat_interleave(n)
    score, at = mean_output(trunk, layer, every, pieces.flatten(0, 1), th[every]).unflatten(0, (-1, n)).max(1)
    return pieces[unit, at], score


@kept("latent")
def signals_of(
    network: Network, th_eap: xr.DataArray, prior: Prior, n_axes: int, length: int, settings: LatentSettings
) -> xr.Dataset:
    """Signals of all units of a network through a prior, by ascent and by random search.

    ``th_eap`` is (layer, unit); NaN (a dead unit) is no threshold. Returns over (technique, layer, unit) ``signal``
    (.., time) in G of ``length`` samples, its objective ``of_piece``, and ``history`` (.., step): the best objective,
    of whole windows, that as many windows had given as at that step. Raises ``ValueError`` where the starts cannot be
    shared out equally to the generators.
    """
    trunk, layers = network.trunk.to("cpu"), th_eap["layer"].values.tolist()
    if settings.n_starts % len(prior.generators):
        raise ValueError(
            f"{settings.n_starts} starts cannot be shared out to {len(prior.generators)} generators equally"
        )
    noise, tables = torch.Generator().manual_seed(network.seed), {"signal": [], "of_piece": [], "history": []}
    limits = torch.tensor(th_eap.fillna(np.inf).values, dtype=torch.float32)
    ways = {prior.name: climb, prior.name + RANDOM: random_search}
    for way, layer, th in ((way, *of) for way in ways.values() for of in zip(layers, limits, strict=True)):
        window, history = way(prior, trunk, layer, th, n_axes, settings, noise)
        for values, found in zip(tables.values(), (*cut(trunk, layer, window, th, length), history), strict=True):
            values.append(found.numpy())
    inner = {"signal": ("time",), "of_piece": (), "history": ("step",)}
    coords = {"technique": list(ways), "layer": layers, "unit": th_eap["unit"].values, "time": np.arange(length)}
    coords |= {"step": recorded_steps(settings.n_steps, N_RECORDED)}
    shaped = {name: np.stack(of).reshape(len(ways), len(layers), *of[0].shape) for name, of in tables.items()}
    return xr.Dataset({name: (("technique", "layer", "unit", *inner[name]), of) for name, of in shaped.items()}, coords)
