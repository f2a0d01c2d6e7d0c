"""`fastshape demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastshape.cli.app import CommandError
from fastshape.cli.process import ensure_directory, process
from fastshape.geometry import save, shapes
from fastshape.pipelines import Job


def run(options: argparse.Namespace) -> int:
    folder = Path(options.output)
    made = []
    for name in dict.fromkeys(options.shapes):
        try:
            made.append((name, shapes.make(name)))
        except ValueError as error:
            raise CommandError(str(error)) from None
    ensure_directory(folder)
    jobs = []
    for name, mesh in made:
        save(mesh, folder / f"{name}.ply")
        output = folder / f"{name}-reconstructed.ply"
        picture = None if options.no_picture else output.with_suffix(".png")
        jobs.append(Job(name, folder / f"{name}.ply", output, picture))
    run_dir = Path(options.resume) if isinstance(options.resume, str) else folder / "run"
    return process(jobs, options, folder=folder, run_dir=run_dir)
