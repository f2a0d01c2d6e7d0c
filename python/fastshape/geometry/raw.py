"""What readers of files pass on: raw arrays, one exception class, and the parsing of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


class MeshError(ValueError):
    """A file that cannot be read or written as a mesh: names the file, what was expected and what came."""

    def __init__(self, path: str | Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = str(path)
        self.message = message


@dataclass
class RawMesh:
    """What a file says: positions (V, 3) float32 or float64, polygons as one flat array of integers beside
    their sizes, and how many lines it has besides."""

    vertices: np.ndarray
    indices: np.ndarray
    sizes: np.ndarray
    notes: list[str] = field(default_factory=list)
    num_lines: int = 0

    @staticmethod
    def of_triangles(vertices: np.ndarray, faces: np.ndarray) -> RawMesh:
        return RawMesh(vertices, faces.reshape(-1), np.broadcast_to(np.int64(3), len(faces)))

    @staticmethod
    def of_polygons(vertices: list[Any] | np.ndarray, polygons: list[list[int]]) -> RawMesh:
        positions = np.asarray(vertices, np.float64).reshape(-1, 3)
        sizes = np.fromiter(map(len, polygons), np.int64, len(polygons))
        indices = np.fromiter((i for polygon in polygons for i in polygon), np.int64, int(sizes.sum()))
        return RawMesh(positions, indices, sizes)


def numbers(path: Path, line_number: int, words: list[str], kind: type[float] | type[int]) -> list[Any]:
    """The words of a line as numbers, or an error that names the line."""
    try:
        values: list[Any] = [kind(word) for word in words]
        if any("_" in word for word in words) or (kind is int and any(abs(n) >> 62 for n in values)):
            raise ValueError
        return values
    except ValueError:
        what = "numbers" if kind is float else "integers"
        hint = " (a decimal comma?)" if any("," in word for word in words) else ""
        shown = " ".join(words)[:60]
        raise MeshError(path, f"line {line_number}: expected {what}, got '{shown}'{hint}") from None


def number_table(lines: Sequence[bytes], columns: int, kind: type = np.float64) -> np.ndarray | None:
    """The numbers (N, columns) of lines that hold exactly so many each; None if any line does not.

    For what None is the answer to, the callers go line by line and say what is wrong where.
    """
    if not lines:
        return np.zeros((0, columns), kind)
    try:
        table: np.ndarray = np.loadtxt(lines, kind, comments=None, ndmin=2)
    except (ValueError, OverflowError):
        return None
    return table if table.shape == (len(lines), columns) else None


def bake(
    path: Path, what: str, vertices: np.ndarray, faces: np.ndarray, matrix: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces moved by a (4, 4) matrix in float64; a mirror turns the faces over.

    Raises:
        MeshError: the matrix flattens the mesh.
    """
    matrix = np.asarray(matrix, np.float64)
    largest = np.abs(matrix[:3, :3]).max()
    determinant = np.linalg.det(matrix[:3, :3] / (largest or 1)) if np.isfinite(matrix).all() else np.nan
    if not np.isfinite(determinant) or determinant == 0:
        shown = f"{determinant:g}".replace("-0", "0")
        raise MeshError(path, f"the transform {what} has determinant {shown}: it flattens the mesh")
    moved = np.asarray(vertices, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    return moved, faces[:, ::-1] if determinant < 0 else faces
