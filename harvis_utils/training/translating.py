"""StarGAN v2 (Choi et al. 2020) trained on windows of several domains, of which only the first has labels.

Domain 0 is the *source*, whose windows have labels; the others are *targets* without any. The generator's loss is

    L = L_adv + L_sty - w L_ds + L_cyc + L_task + L_sem

adversarial, style reconstruction, diversity (w falls to 0) and cycle as in StarGAN v2, and what makes it class-aware: a
classifier C on the generator's content, L_task = CE(C(content of x), label) on the source, and L_sem = CE between C's
answers for a window before and after translation (after CyCADA, Hoffman et al. 2018). Those before are fixed: who
learned from them could make both answers alike by making both wrong. The discriminator learns with the penalty R1 on
real windows (Mescheder et al. 2018).
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harvis_utils.data.windowing import Split
from harvis_utils.networks import style
from harvis_utils.networks.style import Standard
from harvis_utils.parallel import progress, torch_device
from harvis_utils.settings import StyleSettings
from harvis_utils.store.results import kept
from harvis_utils.training import supervised
from harvis_utils.training.checkpoints import CHECKPOINT, TrainingError, load_checkpoint, save_state
from harvis_utils.training.supervised import EVALUATION_BATCH

#: what is noted of each step
LOSSES = ("discriminator", "R1", "adversarial", "style", "diversity", "cycle", "task", "semantic")
#: networks of which an average over the steps is kept, and used
AVERAGED = ("G", "F", "E", "C")
#: Choice: share of the steps without L_sem: answers of a classifier that knows nothing would teach it to say nothing
SEMANTIC_FROM = 0.15
#: Choice: of the learning rate, for the mapping network; with 0.01 as for images styles hardly move in short trainings
MAPPING_SHARE = 0.1
#: Choice: what an average keeps of itself in each step, less in the first ones; 0.999 for images
KEEPS = 0.995
#: Choice: shares of the steps after which networks are kept
STAGES = (0.5, 1.0)
#: Choice: between two checkpoints
STEPS_KEPT = 100
SOURCE, TARGET = 0, 1


def unlabelled(split: Split) -> Split:
    """The same windows; nobody can tell their activities any more."""
    return replace(split, activity=np.full(len(split), -1))


def semantic_loss(after: Tensor, before: Tensor) -> Tensor:
    """L_sem of class scores (window, class) after and before translation; the latter learn nothing."""
    return -(before.detach().softmax(1) * after.log_softmax(1)).sum(1).mean()


def penalty(scores: Tensor, x: Tensor) -> Tensor:
    """R1: half the mean squared norm of the gradient of scores (window,) by their windows (window, axis, time)."""
    (grad,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return grad.square().flatten(1).sum(1).mean() / 2


class Translation:
    """All networks, their averages, and one step of their training."""

    def __init__(
        self, domains: Sequence[Split], n_classes: int, settings: StyleSettings, seed: int, device: str | None = None
    ):
        where, source = torch_device(device), domains[SOURCE]
        with supervised.drawing(seed):
            about = source.series.shape[1], source.length, n_classes, len(domains)
            self.networks = style.networks(*about, settings).to(where)
        self.standard = Standard(source.series.mean(0), source.series.std(0)).to(where)
        self.averages = copy.deepcopy(nn.ModuleDict({name: self.networks[name] for name in AVERAGED}))
        rates = dict.fromkeys(self.networks, settings.learning_rate) | {"F": MAPPING_SHARE * settings.learning_rate}
        about = {"betas": (0.0, 0.99), "weight_decay": 1e-4}  # Paper
        self.optimizers = {n: torch.optim.Adam(of.parameters(), rates[n], **about) for n, of in self.networks.items()}
        self.settings, self.seed = settings, seed
        self.x = [self.standard(torch.as_tensor(np.ascontiguousarray(of.x), device=where)) for of in domains]
        self.label = torch.as_tensor(source.activity, device=where)

    def state(self) -> dict:
        """All that training goes on from."""
        parts = {"networks": self.networks, "averages": self.averages}
        found = {what: dict(of.state_dict()) for what, of in parts.items()}
        return found | {"optimizers": {name: of.state_dict() for name, of in self.optimizers.items()}}

    def load(self, state: dict) -> None:
        """Go on from a :meth:`state`."""
        self.networks.load_state_dict(state["networks"])
        self.averages.load_state_dict(state["averages"])
        for name, of in self.optimizers.items():
            of.load_state_dict(state["optimizers"][name])

    def draws(self, number: int) -> dict[str, Tensor]:
        """What step ``number`` sees, by the step alone: equally many windows of each domain, "x" and "domain", labels
        of the source's, the domain "wanted" of each, two windows of that, "references", and two "latent" vectors.

        Paper: the domain wanted is any, a window's own too.
        """
        noise = torch.Generator().manual_seed(int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0]))
        n, size = len(self.x), self.settings.batch_size // len(self.x)
        chosen = [torch.randint(len(of), (size,), generator=noise) for of in self.x]
        wanted = torch.randint(n, (n * size,), generator=noise)
        place = torch.rand(2, n * size, generator=noise)
        latent = torch.randn(2, n * size, style.N_LATENT, generator=noise)
        where = self.label.device
        at = (place * torch.tensor([len(of) for of in self.x])[wanted]).long().to(where)
        wanted = wanted.to(where)
        references = torch.empty(2, n * size, *self.x[SOURCE].shape[1:], device=where)
        for domain, x in enumerate(self.x):
            own = wanted == domain
            references[:, own] = x[at[:, own]]
        return {
            "x": torch.cat([x[at.to(where)] for x, at in zip(self.x, chosen, strict=True)]),
            "domain": torch.arange(n, device=where).repeat_interleave(size),
            "label": self.label[chosen[SOURCE].to(where)],
            "wanted": wanted,
            "references": references,
            "latent": latent.to(where),
        }

    def styles(self, seen: dict[str, Tensor], which: int, latent: bool) -> Tensor:
        """Styles (window, style) of the domains wanted: of random numbers, or of other windows."""
        kind, name = ("latent", "F") if latent else ("references", "E")
        return self.networks[name](seen[kind][which], seen["wanted"])

    def discriminator_losses(self, seen: dict[str, Tensor], latent: bool) -> dict[str, Tensor]:
        """Non-saturating losses of real and made windows, and R1."""
        judged, x = self.networks["D"], seen["x"].detach().requires_grad_()
        with torch.no_grad():
            made = self.networks["G"](x, self.styles(seen, 0, latent))
        real, false = judged(x, seen["domain"])[:, 0], judged(made, seen["wanted"])[:, 0]
        return {"discriminator": F.softplus(-real).mean() + F.softplus(false).mean(), "R1": penalty(real, x)}

    def weights(self, number: int) -> dict[str, float]:
        """Weights of the generator's losses in step ``number``."""
        own = self.settings
        done = number / max(1, own.n_steps - 1)
        semantic = own.semantic_weight if done >= SEMANTIC_FROM else 0.0
        weights = {"adversarial": 1.0, "style": 1.0, "diversity": own.diversity_weight * (done - 1), "cycle": 1.0}
        return weights | {"task": own.task_weight, "semantic": semantic}

    def generator_losses(self, seen: dict[str, Tensor], latent: bool, weights: dict[str, float]) -> dict[str, Tensor]:
        """Losses by name before their weights; what has none is not computed."""
        generator, classifier = self.networks["G"], self.networks["C"]
        x, wanted = seen["x"], seen["wanted"]
        content, wished = generator.encode(x), self.styles(seen, 0, latent)
        made = generator.decode(content, wished)
        # one call for the styles of what was made and of what it was made of
        found, own = self.networks["E"](torch.cat([made, x]), torch.cat([wanted, seen["domain"]])).chunk(2)
        after = generator.encode(made)
        losses = {
            "adversarial": F.softplus(-self.networks["D"](made, wanted)).mean(),
            "style": F.l1_loss(found, wished),
            "cycle": F.l1_loss(generator.decode(after, own), x),
        }
        if weights["diversity"]:
            with torch.no_grad():  # Choice: one of both learns, at half the price
                other = generator.decode(content, self.styles(seen, 1, latent))
            losses["diversity"] = F.l1_loss(made, other)
        if weights["task"] or weights["semantic"]:
            before = classifier(content)
            if weights["task"]:
                losses["task"] = F.cross_entropy(before[: len(seen["label"])], seen["label"])
            if weights["semantic"]:
                losses["semantic"] = semantic_loss(classifier(after), before)
        return losses

    def step(self, number: int) -> list[float]:
        """Steps of the discriminator and of the others, by styles of random numbers and of windows; ``LOSSES``.

        Paper: mapping and style encoder learn from the first kind alone.
        """
        seen, weights, noted = self.draws(number), self.weights(number), {}
        for latent in (number % 2 == 0,) if self.settings.alternate else (True, False):
            losses = self.discriminator_losses(seen, latent)
            self._descend(sum(losses.values()), ("D",))
            found = self.generator_losses(seen, latent, weights)
            self._descend(sum(weights[name] * of for name, of in found.items()), AVERAGED if latent else ("G", "C"))
            noted |= losses | found
        part = 1 - min(KEEPS, (1 + number) / (10 + number))  # of the weights nobody has trained nothing is to stay
        with torch.no_grad():
            for name, own in self.averages.items():
                for average, new in zip(own.parameters(), self.networks[name].parameters(), strict=True):
                    average.lerp_(new, part)
        return [float(noted[name].detach()) if name in noted else 0.0 for name in LOSSES]

    def _descend(self, loss: Tensor, names: Sequence[str]) -> None:
        for optimizer in self.optimizers.values():  # losses pass through networks that do not learn from them
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for name in names:
            self.optimizers[name].step()


@kept("styles", version=1, apart=("device",))
def trained(
    source: Split,
    target: Split,
    n_classes: int,
    settings: StyleSettings,
    seed: int,
    *,
    device: str | None = None,
    checkpoint: Path | None = None,
) -> dict[str, Tensor]:
    """Train from ``seed``; interrupted, it goes on after its last checkpoint, and ends with the same bits.

    No label of ``target`` is read; hand it over :func:`unlabelled`, so that none is part of the address either. Returns
    ``losses`` (step, ``LOSSES``) and, for each of ``STAGES``, the averaged weights ``<share>.<network>.*``.
    Raises :class:`TrainingError` where a loss diverges.
    """
    own = Translation((source, target), n_classes, settings, seed, device)
    losses, snapshots = [], {}
    if checkpoint and (state := load_checkpoint(checkpoint)):
        own.load(state["networks"])
        losses, snapshots = state["losses"], state["snapshots"]
    stages = {max(1, round(share * settings.n_steps)): share for share in STAGES}
    todo = range(len(losses), settings.n_steps)
    for number in progress(todo, initial=len(losses), total=settings.n_steps, desc=f"styles {seed}"):
        losses.append(own.step(number))
        if not np.isfinite(losses[-1]).all():
            said = dict(zip(LOSSES, losses[-1], strict=True))
            raise TrainingError(f"styles {seed}: losses are {said} in step {number + 1}; lower styles.learning_rate")
        if share := stages.get(number + 1):
            snapshots |= {f"{share:g}.{name}": v.clone() for name, v in own.averages.state_dict().items()}
        if checkpoint and (number + 1) % STEPS_KEPT == 0:
            state = {"networks": own.state(), "losses": losses, "snapshots": snapshots}
            save_state(checkpoint / CHECKPOINT, state)
    return {"losses": torch.tensor(losses, dtype=torch.float64)} | snapshots


# ------------------------------------------------------------------------------------------------ windows translated


class Translator:
    """Averaged networks of a :func:`trained` result at one of its stages, ready to translate windows in G."""

    def __init__(
        self,
        source: Split,
        n_classes: int,
        settings: StyleSettings,
        found: dict[str, Tensor],
        share: float = 1.0,
        device: str | None = None,
    ):
        made = style.networks(source.series.shape[1], source.length, n_classes, TARGET + 1, settings)
        self.networks = nn.ModuleDict({name: made[name] for name in AVERAGED})
        self.networks.load_state_dict(supervised.part_of(found, f"{share:g}."))
        self.standard = Standard(source.series.mean(0), source.series.std(0))
        self.device = torch_device(device)
        for part in (self.networks, self.standard):
            part.to(self.device).eval()

    def latent(self, n: int, draw: int) -> Tensor:
        """(window, latent) random numbers of the ``draw``-th translation, the same ones whoever asks."""
        return torch.randn(n, style.N_LATENT, generator=torch.Generator().manual_seed(1000 + draw))

    @torch.no_grad()
    def _each(self, x: np.ndarray, made, *more: Tensor) -> np.ndarray:
        whole = torch.as_tensor(np.ascontiguousarray(x, dtype=np.float32))
        parts = zip(*(of.split(EVALUATION_BATCH) for of in (whole, *more)), strict=True)
        return torch.cat([made(*(of.to(self.device) for of in part)).cpu() for part in parts]).numpy()

    def _domain(self, x: Tensor, domain: int) -> Tensor:
        return torch.full((len(x),), domain, device=x.device)

    def translated(self, x: np.ndarray, draw: int, domain: int = SOURCE) -> np.ndarray:
        """G(x, F(z)) with the branch of a ``domain``, by default the source's, which the source leaves out: windows
        (window, axis, time) in G.
        """

        def made(x: Tensor, z: Tensor) -> Tensor:
            styles = self.networks["F"](z, self._domain(x, domain))
            return self.standard.back(self.networks["G"](self.standard(x), styles))

        return self._each(x, made, self.latent(len(x), draw))

    def reconstructed(self, x: np.ndarray, domain: int = TARGET) -> np.ndarray:
        """G(x, E(x)): a window in its own style."""

        def made(x: Tensor) -> Tensor:
            scaled = self.standard(x)
            return self.standard.back(self.networks["G"](scaled, self.networks["E"](scaled, self._domain(x, domain))))

        return self._each(x, made)

    def classes(self, x: np.ndarray) -> np.ndarray:
        """C's probabilities (window, class) of windows as they are."""
        return self._each(x, lambda x: self.networks["C"](self.networks["G"].encode(self.standard(x))).softmax(1))
