"""What `reconstruct` and `demo` share: the model, the run, the table, the page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fastshape.cli.app import CommandError, again
from fastshape.cli.models import about, default_model, load_model, preparation_notes
from fastshape.geometry.optional import require
from fastshape.models import Autoencoder, PretrainedModel
from fastshape.pipelines import Job, ReconstructSettings, reconstruct_file, reconstruct_files, token_counts
from fastshape.pipelines.reconstruct_files import ModelFor, Record
from fastshape.pipelines.reconstruct_page import HEADER, LEGEND, cells, mean_cells, write_page

PAGE = "index.html"


def process(jobs: Sequence[Job], options: argparse.Namespace, *, folder: Path | None, run_dir: Path) -> int:
    """Reconstruct every mesh, write meshes and pictures, print the table.

    Progress and notes go to stderr, the table to stdout.

    Args:
        jobs: one or more.
        options: of the command line.
        folder: of a batch: gets a record of each mesh and the page, and a bad mesh is a row there. None: one
            mesh, whose error is the command's.
        run_dir: where training runs are kept while they are needed.

    Returns:
        The exit code: 1 if a mesh of a batch failed.
    """
    console = Console(stderr=True, highlight=False)
    if any(job.picture is not None for job in jobs):
        require("PIL.Image", "demo", "drawing a picture")  # before the work, not after it
    model, facts = _choose(options, jobs, folder, run_dir, console)
    settings = ReconstructSettings(
        resolution=options.resolution,
        surface=options.surface,
        num_tokens=options.tokens,
        sample_posterior=options.sample,
        prune=options.prune,
        memory=options.memory,
        seed=options.seed,
        picture_size=480 if folder is None else 300,
    )
    try:
        with preparation_notes(console):
            if folder is None:
                records = [_one(jobs[0], model, settings, console)]
            else:
                records = _many(jobs, model, folder, settings, facts, options, console)
    except KeyboardInterrupt as stopped:
        if str(stopped):
            raise
        more = [] if folder is None else ["--resume"]
        raise KeyboardInterrupt(f"interrupted; to go on: {again(options, *more)}") from None
    print_table(records, Console(highlight=False))
    if folder is None:
        files = [str(path) for path in (jobs[0].output, jobs[0].picture) if path is not None]
        console.print(f"wrote {' and '.join(files)}", soft_wrap=True, markup=False)
    else:
        facts |= {"settings": _settings_line(settings), "command": again(options)}
        write_page(records, folder / PAGE, facts, title=f"fastshape {options.command}: {folder.name}")
        console.print(f"wrote {folder / PAGE} and the meshes beside it", soft_wrap=True, markup=False)
    if not isinstance(model, PretrainedModel):
        model.clean()
    return 1 if any(record["status"] != "ok" for record in records) else 0


def _choose(
    options: argparse.Namespace, jobs: Sequence[Job], folder: Path | None, run_dir: Path, console: Console
) -> tuple[Any, dict[str, str]]:
    """The model of all meshes, or what trains one for each; and what it is, in words.

    Raises:
        CommandError: options that contradict one another, or a number of tokens that the model cannot have.
    """
    if options.fit and options.model:
        raise CommandError("--fit trains a model, --model takes one: give one of the two")
    if options.fit and options.weights:
        raise CommandError("--fit trains a model, --weights gives one: give one of the two")
    name = None if options.fit else options.model or (None if options.weights else default_model())
    if name is None and not options.weights:
        from fastshape.cli.overfit import RECIPE, Overfit  # torch's training part only where it is needed

        if not options.fit:
            console.print(
                "no weights are shipped with this installation, and no --model is given: a small model is "
                "trained on each mesh first, as with --fit",
                style="yellow",
                soft_wrap=True,
            )
        words = f"{RECIPE}, trained on each shape alone before it was reconstructed: how well the tokens can "
        facts = {"model": words + "hold it, not how a model does on shapes that it never saw"}
        if options.steps is not None:
            facts["steps"] = str(options.steps)
        return Overfit(options, run_dir, len(jobs) > 1, console), facts
    if options.steps is not None:
        raise CommandError("--steps is of the training that --fit does")
    if isinstance(options.resume, str):
        raise CommandError(f"--resume {options.resume}: a folder is for --fit; else --resume takes no value")
    if options.resume and folder is None:
        raise CommandError("--resume is for a folder or several inputs, or for --fit")
    model = load_model(name, options.weights)
    try:
        token_counts(model, options.tokens)
    except ValueError as error:
        raise CommandError(f"--tokens {options.tokens}: {error}") from None
    return model, about(model)


def _one(job: Job, model: Autoencoder | ModelFor, settings: ReconstructSettings, console: Console) -> Record:
    if isinstance(model, PretrainedModel):  # training has a bar of its own
        with console.status(f"{job.name}: reconstructing"):
            record = reconstruct_file(job, model, settings)
    else:
        record = reconstruct_file(job, model, settings)
    _say_notes(record, console)
    return record


def _many(
    jobs: Sequence[Job],
    model: Autoencoder | ModelFor,
    folder: Path,
    settings: ReconstructSettings,
    facts: dict[str, str],
    options: argparse.Namespace,
    console: Console,
) -> list[Record]:
    ensure_directory(folder)
    bar = progress_bar(console, disable=not isinstance(model, PretrainedModel))
    with bar:
        task = bar.add_task("reconstructing", total=len(jobs))

        def done(record: Record) -> None:
            bar.advance(task)
            if record["status"] != "ok":
                console.print(
                    f"{record['name']}: {record['reason']}", style="red", markup=False, soft_wrap=True
                )
            elif "kept" not in record:
                _say_notes(record, console)

        records = reconstruct_files(
            jobs,
            model,
            folder,
            settings,
            about=facts,
            resume=options.resume is not None,
            on_start=lambda job: bar.update(task, description=job.name[-40:]),
            on_item=done,
        )
    kept = sum("kept" in record for record in records)
    if kept:
        console.print(f"{kept} of {len(records)} taken from the earlier run")
    return records


def progress_bar(console: Console, disable: bool = False) -> Progress:
    """A bar that names what is being done, and leaves nothing behind."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=disable,
    )


def _say_notes(record: Record, console: Console) -> None:
    for note in record["source"]["notes"]:
        console.print(f"{record['name']}: {note}", style="yellow", markup=False, soft_wrap=True)


def _settings_line(settings: ReconstructSettings) -> str:
    tokens = "the model's own number of" if settings.num_tokens is None else f"{settings.num_tokens}"
    latents = "a draw from" if settings.sample_posterior else "the mode of"
    size = f"resolution {settings.resolution}" if settings.resolution else "the model's own resolution"
    return (
        f"{tokens} tokens, {latents} the posterior; {size}, {settings.surface.replace('_', ' ')}; "
        f"{settings.num_samples:,} points per surface in the comparison; seed {settings.seed}"
    )


def print_table(records: Sequence[Record], console: Console) -> None:
    """One row per shape, the means below, and the reasons of those that failed."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1), caption=LEGEND, caption_justify="left"
    )
    table.add_column("shape", overflow="fold")
    for name in HEADER:
        table.add_column(name, justify="right", no_wrap=True)
    done = [record for record in records if record["status"] == "ok"]
    for record in records:
        row = cells(record) if record["status"] == "ok" else ["failed"]
        table.add_row(record["name"], *row, end_section=record is records[-1])
    if len(done) > 1:
        table.add_row(f"mean of {len(done)}", *mean_cells(done), style="bold")
    # A number that is cut off is a wrong number: rather lines that are too long for the terminal.
    needed = Measurement.get(console, console.options.update(width=1000), table).maximum
    console.width = max(needed, console.width)
    console.print(table, markup=False)
    overlaps = [record["voxel_iou"] for record in done if "voxel_iou" in record]
    if overlaps:
        mean = sum(overlaps) / len(overlaps)
        worst = f", the least {min(overlaps):.4f}" if len(overlaps) > 1 else ""
        console.print(f"voxel IoU {mean:.4f}{worst}: of the voxels that the surface touches", markup=False)
    failed = [record for record in records if record["status"] != "ok"]
    if failed:
        console.print(f"{len(failed)} of {len(records)} failed:", markup=False)
    for record in failed:
        console.print(f"  {record['name']}: {record['reason']}", markup=False, soft_wrap=True)


def ensure_directory(path: Path) -> None:
    """Make a directory, or say in one line why not."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise CommandError(f"{path}: expected a directory to write to, but a file is in the way") from None
