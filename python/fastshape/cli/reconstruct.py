"""`fastshape reconstruct`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

from fastshape.cli.plan import Plan, plan
from fastshape.cli.process import ensure_directory, process
from fastshape.geometry.formats import WRITERS
from fastshape.pipelines import Job
from fastshape.pipelines.reconstruct_files import RECORDS_FOLDER


def run(options: argparse.Namespace) -> int:
    work = mesh_plan(options.input, Path(options.output))
    jobs = []
    for number, item in enumerate(work.items):
        up: Literal["y", "z"] = options.up or (
            "y" if item.source.suffix.lower() in (".glb", ".gltf") else "z"
        )
        if options.no_picture or (work.folder is not None and number >= options.pictures):
            picture = None
        elif work.folder is None:
            picture = item.output.with_suffix(".png")
        else:
            picture = work.folder / RECORDS_FOLDER / f"{item.name}.png"
        jobs.append(Job(item.name, item.source, item.output, picture, up))
    first = jobs[0].output
    ensure_directory(first.parent if work.folder is None else work.folder)
    run_dir = first.with_suffix(".run") if work.folder is None else work.folder / "run"
    if isinstance(options.resume, str):
        run_dir = Path(options.resume)
    return process(jobs, options, folder=work.folder, run_dir=run_dir)


def mesh_plan(inputs: list[str], output: Path) -> Plan:
    """Meshes to meshes, in the input's format where it can be written, else GLB."""
    return plan(
        inputs,
        output,
        kinds=tuple(WRITERS),
        result=lambda path: path.name if path.suffix.lower() in WRITERS else f"{path.stem}.glb",
    )
