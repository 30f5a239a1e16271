"""Places in a network: their names, and what each is, found out once by watching a few small forward passes."""

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from itertools import chain, count
from types import BuiltinFunctionType, FunctionType
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from harvis_utils.networks import layouts
from harvis_utils.networks.following import Follower
from harvis_utils.networks.layouts import PlaceError
from harvis_utils.networks.sfhf import SFHF, known

#: layouts that a network may want its windows in
WANTED = ("window time axis", "window 1 axis time", "window 1 time axis")


@dataclass(frozen=True)
class Tap:
    """Units of the layer ``name``: outputs of the submodule ``module``, rectified where the network does it later.

    ``layout`` says what the output's dimensions are (:mod:`harvis_utils.networks.layouts`), None where it is to be
    found; ``call`` which call of a module that runs more than once, counted from 0; ``part`` which of the tensors that
    it returns. A ``rectified`` place is behind the activation that its output goes to, and behind a norm before that;
    where it goes to none, it is rectified by a ReLU that the network does not have.
    """

    name: str
    module: str
    rectified: bool = False
    layout: str | None = None
    call: int | None = None
    part: int = 0


class WithLayout(nn.Module):
    """A network that wants its windows in another layout, given windows of (window, axis, time).

    ``layout`` is e.g. ``"window time axis"`` (recurrent layers, Keras) or ``"window 1 time axis"``. Raises
    ``ValueError`` for one that does not name window, axis and time once.
    """

    def __init__(self, network: nn.Module, layout: str):
        super().__init__()
        words = [word for group in layouts.parsed(layout, ("window", "axis", "time")) for word in group]
        if "unit" in words or "(" in layout:
            raise PlaceError(f"windows have no such layout as {layout!r}; those that are often wanted: {WANTED}")
        self.network, self.words = network, words

    def forward(self, x: Tensor) -> Tensor:
        """What the network says of windows (window, axis, time)."""
        x = x.permute([("window", "axis", "time").index(word) for word in self.words if word != "1"])
        for dim, word in enumerate(self.words):
            x = x.unsqueeze(dim) if word == "1" else x
        return self.network(x)


class WithChannel(WithLayout):
    """A network that wants (window, 1, axis, time), given windows of (window, axis, time)."""

    def __init__(self, network: nn.Module):
        super().__init__(network, "window 1 axis time")


# ------------------------------------------------------------------------------------------------ names and windows


def refuse_compiled(network: nn.Module) -> None:
    """Raise ``ValueError`` for a network in which hooks would not be called."""
    for name, module in network.named_modules():
        compiled = hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        if compiled or hasattr(getattr(module, "forward", None), "_torchdynamo_orig_callable"):
            how = "compiled (torch.compile)"
        elif isinstance(module, torch.jit.ScriptModule):
            how = "a TorchScript module"
        else:
            continue
        what = f"its part {name!r}" if name else "it"
        raise PlaceError(
            f"the network cannot be looked into, because {what} is {how}, whose layers are not called one by one: pass "
            "the network as it was before"
        )


def refuse_empty(network: nn.Module) -> None:
    """Raise ``ValueError`` for a network whose weights hold no numbers."""
    for name, value in chain(network.named_parameters(), network.named_buffers()):
        if is_lazy(value):
            fault = "have no shape yet: call the network once with windows, and train it"
        elif value.is_meta:
            fault = 'hold no numbers, because they are on the device "meta": load them, or make the network on the CPU'
        elif isinstance(value, nn.Parameter) and value.isnan().any():
            fault = "hold NaN, as where training diverged: load others"
        else:
            continue
        raise PlaceError(f"the network's weights cannot be used: those of {name!r} {fault}")


def find(
    network: nn.Module, layer: str | Tap, rectified: bool = False, layout: str | None = None, call: int | None = None
) -> Tap:
    """The tap of a layer by name: ``conv1`` ... of SF-HF after batch norm and ReLU, else the submodule of that name.

    ``rectified`` says that the network rectifies this submodule's output by a function of its own, not by a submodule
    that could be named instead; ``layout`` and ``call`` are as in :class:`Tap`, and change one that is given. Raises
    ``ValueError`` listing the valid names for an unknown one, and for a network that is compiled.
    """
    refuse_compiled(network)
    if isinstance(layer, Tap):
        find(network, layer.module, layout=layout or layer.layout)
        name = layer.name if call in (None, layer.call) else f"{layer.module}, call {call}"
        asked = {"rectified": rectified or None, "layout": layout, "call": call}
        return replace(layer, name=name, **{key: value for key, value in asked.items() if value is not None})
    if layout is not None:
        layouts.parsed(layout)
    if isinstance(network, SFHF) and layer in network.layers and call is None:
        return Tap(layer, f"norm_{layer}", True, layout or _known_layout(network, layer))
    known("layer", layer, [name for name, _ in network.named_modules() if name])
    name = layer if call is None else f"{layer}, call {call}"
    return Tap(name, layer, rectified, layout or _known_layout(network, layer), call)


def unit_numbers(units: Sequence[int], n: int | None = None, where: str = "", none: bool = False) -> list[int]:
    """Units as a list of whole numbers, of the ``n`` that there are where that is known.

    Raises ``ValueError`` for what does not give each unit once by its number, as a mask, and, unless ``none``, for no
    unit.
    """
    given = units if isinstance(units, Iterable) and getattr(units, "ndim", 1) else [units]
    found = [unit.item() if getattr(unit, "ndim", 1) == 0 else unit for unit in given]
    whole = all(type(unit) is int for unit in found) and bool(found or none)
    if not whole or len(set(found)) < len(found) or (n and not set(found) <= set(range(n))):
        said = f"{where} has units 0 to {n - 1}; " if n else ""
        hint = "; np.flatnonzero(mask) gives those of a mask" if any(isinstance(u, bool) for u in found) else ""
        raise PlaceError(f"{said}units should be a list of numbers, one or more, each once, not {found}{hint}")
    return found


def _known_layout(network: nn.Module, module: str) -> str | None:
    if not isinstance(network, SFHF):
        return None
    return "window unit axis time" if module.startswith(("conv", "norm_", "mix")) else "window unit"


def _is_known(network: nn.Module, tap: Tap) -> bool:
    """Whether a place needs no look at the network: SF-HF's convolutions, also in a view of it that declares them."""
    owner, _, name = tap.module.rpartition(".")
    own = name.startswith("norm_conv") and isinstance(network.get_submodule(owner), SFHF)
    return own and tap.layout == "window unit axis time"


def device_of(network: nn.Module) -> torch.device:
    """Where a network's parameters are, and windows have to be; the CPU for one without any."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def as_tensor(x: np.ndarray | Tensor) -> Tensor:
    """Numbers in any order of bytes and samples as a tensor, masked ones as NaN. Raises ``ValueError`` for others."""
    if isinstance(x, np.ma.MaskedArray):
        x = x.astype(np.promote_types(x.dtype, np.float32)).filled(np.nan)
    try:
        return torch.as_tensor(x)
    except (TypeError, ValueError) as error:  # such as torch does not take
        x = np.asarray(x)
        if x.dtype.kind not in "fiu":
            raise PlaceError(f"windows should be numbers, not {x.dtype}") from error
        return torch.as_tensor(np.ascontiguousarray(x, f"{x.dtype.kind}{min(x.itemsize, 8)}"))


def as_windows(network: nn.Module, x: np.ndarray | Tensor) -> Tensor:
    """Windows on the network's device and of its floating type; float32 for a network without numbers of its own."""
    own = (t for of in (network.parameters(), network.buffers()) for t in of if t.is_floating_point())
    first = next(own, None)
    x = as_tensor(x)
    if first is None:
        return x if x.is_floating_point() else x.float()
    return x.to(first.device, first.dtype)


@contextmanager
def unnested(network: nn.Module) -> Iterator[None]:
    """While the block runs, Transformer encoders do not turn masked windows into nested tensors, which have no shape"""
    encoders = [module for module in network.modules() if getattr(module, "use_nested_tensor", False)]
    try:
        for module in encoders:
            module.use_nested_tensor = False
        yield
    finally:
        for module in encoders:
            module.use_nested_tensor = True


@contextmanager
def evaluating(network: nn.Module) -> Iterator[nn.Module]:
    """The network in evaluation mode without gradients for its weights; as it was afterwards, module by module."""
    modes = {module: module.training for module in network.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in network.parameters()}
    try:
        network.eval()
        for parameter in wanted:
            parameter.requires_grad_(False)
        with unnested(network):
            yield network
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, keeps in wanted.items():
            parameter.requires_grad_(keeps)


# ------------------------------------------------------------------------------------------------- what is found once


@dataclass(frozen=True)
class Place:
    """What is known of a tap: its layout, which tensor, what its output goes to."""

    layout: str
    part: int = 0
    activation: str = ""  # that its units go through, by name
    normed: bool = False  # whether a norm lies before it
    normed_only: bool = False  # whether the rest of the network sees the units through a norm alone


#: activations that give out nothing below zero: ReLU of the outputs themselves, and those with an upper end or another
#: threshold, or of means over the outputs
RECTIFYING = ("relu", "bounded")

#: types of what decides how a module computes, and what of that is changed by looking itself
_SWITCHES = {bool, str, FunctionType, BuiltinFunctionType, partial}
_CHANGING = ("training", "use_nested_tensor", "_is_full_backward_hook")
#: what was found, by network and then by place and shape of the windows
FOUND: WeakKeyDictionary[nn.Module, dict] = WeakKeyDictionary()
#: whether this thread is watching a network, so that listeners do not take that for use
WATCHING = threading.local()


def tensors_of(output, every: bool = False) -> list[Tensor]:
    """All dense tensors of floating type with two or more dimensions in what a module returned, in their order; with
    ``every`` dense ones of any type and shape."""
    if isinstance(output, Tensor):
        plain = output.layout == torch.strided and not output.is_nested
        return [output] if plain and (every or (output.is_floating_point() and output.ndim > 1)) else []
    if isinstance(output, dict):
        output = list(output.values())
    elif is_dataclass(output):
        output = [getattr(output, field.name) for field in fields(output)]
    return [tensor for one in output for tensor in tensors_of(one, every)] if isinstance(output, list | tuple) else []


@contextmanager
def watching(network: nn.Module) -> Iterator[nn.Module]:
    """The network to be watched, with nothing left of that: its buffers, its mode, the state of chance.

    Raises ``ValueError`` for a network without numbers: lazy layers that have seen no windows, the meta device, NaN.
    """
    refuse_empty(network)
    half = any(parameter.element_size() < 4 for parameter in network.parameters())
    if half or device_of(network).type != "cpu":  # where convolutions may spread what they read over a block
        network = copy.deepcopy(network).cpu()
        network = network.float() if half else network
    before, buffers = getattr(WATCHING, "on", False), [(b, b.clone()) for b in network.buffers()]
    registered = [(module._buffers, dict(module._buffers)) for module in network.modules()]
    WATCHING.on = True
    try:
        with torch.random.fork_rng(devices=[]), evaluating(network), torch.no_grad():
            yield network
    finally:
        WATCHING.on = before
        for now, own in registered:  # where the network puts new tensors in the place of its buffers
            now.clear()
            now.update(own)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def run(network: nn.Module, x: Tensor):
    """What the network returns for windows, which stay as they are; raises ``ValueError`` with the wrapper that fits
    where it refuses them."""
    try:
        return network(x.clone())
    except PlaceError:
        raise
    except Exception as error:
        fitting = [f"taps.WithLayout(network, {layout!r})" for layout in WANTED if _takes(network, x[:2], layout)]
        if not fitting and not getattr(WATCHING, "on", False):
            raise
        tip = " or ".join(fitting) or f"taps.WithLayout(network, layout), with a layout such as {', '.join(WANTED)}"
        shape = tuple(x.shape)
        told = (
            f"the network does not take windows (window, axis, time) of shape {shape} ({error}); if it wants them in "
            f"another layout, wrap it: {tip}; if it wants more than windows, in a module that takes windows alone"
        )
        raise PlaceError(told) from error


def _takes(network: nn.Module, x: Tensor, layout: str) -> bool:
    before = getattr(WATCHING, "on", False)
    WATCHING.on = True
    try:
        WithLayout(network, layout)(x.clone())
    except Exception:  # whatever a network raises for windows that it does not take
        return False
    finally:
        WATCHING.on = before
    return True


def answer_of(network: nn.Module, tap: Tap, part: int | None = None) -> Callable[[Tensor], Tensor | list[Tensor]]:
    """What a module gives for windows, as it is: one tensor of that, or all."""

    def answer(x: Tensor):
        calls = []

        def met(module, args, output) -> None:
            calls.append([tensor.clone() for tensor in tensors_of(output)])

        with network.get_submodule(tap.module).register_forward_hook(met):
            run(network, x)
        out = calls[which_call(tap, len(calls))]
        return out if part is None else out[part]

    return answer


def which_call(tap: Tap, n_calls: int) -> int:
    """Which of ``n_calls`` of a module is meant. Raises ``ValueError`` where that cannot be told."""
    if not n_calls:
        raise PlaceError(
            f"layer {tap.name} did not run: the network does not call {tap.module!r}, or only uses its weights; "
            "name a layer that it calls"
        )
    if tap.call is None and n_calls > 1:
        raise PlaceError(
            f"layer {tap.name} runs {n_calls} times for a window; say which: "
            f"taps.find(network, {tap.module!r}, call=0), ..., call={n_calls - 1}"
        )
    if not 0 <= (tap.call or 0) < n_calls:
        raise PlaceError(f"layer {tap.name} runs {n_calls} times, so there is no call {tap.call}; they count from 0")
    return tap.call or 0


def made_of(network: nn.Module) -> tuple:
    """What decides how a network computes, beside its numbers: its modules, with their switches and functions.

    What was found holds for these; where one is exchanged, behind a place too, it is looked at anew. References are
    weak, so that nothing is kept alive, and no other gets the address of one that is gone.
    """
    return tuple(
        (ref(module), type(module), name, value if isinstance(value, bool | str) else ref(value))
        for module in network.modules()
        for name, value in [("", ""), *vars(module).items()]
        if type(value) in _SWITCHES and name not in _CHANGING
    )


def place_of(network: nn.Module, tap: Tap, x: Tensor) -> Place:
    """What there is to know of a tap; found out with windows like ``x`` where it is new."""
    if _is_known(network, tap):
        return Place(tap.layout, tap.part, "relu")
    key = (made_of(network), tap.module, tap.call, tap.part, tap.layout, tuple(x.shape[1:]))
    cache = FOUND.setdefault(network, {})
    if key not in cache:
        with watching(network) as watched:
            try:
                cache[key] = _looked(watched, tap, as_windows(watched, x.detach()))
            except PlaceError as error:
                raise PlaceError(f"{tap.name} ({type(network.get_submodule(tap.module)).__name__}): {error}") from error
    return cache[key]


def _looked(network: nn.Module, tap: Tap, example: Tensor) -> Place:
    module = network.get_submodule(tap.module)
    windows = layouts.made_windows(example, layouts.N_WINDOWS)
    every = answer_of(network, tap)(windows)
    if not every:
        raise PlaceError("it returns no tensor (window, unit, ...) of floating type")
    faults: list[PlaceError] = []
    # of layers that are known the first one counts: recurrent ones give their last states too, attention its weights
    for part in range(tap.part, tap.part + 1 if layouts.declared(module) else len(every)):
        answer = answer_of(network, tap, part)
        try:
            layout = None
            if tap.layout is None or len(every) > 1:
                layout = layouts.found(answer, example, layouts.declared(module))
            if tap.layout in (None, layout):
                break
        except layouts.UnsteadyError:
            raise
        except PlaceError as error:
            faults.append(error)
    else:  # then what is declared holds for the first one, whatever is found
        if tap.layout is None:
            raise faults[0]
        part, layout, answer = tap.part, tap.layout, answer_of(network, tap, tap.part)
        layouts.of_windows(answer, example)
        layouts.refuse_contradiction(answer(windows), layouts.parsed(layout), sizes_of(windows), tap.name, module)
    follower, number = Follower(layouts.parsed(layout)), count()

    def met(module, args, output) -> None:
        if next(number) == (tap.call or 0):
            follower.start(tensors_of(output)[part])

    with module.register_forward_hook(met), follower:
        run(network, windows)
    return Place(layout, part, follower.activation, follower.normed, follower.normed_only)


def sizes_of(x: Tensor) -> dict[str, int]:
    """How many windows and sensor axes there are."""
    return {"window": x.shape[0], "axis": x.shape[1]}


def located(network: nn.Module, layer: str | Tap, example: np.ndarray | Tensor) -> Tap:
    """As :func:`find`, with the layout declared, known or found by watching windows like ``example``.

    Raises ``ValueError`` that says what was seen and what to do where the roles of the output's dimensions cannot be
    told, where the layer does not run or runs more than once, where its output depends on chance or a window's on
    other windows, and where the network does not take windows (window, axis, time).
    """
    tap = find(network, layer)
    place = place_of(network, tap, as_tensor(example))
    return replace(tap, layout=place.layout, part=place.part)


def behind(network: nn.Module, layer: str | Tap, example: np.ndarray | Tensor) -> Tap:
    """The same units behind the ReLU that the layer's output goes to, and a norm before that, where there is one.

    Other activations, which let negative outputs through, leave the place where it is.
    """
    tap = located(network, layer, example)
    return replace(tap, rectified=place_of(network, tap, as_tensor(example)).activation in RECTIFYING)
