"""Places that treat each sensor axis by itself: whether one does, and a network's front part as a bare trunk."""

from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn

from harvis_utils.networks import taps
from harvis_utils.networks.sfhf import SFHF, Trunk, folded
from harvis_utils.networks.taps import Tap
from harvis_utils.settings import ModelSettings

#: amplitudes of the noise on which maps are compared: what is silent at one is not at another
AMPLITUDES = (0.1, 0.3, 1.0, 3.0, 10.0)
#: modules without effect in evaluation mode, and the rectifier that every layer of a trunk ends in
_PASSED = (nn.ReLU, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def noise(n_axes: int, length: int, n: int = 4) -> Tensor:
    """Windows of noise of several amplitudes, the same in every call: (window, axis, time)."""
    made = torch.randn(len(AMPLITUDES), n, n_axes, length, generator=torch.Generator().manual_seed(0))
    return (made * torch.tensor(AMPLITUDES)[:, None, None, None]).flatten(0, 1)


@torch.no_grad()
def by_axis(network: nn.Module, place: str | Tap, n_axes: int, length: int) -> bool:
    """Whether all axes of windows pass to ``place`` by themselves and all in the same way, seen on noise.

    Its maps have as many axes as the windows then, other axes do not change an axis' map, and axes that trade places
    trade maps.
    """
    with taps.evaluating(network):
        x = taps.as_windows(network, noise(n_axes, length))
        maps = taps.maps_of(network, place, x)
        if maps.shape[2] != n_axes:
            return False
        others = torch.cat([x[:, :1], x[:, 1:].flip(0)], 1)
        alone = _equal(taps.maps_of(network, place, others)[:, :, 0], maps[:, :, 0])
        return alone and _equal(taps.maps_of(network, place, x.roll(1, 1)), maps.roll(1, 2))


def _equal(found: Tensor, expected: Tensor) -> bool:
    tolerance = min(1e3 * torch.finfo(found.dtype).eps, 0.02)  # the latter where a number has few digits
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@torch.no_grad()
def trunk_of(network: nn.Module, place: str | Tap, x: np.ndarray | Tensor, unpadded: bool = False) -> Trunk:
    """The network up to ``place`` as a trunk, where it is convolutions along time with batch norm and ReLU.

    ``place`` is rectified (``taps.find(..., rectified=True)`` where the network does that by a function). The trunk's
    maps are compared with the network's on windows ``x`` (window, axis, time) and on noise. With ``unpadded``
    convolutions without padding are taken too; their maps are the trunk's without its ends, where it sees zeros beyond
    the signal. Raises ``ValueError`` with the reason where the network's maps are not those of a trunk.
    """
    x = taps.as_windows(network, x)
    tap = taps.located(network, place, x)
    x = torch.cat([x, taps.as_windows(network, noise(*x.shape[1:]))])
    names = {module: name for name, module in network.named_modules()}
    ran: list[nn.Module] = []
    with taps.evaluating(network), ExitStack() as hooks:
        reached: list[bool] = []

        def note(module: nn.Module, *_) -> None:
            if not reached and not list(module.children()):
                ran.append(module)
            if names[module] == tap.module:
                reached.append(True)

        for module in names:
            hooks.enter_context(module.register_forward_hook(note))
        maps = taps.maps_of(network, tap, x)

    def refuse(reason: str) -> ValueError:
        return ValueError(f"{tap.name} is not the end of a per-axis trunk: {reason}")

    if maps.shape[2] != x.shape[1]:
        raise refuse(f"its maps have {maps.shape[2]} axes, the windows {x.shape[1]}")
    weights, biases = [], []
    for before, module, behind in zip([None, *ran], ran, [*ran[1:], None], strict=False):
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            if fault := _fault(module, unpadded, weights[-1].shape[0] if weights else 1):
                raise refuse(f"{names[module]} {fault}")
            w, b = folded(module, behind if isinstance(behind, _NORMS) else None)
            weights.append(w.flatten(2).to(x.dtype).contiguous())
            biases.append(b.to(x.dtype))
        elif isinstance(module, _NORMS) and not isinstance(before, nn.Conv1d | nn.Conv2d):
            raise refuse(f"the norm {names[module]} does not follow a convolution")
        elif not isinstance(module, _NORMS + _PASSED):
            raise refuse(f"{names[module]} is a {type(module).__name__}")
    if not weights:
        raise refuse("no convolution comes before it")
    trunk = Trunk(tuple(weights), tuple(biases))
    last = trunk.layers[-1]
    found = trunk.feature_map(x.flatten(0, 1), last).unflatten(0, x.shape[:2]).transpose(1, 2)
    edge = (x.shape[2] - maps.shape[3]) // 2
    if unpadded and edge == trunk.receptive_field(last) // 2:
        found = found[..., edge : x.shape[2] - edge]
    if found.shape != maps.shape or not _equal(found, maps):
        raise refuse(
            "its maps are not those of its convolutions, each along time and followed by a ReLU; "
            "name the rectifier, or say rectified=True where the network rectifies by a function"
        )
    return trunk


def network_of(trunk: Trunk) -> SFHF:
    """A network with the trunk's convolutions and no batch norm, for what wants modules; its head means nothing."""
    shape = {"n_units": len(trunk.biases[0]), "n_layers": len(trunk.weights), "kernel": trunk.weights[0].shape[2]}
    with torch.random.fork_rng(devices=[]):
        network = SFHF(1, 1, 1, ModelSettings(**shape, batch_norm=False, pool="mean", n_dense=0))
    of = zip(trunk.layers, trunk.weights, trunk.biases, strict=True)
    own = {name: value for la, w, b in of for name, value in ((f"{la}.weight", w[:, :, None]), (f"{la}.bias", b))}
    network.load_state_dict(own, strict=False)
    return network.eval()


def _fault(conv: nn.Conv1d | nn.Conv2d, unpadded: bool, n_in: int) -> str | None:
    """Why a trunk cannot hold this convolution."""
    kernel = conv.kernel_size
    named = {"same": tuple(k // 2 for k in kernel), "valid": (0,) * len(kernel)}
    padding = named.get(conv.padding, conv.padding)
    faults = {
        f"has the kernel {kernel}, which is not an odd number of samples along time alone": (
            sum(k > 1 for k in kernel) > 1 or max(kernel) % 2 == 0
        ),
        "has a stride, dilation, groups, or padding other than zeros": (
            max(conv.stride) > 1 or max(conv.dilation) > 1 or conv.groups > 1 or conv.padding_mode != "zeros"
        ),
        f"takes {conv.in_channels} channels, not the {n_in} that come before it": conv.in_channels != n_in,
        "has no padding, so that maps are shorter than windows (unpadded=True takes it)": (
            not unpadded and padding == named["valid"] != named["same"]
        ),
        f"has a padding of {padding}": padding not in named.values(),
    }
    return next((fault for fault, is_so in faults.items() if is_so), None)
