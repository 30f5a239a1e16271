"""A trunk trained on one data set and carried to another: other people, other activities, other sensors' places.

Zeiler and Fergus (2014, section 5) retrain the last layers on other pictures, with few examples a class. The trunk of
SF-HF treats each axis by itself, so that it fits windows with any axes at the same rate; the head is made anew.
"""

from dataclasses import replace
from itertools import product

import pandas as pd
import torch
from torch import Tensor

from harvis_utils.data import archive, synthetic, windowing
from harvis_utils.data.kinds import Recordings, check_name
from harvis_utils.data.windowing import Windows
from harvis_utils.lenses.architecture import N_PER_CLASS, few_of_each
from harvis_utils.networks import taps
from harvis_utils.networks.sfhf import SFHF
from harvis_utils.parallel import side_by_side, threads_inside
from harvis_utils.settings import APPROXIMATE, ModelSettings, Settings, TrainingSettings, TransferSettings
from harvis_utils.store.results import kept
from harvis_utils.training import supervised
from harvis_utils.training.supervised import Network

FROZEN, TUNED, RANDOM, SCRATCH = "carried, frozen", "carried, fine-tuned", "random trunk, frozen", "from scratch"
#: the ceiling
ALL = "all windows"
#: data sets that features are carried to and from, the first one that is there; made-up data have a noisier variant
OTHERS = {"dsads": ("mhealth", f"mhealth{APPROXIMATE}"), "mhealth": ("dsads",)}
#: what to do where no other data set can be read
HOW_TO_ADD = "Put its archive into a folder that `HARVIS_DATA` names, beside the other one, and run this again."
#: Choice: networks of each data set, as many as an interval wants, and at most about so many test windows
N_NETWORKS, N_TEST = 3, 2000


def other_recordings(dataset: str) -> tuple[Recordings | None, str]:
    """Recordings of the data set that goes with ``dataset``, or None and why there are none."""
    base = dataset.removesuffix(APPROXIMATE)
    if base == synthetic.DATASET.name:
        return synthetic.variant(noise_g=0.1, prevalence=0.75), ""
    if base not in OTHERS:
        return None, f"no other data set goes with {dataset}"
    why = f"{OTHERS[base][0]} is not on this machine"
    for name in OTHERS[base]:
        if archive.locate(name, check_name(name).archive):
            try:
                return archive.load_recordings(name, download=False), ""
            except archive.DataError as error:  # an archive that is not the verified one may be the approximate one
                why = f"{name} cannot be read: {error}"
    return None, why


class OnMaps(SFHF):
    """SF-HF given the maps (window, unit, axis, time) of its last convolution: a trunk that nothing can change."""

    def feature_maps(self, x: Tensor, upto: str | None = None) -> dict[str, Tensor]:
        """The maps themselves."""
        return {self.layers[-1]: x}


@kept("carrying")
@threads_inside(1)
def carried(
    source: Network, target: Windows, model: ModelSettings, training: TrainingSettings, settings: TransferSettings
) -> pd.DataFrame:
    """Test macro F1 on the ``target`` of every arm and number of windows a class, with the trunk of ``source``.

    All arms begin with the same head and take as many steps; ``FROZEN`` ones learn it on maps that are on a common
    scale, unit by unit, over the few windows.
    """
    trunk = {k: v for k, v in source.model.state_dict().items() if k.startswith(("conv", "norm_conv"))}
    x_test, rows, layer = torch.as_tensor(target.test.x), [], source.model.layers[-1]
    for n in N_PER_CLASS:
        chosen = few_of_each(target.train, n, source.seed)
        x, y = torch.as_tensor(target.train.x[chosen]), torch.as_tensor(target.train.activity[chosen])
        epochs = -(-settings.n_steps // -(-len(x) // training.batch_size))
        for arm in (FROZEN, TUNED, RANDOM, SCRATCH):
            network, few, test = supervised.new_model(target, model, source.seed + 1), x, x_test
            if arm in (FROZEN, TUNED):
                network.load_state_dict(network.state_dict() | trunk)
            if arm in (FROZEN, RANDOM):
                few, test = (taps.outputs(network, layer, of) for of in (x, x_test))
                spread, centre = torch.std_mean(few, (0, 2, 3), keepdim=True)
                few, test = ((of - centre) / spread.clamp(min=1e-6) for of in (few, test))
                network.__class__ = OnMaps
            supervised.fit(network, few, y, training, source.seed, epochs=epochs)
            with torch.no_grad():
                batches = test.split(supervised.EVALUATION_BATCH)
                predicted = torch.cat([network.eval()(batch).argmax(1) for batch in batches]).numpy()
            f1 = supervised.macro_f1(target.test, predicted)
            rows.append({"arm": arm, "windows a class": n, "seed": source.seed, "F1": f1})
    return pd.DataFrame(rows)


def carrying(cfg: Settings, windows: Windows, networks: list[Network], other: Recordings) -> pd.DataFrame:
    """:func:`carried` from the run's data set to another and back: one row per way, arm, windows a class and network.

    ``N_NETWORKS`` of the run's ``networks`` carry, and as many that are trained like them on the ``other`` data.
    Beside ``F1`` stand ``gain``, over training from scratch, and ``more than random``, over the random trunk, both by
    the same network; the arm ``ALL`` are the target's own networks, on the same test windows.
    """
    few = replace(cfg, training=replace(cfg.training, seeds=cfg.training.seeds[:N_NETWORKS]))
    there = windowing.cut(other, cfg.windows)
    ends = {cfg.dataset: (windows, networks[:N_NETWORKS]), other.name: (there, supervised.networks(few, there))}
    tables = []
    for source, target in (tuple(ends), tuple(ends)[::-1]):
        to, judged = ends[target]
        every = -(-len(to.test) // N_TEST)
        to = replace(to, test=to.test.every(every))
        about = (to, cfg.model, cfg.architecture.training, cfg.transfer)
        found = side_by_side(cfg, lambda net, about=about: carried(net, *about), ends[source][1])
        whole = {net.seed: supervised.macro_f1(to.test, net.predicted["test"][::every]) for net in judged}
        ceiling = pd.DataFrame(product([ALL], N_PER_CLASS, whole), columns=["arm", "windows a class", "seed"])
        arms = pd.concat([*found, ceiling.assign(F1=ceiling["seed"].map(whole))])
        tables.append(arms.assign(way=f"{source} to {target}"))
    found = pd.concat(tables, ignore_index=True)
    place = ["way", "windows a class", "seed"]
    for name, control in (("gain", SCRATCH), ("more than random", RANDOM)):
        beside = found[found["arm"] == control].set_index(place)["F1"].rename("control")
        found[name] = found["F1"] - found.join(beside, on=place)["control"]
    return found
