"""`fastshape prepare`."""

from __future__ import annotations

import argparse
import os
import shlex
import time
import typing
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fastshape import pipelines
from fastshape.cli.app import CommandError
from fastshape.geometry import PreparedFolder, PrepareSpec, contact_sheet
from fastshape.geometry.optional import require
from fastshape.pipelines import ItemResult, PrepareReport, Rank

_EVERY = 10.0  # seconds between the lines where there is no terminal
_SHOWN = 20  # failures that are printed as they come
_EXAMPLES = 3  # of each kind in the report
_TILES = 64  # of the contact sheet


def run(options: argparse.Namespace) -> int:
    console = Console(stderr=True, highlight=False)
    spec = specification(options)
    rank = rank_of(options)
    if options.contact_sheet:
        require("PIL.Image", "image", "drawing a picture")  # before the work, not after it
    with Watch(console, rank, "preparing") as watch:
        try:
            report = pipelines.prepare(
                options.input,
                options.output,
                spec,
                workers=options.workers,
                threads=options.threads,
                timeout=options.timeout or None,
                memory=options.memory or None,
                retry_failed=options.retry_failed,
                rank=rank,
                on_start=watch.start,
                on_item=watch.item,
            )
        except pipelines.PrepareInterrupted as stopped:
            watch.stop()
            again = shlex.join(["fastshape", *options.words])
            raise KeyboardInterrupt(f"{stopped}; to go on: {again}") from None
    print_report(report, Path(options.output), Console(highlight=False))
    if options.contact_sheet and report.num_indexed:
        _draw(Path(options.output), Path(options.contact_sheet), console)
    return 1 if options.strict and report.failures else 0


def _draw(prepared: Path, picture: Path, console: Console) -> None:
    shapes = PreparedFolder(prepared)
    count = min(len(shapes), _TILES)
    contact_sheet((shapes[i * len(shapes) // count] for i in range(count)), picture)
    console.print(f"wrote {picture}", markup=False, soft_wrap=True)


def specification(options: argparse.Namespace) -> PrepareSpec:
    """The specification of the command line: a file or a preset, then --set.

    Raises:
        CommandError: a file that is none, an unknown field, or a bad value.
    """
    try:
        overrides = dict(_override(text) for text in options.set)
        if options.spec is None:
            return PrepareSpec.preset(options.preset or "vecset", **overrides)
        if options.preset is not None:
            raise CommandError("--preset and --spec exclude one another")
        text = Path(options.spec).read_text(encoding="utf-8")
        return PrepareSpec.from_dict({**PrepareSpec.from_json(text).to_dict(), **overrides})
    except (ValueError, TypeError) as error:
        raise CommandError(str(error)) from None


def _override(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    name, value = name.strip(), value.strip()
    if not equals:
        raise CommandError(f"--set {text}: expected NAME=VALUE")
    expected = typing.get_type_hints(PrepareSpec).get(name)
    if expected is None:
        PrepareSpec.preset("vecset", **{name: value})  # raises, with the names that there are
    if value.lower() in ("none", "null"):
        return name, None
    try:
        if typing.get_origin(expected) is tuple:
            return name, tuple(float(part) for part in value.split(",") if part.strip())
        if expected is bool:
            return name, {"true": True, "false": False}[value.lower()]
        for kind in (int, float):
            if kind in (expected, *typing.get_args(expected)):
                return name, kind(value)
    except (ValueError, KeyError):
        raise CommandError(f"--set {text}: the value does not fit `{name}`") from None
    return name, value


def rank_of(options: argparse.Namespace) -> Rank:
    """This process among those that share the work.

    Raises:
        CommandError: half of it is said.
    """
    if (options.rank is None) != (options.world_size is None):
        raise CommandError("--rank and --world-size come together")
    if options.rank is not None:
        return Rank(options.rank, options.world_size, "the command line")
    return pipelines.default_rank(os.environ)


class Watch:
    """Progress of a run on stderr, with what fails: a bar on a terminal, else a line now and then."""

    def __init__(self, console: Console, rank: Rank, verb: str) -> None:
        self._console, self._rank, self._verb = console, rank, verb
        self._report = PrepareReport()
        self._begin = self._last = time.monotonic()
        self._before = 0
        self._shown = 0
        self._progress: Progress | None = None

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def start(self, report: PrepareReport) -> None:
        self._report = report
        share = ""
        if self._rank.world_size > 1:
            share = f" of rank {self._rank.rank} of {self._rank.world_size}, by {self._rank.source}"
        self._say(f"{report.total:,} items{share}")
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn(self._verb),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[failed]}"),
                console=self._console,
            )
            self._bar = self._progress.add_task("", total=report.total, rate="", failed="")
            self._progress.start()

    def item(self, result: ItemResult) -> None:
        if result.status == "failed":
            self._shown += 1
            if self._shown <= _SHOWN:
                self._say(f"{result.item.name}: {result.reason}", "yellow")
            if self._shown == _SHOWN:
                self._say("further failures are in the status file", "yellow")
        if result.status in ("done", "failed before"):
            self._before += 1
            if self._progress is None:
                return
        ended = self._report.counts.total()
        if self._progress is not None:
            failed = self._report.counts["failed"]
            self._progress.update(
                self._bar,
                completed=ended,
                rate=f"{self._rate():.1f}/s",
                failed=f"{failed:,} failed" if failed else "",
            )
        elif time.monotonic() - self._last > _EVERY:
            self._last = time.monotonic()
            left = (self._report.total - ended) / max(self._rate(), 1e-9)
            self._say(
                f"{ended:,} of {self._report.total:,} items, {self._rate():.1f}/s, "
                f"{_duration(left)} left, {self._report.counts['failed']:,} failed"
            )

    def _rate(self) -> float:
        return (self._report.counts.total() - self._before) / max(time.monotonic() - self._begin, 1e-3)

    def _say(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


_WORDS = {
    "ok": "{}",
    "done": "{} before",
    "duplicate": "duplicates of others",
    "failed": "failed",
    "failed before": "failed before (--retry-failed tries again)",
}
_KINDS = {
    "missing": "a mesh that is gone, or another now",
    "mesh": "not a mesh with a surface",
    "timeout": "too slow",
    "memory": "too much memory",
    "crash": "the process died",
    "error": "an error of ours",
}


def print_report(
    report: PrepareReport,
    output: Path,
    console: Console,
    *,
    done: str = "prepared",
    result: str = "{:,} prepared shapes",
) -> None:
    """Counts, then the failures by kind with a few examples.

    Args:
        report: of a run.
        output: its folder.
        console: to print on.
        done: what became of an item, in a word.
        result: what is in the folder, for their number.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("items")
    table.add_column(f"{report.total:,}", justify="right")
    for status, words in _WORDS.items():
        if report.counts[status]:
            table.add_row(words.format(done), f"{report.counts[status]:,}")
    console.print(table)
    for kind, words in _KINDS.items():
        failures = [failure for failure in report.failures if failure.kind == kind]
        if failures:
            console.print(f"{words}: {len(failures):,}", markup=False, soft_wrap=True)
        for failure in failures[:_EXAMPLES]:
            console.print(f"  {failure.item.name}: {failure.reason}", markup=False, soft_wrap=True)
        if len(failures) > _EXAMPLES:
            console.print(
                f"  and {len(failures) - _EXAMPLES:,} more in {output}/status-*.jsonl", markup=False
            )
    peak = f", {report.peak_memory / 2**20:,.0f} MiB at most" if report.peak_memory else ""
    console.print(
        f"{_duration(report.seconds)}, {_duration(report.work_seconds)} of work{peak}; "
        f"{result.format(report.num_indexed)} in {output}",
        markup=False,
        soft_wrap=True,
    )
