"""`fastshape evaluate`."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fastshape.cli.app import CommandError
from fastshape.cli.process import ensure_directory
from fastshape.geometry.optional import require
from fastshape.pipelines.evaluate import EvaluationReport, evaluate_pairs
from fastshape.pipelines.pairs import find_pairs, with_latents
from fastshape.pipelines.report import draw_pairs, group_line, headline, level_names, table_rows, write_page
from fastshape.pipelines.summary import Summary, worst

_WORST = 5
_EVERY = 10.0  # seconds between the lines where there is no terminal


def run(options: argparse.Namespace) -> int:
    console = Console(stderr=True, highlight=False)
    if options.resume and options.output is None:
        raise CommandError("--resume needs the folder of the earlier run: -o DIR")
    pictures_wanted = options.output is not None and not options.no_picture and options.pictures > 0
    if pictures_wanted:
        require("PIL.Image", "image", "drawing a report")  # before the comparisons, not after them
    pairs = find_pairs(options.predictions, options.targets, allow_missing=options.allow_missing)
    if options.latent_bytes is not None:
        pairs = with_latents(pairs, options.latent_bytes)
    if options.output is not None:
        ensure_directory(Path(options.output))
    try:
        with _progress(console) as progress:
            task = progress.add_task("comparing", total=len(pairs))
            last, count = time.monotonic(), 0

            def done(record: dict[str, Any]) -> None:
                nonlocal last, count
                progress.advance(task)
                count += 1
                if not console.is_terminal and time.monotonic() - last > _EVERY:
                    last = time.monotonic()
                    console.print(f"{count:,} of {len(pairs):,} pairs", markup=False)
                if record["status"] != "ok":
                    progress.console.print(
                        f"{record['name']}: {record['reason']}", style="red", markup=False, soft_wrap=True
                    )

            report = evaluate_pairs(
                pairs,
                options.output,
                options.preset,
                num_samples=options.samples,
                seed=options.seed,
                group=options.group,
                sharp_normals=options.sne,
                level_resolution=options.level_resolution,
                resume=options.resume,
                on_item=done,
                on_start=lambda pair: progress.update(task, description=pair.name[-40:]),
            )
    except KeyboardInterrupt:
        again = ""
        if options.output is not None:
            words = [word for word in options.words if word != "--resume"]
            again = f"; to go on: {shlex.join(['fastshape', *words, '--resume'])}"
        raise KeyboardInterrupt(f"interrupted{again}") from None
    if report.reused:
        console.print(f"{report.reused} of {len(pairs)} taken from the earlier run")
    print_report(report, Console(highlight=False))
    if options.output is not None:
        pictures = {}
        if pictures_wanted:
            with _progress(console) as progress:
                task = progress.add_task("drawing", total=min(options.pictures, len(pairs)))
                pictures = draw_pairs(
                    report,
                    options.pictures,
                    up=options.up,
                    on_item=lambda name: progress.update(
                        task, advance=1, description=f"drawing {name[-32:]}"
                    ),
                )
        page = Path(options.output) / "index.html"
        write_page(report, page, pictures, title=options.title or f"{options.predictions}")
        console.print(
            f"wrote {page}, shapes.csv, summary.json and shapes/ beside it", soft_wrap=True, markup=False
        )
    return 1 if report.failures else 0


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def print_report(report: EvaluationReport, console: Console) -> None:
    """Print what a paper can cite: protocol, a table for each group, the worst shapes, what failed."""
    console.print(headline(report), soft_wrap=True, markup=False)
    for summary in report.summaries():
        for table in _tables(summary, report):
            # A number that is cut off is a wrong number: rather lines that are too long for the terminal.
            needed = Measurement.get(console, console.options.update(width=1000), table).maximum
            width, console.width = console.width, max(needed, console.width)
            console.print(table, markup=False)
            console.width = width
    key = report.protocol.columns[0]
    ranked = worst(report.records, key.key, _WORST)
    if len(ranked) > 1:
        named = ", ".join(f"{r['name']} {key.format(r['values'][key.key])}" for r in ranked)
        console.print(f"worst by {key.label}: {named}", soft_wrap=True, markup=False)
    failures = report.failures
    if failures:
        console.print(
            f"{len(failures)} of {len(report.records)} failed and are in no mean:",
            soft_wrap=True,
            markup=False,
        )
        for record in failures:
            console.print(f"  {record['name']}: {record['reason']}", soft_wrap=True, markup=False)


def _tables(summary: Summary, report: EvaluationReport) -> list[Table]:
    """The group's table, and one by level of detail where there are several."""
    rows = table_rows(summary, report.protocol)
    several = len(summary.levels) > 1
    level = "" if several or not summary.levels else f"; all of level L{next(iter(summary.levels))}"
    tables = [_table(group_line(summary) + level, ["mean", "95 % interval", "deviation", "floor"])]
    if several:
        title = f"{summary.group}, by level of detail: mean ± deviation"
        tables.append(_table(title, level_names(summary)))
    for number, row in enumerate(rows):
        few = "" if row.count == summary.count else f" ({row.count})"
        style = "bold" if row.own else ""
        last = row.own and number + 1 < len(rows) and not rows[number + 1].own
        tables[0].add_row(
            f"{row.label} {row.better}{few}",
            *(row.mean, row.interval, row.std, row.floor),
            style=style,
            end_section=last,
        )
        if several:
            tables[1].add_row(f"{row.label} {row.better}", *row.levels, style=style, end_section=last)
    return tables


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 0, 0, 1),
        title=title,
        title_justify="left",
        title_style="bold",
    )
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table
