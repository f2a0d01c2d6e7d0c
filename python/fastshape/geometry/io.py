"""Reading and writing meshes, with one exception class and no silent repair."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from fastshape.geometry.formats import READERS, WRITERS, MeshError, RawMesh
from fastshape.geometry.mesh import Mesh
from fastshape.geometry.polygons import triangulate

__all__ = ["MeshError", "load", "save"]


def load(path: str | os.PathLike[str], *, drop_invalid: bool = False, max_faces: int | None = None) -> Mesh:
    """Read an OBJ, PLY, STL, OFF, GLB or glTF file as one triangle mesh in float64.

    Positions only: textures, colors and normals are left out. Scene transforms are applied. Corners at
    exactly the same position become one vertex (never by a tolerance, so any unit of length survives),
    polygons become triangles inside their outline, degenerate faces (a vertex twice), exact duplicates and
    unused vertices are dropped; what was changed stands in the mesh's `notes`.

    Args:
        path: the file; its extension says the format.
        drop_invalid: drop faces with a NaN or infinite vertex instead of refusing the file.
        max_faces: refuse files with more triangles than this.

    Raises:
        MeshError: anything that keeps the file from being a mesh with a surface, with the file's name.
    """
    path = Path(path)
    if path.is_dir():
        raise MeshError(path, "expected a file, got a directory")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise MeshError(path, f"expected one of {' '.join(READERS)}, got the extension '{path.suffix}'")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise MeshError(path, "no such file") from None
    except OSError as error:
        raise MeshError(path, f"cannot be read ({error.strerror})") from error
    if not data.strip():
        raise MeshError(path, "file is empty")
    return _judge(path, reader(path, data), drop_invalid, max_faces)


def _judge(path: Path, raw: RawMesh, drop_invalid: bool, max_faces: int | None) -> Mesh:
    vertices, indices, sizes, notes = raw.vertices, raw.indices, raw.sizes, list(raw.notes)
    if not len(sizes):
        what = (
            f"{len(vertices)} points and no faces: a point cloud"
            if len(vertices)
            else "no vertices and no faces"
        )
        raise MeshError(path, f"expected triangles, got {what}")
    num_triangles = int((sizes - 2).clip(0).sum())
    if max_faces is not None and num_triangles > max_faces:
        raise MeshError(
            path, f"{num_triangles} triangles are more than `max_faces` = {max_faces}; simplify the mesh"
        )

    wrong = np.flatnonzero((indices < 0) | (indices >= len(vertices)))
    if len(wrong):
        face = int(np.searchsorted(np.cumsum(sizes), wrong[0], side="right"))
        raise MeshError(
            path, f"face {face} has the vertex index {indices[wrong[0]]}, expected 0 to {len(vertices) - 1}"
        )

    owner = np.repeat(np.arange(len(sizes)), sizes)
    finite = np.isfinite(vertices).all(1)
    keep = sizes >= 3
    if not finite[indices].all():
        bad = np.unique(owner[~finite[indices]])
        count = int((~finite[np.unique(indices)]).sum())
        what = f"{count} vertices of {len(bad)} faces are NaN or infinite"
        if not drop_invalid:
            raise MeshError(path, f"{what}; `drop_invalid=True` drops those faces")
        keep[bad] = False
        notes.append(f"{what}: faces dropped")
    if not keep.all():
        indices, sizes = indices[keep[owner]], sizes[keep]
    if not len(sizes):
        raise MeshError(path, "no valid face is left")

    faces, concave = triangulate(vertices, indices, sizes)
    if concave:
        notes.append(f"{concave} concave polygons cut by ear clipping")
    faces, merged = _weld(vertices, faces)
    if merged and path.suffix.lower() != ".stl":  # every STL file repeats its vertices
        notes.append(f"{merged} repeated vertices merged")
    degenerate = (faces == np.roll(faces, 1, 1)).any(1)
    if degenerate.any():
        notes.append(f"{int(degenerate.sum())} degenerate faces dropped")
        faces = faces[~degenerate]
    unique = _first_of_equal_faces(faces, len(vertices))
    if len(unique) < len(faces):
        notes.append(f"{len(faces) - len(unique)} duplicate faces dropped")
        faces = faces[unique]
    used, faces = np.unique(faces, return_inverse=True)
    if len(used) + merged < len(vertices):
        notes.append(f"{len(vertices) - merged - len(used)} unused vertices dropped")
    vertices, faces = vertices[used], faces.reshape(-1, 3)

    if not len(faces) or not _has_area(vertices, faces):
        raise MeshError(path, "no surface area: all triangles are points or lines")
    return Mesh(torch.from_numpy(vertices), torch.from_numpy(faces.astype(np.int64)), tuple(notes))


def _weld(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, int]:
    """Faces that name the first used vertex at each position, and how many used vertices that spared."""
    used = np.unique(faces)
    at = vertices[used] + 0.0  # -0.0 and 0.0 are one position
    order = np.lexsort((used, at[:, 2], at[:, 1], at[:, 0]))
    ranked = at[order]
    fresh = np.ones(len(used), bool)
    fresh[1:] = (ranked[1:] != ranked[:-1]).any(1)
    leader = order[fresh][np.cumsum(fresh) - 1]
    target = np.empty(len(used), np.int64)
    target[order] = used[leader]
    lookup = np.arange(len(vertices))
    lookup[used] = target
    return lookup[faces], int((~fresh).sum())


def _first_of_equal_faces(faces: np.ndarray, num_vertices: int) -> np.ndarray:
    """Rows of `faces` without repetitions of a triangle in the same orientation, in order."""
    turn = faces.argmin(1)[:, None]
    canonical = np.take_along_axis(faces, (turn + np.arange(3)) % 3, 1)
    order = np.lexsort((canonical[:, 2], canonical[:, 1], canonical[:, 0]))
    ranked = canonical[order]
    fresh = np.ones(len(faces), bool)
    fresh[1:] = (ranked[1:] != ranked[:-1]).any(1)
    return np.sort(order[fresh])  # lexsort is stable, so the first of each group stands first


def _has_area(vertices: np.ndarray, faces: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        size = float((vertices.max(0) - vertices.min(0)).max())
    if not 0 < size < np.inf:
        return False
    corners = (vertices[faces] - vertices.min(0)) / size
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return float(np.abs(normals).sum()) > 1e-12


def save(mesh: Mesh, path: str | os.PathLike[str]) -> None:
    """Write a mesh as OBJ, PLY, STL, OFF or GLB, replacing an existing file only by a complete one.

    OBJ, OFF and PLY keep the vertices' precision; STL and GLB hold float32.

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
