"""Which meshes a run works on, and which of them are this rank's."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastshape.geometry import PrepareError
from fastshape.geometry.formats import READERS

LISTS = (".txt", ".csv", ".jsonl")


@dataclass(frozen=True)
class Item:
    """One mesh to prepare.

    Attributes:
        path: absolute.
        name: the path as it was given, relative to the folder in which it was found: the same on machines
            that mount the folder elsewhere.
    """

    path: str
    name: str


@dataclass(frozen=True)
class Rank:
    """This process among those that share a run. `source` says who said so."""

    rank: int = 0
    world_size: int = 1
    source: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise PrepareError(f"the rank must lie in 0..{self.world_size - 1}, got {self.rank}")

    def __contains__(self, item: Item) -> bool:
        digest = hashlib.sha256(item.name.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.world_size == self.rank


def default_rank(environment: Mapping[str, str]) -> Rank:
    """The rank by torchrun's RANK and WORLD_SIZE, or by srun's task, the task of a Slurm array, or both.

    The variables that sbatch sets for a batch script alone, without srun, do not count: there is one process
    then. Of a step the step's own number of tasks counts, not the job's: the shell of `salloc` is a step of
    one task in a job of many.

    Raises:
        PrepareError: variables that are not numbers or contradict one another.
    """

    def number(name: str, default: int | None = None) -> int:
        text = environment.get(name, "" if default is None else str(default))
        try:
            return int(text)
        except ValueError:
            raise PrepareError(f"the environment has {name}={text!r}, expected an integer") from None

    if "RANK" in environment and "WORLD_SIZE" in environment:
        return Rank(number("RANK"), number("WORLD_SIZE"), "torchrun")
    rank, world_size, source = 0, 1, []
    if "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
        rank, world_size = number("SLURM_PROCID"), number("SLURM_STEP_NUM_TASKS", number("SLURM_NTASKS", 1))
        source.append("Slurm's tasks")
    if "SLURM_ARRAY_TASK_ID" in environment and "SLURM_ARRAY_TASK_COUNT" in environment:
        step = max(number("SLURM_ARRAY_TASK_STEP", 1), 1)
        place = (number("SLURM_ARRAY_TASK_ID") - number("SLURM_ARRAY_TASK_MIN", 0)) // step
        rank, world_size = place * world_size + rank, number("SLURM_ARRAY_TASK_COUNT") * world_size
        source.append("Slurm's array")
    return Rank(rank, world_size, " and ".join(source))


def find_items(inputs: Sequence[str | os.PathLike[str]], output: Path) -> list[Item]:
    """The meshes under folders, in list files, and those named themselves, each path once, in order.

    A folder is searched at any depth for files that `geometry.load` knows by their extension; links to
    folders are followed, hidden files and folders and the output folder are left out. A list is a `.txt` with
    a path per line (empty lines and those with a # in front do not count), a `.csv` with a column `path`, or
    a `.jsonl` of objects with `path`, or of strings; relative paths in it start at the list's folder.

    Raises:
        PrepareError: an input that does not exist, is no mesh and no list, or a list that cannot be read; no
            mesh in all of them.
    """
    found: dict[str, Item] = {}
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            items: Iterable[Item] = _of_folder(path, output)
        elif not path.exists():
            raise PrepareError(f"{path}: no such file or folder")
        elif path.suffix.lower() in LISTS:
            items = _of_list(path)
        elif path.suffix.lower() in READERS:
            items = [Item(os.path.abspath(path), str(path))]
        else:
            raise PrepareError(
                f"{path}: expected a folder, a mesh ({' '.join(READERS)}) or a list ({' '.join(LISTS)})"
            )
        for item in items:
            found.setdefault(item.path, item)
    if not found:
        raise PrepareError(
            f"{', '.join(str(given) for given in inputs)}: no meshes in it ({' '.join(READERS)})"
        )
    return list(found.values())


def source_files(path: str | os.PathLike[str]) -> list[Path]:
    """A mesh file, and for glTF the files beside it that hold its numbers, those that exist."""
    path = Path(path)
    files = [path]
    if path.suffix.lower() == ".gltf":
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
            for buffer in json.loads(path.read_bytes()).get("buffers", []):
                uri = buffer.get("uri", "data:")
                if not uri.startswith("data:"):
                    files.append(path.parent / urllib.parse.unquote(uri))
    return files[:1] + [file for file in files[1:] if file.is_file()]


def source_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of `source_files`, in hexadecimal.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for part in source_files(path):
        with open(part, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _of_folder(folder: Path, output: Path) -> Iterator[Item]:
    root = os.path.abspath(folder)
    left_out = os.path.realpath(output)
    seen = set()
    stack = [root]
    while stack:
        here = stack.pop()
        real = os.path.realpath(here)
        if real in seen or (real == left_out and here != root):
            continue
        seen.add(real)
        try:
            with os.scandir(here) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            raise PrepareError(f"{here}: the folder cannot be read ({error.strerror})") from error
        entries = [entry for entry in entries if not entry.name.startswith(".")]
        stack += [entry.path for entry in reversed(entries) if entry.is_dir()]
        for entry in entries:
            if os.path.splitext(entry.name)[1].lower() in READERS and not entry.is_dir():
                yield Item(entry.path, Path(os.path.relpath(entry.path, root)).as_posix())


def _of_list(path: Path) -> Iterator[Item]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PrepareError(f"{path}: the list cannot be read ({error})") from error
    for name in _LIST_READERS[path.suffix.lower()](path, text):
        if name:
            yield Item(os.path.abspath(path.parent / name), name)


def _of_text(path: Path, text: str) -> Iterator[str]:
    for line in text.split("\n"):  # a name may hold the other separators of `splitlines`
        name = line.strip()
        if not name.startswith("#"):
            yield name


def _of_csv(path: Path, text: str) -> Iterator[str]:
    rows = csv.DictReader(io.StringIO(text))
    if "path" not in (rows.fieldnames or ()):
        raise PrepareError(
            f"{path}: expected a column 'path', got {', '.join(rows.fieldnames or ['nothing'])}"
        )
    for row in rows:
        yield (row["path"] or "").strip()


def _of_json_lines(path: Path, text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            yield value if isinstance(value, str) else str(value["path"])
        except (ValueError, KeyError, TypeError):
            raise PrepareError(
                f"{path}: line {number}: expected an object with 'path', or a string"
            ) from None


_LIST_READERS = {".txt": _of_text, ".csv": _of_csv, ".jsonl": _of_json_lines}
