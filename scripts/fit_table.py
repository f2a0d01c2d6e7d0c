"""How well `fastshape fit` does beside dual marching cubes of the same resolution: the README's table.

    python scripts/fit_table.py drill.stl mug.stl --half drill.stl --at 128:400 256:1200 -o fits.csv

fits each mesh at each resolution with that many steps, writes a line for each into the .csv as it comes, and
prints the whole as a table in Markdown. Lines that the file has are kept: the same command goes on. `--half`
takes the half of a mesh below the middle of its longest side, which is open where it is cut.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastshape import fit, geometry
from fastshape.geometry import Mesh
from fastshape.geometry.io import write_atomically
from fastshape.geometry.sharp_normals import sharp_normal_error
from fastshape.ops.rows import count_edges


@dataclass(frozen=True)
class Line:
    """One mesh at one resolution; `cubes_` is dual marching cubes, `fit_` what was fitted.

    Attributes:
        mesh: its name.
        resolution, steps, seed: of the fit.
        voxels, voxels_per_step, seconds_per_step, seconds: of the fit; the last is all of it.
        floor: of the CD-L1: two samples of the mesh itself. Box [-1, 1]^3, 100,000 points.
        cubes_cd, fit_cd: CD-L1.
        cubes_fscore, fit_fscore: at .005.
        cubes_normals, fit_normals: normal consistency.
        cubes_sne, fit_sne: the sharp-normal error.
        mesh_open, cubes_open, fit_open: edges with one face.
    """

    mesh: str
    resolution: int
    steps: int
    seed: int
    voxels: int
    voxels_per_step: float
    seconds_per_step: float
    seconds: float
    floor: float
    cubes_cd: float
    fit_cd: float
    cubes_fscore: float
    fit_fscore: float
    cubes_normals: float
    fit_normals: float
    cubes_sne: float
    fit_sne: float
    mesh_open: int
    cubes_open: int
    fit_open: int


def measure(name: str, mesh: Mesh, resolution: int, steps: int, seed: int = 0, **changes: Any) -> Line:
    """Fits a mesh and compares."""
    config = fit.FitConfig(resolution=resolution, steps=steps, seed=seed, **changes)
    begin = time.perf_counter()
    found = fit.fit_mesh(mesh, config)
    seconds = time.perf_counter() - begin
    scores: dict[str, Any] = {}
    for key, result in (("cubes", fit.dual_marching_cubes_mesh(mesh, resolution)), ("fit", found.mesh)):
        compared = geometry.evaluate(
            result, mesh, thresholds=(0.005,), num_volume_samples=0, num_near_samples=0
        )
        scores |= {
            "floor": compared.floor.chamfer_l1,
            f"{key}_cd": compared.scores.chamfer_l1,
            f"{key}_fscore": compared.scores.fscore[0.005],
            f"{key}_normals": compared.scores.normal_consistency,
            f"{key}_sne": sharp_normal_error(result, mesh),
            f"{key}_open": open_edges(result),
        }
    return Line(
        mesh=name,
        resolution=resolution,
        steps=steps,
        seed=seed,
        voxels=found.num_voxels,
        voxels_per_step=found.voxels_per_step,
        seconds_per_step=found.seconds_per_step,
        seconds=seconds,
        mesh_open=open_edges(mesh),
        **scores,
    )


def open_edges(mesh: Mesh) -> int:
    return count_edges(mesh.faces.int(), mesh.num_vertices).open


def half(mesh: Mesh) -> Mesh:
    """The faces whose centers lie below the middle of the mesh's longest side."""
    axis = int((mesh.bounds[1] - mesh.bounds[0]).argmax())
    return Mesh(mesh.vertices, mesh.faces[mesh.triangles[:, :, axis].mean(1) < mesh.bounds[:, axis].mean()])


def table(lines: Sequence[Line]) -> str:
    """In Markdown."""
    rows = [
        "| mesh, voxels a side | CD-L1: cubes, fitted (floor) | F@.005 | sharp-normal error "
        "| open edges: mesh, cubes, fitted | steps, a step |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        rows.append(
            f"| {line.mesh}, {line.resolution} "
            f"| {_pair(line.cubes_cd, line.fit_cd, 5, lower=True)} ({_short(line.floor, 5)}) "
            f"| {_pair(line.cubes_fscore, line.fit_fscore, 3, lower=False)} "
            f"| {_pair(line.cubes_sne, line.fit_sne, 4, lower=True)} "
            f"| {line.mesh_open}, {line.cubes_open}, {line.fit_open} "
            f"| {line.steps}, {line.seconds_per_step:.2f} s |"
        )
    return "\n".join(rows)


def _pair(cubes: float, fitted: float, digits: int, *, lower: bool) -> str:
    """The better one, as far as the digits tell, in bold."""
    first, second = _short(cubes, digits), _short(fitted, digits)
    if first == second:
        return f"{first}, {second}"
    return f"{first}, **{second}**" if (fitted < cubes) == lower else f"**{first}**, {second}"


def _short(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".removeprefix("0")


def read(path: Path) -> list[Line]:
    """The lines of a file; none where there is none."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        kinds = {
            field.name: {"str": str, "int": int, "float": float}[field.type]
            for field in dataclasses.fields(Line)
        }  # type: ignore[index]
        return [
            Line(**{name: kinds[name](value) for name, value in row.items()}) for row in csv.DictReader(file)
        ]


def write(path: Path, lines: Sequence[Line]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(Line)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(line) for line in lines)
    write_atomically(path, text.getvalue().encode())


def meshes(options: argparse.Namespace) -> Iterator[tuple[str, Mesh]]:
    for path in options.meshes:
        yield Path(path).stem, geometry.load(path)
    for path in options.half:
        yield f"half of {Path(path).stem}", half(geometry.load(path))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("meshes", nargs="*", metavar="MESH")
    parser.add_argument("--half", nargs="*", default=[], metavar="MESH", help="take half of it, an open mesh")
    parser.add_argument(
        "--at", nargs="+", default=["128:400"], metavar="R:STEPS", help="voxels a side and steps; 128:400"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", required=True, metavar="CSV")
    options = parser.parse_args(arguments)
    path, lines = Path(options.output), read(Path(options.output))
    for at in options.at:
        resolution, steps = (int(number) for number in at.split(":"))
        for name, mesh in meshes(options):
            wanted = (name, resolution, steps, options.seed)
            if wanted in [(line.mesh, line.resolution, line.steps, line.seed) for line in lines]:
                continue
            lines.append(measure(name, mesh, resolution, steps, options.seed))
            write(path, lines)
    print(table(lines))


if __name__ == "__main__":
    main()
