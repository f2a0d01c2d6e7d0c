"""Preparation of many meshes: each once, under limits, resumable, by several machines if need be.

The output folder holds

    spec.json                one specification for all of it
    ab/abcdef....safetensors one file for each mesh, named by a hash of its bytes and the specification
    status-RANK.jsonl        what became of each item, a line each, flushed
    index.jsonl              the prepared files, sorted; written at the end of a run
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastshape.geometry import MeshError, Prepared, PrepareSpec, load
from fastshape.geometry import prepare as prepare_mesh
from fastshape.geometry.prepared import FORMAT_VERSION, SPEC_FILE, PrepareError, read_spec
from fastshape.pipelines.inputs import Item, Rank, find_items, source_digest, source_files
from fastshape.pipelines.status import StatusWriter, merge_index, read_lines, status_files
from fastshape.pipelines.workers import Result, WorkerPool
from fastshape.runtime.files import atomic_path, safetensors_bytes

Task = Callable[[Path, PrepareSpec], Prepared]

_LEAST_MEMORY = 384 << 20


@dataclass(frozen=True)
class ItemResult:
    """What became of an item.

    Attributes:
        item: which.
        status: "ok"; "done" (by an earlier run); "duplicate" (of another input); "failed"; "failed before".
        kind: of a failure: "mesh" (the file is bad), "timeout", "memory", "crash" or "error" (ours).
        reason: of a failure, in words.
        seconds: it took; 0 for what was not worked on.
        peak_memory: in bytes.
    """

    item: Item
    status: str
    kind: str = ""
    reason: str = ""
    seconds: float = 0.0
    peak_memory: int = 0


@dataclass
class PrepareReport:
    """The end of a run.

    Attributes:
        total: items of this rank.
        counts: by status, see `ItemResult`.
        failures: the items that failed, now or before.
        seconds: wall time.
        work_seconds: time in the workers, over all items.
        peak_memory: of the largest item, in bytes.
        num_indexed: files in the index, of all ranks so far.
    """

    total: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[ItemResult] = field(default_factory=list)
    seconds: float = 0.0
    work_seconds: float = 0.0
    peak_memory: int = 0
    num_indexed: int = 0


class PrepareInterrupted(KeyboardInterrupt):
    """Ctrl-C: all that was finished is kept, and the same call goes on. `report` says how far it came."""

    def __init__(self, report: PrepareReport) -> None:
        super().__init__(f"stopped after {sum(report.counts.values())} of {report.total} items")
        self.report = report


def prepare_file(path: Path, spec: PrepareSpec) -> Prepared:
    """`geometry.prepare` of a mesh file."""
    return prepare_mesh(load(path), spec)


def prepare(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    spec: PrepareSpec,
    *,
    workers: int | None = None,
    threads: int = 1,
    timeout: float | None = 600.0,
    memory: int | None = 8 << 30,
    retry_failed: bool = False,
    rank: Rank | None = None,
    on_start: Callable[[PrepareReport], None] | None = None,
    on_item: Callable[[ItemResult], None] | None = None,
    task: Task = prepare_file,
) -> PrepareReport:
    """Prepare every mesh of folders, files and lists, in child processes; see `geometry.prepare`.

    A bad item is written down and never ends the run. What an earlier run into the same folder finished is
    not done again, and the folder's files are in the end the same bytes as those of a run that nothing
    interrupted. Equal inputs (same bytes, same extension) are prepared once.

    Args:
        inputs: see `find_items`.
        output: a folder, made if need be.
        spec: what to make of each mesh.
        workers: child processes; None takes as many as there are cores for this process.
        threads: of each child.
        timeout: seconds that an item may take, None for no limit.
        memory: bytes that a child may take, at least 384 MiB, None for no limit.
        retry_failed: work again on what failed before; otherwise only changed files are.
        rank: this process among several that share the work and the output folder.
        on_start: called when the items are known, with the report as it then is.
        on_item: called for each item of this rank.
        task: what makes the tensors of a file, picklable.

    Returns:
        Counts and failures.

    Raises:
        PrepareError: bad inputs, an output folder of another specification or that cannot be written, a full
            disk.
        PrepareInterrupted: Ctrl-C.
    """
    if memory is not None and memory < _LEAST_MEMORY:
        raise PrepareError(
            f"the memory of a process must be at least {_LEAST_MEMORY >> 20} MiB, "
            f"got {memory / 2**20:.0f} MiB: its libraries alone take most of that"
        )
    rank = Rank() if rank is None else rank
    begin = time.monotonic()
    output = Path(output).absolute()
    items = [item for item in find_items(inputs, output) if item in rank]
    _open_folder(output, spec)
    report = PrepareReport(total=len(items))
    status = StatusWriter(output, rank.rank)
    scratch = output / f".scratch-{rank.rank}"
    try:
        shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed; the lock says that it is gone
        scratch.mkdir()
        run = _Run(output, scratch, spec, status, report, retry_failed, on_item or (lambda _: None), task)
        if on_start is not None:
            on_start(report)
        todo = run.first_look(items)
        count = min(workers or _cores() // threads or 1, len(todo))
        if count:
            preload = {"fastshape.pipelines.prepare", task.__module__}
            with WorkerPool(
                count, scratch, timeout=timeout, memory=memory, threads=threads, preload=preload
            ) as pool:
                run.work(pool, todo)
        report.num_indexed = merge_index(output)
    except KeyboardInterrupt:
        raise PrepareInterrupted(report) from None
    finally:
        report.seconds = time.monotonic() - begin
        shutil.rmtree(scratch, ignore_errors=True)
        status.close()
    return report


def _open_folder(output: Path, spec: PrepareSpec) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise PrepareError(f"{output}: expected a folder to write to, but a file is in the way") from None
    path = output / SPEC_FILE
    if path.exists():
        other, mine = read_spec(output).to_dict(), spec.to_dict()
        differing = [
            f"{name} {other[name]} there, {mine[name]} here" for name in mine if other[name] != mine[name]
        ]
        if differing:
            raise PrepareError(
                f"{output}: was prepared with another specification ({'; '.join(differing)}); "
                "choose another folder"
            )
        return
    description = {"format_version": FORMAT_VERSION, "spec": spec.to_dict(), "spec_hash": spec.hash}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _file_of(output: Path, key: str) -> Path:
    return output / key[:2] / f"{key}.safetensors"


# ------------------------------------------------------------------------ in the parent


@dataclass
class _Known:
    """What the status files say of a path."""

    time: float
    signature: tuple[int, int]
    status: str
    key: str | None
    kind: str
    reason: str


class _Run:
    def __init__(
        self,
        output: Path,
        scratch: Path,
        spec: PrepareSpec,
        status: StatusWriter,
        report: PrepareReport,
        retry_failed: bool,
        on_item: Callable[[ItemResult], None],
        task: Task,
    ) -> None:
        self._output, self._scratch, self._spec, self._status = output, scratch, spec, status
        self._report, self._on_item, self._task = report, on_item, task
        self._retry_failed = retry_failed
        self._known: dict[str, _Known] = {}
        self._done: dict[str, int] = {}  # key to size
        self._failed: dict[str, tuple[str, str]] = {}
        self._waiting: dict[str, list[Item]] = {}  # duplicates of what is being worked on
        for path in status_files(output):
            for line in read_lines(path):
                with contextlib.suppress(KeyError, TypeError):
                    self._learn(line)

    def _learn(self, line: dict[str, Any]) -> None:
        path, state, key = line["path"], line["status"], line.get("key")
        known = _Known(
            line["time"],
            (line["size"], line["mtime_ns"]),
            state,
            key,
            line.get("kind", ""),
            line.get("reason", ""),
        )
        if path not in self._known or self._known[path].time <= known.time:
            self._known[path] = known
        if key is not None and state == "ok":
            self._done[key] = line["bytes"]
            self._failed.pop(key, None)
        elif key is not None and state == "failed" and key not in self._done and not self._retry_failed:
            self._failed[key] = (known.kind, known.reason)

    def first_look(self, items: Sequence[Item]) -> list[Item]:
        """The items that must be read: those that no status file knows as they are now."""
        todo = []
        for item in items:
            known = self._known.get(item.path)
            if known is None or known.signature != _signature(item.path):
                todo.append(item)
            elif known.status == "failed":
                if self._retry_failed:
                    todo.append(item)
                else:
                    self._end(ItemResult(item, "failed before", known.kind, known.reason))
            elif known.key is not None and self._is_there(known.key):
                self._end(ItemResult(item, "done"))
            else:
                todo.append(item)
        return todo

    def _is_there(self, key: str) -> bool:
        try:
            return _file_of(self._output, key).stat().st_size == self._done.get(key)
        except OSError:
            return False

    def work(self, pool: WorkerPool, items: Sequence[Item]) -> None:
        """Two calls for each item: one reads and hashes it, the other, for a new hash, prepares it."""
        unread, hashed = deque(items), deque[tuple[Item, dict[str, Any]]]()
        while unread or hashed or pool.num_busy:
            while pool.num_idle and (hashed or unread):
                if hashed:
                    item, source = hashed.popleft()
                    target = _file_of(self._output, source["key"])
                    pool.submit(
                        (item, source),
                        _make,
                        item.path,
                        source,
                        target,
                        self._scratch,
                        self._spec,
                        self._task,
                    )
                else:
                    item = unread.popleft()
                    pool.submit((item, None), _hash, item.path, self._spec.hash)
            for result in pool.wait(1.0):
                item, source = result.ticket
                if source is None:
                    self._hashed(item, result, hashed)
                else:
                    self._made(item, source, result)

    def _hashed(self, item: Item, result: Result, hashed: deque[tuple[Item, dict[str, Any]]]) -> None:
        kind, reason, source = _outcome(result)
        if kind:
            self._record(item, {}, result, "failed", kind=kind, reason=reason)
            return
        key = source["key"]
        if key in self._waiting:
            self._waiting[key].append(item)
        elif self._is_there(key):
            self._record(item, source, result, "duplicate")
        elif key in self._failed:
            kind, reason = self._failed[key]
            self._record(item, source, result, "failed", kind=kind, reason=reason)
        else:
            self._waiting[key] = []
            hashed.append((item, source))

    def _made(self, item: Item, source: dict[str, Any], result: Result) -> None:
        kind, reason, made = _outcome(result)
        if kind == "output":
            raise PrepareError(f"{self._output}: {reason}")
        if kind:
            self._failed[source["key"]] = (kind, reason)
            self._record(item, source, result, "failed", kind=kind, reason=reason)
        else:
            self._done[source["key"]] = made["bytes"]
            self._record(item, source, result, "ok", **made)
        for other in self._waiting.pop(source["key"]):
            signature = dict(zip(("size", "mtime_ns"), _signature(other.path), strict=True))
            if kind:
                self._record(other, {**source, **signature}, None, "failed", kind=kind, reason=reason)
            else:
                self._record(other, {**source, **signature}, None, "duplicate")

    def _record(
        self, item: Item, source: dict[str, Any], result: Result | None, status: str, **more: Any
    ) -> None:
        seconds, peak = (result.seconds, result.peak_memory) if result is not None else (0.0, 0)
        size, mtime = (source["size"], source["mtime_ns"]) if source else _signature(item.path)
        line = {
            "path": item.path,
            "status": status,
            "key": source.get("key"),
            "source_sha256": source.get("source_sha256"),
            "size": size,
            "mtime_ns": mtime,
            "seconds": round(seconds, 4),
            "peak_memory": peak,
            "time": round(time.time(), 3),
            **more,
        }
        self._status.append(line)
        self._end(ItemResult(item, status, more.get("kind", ""), more.get("reason", ""), seconds, peak))

    def _end(self, result: ItemResult) -> None:
        report = self._report
        report.counts[result.status] += 1
        report.work_seconds += result.seconds
        report.peak_memory = max(report.peak_memory, result.peak_memory)
        if result.kind:
            report.failures.append(result)
        self._on_item(result)


def _outcome(result: Result) -> tuple[str, str, Any]:
    """Kind and reason of a failure, "" for none; the value."""
    if result.failure == "raised":
        return "error", result.reason, None
    if result.failure is not None:
        return result.failure, result.reason, None
    kind, value = result.value
    return (kind, value, None) if kind else ("", "", value)


def _signature(path: str) -> tuple[int, int]:
    """Size and last change of the files of a mesh; (-1, -1) if there is none."""
    try:
        entries = [os.stat(file) for file in source_files(path)]
        return sum(entry.st_size for entry in entries), max(entry.st_mtime_ns for entry in entries)
    except OSError:
        return -1, -1


# ------------------------------------------------------------------------ in the children
# They return the kind of a failure and its reason, or "" and the value.


def _hash(path: str, spec_hash: str) -> tuple[str, Any]:
    size, mtime_ns = _signature(path)  # before the bytes: a change in between is seen by the next run
    try:
        source = source_digest(path)
    except OSError as error:
        return "mesh", "no such file" if isinstance(error, FileNotFoundError) else f"{error.strerror}"
    extension = os.path.splitext(path)[1].lower()
    key = hashlib.sha256(f"{source} {extension} {spec_hash}".encode()).hexdigest()
    return "", {"key": key, "source_sha256": source, "size": size, "mtime_ns": mtime_ns}


def _make(
    path: str, source: dict[str, Any], target: Path, scratch: Path, spec: PrepareSpec, task: Task
) -> tuple[str, Any]:
    try:
        prepared = task(Path(path), spec)
    except MeshError as error:
        return "mesh", error.message
    except ValueError as error:
        return "mesh", " ".join(str(error).split())
    metadata = {**prepared.metadata, "source_sha256": source["source_sha256"], "key": source["key"]}
    data = safetensors_bytes(prepared, metadata)
    try:
        _write(target, data, scratch)
    except OSError as error:
        return "output", f"cannot write {target.name} ({error.strerror})"
    return "", {
        "file": f"{target.parent.name}/{target.name}",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "counts": {
            name.removesuffix("_points"): len(tensor)
            for name, tensor in prepared.items()
            if name.endswith("_points")
        },
        "faces": json.loads(metadata.get("faces", "0")),
        "doubt": json.loads(metadata.get("doubt", "0")),
    }


def _write(target: Path, data: bytes, scratch: Path) -> None:
    """Write beside the run's scratch files, flush to the disk, then move into place."""
    target.parent.mkdir(exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=scratch)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(temporary, 0o666 & ~mask)
    os.replace(temporary, target)
