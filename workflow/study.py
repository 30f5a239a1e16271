"""What the macro F1 of the paper depends on: one factor at a time, on a third of the windows.

    python -m workflow.study dsads

trains every setting below with several seeds and writes ``reports/published/study/<data set>/f1.csv``. The
setting is chosen on the validation subject alone; test F1 is reported for all and used to choose none. Runs are
kept by content, so an interrupted study goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from harvis_utils.data import archive, kinds, windowing
from harvis_utils.parallel import command_line, threads
from harvis_utils.settings import REPOSITORY, ModelSettings, Settings, TrainingSettings, load_settings
from harvis_utils.store.files import write_text
from harvis_utils.training import supervised

#: every n-th window is used, of all splits
THINNING = 3
SEEDS = (0, 1)
TRAINING = TrainingSettings(seeds=SEEDS, epochs=8, learning_rate=5e-4)
PLAIN = ModelSettings(batch_norm=False, pool="none", mixing="conv", n_dense=128, dropout=0.5)

#: Paper: no setting of this list is stated; differences from the plain head, one factor at a time, then with batch norm
VARIANTS: dict[str, dict] = {
    "plain head": {},
    "no dropout": {"dropout": 0.0},
    "dropout 0.2": {"dropout": 0.2},
    "no dense layer": {"n_dense": 0},
    "dense 512": {"n_dense": 512},
    "axes mixed by the dense layer": {"mixing": "dense"},
    "max pooling by 2": {"pool": "max2"},
    "mean pooling": {"pool": "mean"},
    "weight decay 1e-4": {"weight_decay": 1e-4},
    "batch size 32": {"batch_size": 32},
    "batch size 256": {"batch_size": 256},
    "batch norm": {"batch_norm": True},
    "batch norm, no dropout": {"batch_norm": True, "dropout": 0.0},
    "batch norm, max pooling by 2": {"batch_norm": True, "pool": "max2"},
    "batch norm, mean pooling": {"batch_norm": True, "pool": "mean"},
    "batch norm, axes mixed by the dense layer": {"batch_norm": True, "mixing": "dense"},
}

#: Choice: a simpler setting is preferred within this distance of the best validation F1
TOLERANCE = 0.02


def settings_of(variant: str, base: Settings) -> Settings:
    """The settings of one variant."""
    changed = {
        section: dataclasses.replace(plain, **{k: v for k, v in VARIANTS[variant].items() if hasattr(plain, k)})
        for section, plain in (("model", PLAIN), ("training", TRAINING))
    }
    return dataclasses.replace(base, **changed)


def additions(cfg: Settings) -> int:
    """How many things the setting adds that the paper's description does not mention."""
    model = cfg.model
    return sum((model.batch_norm, model.dropout > 0, model.pool != "none", cfg.training.weight_decay > 0))


def run(dataset: str, device: str | None = None) -> pd.DataFrame:
    """Train all variants; one row each: validation and test macro F1, mean and range over the seeds.

    ``val_f1`` is the mean over the second half of the epochs: validation is one subject, and its best epoch alone
    would reward luck. ``test_f1`` is taken at the epoch with the best validation F1, as the chain does.
    """
    base = load_settings("desk", dataset, device)
    third = windowing.cut(archive.load_recordings(dataset), base.windows).every(THINNING)
    rows = {}
    for variant in VARIANTS:
        cfg = settings_of(variant, base)
        found = supervised.networks(cfg, third)
        val = [n.history["val_f1"] for n in found]
        test = [n.history["test_f1"][n.best_epoch] for n in found]
        rows[variant] = {
            "additions": additions(cfg),
            "val_f1": np.mean([f1[cfg.training.epochs // 2 :].mean() for f1 in val]),
            "val_f1_best_epoch": np.mean([f1.max() for f1 in val]),
            "test_f1": np.mean(test),
            "test_f1_min": min(test),
            "test_f1_max": max(test),
            "seeds": len(found),
            "epochs": cfg.training.epochs,
        }
        print(f"{variant}: val {rows[variant]['val_f1']:.3f} test {rows[variant]['test_f1']:.3f}", flush=True)
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting").convert_dtypes()
    return table.assign(chosen=table.index == choose(table))


def choose(table: pd.DataFrame) -> str:
    """The setting with the fewest additions within ``TOLERANCE`` of the best validation F1; ties to the better one."""
    near = table[table["val_f1"] >= table["val_f1"].max() - TOLERANCE]
    return str(near.sort_values(["additions", "val_f1"], ascending=[True, False]).index[0])


def table_path(dataset: str) -> Path:
    """Where the study's table is published."""
    return REPOSITORY / "reports" / "published" / "study" / dataset / "f1.csv"


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Run the study from the command line; 0 when it worked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", choices=sorted(kinds.registry()))
    dataset = parser.parse_args(arguments).dataset
    torch.set_num_threads(threads())
    write_text(table_path(dataset), run(dataset).round(4).to_csv())


if __name__ == "__main__":
    sys.exit(main())
