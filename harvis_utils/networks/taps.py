"""A network and names of layers turned into those layers' outputs, without changing the network.

A *tap* is a place in a network where units can be listened to or silenced. Windows are (window, axis, time) in G for
every network; maps are (window, unit, axis, time) for every layer, with one axis where it mixes the sensor axes (1-D).

Which dimension of a layer's output is which is declared (``find(network, "lstm", layout="window time unit")``), known
(SF-HF) or found by watching what moves it (:mod:`harvis_utils.networks.layouts`), once for a network and a layer.
What cannot be told is refused.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from harvis_utils.networks import backward, layouts
from harvis_utils.networks.following import Follower
from harvis_utils.networks.layouts import PlaceError
from harvis_utils.networks.places import (
    FOUND,
    WATCHING,
    Place,
    Tap,
    WithChannel,
    WithLayout,
    as_tensor,
    as_windows,
    behind,
    device_of,
    evaluating,
    find,
    located,
    made_of,
    place_of,
    refuse_compiled,
    run,
    sizes_of,
    tensors_of,
    unit_numbers,
    unnested,
    watching,
    which_call,
)
from harvis_utils.networks.positions import footprint, positions
from harvis_utils.networks.sfhf import SFHF

__all__ = ["Tap", "WithChannel", "WithLayout", "as_windows", "behind", "device_of", "evaluating", "find", "located"]
__all__ += ["footprint", "positions", "run", "tensors_of", "unit_numbers", "watching"]

#: windows pushed through a network at once, which bounds the memory
CHUNK = 512


# ------------------------------------------------------------------------------------------- listening and silencing

#: a place's output with its layout, sizes of the windows, and where it is: at the "place" itself, behind a "norm" or
#: behind the "activation" -> what to put in its place
_Act = Callable[[Tensor, layouts.Groups, dict[str, int], str], Tensor | None]


@contextmanager
def _at(network: nn.Module, tap: Tap, act: _Act, follows: Callable[[Place], bool]) -> Iterator[None]:
    """While the block runs, ``act`` gets the output of a place in each call of the network.

    Where it ``follows`` the output, it gets what comes out of norms and of the activation instead.
    """
    place = sizes = follower = None
    n_calls = 0
    listeners = LISTENERS.setdefault(network, [])

    def asleep() -> bool:
        return getattr(WATCHING, "on", False)

    def opened(module, args, kwargs) -> None:
        # the first one begins for all in the order of their blocks, so that inner ones see what outer ones changed
        if not asleep() and listeners[0] is own:
            for begin, _ in listeners:
                begin(args[0] if args else next(iter(kwargs.values())))

    def begin(x: Tensor) -> None:
        nonlocal place, sizes, follower, n_calls
        place, sizes, n_calls = place_of(network, tap, x), sizes_of(x), 0
        if follows(place):
            follower = Follower(
                layouts.parsed(place.layout),
                lambda out, groups, last: act(out, groups, sizes, "activation" if last else "norm"),
            )
            follower.__enter__()

    def met(module, args, output):
        nonlocal n_calls
        if asleep():
            return None
        if sizes is None:
            raise PlaceError(f"{tap.name} can be seen while the network itself is called, not a part of it")
        number, n_calls = n_calls, n_calls + 1
        if number != (tap.call or 0):
            if tap.call is None:
                which_call(tap, n_calls)  # refuses a second call
            return None
        raw = tensors_of(output)[place.part]
        if follower is not None:
            follower.start(raw)
            return None
        changed = act(raw, layouts.parsed(place.layout), sizes, "place")
        return None if changed is None else _exchanged(output, raw, changed)

    def leave() -> None:
        nonlocal sizes, follower
        if follower is not None:
            follower.__exit__(None, None, None)
        sizes = follower = None

    def end(module, args, output) -> None:
        if asleep():
            return
        if listeners[0] is own:
            _leave(network)
        if output is not None:  # it is where the network raised an error
            which_call(tap, n_calls)

    own = begin, leave
    with ExitStack() as hooks:
        hooks.enter_context(unnested(network))
        listeners.append(own)
        hooks.callback(listeners.remove, own)
        hooks.callback(_leave, network)  # where the call was not finished
        hooks.enter_context(network.register_forward_pre_hook(opened, prepend=True, with_kwargs=True))
        hooks.enter_context(network.get_submodule(tap.module).register_forward_hook(met))
        hooks.enter_context(network.register_forward_hook(end, always_call=True))
        yield


#: who listens to a network at the moment: what each does as a call begins and ends, the outer blocks first
LISTENERS: WeakKeyDictionary[nn.Module, list[tuple[Callable, Callable]]] = WeakKeyDictionary()


def _leave(network: nn.Module) -> None:
    """A call of the network is over for all that listen to it, the last that began first."""
    for _, leave in reversed(LISTENERS.get(network, [])):
        leave()


class _Seen(BaseException):
    """The maps that were wanted are there: the rest of a call need not run. No error that a network may catch."""


@contextmanager
def record(network: nn.Module, taps: Sequence[str | Tap], alone: bool = False) -> Iterator[dict[str, Tensor]]:
    """While the block runs, each call of ``network`` puts the maps of the ``taps`` into the dictionary it yields.

    Maps are (window, unit, axis, time), with their gradients, by the taps' names; the last call's count, and later
    steps in place do not change them. Nothing is left on the network afterwards, also after an error::

        with record(network, ["conv1"]) as maps:
            network(windows)
        maps["conv1"].amax((2, 3))  # (window, unit)

    ``alone`` says that nothing else of a call is wanted, which ends with the last of the maps. Calls raise
    ``ValueError`` as :func:`located` does.
    """
    found: dict[str, Tensor] = {}

    def keep(tap: Tap) -> _Act:
        def act(output: Tensor, groups: layouts.Groups, sizes: dict[str, int], where: str) -> None:
            if where == "norm":
                return
            maps = layouts.as_maps(*layouts.apart(output, groups, sizes, tap.name))
            found[tap.name] = maps.relu() if tap.rectified and where == "place" else maps.clone()
            if alone and len(found) == len(names):
                raise _Seen

        return act

    places = [find(network, tap) for tap in taps]
    names = {tap.name for tap in places}
    with ExitStack() as hooks:
        for tap in places:

            def follows(place: Place, tap=tap) -> bool:
                return tap.rectified and bool(place.activation) and (place.normed or place.activation != "relu")

            hooks.enter_context(_at(network, tap, keep(tap), follows))
        yield found


@contextmanager
def silenced(network: nn.Module, tap: str | Tap, units: Sequence[int]) -> Iterator[None]:
    """While the block runs, the outputs of ``units`` are zero for all that follows; nothing else changes.

    Where the rest of the network sees them as they are through a norm alone, they are zero behind the norm, and behind
    the activation after that. Of recurrent layers the last states are silent too. Calls raise ``ValueError`` as
    :func:`located` does, and for a unit that the layer does not have; it does so itself as :func:`unit_numbers`.
    """
    place = find(network, tap)
    index = torch.as_tensor(unit_numbers(units, none=True), dtype=torch.int64)

    def act(output: Tensor, groups: layouts.Groups, sizes: dict[str, int], where: str) -> Tensor:
        view, words = layouts.apart(output, groups, sizes, place.name)
        dim = words.index("unit")
        unit_numbers(index, view.shape[dim], place.name, none=True)
        return view.index_fill(dim, index.to(view.device), 0.0).reshape(output.shape)

    def states(module: nn.RNNBase, args, output):
        state = output[1]
        h = state[0] if isinstance(state, tuple) else state
        n_directions, size = 1 + module.bidirectional, h.shape[-1]
        h = h.clone()
        for unit in index.tolist():
            h[unit // size - n_directions, ..., unit % size] = 0.0
        return output[0], (h, state[1]) if isinstance(state, tuple) else h

    module = network.get_submodule(place.module)
    with ExitStack() as hooks:
        hooks.enter_context(_at(network, place, act, lambda of: of.normed_only))
        if isinstance(module, nn.RNNBase) and len(index):
            hooks.enter_context(module.register_forward_hook(states))
        yield


def _exchanged(output, old: Tensor, new: Tensor):
    """What a module returned, with ``new`` for ``old``."""
    if output is old:
        return new
    if isinstance(output, dict):
        return type(output)({key: _exchanged(value, old, new) for key, value in output.items()})
    if is_dataclass(output):
        changed = {field.name: _exchanged(getattr(output, field.name), old, new) for field in fields(output)}
        return replace(output, **changed)
    if isinstance(output, list | tuple):
        parts = [_exchanged(one, old, new) for one in output]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    return output


def _maps(network: nn.Module, taps: Sequence[str | Tap], x: np.ndarray | Tensor) -> dict[str, Tensor]:
    """Maps by the taps' names; what the network does behind the last place is spared."""
    names = {tap if isinstance(tap, str) else tap.name for tap in taps}
    with record(network, taps, alone=True) as found:
        try:
            run(network, as_windows(network, x))
        except (_Seen, Exception):
            _leave(network)
            if names > set(found):  # else a network that catches everything went on behind the last place
                raise
    if names > set(found):
        missing = ", ".join(sorted(names - set(found)))
        raise PlaceError(f"{missing}: these windows do not go through the activation that was found behind it")
    return found


def maps_of(network: nn.Module, tap: str | Tap, x: Tensor) -> Tensor:
    """Maps of one tap for windows (window, axis, time): (window, unit, axis, time), with gradient.

    The network runs no further than to the place. Raises ``ValueError`` as :func:`located` does, and where windows with
    gradient give maps without.
    """
    ((name, maps),) = _maps(network, [tap], x).items()
    return led(maps, x, name)


def led(output: Tensor, x: np.ndarray | Tensor, name: str) -> Tensor:
    """The output itself; raises ``ValueError`` where windows ``x`` with gradient gave one without."""
    if torch.is_grad_enabled() and getattr(x, "requires_grad", False) and not output.requires_grad:
        ways = "detach, no_grad, whole or quantized numbers in between"
        raise PlaceError(f"no gradient leads from {name} back to the windows ({ways}): it cannot be climbed")
    return output


def chunks(network: nn.Module, layers: Sequence[str | Tap], x: np.ndarray | Tensor) -> Iterator[dict[str, Tensor]]:
    """Maps of several layers by name, for windows (window, axis, time), ``CHUNK`` windows at once, without gradients.

    The network computes in evaluation mode, and is as it was whenever a chunk is handed over. Half precision is made
    float32, which holds the same numbers.
    """
    places = [find(network, layer) for layer in layers]
    for batch in as_tensor(x).split(CHUNK):
        with evaluating(network), torch.no_grad():
            maps = _maps(network, places, batch)
        yield {name: of.float() if of.element_size() < 4 else of for name, of in maps.items()}


def outputs(network: nn.Module, layer: str | Tap, x: np.ndarray | Tensor) -> Tensor:
    """The maps of one layer for all windows, (window, unit, axis, time), held in memory; see :func:`chunks`."""
    return torch.cat([maps for chunk in chunks(network, [layer], x) for maps in chunk.values()])


# ------------------------------------------------------------------------------------------------------ class scores


#: autograd's names of what only moves, joins or bounds the scores that come out of an activation
RESHAPING = ("Clone", "Alias", "View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "T", "Permute")
RESHAPING = tuple(
    f"{name}Backward" for name in (*RESHAPING, "Transpose", "Cat", "Stack", "Clamp", "_Rectified", "ToCopy")
)


def as_scores(output) -> Tensor:
    """Class scores (window, class) out of what a network returned: the first tensor; probabilities as their logarithm.

    Half precision is made float32. Raises ``ValueError`` for other shapes.
    """
    scores = next(iter(tensors_of(output)), None)
    if scores is None or scores.ndim != 2 or scores.shape[1] < 2:
        got = type(output).__name__ if scores is None else f"{tuple(scores.shape)}"
        raise PlaceError(
            f"class scores (window, class) from the whole network are wanted, of two classes or more, not {got}"
        )
    last = scores.grad_fn
    while last is not None and last.name().startswith(RESHAPING):
        last = last.next_functions[0][0]
    if "Sigmoid" in str(last):
        raise PlaceError(
            "the network ends in a sigmoid, which says yes or no of each class by itself, but scores of classes are "
            "wanted of which one holds: pass it without the sigmoid"
        )
    with torch.no_grad():
        total = scores.double().sum(1)
        near = 1e-4 if scores.dtype in (torch.float32, torch.float64) else 2e-2
        probabilities = bool(len(scores)) and bool((scores >= 0).all()) and bool(((total - 1).abs() < near).all())
    scores = scores.float() if scores.element_size() < 4 else scores
    return scores.clamp(min=torch.finfo(scores.dtype).tiny).log() if probabilities else scores


def _refuse_features(first: Tensor, *others: Tensor) -> None:
    """Raise ``ValueError`` where the first of several tensors is what scores of other classes are computed from."""
    for of in others:
        if of.ndim == 2 and of.shape[1] not in (1, first.shape[1]) and first.requires_grad and of.requires_grad:
            (leads,) = torch.autograd.grad(of.sum(), first, retain_graph=True, allow_unused=True)
            if leads is not None:
                shapes = f"{tuple(first.shape)}, leads to another, {tuple(of.shape)}"
                raise PlaceError(
                    f"the first tensor that the network returns, {shapes}, and so looks like features, not like class "
                    "scores: wrap it in a module that returns the scores first"
                )


def settle(network: nn.Module, x: np.ndarray | Tensor) -> None:
    """Raise ``ValueError`` where a network's output are no class scores that stand for each window by itself."""
    if isinstance(network, SFHF):
        return
    cache, key = FOUND.setdefault(network, {}), (made_of(network), tuple(x.shape[1:]))
    if key not in cache:
        refuse_compiled(network)
        with watching(network) as watched:
            example = as_windows(watched, x).detach()
            try:
                with torch.enable_grad():
                    output = run(watched, layouts.made_windows(example, 2).requires_grad_())
                    as_scores(output)  # refuses what is none
                    _refuse_features(*tensors_of(output))
                whose = layouts.of_windows(lambda windows: tensors_of(run(watched, windows))[0], example)
                if (whose.dim, whose.among) != (0, 1):
                    raise PlaceError("the windows are in the other dimension of (window, class); transpose them")
            except PlaceError as error:
                raise PlaceError(f"the network's class scores: {error}") from error
        cache[key] = True


def scores_of(network: nn.Module, x: np.ndarray | Tensor) -> Tensor:
    """Class scores (window, class) of windows (window, axis, time), from whatever the network returns.

    Of a tuple the first tensor counts; probabilities are turned into their logarithm. Raises ``ValueError`` for a
    network that gives none, whose windows depend on each other, or that gives other scores each time.
    """
    settle(network, x)
    return led(as_scores(run(network, as_windows(network, x))), x, "the class scores")


# ------------------------------------------------------------------------------------------------ what places there are


def places(network: nn.Module, example: np.ndarray | Tensor) -> pd.DataFrame:
    """What can be looked at in a network, one row per place, with windows like ``example`` (window, axis, time).

    ``layer`` and ``call`` name it (``find(network, layer, call=call)``); ``output`` is the shape of what it gives for
    ``example``, ``layout`` what its dimensions are, with ``units``, ``axes`` and ``samples``; ``begin`` and ``end`` are
    the samples of the window that its first and last ones are about. ``refused`` says why a place cannot be looked at.
    What the lenses can do there is "yes" or a reason: ``climb`` (visualization and the paper's methods), ``backward``
    (deconvnet, guided, slopes), ``ablation``, ``occlusion``, ``dissection``.
    """
    refuse_compiled(network)
    x = as_windows(network, example).detach()
    ran: dict[str, list[list[tuple[int, ...]]]] = {name: [] for name, _ in network.named_modules() if name}
    with watching(network) as watched, ExitStack() as hooks:
        for name, module in watched.named_modules():

            def met(module, args, output, name=name) -> None:
                ran[name].append([tuple(of.shape) for of in tensors_of(output)])

            if name:
                hooks.enter_context(module.register_forward_hook(met))
        run(watched, as_windows(watched, x))
    scored = _why_not(lambda: scores_of(network, x), network)
    rows = []
    for name, calls in ran.items():
        if not calls and isinstance(network.get_submodule(name), nn.ModuleList | nn.ModuleDict):
            continue  # they only hold others
        for call, shapes in enumerate(calls or [[]]):
            tap = find(network, name, call=call if len(calls) > 1 else None)
            rows.append({"layer": name, "call": tap.call, **_described(network, tap, x, scored, shapes)})
    return pd.DataFrame(rows)


def _described(network: nn.Module, tap: Tap, x: Tensor, scored: str, shapes: list[tuple[int, ...]]) -> dict:
    kind = type(network.get_submodule(tap.module)).__name__
    try:
        tap = located(network, tap, x)
        with evaluating(network), torch.no_grad():
            _, units, axes, samples = maps_of(network, tap, x).shape
    except PlaceError as error:
        return {"output": next(iter(shapes), ()), "type": kind, "refused": str(error)}
    found = {"output": shapes[tap.part], "type": kind, "layout": tap.layout}
    found |= {"units": units, "axes": axes, "samples": samples, "refused": ""}
    dissection = "yes" if axes in (1, x.shape[1]) else f"{axes} axes are neither 1 nor the window's {x.shape[1]}"
    try:
        at = positions(network, tap, x)
        found |= {"begin": at[0], "end": at[-1]}
    except PlaceError as error:
        dissection = str(error)

    def up() -> Tensor:
        with backward.rectifiers(backward.deconvnet), torch.enable_grad():
            return maps_of(network, tap, x.clone().requires_grad_())

    lenses = {"climb": _why_not(up, network), "ablation": scored, "occlusion": scored}
    lenses["backward"] = _why_not(lambda: backward.refuse_others(up(), tap.name), network)
    return found | lenses | {"dissection": dissection}


def _why_not(look: Callable[[], object], network: nn.Module) -> str:
    try:
        with evaluating(network):
            look()
    except ValueError as error:
        return str(error)
    return "yes"
