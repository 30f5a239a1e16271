"""Readings of the paper's step sizes, by name: what the notebooks climb with."""

from __future__ import annotations

from harvis_utils.engine import Step

#: readings of the paper's step sizes; everything else of the ascent is in :class:`config.MaximizationSettings`
PRESETS: dict[str, Step] = {
    # Paper: the stated values, plain gradient ascent; their sum is 0.02, so X can hardly move
    "literal": Step("ascent", 1e-4, 0.995),
    # Choice: the reading of DSADS networks kept for choosing that departs least from what is stated among those that
    # meet the paper's results as well as any; notebook 07 shows all of them
    "calibrated": Step("adam", 0.3, 0.995),
}
