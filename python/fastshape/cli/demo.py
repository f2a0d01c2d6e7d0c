"""`fastshape demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastshape.cli.app import CommandError
from fastshape.cli.process import Task, ensure_directory, process
from fastshape.geometry import save, shapes


def run(options: argparse.Namespace) -> None:
    folder = Path(options.output)
    made = []
    for name in dict.fromkeys(options.shapes):
        try:
            made.append((name, shapes.make(name)))
        except ValueError as error:
            raise CommandError(str(error)) from None
    ensure_directory(folder)
    tasks = []
    for name, mesh in made:
        save(mesh, folder / f"{name}.ply")
        tasks.append(Task(name, mesh, folder / f"{name}-reconstructed.ply"))
    process(tasks, options, Path(options.resume) if options.resume else folder / "run")
