"""A network and names of layers turned into those layers' outputs, without changing the network.

A *tap* is a place in a network where units can be listened to or silenced. Windows are (window, axis, time) in G for
every network; maps are (window, unit, axis, time) for every layer, with one axis where it mixes the sensor axes (1-D).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from harvis_utils.networks.sfhf import SFHF, known

#: windows pushed through a network at once, which bounds the memory
CHUNK = 512


@dataclass(frozen=True)
class Tap:
    """Units of the layer ``name``: outputs of the submodule ``module``, rectified where the network does it later."""

    name: str
    module: str
    rectified: bool = False


class WithChannel(nn.Module):
    """A network that wants (window, 1, axis, time), given windows of (window, axis, time)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """What the network says of windows (window, axis, time)."""
        return self.network(x.unsqueeze(1))


def find(network: nn.Module, layer: str | Tap, rectified: bool = False) -> Tap:
    """The tap of a layer by name: ``conv1`` ... of SF-HF after batch norm and ReLU, else the submodule of that name.

    ``rectified`` says that the network rectifies this submodule's output by a function of its own, not by a submodule
    that could be named instead. Raises ``ValueError`` listing the valid names for an unknown one.
    """
    if isinstance(layer, Tap):
        return find(network, layer.module, layer.rectified) and layer
    if isinstance(network, SFHF) and layer in network.layers:
        return Tap(layer, f"norm_{layer}", True)
    return Tap(known("layer", layer, [name for name, _ in network.named_modules() if name]), layer, rectified)


def device_of(network: nn.Module) -> torch.device:
    """Where a network's parameters are, and windows have to be; the CPU for one without any."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))


@contextmanager
def record(network: nn.Module, taps: Sequence[str | Tap]) -> Iterator[dict[str, Tensor]]:
    """While the block runs, each call of ``network`` puts the maps of the ``taps`` into the dictionary it yields.

    Maps are (window, unit, axis, time), with their gradients, by the taps' names; the last call's count. Nothing is
    left on the network afterwards, also after an error::

        with record(network, ["conv1"]) as maps:
            network(windows)
        maps["conv1"].amax((2, 3))  # (window, unit)
    """
    found: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for tap in (find(network, tap) for tap in taps):

            def hook(module, args, output, tap=tap) -> None:
                found[tap.name] = as_maps(output.relu() if tap.rectified else output)

            hooks.enter_context(network.get_submodule(tap.module).register_forward_hook(hook))
        yield found


@contextmanager
def silenced(network: nn.Module, tap: str | Tap, units: Sequence[int]) -> Iterator[None]:
    """While the block runs, the outputs of ``units`` (before a later ReLU) are zero; nothing else changes.

    Raises ``ValueError`` in the first call for a unit that the layer does not have.
    """
    place = find(network, tap)
    index = torch.as_tensor(list(units), dtype=torch.int64)

    def hook(module, args, output: Tensor) -> Tensor:
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < output.shape[1]:
            raise ValueError(f"{place.name} has units 0 to {output.shape[1] - 1}, not {sorted(index.tolist())}")
        return output.index_fill(1, index.to(output.device), 0.0)

    with network.get_submodule(place.module).register_forward_hook(hook):
        yield


def as_maps(output: Tensor) -> Tensor:
    """A layer's output as (window, unit, axis, time): 1-D layers get one axis, dense ones one axis and one sample.

    Raises ``ValueError`` for an output of another number of dimensions.
    """
    if output.ndim not in (2, 3, 4):
        raise ValueError(f"maps need an output (window, unit[, axis][, time]), not one of shape {tuple(output.shape)}")
    if output.ndim == 3:
        return output[:, :, None, :]
    return output if output.ndim == 4 else output[:, :, None, None]


def maps_of(network: nn.Module, tap: str | Tap, x: Tensor) -> Tensor:
    """Maps of one tap for windows (window, axis, time): (window, unit, axis, time), with gradient."""
    with record(network, [tap]) as found:
        network(x)
    return next(iter(found.values()))


def chunks(network: nn.Module, layers: Sequence[str | Tap], x: np.ndarray | Tensor) -> Iterator[dict[str, Tensor]]:
    """Maps of several layers by name, for windows (window, axis, time), ``CHUNK`` windows at once, without gradients.

    The network computes in evaluation mode, and is as it was whenever a chunk is handed over.
    """
    places = [find(network, layer) for layer in layers]
    for batch in torch.as_tensor(x).split(CHUNK):
        with evaluating(network), torch.no_grad(), record(network, places) as maps:
            network(batch.to(device_of(network)))
        yield maps


def outputs(network: nn.Module, layer: str | Tap, x: np.ndarray | Tensor) -> Tensor:
    """The maps of one layer for all windows, (window, unit, axis, time), held in memory; see :func:`chunks`."""
    return torch.cat([maps for chunk in chunks(network, [layer], x) for maps in chunk.values()])


@contextmanager
def evaluating(network: nn.Module) -> Iterator[nn.Module]:
    """The network in evaluation mode without gradients for its weights; as it was afterwards, module by module."""
    modes = {module: module.training for module in network.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in network.parameters()}
    try:
        network.eval()
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield network
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, keeps in wanted.items():
            parameter.requires_grad_(keeps)
