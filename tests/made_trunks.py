"""Trunks made by seed, for tests that need no training, and the readable loop that every ascent must equal."""

import torch

from harvis_utils.maximization.paper_methods import Method, lowpass_matrix
from harvis_utils.networks.sfhf import Trunk
from harvis_utils.settings import MaximizationSettings, Step


def made_trunk(n_units: int = 4, seed: int = 0, dtype=torch.float32, n_layers: int = 3, kernel: int = 5) -> Trunk:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    first = normal(n_units, 1, kernel)
    later = [normal(n_units, n_units, kernel) * (0.4 / n_units) ** 0.5 for _ in range(n_layers - 1)]
    return Trunk((first, *later), tuple(0.1 * normal(n_units) for _ in range(n_layers)))


def naive(maps, th: float, recipe: Method, step: Step, few: MaximizationSettings, start):
    """One unit, one method, the whole network, autograd, a plain loop: the specification of all that climbs.

    ``maps`` turns a signal (axis, time) into all outputs of the unit's map; ``start`` and the result are such signals
    in float64.
    """
    x = torch.as_tensor(start, dtype=torch.float64)
    made = lowpass_matrix(x.shape[1], few.lowpass_hz, few.lowpass_order, 30.0)
    lowpass = torch.tensor(made.copy(), dtype=torch.float64)

    def project(x):
        x = torch.stack([lowpass @ axis for axis in x]) if recipe.after == "lowpass" else x
        return x * len(x) ** 0.5 / x.square().sum().sqrt() if recipe.after == "unit-norm" else x

    x = project(x)
    first, second, eta = torch.zeros_like(x), torch.zeros_like(x), step.step_size
    for number in range(1, few.n_steps + 1):
        x = x.detach().requires_grad_()
        outputs = maps(x)
        f = torch.minimum(outputs, torch.tensor(th)).mean() if recipe.clip else outputs.mean()
        penalty = torch.zeros((), dtype=torch.float64)
        for axis in x:
            beyond = axis.abs()[axis.abs() > few.th_aap_g]
            if recipe.l2:
                penalty = penalty + (axis**2).sum().sqrt()
            if recipe.tv:
                penalty = penalty + (axis[1:] - axis[:-1]).abs().sum()
            if recipe.aap and len(beyond):
                penalty = penalty + (beyond - few.th_aap_g).mean()
        if recipe.eap and (outputs > th).any():
            penalty = penalty + (outputs[outputs > th] - th).mean()
        (g,) = torch.autograd.grad(f - few.weight * penalty, x)
        x = x.detach()
        if step.optimizer == "ascent":
            x = x + eta * g
        elif step.optimizer == "momentum":
            first = 0.9 * first + g
            x = x + eta * first
        else:
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
            x = x + eta * (first / (1 - 0.9**number)) / ((second / (1 - 0.999**number)).sqrt() + 1e-8)
        x, eta = project(x), eta * step.decay
    return x.detach().numpy()
