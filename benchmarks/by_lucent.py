"""lucent, the library that many people would take for Activation Maximization: one unit at a time."""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from types import ModuleType

import torch


@cache
def render() -> ModuleType:
    """``lucent.optvis.render``; ``ImportError`` where it does not install."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hundreds, of functions for images that are not used here
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            # lucent imports torchvision, whose builds on PyPI are for CUDA: beside a CPU build of torch its operators
            # do not load, and it fails where it needs these two. They belong to object detection; lucent has no use
            # for them
            for name in ("nms", "qnms"):
                torch.library.define(f"torchvision::{name}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        return importlib.import_module("lucent.optvis.render")
