"""From a raw archive of wearable-sensor data to what each unit of a recognition network responds to.

    archive - recordings - windows - networks - statistics - signals - scores - atlas - report
              datasets     windows   training   activations  maximization  similarity  atlas  report
      01         01          01         02           03           03          04        05      06

Modules below import only from modules above: config, artifacts, datasets, windows, models, training,
activations, maximization, motifs, similarity, atlas, claims, report, chain. ``plots`` draws arrays and
computes nothing.
"""

import os

# Idle OpenMP threads sleep instead of spinning: on a busy machine spinning costs a factor of ten.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
