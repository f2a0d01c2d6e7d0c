"""`fastshape reconstruct`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

from fastshape.cli.app import CommandError
from fastshape.cli.process import Task, ensure_directory, process
from fastshape.geometry import load
from fastshape.geometry.formats import WRITERS


def run(options: argparse.Namespace) -> None:
    inputs = [Path(name) for name in options.input]
    outputs = plan(inputs, Path(options.output))
    tasks = []
    for path, output in zip(inputs, outputs, strict=True):
        up: Literal["y", "z"] = options.up or ("y" if path.suffix.lower() in (".glb", ".gltf") else "z")
        tasks.append(Task(path.stem, load(path), output, up))
    for output in outputs:
        ensure_directory(output.parent)
    process(tasks, options, Path(options.resume) if options.resume else outputs[0].with_suffix(".run"))


def plan(inputs: list[Path], output: Path) -> list[Path]:
    """Where the result of each input goes.

    Raises:
        CommandError: the output cannot be written, or would replace an input or another output.
    """
    if output.suffix.lower() in WRITERS and not output.is_dir():
        if len(inputs) > 1:
            raise CommandError(f"{output}: {len(inputs)} inputs need a directory, not one file")
        outputs = [output]
    elif output.suffix and not output.is_dir():
        raise CommandError(
            f"{output}: expected a directory or one of {' '.join(WRITERS)}, got '{output.suffix}'"
        )
    else:
        names = [path.name if path.suffix.lower() in WRITERS else f"{path.stem}.glb" for path in inputs]
        if len({Path(name).stem for name in names}) < len(names):
            raise CommandError(f"{output}: two inputs have one name, their results would replace each other")
        outputs = [output / name for name in names]
    for path, target in zip(inputs, outputs, strict=True):
        if target.exists() and path.exists() and target.samefile(path):
            raise CommandError(f"{target}: the result would replace the input; choose another output")
    return outputs
