"""Reading and writing meshes, with one exception class and no silent repair."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from fastshape.geometry.formats import READERS, WRITERS, declared_faces
from fastshape.geometry.mesh import Mesh
from fastshape.geometry.polygons import triangulate
from fastshape.geometry.raw import MeshError, RawMesh
from fastshape.geometry.rows import count_edges, first_equal, signed_volume, unique_faces

__all__ = ["MeshError", "load", "save"]


def load(path: str | os.PathLike[str], *, drop_invalid: bool = False, max_faces: int | None = None) -> Mesh:
    """Read an OBJ, PLY, STL, OFF, GLB, glTF or 3MF file as one triangle mesh in float64.

    Positions only: textures, colors and normals are left out. Scene transforms are applied. Corners at
    exactly the same position become one vertex (never by a tolerance, so any unit of length survives),
    polygons become triangles inside their outline, degenerate faces (a vertex twice), exact duplicates and
    unused vertices are dropped; what was changed stands in the mesh's `notes`. What is not changed stands
    there too: an open surface, edges of more than two faces, faces turned differently or inside out
    (:func:`signed_distance` turns them; `geometry.orient` gives the turned mesh).

    Args:
        path: the file; its extension says the format.
        drop_invalid: drop faces with a NaN or infinite vertex instead of refusing the file.
        max_faces: refuse files with more triangles than this; PLY, STL and OFF by their headers already,
            before they are read.

    Raises:
        MeshError: anything that keeps the file from being a mesh with a surface, with the file's name.
    """
    path = Path(path)
    reader = READERS.get(check_readable(path, READERS))
    assert reader is not None
    if max_faces is not None:
        with open(path, "rb") as file:
            head = file.read(1 << 16)
        declared = declared_faces(path.suffix.lower(), head, path.stat().st_size)
        if declared is not None and declared > max_faces:
            raise MeshError(path, _too_many(declared, "faces in its header", max_faces))
    return _judge(path, reader(path, read_bytes(path)), drop_invalid, max_faces)


def check_readable(path: Path, readers: Iterable[str]) -> str:
    """The extension in lower case, one of `readers`, of a file that exists."""
    if path.is_dir():
        raise MeshError(path, "expected a file, got a directory")
    kind = path.suffix.lower()
    if kind not in readers:
        raise MeshError(path, f"expected one of {' '.join(readers)}, got the extension '{path.suffix}'")
    if not path.exists():
        raise MeshError(path, "no such file")
    if not path.is_file():
        raise MeshError(path, "expected a file, got a device or pipe")
    return kind


def read_bytes(path: Path) -> bytes:
    """All of a file that is not blank."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MeshError(path, f"cannot be read ({error.strerror})") from error
    if not data[:4096].strip() and not data.strip():
        raise MeshError(path, "file is empty")
    return data


def _too_many(count: int, what: str, max_faces: int) -> str:
    return f"{count} {what} are more than `max_faces` = {max_faces}; simplify the mesh"


def _judge(path: Path, raw: RawMesh, drop_invalid: bool, max_faces: int | None) -> Mesh:
    vertices, indices, sizes, notes = raw.vertices, raw.indices, raw.sizes, list(raw.notes)
    count = len(vertices)
    if not len(sizes):
        what = (
            f"{count} points and {raw.num_lines} lines"
            if count and raw.num_lines
            else f"a point cloud of {count} points; read it with geometry.load_points"
            if count
            else "no vertices and no faces"
        )
        raise MeshError(path, f"expected triangles, got {what}")
    num_triangles = int((sizes - 2).clip(0).sum())
    if max_faces is not None and num_triangles > max_faces:
        raise MeshError(path, _too_many(num_triangles, "triangles", max_faces))

    if len(indices) and (indices.min() < 0 or indices.max() >= count):
        wrong = int(np.flatnonzero((indices < 0) | (indices >= count))[0])
        face = int(np.searchsorted(np.cumsum(sizes), wrong, side="right"))
        raise MeshError(path, f"face {face} has the vertex index {indices[wrong]}, expected 0 to {count - 1}")
    indices = indices.astype(np.int32 if count <= np.iinfo(np.int32).max else np.int64, copy=False)

    keep = None if int(sizes.min()) >= 3 else sizes >= 3
    finite = _finite_rows(vertices)
    if finite is not None and not finite[indices].all():
        owner = np.repeat(np.arange(len(sizes)), sizes)
        bad = np.unique(owner[~finite[indices]])
        what = f"{int((~finite[np.unique(indices)]).sum())} vertices of {len(bad)} faces are NaN or infinite"
        if not drop_invalid:
            raise MeshError(path, f"{what}; `drop_invalid=True` drops those faces")
        keep = sizes >= 3
        keep[bad] = False
        notes.append(f"{what}: faces dropped")
    if keep is not None:
        if not keep.all():
            indices = indices[np.repeat(keep, sizes)]
        short = int((sizes < 3).sum())
        sizes = sizes[keep]
        if short:
            notes.append(f"{short} faces with fewer than three corners dropped")
    if not len(sizes):
        raise MeshError(path, "no valid face is left")

    faces, concave = triangulate(vertices, indices, sizes)
    if concave:
        notes.append(f"{concave} concave polygons cut by ear clipping")
    faces, merged = _weld(vertices, faces)
    if merged and path.suffix.lower() != ".stl":  # every STL file repeats its vertices
        notes.append(f"{merged} repeated vertices merged")
    a, b, c = faces.T
    degenerate = (a == b) | (b == c) | (c == a)
    if degenerate.any():
        notes.append(f"{int(degenerate.sum())} degenerate faces dropped")
        faces = faces[~degenerate]
    unique = unique_faces(faces)
    if len(unique) < len(faces):
        notes.append(f"{len(faces) - len(unique)} duplicate faces dropped")
        faces = faces[unique]
    used = _used(count, faces)
    num_used = int(used.sum())
    if num_used + merged < count:
        notes.append(f"{count - merged - num_used} unused vertices dropped")
    if num_used < count:
        renumbered = np.cumsum(used, dtype=faces.dtype)
        renumbered -= 1
        faces, vertices = renumbered[faces], vertices[used]
    vertices = vertices.astype(np.float64)

    if not len(faces) or not _has_area(vertices, faces):
        raise MeshError(path, "no surface area: all triangles are points or lines")
    notes += _state(vertices, faces)
    return Mesh(torch.from_numpy(vertices), torch.from_numpy(faces.astype(np.int64)), tuple(notes))


def _finite_rows(vertices: np.ndarray) -> np.ndarray | None:
    """Which rows are finite; None if all are."""
    if not len(vertices) or (np.isfinite(vertices.min()) and np.isfinite(vertices.max())):
        return None
    return np.isfinite(vertices).all(1)


def _used(count: int, faces: np.ndarray) -> np.ndarray:
    used = np.zeros(count, bool)
    for corner in range(3):
        used[faces[:, corner]] = True
    return used


def _weld(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, int]:
    """Faces that name the first used vertex at each position, and how many used vertices that spared."""
    used = _used(len(vertices), faces)
    if used.all():
        target = first_equal(vertices)
        merged = int((target != np.arange(len(target))).sum())
    else:
        rows = np.flatnonzero(used)
        first = first_equal(vertices[rows])
        merged = int((first != np.arange(len(rows))).sum())
        target = np.arange(len(vertices))
        target[rows] = rows[first]
    return (target.astype(faces.dtype)[faces] if merged else faces), merged


def _state(vertices: np.ndarray, faces: np.ndarray) -> list[str]:
    """What stays as it is and may surprise: open and crowded edges, faces that are turned differently."""
    notes, edges = [], count_edges(faces, len(vertices))
    if edges.open:
        notes.append(f"{edges.open} edges of one face only: the surface is open")
    if edges.crowded:
        notes.append(f"{edges.crowded} edges of more than two faces")
    if edges.contrary:
        notes.append(f"{edges.contrary} edges whose two faces are turned differently")
    if edges.closed:
        low, high = vertices.min(0), vertices.max(0)
        with np.errstate(over="ignore"):
            size = float((high - low).max())
        if signed_volume((vertices - low) / size, faces) < 0:
            notes.append("inside out: the closed surface has a negative volume")
    return notes


def _has_area(vertices: np.ndarray, faces: np.ndarray) -> bool:
    low = vertices.min(0)
    with np.errstate(over="ignore"):
        size = float((vertices.max(0) - low).max())
    if not 0 < size < np.inf:
        return False
    area = 0.0
    for start in range(0, len(faces), 1 << 16):
        corners = (vertices[faces[start : start + (1 << 16)]] - low) / size
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        area += float(np.abs(normals).sum())
        if area > 1e-12:
            return True
    return False


def save(mesh: Mesh, path: str | os.PathLike[str]) -> None:
    """Write a mesh as OBJ, PLY, STL, OFF, GLB or 3MF, replacing an existing file only by a complete one.

    OBJ, OFF, PLY and 3MF keep the vertices' precision; STL and GLB hold float32. 3MF names a unit: a vertex
    coordinate is written as so many millimeters. Equal meshes give equal bytes.

    Raises:
        MeshError: unknown extension, no such directory, no faces, or coordinates too large for the format.
    """
    path = Path(path)
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise MeshError(path, f"expected one of {' '.join(WRITERS)}, got the extension '{path.suffix}'")
    if path.is_dir():
        raise MeshError(path, "expected a file name, got a directory")
    if not path.parent.is_dir():
        raise MeshError(path, f"the directory {path.parent} does not exist")
    if not mesh.num_faces:
        raise MeshError(path, "the mesh has no faces to write")
    vertices, faces = mesh.vertices.detach().numpy(), mesh.faces.numpy()
    largest = float(np.abs(vertices).max())
    if path.suffix.lower() in (".stl", ".glb") and largest > float(np.finfo(np.float32).max):
        raise MeshError(path, f"coordinates up to {largest:g} do not fit float32; write PLY or OBJ")
    write_atomically(path, writer(vertices, faces))


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, then rename it into place."""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise MeshError(path, f"cannot be written ({error.strerror})") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise MeshError(path, f"cannot be written ({error.strerror})") from error
        raise
