"""Prepared shapes into tar shards that webdataset reads, and that `geometry.PackedShapes` reads at random.

The output folder holds

    shard-000000.tar     KEY.json and KEY.safetensors of each shape, sorted by the key
    samples.safetensors  key, shard, offset and size of each KEY.safetensors
    index.json           the specification, and file, number of samples, bytes and SHA-256 of each shard
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from fastshape.geometry.prepared import (
    FORMAT_VERSION,
    INDEX_FILE,
    SAMPLES_FILE,
    SHARDS_FILE,
    PreparedFolder,
    PrepareError,
    read_spec,
)
from fastshape.pipelines.status import merge_index, read_lines
from fastshape.runtime.files import atomic_path, safetensors_bytes

_BLOCK = 512
_END = 2 * _BLOCK  # two empty blocks end a tar file


@dataclass(frozen=True)
class PackReport:
    """Number of samples and shards, and the bytes of all shards."""

    num_samples: int
    num_shards: int
    num_bytes: int


def pack(
    prepared: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    shard_size: int = 1 << 30,
    on_sample: Callable[[int, int], None] | None = None,
) -> PackReport:
    """Pack a prepared folder into tar shards. The same shapes give the same bytes.

    `index.json` is written last: while it is not there the shards are not complete. Shards of an earlier
    packing in the output folder are replaced.

    Args:
        prepared: the folder that `prepare` wrote; its index is brought up to date first.
        output: a folder, made if need be.
        shard_size: largest size of a shard in bytes; a sample that is larger gets a shard of its own.
        on_sample: called with the number of samples done and their total.

    Raises:
        PrepareError: nothing is prepared, or a prepared file is missing or is not the one of the index.
    """
    prepared, output = Path(prepared), Path(output)
    spec = read_spec(prepared)
    merge_index(prepared)
    fingerprint = PreparedFolder(prepared).fingerprint
    lines = list(read_lines(prepared / INDEX_FILE))
    if not lines:
        raise PrepareError(f"{prepared}: no prepared shapes to pack")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise PrepareError(f"{output}: expected a folder to write to, but a file is in the way") from None
    (output / SHARDS_FILE).unlink(missing_ok=True)
    shards: list[dict[str, Any]] = []
    where: list[tuple[int, int, int]] = []
    begin = 0
    while begin < len(lines):
        end, total = begin, _END
        while end < len(lines):
            size = _BLOCK + _padded(len(_description(lines[end]))) + _BLOCK + _padded(lines[end]["bytes"])
            if end > begin and total + size > shard_size:
                break
            end, total = end + 1, total + size
        name = f"shard-{len(shards):06}.tar"
        with atomic_path(output / name) as temporary, open(temporary, "wb") as file:
            digest = hashlib.sha256()
            for place in range(begin, end):
                where.append((len(shards), *_add(file, digest, prepared, lines[place])))
                if on_sample is not None:
                    on_sample(place + 1, len(lines))
            _put(file, digest, b"\0" * _END)
            size = file.tell()
        shards.append({"file": name, "samples": end - begin, "bytes": size, "sha256": digest.hexdigest()})
        begin = end
    for path in output.glob("shard-*.tar"):
        if path.name not in {shard["file"] for shard in shards}:
            path.unlink()
    _write_samples(output, [line["key"] for line in lines], where)
    index = {
        "format_version": FORMAT_VERSION,
        "spec": spec.to_dict(),
        "spec_hash": spec.hash,
        "fingerprint": fingerprint,
        "num_samples": len(lines),
        "shards": shards,
    }
    with atomic_path(output / SHARDS_FILE) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return PackReport(len(lines), len(shards), sum(shard["bytes"] for shard in shards))


def _add(file: IO[bytes], digest: Any, prepared: Path, line: dict[str, Any]) -> tuple[int, int]:
    """Append a sample; return offset and size of its tensors."""
    path = prepared / line["file"]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PrepareError(f"{path}: cannot be read ({error.strerror}); prepare again") from error
    if hashlib.sha256(data).hexdigest() != line["sha256"]:
        raise PrepareError(f"{path}: is not the file that was prepared; delete it and prepare again")
    description = _description(line)
    for name, content in ((f"{line['key']}.json", description), (f"{line['key']}.safetensors", data)):
        entry = tarfile.TarInfo(name)  # time 0, user 0
        entry.size = len(content)
        entry.mode = 0o644
        _put(file, digest, entry.tobuf(tarfile.USTAR_FORMAT))
        offset = file.tell()
        _put(file, digest, content + b"\0" * (_padded(len(content)) - len(content)))
    return offset, len(data)


def _description(line: dict[str, Any]) -> bytes:
    return json.dumps(line, sort_keys=True, separators=(",", ":")).encode()


def _put(file: IO[bytes], digest: Any, data: bytes) -> None:
    file.write(data)
    digest.update(data)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _write_samples(output: Path, keys: list[str], where: list[tuple[int, int, int]]) -> None:
    shard, offset, size = torch.tensor(where, dtype=torch.int64).unbind(1)
    tensors = {
        "key": torch.tensor([list(bytes.fromhex(key)) for key in keys], dtype=torch.uint8),
        "shard": shard.int(),
        "offset": offset,
        "size": size,
    }
    with atomic_path(output / SAMPLES_FILE) as temporary:
        temporary.write_bytes(safetensors_bytes(tensors))
