"""3MF: meshes of the core specification, in a zip archive of XML.

Read with the standard library's expat, in one pass and without building a tree; written with the bytes fixed
by the mesh alone. Components and build items are baked with their transforms; materials, slices, beams and
the like are left out.
"""

from __future__ import annotations

import io
import zipfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from xml.parsers import expat

import numpy as np

from fastshape.geometry.raw import MeshError, RawMesh, bake

_CORE = "http://schemas.microsoft.com/3dmanufacturing/core/2015/02"
_PRODUCTION = "http://schemas.microsoft.com/3dmanufacturing/production/2015/06"
_MODEL_TYPE = "http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"
_RELATIONSHIPS = "http://schemas.openxmlformats.org/package/2006/relationships"
_MODEL = "3D/3dmodel.model"

_MAX_RATIO, _SMALL = 200, 1 << 26  # an archive that unpacks to more than either is no mesh
_MAX_FACES = 1 << 28  # of all instances together
_MAX_USES = 1 << 16
_MAX_DEPTH = 32


@dataclass
class _Use:
    """An object at a place: a component of another, or an item to build."""

    part: str
    object_id: str
    matrix: np.ndarray


@dataclass
class _Object:
    vertices: array[float] = field(default_factory=lambda: array("d"))
    triangles: array[int] = field(default_factory=lambda: array("q"))
    components: list[_Use] = field(default_factory=list)


class _Part:
    """One model part of the archive."""

    def __init__(self, path: Path, name: str, file: IO[bytes]) -> None:
        self.path, self.name = path, name
        self.objects: dict[str, _Object] = {}
        self.items: list[_Use] = []
        self.unit = "millimeter"
        self._current: _Object | None = None
        self._parser = expat.ParserCreate(namespace_separator=" ")
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.StartDoctypeDeclHandler = self._refuse_doctype
        try:
            self._parser.ParseFile(file)
        except expat.ExpatError as error:
            raise MeshError(path, f"{name} is not well-formed XML: {error}") from None

    def _fail(self, what: str) -> MeshError:
        return MeshError(self.path, f"line {self._parser.CurrentLineNumber} of {self.name}: {what}")

    def _refuse_doctype(self, *_: object) -> None:
        raise self._fail("a document type declaration is not allowed in 3MF")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        namespace, _, element = name.rpartition(" ")
        if namespace != _CORE:
            return
        try:
            if element == "vertex" and self._current is not None:
                self._current.vertices.extend(float(attributes[axis]) for axis in "xyz")
            elif element == "triangle" and self._current is not None:
                self._current.triangles.extend(int(attributes[corner]) for corner in ("v1", "v2", "v3"))
            elif element == "component" and self._current is not None:
                self._current.components.append(self._use(attributes))
            elif element == "item":
                self.items.append(self._use(attributes))
            elif element == "object":
                self._current = self.objects[attributes["id"]] = _Object()
            elif element == "model":
                self.unit = attributes.get("unit", "millimeter")
        except KeyError as error:
            raise self._fail(f"a <{element}> without {error}") from None
        except (ValueError, OverflowError):
            values = " ".join(attributes.values())[:60]
            raise self._fail(f"expected numbers in <{element}>, got '{values}'") from None

    def _end(self, name: str) -> None:
        if name == f"{_CORE} object":
            self._current = None

    def _use(self, attributes: dict[str, str]) -> _Use:
        matrix = np.eye(4)
        if "transform" in attributes:
            numbers = [float(word) for word in attributes["transform"].split()]
            if len(numbers) != 12:
                raise ValueError
            matrix[:3] = np.reshape(numbers, (4, 3)).T  # rows of the file are columns of ours
        part = attributes.get(f"{_PRODUCTION} path", self.name).lstrip("/")
        return _Use(part, attributes["objectid"], matrix)


def read_3mf(path: Path, data: bytes) -> RawMesh:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _Reader(path, archive, len(data)).mesh()
    except MeshError:
        raise
    except Exception as error:  # zipfile and zlib, on outside data: anything can come
        detail = " ".join(str(error).split())[:120]
        raise MeshError(path, f"not a readable 3MF file ({type(error).__name__}: {detail})") from error


class _Reader:
    def __init__(self, path: Path, archive: zipfile.ZipFile, size: int) -> None:
        self.path, self.archive, self.size = path, archive, size
        self.names = {info.filename.lower(): info for info in archive.infolist()}
        self.parts: dict[str, _Part] = {}
        self.num_faces = self.num_uses = 0

    def mesh(self) -> RawMesh:
        main = self.part(self._main())
        if not main.items:
            raise MeshError(
                self.path, f"expected triangles, got {len(main.objects)} objects and no item to build"
            )
        pieces = [piece for item in main.items for piece in self.pieces(item, 0)]
        if not pieces:
            raise MeshError(self.path, "expected triangles, got items to build without any")
        vertices, faces = zip(*pieces, strict=True)
        offsets = np.cumsum([0, *map(len, vertices[:-1])])
        raw = RawMesh.of_triangles(
            np.concatenate(vertices),
            np.concatenate([part + offset for part, offset in zip(faces, offsets, strict=True)]),
        )
        if main.unit != "millimeter":
            raw.notes.append(f"coordinates kept in the file's unit, {main.unit[:20]}")
        return raw

    def open(self, name: str) -> IO[bytes]:
        info = self.names.get(name.lower())
        if info is None:
            raise MeshError(self.path, f"the archive has no {name}")
        if info.file_size > max(_SMALL, _MAX_RATIO * self.size):
            raise MeshError(self.path, f"{name} would unpack to {info.file_size} bytes")
        return self.archive.open(info)

    def _main(self) -> str:
        if "_rels/.rels" not in self.names:
            return _MODEL
        targets: list[str] = []

        def start(name: str, attributes: dict[str, str]) -> None:
            if attributes.get("Type") == _MODEL_TYPE:
                targets.append(attributes.get("Target", "").lstrip("/"))

        parser = expat.ParserCreate()
        parser.StartElementHandler = start
        with self.open("_rels/.rels") as file:
            parser.ParseFile(file)
        return targets[0] if targets else _MODEL

    def part(self, name: str) -> _Part:
        if name not in self.parts:
            with self.open(name) as file:
                self.parts[name] = _Part(self.path, name, file)
        return self.parts[name]

    def pieces(self, use: _Use, depth: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Vertices and faces of all meshes of an object, where its use puts them."""
        found = self.part(use.part).objects.get(use.object_id)
        if found is None:
            raise MeshError(self.path, f"{use.part} has no object {use.object_id[:20]}")
        self.num_uses += 1
        if self.num_uses > _MAX_USES:
            raise MeshError(self.path, f"more than {_MAX_USES} instances of objects")
        if depth > _MAX_DEPTH:
            raise MeshError(self.path, f"components more than {_MAX_DEPTH} deep, or in a circle")
        what = f"of object {use.object_id[:20]}"
        if found.triangles:
            vertices = np.frombuffer(found.vertices, np.float64).reshape(-1, 3)
            faces = np.frombuffer(found.triangles, np.int64).reshape(-1, 3)
            self.num_faces += len(faces)
            if self.num_faces > _MAX_FACES:
                raise MeshError(self.path, f"more than {_MAX_FACES} triangles with all instances")
            if len(faces) and (faces.min() < 0 or faces.max() >= len(vertices)):
                face = int(np.flatnonzero(((faces < 0) | (faces >= len(vertices))).any(1))[0])
                raise MeshError(
                    self.path,
                    f"face {face} {what} is {faces[face].tolist()}, but there are {len(vertices)} vertices",
                )
            yield bake(self.path, what, vertices, faces, use.matrix)
        for component in found.components:
            inner = _Use(component.part, component.object_id, use.matrix @ component.matrix)
            yield from self.pieces(inner, depth + 1)


def write_3mf(vertices: np.ndarray, faces: np.ndarray) -> bytes:
    number = "%.9g" if vertices.dtype == np.float32 else "%.17g"
    text = io.StringIO()
    text.write(
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<model unit="millimeter" xml:lang="en-US" xmlns="{_CORE}">\n'
        '<metadata name="Application">fastshape</metadata>\n'
        '<resources>\n<object id="1" type="model">\n<mesh>\n<vertices>\n'
    )
    np.savetxt(text, vertices, fmt=f'<vertex x="{number}" y="{number}" z="{number}"/>')
    text.write("</vertices>\n<triangles>\n")
    np.savetxt(text, faces, fmt='<triangle v1="%d" v2="%d" v3="%d"/>')
    text.write(
        '</triangles>\n</mesh>\n</object>\n</resources>\n<build>\n<item objectid="1"/>\n</build>\n</model>\n'
    )
    content_types = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">\n'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>\n'
        '<Default Extension="model" ContentType="application/vnd.ms-package.3dmanufacturing-3dmodel+xml"/>\n'
        "</Types>\n"
    )
    relationships = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<Relationships xmlns="{_RELATIONSHIPS}">\n'
        f'<Relationship Target="/{_MODEL}" Id="rel0" Type="{_MODEL_TYPE}"/>\n</Relationships>\n'
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (
            ("[Content_Types].xml", content_types),
            ("_rels/.rels", relationships),
            (_MODEL, text.getvalue()),
        ):
            info = zipfile.ZipInfo(
                name, (1980, 1, 1, 0, 0, 0)
            )  # fixed, so that equal meshes give equal bytes
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3
            archive.writestr(info, content.encode())
    return file.getvalue()
