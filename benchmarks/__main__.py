"""The command: ``python -m benchmarks [filters] [--compare OLD.json]``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from . import machine, measure, peers, registry, report, runner

_RESULTS = Path(__file__).resolve().parent / "results"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    for name in ("family", "op", "shape", "dtype"):
        p.add_argument(
            f"--{name}", action="append", default=[], help=f"rows whose {name} contains this; repeatable"
        )
    p.add_argument(
        "--device", action="append", choices=("cpu", "cuda"), help="default: every device of this machine"
    )
    p.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PATH", help="code of a peer that is not on PyPI"
    )
    p.add_argument("--threads", type=int, help="threads for torch and fastshape; default: torch's own choice")
    p.add_argument("--seconds", type=float, default=2.0, help="clock time for each contender of a row")
    p.add_argument(
        "--output", type=Path, help="JSON file to write; default: benchmarks/results/<machine>.json"
    )
    p.add_argument("--no-output", action="store_true", help="write no file")
    p.add_argument(
        "--compare", type=Path, metavar="OLD.json", help="print the changes against an earlier file"
    )
    p.add_argument("--list", action="store_true", help="print the rows and stop")
    return p


def main(arguments: Sequence[str] | None = None, rows: Sequence[registry.Row] | None = None) -> int:
    """Run the chosen rows; 1 if any of them failed or is wrong, 2 if there is nothing to run."""
    options = parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 200)
    for argument in options.peer:
        peers.add_path(argument)
    old = report.load(options.compare) if options.compare else None
    chosen = registry.select(
        registry.collect() if rows is None else rows,
        family=options.family,
        op=options.op,
        shape=options.shape,
        dtype=options.dtype,
    )
    devices = options.device or (["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
    if options.list:
        for row in chosen:
            console.print(
                f"{row.family:12} {row.op:32} {row.shape:24} {row.dtype:10} {','.join(row.devices)}"
            )
        return 0
    if "cuda" in devices and not torch.cuda.is_available():
        console.print("torch sees no GPU on this machine", style="bold red")
        return 2
    work = [(row, torch.device(device)) for row in chosen for device in devices if device in row.devices]
    if not work:
        console.print("no row matches", style="bold red")
        return 2
    if options.threads:
        torch.set_num_threads(options.threads)

    about = {
        "machine": machine.describe(),
        "versions": machine.versions(),
        "threads": torch.get_num_threads(),
    }
    limits = measure.Limits()
    output = None if options.no_output else options.output or _RESULTS / f"{machine.slug()}.json"
    records: list[dict[str, Any]] = []
    stopped = False
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # a time limit leaves what was measured before it
    try:
        for row, device in work:
            record = runner.run_row(row, device, limits, seconds=options.seconds)
            records.append(record)
            console.print(report.line(record), style="dim", highlight=False, markup=False)
            if record["status"] != "ok":
                console.print(record["error"], style="red", markup=False)
            if output is not None:
                report.write(output, {**about, "limits": limits.as_dict(), "rows": records})
    except KeyboardInterrupt:
        stopped = True

    report.print_table(console, records)
    for name, found in limits.as_dict().items():
        rates = ", ".join(
            f"{dtype} matrix product {report.count_text(rate, 'flop/s')}"
            for dtype, rate in found["matmul_flops_per_second"].items()
        )
        bandwidth = found["copy_bytes_per_second"]
        copy = f"copy {report.count_text(bandwidth, 'B/s')}" if bandwidth else ""
        console.print(f"limits of {name}: {', '.join(t for t in (copy, rates) if t)}", highlight=False)
    if old is not None:
        slower = report.print_comparison(console, old, records)
        console.print(f"{slower} of {len(records)} rows slower than before", highlight=False)
    if output is not None and records:
        console.print(f"written: {output}", highlight=False)
    if stopped:
        console.print(f"stopped after {len(records)} of {len(work)} rows", style="bold red")
    bad = sum(record["status"] != "ok" for record in records)
    if bad:
        console.print(f"{bad} of {len(records)} rows failed or are wrong", style="bold red")
    return 1 if bad or stopped else 0


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # a time limit leaves what was measured before it
    sys.exit(main())
