"""`fastshape fit`."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import shlex
import shutil
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fastshape import fit, geometry
from fastshape.cli.app import CommandError
from fastshape.geometry import Mesh
from fastshape.geometry.formats import WRITERS
from fastshape.geometry.io import write_atomically
from fastshape.geometry.sharp_normals import sharp_normal_error

CHECKPOINT_FILE = "checkpoint.safetensors"
_TABLE_TITLES = {
    "savings": "carving and zoom",
    "threshold": "how far behind the depth a voxel may lie",
    "variation": "total variation",
}


def run(options: argparse.Namespace) -> None:
    source, output = Path(options.input), Path(options.output)
    if output.suffix.lower() not in WRITERS:
        raise CommandError(f"{output}: expected one of {', '.join(WRITERS)}, got '{output.suffix}'")
    config = configuration(options)
    mesh = geometry.load(source)
    output.parent.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True, highlight=False)
    if options.tables is not None:
        _tables(mesh, config, options.tables or fit.TABLES, output.with_suffix(".csv"))
        return
    found = _fit(mesh, config, output.with_suffix(".run"), options, console)
    geometry.save(found.mesh, output)
    baseline = fit.dual_marching_cubes_mesh(mesh, config.resolution)
    out = Console(highlight=False)
    out.print(_scores(mesh, {"dual marching cubes": baseline, "fitted": found.mesh}))
    out.print("CD-L1, its floor and F@.005 in a box of side 2; SNE: the sharp-normal error", style="dim")
    out.print(
        f"{found.num_voxels:,} voxels, {found.voxels_per_step:,.0f} in a step of "
        f"{1000 * found.seconds_per_step:.0f} ms"
    )
    if found.empty_steps:
        out.print(f"note: {found.empty_steps} of {config.steps} pictures showed nothing of the surface")
    shutil.rmtree(output.with_suffix(".run"), ignore_errors=True)  # what is written needs no going on
    out.print(f"wrote {output}", markup=False, soft_wrap=True)
    if not options.no_picture:
        picture = output.with_suffix(".png")
        columns = [("input", mesh), (f"dual marching cubes, {config.resolution}", baseline)]
        up: Literal["y", "z"] = options.up or ("y" if source.suffix.lower() in (".glb", ".gltf") else "z")
        geometry.compare_picture([*columns, (f"fitted, {config.resolution}", found.mesh)], picture, up=up)
        out.print(f"wrote {picture}", markup=False, soft_wrap=True)


def _fit(
    mesh: Mesh, config: fit.FitConfig, run: Path, options: argparse.Namespace, console: Console
) -> fit.Fit:
    """The fit; one that was stopped goes on from what it left in the folder `run`."""
    file = run / CHECKPOINT_FILE
    if file.exists() and not options.restart:
        console.print(f"going on from {file}", markup=False, soft_wrap=True)
    with warnings.catch_warnings(), _progress(console) as on_step:
        warnings.simplefilter("ignore", fit.FitWarning)  # it stands in the result
        try:
            return fit.fit_mesh(
                mesh, config, checkpoint_file=file, resume=not options.restart, on_step=on_step
            )
        except fit.FitInterrupted as stopped:
            again = shlex.join(word for word in ["fastshape", *options.words] if word != "--restart")
            raise KeyboardInterrupt(f"{stopped}; to go on: {again}") from None


def _tables(mesh: Mesh, config: fit.FitConfig, names: Collection[str], path: Path) -> None:
    """Each row as it comes, and all of them in a file."""
    out = Console(highlight=False)
    rows: list[fit.Row] = []
    for row in fit.tables(mesh, config, names):
        if not rows or rows[-1].table != row.table:
            out.print(_TABLE_TITLES[row.table], style="bold")
        memory = "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:,.0f} MB"
        out.print(
            f"  {row.name}: {row.voxels_per_step:,.0f} of {row.num_voxels:,} voxels "
            f"({row.voxels_per_step / max(row.num_voxels, 1):.0%}), "
            f"{1000 * row.seconds_per_step:.0f} ms a step "
            f"({1000 * row.cpu_seconds_per_step:.0f} of processors), {memory}, "
            f"CD-L1 {row.chamfer_l1:.5f} (floor {row.chamfer_l1_floor:.5f}), "
            f"sharp-normal error {row.sharp_normal_error:.5f}, {_holes(row)}",
            soft_wrap=True,
        )
        rows.append(row)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(fit.Row._fields)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
    out.print(f"wrote {path}", markup=False, soft_wrap=True)


def _holes(row: fit.Row) -> str:
    if row.holes is None:
        return f"{row.open_edges} open edges"
    return f"{row.holes} holes" + (
        "" if row.holes_of_mesh is None else f" (the mesh has {row.holes_of_mesh})"
    )


def configuration(options: argparse.Namespace) -> fit.FitConfig:
    """What the command line asks for.

    Raises:
        CommandError: a bad value; names it.
    """
    changes = {
        name: getattr(options, name)
        for name in ("resolution", "steps", "levels", "image_size", "seed")
        if getattr(options, name) is not None
    }
    try:
        return dataclasses.replace(fit.FitConfig(), **changes, carve=options.carve, zoom=options.zoom)
    except ValueError as error:
        raise CommandError(str(error)) from None


def _scores(target: Mesh, meshes: dict[str, Mesh]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("", "faces", "CD-L1", "floor", "F@.005", "normals", "SNE"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for name, mesh in meshes.items():
        found = geometry.evaluate(mesh, target, thresholds=(0.005,), num_volume_samples=0, num_near_samples=0)
        table.add_row(
            name,
            f"{mesh.num_faces:,}",
            f"{found.scores.chamfer_l1:.5f}",
            f"{found.floor.chamfer_l1:.5f}",
            f"{found.scores.fscore[0.005]:.4f}",
            f"{found.scores.normal_consistency:.4f}",
            f"{sharp_normal_error(mesh, target):.5f}",
        )
    return table


class _progress:  # noqa: N801  # used as a function
    """A bar for each level where there is a terminal, else a line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[int, object] = {}

    def __enter__(self) -> Callable[[fit.Step], None]:
        self._bar.start()
        return self._on_step

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _on_step(self, step: fit.Step) -> None:
        text = f"{step.resolution} a side, loss {step.loss:.4f}"
        if not self._console.is_terminal:
            if step.number % 100 == 0 or step.number == step.of:
                self._console.print(f"{text}, step {step.number} of {step.of}")
            return
        if step.resolution not in self._tasks:
            self._tasks[step.resolution] = self._bar.add_task(text, total=step.of)
        self._bar.update(self._tasks[step.resolution], completed=step.number, description=text)  # type: ignore[arg-type]
