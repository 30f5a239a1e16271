"""What each dimension of a layer's output is: said in words, or found by watching which parts of a window move it.

A *layout* names the dimensions in order: ``"window unit time"``, ``"window time unit"``, ``"window unit axis time"``;
dimensions that hold two roles stand in brackets, the slower one first: ``"(window axis) unit time"``. A dimension of
size 1 without a role is ``1``.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harvis_utils.networks.local import Local
from harvis_utils.settings import HarvisError


class PlaceError(HarvisError, ValueError):
    """A place in a network that cannot be looked at as it was named; says what to name or declare."""


class UnsteadyError(PlaceError):
    """A place that depends on chance or on other windows, whatever its dimensions are."""


ROLES = ("window", "unit", "axis", "time")

#: windows (window, axis, time) -> a layer's output, of any shape
Answer = Callable[[Tensor], Tensor]
#: what each dimension of an output holds, the slower one first
Groups = tuple[tuple[str, ...], ...]

#: windows that are watched for what belongs to which, and times at which they are changed
N_WINDOWS, N_TIMES, N_AVERAGED = 3, 16, 6
#: Choice: how many standard deviations of a random order a dimension follows time by, to be that of time; from how many
#: samples on a random order can tell; and how many and which correlation are enough where one dimension alone is left
CLEAR, N_CLEAR, LIKELY, ENOUGH = 4.0, 6, 2.0, 0.4
#: Choice: of two that follow time one alone does, where its correlation is so many times that of the other
FAR = 1.5
#: changes below this share of an output's largest value are rounding errors
ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def parsed(layout: str, needed: Sequence[str] = ("window", "unit")) -> Groups:
    """The words of a layout, dimension by dimension. Raises ``ValueError`` for others and for missing ones."""
    parts = re.findall(r"\([^()]*\)|[^\s()]+", layout)
    groups = tuple(tuple(part.strip("()").split()) for part in parts)
    words = [word for group in groups for word in group if word != "1"]
    whole = "".join(parts).replace(" ", "") == "".join(layout.split())
    if not whole or len(set(words)) < len(words) or not set(needed) <= set(words) <= set(ROLES):
        raise PlaceError(
            f"layout {layout!r} should name each dimension of the output once, out of {', '.join(ROLES)}, with "
            f"{' and '.join(needed)} among them: 'window unit time', 'window time unit', '(window axis) unit time'"
        )
    return groups


def apart(output: Tensor, groups: Groups, sizes: dict[str, int], where: str) -> tuple[Tensor, list[str]]:
    """A view of ``output`` with a dimension for every word of its layout, and those words.

    ``sizes`` says how many windows and sensor axes there are. Raises ``ValueError`` where the layout does not fit.
    """
    if output.ndim == len(groups):
        view = output
        for dim in reversed(range(len(groups))):
            if len(groups[dim]) > 1:
                # beside the windows there may be fewer axes than they have, as where each holds a sensor
                own = sizes if len(groups[dim]) > 2 else {"window": sizes["window"]}
                known = torch.Size(own[word] for word in groups[dim] if word in own).numel()
                if sum(word not in own for word in groups[dim]) > 1 or output.shape[dim] % known:
                    break
                each = [own.get(word, output.shape[dim] // known) for word in groups[dim]]
                view = view.unflatten(dim, each) if torch.Size(each).numel() == output.shape[dim] else view
        words = [word for group in groups for word in group]
        wanted = {"window": sizes["window"], "1": 1}
        if view.ndim == len(words) and all(wanted.get(w, n) == n for w, n in zip(words, view.shape, strict=True)):
            return view, words
    said = " ".join(group[0] if len(group) == 1 else f"({' '.join(group)})" for group in groups)
    shape = tuple(output.shape)
    raise PlaceError(
        f"{where}: the layout {said!r} does not fit an output of shape {shape} for {sizes['window']} windows"
    )


def refuse_contradiction(output: Tensor, groups: Groups, sizes: dict[str, int], where: str, module: nn.Module) -> None:
    """Raise ``ValueError`` where a declared layout does not fit an output, or contradicts the layer that gave it."""
    view, words = apart(output, groups, sizes, where)
    shape, at = tuple(output.shape), next(dim for dim, group in enumerate(groups) if "unit" in group)
    # channels of these are units, whatever they get; norms and linear layers may as well run over times
    if isinstance(module, nn.modules.conv._ConvNd | nn.RNNBase):
        dim, n = declared(module)
        if shape[dim] == n and at != dim % len(shape):
            raise PlaceError(
                f"the declared layout puts units in dimension {at} of {shape}, but a {type(module).__name__} has its "
                f"{n} units in dimension {dim % len(shape)}: declare that, or no layout"
            )
    n_axes = dict(zip(words, view.shape, strict=True)).get("axis", 1)
    if n_axes > 1 and n_axes >= 2 * sizes["axis"]:  # padding adds a few
        raise PlaceError(f"the declared layout has {n_axes} axes in {shape}, but windows have {sizes['axis']}")


def as_maps(view: Tensor, words: Sequence[str]) -> Tensor:
    """What :func:`apart` gave as (window, unit, axis, time), with one axis or one sample where there are none."""
    kept = [dim for dim, word in enumerate(words) if word != "1"]
    named = [words[dim] for dim in kept]
    maps = view[tuple(slice(None) if dim in kept else 0 for dim in range(view.ndim))]
    maps = maps.permute([named.index(role) for role in ROLES if role in named])
    for dim, role in enumerate(ROLES):
        if role not in named:
            maps = maps.unsqueeze(dim)
    return maps


# ----------------------------------------------------------------------------------------- what a module's kind says


def declared(module: nn.Module) -> tuple[int, int] | None:
    """Which dimension of a module's output holds units (1 or -1), and how many, by what kind of module it is."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return 1, module.out_channels
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return 1, module.num_features
    if isinstance(module, nn.GroupNorm):
        return 1, module.num_channels
    if isinstance(module, nn.Linear | nn.Bilinear):
        return -1, module.out_features
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) == 1:
        return -1, module.normalized_shape[0]
    if isinstance(module, nn.RNNBase):
        return -1, (module.proj_size or module.hidden_size) * (1 + module.bidirectional)
    if isinstance(module, nn.MultiheadAttention):
        return -1, module.embed_dim
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        return -1, module.linear2.out_features
    if isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder):
        return declared(module.layers[0])
    return None


# ------------------------------------------------------------------------------------------------ found by watching


def made_windows(example: Tensor, n: int, seed: int = 0) -> Tensor:
    """Random windows about as large as those of ``example`` (window, axis, time), always the same."""
    x = example.detach().to("cpu", torch.float32)
    level, spread = x.mean([d for d in range(x.ndim) if d != 1], keepdim=True), float(x.std(correction=0))
    level = level.nan_to_num(0, 0, 0)
    spread = spread if 0 < spread < float("inf") else 1.0
    noise = torch.randn(n, *x.shape[1:], generator=torch.Generator().manual_seed(seed))
    return (level + spread * noise).to(example)


def differs(first: Tensor, second: Tensor) -> Tensor:
    """Where two outputs differ by more than rounding; NaN differs from everything but NaN."""
    scale = torch.cat([first.new_zeros(1), first.flatten(), second.flatten()]).nan_to_num(0, 0, 0).abs().max()
    far = (first - second).abs() > ROUNDING.get(first.dtype, 1e-5) * scale
    return far | (first.isnan() != second.isnan())


@dataclass(frozen=True)
class Windows:
    """Where the windows are in an output: dimension ``dim``, which holds ``among`` others, before (slower) or after."""

    dim: int
    among: int = 1
    first: bool = True
    alive: bool = True  # whether others than NaN made a difference

    def apart(self, output: Tensor, n: int) -> Tensor:
        """The output with windows first, then its other dimensions in their order."""
        if output.shape[self.dim] != n * self.among:
            raise UnsteadyError(f"its output, {tuple(output.shape)} for {n} windows, holds only some of them")
        if self.among == 1:
            return output.movedim(self.dim, 0)
        view = output.unflatten(self.dim, (n, self.among) if self.first else (self.among, n))
        return view.movedim(self.dim if self.first else self.dim + 1, 0)


def of_windows(answer: Answer, example: Tensor) -> Windows:
    """Which dimension of an output belongs to the windows.

    Raises ``ValueError`` where the output depends on chance or not on the windows, where windows depend on each other,
    and where no dimension is theirs.
    """
    base, other = made_windows(example, N_WINDOWS), made_windows(example, N_WINDOWS, seed=1)
    before = answer(base)
    if differs(before, answer(base)).any():
        raise UnsteadyError(
            "it gives other values each time, also in evaluation mode (a functional dropout without "
            "training=self.training, a state that is kept?); make the network deterministic there"
        )
    number = torch.arange(N_WINDOWS).view(-1, *[1] * (base.ndim - 1))
    nothing = torch.full_like(other, torch.nan)  # which also gets through units that are silent in all these windows
    for others in (other, nothing):
        each = [answer(torch.where(number == j, others, base)) for j in range(N_WINDOWS)]
        if any(out.shape != before.shape for out in each):
            raise UnsteadyError("its output has other sizes for other windows: it may get only some of them")
        changed = torch.stack([differs(before, out) for out in each])
        if changed.any():
            break
    else:
        raise PlaceError("it does not depend on the windows, or gives the same for all that were tried")
    if (changed.sum(0) > 1).any():
        raise UnsteadyError(
            "what it gives for a window depends on the other windows of the batch (a norm without running statistics, "
            "a recurrent or attention layer without batch_first that takes the windows for times, a state that is kept)"
        )
    found = []
    for dim in range(before.ndim):
        size = before.shape[dim]
        each = changed.movedim(dim + 1, 1).flatten(2).any(2)  # (window, index)
        if size % N_WINDOWS or (each.sum(0) > 1).any():
            continue
        owner, index = torch.arange(N_WINDOWS)[:, None], torch.arange(size)
        if not (each & (index // (size // N_WINDOWS) != owner)).any():
            found.append(Windows(dim, size // N_WINDOWS, True, others is other))
        elif not (each & (index % N_WINDOWS != owner)).any():
            found.append(Windows(dim, size // N_WINDOWS, False, others is other))
    if len(found) != 1:
        shape = tuple(before.shape)
        raise PlaceError(f"no dimension of its output, {shape} for {N_WINDOWS} windows, is that of the windows")
    return found[0]


def _moves(touched: Tensor) -> bool:
    """Whether what a change touches, (change, index), moves on as the change does."""
    rows = touched[touched.any(1)]
    if len(rows) < 2 or rows.shape[1] < 2:
        return False
    index = torch.arange(rows.shape[1])
    low = torch.where(rows, index, rows.shape[1]).amin(1)
    high = torch.where(rows, index, -1).amax(1)
    centre = (rows * index).sum(1) / rows.sum(1)
    return bool((low.diff() >= 0).all() and (high.diff() >= 0).all() and centre[-1] > centre[0])


def _followed(change: Tensor, near: Tensor) -> tuple[float, float]:
    """How far sizes of changes (change, index) agree with ``near`` likewise: standard deviations above a random order
    of the indices, and the correlation of both without what rows and columns have in common."""

    def centred(values: Tensor) -> Tensor:
        return values - values.mean(0) - values.mean(1, keepdim=True) + values.mean()

    change = change.double()
    change = change / change.mean(1, keepdim=True).clamp(min=1e-300)
    change = centred(change / change.mean(0).clamp(min=1e-300))
    near = centred(near.double())
    size = float(change.norm() * near.norm())
    if not size > 0 or change.shape[1] < 2:
        return 0.0, 0.0
    generator = torch.Generator().manual_seed(0)
    orders = torch.stack([torch.randperm(change.shape[1], generator=generator) for _ in range(400)])
    random = torch.einsum("pdi,pi->d", change[:, orders], near)
    own = float((change * near).sum())
    return (own - float(random.mean())) / max(float(random.std()), 1e-300), own / size


class Watched:
    """Outputs of windows of which single stretches were changed, without the windows' dimension."""

    def __init__(self, answer: Answer, windows: Windows, example: Tensor):
        self.answer, self.windows = answer, windows
        self.base, self.other = made_windows(example, N_AVERAGED), made_windows(example, N_AVERAGED, seed=1)

    def touched(self, parts: Sequence[tuple], mode: AbstractContextManager | None = None) -> Tensor:
        """Which entries see each part of a window, where nothing but what a ``mode`` allows carries it to all others:
        (part, ...), found by what NaN reaches, else by other values."""
        x = self.base[:1].repeat(len(parts), 1, 1)
        for row, part in enumerate(parts):
            x[row][part] = torch.nan
        try:
            with mode or Local(summaries=False):
                reached = self.windows.apart(self.answer(x), len(x)).isnan()
        except Exception:  # a network may refuse such windows in whatever way
            reached = torch.zeros(1, dtype=torch.bool)
        return reached if reached.any() else self.sizes(parts) > 0

    def sizes(self, parts: Sequence[tuple]) -> Tensor:
        """How much each part of a window changes every entry, averaged over windows: (part, ...)."""
        found = []
        for base, other in zip(self.base, self.other, strict=True):
            x = base.repeat(len(parts) + 1, 1, 1)
            for row, part in enumerate(parts):
                x[row][part] = other[part]
            out = self.windows.apart(self.answer(x), len(x))
            found.append(torch.where(differs(out[:-1], out[-1:]), (out[:-1] - out[-1:]).abs().float(), 0.0))
        return torch.stack(found).mean(0)


def times(length: int) -> list[int]:
    """At most ``N_TIMES`` samples of a window, spread evenly from the first to the last."""
    return sorted({round(i) for i in torch.linspace(0, length - 1, N_TIMES).tolist()})


def _along(values: Tensor, dim: int) -> Tensor:
    """(part, ...) reduced to (part, index of a dimension): whether any is, or the mean."""
    flat = values.movedim(dim + 1, 1).unsqueeze(-1).flatten(2)
    return flat.any(2) if values.dtype == torch.bool else flat.mean(2)


def found(answer: Answer, example: Tensor, unit: tuple[int, int] | None = None) -> str:
    """The layout of a layer's output by watching what moves it; ``unit`` is what :func:`declared` says of the layer.

    Raises ``ValueError`` that says what was seen and what to declare where roles are missing or stand against the
    declaration.
    """
    windows = of_windows(answer, example)
    shape = tuple(answer(made_windows(example, N_WINDOWS)).shape)
    at = unit and (len(shape) + unit[0]) % len(shape)
    # the dimensions beside the windows' own, in order; one that shares a dimension with the windows counts too
    own = [dim for dim in range(len(shape)) if dim != windows.dim or windows.among > 1]
    sizes = [windows.among if dim == windows.dim else shape[dim] for dim in own]
    roles: dict[int, str] = {}
    if at in own and at != windows.dim and shape[at] == unit[1]:
        roles[own.index(at)] = "unit"
    elif unit is not None:
        same = [i for i, n in enumerate(sizes) if n == unit[1] and own[i] != windows.dim]
        if len(same) == 1:
            roles[same[0]] = "unit"
        else:
            raise PlaceError(_said(shape, example, windows, own, roles, "no dimension has the width of the module"))
    open_dims = [i for i, n in enumerate(sizes) if n > 1]
    left = [i for i in open_dims if i not in roles]
    if left:
        alone = len(left) == 1 and "unit" in roles.values()
        moving = _moving(Watched(answer, windows, example), {i: sizes[i] for i in open_dims}, left if alone else [])
        for role, dims in moving.items():
            # channels that each see one axis, as those of a depthwise convolution, are units by their declaration
            dims = [i for i in dims if not (role == "axis" and roles.get(i) == "unit")]
            if len(dims) > 1 or any(i in roles for i in dims):
                fault = f"{len(dims)} dimensions follow {role}" if len(dims) > 1 else f"one follows {role} too"
                raise PlaceError(_said(shape, example, windows, own, roles | dict.fromkeys(dims, role), fault))
            roles |= dict.fromkeys(dims, role)
    rest = [i for i in open_dims if i not in roles]
    if "unit" not in roles.values() and (windows.alive or len(own) == 1 or "time" in roles.values()):
        # what is left holds the units; a dimension of size 1 where no larger one is left
        rest = rest or [i for i, n in enumerate(sizes) if n == 1 and i not in roles][:1]
        alone = len(rest) == 1 and own[rest[0]] != windows.dim
        if alone and not _folded(answer, windows, example, rest[0], roles, sizes):
            roles[rest.pop()] = "unit"
    if rest or "unit" not in roles.values():
        fault = "no dimension is left for the units" if not rest else "it is open which dimension is that of the units"
        fault = fault if "unit" not in roles.values() else "a dimension follows neither time nor the sensor axes"
        raise PlaceError(_said(shape, example, windows, own, roles, fault))
    for i in range(len(own)):
        free = [role for role in (("axis", "time") if len(own) > 2 else ("time",)) if role not in roles.values()]
        roles.setdefault(i, free[0] if free else "1")
    return _layout(shape, windows, own, roles)


def _moving(watched: Watched, sizes: dict[int, int], alone: Sequence[int]) -> dict[str, list[int]]:
    """Which dimensions, out of those with their sizes, follow time and which the sensor axes.

    What single samples and axes reach decides; where that is everything, how far they change it. ``alone`` are
    dimensions that can only be one or the other.
    """
    moving: dict[str, list[int]] = {"time": [], "axis": []}
    if watched.base.ndim != 3:  # points instead of windows, without time
        return moving
    n_axes, length = watched.base.shape[1:]
    samples, axes = [(slice(None), t) for t in times(length)], [(a, slice(None)) for a in range(n_axes)]
    for role, parts in (("time", samples), ("axis", axes)):
        if len(parts) < 2:
            continue
        touched = watched.touched(parts)
        # padding adds a few axes; a longer dimension holds something else, as times and axes in turn
        fits = [i for i, n in sizes.items() if role == "time" or n < 2 * n_axes]
        moving[role] = [i for i in fits if _moves(_along(touched, i))]
    for role, parts in (("time", samples), ("axis", axes)):
        if moving[role] or len(parts) < 2:
            continue
        change, near = watched.sizes(parts), {}
        for i in (i for i in sizes if not any(i in dims for dims in moving.values())):
            by = _along(change, i)
            near[i] = _in_time(by, i in alone, length) if role == "time" else float(_own_axis(by))
        moving[role] = [i for i, of_it in near.items() if of_it > max(near.values()) / FAR]
    return moving


def _in_time(change: Tensor, alone: bool, length: int) -> float:
    where = torch.tensor(times(length)) / max(length - 1, 1)
    near = -(where[:, None] - torch.linspace(0, 1, change.shape[1])).abs()
    clear, correlation = _followed(change, near)
    enough = alone and clear > LIKELY and correlation > ENOUGH
    return correlation if enough or (clear > CLEAR and change.shape[1] >= N_CLEAR) else 0.0


def _own_axis(change: Tensor) -> bool:
    n, inside = len(change), torch.eye(len(change), dtype=torch.bool)
    scaled = change / change.mean(0).clamp(min=1e-30)
    return n > 3 and change.shape[1] == n and bool(scaled[inside].min() > 1.5 * scaled[~inside].max())


def _folded(answer: Answer, windows: Windows, example: Tensor, dim: int, roles: dict[int, str], sizes) -> bool:
    """Whether a dimension that is left for units holds times as well, unit by unit, as flattening makes it.

    Where another one of size 1 may be that of the units, it may hold times alone.
    """
    if "time" in roles.values() or example.ndim != 3 or example.shape[2] < 2:
        return False
    change = _along(Watched(answer, windows, example).sizes([(slice(None), t) for t in times(example.shape[2])]), dim)
    size = change.shape[1]
    steps = [n for n in range(N_CLEAR, size // 2 + 1) if size % n == 0 and n <= example.shape[2]]
    near = {n: -(torch.linspace(0, 1, len(change))[:, None] - torch.linspace(0, 1, n)).abs() for n in [*steps, size]}
    single = any(n == 1 and i != dim and i not in roles for i, n in enumerate(sizes))
    alone = single and (1 < size <= example.shape[2] < N_CLEAR or _followed(change, near[size])[1] > ENOUGH)
    return alone or any(_followed(change.unflatten(1, (-1, n)).mean(1), near[n])[0] > CLEAR + 1 for n in steps)


def _layout(shape: tuple[int, ...], windows: Windows, own: Sequence[int], roles: dict[int, str]) -> str:
    words = []
    for dim in range(len(shape)):
        role = roles.get(own.index(dim), "?") if dim in own else None
        if dim != windows.dim:
            words.append(role)
        elif role is None:
            words.append("window")
        else:
            words.append(f"(window {role})" if windows.first else f"({role} window)")
    return " ".join(words)


def _said(shape, example: Tensor, windows: Windows, own: Sequence[int], roles: dict[int, str], fault: str) -> str:
    seen = _layout(shape, windows, own, roles)
    likely = ("unit", "time", *(["axis"] if example.shape[1] in [shape[dim] for dim in own] else []))
    free = iter([role for role in likely if role not in roles.values()])
    guess = re.sub(r"\?", lambda _: next(free, "?"), seen)
    guess = guess if "unit" in guess else "window unit time" if len(shape) == 3 else re.sub("time|axis", "unit", guess)
    ways = "" if "?" in guess else f"say what its dimensions are, e.g. taps.find(network, name, layout={guess!r}), or "
    size = f"{N_WINDOWS} windows of {' x '.join(map(str, example.shape[1:]))} (axis, time)"
    return f"for {size} its output is {shape}, in which {seen!r} was found: {fault}; {ways}name another layer"
