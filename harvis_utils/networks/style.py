"""Networks that give a window another style, StarGAN v2 (Choi et al. 2020) in one dimension; a classifier of content.

A generator takes a window's *content* and a *style* vector, and makes a window of both. Styles come from random numbers
by the mapping network, or from another window by the style encoder; both have a branch for each domain, as has the
discriminator. Written from the paper's equations. All residual sums are divided by the root of two.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harvis_utils.networks.sfhf import known
from harvis_utils.settings import StyleSettings

#: samples of a window; two halvings in the generator, four in the discriminator and the style encoder
LENGTH = 64
#: what becomes of an axis' mean and standard deviation, which are posture and intensity
CONTENT_NORMS = ("instance", "none first", "moments")
#: Paper: random numbers that a style is made of, and numbers of a style
N_LATENT, N_STYLE = 16, 64
#: Choice: width of the mapping network; 512 for images
N_HIDDEN = 128
#: Choice: of the generator's last weights before training; windows otherwise begin five times as large as real ones
FIRST_SCALE = 0.2
#: Choice: slope of all leaky rectifiers, as in DCGAN's discriminator
SLOPE = 0.2
#: keeps the logarithm of a standard deviation finite where an axis rests; in standard deviations of training
LEAST_SPREAD = 1e-2


def _active(h: Tensor) -> Tensor:
    return F.leaky_relu(h, SLOPE)


def instance_norm(h: Tensor) -> Tensor:
    """Each unit of each window with mean 0 and standard deviation 1 over time: (window, unit, time)."""
    return F.instance_norm(h)


class Residual(nn.Module):
    """A residual block, (window, before, time) to (window, after, time); with ``halved`` of half as many samples.

    Choice: the shortcut forks behind the norm. In front of it, it would carry posture and intensity around the norm.
    """

    def __init__(self, before: int, after: int, normed: bool = False, halved: bool = False):
        super().__init__()
        self.normed, self.halved = normed, halved
        self.first, self.second = nn.Conv1d(before, before, 3, padding=1), nn.Conv1d(before, after, 3, padding=1)
        self.short = nn.Conv1d(before, after, 1, bias=False) if before != after else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        """The block's output."""
        h = instance_norm(h) if self.normed else h
        inner, h = self.first(_active(h)), self.short(h)
        if self.halved:
            inner, h = F.avg_pool1d(inner, 2), F.avg_pool1d(h, 2)
        return (h + self.second(_active(instance_norm(inner) if self.normed else inner))) / 2**0.5


class AdaIN(nn.Module):
    """``(1 + gamma(style)) * norm(h) + beta(style)`` (Huang and Belongie 2017).

    The last ``plain`` units are not normed: what is constant over time would be nothing.
    """

    def __init__(self, units: int, n_style: int, plain: int = 0):
        super().__init__()
        self.plain, self.gains = plain, nn.Linear(n_style, 2 * units)

    def forward(self, h: Tensor, style: Tensor) -> Tensor:
        """(window, unit, time) with the means and standard deviations that a style (window, style) wants."""
        cut = h.shape[1] - self.plain
        h = torch.cat([instance_norm(h[:, :cut]), h[:, cut:]], 1) if self.plain else instance_norm(h)
        gamma, beta = self.gains(style).unsqueeze(2).chunk(2, 1)
        return (1 + gamma) * h + beta


class StyledResidual(nn.Module):
    """A residual block whose norms a style sets; with ``doubled`` of twice as many samples."""

    def __init__(self, before: int, after: int, n_style: int, doubled: bool = False, plain: int = 0):
        super().__init__()
        self.doubled = doubled
        self.norm1, self.norm2 = AdaIN(before, n_style, plain), AdaIN(after, n_style)
        self.first, self.second = nn.Conv1d(before, after, 3, padding=1), nn.Conv1d(after, after, 3, padding=1)
        self.short = nn.Conv1d(before, after, 1, bias=False) if before != after else nn.Identity()

    def forward(self, h: Tensor, style: Tensor) -> Tensor:
        """The block's output."""
        inner = _active(self.norm1(h, style))
        if self.doubled:
            inner, h = (F.interpolate(of, scale_factor=2, mode="nearest") for of in (inner, h))
        inner = self.second(_active(self.norm2(self.first(inner), style)))
        return (self.short(h) + inner) / 2**0.5


class Generator(nn.Module):
    """Windows in other styles; all windows here in standard deviations of the training windows' axes.

    ``content_norm`` says how windows lose what is not content: "instance", a norm in every block of the encoder; "none
    first", none in the first one; "moments", norms in all, but mean and logarithm of the standard deviation of each
    axis stand beside the content as units of their own. Choice: no norm before the last convolution, which would take
    posture away again.
    """

    def __init__(self, n_axes: int, settings: StyleSettings):
        super().__init__()
        c, style = settings.n_units, N_STYLE
        self.norm = known("content_norm", settings.content_norm, CONTENT_NORMS)
        self.n_moments = 2 * n_axes if self.norm == "moments" else 0
        self.n_content = 4 * c + self.n_moments
        self.stem = nn.Conv1d(n_axes, c, 3, padding=1, padding_mode="replicate")  # an offset stays an offset
        self.down = nn.Sequential(
            Residual(c, 2 * c, normed=self.norm != "none first", halved=True),
            Residual(2 * c, 4 * c, normed=True, halved=True),
            *(Residual(4 * c, 4 * c, normed=True) for _ in range(2)),
        )
        plan = ((self.n_content, 4 * c, False), (4 * c, 4 * c, False), (4 * c, 2 * c, True), (2 * c, c, True))
        blocks = [
            StyledResidual(before, after, style, doubled, 0 if i else self.n_moments)
            for i, (before, after, doubled) in enumerate(plan)
        ]
        self.up = nn.ModuleList(blocks)
        self.out = nn.Conv1d(c, n_axes, 1)

    def encode(self, x: Tensor) -> Tensor:
        """The content of windows (window, axis, time), (window, unit, time / 4)."""
        h = self.down(self.stem(x))
        if not self.n_moments:
            return h
        moments = torch.cat([x.mean(2), (x.std(2, correction=0) + LEAST_SPREAD).log()], 1)
        return torch.cat([h, moments.unsqueeze(2).expand(-1, -1, h.shape[2])], 1)

    def decode(self, content: Tensor, style: Tensor) -> Tensor:
        """Windows of contents and styles (window, style)."""
        for block in self.up:
            content = block(content, style)
        return self.out(_active(content))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """``x`` in other styles."""
        return self.decode(self.encode(x), style)


class ContentClassifier(nn.Module):
    """Content into class scores before softmax. Choice: convolution, mean over time, linear; not stated."""

    def __init__(self, n_content: int, n_classes: int):
        super().__init__()
        self.conv, self.classes = nn.Conv1d(n_content, n_content, 3, padding=1), nn.Linear(n_content, n_classes)

    def forward(self, content: Tensor) -> Tensor:
        """(window, unit, time) -> (window, class)."""
        return self.classes(_active(self.conv(content)).mean(2))


def of_domain(every: Tensor, domain: Tensor) -> Tensor:
    """What belongs to each window's own domain: (window, domain, n), (window,) -> (window, n)."""
    return every[torch.arange(len(every), device=every.device), domain]


class Mapping(nn.Module):
    """Random numbers (window, latent) into styles of a domain: shared layers, then a branch for each domain."""

    def __init__(self, n_domains: int):
        super().__init__()
        sizes = [N_LATENT, *[N_HIDDEN] * 3]
        layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in zip(sizes, sizes[1:], strict=False)]
        self.shared = nn.Sequential(*layers)
        ends = (nn.Linear(N_HIDDEN, N_HIDDEN), nn.ReLU(), nn.Linear(N_HIDDEN, N_STYLE))
        self.branches = nn.ModuleList(nn.Sequential(*copy.deepcopy(ends)) for _ in range(n_domains))

    def forward(self, z: Tensor, domain: Tensor) -> Tensor:
        """Styles (window, style) of the domains (window,)."""
        h = self.shared(z)
        return of_domain(torch.stack([branch(h) for branch in self.branches], 1), domain)


class Critic(nn.Module):
    """Windows into ``n_out`` numbers for each domain: the style encoder, and with one number the discriminator."""

    def __init__(self, n_axes: int, n_domains: int, n_out: int, settings: StyleSettings):
        super().__init__()
        widths = [settings.n_units * factor for factor in (1, 2, 4, 4, 4)]
        self.n_out, last = n_out, LENGTH // 2**4
        blocks = [Residual(a, b, halved=True) for a, b in zip(widths, widths[1:], strict=False)]
        self.body = nn.Sequential(nn.Conv1d(n_axes, widths[0], 3, padding=1), *blocks)
        self.gathered = nn.Conv1d(widths[-1], widths[-1], last)
        self.domains = nn.Linear(widths[-1], n_domains * n_out)

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """(window, axis, time), (window,) -> (window, n_out) of each window's own domain."""
        h = _active(self.gathered(_active(self.body(x)))[..., 0])
        return of_domain(self.domains(h).unflatten(1, (-1, self.n_out)), domain)


def networks(n_axes: int, length: int, n_classes: int, n_domains: int, settings: StyleSettings) -> nn.ModuleDict:
    """New networks by their letters: "G" generator, "F" mapping, "E" style encoder, "C" classifier, "D" discriminator.

    Weights are drawn as He et al. (2015) have it, biases are 0. Raises ``ValueError`` for windows of another length.
    """
    if length != LENGTH:
        raise ValueError(f"windows have {length} samples; styles are learned of {LENGTH}: cut settings.LONG_WINDOWS")
    made = nn.ModuleDict({"G": Generator(n_axes, settings), "F": Mapping(n_domains)})
    made["E"] = Critic(n_axes, n_domains, N_STYLE, settings)
    made["C"] = ContentClassifier(made["G"].n_content, n_classes)
    made["D"] = Critic(n_axes, n_domains, 1, settings)
    for module in made.modules():
        if isinstance(module, nn.Conv1d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    with torch.no_grad():
        made["G"].out.weight.mul_(FIRST_SCALE)
    return made


class Standard(nn.Module):
    """Windows in G into standard deviations of training, and :meth:`back`; ``center`` and ``spread`` are (axis,)."""

    def __init__(self, center: Sequence[float], spread: Sequence[float]):
        super().__init__()
        for name, values in (("center", center), ("spread", spread)):
            self.register_buffer(name, torch.as_tensor(np.asarray(values), dtype=torch.float32)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        """From G."""
        return (x - self.center) / self.spread

    def back(self, x: Tensor) -> Tensor:
        """To G."""
        return x * self.spread + self.center
