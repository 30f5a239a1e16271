"""A recurrent network: a GRU reads a window sample by sample, all axes at once."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from harvis_utils.data.windowing import Split
from harvis_utils.networks.sfhf import Dropout, known
from harvis_utils.settings import RecurrentSettings

POOLS = ("last", "mean")
#: recordings read at once, which bounds the memory
CHUNK = 32


class Recurrent(nn.Module):
    """A GRU over time and a linear layer on its last or mean output.

    Input: (batch, axis, time) in G. Output: (batch, class) scores before softmax. A GRU's outputs lie between -1 and 1.
    Raises ``ValueError`` for an unknown ``pool``.
    """

    layers = ("gru",)

    def __init__(self, n_axes: int, length: int, n_classes: int, settings: RecurrentSettings):
        super().__init__()
        self.settings = settings
        self.pool = known("pool", settings.pool, POOLS)
        self.gru = nn.GRU(n_axes, settings.n_units, batch_first=True)
        self.dropout = Dropout(settings.dropout)
        self.classes = nn.Linear(settings.n_units, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores before softmax: (batch, axis, time) -> (batch, class)."""
        outputs, _ = self.gru(x.transpose(1, 2))
        pooled = outputs.mean(1) if self.pool == "mean" else outputs[:, -1]
        return self.classes(self.dropout(pooled))


@torch.no_grad()
def carried(network: Recurrent, split: Split) -> Tensor:
    """Outputs where the state is carried along whole recordings, as maps of the windows: (window, unit, 1, time).

    Each recording is read once, from its beginning, with a state of zero there; a window is cut out of what comes out.
    In training every window began with a state of zero.
    """
    device = network.classes.weight.device
    begin, found = split.start - split.offset, [None] * len(split)
    recordings = torch.as_tensor(begin).unique().tolist()
    for first in range(0, len(recordings), CHUNK):
        some = recordings[first : first + CHUNK]
        own = [(begin == of).nonzero()[0] for of in some]
        ends = [split.start[windows].max() + split.length for windows in own]
        signals = [torch.as_tensor(split.series[of:end]) for of, end in zip(some, ends, strict=True)]
        outputs, _ = network.gru(pad_sequence(signals, batch_first=True).to(device))
        for windows, of in zip(own, outputs.cpu(), strict=True):
            for window in windows:
                found[window] = of[split.offset[window] :][: split.length].T
    return torch.stack(found)[:, :, None]
