"""What `reconstruct` and `demo` share: train if need be, reconstruct, report, draw."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from fastshape import train
from fastshape.cli.app import CommandError, command_line
from fastshape.geometry import DistanceField, Mesh, normalize, save
from fastshape.geometry.optional import require
from fastshape.geometry.render import compare_picture
from fastshape.models import VecSetVAE
from fastshape.pipelines import Reconstruction, reconstruct

RECIPE = "vecset-tiny"


@dataclass(frozen=True)
class Task:
    """One mesh, where its reconstruction goes, and which axis is up in its picture."""

    name: str
    mesh: Mesh
    output: Path
    up: Literal["y", "z"] = "z"

    @property
    def picture(self) -> Path:
        return self.output.with_suffix(".png")


def process(tasks: Sequence[Task], options: argparse.Namespace, run_dir: Path) -> list[Reconstruction]:
    """Reconstruct every task, write the meshes and pictures, print the table.

    Progress and notes go to stderr, the table to stdout.

    Args:
        tasks: one or more.
        options: of the command line.
        run_dir: where the training run is kept; removed at the end unless --resume names it.
    """
    console = Console(stderr=True, highlight=False)
    if not options.no_picture:
        require("PIL.Image", "demo", "drawing a picture")  # before the training, not after it
    for task in tasks:
        for note in task.mesh.notes:
            console.print(f"{task.name}: {note}", style="yellow", markup=False)

    stages: dict[str, float] = {}
    if options.model:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        models = [VecSetVAE.from_pretrained(options.model, device=device)] * len(tasks)
    else:
        models = _train(tasks, options, run_dir, stages, console)

    try:
        results = _reconstruct(tasks, models, options, stages, console)
    except KeyboardInterrupt:
        again = f"; to go on: {command_line(options)} --resume {run_dir}" if run_dir.is_dir() else ""
        raise KeyboardInterrupt(f"interrupted{again}") from None
    Console(highlight=False).print(report(tasks, results, stages))
    for task in tasks:
        files = [str(task.output)] if options.no_picture else [str(task.output), str(task.picture)]
        console.print(f"wrote {' and '.join(files)}", soft_wrap=True, markup=False)
    if options.resume is None and not options.model:
        for task in tasks:
            _remove_run(_run_of(task, tasks, run_dir))
        with contextlib.suppress(OSError):
            run_dir.rmdir()
    return results


def _run_of(task: Task, tasks: Sequence[Task], run_dir: Path) -> Path:
    return run_dir if len(tasks) == 1 else run_dir / task.name


def _reconstruct(
    tasks: Sequence[Task],
    models: Sequence[VecSetVAE],
    options: argparse.Namespace,
    stages: dict[str, float],
    console: Console,
) -> list[Reconstruction]:
    results = []
    for task, model in zip(tasks, models, strict=True):
        with console.status(f"{task.name}: reconstructing"):
            result = reconstruct(
                task.mesh, model, resolution=options.resolution, num_tokens=options.tokens, seed=options.seed
            )
        save(result.mesh, task.output)
        results.append(result)
        if not options.no_picture:
            with console.status(f"{task.name}: drawing"):
                begin = time.perf_counter()
                _draw(task, result)
                stages["draw"] = stages.get("draw", 0.0) + time.perf_counter() - begin
    return results


def _remove_run(run_dir: Path) -> None:
    """Delete what a training run wrote, and the directory if nothing else is in it."""
    shutil.rmtree(run_dir / "model", ignore_errors=True)
    for name in ("checkpoint.safetensors", "metrics.jsonl"):
        (run_dir / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        run_dir.rmdir()


def _train(
    tasks: Sequence[Task],
    options: argparse.Namespace,
    run_dir: Path,
    stages: dict[str, float],
    console: Console,
) -> list[VecSetVAE]:
    """One model for each task: the recipe fits a shape, and several together take it more than their sum."""
    begin = time.perf_counter()
    with console.status("preparing: signed distances of the training points"):
        samples = [_prepare(task, options.seed, console) for task in tasks]
    stages["prepare"] = time.perf_counter() - begin
    begin = time.perf_counter()
    models = []
    for task, sample in zip(tasks, samples, strict=True):
        console.print(
            f"no --model given: training {RECIPE} on {task.name}, for {task.name} only",
            soft_wrap=True,
            markup=False,
        )
        try:
            model = train.fit_meshes(
                [sample],
                RECIPE,
                steps=options.steps,
                seed=options.seed,
                output_dir=_run_of(task, tasks, run_dir),
                resume=options.resume is not None,
            )
        except train.TrainingInterrupted as stopped:
            done = str(stopped).split(";")[0]
            raise KeyboardInterrupt(f"{done}; to go on: {command_line(options)} --resume {run_dir}") from None
        models.append(model)
    stages["train"] = time.perf_counter() - begin
    return models


def _prepare(task: Task, seed: int, console: Console) -> train.ShapeSamples:
    samples = train.prepare(task.mesh, seed=seed)
    if not bool(samples.volume_occupancy.any()) and not bool(samples.near_occupancy.any()):
        raise CommandError(
            f"{task.name}: the mesh encloses nothing, so there is no inside to learn; close it"
        )
    field = DistanceField(normalize(task.mesh)[0])
    doubt = float(field.doubt(samples.volume[:8192]).double().mean())
    if doubt > 0.01:
        console.print(
            f"{task.name}: inside or outside is in doubt for {doubt:.0%} of its box; expect holes or webs",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    return samples


def _draw(task: Task, result: Reconstruction) -> None:
    assert result.evaluation is not None
    scores, floor = result.evaluation.scores, result.evaluation.floor
    left = f"{task.name}\n{task.mesh.num_faces:,} faces"
    right = (
        f"from {result.num_tokens} tokens, {result.num_bytes / 1024:.1f} KiB\n"
        f"CD-L1 {scores.chamfer_l1:.4f} (floor {floor.chamfer_l1:.4f}), F@.02 {scores.fscore[0.02]:.3f}"
    )
    compare_picture([(left, task.mesh), (right, result.mesh)], task.picture, up=task.up)


def report(tasks: Sequence[Task], results: Sequence[Reconstruction], stages: dict[str, float]) -> Table:
    """One row per shape; what they share, in seconds, stands below."""
    shared = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stages.items())
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 0, 0, 1),
        caption="seconds; CD-L1 in a box of side 2; floor: the input against itself\n" + shared,
        caption_justify="left",
    )
    table.add_column("shape", overflow="fold")
    for name in ("tokens", "bytes", "enc", "dec", "extract", "CD-L1", "floor", "F@.02", "floor"):
        table.add_column(name, justify="right", no_wrap=True)
    for task, result in zip(tasks, results, strict=True):
        assert result.evaluation is not None
        scores, floor = result.evaluation.scores, result.evaluation.floor
        table.add_row(
            task.name,
            str(result.num_tokens),
            str(result.num_bytes),
            *(f"{result.seconds[name]:.2f}" for name in ("encode", "decode", "extract")),
            *(f"{value:.4f}" for value in (scores.chamfer_l1, floor.chamfer_l1)),
            *(f"{value:.3f}" for value in (scores.fscore[0.02], floor.fscore[0.02])),
        )
    return table


def ensure_directory(path: Path) -> None:
    """Make a directory, or say in one line why not."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise CommandError(f"{path}: expected a directory to write to, but a file is in the way") from None
