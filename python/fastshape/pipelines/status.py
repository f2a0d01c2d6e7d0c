"""What a run writes down about its items, and the index made of it.

Every rank appends to its own `status-RANK.jsonl`, one line for each item that has ended; a line that a crash
has torn is left out. All ranks read all of these files.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastshape.geometry.prepared import INDEX_FILE, PrepareError
from fastshape.runtime.files import atomic_path

_INDEXED = ("key", "file", "bytes", "sha256", "source_sha256", "counts", "faces", "doubt")


class StatusWriter:
    """Appends to one status file, which no other process may write at the same time."""

    def __init__(self, output: Path, rank: int) -> None:
        self._path = output / f"status-{rank}.jsonl"
        self._file = open(self._path, "a+b", buffering=0)  # noqa: SIM115
        with contextlib.suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                raise PrepareError(
                    f"{self._path}: another process is writing it; give each its own --rank"
                ) from None
            except OSError:
                pass  # a file system without locks
        self._trim()

    def _trim(self) -> None:
        """Cut off a torn last line."""
        end = self._file.seek(0, os.SEEK_END)
        while end:
            begin = max(end - 65536, 0)
            self._file.seek(begin)
            cut = self._file.read(end - begin).rfind(b"\n")
            if cut >= 0:
                end = begin + cut + 1
                break
            end = begin
        self._file.truncate(end)

    def append(self, line: dict[str, Any]) -> None:
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        try:
            while data:  # a disk that is nearly full takes a part
                data = data[self._file.write(data) :]
        except OSError as error:
            raise PrepareError(f"{self._path}: cannot be written ({error.strerror})") from error

    def close(self) -> None:
        self._file.close()


def status_files(output: Path) -> list[Path]:
    return sorted(output.glob("status-*.jsonl"))


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines; lines that are not are left out."""
    with open(path, "rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    yield value


def merge_index(output: Path, lines_of: Callable[[Path], list[dict[str, Any]]] | None = None) -> int:
    """Write `index.jsonl`: one line for each file that was made, sorted by its key; return their number.

    It holds nothing that depends on the order or the time of the work. Several ranks may call this at the
    same time: each looks again whether a status file has grown since it began.

    Args:
        output: the folder.
        lines_of: makes the lines of the folder's status files; None: `index_lines`, those of prepared shapes.
    """
    while True:
        before = _sizes(output)
        lines = (lines_of or index_lines)(output)
        with (
            atomic_path(output / INDEX_FILE) as temporary,
            open(temporary, "w", encoding="utf-8", newline="\n") as file,
        ):
            for line in lines:
                file.write(json.dumps(line, separators=(",", ":")) + "\n")
        if _sizes(output) == before:
            return len(lines)


def _sizes(output: Path) -> list[tuple[str, int]]:
    return [(path.name, path.stat().st_size) for path in status_files(output)]


def index_lines(output: Path) -> list[dict[str, Any]]:
    """Of prepared shapes; files whose source has changed since, and was prepared anew, are not in it."""
    done: dict[str, str] = {}  # one string for each: a million of them must fit
    current: dict[str, tuple[float, str]] = {}
    for path in status_files(output):
        for line in read_lines(path):
            key, name, when = line.get("key"), line.get("path", ""), line.get("time", 0.0)
            if key is None:
                continue
            if name not in current or current[name][0] <= when:
                current[name] = (when, key)
            if line.get("status") == "ok":
                done[key] = json.dumps({field: line[field] for field in _INDEXED})
    sources: dict[str, list[str]] = {}
    for name, (_, key) in current.items():
        if key in done:
            sources.setdefault(key, []).append(name)
    return [
        {**json.loads(done[key]), "source": min(names), "duplicates": sorted(names)[1:]}
        for key, names in sorted(sources.items())
    ]
