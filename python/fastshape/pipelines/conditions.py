"""Conditions of prepared shapes: pictures around each mesh, and its caption, as a generator is told them.

The output folder, which `models.ConditionFolder` reads, holds

    conditions.json          what made them, one for all of it
    ab/abcdef....safetensors one file for each shape, named by its key as the prepared one is
    status-RANK.jsonl        what became of each shape, a line each, flushed
    index.jsonl              the files, sorted; written at the end of a run
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastshape.geometry import MeshError, PreparedFolder, PrepareError, load, orbit
from fastshape.geometry.prepared import INDEX_FILE
from fastshape.models import ImageConditioner, TextConditioner
from fastshape.models.condition_folder import ABOUT_FILE
from fastshape.pipelines.inputs import Item, Rank, find_items, source_digest
from fastshape.pipelines.prepare import ItemResult, PrepareInterrupted, PrepareReport
from fastshape.pipelines.status import StatusWriter, merge_index, read_lines, status_files
from fastshape.runtime.files import atomic_path, changes, safetensors_bytes
from fastshape.runtime.interrupt import delayed_interrupt

_FORMAT_VERSION = 1
_BATCH = 32  # pictures that the transformer sees at once
_INDEXED = ("key", "file", "bytes", "sha256")


@dataclass(frozen=True)
class ShapeSource:
    """What a prepared shape was made of.

    Attributes:
        key: of the prepared shape.
        digest: SHA-256 of the mesh's bytes, see `source_digest`.
        paths: where the mesh was then; several, of equal files.
        caption: what it is, in words; None where that is not known.
    """

    key: str
    digest: str
    paths: tuple[str, ...]
    caption: str | None = None


def shape_sources(
    prepared: Sequence[str | os.PathLike[str]], captions: Mapping[str, str] | None = None
) -> list[ShapeSource]:
    """The shapes of prepared folders, each once, sorted by their keys.

    Args:
        prepared: folders that `prepare` wrote.
        captions: by names of meshes; see `read_captions`. A name is a path, or the last parts of one, with or
            without the extension; of several that fit a mesh the longest counts.

    Raises:
        PrepareError: a folder that is none; captions of which none fits, or one that fits several shapes.
    """
    found: dict[str, ShapeSource] = {}
    for folder in map(Path, prepared):
        PreparedFolder(folder)  # or it says what is wrong
        for line in read_lines(folder / INDEX_FILE):
            paths = (line["source"], *line["duplicates"])
            found[line["key"]] = ShapeSource(line["key"], line["source_sha256"], paths)
    shapes = [found[key] for key in sorted(found)]
    return shapes if captions is None else _with_captions(shapes, captions)


def _with_captions(shapes: Sequence[ShapeSource], captions: Mapping[str, str]) -> list[ShapeSource]:
    told: dict[str, ShapeSource] = {}
    result = []
    for shape in shapes:
        name = next((name for path in shape.paths for name in _names(path) if name in captions), None)
        if name is not None and told.setdefault(name, shape).digest != shape.digest:
            raise PrepareError(
                f"the caption of '{name}' fits {told[name].paths[0]} and {shape.paths[0]}: "
                "name them by more of their paths"
            )
        result.append(shape if name is None else replace(shape, caption=captions[name]))
    if shapes and not told:
        listed = ", ".join(f"'{name}'" for name in [*captions][:3]) or "nobody"
        raise PrepareError(
            f"no caption fits a mesh: they are of {listed}, and the first mesh is {shapes[0].paths[0]}"
        )
    return result


def _names(path: str) -> Iterator[str]:
    """By which captions may call a mesh, the longest first."""
    parts = Path(path).parts
    for begin in range(len(parts)):
        name = Path(*parts[begin:])
        yield name.as_posix()
        yield name.with_suffix("").as_posix()


def read_captions(path: str | os.PathLike[str]) -> dict[str, str]:
    """Captions by names of meshes: a .csv with the columns `path` and `caption`, or a .json object.

    Raises:
        PrepareError: the file is missing or something else, or has two captions of one name.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            pairs = json.loads(text, object_pairs_hook=list)
        else:
            pairs = [
                (row["path"].strip(), row["caption"].strip()) for row in csv.DictReader(io.StringIO(text))
            ]
        captions = {Path(name).as_posix(): caption for name, caption in pairs}
        if not all(isinstance(caption, str) for caption in captions.values()):
            raise TypeError
    except OSError as error:
        raise PrepareError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        raise PrepareError(
            f"{path}: expected a .csv with the columns path and caption, or a .json object of captions by "
            "path"
        ) from None
    if len(captions) < len(pairs):
        raise PrepareError(f"{path}: {len(pairs) - len(captions)} names have more than one caption")
    return {name: caption for name, caption in captions.items() if caption}


def make_conditions(
    shapes: Sequence[ShapeSource],
    output: str | os.PathLike[str],
    *,
    image: ImageConditioner | None = None,
    text: TextConditioner | None = None,
    views: int = 24,
    picture_size: int = 512,
    up: str | None = None,
    seed: int = 0,
    meshes: Sequence[str | os.PathLike[str]] = (),
    rank: Rank | None = None,
    on_start: Callable[[PrepareReport], None] | None = None,
    on_item: Callable[[ItemResult], None] | None = None,
) -> PrepareReport:
    """What a generator is to be told of prepared shapes, made once and kept, a file for each shape.

    A mesh that is gone, or is another than the one that was prepared, is written down and never ends the run.
    What an earlier run into the same folder made is not made again, unless its caption has changed.

    Args:
        shapes: of `shape_sources`.
        output: a folder, made if need be; shapes of several preparations may be in it.
        image: makes tokens of the pictures of `geometry.orbit`; None: there are none.
        text: makes an embedding of the caption; None: there is none.
        views: pictures of each shape, at one elevation, which is drawn by the seed and the mesh's bytes.
        picture_size: pixels along a side of what is drawn.
        up: the vertical axis of the meshes, "y" or "z"; None is y for glTF, else z.
        seed: of the elevations.
        meshes: where the meshes are now, if they were moved: folders, files and lists as of `find_items`, in
            which they are found by their bytes.
        rank: this process among several that share the work and the output folder.
        on_start: called when it begins, with the report as it then is.
        on_item: called for each shape of this rank.

    Returns:
        Counts and failures, as of `prepare`: "ok", "done" and "failed".

    Raises:
        ValueError: nothing to make.
        PrepareError: an output folder of other conditions, or that cannot be written.
        PrepareInterrupted: Ctrl-C; what was made is kept, and the same call goes on.

    Reference: VAT (arXiv 2412.02202), section 3.3 and appendix 6.1: 24 pictures of 512 x 512 around an
    object, over white, one of which is drawn for each step.
    """
    if image is None and text is None:
        raise ValueError("`image` or `text` must say what conditions are made of")
    if views < 1 or picture_size < 1:
        raise ValueError(f"`views` and `picture_size` must be at least 1, got {views} and {picture_size}")
    rank = Rank() if rank is None else rank
    begin = time.monotonic()
    output = Path(output).absolute()
    moved = {source_digest(item.path): item.path for item in find_items(meshes, output)} if meshes else {}
    settings = {"views": views, "picture_size": picture_size, "up": up, "seed": seed}
    _open_folder(output, _about(image, text, settings))
    items = [(shape, Item(shape.paths[0], shape.paths[0])) for shape in shapes]
    items = [(shape, item) for shape, item in items if item in rank]
    report = PrepareReport(total=len(items))
    status = StatusWriter(output, rank.rank)
    try:
        if on_start is not None:
            on_start(report)
        maker = _Maker(output, image, text, settings, moved)
        with delayed_interrupt() as interrupted:
            for shape, item in items:
                if interrupted():
                    raise PrepareInterrupted(report)
                result = ItemResult(item, "done") if maker.has(shape) else maker.make(shape, item, status)
                report.counts[result.status] += 1
                report.work_seconds += result.seconds
                if result.kind:
                    report.failures.append(result)
                if on_item is not None:
                    on_item(result)
        report.num_indexed = merge_index(output, _index_lines)
    finally:
        report.seconds = time.monotonic() - begin
        status.close()
    return report


def _about(
    image: ImageConditioner | None, text: TextConditioner | None, settings: dict[str, Any]
) -> dict[str, Any]:
    about: dict[str, Any] = {"format_version": _FORMAT_VERSION, "image": None, "text": None}
    if image is not None:
        tokens, dim = image(torch.ones(1, 3, image.size, image.size)).shape[1:]
        about["image"] = {"weights": image.fingerprint(), "tokens": tokens, "dim": dim, **settings}
    if text is not None:
        about["text"] = {"weights": text.fingerprint(), "dim": text.dim}
    return about


def _open_folder(output: Path, about: dict[str, Any]) -> None:
    path = output / ABOUT_FILE
    try:
        output.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise PrepareError(f"{output}: expected a folder to write to, but a file is in the way") from None
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PrepareError(f"{path}: not a description of conditions: {error}") from error
    if found != about:
        raise PrepareError(
            f"{output}: holds conditions that were made otherwise ({', '.join(changes(found, about))}); "
            "choose another folder"
        )


def _made(output: Path) -> list[dict[str, Any]]:
    """The last line of each shape that was made when it was last tried, sorted by their keys."""
    lines = [line for path in status_files(output) for line in read_lines(path)]
    last = {line["key"]: line for line in sorted(lines, key=lambda line: line["time"])}
    return [last[key] for key in sorted(last) if last[key]["status"] == "ok"]


def _index_lines(output: Path) -> list[dict[str, Any]]:
    return [{name: line[name] for name in _INDEXED} for line in _made(output)]


@dataclass
class _Maker:
    """Makes the file of a shape."""

    output: Path
    image: ImageConditioner | None
    text: TextConditioner | None
    settings: dict[str, Any]
    moved: Mapping[str, str]  # meshes by the SHA-256 of their bytes

    def __post_init__(self) -> None:
        self._lines = {line["key"]: line for line in _made(self.output)}

    def has(self, shape: ShapeSource) -> bool:
        """Whether an earlier run made it as it is to be."""
        line = self._lines.get(shape.key)
        if line is None or (self.text is not None and line["caption"] != shape.caption):
            return False
        try:
            return (self.output / line["file"]).stat().st_size == line["bytes"]
        except OSError:
            return False

    def make(self, shape: ShapeSource, item: Item, status: StatusWriter) -> ItemResult:
        begin = time.monotonic()
        line: dict[str, Any] = {"key": shape.key, "path": item.path, "caption": shape.caption}
        kind = reason = ""
        try:
            data = self._bytes(shape)
        except FileNotFoundError:
            kind, reason = "missing", "no file with the bytes that were prepared"
        except MeshError as error:
            kind, reason = "mesh", error.message
        except ValueError as error:
            kind, reason = "mesh", " ".join(str(error).split())
        if kind:
            line |= {"status": "failed", "kind": kind, "reason": reason}
        else:
            file = f"{shape.key[:2]}/{shape.key}.safetensors"
            with atomic_path(self.output / file) as temporary:
                temporary.write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            line |= {"status": "ok", "file": file, "bytes": len(data), "sha256": digest}
        seconds = time.monotonic() - begin
        status.append({**line, "seconds": round(seconds, 4), "time": round(time.time(), 3)})
        return ItemResult(item, line["status"], kind, reason, seconds)

    def _bytes(self, shape: ShapeSource) -> bytes:
        tensors: dict[str, Tensor] = {}
        metadata: dict[str, str] = {}
        if self.image is not None:
            tensors["image"], elevation = self._pictures(shape, self.image)
            metadata["elevation"] = repr(elevation)
        if self.text is not None:
            unknown = torch.full((self.text.dim,), torch.nan)
            tensors["text"] = (unknown if shape.caption is None else self.text([shape.caption])[0]).half()
        return safetensors_bytes(tensors, metadata)

    def _pictures(self, shape: ShapeSource, image: ImageConditioner) -> tuple[Tensor, float]:
        """Tokens (V, N, dim) of pictures around the mesh, and the elevation of their cameras in degrees."""
        path, settings = self._mesh_file(shape), self.settings
        seed = hashlib.sha256(f"{settings['seed']} {shape.digest}".encode()).digest()[:8]
        seen = orbit(
            load(path),
            frames=settings["views"],
            size=settings["picture_size"],
            up=settings["up"] or ("y" if path.lower().endswith((".glb", ".gltf")) else "z"),
            generator=torch.Generator().manual_seed(int.from_bytes(seed, "little", signed=True)),
        )
        tokens = [image(part).half().cpu() for part in seen.pictures.split(_BATCH)]
        return torch.cat(tokens), seen.elevation

    def _mesh_file(self, shape: ShapeSource) -> str:
        """A file with the bytes that were prepared.

        Raises:
            FileNotFoundError: there is none.
        """
        if shape.digest in self.moved:
            return self.moved[shape.digest]
        for path in shape.paths:
            with contextlib.suppress(OSError):
                if source_digest(path) == shape.digest:
                    return path
        raise FileNotFoundError(shape.paths[0])
