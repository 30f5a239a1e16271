"""Where in a window the samples of a layer's maps are: the centres of what they see."""

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from harvis_utils.networks import layouts
from harvis_utils.networks.layouts import PlaceError
from harvis_utils.networks.local import Local
from harvis_utils.networks.places import Tap, answer_of, as_windows, located, sizes_of, watching

#: changed windows pushed through a network at once
CHUNK = 64


def positions(network: nn.Module, layer: str | Tap, example: np.ndarray | Tensor) -> np.ndarray:
    """The sample of the window that each sample of a layer's maps is about, (map sample,), as floats.

    It is the centre of what the map's sample sees: without padding the first one is not 0. Where the window's end cuts
    that, the other samples tell. Steps of a recurrent layer and places of attention are about what they get
    (:class:`harvis_utils.networks.local.Local`). Raises ``ValueError`` where that cannot be told.
    """
    tap = located(network, layer, example)
    with watching(network) as watched:
        x = as_windows(watched, example)
        length = x.shape[2]
        for summaries in (True, False):
            mode = Local(summaries)
            sees = _seen(watched, tap, x, mode)
            if len(sees) == 1:  # all that it sees, the steps before the last one of a recurrent layer too
                sees = _seen(watched, tap, x, nullcontext())
            found, n = _centres(sees), len(sees)
            if found is not None or not mode.met:
                break
    if found is None and n == length:
        return np.arange(n, dtype=float)
    if found is not None and found[0] > found[-1]:
        raise PlaceError(f"{tap.name} runs through the window from its end to its begin; name a layer before it")
    if found is None:
        raise PlaceError(
            f"{tap.name} sees the whole window with each of its {n} samples, and nothing tells which of the window's "
            f"{length} samples they are about; name a layer before it"
        )
    return found


def footprint(network: nn.Module, layer: str | Tap, example: np.ndarray | Tensor) -> int:
    """How many samples of the window, from the first to the last, one sample of a layer's maps sees at most.

    Of a recurrent layer, and of attention, it is the whole window.
    """
    tap = located(network, layer, example)
    with watching(network) as watched:
        sees = _seen(watched, tap, as_windows(watched, example), nullcontext())
    spans = sees.shape[1] - sees[:, ::-1].argmax(1) - sees.argmax(1)
    return int(np.where(sees.any(1), spans, 1).max())


def _seen(network: nn.Module, tap: Tap, x: Tensor, mode: AbstractContextManager) -> np.ndarray:
    """What each sample of a layer's maps sees while the ``mode`` holds: (map sample, sample of the window)."""
    groups = layouts.parsed(tap.layout)

    def maps(windows: Tensor) -> Tensor:
        raw = answer_of(network, tap, tap.part)(windows)
        return layouts.as_maps(*layouts.apart(raw, groups, sizes_of(windows), tap.name))

    seeing, parts = layouts.Watched(maps, layouts.Windows(0), x), [(slice(None), t) for t in range(x.shape[2])]
    each = [seeing.touched(parts[i : i + CHUNK], mode).flatten(1, 2).any(1) for i in range(0, len(parts), CHUNK)]
    return torch.cat(each).T.numpy()


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
