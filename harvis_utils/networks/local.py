"""A forward pass in which nothing carries what happens at one time to all others, to see what belongs to which time."""

from torch import Tensor
from torch.overrides import TorchFunctionMode

NORMS = ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm")
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
#: functions that sum up windows: those of gates (squeeze and excitation) and of networks that standardize windows
_SUMMARIES = ("mean", "std", "var", "amax", "amin", "max", "min", "sum", "norm", "softmax")
_SUMMARIES = (*_SUMMARIES, *(f"adaptive_{of}_pool{n}d" for of in ("avg", "max") for n in (1, 2)))


class Local(TorchFunctionMode):
    """While the block runs, norms hand on what they get, recurrent layers take each step and attention each place as a
    sequence of its own.

    Without ``summaries`` what sums up whole windows does not carry NaN to all of them either; ``met`` says whether
    anything did.
    """

    def __init__(self, summaries: bool):
        super().__init__()
        self.summaries, self.met = summaries, False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in (*NORMS, "normalize"):
            return args[0] if args else kwargs["input"]
        if name in _RECURRENT and args[0].ndim == 3:  # packed sequences have two dimensions
            return _each_step(func, *args)
        if name == "multi_head_attention_forward" and len(args) > 2 and args[0].shape == args[1].shape:
            return _each_place(func, args, kwargs)
        if name == "scaled_dot_product_attention" and len(args) > 2 and args[0].shape[:-1] == args[2].shape[:-1]:
            return args[2]
        out = func(*args, **kwargs)
        first = out[0] if isinstance(out, tuple) else out
        if name not in _SUMMARIES or not isinstance(first, Tensor) or not first.isnan().all():
            return out
        self.met = True
        if self.summaries:
            return out
        return func(*(one.nan_to_num() if isinstance(one, Tensor) else one for one in args), **kwargs)


def _each_step(func, x: Tensor, state, *rest):
    """A recurrent layer whose steps are windows of their own: (window, time, ...), or time first."""
    batch_first = rest[-1]
    steps = x if batch_first else x.transpose(0, 1)
    n, length = steps.shape[:2]

    def repeated(h: Tensor) -> Tensor:
        return h.repeat_interleave(length, 1)

    state = tuple(map(repeated, state)) if isinstance(state, tuple) else repeated(state)
    out, *last = func(steps.reshape(n * length, 1, -1), state, *rest[:-1], True)
    out = out.view(n, length, -1)
    return out if batch_first else out.transpose(0, 1), *(h.unflatten(1, (n, length))[:, :, -1] for h in last)


def _each_place(func, args, kwargs):
    """Attention of each place to itself alone; the arrays are (place, window, unit)."""
    places, n, width = args[0].shape
    without = kwargs | {"key_padding_mask": None, "attn_mask": None, "is_causal": False}
    out, weights = func(*(of.reshape(1, -1, of.shape[2]) for of in args[:3]), *args[3:], **without)
    if weights is not None:
        weights = weights.new_zeros(n, *weights.shape[1:-2], places, places)
    return out.view(places, n, -1), weights
