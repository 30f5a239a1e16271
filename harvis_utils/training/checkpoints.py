"""States of interrupted trainings written to files and read again: nested tensors and plain values, no pickle."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from harvis_utils.settings import HarvisError
from harvis_utils.store.files import replacing, safe_open, save_file

#: the file in a checkpoint's folder
CHECKPOINT = "training.safetensors"


class TrainingError(HarvisError, RuntimeError):
    """Training diverged, or its checkpoint is damaged or another's; the message says what to do."""


def save_state(path: Path, state: dict) -> None:
    """Write nested dicts and lists of tensors and plain values, all or nothing: tensors by number, the rest as JSON."""
    tensors: list[torch.Tensor] = []

    def plain(value):
        if isinstance(value, torch.Tensor):
            tensors.append(value.detach().cpu().clone(memory_format=torch.contiguous_format))
            return {"tensor": len(tensors) - 1}
        if isinstance(value, dict):  # as pairs, because some keys are numbers
            return {"items": [[key, plain(inner)] for key, inner in value.items()]}
        return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value

    about = {"state": json.dumps(plain(state))}
    about["digest"] = _digest(about["state"], tensors)
    with replacing(path) as part:
        save_file({str(number): tensor for number, tensor in enumerate(tensors)}, part, metadata=about)


def _digest(state: str, tensors: Iterable[torch.Tensor]) -> str:
    """SHA-256 of all that a file holds: safetensors itself notices no changed number."""
    found = hashlib.sha256(state.encode())
    for tensor in tensors:
        found.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def load_state(path: Path) -> dict:
    """Read what :func:`save_state` wrote, on the CPU; tuples come back as lists.

    Raises ``ValueError`` where the content is not what was written; files from before they held a digest are believed.
    """
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
        tensors = [file.get_tensor(str(number)) for number in range(len(file.keys()))]
        if "digest" in about and about["digest"] != _digest(about["state"], tensors):
            raise ValueError("its content is not what was written")

        def nested(value):
            if isinstance(value, dict) and "tensor" in value:
                return tensors[value["tensor"]]
            if isinstance(value, dict):
                return {key: nested(inner) for key, inner in value["items"]}
            return [nested(inner) for inner in value] if isinstance(value, list) else value

        return nested(json.loads(about["state"]))


def load_checkpoint(folder: Path) -> dict | None:
    """The state that an interrupted training left; None where there is none.

    Raises :class:`TrainingError` for a damaged one, and for one of other settings.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        return load_state(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        reason = (str(error) or "it is empty").splitlines()[0]
        raise TrainingError(f"{path} is damaged ({reason}); delete it and train again") from error


def resume(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, notes: dict) -> list[float]:
    """Losses of an interrupted training after loading its state; empty where there is none.

    ``notes`` is filled with what was saved in it. Raises :class:`TrainingError` for a damaged checkpoint.
    """
    state = load_checkpoint(folder)
    if state is None:
        return []
    model.load_state_dict(state["model"])
    for saved, here in zip(state["optimizer"]["param_groups"], optimizer.param_groups, strict=True):
        saved["capturable"] = here["capturable"]  # it may have begun on another device
    optimizer.load_state_dict(state["optimizer"])
    notes |= state["notes"]
    return state["losses"]
