"""Point clouds: reading, checking, writing, and drawing a given number of points."""

from __future__ import annotations

import io
import math
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from fastshape import ops
from fastshape.geometry.formats import off_header, off_vertices, open_ply
from fastshape.geometry.io import check_readable, read_bytes, write_atomically
from fastshape.geometry.mesh import Normalization
from fastshape.geometry.raw import MeshError, number_table, numbers
from fastshape.geometry.rows import first_equal

_UNIT = 1e-2  # how far a normal's length may lie from 1 before that is worth a note


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Points on the CPU, with or without unit normals.

    Args:
        points: positions, (N, 3), float32 or float64, finite.
        normals: (N, 3) of the same dtype and of unit length, or None.
        notes: what a reader found or changed, in words.

    Raises:
        TypeError: not a tensor, or another dtype.
        ValueError: wrong shape, no points, values that are not finite, normals that are not of unit length.
    """

    points: Tensor
    normals: Tensor | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, tensor in (("points", self.points), ("normals", self.normals)):
            if tensor is None and name == "normals":
                continue
            if not isinstance(tensor, Tensor):
                raise TypeError(f"`{name}` must be a torch.Tensor, got {type(tensor).__name__}")
            if tensor.device.type != "cpu":
                raise ValueError(f"`{name}` must be on the CPU, got {tensor.device}")
            if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != self.points.dtype:
                raise TypeError(f"`{name}` must be float32 or float64, one for both, got {tensor.dtype}")
            if tensor.dim() != 2 or tensor.shape[1] != 3 or len(tensor) != len(self.points):
                raise ValueError(
                    f"`{name}` must have shape (N, 3), one N for both, got {tuple(tensor.shape)}"
                )
            if not bool(torch.isfinite(tensor).all()):
                count = int((~torch.isfinite(tensor)).any(1).sum())
                raise ValueError(f"`{name}` has {count} rows that are not finite")
        if not len(self.points):
            raise ValueError("`points` must hold at least one point")
        if self.normals is not None:
            wrong = int(((self.normals.norm(dim=1) - 1).abs() > 1e-3).sum())
            if wrong:
                raise ValueError(f"`normals` has {wrong} rows that are not of unit length")

    def __len__(self) -> int:
        return len(self.points)

    def __repr__(self) -> str:
        return f"PointCloud({len(self)} points{'' if self.normals is None else ' with normals'})"

    @property
    def bounds(self) -> Tensor:
        """Lowest and highest corner of the bounding box, (2, 3)."""
        return torch.stack([self.points.amin(0), self.points.amax(0)])

    def normalize(
        self,
        *,
        extent: float = 1.0,
        fit: Literal["box", "sphere"] = "box",
        dtype: torch.dtype = torch.float32,
    ) -> tuple[PointCloud, Normalization]:
        """The cloud centered and scaled, and the way back; see :func:`fastshape.geometry.normalize`."""
        normalization = Normalization.of_points(self.points, extent, fit)
        normals = None if self.normals is None else self.normals.to(dtype)
        points = normalization.apply(self.points.double()).to(dtype)
        return replace(self, points=points, normals=normals), normalization

    def select(self, rows: Tensor) -> PointCloud:
        """The points of these rows (M,) int64, in that order."""
        normals = None if self.normals is None else self.normals[rows]
        return replace(self, points=self.points[rows], normals=normals)

    def take(
        self,
        count: int,
        *,
        method: Literal["farthest", "random"] = "farthest",
        generator: Generator | None = None,
    ) -> PointCloud:
        """Exactly `count` points, as an encoder asks for them.

        "farthest" is farthest point sampling from the first point, "random" draws without replacement. Where
        the cloud has fewer points, all of them come first and the rest are drawn again with replacement,
        which is noted.

        Args:
            count: at least 1.
            method: how to choose among more points than `count`.
            generator: CPU generator of the draws; None draws from torch's global one.

        Raises:
            ValueError: a count below 1, or an unknown method.
        """
        if count < 1:
            raise ValueError(f"`count` must be at least 1, got {count}")
        if method not in ("farthest", "random"):
            raise ValueError(f'`method` must be "farthest" or "random", got {method!r}')
        have = len(self)
        if count > have:
            again = torch.randint(have, (count - have,), generator=generator)
            cloud = self.select(torch.cat([torch.arange(have), again]))
            return replace(
                cloud, notes=(*self.notes, f"{count - have} points repeat others: only {have} given")
            )
        if count == have:
            return self
        if method == "random":
            return self.select(torch.randperm(have, generator=generator)[:count])
        low, high = self.bounds.double()
        size = (high - low).max().clamp_min(1e-300)
        inside = ((self.points.double() - low) / size).float()  # centered first: float32 is enough then
        return self.select(ops.farthest_point_sampling(inside[None].contiguous(), count)[0])


@dataclass
class _Raw:
    """What a file says; `named` is whether it calls the normals so."""

    points: np.ndarray
    normals: np.ndarray | None = None
    named: bool = True
    notes: list[str] = field(default_factory=list)


def load_points(
    path: str | os.PathLike[str],
    *,
    normals: bool = True,
    drop_invalid: bool = False,
    max_points: int | None = None,
) -> PointCloud:
    """Read a PLY, OBJ, OFF, XYZ, TXT, PTS, NPY or NPZ file as points in float64, with normals if it has them.

    Normals are the PLY properties nx, ny, nz, the OBJ file's `vn` if there is one for each point, those of a
    NOFF file, the array "normals" of an NPZ file, and three further columns of a text or NPY file if they
    look like normals: colors (nowhere negative, and not of unit length) are left out with a note. Lengths
    other than 1 are made 1. Points are kept in the order of the file, repeated ones too; how many repeat
    another is noted.

    Args:
        path: the file; its extension says the format.
        normals: False leaves normals out.
        drop_invalid: drop points that are not finite, or whose normal is not finite or zero, instead of
            refusing the file.
        max_points: refuse files with more points than this.

    Raises:
        MeshError: anything that keeps the file from being a point cloud, with the file's name; a mesh is
            refused too, and `geometry.load` named.
    """
    path = Path(path)
    if path.suffix.lower() in (".stl", ".glb", ".gltf", ".3mf") and not path.is_dir():
        raise MeshError(path, f"'{path.suffix}' files hold meshes; read it with geometry.load")
    raw = _READERS[check_readable(path, _READERS)](path, read_bytes(path))
    if not len(raw.points):
        raise MeshError(path, "no points")
    if max_points is not None and len(raw.points) > max_points:
        raise MeshError(path, f"{len(raw.points)} points are more than `max_points` = {max_points}")
    return _judge(path, raw, normals, drop_invalid)


def _judge(path: Path, raw: _Raw, with_normals: bool, drop_invalid: bool) -> PointCloud:
    points, notes = raw.points.astype(np.float64), list(raw.notes)
    normals = None if raw.normals is None or not with_normals else raw.normals.astype(np.float64)
    finite = np.isfinite(points).all(1)
    if normals is not None:
        finite &= np.isfinite(normals).all(1)
    if not finite.all():
        what = f"{int((~finite).sum())} of {len(points)} points are NaN or infinite"
        if normals is not None and np.isfinite(points).all():
            what = f"{int((~finite).sum())} of {len(points)} normals are NaN or infinite"
        if not drop_invalid:
            raise MeshError(path, f"{what}; `drop_invalid=True` drops those points")
        notes.append(f"{what}: points dropped")
        points = points[finite]
        normals = None if normals is None else normals[finite]
        if not len(points):
            raise MeshError(path, "no valid point is left")
    if normals is not None and _look_like_colors(normals):
        top = normals.max()
        what = f"look like colors (0 to {255 if top > 1 else 1}, nowhere negative, not of unit length)"
        if raw.named:
            raise MeshError(path, f"the normals {what}; `normals=False` leaves them out")
        notes.append(f"columns 4 to 6 {what}: left out")
        normals = None
    if normals is not None:
        length = _lengths(normals)
        if not length.all():
            what = f"{int((length == 0).sum())} of {len(points)} normals are zero"
            if not drop_invalid or not length.any():
                raise MeshError(
                    path, f"{what}; `drop_invalid=True` drops such points, `normals=False` all normals"
                )
            notes.append(f"{what}: points dropped")
            points, normals, length = (array[length > 0] for array in (points, normals, length))
        odd = int((np.abs(length - 1) > _UNIT).sum())
        if odd:
            notes.append(f"{odd} normals were not of unit length: scaled")
        normals = normals / np.abs(normals).max(1, keepdims=True)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        size = float((points.max(0) - points.min(0)).max())
    if not 0 < size < np.inf:
        raise MeshError(path, f"all {len(points)} points are equal" if size == 0 else "points too far apart")
    repeated = int((first_equal(points) != np.arange(len(points))).sum())
    if repeated:
        notes.append(f"{repeated} points lie where another does")
    return PointCloud(
        torch.from_numpy(points), None if normals is None else torch.from_numpy(normals), tuple(notes)
    )


def _lengths(vectors: np.ndarray) -> np.ndarray:
    """Lengths that neither underflow nor overflow."""
    top = np.abs(vectors).max(1)
    return top * np.linalg.norm(vectors / np.where(top > 0, top, 1)[:, None], axis=1)


def _look_like_colors(columns: np.ndarray) -> bool:
    """Whether three columns are nowhere negative and mostly not of unit length."""
    if not len(columns) or columns.min() < 0 or not columns.any():
        return False
    return float((np.abs(_lengths(columns) - 1) > _UNIT).mean()) > 0.1


# ---------------------------------------------------------------------------------- readers


def _has_faces(path: Path, count: int) -> MeshError:
    return MeshError(path, f"expected points, got a mesh of {count} faces; read it with geometry.load")


def _read_ply(path: Path, data: bytes) -> _Raw:
    file = open_ply(path, data)
    for name in ("face", "tristrips"):
        if name in file.elements and file.elements[name].count:
            raise _has_faces(path, file.elements[name].count)
    points = file.table(path, ("x", "y", "z"))
    if points is None:
        raise MeshError(path, "expected an element 'vertex' with properties x, y and z")
    normals = file.table(path, ("nx", "ny", "nz"))
    if normals is None:
        normals = file.table(path, ("normal_x", "normal_y", "normal_z"))
    return _Raw(points, normals, notes=file.notes)


def _read_obj(path: Path, data: bytes) -> _Raw:
    if b"\0" in data[:4096]:
        raise MeshError(path, "expected the text of an OBJ file, got binary data")
    rows: dict[bytes, list[tuple[int, bytes]]] = {b"v": [], b"vn": [], b"f": []}
    for number, line in enumerate(data.splitlines(), 1):
        entry = line.split(b"#", 1)[0].split(None, 1)
        if entry and entry[0] in rows:
            rows[entry[0]].append((number, entry[1] if len(entry) > 1 else b""))
    if rows[b"f"]:
        raise _has_faces(path, len(rows[b"f"]))
    points, normals = (_table(path, rows[key])[:, :3] for key in (b"v", b"vn"))
    if not len(normals):
        return _Raw(points)
    if len(normals) != len(points):
        return _Raw(points, notes=[f"{len(normals)} normals for {len(points)} points: left out"])
    return _Raw(points, normals)


def _read_off(path: Path, data: bytes) -> _Raw:
    kind, num_points, num_faces, body = off_header(path, data)
    if num_faces > 0:
        raise _has_faces(path, num_faces)
    if len(body) != max(num_points, 0):
        raise MeshError(path, f"{len(body)} rows read, the header says {num_points} vertices")
    has_normals = "N" in kind
    table = off_vertices(path, body, 6 if has_normals else 3)
    return _Raw(table[:, :3], table[:, 3:6] if has_normals else None)


def _read_text(path: Path, data: bytes) -> _Raw:
    if b"\0" in data[:4096]:
        raise MeshError(path, "expected rows of numbers, got binary data")
    rows = []
    for number, line in enumerate(data.splitlines(), 1):
        line = line.split(b"#", 1)[0].split(b"//", 1)[0].strip()
        if line:
            rows.append((number, line))
    if not rows:
        raise MeshError(path, "no points")
    declared = None
    if re.fullmatch(rb"\d+", rows[0][1]):
        declared = int(rows[0][1])
        rows.pop(0)
    table = _table(path, [(n, _without_commas(path, n, line)) for n, line in rows], same=True)
    if declared is not None and declared != len(table):
        raise MeshError(path, f"{len(table)} points read, line 1 says {declared}")
    return _of_columns(path, table)


def _without_commas(path: Path, number: int, line: bytes) -> bytes:
    if b"," in line:
        line = re.sub(rb",\s+|,$", b" ", line).strip()
        if b"," in line and len(line.split()) > 1:
            numbers(path, number, line.decode("utf-8", "replace").split(), float)  # says what is wrong
        line = line.replace(b",", b" ")
    return line


def _table(path: Path, rows: list[tuple[int, bytes]], same: bool = False) -> np.ndarray:
    """Rows of at least three numbers; with `same` of as many as the first."""
    if not rows:
        return np.zeros((0, 3))
    columns = len(rows[0][1].split())
    table = number_table([line for _, line in rows], columns) if columns >= 3 else None
    if table is not None:
        return table
    values = []
    for number, line in rows:
        words = line.decode("utf-8", "replace").split()
        if len(words) < 3 or (same and len(words) != columns):
            expected = f"{columns} numbers as in the first row" if columns >= 3 else "at least three numbers"
            raise MeshError(path, f"line {number}: expected {expected}, got '{' '.join(words)[:60]}'")
        values.append(numbers(path, number, words if same else words[:3], float))
    return np.array(values, np.float64)


def _of_columns(path: Path, table: np.ndarray) -> _Raw:
    """Points, and normals where further columns are such: of six columns the last three, of nine or ten
    columns (with an opacity) those three that are no colors."""
    columns = table.shape[1]
    if columns == 3:
        return _Raw(table)
    if columns == 6:
        return _Raw(table[:, :3], table[:, 3:], named=False)
    if columns in (4, 7):  # intensity; intensity and color
        return _Raw(table[:, :3], notes=[f"column{'s' if columns > 4 else ''} from the fourth on left out"])
    if columns in (9, 10):
        colors = [_look_like_colors(table[:, at : at + 3]) for at in (3, 6)]
        if colors[0] != colors[1]:
            at = 6 if colors[0] else 3
            kept, left = ("7 to 9", "4 to 6") if colors[0] else ("4 to 6", "7 to 9")
            note = f"columns {kept} taken as normals, columns {left} look like colors: left out"
            return _Raw(table[:, :3], table[:, at : at + 3], named=False, notes=[note])
    expected = "x y z alone, or with normals, colors, both, an intensity, or that and colors"
    raise MeshError(path, f"expected {expected}, got {columns} columns")


def _read_npy(path: Path, data: bytes) -> _Raw:
    array = _array(path, io.BytesIO(data), len(data), "the array")
    if array.ndim == 2 and array.shape[1] in (3, 6):
        return _of_columns(path, array)
    raise MeshError(path, f"expected an array of shape (N, 3) or (N, 6), got {array.shape}")


_POINTS_KEYS = ("points", "xyz", "pc", "point_cloud", "pointcloud", "arr_0")


def _read_npz(path: Path, data: bytes) -> _Raw:
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name in (*_POINTS_KEYS, "normals"):
                    if info.file_size > max(1 << 28, 64 * len(data)):
                        raise MeshError(path, f"'{name}' would unpack to {info.file_size} bytes")
                    unpacked = archive.read(info)
                    arrays[name] = _array(path, io.BytesIO(unpacked), len(unpacked), f"'{name}'")
            names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
    except MeshError:
        raise
    except Exception as error:  # zipfile and zlib, on outside data: anything can come
        raise MeshError(
            path, f"not a readable NPZ file ({type(error).__name__}: {_one_line(error)})"
        ) from error
    key = next((key for key in _POINTS_KEYS if key in arrays), None)
    if key is None:
        raise MeshError(path, f"expected an array named 'points', got {', '.join(names) or 'none'}")
    points, normals = arrays[key], arrays.get("normals")
    if points.ndim != 2 or points.shape[1] not in ((3,) if normals is not None else (3, 6)):
        raise MeshError(path, f"expected '{key}' of shape (N, 3), got {points.shape}")
    if normals is None:
        return _of_columns(path, points)
    if normals.shape != points.shape:
        raise MeshError(path, f"'normals' has shape {normals.shape}, '{key}' {points.shape}")
    return _Raw(points, normals)


def _array(path: Path, file: io.BytesIO, size: int, what: str) -> np.ndarray:
    """A numeric array of a .npy file, never unpickled, and never larger than the file."""
    try:
        old = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, fortran, kind = read(file)
    except Exception as error:  # the header is Python's own syntax, and so are its errors
        raise MeshError(path, f"{what} is not in the NPY format ({_one_line(error)})") from error
    if kind.hasobject or kind.kind not in "fiu":
        raise MeshError(path, f"{what} must hold numbers, got {kind}; pickled objects are never loaded")
    if any(type(length) is not int or length < 0 for length in shape):
        raise MeshError(path, f"{what} has the shape {shape}")
    count = math.prod(shape)
    start = file.tell()
    if start + count * kind.itemsize > size:
        have = (size - start) // kind.itemsize
        raise MeshError(path, f"{have} of {count} numbers of {what} read: a truncated file")
    array = np.frombuffer(file.getbuffer(), kind, count, start)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


_READERS: dict[str, Callable[[Path, bytes], _Raw]] = {
    ".ply": _read_ply,
    ".obj": _read_obj,
    ".off": _read_off,
    ".xyz": _read_text,
    ".txt": _read_text,
    ".pts": _read_text,
    ".npy": _read_npy,
    ".npz": _read_npz,
}


# ---------------------------------------------------------------------------------- writing


def save_points(cloud: PointCloud, path: str | os.PathLike[str]) -> None:
    """Write points, and normals if there are any, in any format that `load_points` reads; in full precision,
    and replacing an existing file only by a complete one.

    Raises:
        MeshError: unknown extension, no such directory, or a directory in the way.
    """
    path = Path(path)
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise MeshError(path, f"expected one of {' '.join(_WRITERS)}, got the extension '{path.suffix}'")
    if path.is_dir():
        raise MeshError(path, "expected a file name, got a directory")
    if not path.parent.is_dir():
        raise MeshError(path, f"the directory {path.parent} does not exist")
    normals = None if cloud.normals is None else cloud.normals.detach().numpy()
    write_atomically(path, writer(cloud.points.detach().numpy(), normals))


def _rows(*tables: np.ndarray, prefix: str = "") -> bytes:
    text = io.StringIO()
    number = "%.9g" if tables[0].dtype == np.float32 else "%.17g"
    table = np.concatenate(tables, 1)
    np.savetxt(text, table, fmt=prefix + " ".join([number] * table.shape[1]))
    return text.getvalue().encode()


def _write_ply(points: np.ndarray, normals: np.ndarray | None) -> bytes:
    names = "x y z" if normals is None else "x y z nx ny nz"
    kind = "float" if points.dtype == np.float32 else "double"
    properties = "".join(f"property {kind} {name}\n" for name in names.split())
    header = f"ply\nformat binary_little_endian 1.0\ncomment fastshape\nelement vertex {len(points)}\n"
    table = points if normals is None else np.concatenate([points, normals], 1)
    body = table.astype(table.dtype.newbyteorder("<")).tobytes()
    return f"{header}{properties}end_header\n".encode() + body


def _write_obj(points: np.ndarray, normals: np.ndarray | None) -> bytes:
    return _rows(points, prefix="v ") + (b"" if normals is None else _rows(normals, prefix="vn "))


def _write_off(points: np.ndarray, normals: np.ndarray | None) -> bytes:
    header = f"{'' if normals is None else 'N'}OFF\n{len(points)} 0 0\n"
    return header.encode() + _write_text(points, normals)


def _write_text(points: np.ndarray, normals: np.ndarray | None) -> bytes:
    return _rows(points) if normals is None else _rows(points, normals)


def _write_npy(points: np.ndarray, normals: np.ndarray | None) -> bytes:
    file = io.BytesIO()
    np.save(file, points if normals is None else np.concatenate([points, normals], 1), allow_pickle=False)
    return file.getvalue()


def _write_npz(points: np.ndarray, normals: np.ndarray | None) -> bytes:
    file = io.BytesIO()
    arrays = {"points": points} if normals is None else {"points": points, "normals": normals}
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


_WRITERS: dict[str, Callable[[np.ndarray, np.ndarray | None], bytes]] = {
    ".ply": _write_ply,
    ".obj": _write_obj,
    ".off": _write_off,
    ".xyz": _write_text,
    ".txt": _write_text,
    ".pts": lambda points, normals: f"{len(points)}\n".encode() + _write_text(points, normals),
    ".npy": _write_npy,
    ".npz": _write_npz,
}
