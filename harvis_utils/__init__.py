"""From a raw archive of wearable-sensor data to what each unit of a recognition network responds to.

    archive - recordings - windows - networks - statistics - signals - scores - atlas - report
              data                   training   maximization          metrics          paper
      01         01          01         02           03         03        04       05      06

The rooms, from the ground up; each imports only from those before it: settings, parallel, store, data, networks,
fast, training, maximization, metrics, lenses, paper, figures (imports none of them), run, own, chain.

Of anyone's network and windows, ``explain(network, place, windows)`` makes one page (:func:`own.one_page.explain`).
"""

import importlib
import os

# Idle OpenMP threads sleep instead of spinning: on a busy machine spinning costs a factor of ten.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str):
    """``explain``, imported when it is asked for: so that importing the package alone stays light."""
    if name == "explain":
        return importlib.import_module(f"{__name__}.own.one_page").explain
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
