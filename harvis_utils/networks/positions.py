"""Where in a window the samples of a layer's maps are: the centres of what they see."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from harvis_utils.networks import layouts
from harvis_utils.networks.following import NORMS
from harvis_utils.networks.layouts import PlaceError
from harvis_utils.networks.places import Tap, answer_of, as_windows, located, run, sizes_of, tensors_of, watching

#: changed windows pushed through a network at once
CHUNK = 64


#: functions that sum up windows: those of gates (squeeze and excitation) and of networks that standardize windows
_SUMMARIES = ("mean", "std", "var", "amax", "amin", "max", "min", "sum", "norm", "softmax")
_SUMMARIES = (*_SUMMARIES, *(f"adaptive_{of}_pool{n}d" for of in ("avg", "max") for n in (1, 2)))


class _Local(TorchFunctionMode):
    """While the block runs, norms do nothing, so that they do not carry what happens at one time to all others.

    Without ``summaries`` what sums up whole windows does not carry it either; ``met`` says whether anything did.
    """

    def __init__(self, summaries: bool):
        super().__init__()
        self.summaries, self.met = summaries, False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in (*NORMS, "normalize"):
            return args[0] if args else kwargs["input"]
        out = func(*args, **kwargs)
        first = out[0] if isinstance(out, tuple) else out
        if name not in _SUMMARIES or not isinstance(first, Tensor) or not first.isnan().all():
            return out
        self.met = True
        if self.summaries:
            return out
        return func(*(one.nan_to_num() if isinstance(one, Tensor) else one for one in args), **kwargs)


def positions(network: nn.Module, layer: str | Tap, example: np.ndarray | Tensor) -> np.ndarray:
    """The sample of the window that each sample of a layer's maps is about, (map sample,), as floats.

    It is the centre of what the map's sample sees: without padding the first one is not 0. Where the window's end cuts
    that, the other samples tell. A layer that sees the whole window everywhere (recurrent, attention) is about the
    samples of what it gets. Raises ``ValueError`` where that cannot be told.
    """
    tap = located(network, layer, example)
    with watching(network) as watched:
        x = as_windows(watched, torch.as_tensor(example))
        length, groups = x.shape[2], layouts.parsed(tap.layout)

        def maps(windows: Tensor) -> Tensor:
            raw = answer_of(watched, tap, tap.part)(windows)
            return layouts.as_maps(*layouts.apart(raw, groups, sizes_of(windows), tap.name))

        seeing = layouts.Watched(maps, layouts.Windows(0), x)
        parts = [(slice(None), t) for t in range(length)]
        for summaries in (True, False):
            with _Local(summaries) as mode:
                touched = [seeing.touched(parts[i : i + CHUNK]).flatten(1, 2).any(1) for i in range(0, length, CHUNK)]
            sees = torch.cat(touched).T.numpy()
            found, n = _centres(sees), len(sees)
            if found is not None or not mode.met:
                break
        middle = sees.argmax(1) - sees[:, ::-1].argmax(1)
        if found is None and middle[0] - middle[-1] > length / 2:
            raise PlaceError(f"{tap.name} runs through the window from its end to its begin; name a layer before it")
        if found is None and n == length:
            found = np.arange(n, dtype=float)
        if found is None:
            with _Local(summaries=True):
                earlier = _earlier(watched, tap, x, n)
            found = next((of for of in map(_centres, reversed(earlier)) if of is not None), None)
    if found is None:
        raise PlaceError(
            f"{tap.name} sees the whole window with each of its {n} samples, and no layer before it tells which of the "
            f"window's {length} samples they are about; name a layer before it"
        )
    return found


def _centres(sees: np.ndarray) -> np.ndarray | None:
    """Centres of what each sample of a map sees, (map sample, sample of the window); None where that tells nothing.

    Raises ``ValueError`` where they are in another order than the samples.
    """
    n, length = sees.shape
    if not sees.any(1).all():
        return None
    low, high = sees.argmax(1), length - 1 - sees[:, ::-1].argmax(1)
    if n == 1:
        return (low + high) / 2
    begins, ends, index = low > 0, high < length - 1, np.arange(n)
    inside, size = begins & ends, sees.sum(1)
    whole = inside & (size == size[inside].max(initial=0))  # what the window does not cut, also of dilated layers
    if whole.sum() > 1:
        step, first = np.polyfit(index[whole], (low + high)[whole] / 2, 1)
        if np.abs(first + step * index - (low + high) / 2)[whole].max() > length / 4:
            raise PlaceError("its samples do not look at the window's in their order; name a layer before it")
    elif not (begins.any() and ends.any()):
        return None
    elif max(begins.sum(), ends.sum()) < 2:  # too few to tell the step from one sample to the next
        step = length / n
        first = ((low - step * index)[begins].mean() + (high - step * index)[ends].mean()) / 2
    else:  # low = a + step * index where the window does not cut it, high = b + step * index likewise
        rows = [*((1, 0, i) for i in index[begins]), *((0, 1, i) for i in index[ends])]
        values = np.concatenate([low[begins], high[ends]])
        a, b, step = np.linalg.lstsq(np.array(rows, float), values.astype(float), rcond=None)[0]
        first = (a + b) / 2
    line, own = np.round(first + step * index, 6) + 0.0, (low + high) / 2
    return np.where(inside & (np.abs(own - line) < 0.75), own, line)


def _earlier(network: nn.Module, tap: Tap, x: Tensor, n: int) -> list[np.ndarray]:
    """What layers before a place see that have ``n`` samples as well, in the order in which they ran: (n, sample)."""
    length, found, before = x.shape[2], [], True
    changed = layouts.made_windows(x, 1).repeat(length, 1, 1)
    changed[torch.arange(length), :, torch.arange(length)] = torch.nan

    def met(module: nn.Module, args, output) -> None:
        nonlocal before
        before &= module is not network.get_submodule(tap.module)
        for tensor in tensors_of(output) if before else ():
            if tensor.shape[0] % length == 0:  # windows first, or with others folded in behind them
                reached = tensor.isnan().unflatten(0, (length, -1))
                same = [dim for dim in range(1, reached.ndim) if reached.shape[dim] == n]
                found.extend(reached.movedim(dim, 1).flatten(2).any(2).T.numpy() for dim in same)

    with ExitStack() as hooks:
        for module in network.modules():
            hooks.enter_context(module.register_forward_hook(met))
        run(network, changed)
    return found
