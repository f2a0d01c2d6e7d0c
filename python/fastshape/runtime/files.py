"""Files of tensors that are there whole or not at all.

Every file is written under a temporary name beside its place and then renamed, so that a reader sees the old
file or the new one and never half of one. Every failure to read is a `CheckpointError` that names the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or does not fit the model."""


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success flushes it to disk and renames it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's 0600 would hide a shared checkpoint
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None:  # a full disk does not say whose
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


_SAFETENSORS_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
}


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The tensors as a safetensors file: the same bytes for the same input, whatever its order.

    The safetensors package writes the metadata in a random order.

    Raises:
        TypeError: a dtype other than bool, uint8, int16, int32, int64, float16, float32 and float64.
    """
    header: dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    parts, offset = [], 0
    for name, tensor in sorted(tensors.items(), key=lambda entry: (-entry[1].element_size(), entry[0])):
        if tensor.dtype not in _SAFETENSORS_NAMES:
            raise TypeError(f"`{name}` has dtype {tensor.dtype}, which is not written")
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        parts.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Writes tensors atomically."""
    with atomic_path(path) as temporary:
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, temporary, metadata)


def read_safetensors(
    path: Path, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file.

    Raises:
        CheckpointError: the file is missing, truncated or not safetensors.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged or not a safetensors file: {error}") from error


def changes(saved: Mapping[str, Any], current: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two configurations, in words, those within them field by field."""
    found = []
    for name in sorted(saved.keys() | current.keys()):
        before, now = saved.get(name), current.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            found += changes(before, now, f"{name}.")
        elif before != now:
            found.append(f"{prefix}{name} ({before} -> {now})")
    return found
