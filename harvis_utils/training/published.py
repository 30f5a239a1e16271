"""Trained networks that travel with the repository: trunks of all, the whole network of the first seed.

A published run carries, in ``reports/published/<profile>/<data set>/networks/``:

* ``trunks.safetensors``: of every network, those for choosing too, the folded trunk
  (:class:`harvis_utils.networks.sfhf.Trunk`), history and predicted classes;
* ``network.safetensors``: all weights of the network of the first seed, float32; not of made-up data, on which anyone
  trains it again in two minutes;
* ``statistics.nc`` and ``signals.nc``: what its units did in training, and the signals of all methods;
* ``networks.json``: digests of these files, and how and on which windows each network was trained.

With ``WEIGHTS=published`` a run takes these networks instead of training; :func:`network` reads one without any data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from safetensors.torch import load_file, save_file
from torch import nn

from harvis_utils.data.windowing import Windows
from harvis_utils.networks import builders
from harvis_utils.networks.sfhf import Trunk, known
from harvis_utils.settings import PROFILES, REPOSITORY, HarvisError, ModelSettings, from_json
from harvis_utils.store import results
from harvis_utils.store.files import file_digest, read_dataset, read_json, reading, replacing, write_dataset, write_json
from harvis_utils.training.supervised import HISTORY, Network, drawing, part_of, trained

#: files of a published run's folder beside networks.json
FILES = ("trunks.safetensors", "network.safetensors", "statistics.nc", "signals.nc")


class PublishedError(HarvisError, RuntimeError):
    """Published networks that are missing, damaged or of other windows; the message says what to do."""


class NotPublished(nn.Module):
    """Stands for a network of which only the trunk is published: every use says so."""

    def __init__(self, seed: int):
        super().__init__()
        self._seed = seed

    def __getattr__(self, name: str):
        if name in ("_seed", "_parameters", "_buffers", "_modules"):
            return super().__getattr__(name)
        self._refuse()

    def _refuse(self, *args, **kwargs):
        raise PublishedError(
            f"of network {self._seed} only the trunk is published, and this needs all of its weights; take the first "
            "network alone, or train them all (WEIGHTS=trained)"
        )

    forward = parameters = named_parameters = named_modules = modules = state_dict = _refuse


@dataclass(frozen=True)
class Published:
    """A network of a published run, what its units did in training, and the signals that were made for them.

    ``statistics`` has dims (layer, unit[, rank]), ``signals`` (layer, preset, technique, unit, time) in G;
    ``provenance`` says how and with what it was trained, and under "caveat" what is to be said of its data.
    """

    network: Network
    statistics: xr.Dataset
    signals: xr.DataArray
    provenance: dict

    def unit(self, layer: str, unit: int, preset: str = "calibrated") -> tuple[xr.Dataset, xr.Dataset]:
        """All signals of a unit with its outputs for them, ``signal`` and ``map`` (technique, time); its statistics.

        These are what :func:`harvis_utils.figures.waves.unit_methods` draws. Raises ``ValueError`` for an unknown
        layer, unit or preset.
        """
        asked = {"layer": layer, "unit": unit, "preset": preset}
        for name, value in asked.items():
            known(name, value, self.signals[name].values.tolist())
        made, trunk = self.signals.sel(asked), self.network.trunk
        maps = trunk.feature_map(torch.as_tensor(made.values), layer)[:, unit].numpy()
        both = xr.Dataset({"signal": made, "map": (made.dims, maps)})
        return both, self.statistics.sel(layer=layer, unit=unit)


def folder_of(profile: str, dataset: str) -> Path:
    """Where the networks of a published run are or will be."""
    return REPOSITORY / "reports" / "published" / profile / dataset / "networks"


def save(
    folder: Path,
    windows: Windows,
    networks: Sequence[Network],
    statistics: xr.Dataset,
    signals: xr.Dataset,
    whole: bool = True,
) -> Path:
    """Write the networks of a finished run, its unit statistics and its signals; returns ``folder``.

    ``statistics`` has dims (seed, layer, unit[, rank]); of ``signals``, (seed, layer, preset, technique, unit, time),
    the signals alone are kept, in float32. The ``whole`` first network goes, or its trunk alone as of the others.
    """
    tensors: dict[str, torch.Tensor] = {}
    for net in networks:
        parts = {f"weights.{i}": w for i, w in enumerate(net.trunk.weights)}
        parts |= {f"biases.{i}": b for i, b in enumerate(net.trunk.biases)}
        parts |= {name: torch.as_tensor(net.history[name]) for name in HISTORY}
        for name, classes in (("predicted", net.predicted), ("last_predicted", net.predicted_last)):
            parts |= {f"{name}.{split}": torch.as_tensor(c).to(torch.uint8) for split, c in classes.items()}
        tensors |= {f"{net.seed}.{name}": part.contiguous() for name, part in parts.items()}
    with replacing(folder / "trunks.safetensors") as part:
        save_file(tensors, part)
    if whole:
        weights = networks[0].model.state_dict()
        weights = {k: v.to(torch.float32) if v.is_floating_point() else v for k, v in weights.items()}
        with replacing(folder / "network.safetensors") as part:
            save_file({k: v.contiguous() for k, v in weights.items()}, part)
    trainings = [read_json(results.folder_of(trained.stage, net.key) / "manifest.json") for net in networks]
    about = {
        "files": {},
        "caveat": windows.caveat,
        "seeds": [net.seed for net in networks],
        "best_epochs": [net.best_epoch for net in networks],
        "wall_s": [one["wall_s"] for one in trainings],
        "axes": list(windows.axes),
        "activities": list(windows.activities),
        # of the training, which may have been done on another machine than this
        "provenance": [one["provenance"] for one in trainings],
    }
    write_json(folder / "networks.json", about)
    return save_units(folder, statistics, signals)


def save_units(folder: Path, statistics: xr.Dataset, signals: xr.Dataset) -> Path:
    """Write what a run found of the units of the networks in ``folder``, as :func:`save` does; returns ``folder``."""
    write_dataset(folder / "statistics.nc", statistics)
    write_dataset(folder / "signals.nc", signals[["signal"]].astype(np.float32))
    about = read_json(folder / "networks.json")
    about["files"] = {name: file_digest(folder / name) for name in FILES if (folder / name).exists()}
    write_json(folder / "networks.json", about)
    return folder


def load(folder: Path, windows: Windows, model: ModelSettings, seeds: Sequence[int]) -> list[Network]:
    """The published networks of ``seeds``, in this order; of all but the first of the file only the trunk.

    Raises :class:`PublishedError` where files are missing or damaged, where they are of other windows, and for seeds
    that were not published.
    """
    about = _checked(folder, seeds)
    with reading(folder / "networks.json"):
        trainings = [about["provenance"][about["seeds"].index(seed)]["arguments"] for seed in seeds]
        same = {"windows": all(of["windows"] == windows.digest for of in trainings)}
        same["settings of the model"] = all(from_json(of["model"], ModelSettings) == model for of in trainings)
    for what in (name for name, ok in same.items() if not ok):
        raise PublishedError(
            f"the networks in {folder} were trained on other {what} than these; train them (WEIGHTS=trained)"
        )
    tensors = load_file(folder / "trunks.safetensors")
    return [_network(folder, about, tensors, windows.train.length, model, seed) for seed in seeds]


def _checked(folder: Path, seeds: Sequence[int]) -> dict:
    """What ``networks.json`` says, where all files are whole and the networks of ``seeds`` among them."""
    if not (folder / "networks.json").exists():
        raise PublishedError(f"no networks are published in {folder}; train them (WEIGHTS=trained)")
    about, listed = read_json(folder / "networks.json"), folder.parent / "digests.json"
    with reading(folder / "networks.json"):
        # nothing but the published run's digests can say whether it is as it was published
        beside = read_json(listed)["files"] if listed.exists() else {}
        wanted = {Path(name).name: digest for name, digest in beside.items() if name.startswith("networks/")}
        needed = (name for name in FILES if name != "network.safetensors" or (folder / name).exists())
        wanted |= dict.fromkeys(needed) | about["files"]
        for name, digest in wanted.items():
            if not (folder / name).is_file() or file_digest(folder / name) != digest:
                raise PublishedError(f"{folder / name} is missing or damaged; get it again, or train (WEIGHTS=trained)")
        if unknown := [seed for seed in seeds if type(seed) is not int or seed not in about["seeds"]]:
            raise PublishedError(
                f"networks {', '.join(map(repr, unknown))} are not published in {folder}; published are "
                f"{', '.join(map(str, about['seeds']))}; train the others (WEIGHTS=trained)"
            )
    return about


def network(dataset: str, seed: int = 0, profile: str = "desk") -> Published:
    """The network of ``seed`` of a published run, in three lines to the picture of a unit, without any data:

        one = published.network("dsads", seed=0)
        figure = waves.unit_methods(*one.unit("conv1", 53))

    All its weights are there where it is the first of a run on recorded data, else its trunk. Raises
    :class:`PublishedError` where it is not published, or damaged.
    """
    return judging(folder_of(profile, dataset), [seed])[0]


def judging(folder: Path, seeds: Sequence[int] | None = None) -> list[Published]:
    """The networks that a published run's verdicts stand on, those of ``seeds`` or all, whose data are not at hand."""
    about = _checked(folder, seeds or ())
    tensors, (_, statistics, signals) = load_file(folder / "trunks.safetensors"), without_data(folder)
    judges, found = statistics["seed"].values.tolist(), []
    if beside := sorted(set(seeds or ()) - set(judges)):
        raise PublishedError(f"network {beside[0]} in {folder} is kept for choosing, without signals; judges: {judges}")
    for seed in judges if seeds is None else seeds:
        provenance = about["provenance"][about["seeds"].index(seed)]
        model = from_json(provenance["arguments"]["model"], ModelSettings)
        made = _network(folder, about, tensors, signals.sizes["time"], model, seed)
        own = (of.sel(seed=seed, drop=True) for of in (statistics, signals["signal"]))
        found.append(Published(made, *own, provenance))
    return found


def learning_curves(dataset: str) -> pd.DataFrame:
    """What training came to in the published networks of a data set, in all profiles: a row per network and epoch.

    Columns: "profile", "seed", "epoch" (from 1), those of ``HISTORY``, and "chosen", true at the epoch that was taken.
    """
    rows = []
    for profile in PROFILES:
        folder = folder_of(profile, dataset)
        for one in judging(folder) if (folder / "networks.json").exists() else ():
            own = pd.DataFrame(one.network.history).rename_axis("epoch").reset_index()
            own = own.assign(chosen=own["epoch"] == one.network.best_epoch, epoch=own["epoch"] + 1)
            rows.append(own.assign(profile=profile, seed=one.network.seed))
    if not rows:
        raise PublishedError(f"no networks of {dataset} are published")
    return pd.concat(rows, ignore_index=True)


def without_data(folder: Path) -> tuple[dict[int, Trunk], xr.Dataset, xr.Dataset]:
    """Trunks by seed, unit statistics and signals (:func:`save`) of a published run whose data are not at hand.

    Raises :class:`PublishedError` where files are missing or damaged.
    """
    about, tensors = _checked(folder, ()), load_file(folder / "trunks.safetensors")
    trunks = {seed: _trunk(part_of(tensors, f"{seed}.")) for seed in about["seeds"]}
    return trunks, *(read_dataset(folder / f"{name}.nc") for name in ("statistics", "signals"))


def _network(folder: Path, about: dict, tensors: dict, length: int, model: ModelSettings, seed: int) -> Network:
    own = part_of(tensors, f"{seed}.")
    predicted = (part_of(own, name) for name in ("predicted.", "last_predicted."))
    best, last = ({split: classes.long().numpy() for split, classes in of.items()} for of in predicted)
    whole: nn.Module = NotPublished(seed)
    place = about["seeds"].index(seed)
    if place == 0 and "network.safetensors" in about["files"]:
        with drawing(seed):
            whole = builders.build(len(about["axes"]), length, len(about["activities"]), model)
        whole = whole.to(memory_format=torch.channels_last).eval()
        whole.load_state_dict(load_file(folder / "network.safetensors"))
    content = f"{about['files']['trunks.safetensors']} {about['files'].get('network.safetensors')} {seed}"
    return Network(
        seed=seed,
        model=whole,
        history={name: own[name].numpy() for name in HISTORY},
        best_epoch=about["best_epochs"][place],
        predicted=best,
        predicted_last=last,
        key=hashlib.sha256(content.encode()).hexdigest()[:20],
        wall_s=about["wall_s"][place],
        folded=_trunk(own),
    )


def _trunk(own: dict) -> Trunk:
    parts = [part_of(own, f"{kind}.") for kind in ("weights", "biases")]
    return Trunk(*(tuple(part[str(i)] for i in range(len(part))) for part in parts))
