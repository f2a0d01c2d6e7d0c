"""Checkpoints of a run: one safetensors file with model, optimizer, moving average and step.

There is no random state in it: every draw of a step follows from the seed and the step. One file is renamed
into place at a time, so that a killed run leaves its last whole checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastshape.models.pretrained import load_exactly
from fastshape.runtime.files import CheckpointError, changes, read_safetensors, write_safetensors
from fastshape.train.config import RunConfig

CHECKPOINT_FILE = "checkpoint.safetensors"
_FORMAT_VERSION = 2


def save(
    path: Path,
    *,
    model: torch.nn.Module,
    average: torch.nn.Module | None,
    optimizer: torch.optim.Optimizer,
    step: int,
    config: RunConfig,
    data: list[str],
) -> None:
    """Writes the state after `step` steps."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    description = {"format_version": _FORMAT_VERSION, "step": step, "config": config.to_dict(), "data": data}
    write_safetensors(path, tensors, {"fastshape": json.dumps(description)})


def restore(
    path: Path,
    *,
    model: torch.nn.Module,
    average: torch.nn.Module | None,
    optimizer: torch.optim.Optimizer,
    config: RunConfig,
    data: list[str],
) -> int:
    """Puts the state back and returns the number of steps done.

    Raises:
        CheckpointError: the file is damaged, or belongs to a run with another configuration or other shapes.
    """
    tensors, metadata = read_safetensors(path)
    try:
        description: dict[str, Any] = json.loads(metadata["fastshape"])
        version, step, saved = description["format_version"], int(description["step"]), description["config"]
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is not a training checkpoint of fastshape: {error!r}") from error
    if version != _FORMAT_VERSION:
        raise CheckpointError(f"{path} has format version {version}; this release reads {_FORMAT_VERSION}")
    changed = ", ".join(changes(saved, json.loads(json.dumps(config.to_dict()))))
    if changed:
        raise CheckpointError(
            f"{path} belongs to a run with another configuration: {changed}; "
            "use another output_dir, or resume=False to start again"
        )
    if description["data"] != data:
        raise CheckpointError(
            f"{path} belongs to a run on other shapes or from another initial model; "
            "use another output_dir, or resume=False to start again"
        )
    load_exactly(model, _part(tensors, "model."), str(path))
    if average is not None:
        load_exactly(average, _part(tensors, "average."), str(path))
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _part(tensors, "optimizer.").items():
        index, key = name.split(".", 1)
        states.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
