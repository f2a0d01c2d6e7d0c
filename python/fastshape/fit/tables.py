"""What carving, zoom, the carving threshold and the total variation do to a fit, measured on one mesh."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch

from fastshape.fit.loop import Fit, FitConfig, fit_mesh
from fastshape.geometry import Mesh, evaluate
from fastshape.geometry.orientation import joined
from fastshape.geometry.sharp_normals import sharp_normal_error
from fastshape.ops.rows import count_edges
from fastshape.runtime.memory import peak_of

TABLES = ("savings", "threshold", "variation")
THRESHOLDS = (0.5, 1.0, 2.0, 4.0)  # voxels; the paper's 2 / resolution of the mesh is 0.5


class Row(NamedTuple):
    """One fit.

    Attributes:
        table: "savings", "threshold" or "variation".
        name: what was different.
        num_voxels: of the last level.
        voxels_per_step: mean of those that took part in a step.
        seconds_per_step, cpu_seconds_per_step: means of the last level, by the clock and of all processors.
        peak_bytes: the most memory of the process beyond what it had before; None where that is not known.
        chamfer_l1, chamfer_l1_floor: in the box [-1, 1]^3.
        sharp_normal_error: see :func:`fastshape.geometry.sharp_normals.sharp_normal_error`.
        open_edges: edges of the result with one face: the rims of what was torn open, where the mesh is
            closed.
        holes, holes_of_mesh: that lead through the result and through the mesh: the genus of all parts
            together, None where a surface is open. A slit in a thin wall is one.
    """

    table: str
    name: str
    num_voxels: int
    voxels_per_step: float
    seconds_per_step: float
    cpu_seconds_per_step: float
    peak_bytes: int | None
    chamfer_l1: float
    chamfer_l1_floor: float
    sharp_normal_error: float
    open_edges: int
    holes: int | None
    holes_of_mesh: int | None


def cases(config: FitConfig) -> Iterator[tuple[str, str, FitConfig]]:
    """Table, name and configuration of each row of all `TABLES`."""
    for name, carve, zoom in (
        ("neither", False, False),
        ("carving", True, False),
        ("carving and zoom", True, True),
    ):
        yield "savings", name, dataclasses.replace(config, carve=carve, zoom=zoom)
    for threshold in THRESHOLDS:
        changed = dataclasses.replace(config, carve=True, zoom=False, carve_threshold=threshold)
        yield "threshold", f"{threshold:g} voxels", changed
    for weight in (0.0, config.tv_weight):
        yield "variation", f"weight {weight:g}", dataclasses.replace(config, tv_weight=weight)


def tables(mesh: Mesh, config: FitConfig, names: Collection[str] = TABLES) -> Iterator[Row]:
    """The rows, one after the other, each fitted in a process of its own so that its memory can be told.

    Args:
        mesh: to fit.
        config: of what is not changed.
        names: which of `TABLES`.

    Raises:
        ValueError: another name.
    """
    if unknown := set(names) - set(TABLES):
        raise ValueError(f"`names` must be of {TABLES}, got {sorted(unknown)}")
    context = multiprocessing.get_context("spawn")
    for table, name, changed in cases(config):
        if table not in names:
            continue
        with context.Pool(1) as pool:
            yield pool.apply(_row, (table, name, mesh, changed))


def _row(table: str, name: str, mesh: Mesh, config: FitConfig) -> Row:
    # Once in small, so that what every first call loads is not counted.
    fit_mesh(mesh, dataclasses.replace(config, resolution=16, levels=1, steps=2))
    results: list[Fit] = []
    peak = peak_of(lambda: results.append(fit_mesh(mesh, config)), torch.device("cpu"))
    found = results[0]
    scores = evaluate(found.mesh, mesh, num_volume_samples=0, num_near_samples=0)
    return Row(
        table,
        name,
        found.num_voxels,
        found.voxels_per_step,
        found.seconds_per_step,
        found.cpu_seconds_per_step,
        peak,
        scores.scores.chamfer_l1,
        scores.floor.chamfer_l1,
        sharp_normal_error(found.mesh, mesh),
        count_edges(found.mesh.faces.int(), found.mesh.num_vertices).open,
        holes(found.mesh),
        holes(mesh),
    )


def holes(mesh: Mesh) -> int | None:
    """How many holes lead through a closed surface: its genus, by Euler's formula; None for any other."""
    if not mesh.is_watertight:
        return None
    vertices = mesh.faces.unique()
    parts = joined(mesh.faces[:, [0, 1]].flatten(), mesh.faces[:, [1, 2]].flatten(), mesh.num_vertices)
    characteristic = len(vertices) - mesh.num_faces // 2  # V - E + F, E being 3 F / 2
    return (2 * len(parts[vertices].unique()) - characteristic) // 2
