"""Prepared shapes on the disk: a folder with a file for each, or tar shards; both read at random."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_bytes
from torch import Tensor

from fastshape.geometry.prepare import Prepared, PrepareSpec

SPEC_FILE = "spec.json"
INDEX_FILE = "index.jsonl"  # of a folder
SHARDS_FILE = "index.json"  # of shards
SAMPLES_FILE = "samples.safetensors"  # of shards: where each sample lies
FORMAT_VERSION = 1


class PrepareError(ValueError):
    """What is wrong with a folder of prepared shapes, or keeps a whole run of preparation from going on."""


def read_prepared(data: str | os.PathLike[str] | bytes) -> Prepared:
    """One prepared shape, from its file or its bytes.

    Raises:
        PrepareError: the file is missing or damaged.
    """
    try:
        if isinstance(data, bytes):
            length = int.from_bytes(data[:8], "little")
            metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
            return Prepared(load_bytes(data), metadata)
        with safe_open(data, framework="pt") as file:
            return Prepared({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        where = "a prepared shape" if isinstance(data, bytes) else f"{os.fspath(data)}"
        raise PrepareError(f"{where}: missing or damaged: {error}") from error


class PreparedShapes(Sequence[Prepared]):
    """Prepared shapes, in the order of their keys; `open_prepared` opens a folder or shards.

    Attributes:
        path: the folder.
        spec: the specification of all of them.
        keys: their names, in hexadecimal, ascending.
        fingerprint: a hash of all their bytes, by which a run knows its data.
    """

    path: Path
    spec: PrepareSpec
    keys: list[str]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> Prepared: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prepared]: ...
    def __getitem__(self, index: int | slice) -> Prepared | list[Prepared]:
        if isinstance(index, slice):
            return [self._read(place) for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} prepared shapes")
        return self._read(index % len(self))

    def _read(self, index: int) -> Prepared:
        raise NotImplementedError


class PreparedFolder(PreparedShapes):
    """What `fastshape prepare` wrote, through its `index.jsonl`.

    Raises:
        PrepareError: no such folder, or one without an index; on access, a file that is missing or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.spec = read_spec(self.path)
        digest = hashlib.sha256()
        self.keys, self._files = [], []
        try:
            with open(self.path / INDEX_FILE, "rb") as file:
                for text in file:
                    line = json.loads(text)
                    self.keys.append(line["key"])
                    self._files.append(line["file"])
                    digest.update(bytes.fromhex(line["sha256"]))
        except FileNotFoundError:
            raise PrepareError(
                f"{self.path}: no {INDEX_FILE}; it is written when a run of `fastshape prepare` ends"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PrepareError(f"{self.path / INDEX_FILE}: not an index: {error}") from error
        self.fingerprint = digest.hexdigest()

    def _read(self, index: int) -> Prepared:
        return read_prepared(self.path / self._files[index])


class PackedShapes(PreparedShapes):
    """What `fastshape pack` wrote: samples in tar files, read by their offsets.

    Raises:
        PrepareError: no such folder, or one without an index; on access, a shard that is missing or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            index: dict[str, Any] = json.loads((self.path / SHARDS_FILE).read_bytes())
            self.spec = PrepareSpec.from_dict(index["spec"])
            self._shards = [shard["file"] for shard in index["shards"]]
            self.fingerprint = index["fingerprint"]
            count = index["num_samples"]
        except FileNotFoundError:
            raise PrepareError(f"{self.path}: no {SHARDS_FILE}, so this is not a folder of shards") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PrepareError(f"{self.path / SHARDS_FILE}: not an index: {error}") from error
        samples = read_prepared(self.path / SAMPLES_FILE)
        if samples.keys() != {"key", "shard", "offset", "size"} or len(samples["key"]) != count:
            raise PrepareError(f"{self.path / SAMPLES_FILE}: does not belong to {SHARDS_FILE}")
        self.keys = [row.tobytes().hex() for row in samples["key"].numpy()]
        self._where = torch.stack([samples[name].long() for name in ("shard", "offset", "size")], 1)

    def _read(self, index: int) -> Prepared:
        shard, offset, size = self._where[index].tolist()
        path = self.path / self._shards[shard]
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise PrepareError(f"{path}: cannot be read ({error.strerror})") from error
        if len(data) != size:
            raise PrepareError(f"{path}: ends before its sample {self.keys[index]}")
        try:
            return read_prepared(data)
        except PrepareError as error:
            raise PrepareError(f"{path}: sample {self.keys[index]} is damaged") from error


def open_prepared(path: str | os.PathLike[str]) -> PreparedShapes:
    """What `fastshape prepare` or `fastshape pack` wrote.

    Raises:
        PrepareError: the folder is neither.
    """
    return PackedShapes(path) if (Path(path) / SHARDS_FILE).exists() else PreparedFolder(path)


def read_spec(folder: Path) -> PrepareSpec:
    """The specification of a prepared folder.

    Raises:
        PrepareError: there is none, or it cannot be read.
    """
    path = folder / SPEC_FILE
    try:
        return PrepareSpec.from_dict(json.loads(path.read_text(encoding="utf-8"))["spec"])
    except FileNotFoundError:
        raise PrepareError(f"{folder}: no {SPEC_FILE}, so this is not a folder of prepared shapes") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PrepareError(f"{path}: not a specification: {error}") from error


def labeled_queries(prepared: Prepared, name: str) -> tuple[Tensor, Tensor]:
    """Queries (N, 3) float32 and whether each is inside (N,) bool; empty where there are none.

    Args:
        prepared: a prepared shape, whatever its labels.
        name: of the queries: "volume", "near" or "sharp_near".
    """
    points = prepared.get(f"{name}_points", torch.zeros(0, 3)).float()
    if f"{name}_sdf" in prepared:
        # The sign bit: what is inside by less than half precision holds, or lies on the surface, is -0.
        return points, prepared[f"{name}_sdf"].signbit()
    return points, prepared.get(f"{name}_occupancy", torch.zeros(0)).bool()
