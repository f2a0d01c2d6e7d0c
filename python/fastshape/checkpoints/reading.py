"""Reading of checkpoint files that other repositories wrote."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastshape.runtime.files import CheckpointError, read_safetensors


def read_state(source: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """The parameters in a file, or in an already loaded object, and a name for it to use in messages.

    Files ending in `.safetensors` are read as such, all others by `torch.load(weights_only=True)`, which runs
    no code from the file; `argparse.Namespace`, which many training scripts store, is let through. A mapping
    under "model" or "state_dict" is unwrapped, and the `module.` prefix of data parallel is taken off.

    Raises:
        CheckpointError: the file is missing, damaged, or holds no parameters.
    """
    if isinstance(source, Mapping):
        content: Any = source
        name = "the state dict"
    else:
        path = Path(source)
        name = str(path)
        if not path.is_file():
            raise CheckpointError(f"checkpoint {path} does not exist")
        content = read_safetensors(path)[0] if path.suffix == ".safetensors" else _read_pickle(path)
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{name} holds no parameters: expected a mapping from names to tensors")
    wrong = [k for k, value in content.items() if not isinstance(k, str) or not isinstance(value, Tensor)]
    if wrong:
        inner = [repr(key) for key, value in content.items() if isinstance(value, Mapping) and value]
        hint = f"; load the file and pass one of {', '.join(inner)}" if inner else ""
        raise CheckpointError(f"{name} holds no parameters: {wrong[0]!r} is not a tensor{hint}")
    if all(key.startswith("module.") for key in content):
        content = {key.removeprefix("module."): value for key, value in content.items()}
    return dict(content), name


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()
        detail = reason[0] if reason else type(error).__name__
        if "unsupported global" in str(error).lower():
            detail = (
                "it holds objects other than tensors and plain values, which are not loaded; "
                "if you trust it, load it yourself and pass its parameters"
            )
        raise CheckpointError(f"checkpoint {path} is damaged or not a torch checkpoint: {detail}") from error
