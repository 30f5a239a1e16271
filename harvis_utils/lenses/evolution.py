"""One network kept at several epochs of its training: when do the features of each layer stand still?

Zeiler and Fergus (2014, Fig. 4) show projections of the strongest activations at epochs 1, 2, 5, ... and say by eye
that lower layers settle within a few epochs and upper ones late; :mod:`harvis_utils.lenses.settling` has a number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from safetensors.torch import load_file, save_file

from harvis_utils.data.windowing import Windows
from harvis_utils.lenses import deconvnet
from harvis_utils.networks import taps
from harvis_utils.networks.sfhf import SFHF
from harvis_utils.parallel import progress, threads_inside, torch_device
from harvis_utils.settings import Settings, as_json
from harvis_utils.store import stages
from harvis_utils.store.files import read_dataset, write_dataset
from harvis_utils.training import supervised

STAGE = stages.Stage(
    "evolution",
    notebook="12_deconvnet",
    modules=("data.windowing", "networks.sfhf", "training.supervised", "lenses.evolution"),
)
FEATURES = stages.Stage(
    "evolution_features",
    notebook="12_deconvnet",
    modules=(
        "data.windowing",
        "networks.sfhf",
        "networks.taps",
        "networks.backward",
        "lenses.deconvnet",
        "lenses.evolution",
    ),
)

#: Paper: Fig. 4; Choice: every epoch up to the tenth too, because short trainings would have three points otherwise
MARKS = (*range(1, 11), 20, 30, 40, 64)
PAPER_MARKS = (1, 2, 5, 10, 20, 30, 40, 64)
#: Choice: of a network that no other notebook uses
SEED = 300
#: validation windows on which maps are compared
N_FIXED = 200
#: Choice: at most so many training windows, every n-th of all, by profile; None: all. One network alone uses one thread
N_TRAINED = {"quick": None, "desk": 20_000, "paper": None}
#: every so many-th place of the maps is kept: neighbours say nearly the same, and the files stay small
PLACES = 15
#: Choice: at most so many training windows are searched for a unit's strongest activation
N_SEARCHED = 3000


@dataclass(frozen=True)
class Moment:
    """The network after ``epoch`` epochs (0: before any), and the address of its weights."""

    epoch: int
    model: SFHF
    key: str


def marks(epochs: int) -> list[int]:
    """Epochs at which a training of so many epochs is kept: ``MARKS`` as far as they go, and the last."""
    return sorted({m for m in MARKS if m <= epochs} | {epochs})


def train(cfg: Settings, windows: Windows, seed: int = SEED) -> list[Moment]:
    """One network trained with the run's settings and kept at epoch 0 and :func:`marks`; made where missing.

    One stored result per mark, with Adam's state, so that a kill loses the epochs since the last one only. The last
    moment equals what :func:`harvis_utils.training.supervised.train` has after its last epoch, bit for bit, on the
    same windows: of more than ``N_TRAINED`` of them every n-th is used.
    """
    windows = _fewer(windows, N_TRAINED[cfg.profile])
    device = torch_device(cfg.device)
    model = supervised.new_model(windows, cfg.model, seed).to(device)
    optimizer = torch.optim.Adam(model.parameters(), cfg.training.learning_rate, weight_decay=cfg.training.weight_decay)
    x, y = (torch.as_tensor(a, device=device) for a in (windows.train.x, windows.train.activity))
    training_settings = as_json(cfg.training) | {"epochs": None, "seeds": [seed]}
    key = STAGE.key([cfg.windows, cfg.model, training_settings, 0], windows.digest)
    moments = [_moment(windows, cfg, seed, 0, model, key)]
    begun = 0
    with threads_inside(1):
        for mark in progress(marks(cfg.training.epochs), desc="evolution", leave=False):

            def build(part: Path, begun=begun, mark=mark) -> None:
                for epoch in range(begun, mark):
                    supervised._epoch(model, optimizer, x, y, cfg.training, seed, epoch)
                save_file(_state(model, optimizer), part / "state.safetensors")

            key = STAGE.key([mark], key)
            about = stages.provenance(cfg, data=windows.digest, caveat=windows.caveat, seed=seed, epoch=mark)
            folder = STAGE.obtain(key, build, about)
            _load(load_file(folder / "state.safetensors"), model, optimizer)
            moments.append(_moment(windows, cfg, seed, mark, model, key))
            begun = mark
    return moments


def _fewer(windows: Windows, at_most: int | None) -> Windows:
    if at_most is None or len(windows.train) <= at_most:
        return windows
    return dataclasses.replace(
        windows, train=deconvnet.searched(windows.train, at_most), digest=f"{windows.digest}/train {at_most}"
    )


def _moment(windows: Windows, cfg: Settings, seed: int, epoch: int, model: SFHF, key: str) -> Moment:
    copy = supervised.new_model(windows, cfg.model, seed)
    copy.load_state_dict(model.state_dict())
    return Moment(epoch, copy.eval(), key)


def _state(model: SFHF, optimizer: torch.optim.Adam) -> dict[str, torch.Tensor]:
    found = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        found |= {f"adam.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    return {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in found.items()}


def _load(state: dict[str, torch.Tensor], model: SFHF, optimizer: torch.optim.Adam) -> None:
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    moments: dict[int, dict] = {}
    for name, value in state.items():
        if name.startswith("adam."):
            _, index, which = name.split(".", 2)
            moments.setdefault(int(index), {})[which] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


# ------------------------------------------------------------------------------------------------------- features


def features(cfg: Settings, windows: Windows, moments: Sequence[Moment]) -> xr.Dataset:
    """Every unit at every kept epoch: dims (epoch, layer, unit[, ...]); one stored result per epoch.

    ``maps`` (..., place) on fixed validation windows; ``projection`` (..., sample), that of the strongest activation
    over (every n-th of) the training windows, on its own axis around it (Paper: Fig. 4); ``window``, which one that
    was; ``test_f1`` (epoch,).
    """

    def folder(moment: Moment) -> Path:
        def build(part: Path) -> None:
            found = _features(moment.model, windows)
            f1 = supervised.macro_f1(windows.test, supervised.predict(moment.model, windows.test))
            write_dataset(part / "features.nc", found.assign(test_f1=f1))

        about = stages.provenance(cfg, data=windows.digest, caveat=windows.caveat, epoch=moment.epoch)
        return FEATURES.obtain(FEATURES.key([N_FIXED, PLACES, N_SEARCHED], windows.digest, moment.key), build, about)

    bar = progress(moments, desc="features", leave=False)
    found = [read_dataset(folder(m) / "features.nc").expand_dims(epoch=[m.epoch]) for m in bar]
    return xr.concat(found, "epoch")


def _features(model: SFHF, windows: Windows) -> xr.Dataset:
    fixed = windows.val.x[np.linspace(0, len(windows.val) - 1, min(N_FIXED, len(windows.val))).astype(int)]
    with taps.evaluating(model), torch.no_grad(), taps.record(model, model.layers) as maps:
        model(torch.as_tensor(fixed))
    split = deconvnet.searched(windows.train, N_SEARCHED)
    layers = []
    for layer, top in deconvnet.top_of_layers(model, model.layers, split, n=1).items():
        found = deconvnet.project_top(model, layer, split, top, rules=("deconvnet",)).isel(rank=0)
        columns = {
            "maps": (("unit", "place"), maps[layer].transpose(0, 1).flatten(1)[:, ::PLACES].numpy()),
            "projection": (("unit", "sample"), deconvnet.around(found["projection"].isel(rule=0).values, found)),
            "window": ("unit", found["window"].values),
        }
        layers.append(xr.Dataset(columns).expand_dims(layer=[layer]))
    return xr.concat(layers, "layer")
