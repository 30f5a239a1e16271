"""One network kept at several epochs of its training: when do the features of each layer stand still?

Zeiler and Fergus (2014, Fig. 4) say by eye, of projections of the strongest activations, that lower layers settle
within a few epochs and upper ones late. Choice: a layer has *settled* at the first kept epoch from which the median
over its units of the correlation with the last epoch exceeds ``SETTLED`` to the end.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor, nn

from harvis_utils.data.windowing import Windows
from harvis_utils.lenses import deconvnet
from harvis_utils.metrics.intervals import LEVEL, N_DRAWS, resampled, with_interval
from harvis_utils.metrics.similarity import correlation
from harvis_utils.networks import taps
from harvis_utils.networks.sfhf import SFHF
from harvis_utils.networks.taps import Tap
from harvis_utils.parallel import progress, threads_inside, torch_device
from harvis_utils.settings import ModelSettings, Settings, TrainingSettings
from harvis_utils.store.results import kept
from harvis_utils.training import supervised

#: Paper: Fig. 4; Choice: every epoch up to the tenth too, because short trainings would have three points otherwise
MARKS = (*range(1, 11), 20, 30, 40, 64)
PAPER_MARKS = (1, 2, 5, 10, 20, 30, 40, 64)
#: validation windows on which maps are compared
N_FIXED = 200
#: every so many-th place of the maps is kept: neighbours say nearly the same
PLACES = 15
#: Choice: at most so many training windows are searched for a unit's strongest activation
N_SEARCHED = 3000
#: Choice: a unit looks like its last state where the correlation exceeds this
SETTLED = 0.9
MEASURES = ("maps", "projections")


@dataclass(frozen=True)
class Moment:
    """Any network after ``epoch`` epochs (0: before any), and the address of its weights, which no others have."""

    epoch: int
    model: nn.Module
    key: str


def marks(epochs: int) -> list[int]:
    """Epochs at which a training of so many epochs is kept: ``MARKS`` as far as they go, and the last."""
    return sorted({m for m in MARKS if m <= epochs} | {epochs})


@kept("evolution", apart=("device",))
def states(
    windows: Windows,
    model: ModelSettings,
    training: TrainingSettings,
    seed: int,
    *,
    device: str | None = None,
    checkpoint: Path | None = None,
) -> dict[str, Tensor]:
    """Weights of one network after each epoch of :func:`marks`, called "<epoch>.<name>"; resumable."""
    network = supervised.new_model(windows, model, seed).to(torch_device(device))
    wanted, found = marks(training.epochs), {}
    x, y = (torch.as_tensor(a, device=torch_device(device)) for a in (windows.train.x, windows.train.activity))

    def note(epoch: int, loss: float) -> None:
        if epoch + 1 in wanted:
            found.update({f"{epoch + 1}.{name}": value.clone() for name, value in network.state_dict().items()})

    options = {"each_epoch": note, "notes": found, "checkpoint": checkpoint, "title": "evolution of one network"}
    with threads_inside(1):
        supervised.fit(network, x, y, training, seed, **options)
    return {name: value.cpu() for name, value in found.items()}


def train(cfg: Settings, windows: Windows) -> list[Moment]:
    """One network trained with the run's settings and kept at epoch 0 and :func:`marks`; made where missing.

    Of more than ``n_trained`` windows every n-th is used. On the same windows the last moment equals, bit for bit, what
    :func:`harvis_utils.training.supervised.train` has after its last epoch.
    """
    seed, most = cfg.evolution.seed, cfg.evolution.n_trained or len(windows.train)
    few = dataclasses.replace(windows, train=deconvnet.searched(windows.train, most))
    wanted = (few, cfg.model, dataclasses.replace(cfg.training, seeds=()), seed)
    found, key = states(*wanted, device=cfg.device), states.key(*wanted)
    moments = []
    for epoch in (0, *marks(cfg.training.epochs)):
        model = supervised.new_model(windows, cfg.model, seed)
        if epoch:
            model.load_state_dict(supervised.part_of(found, f"{epoch}."))
        moments.append(Moment(epoch, model.eval(), f"{key}/{epoch}"))
    return moments


@kept("evolution_features")
def features_of(moment: Moment, windows: Windows, layers: Sequence[str | Tap] | None = None) -> xr.Dataset:
    """Every unit at one kept epoch, dims (layer, unit[, ...]); see :func:`features`."""
    model, split = moment.model, deconvnet.searched(windows.train, N_SEARCHED)
    if layers is None and not isinstance(model, SFHF):
        raise ValueError("say which layers of the network: layers=[...]; taps.places(network, windows) lists them")
    places = [taps.find(model, layer) for layer in (model.layers if layers is None else layers)]
    fixed = windows.val.x[np.linspace(0, len(windows.val) - 1, min(N_FIXED, len(windows.val))).astype(int)]
    maps, top = next(taps.chunks(model, places, fixed)), deconvnet.top_of_layers(model, places, split, n=1)
    parts = []
    for place in places:
        own = maps[place.name]
        try:
            found = deconvnet.project_top(model, place, split, top[place.name], ("deconvnet",))
        except ValueError:  # Choice: where that rule is not defined, the gradient, and ``rule`` says so
            found = deconvnet.project_top(model, place, split, top[place.name], ("gradient",))
        found = deconvnet.in_samples(model, place, found.isel(rank=0), fixed)
        mixed = own.shape[2] != fixed.shape[1]
        flat = own.transpose(0, 1).flatten(1)[:, ::PLACES].cpu().numpy()
        dims = ("unit", "input_axis", "sample") if mixed else ("unit", "sample")
        columns = {
            "maps": (("unit", "place"), flat),
            "projection": (dims, deconvnet.around(found["projection"].isel(rule=0).values, found, mixed)),
            "window": ("unit", found["window"].values),
            "rule": found["rule"].values[0],
        }
        # layers with fewer units or places than others end in NaN
        coords = {"unit": found["unit"].values, "place": np.arange(flat.shape[1])}
        parts.append(xr.Dataset(columns, coords).expand_dims(layer=[place.name]))
    batches = torch.as_tensor(windows.test.x).split(supervised.EVALUATION_BATCH)
    with taps.evaluating(model), torch.no_grad():
        predicted = torch.cat([taps.scores_of(model, batch).argmax(1).cpu() for batch in batches]).numpy()
    found = xr.concat(parts, "layer", join="outer", fill_value={"window": -1})
    return found.assign(test_f1=supervised.macro_f1(windows.test, predicted))


def features(windows: Windows, moments: Sequence[Moment], layers: Sequence[str | Tap] | None = None) -> xr.Dataset:
    """Every unit at every kept epoch: dims (epoch, layer, unit[, ...]), of ``layers``, or of SF-HF's convolutions.

    ``maps`` (..., place) on fixed validation windows; ``projection`` ([..., input_axis], sample), that of the strongest
    activation over (every n-th of) the training windows around it (Paper: Fig. 4), on its own axis, on all of them for
    units that mix the axes; the ``rule`` by which it was projected; its ``window``; ``test_f1``. Raises ``ValueError``
    for another network than SF-HF without ``layers``, and as :func:`taps.located` and :func:`taps.positions` do.
    """
    found = [features_of(moment, windows, layers) for moment in progress(moments, desc="features", leave=False)]
    return xr.concat(found, pd.Index([moment.epoch for moment in moments], name="epoch"))


def likeness(found: xr.Dataset) -> xr.Dataset:
    """How much every unit is like its last state: Pearson correlations, dims (epoch, layer, unit).

    ``maps`` on fixed windows; ``projections`` around the strongest activation; ``same_window``, whether that comes from
    the window it comes from in the end. Units silent at either epoch have NaN, and those that a layer does not have.
    """
    parts = []
    for layer in found["layer"].values:
        own = found.sel(layer=layer).dropna("place", how="all")
        # in one order, so that sums do not depend on what was dropped
        maps, window = np.ascontiguousarray(own["maps"]), own["window"].values
        projection = own["projection"].transpose(..., "sample").values
        measured = {
            "maps": correlation(maps, maps[-1]),
            "projections": correlation(projection, projection[-1], mixed=projection.ndim > 3),
            "same_window": np.where(window < 0, np.nan, window == window[-1]),
        }
        parts.append(xr.Dataset({name: (("epoch", "unit"), values) for name, values in measured.items()}))
    alike = xr.concat(parts, found["layer"]).transpose("epoch", "layer", "unit")
    return alike.assign_coords(epoch=found["epoch"].values)


def settled(epochs: Sequence[int], values: np.ndarray) -> int:
    """First of the epochs from which the median over units exceeds ``SETTLED`` to the end; ``values`` (epoch, unit).

    The last epoch is like itself, so that an answer always exists; where it *is* the last epoch, nothing had settled.
    """
    above = pd.DataFrame(values).median(axis=1).to_numpy() > SETTLED  # a median without units exceeds nothing
    below = np.flatnonzero(~above[:-1])
    return int(epochs[below[-1] + 1]) if len(below) else int(epochs[0])


def settling(alike: xr.Dataset) -> pd.DataFrame:
    """When each layer settles, by each of ``MEASURES``, with an interval over units (one network).

    Columns ``epoch``, ``epoch low``, ``epoch high``, ``last epoch``, ``settled before the end``, and ``before
    training``: the median correlation of the random start with the end, with its interval.
    """
    epochs, rows, rng = alike["epoch"].values, {}, np.random.default_rng(0)
    for layer, measure in product(alike["layer"].values, MEASURES):
        values = alike[measure].sel(layer=layer).dropna("unit", how="all").values
        drawn = resampled((values.shape[1],), n=N_DRAWS // 4, seed=rng)
        # an epoch that was kept, not one between two
        low, high = np.quantile([settled(epochs, values[:, d]) for (d,) in drawn], LEVEL, method="inverted_cdf")
        row = {"epoch": settled(epochs, values), "epoch low": low, "epoch high": high, "last epoch": int(epochs[-1])}
        row |= with_interval("before training", values[0], "median")
        rows[str(layer), measure] = row | {"units": values.shape[1]}
    table = pd.DataFrame.from_dict(rows, "index").rename_axis(["layer", "measure"])
    return table.assign(**{"settled before the end": table["epoch"] < table["last epoch"]})


def course(alike: xr.Dataset, when: pd.DataFrame) -> pd.DataFrame:
    """Median ``likeness`` over units, its quartiles as low and high, by layer, measure and epoch (columns).

    ``settled`` is true at the epoch that :func:`settling`'s table ``when`` names.
    """
    quartiles = alike[list(MEASURES)].to_dataarray("measure").quantile([0.25, 0.5, 0.75], "unit").to_series()
    names = ["likeness low", "likeness", "likeness high"]
    table = quartiles.unstack("quantile").set_axis(names, axis=1).reset_index()
    first = when["epoch"].rename("first").reset_index()
    table = table.merge(first, on=["layer", "measure"])
    return table.assign(settled=table["epoch"] == table.pop("first"))
