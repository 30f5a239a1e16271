"""Generators trained against a discriminator, and what they teach each other: a graph of networks with gated edges.

A node is a network, an edge a loss of the node it leads to, times a gate that opens and closes with the progress of the
training. Between generators knowledge is where in time their stages are active (attention transfer, Zagoruyko and
Komodakis 2017): with Q = mean over units of the squared map (window, time),

    L(t to s) = gate * alpha / M * sum over M stages of mean over windows and times (Q_t / |Q_t| - Q_s / |Q_s|)^2

and only s learns from it. The norm runs over time; written over single values, as the source prints it, each quotient
is 1 and the loss 0.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.networks import generator
from harvis_utils.networks.generator import Discriminator, Generator
from harvis_utils.networks.sfhf import known
from harvis_utils.parallel import progress, torch_device
from harvis_utils.settings import GanSettings
from harvis_utils.store.results import kept
from harvis_utils.training import supervised
from harvis_utils.training.checkpoints import CHECKPOINT, TrainingError, load_checkpoint, save_state

#: how an edge counts, by the progress of the training from 0 to 1
GATES: dict[str, Callable[[float], float]] = {
    "through": lambda done: 1.0,
    "cut off": lambda done: 0.0,
    "positive": lambda done: done,
    "negative": lambda done: 1.0 - done,
}
#: Choice: between two checkpoints
STEPS_KEPT = 100


def attention(maps: Tensor) -> Tensor:
    """Where in time a stage is active: Q / |Q| of (window, unit, time), as (window, time)."""
    q = maps.square().mean(1)
    return q / torch.linalg.vector_norm(q, dim=1, keepdim=True).clamp_min(1e-12)


def transfer(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """The loss L(t to s) for alpha = 1 of two networks' maps of the same inputs, stage by stage; t learns nothing."""
    pairs = [(attention(t.detach()), attention(s)) for t, s in zip(teacher, student, strict=True)]
    return torch.stack([F.mse_loss(s, t) for t, s in pairs]).mean()


def node_losses(
    graph: Mapping[tuple[str, str], str], loss: Callable[[str, str], Tensor], done: float
) -> dict[str, Tensor]:
    """The loss of each node of any graph: over the edges that lead to it, gates times ``loss(from, to)``.

    ``graph`` maps edges (from, to) to their gates, ``done`` is the progress from 0 to 1. What is cut off is not
    computed.
    """
    found: dict[str, Tensor] = {}
    for (source, to), name in graph.items():
        if weight := GATES[known("gate", name, GATES)](done):
            found[to] = found.get(to, 0.0) + weight * loss(source, to)
    return found


def edges(settings: GanSettings) -> dict[tuple[str, str], str]:
    """Gates by (from, to), "D" the discriminator and "G1" on the generators.

    What the settings do not name is open from the discriminator and shut between generators. Raises ``ValueError`` for
    an edge that cannot be.
    """
    names = [f"G{i + 1}" for i in range(settings.n_generators)]
    found = {("D", s): "through" for s in names} | {(t, s): "cut off" for t in names for s in names if t != s}
    for source, to, name in settings.gates:
        if (source, to) not in found:
            raise ValueError(f"no edge leads from {source} to {to}; known: {sorted(found)}")
        found[source, to] = known("gate", name, GATES)
    return found


class Game:
    """Generators, their discriminator, and one step of their training."""

    def __init__(self, train: Split, settings: GanSettings, seed: int, device: str | None = None):
        where = torch_device(device)
        with supervised.drawing(seed):
            self.generators, self.discriminator = generator.networks(train, settings)
        self.networks: dict[str, Generator | Discriminator] = {"D": self.discriminator}
        self.networks |= {f"G{i + 1}": own for i, own in enumerate(self.generators)}
        about = {"lr": settings.learning_rate, "betas": (0.5, 0.999)}  # as in DCGAN
        self.optimizers = {n: torch.optim.Adam(of.to(where).parameters(), **about) for n, of in self.networks.items()}
        self.settings, self.seed, self.edges = settings, seed, edges(settings)
        self.x = torch.as_tensor(np.ascontiguousarray(train.x), device=where)

    def state(self) -> dict:
        """All that training goes on from: weights, buffers, among them those of spectral norms, and optimizers."""
        parts = {"networks": self.networks, "optimizers": self.optimizers}
        return {what: {name: of.state_dict() for name, of in group.items()} for what, group in parts.items()}

    def load(self, state: dict) -> None:
        """Go on from a :meth:`state`."""
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
            self.optimizers[name].load_state_dict(state["optimizers"][name])

    def draws(self, step: int) -> tuple[Tensor, list[Tensor], Tensor]:
        """Real windows, latent vectors of each generator for the discriminator, and those of all, by the step alone.

        Choice: the discriminator sees other vectors of each generator; of the same ones it would see triples.
        """
        noise = torch.Generator().manual_seed(int(np.random.SeedSequence((self.seed, step)).generate_state(1)[0]))
        size = self.settings.batch_size
        real = self.x[torch.randint(len(self.x), (size,), generator=noise).to(self.x.device)]
        *apart, together = torch.randn(len(self.generators) + 1, size, self.settings.n_latent, generator=noise)
        return real, [z.to(self.x.device) for z in apart], together.to(self.x.device)

    def discriminator_loss(self, real: Tensor, latent: Sequence[Tensor]) -> Tensor:
        """Cross entropy of k + 1 classes. Choice: all generated windows together count as much as the real ones."""
        k = len(self.generators)
        loss = F.cross_entropy(self.discriminator(real), real.new_full((len(real),), k, dtype=torch.long))
        for i, (own, z) in enumerate(zip(self.generators, latent, strict=True)):
            with torch.no_grad():
                x = own(z)
            loss = loss + F.cross_entropy(self.discriminator(x), real.new_full((len(z),), i, dtype=torch.long)) / k
        return loss

    def generator_losses(self, z: Tensor, number: int, graph: Mapping[tuple[str, str], str]) -> dict[str, Tensor]:
        """:func:`node_losses` of the generators in step ``number``; all of them make windows of the same ``z``."""
        made = {name: own.maps(z) for name, own in self.networks.items() if name != "D"}
        real = z.new_full((len(z),), len(made), dtype=torch.long)

        def loss(source: str, to: str) -> Tensor:
            if source == "D":
                return F.cross_entropy(self.discriminator(made[to][-1]), real)
            return self.settings.alpha * transfer(made[source][:-1], made[to][:-1])

        return node_losses(graph, loss, number / max(1, self.settings.n_steps - 1))

    def step(self, number: int) -> list[float]:
        """One step of the discriminator, then one of each generator; their losses before, the discriminator's first.

        Every set of windows is a forward pass of its own, with batch norm over that set alone; of a spectral norm each
        pass improves the estimate once, 2k + 1 times a step.
        """
        for network in self.networks.values():
            network.train()
        real, apart, z = self.draws(number)
        losses = {"D": self.discriminator_loss(real, apart)}
        self._descend(losses)
        taught = self.generator_losses(z, number, self.edges)
        self._descend(taught)
        losses |= taught
        return [float(losses[name].detach()) if name in losses else 0.0 for name in self.networks]

    def _descend(self, losses: Mapping[str, Tensor]) -> None:
        for optimizer in self.optimizers.values():  # the discriminator's too: generators' losses pass through it
            optimizer.zero_grad(set_to_none=True)
        if losses:
            sum(losses.values()).backward()
        for name in losses:
            self.optimizers[name].step()

    def pull(self, number: int, graph: Mapping[tuple[str, str], str]) -> float:
        """Norm over all generators' weights of the gradient of the losses along the edges of ``graph``."""
        weights = [p for own in self.generators for p in own.parameters()]
        losses = self.generator_losses(self.draws(number)[2], number, graph)
        grads = torch.autograd.grad(sum(losses.values()), weights, allow_unused=True)
        return float(sum(g.square().sum() for g in grads if g is not None) ** 0.5)


@kept("gans", version=2, apart=("device",))
def trained(
    windows: Windows, settings: GanSettings, seed: int, *, device: str | None = None, checkpoint: Path | None = None
) -> dict[str, Tensor]:
    """Train from ``seed``; interrupted, it goes on after its last checkpoint, and ends with the same bits.

    Returns ``losses`` (step, network: discriminator first), ``D.*`` and, for each of ``settings.stages``, shares of
    the steps, ``<share>.G<i>.*``: weights and buffers. Raises :class:`TrainingError` where a loss diverges.
    """
    game = Game(windows.train, settings, seed, device)
    losses, snapshots = [], {}
    if checkpoint and (state := load_checkpoint(checkpoint)):
        game.load(state["game"])
        losses, snapshots = state["losses"], state["snapshots"]
    stages = {max(1, round(share * settings.n_steps)): share for share in settings.stages}
    bar = progress(
        range(len(losses), settings.n_steps), initial=len(losses), total=settings.n_steps, desc=f"gan {seed}"
    )
    for number in bar:
        losses.append(game.step(number))
        if not np.isfinite(losses[-1]).all():
            raise TrainingError(
                f"gan {seed}: losses are {losses[-1]} in step {number + 1}; lower generation.gan.learning_rate"
            )
        if share := stages.get(number + 1):
            for name, own in game.networks.items():
                if name != "D":
                    snapshots |= {f"{share:g}.{name}.{k}": v.clone() for k, v in own.state_dict().items()}
        if checkpoint and (number + 1) % STEPS_KEPT == 0:
            state = {"game": game.state(), "losses": losses, "snapshots": snapshots}
            save_state(checkpoint / CHECKPOINT, state)
    discriminator = {f"D.{name}": value for name, value in game.discriminator.state_dict().items()}
    return {"losses": torch.tensor(losses, dtype=torch.float64)} | discriminator | snapshots


class Training:
    """A training that goes to any step and on from there, with the bits of one go; nothing is made before it must.

    What was reached can so be looked at before it is decided whether to go on. ``done`` counts the steps, ``diverged``
    says whether a loss was no number in the last of them.
    """

    def __init__(self, windows: Windows, settings: GanSettings, seed: int, device: str | None = None):
        self.windows, self.settings, self.seed, self.device = windows, settings, seed, device
        self.done, self.diverged = 0, False

    @cached_property
    def game(self) -> Game:
        """The networks as far as they are trained."""
        return Game(self.windows.train, self.settings, self.seed, self.device)

    def reach(self, step: int, checkpoint: Path | None = None) -> None:
        """Train until ``step`` steps are done, or a loss diverges. ``checkpoint`` is for what comes after a kill."""
        state = load_checkpoint(checkpoint) if checkpoint else None
        if state and state["done"] > self.done:
            self.game.load(state["game"])
            self.done = state["done"]
        elif checkpoint and self.done:  # what led here is kept nowhere any more
            self._leave(checkpoint)
        bar = {"initial": self.done, "total": step, "desc": f"gan {self.seed}", "leave": False}
        for number in progress(range(self.done, step), **bar):
            self.diverged = not np.isfinite(self.game.step(number)).all()
            self.done = number + 1
            if self.diverged:
                break
            if checkpoint and self.done % STEPS_KEPT == 0:
                self._leave(checkpoint)

    def _leave(self, checkpoint: Path) -> None:
        save_state(checkpoint / CHECKPOINT, {"game": self.game.state(), "done": self.done})

    def generated(self, n: int, seed: int) -> dict[str, np.ndarray]:
        """:func:`generated` windows of each generator by its name, of the same latent vectors."""
        own = [copy.deepcopy(of).cpu() for of in self.game.generators]
        return {f"G{i + 1}": generated(of, n, seed) for i, of in enumerate(own)}


def read(windows: Windows, settings: GanSettings, found: dict[str, Tensor], share: float = 1.0) -> Game:
    """The networks of a :func:`trained` result at one of its stages, on the CPU, ready to generate."""
    game = Game(windows.train, settings, 0, "cpu")
    for name, network in game.networks.items():
        prefix = "D." if name == "D" else f"{share:g}.{name}."
        network.load_state_dict(supervised.part_of(found, prefix))
        network.eval()
    return game


@torch.no_grad()
def generated(own: Generator, n: int, seed: int) -> np.ndarray:
    """``n`` windows of standard normal latent vectors, (window, axis, time) in G float32."""
    z = torch.randn(n, own.stage1[0].in_channels, generator=torch.Generator().manual_seed(seed))
    return own.eval()(z).numpy()


@kept("gans")
def balanced_alpha(windows: Windows, settings: GanSettings, seed: int, share: float = 0.1) -> float:
    """The alpha for which both losses of the generators pull alike after a ``share`` of the training without transfer.

    Choice: on networks that judge nothing. All edges between generators are open for that one look.
    """
    game, number = Game(windows.train, replace(settings, gates=(), alpha=1.0), seed), round(share * settings.n_steps)
    for done in range(number):
        game.step(done)
    pulls = [
        game.pull(number, {e: "through" for e in game.edges if (e[0] == "D") == adversarial})
        for adversarial in (True, False)
    ]
    return pulls[0] / pulls[1]
