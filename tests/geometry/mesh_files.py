"""Small mesh files written by hand, which the tests of reading share."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from fastshape.geometry import Mesh, MeshError, load, save

CUBE_VERTICES = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
CUBE_QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
TRIANGLE = [(0, 0, 0), (1, 0, 0), (0, 1, 0)]


def obj(vertices, faces) -> str:
    return "".join(f"v {x} {y} {z}\n" for x, y, z in vertices) + "".join(
        "f " + " ".join(str(i + 1) for i in face) + "\n" for face in faces
    )


def ply(vertices, faces, encoding="ascii") -> bytes:
    header = (
        f"ply\nformat {encoding} 1.0\nelement vertex {len(vertices)}\n"
        "property float x\nproperty float y\nproperty float z\n"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    if encoding == "ascii":
        rows = [" ".join(map(str, v)) for v in vertices] + [
            f"{len(f)} " + " ".join(map(str, f)) for f in faces
        ]
        return (header + "\n".join(rows) + "\n").encode()
    order = "<" if "little" in encoding else ">"
    body = b"".join(struct.pack(order + "3f", *v) for v in vertices)
    return header.encode() + body + b"".join(struct.pack(f"{order}B{len(f)}i", len(f), *f) for f in faces)


def off(vertices, faces) -> str:
    rows = [*vertices, *((len(face), *face) for face in faces)]
    return f"OFF\n{len(vertices)} {len(faces)} 0\n" + "".join(" ".join(map(str, row)) + "\n" for row in rows)


def write(folder: Path, name: str, content) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def cube() -> Mesh:
    quads = np.array(CUBE_QUADS)
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    return Mesh(torch.tensor(CUBE_VERTICES, dtype=torch.float64), torch.from_numpy(faces))


def saved(folder: Path, name: str, mesh: Mesh | None = None) -> bytes:
    """What `save` writes."""
    save(cube() if mesh is None else mesh, folder / name)
    return (folder / name).read_bytes()


def refused(path: Path, message: str, **options) -> None:
    """`load` raises one line that begins with the file's name and holds `message`."""
    with pytest.raises(MeshError) as caught:
        load(path, **options)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
