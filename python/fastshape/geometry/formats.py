"""Readers and writers of single file formats: bytes to raw arrays and back, the geometry is not judged.

Every reader takes the file's path and its bytes and returns a `RawMesh`; what does not follow the format is a
`MeshError` that says what was expected and what came. `io.py` judges the result.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastshape.geometry.gltf import read_gltf, write_glb
from fastshape.geometry.raw import MeshError, RawMesh, number_table, numbers
from fastshape.geometry.threemf import read_3mf, write_3mf

# ---------------------------------------------------------------------------------- OBJ


def read_obj(path: Path, data: bytes) -> RawMesh:
    if b"\0" in data[:4096]:
        raise MeshError(path, "expected the text of an OBJ file, got binary data")
    return _read_plain_obj(data) or _read_any_obj(path, data)


def _read_plain_obj(data: bytes) -> RawMesh | None:
    """A file of well-formed `v` and `f` lines, several times faster; None where anything is unusual."""
    if b"\\" in data or b"#" in (b"\n" + data).replace(b"\n#", b""):
        return None
    tables: dict[bytes, list[bytes]] = {b"v": [], b"f": [], b"l": []}
    for line in data.splitlines():
        entry = line.split(None, 1)
        if len(entry) == 2 and entry[0] in tables:
            tables[entry[0]].append(entry[1])
    corners = [line.split() for line in tables[b"f"]]
    sizes = np.fromiter(map(len, corners), np.int64, len(corners))
    try:
        indices = np.fromiter(
            (int(corner.split(b"/", 1)[0]) for face in corners for corner in face), np.int64, int(sizes.sum())
        )
    except (ValueError, OverflowError):
        return None
    if len(indices) and (indices.min() < 1 or sizes.min() < 3):
        return None
    vertices = number_table(tables[b"v"], 3)
    if vertices is None:  # with colors, say
        vertices = number_table(tables[b"v"], len(tables[b"v"][0].split()))
        if vertices is None or vertices.shape[1] < 3:
            return None
        vertices = np.ascontiguousarray(vertices[:, :3])
    return RawMesh(vertices, indices - 1, sizes, num_lines=len(tables[b"l"]))


def _read_any_obj(path: Path, data: bytes) -> RawMesh:
    vertices: list[list[float]] = []
    polygons: list[list[int]] = []
    num_lines = 0
    text = data.decode("utf-8", "replace").replace("\\\r\n", " ").replace("\\\n", " ")
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if words[0] == "v":
            if len(words) < 4:
                raise MeshError(path, f"line {number}: expected 'v x y z', got '{line.strip()[:60]}'")
            vertices.append(numbers(path, number, words[1:4], float))
        elif words[0] == "f":
            polygon = numbers(path, number, [word.split("/", 1)[0] for word in words[1:]], int)
            if len(polygon) < 3 or 0 in polygon:
                what = "vertices are counted from 1" if 0 in polygon else "a face needs three vertices"
                raise MeshError(path, f"line {number}: {what}, got '{line.strip()[:60]}'")
            polygons.append([index - 1 if index > 0 else len(vertices) + index for index in polygon])
        elif words[0] == "l":
            num_lines += 1
    raw = RawMesh.of_polygons(vertices, polygons)
    raw.num_lines = num_lines
    return raw


def write_obj(vertices: np.ndarray, faces: np.ndarray) -> bytes:
    text = io.StringIO()
    precision = "%.9g" if vertices.dtype == np.float32 else "%.17g"
    np.savetxt(text, vertices, fmt=f"v {precision} {precision} {precision}")
    np.savetxt(text, faces + 1, fmt="f %d %d %d")
    return text.getvalue().encode()


# ---------------------------------------------------------------------------------- OFF


_OFF_HEADER = re.compile(r"(ST)?(C)?(N)?OFF")


def off_header(path: Path, data: bytes) -> tuple[str, int, int, list[tuple[int, bytes]]]:
    """The keyword (OFF, COFF, NOFF ...), the declared numbers of vertices and faces, and the numbered lines
    after them, without comments and blank ones."""
    rows = [
        (number, line.split(b"#", 1)[0])
        for number, line in enumerate(data.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith(b"#")
    ]
    words = rows[0][1].decode("utf-8", "replace").split() if rows else []
    if not words or not _OFF_HEADER.fullmatch(words[0]):
        raise MeshError(
            path, f"expected a file that starts with OFF, got '{words[0][:20] if words else 'nothing'}'"
        )
    if words[1:] == ["BINARY"]:
        raise MeshError(path, "binary OFF files are not supported; save it as text")
    kind, at = words[0], 1
    if len(words) > 1:
        words, at = words[1:], 0
    elif len(rows) > 1:
        words = rows[1][1].decode("utf-8", "replace").split()
    else:
        words = []
    if len(words) < 2:
        raise MeshError(path, "expected the numbers of vertices and faces after OFF")
    num_vertices, num_faces = numbers(path, rows[at][0], words[:2], int)
    return kind, num_vertices, num_faces, rows[at + 1 :]


def read_off(path: Path, data: bytes) -> RawMesh:
    _, num_vertices, num_faces, body = off_header(path, data)
    declared = f"the header says {num_vertices} vertices and {num_faces} faces"
    if num_vertices < 0 or num_faces < 0 or len(body) < num_vertices + num_faces:
        raise MeshError(path, f"{len(body)} rows read, {declared}")
    if len(body) > num_vertices + num_faces:
        number = body[num_vertices + num_faces][0]
        raise MeshError(path, f"line {number}: {len(body)} rows read, {declared}")
    vertices = off_vertices(path, body[:num_vertices])[:, :3]
    faces = number_table([line for _, line in body[num_vertices:]], 4, np.int64)
    if faces is not None and (faces[:, 0] == 3).all():
        return RawMesh.of_triangles(vertices, faces[:, 1:])
    polygons = []
    for number, line in body[num_vertices:]:
        words = line.decode("utf-8", "replace").split()
        size = numbers(path, number, words[:1], int)[0]
        if size < 1 or len(words) < 1 + size:
            raise MeshError(
                path, f"line {number}: expected a count and so many indices, got '{' '.join(words)[:60]}'"
            )
        if size >= 3:
            polygons.append(numbers(path, number, words[1 : 1 + size], int))
    raw = RawMesh.of_polygons(vertices, polygons)
    raw.num_lines = num_faces - len(polygons)
    return raw


def off_vertices(path: Path, rows: list[tuple[int, bytes]], columns: int = 3) -> np.ndarray:
    """The first `columns` or more numbers of every row, (N, C) float64."""
    if not rows:
        return np.zeros((0, columns))
    table = number_table([line for _, line in rows], max(len(rows[0][1].split()), columns))
    if table is not None:
        return table
    vertices = []
    for number, line in rows:
        words = line.decode("utf-8", "replace").split()
        if len(words) < columns:
            what = "x y z" if columns == 3 else f"{columns} numbers"
            raise MeshError(path, f"line {number}: expected '{what}', got '{' '.join(words)[:60]}'")
        vertices.append(numbers(path, number, words[:columns], float))
    return np.array(vertices, np.float64)


def write_off(vertices: np.ndarray, faces: np.ndarray) -> bytes:
    text = io.StringIO()
    text.write(f"OFF\n{len(vertices)} {len(faces)} 0\n")
    np.savetxt(text, vertices, fmt="%.9g" if vertices.dtype == np.float32 else "%.17g")
    np.savetxt(text, faces, fmt="3 %d %d %d")
    return text.getvalue().encode()


# ---------------------------------------------------------------------------------- STL

_STL_RECORD = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def read_stl(path: Path, data: bytes) -> RawMesh:
    size = _STL_RECORD.itemsize
    declared = struct.unpack_from("<I", data, 80)[0] if len(data) >= 84 else 0
    whole = (len(data) - 84) // size if len(data) >= 84 else 0
    if declared and len(data) == 84 + declared * size:
        return _stl_triangles(np.frombuffer(data, _STL_RECORD, declared, 84)["corners"])
    if data.lstrip()[:5].lower() == b"solid" and b"\0" not in data[:512]:
        return _read_stl_text(path, data)
    rest = len(data) - 84 - declared * size
    if declared and 0 < rest < size:
        raw = _stl_triangles(np.frombuffer(data, _STL_RECORD, declared, 84)["corners"])
        raw.notes.append(f"{rest} bytes after the last triangle ignored")
        return raw
    what = "a wrong count" if whole > declared else "truncated"
    raise MeshError(path, f"{whole} triangles read, file says {declared}: {what}, or not STL at all")


def _read_stl_text(path: Path, data: bytes) -> RawMesh:
    text = data.decode("utf-8", "replace").lower()
    facets, ends = len(re.findall(r"\bfacet\b", text)), len(re.findall(r"\bendfacet\b", text))
    if not facets:
        raise MeshError(path, "expected triangles, got an ASCII STL file without a facet")
    words = re.findall(r"\bvertex\s+(\S+)\s+(\S+)\s+(\S+)", text)
    if facets != ends or len(words) != 3 * facets:
        raise MeshError(path, f"{len(words) // 3} triangles read, {facets} begun: a truncated ASCII STL file")
    try:
        corners = np.array(words, np.float64)
    except ValueError:
        for number, line in enumerate(text.splitlines(), 1):
            if line.split()[:1] == ["vertex"]:
                numbers(path, number, line.split()[1:4], float)
        raise MeshError(path, "expected 'vertex x y z' with numbers") from None
    return _stl_triangles(corners.reshape(-1, 3, 3))


def _stl_triangles(corners: np.ndarray) -> RawMesh:
    vertices = np.ascontiguousarray(corners).reshape(-1, 3)
    kind = np.int32 if len(vertices) <= np.iinfo(np.int32).max else np.int64
    return RawMesh.of_triangles(vertices, np.arange(len(vertices), dtype=kind).reshape(-1, 3))


def write_stl(vertices: np.ndarray, faces: np.ndarray) -> bytes:
    corners = vertices.astype(np.float64)[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    records = np.zeros(len(faces), _STL_RECORD)
    records["normal"] = normals / np.where(length > 0, length, 1)
    records["corners"] = corners
    return b"fastshape".ljust(80, b" ") + struct.pack("<I", len(faces)) + records.tobytes()


# ---------------------------------------------------------------------------------- PLY

_PLY_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip


@dataclass
class _PlyElement:
    name: str
    count: int
    # Of each property: name, type, type of the list's length.
    properties: list[tuple[str, str, str | None]] = field(default_factory=list)

    def column(self, names: tuple[str, ...]) -> int:
        return next((at for at, entry in enumerate(self.properties) if entry[0] in names), -1)


@dataclass
class PlyFile:
    """The elements of a PLY file, the columns of each by its properties' order, and notes."""

    elements: dict[str, _PlyElement]
    columns: dict[str, list[Any]]
    notes: list[str]

    def table(self, path: Path, names: Sequence[str]) -> np.ndarray | None:
        """Columns of the vertices, (V, len(names)) float32 or float64; None if the file has them not all."""
        vertex = self.elements.get("vertex")
        at = [vertex.column((name,)) for name in names] if vertex else [-1]
        if vertex is None or -1 in at:
            return None
        try:
            columns = [np.asarray(self.columns["vertex"][column]) for column in at]
            kind = np.float32 if all(c.dtype == np.float32 for c in columns) else np.float64
            table = np.empty((vertex.count, len(at)), kind)
            for i, column in enumerate(columns):
                table[:, i] = column
        except (ValueError, TypeError, OverflowError):
            raise MeshError(path, f"expected numbers as {', '.join(names)} of the vertices") from None
        return table


def open_ply(path: Path, data: bytes) -> PlyFile:
    """All that a PLY file holds."""
    encoding, elements, start = _ply_start(path, data)
    notes: list[str] = []
    if encoding == "ascii":
        columns = _ply_text(path, data[start:], elements, data[:start].count(b"\n"))
    else:
        order = "<" if encoding == "binary_little_endian" else ">"
        columns, end = _ply_binary(path, data, start, elements, order)
        if data[end:].strip():
            notes.append(f"{len(data) - end} bytes after the last element ignored")
    return PlyFile({element.name: element for element in elements}, columns, notes)


def _ply_start(path: Path, data: bytes) -> tuple[str, list[_PlyElement], int]:
    end = re.search(rb"end_header[ \t]*\r?\n", data)
    if not data.startswith(b"ply") or end is None:
        raise MeshError(path, "expected a PLY header from 'ply' to 'end_header'")
    encoding, elements = _ply_header(path, data[: end.start()].decode("ascii", "replace"))
    return encoding, elements, end.end()


def read_ply(path: Path, data: bytes) -> RawMesh:
    file = open_ply(path, data)
    vertices = file.table(path, "xyz")
    if vertices is None:
        raise MeshError(path, "expected an element 'vertex' with properties x, y and z")
    face, edge = file.elements.get("face"), file.elements.get("edge")
    if face is None or not face.count:
        if "tristrips" in file.elements:
            raise MeshError(path, "triangle strips are not supported; save the mesh with an element 'face'")
        raw = RawMesh.of_triangles(vertices, np.zeros((0, 3), np.int64))
        raw.num_lines = edge.count if edge else 0
        return raw
    at = face.column(("vertex_indices", "vertex_index"))
    if at < 0 or face.properties[at][2] is None:
        raise MeshError(path, "expected a list property 'vertex_indices' of the element 'face'")
    polygons = file.columns["face"][at]
    if isinstance(polygons, np.ndarray):
        count, size = polygons.shape
        flat = polygons.reshape(-1)
        if flat.dtype.kind == "f":
            flat = _whole_numbers(path, flat)
        raw = RawMesh(vertices, flat, np.broadcast_to(np.int64(size), count))
    else:
        try:
            raw = RawMesh.of_polygons(vertices, polygons)
        except (ValueError, OverflowError, TypeError):
            raise MeshError(path, "expected integers as vertex indices of the faces") from None
        raw.vertices = vertices
    raw.notes += file.notes
    return raw


def _whole_numbers(path: Path, values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int64)
    if not (whole == values).all():
        raise MeshError(path, "expected integers as vertex indices of the faces, got fractions")
    return whole


def _ply_header(path: Path, text: str) -> tuple[str, list[_PlyElement]]:
    encoding, elements = "", []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0] in ("ply", "comment", "obj_info"):
            continue
        try:
            if words[0] == "format":
                encoding = words[1]
            elif words[0] == "element":
                elements.append(_PlyElement(words[1], int(words[2])))
            elif words[0] == "property" and words[1] == "list":
                elements[-1].properties.append((words[4], _PLY_TYPES[words[3]], _PLY_TYPES[words[2]]))
            elif words[0] == "property":
                elements[-1].properties.append((words[2], _PLY_TYPES[words[1]], None))
            else:
                raise ValueError
        except (IndexError, KeyError, ValueError):
            raise MeshError(path, f"line {number}: not a PLY header line: '{line.strip()[:60]}'") from None
    if encoding not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise MeshError(path, f"expected a PLY format ascii or binary, got '{encoding}'")
    if any(element.count < 0 for element in elements):
        raise MeshError(path, "the PLY header has a negative count")
    return encoding, elements


def _ply_text(
    path: Path, body: bytes, elements: list[_PlyElement], header_lines: int
) -> dict[str, list[Any]]:
    rows = [(header_lines + n, line) for n, line in enumerate(body.splitlines(), 1) if line.strip()]
    columns: dict[str, list[Any]] = {}
    start = 0
    for element in elements:
        part = rows[start : start + element.count]
        start += element.count
        if len(part) < element.count:
            raise MeshError(
                path, f"{len(part)} of {element.count} '{element.name}' read: a truncated PLY file"
            )
        columns[element.name] = _ply_plain_rows(element, part) or _ply_text_rows(path, element, part)
    if start < len(rows):
        what = " and ".join(f"{element.count} '{element.name}'" for element in elements)
        raise MeshError(path, f"line {rows[start][0]}: more rows than the header's {what}")
    return columns


def _ply_plain_rows(element: _PlyElement, rows: list[tuple[int, bytes]]) -> list[Any] | None:
    """The columns where every row has the same number of values, and lists are of triangles; else None."""
    lists = [at for at, entry in enumerate(element.properties) if entry[2] is not None]
    if not rows or len(lists) > 1 or (lists and len(element.properties) > 1):
        return None
    whole = all(kind[0] != "f" for _, kind, _ in element.properties)
    width = 4 if lists else len(element.properties)
    table = number_table([line for _, line in rows], width, np.int64 if whole else np.float64)
    if table is None:
        return None
    if lists:
        return [table[:, 1:]] if (table[:, 0] == 3).all() else None
    for column, (_, kind, _) in zip(table.T, element.properties, strict=True):
        if not whole and kind[0] != "f" and not (column == np.floor(column)).all():
            return None
    return list(table.T)


def _ply_text_rows(path: Path, element: _PlyElement, rows: list[tuple[int, bytes]]) -> list[Any]:
    table: list[list[Any]] = [[] for _ in element.properties]
    for number, line in rows:
        words = line.decode("utf-8", "replace").split()
        at = 0
        for column, (_, kind, length_kind) in zip(table, element.properties, strict=True):
            size = 1
            if length_kind is not None:
                size = numbers(path, number, words[at : at + 1] or ["nothing"], int)[0]
                at += 1
            if size < 0 or at + size > len(words):
                raise MeshError(path, f"line {number}: too few numbers for an element '{element.name}'")
            values = numbers(path, number, words[at : at + size], float if kind[0] == "f" else int)
            column.append(values if length_kind is not None else values[0])
            at += size
        if at < len(words):
            raise MeshError(path, f"line {number}: too many numbers for an element '{element.name}'")
    return table


def _ply_binary(
    path: Path, body: bytes, at: int, elements: list[_PlyElement], order: str
) -> tuple[dict[str, list[Any]], int]:
    columns: dict[str, list[Any]] = {}
    for element in elements:
        table, at = _ply_fixed_rows(body, at, element, order) or _ply_rows(path, body, at, element, order)
        columns[element.name] = table
    return columns, at


def _ply_fixed_rows(body: bytes, at: int, element: _PlyElement, order: str) -> tuple[list[Any], int] | None:
    """The columns of an element whose lists all have the length of the first row's; None if they have not."""
    fields: list[tuple[str, Any]] = []
    offset = at
    for column, (_, kind, length_kind) in enumerate(element.properties):
        if length_kind is not None:
            length_type = np.dtype(order + length_kind)
            if offset + length_type.itemsize > len(body):
                return None
            size = int(np.frombuffer(body, length_type, 1, offset)[0])
            if size < 0 or size > 64:
                return None
            fields += [(f"n{column}", length_type), (f"v{column}", (np.dtype(order + kind), (size,)))]
            offset += length_type.itemsize + size * np.dtype(kind).itemsize
        else:
            fields.append((f"v{column}", np.dtype(order + kind)))
            offset += np.dtype(kind).itemsize
    record = np.dtype(fields)
    if at + record.itemsize * element.count > len(body):
        return None
    rows = (
        np.frombuffer(body, record, element.count, at) if record.itemsize else np.zeros(element.count, record)
    )
    for column, (_, _, length_kind) in enumerate(element.properties):
        if length_kind is not None and not (rows[f"n{column}"] == rows[f"v{column}"].shape[1]).all():
            return None
    table = [rows[f"v{column}"] for column in range(len(element.properties))]
    return table, at + record.itemsize * element.count


def _ply_rows(path: Path, body: bytes, at: int, element: _PlyElement, order: str) -> tuple[list[Any], int]:
    table: list[list[Any]] = [[] for _ in element.properties]
    codes = {"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "f4": "f", "f8": "d"}
    for row in range(element.count):
        try:
            for column, (_, kind, length_kind) in zip(table, element.properties, strict=True):
                size = 1
                if length_kind is not None:
                    size = struct.unpack_from(order + codes[length_kind], body, at)[0]
                    at += struct.calcsize(codes[length_kind])
                values = struct.unpack_from(f"{order}{size}{codes[kind]}", body, at)
                at += struct.calcsize(codes[kind]) * size
                column.append(list(values) if length_kind is not None else values[0])
        except struct.error:
            raise MeshError(
                path, f"{row} of {element.count} '{element.name}' read: a truncated PLY file"
            ) from None
    return table, at


def write_ply(vertices: np.ndarray, faces: np.ndarray) -> bytes:
    kind = "float" if vertices.dtype == np.float32 else "double"
    if len(vertices) > np.iinfo(np.int32).max:
        raise ValueError("a PLY file holds at most 2^31 - 1 vertices")
    header = (
        "ply\nformat binary_little_endian 1.0\ncomment fastshape\n"
        f"element vertex {len(vertices)}\nproperty {kind} x\nproperty {kind} y\nproperty {kind} z\n"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    records = np.empty(len(faces), np.dtype([("n", "u1"), ("v", "<i4", 3)]))
    records["n"], records["v"] = 3, faces
    return header.encode() + vertices.astype(vertices.dtype.newbyteorder("<")).tobytes() + records.tobytes()


# ---------------------------------------------------------------------------------- all


def declared_faces(kind: str, head: bytes, size: int) -> int | None:
    """How many faces a file says it has, from its first bytes; None where the format does not say."""
    if kind == ".stl" and len(head) >= 84:
        count = int(struct.unpack_from("<I", head, 80)[0])
        text = head.lstrip()[:5].lower() == b"solid" and size != 84 + count * _STL_RECORD.itemsize
        return None if text else count
    words = [line.split(b"#", 1)[0].split() for line in head.splitlines()]
    if kind == ".ply":
        counts = [line[2] for line in words if line[:2] == [b"element", b"face"] and len(line) == 3]
    elif kind == ".off":
        flat = [word for line in words[:50] for word in line]
        counts = flat[2:3] if flat and flat[0].endswith(b"OFF") else []
    else:
        counts = []
    return int(counts[0]) if counts and counts[0].isdigit() else None


READERS: dict[str, Callable[[Path, bytes], RawMesh]] = {
    ".obj": read_obj,
    ".ply": read_ply,
    ".stl": read_stl,
    ".off": read_off,
    ".glb": read_gltf,
    ".gltf": read_gltf,
    ".3mf": read_3mf,
}

WRITERS: dict[str, Callable[[np.ndarray, np.ndarray], bytes]] = {
    ".obj": write_obj,
    ".ply": write_ply,
    ".stl": write_stl,
    ".off": write_off,
    ".glb": write_glb,
    ".3mf": write_3mf,
}
