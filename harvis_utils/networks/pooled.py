"""SF-HF that pools along time behind every convolution: the deconvnet of Zeiler and Fergus has switches there."""

from torch import Tensor, nn
from torch.nn import functional as F

from harvis_utils.networks.sfhf import Dropout, known
from harvis_utils.settings import PooledSettings

#: pooling by two: "max" keeps where the larger value was, "mean" has the same lengths and nothing to keep
POOLINGS = {"max": nn.MaxPool2d, "mean": nn.AvgPool2d}


class Pooled(nn.Module):
    """The convolutions of SF-HF, each with its norm, its ReLU and pooling by two, then the dense layer and the classes.

    Input: (batch, axis, time) in G. Output: (batch, class) scores before softmax. ``conv1`` ... are the rectified maps
    before their own pooling, so that between the first one and the input nothing is pooled. Raises ``ValueError`` for
    an unknown pooling, and for windows that are too short to be halved so often.
    """

    def __init__(self, n_axes: int, length: int, n_classes: int, settings: PooledSettings):
        super().__init__()
        pool = POOLINGS[known("pooling", settings.pooling, POOLINGS)]
        units, kernel, steps = settings.n_units, settings.kernel, length // 2**settings.n_layers
        if not steps:
            raise ValueError(f"windows of {length} samples cannot be halved {settings.n_layers} times")
        self.layers = tuple(f"conv{i + 1}" for i in range(settings.n_layers))
        for i, name in enumerate(self.layers):
            conv = nn.Conv2d(units if i else 1, units, (1, kernel), padding=(0, kernel // 2))
            norm = nn.BatchNorm2d(units) if settings.batch_norm else nn.Identity()
            setattr(self, name, nn.Sequential(conv, norm, nn.ReLU()))
            setattr(self, f"pool{i + 1}", pool((1, 2)))
        self.dense = nn.Linear(units * n_axes * steps, settings.n_dense)
        self.dropout = Dropout(settings.dropout)
        self.classes = nn.Linear(settings.n_dense, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores before softmax: (batch, axis, time) -> (batch, class)."""
        h = x.unsqueeze(1)
        for i, name in enumerate(self.layers):
            h = getattr(self, f"pool{i + 1}")(getattr(self, name)(h))
        return self.classes(self.dropout(F.relu(self.dense(h.flatten(1)))))
