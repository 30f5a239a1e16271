"""Two complete networks of other shapes than SF-HF, and every lens pointed at one of their layers by its name."""

import torch
from torch import nn

from harvis_utils.lenses import ablation, concepts, deconvnet, dissection, occlusion, slopes
from harvis_utils.maximization import objectives, visualization
from harvis_utils.networks import taps
from harvis_utils.settings import Step


class OneD(nn.Module):
    """Channels x time: windows are (window, axis, time), convolutions see all axes at once."""

    def __init__(self, n_axes: int, n_classes: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(n_axes, 8, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 12, 3, padding=1), nn.ELU()
        )
        self.out = nn.Linear(12, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores (window, class)."""
        return self.out(self.body(x).mean(2))


class TwoD(nn.Module):
    """Sensors x time: wants windows (window, 1, axis, time), so that lenses get ``taps.WithChannel(TwoD(...))``."""

    def __init__(self, n_axes: int, n_classes: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, (1, 5), padding=(0, 2)), nn.Conv2d(6, 8, (n_axes, 3), padding=(0, 1))
        self.active, self.out = nn.ReLU(), nn.Linear(8, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores (window, class)."""
        return self.out(self.active(self.second(self.active(self.first(x)))).amax((2, 3)))


def through_every_lens(network: nn.Module, layer: str, data, split) -> dict:
    """What each lens says of a layer, from windows ``split`` of ``data`` (:mod:`harvis_utils.data.windowing`)."""
    x, y, rec, known = split.x, split.activity, split.recording, concepts.of_windows(data, split)
    each_axis, start = occlusion.by_axis(len(data.axes)), torch.as_tensor(split.x[:2])
    return {
        "visualization": visualization.visualize(network, objectives.channel(layer, unit=3), start),
        "dissection": dissection.dissect(taps.outputs(network, layer, x), known.masks, known.names, 19, y, rec),
        "ablation": ablation.drops(network, [layer], split, len(data.activities)),
        "deconvnet": deconvnet.project(network, layer, x[:9], deconvnet.strongest()),
        "occlusion": occlusion.drops(network, x[:9], y[:9], each_axis, occlusion.Occluder(width=3), layer),
        "slopes": slopes.ascend_units(network, layer, range(4), start, Step("adam", 0.1, 0.99), 100, slope=0.3),
    }
