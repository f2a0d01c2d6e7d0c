"""`fastshape pack`."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.progress import Progress

from fastshape import pipelines


def run(options: argparse.Namespace) -> None:
    console = Console(stderr=True, highlight=False)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("packing", total=None)
        report = pipelines.pack(
            options.input,
            options.output,
            shard_size=options.shard_size,
            on_sample=lambda done, total: progress.update(task, completed=done, total=total),
        )
    Console(highlight=False).print(
        f"{report.num_samples:,} shapes in {report.num_shards:,} shards, {report.num_bytes / 2**20:,.1f} MiB,"
        f" in {options.output}",
        markup=False,
        soft_wrap=True,
    )
