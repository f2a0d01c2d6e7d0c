"""The table, the JSON file, and the comparison of two of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

SCHEMA = 1
_KEY = ("family", "op", "shape", "dtype", "device")


def key(record: dict[str, Any]) -> tuple[str, ...]:
    """What makes a row of one file the same row as one of another file."""
    return tuple(str(record[name]) for name in _KEY)


def time_text(seconds: float) -> str:
    """Three digits with a unit."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def count_text(count: float | None, unit: str) -> str:
    """Three digits with a decimal prefix; a dash for None."""
    if count is None:
        return "-"
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= scale:
            return f"{count / scale:.3g} {prefix}{unit}"
    return f"{count:.3g} {unit}"


def _peer_lines(record: dict[str, Any]) -> str:
    lines = []
    for name, peer in record.get("peers", {}).items():
        if peer["status"] != "ok":
            lines.append(f"{name}: {peer['status']}")
            continue
        differs = "" if peer["agrees"] else " (differs)"
        note = f" ({peer['note']})" if "note" in peer else ""
        lines.append(f"{name}: {time_text(peer['seconds']['median'])} = {peer['ratio']:.3g}x{differs}{note}")
        if peer.get("memory_ratio"):
            lines.append(
                f"{name}, peak: {count_text(peer['memory_peak_bytes'], 'B')} = {peer['memory_ratio']:.3g}x"
            )
        for count, ratio in peer.get("count_ratios", {}).items():
            lines.append(f"{name}, {count}: {count_text(peer['counts'][count], 'B')} = {ratio:.3g}x")
    for quoted in record.get("quoted", []):
        ratio = "" if quoted["ratio"] is None else f" = {quoted['ratio']:.3g}x"
        memory = f", {count_text(quoted['memory'], 'B')}" if quoted.get("memory") else ""
        lines.append(
            f"quoted {quoted['name']}: {time_text(quoted['seconds'])}{ratio}{memory}"
            f" ({quoted['machine']}; {quoted['source']})"
        )
    if "target" in record:
        target = record["target"]
        state = {True: "met", False: "MISSED", None: "not measured"}[target["met"]]
        measured = "" if target["measured"] is None else f"{target['measured']:.2f}x, "
        lines.append(f"target <= {target['ratio']:g}x {target['peer']}: {measured}{state}")
    return "\n".join(lines)


def _memory_lines(record: dict[str, Any]) -> str:
    peak = record.get("memory_peak_bytes")
    lines = [] if peak is None else [count_text(peak, "B")]
    lines += [f"{name} {count_text(count, 'B')}" for name, count in record.get("counts", {}).items()]
    return "\n".join(lines) or "-"


def line(record: dict[str, Any]) -> str:
    """A row in short, printed as soon as it is measured."""
    name = f"{record['op']} {record['shape']} {record['dtype']} {record['device']}"
    if record["status"] != "ok":
        return f"{name}: {record['status']}"
    ratios = [f"{peer} {p['ratio']:.3g}x" for peer, p in record["peers"].items() if p["status"] == "ok"]
    return f"{name}: {', '.join([time_text(record['seconds']['median']), *ratios])}"


def print_table(console: Console, records: Sequence[dict[str, Any]]) -> None:
    """One line a row; a peer's ratio is its time over ours."""
    table = Table(
        title="fastshape benchmarks", caption="peer ratio = its time (or memory) / ours", show_lines=True
    )
    for name in ("op", "shape", "dtype", "device"):
        table.add_column(name, overflow="fold")
    for name in ("median", "IQR", "CPU s", "bytes", "flop", "of limit", "memory"):
        table.add_column(name, justify="right")
    table.add_column("peers", overflow="fold")
    for record in records:
        head = [record["op"], record["shape"], record["dtype"], record["device"]]
        if record["status"] != "ok":
            last = record["error"].strip().splitlines()[-1]
            table.add_row(*head, f"[bold red]{record['status']}[/]", *[""] * 6, escape(last))
            continue
        own = record["seconds"]
        share = (
            f"{100 * record['share_of_limit']:.3g}% {record['bound']}" if "share_of_limit" in record else "-"
        )
        table.add_row(
            *head,
            time_text(own["median"]),
            f"{100 * own['spread']:.{0 if own['spread'] > 0.1 else 1}f}%",
            time_text(own["cpu"]),
            count_text(record["bytes"], "B"),
            count_text(record["flops"], "flop"),
            share,
            _memory_lines(record),
            escape(_peer_lines(record)),
        )
    console.print(table)


def load(path: Path) -> dict[str, Any]:
    """Read a results file."""
    with path.open() as file:
        loaded = json.load(file)
    if not isinstance(loaded, dict) or loaded.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a results file of schema {SCHEMA}")
    return loaded


def write(path: Path, report: dict[str, Any]) -> None:
    """Write a results file. Rows of the older file that were not run now stay, with their commit."""
    rows = {key(r): r for r in load(path)["rows"]} if path.exists() else {}
    rows.update({key(r): r for r in report["rows"]})
    ordered = [rows[k] for k in sorted(rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**report, "schema": SCHEMA, "rows": ordered}, indent=1) + "\n")


def print_comparison(console: Console, old: dict[str, Any], records: Sequence[dict[str, Any]]) -> int:
    """Print each row's change against an older file and return the number of rows that became slower.

    A change counts only beyond 5% and beyond both spreads together.
    """
    before = {key(r): r for r in old["rows"]}
    table = Table(title=f"against {old['machine']['name']}, commit {old['versions']['commit']}")
    for name in ("op", "shape", "dtype", "device"):
        table.add_column(name, overflow="fold")
    for name in ("before", "now", "change", "CPU change"):
        table.add_column(name, justify="right")
    slower = 0
    for record in records:
        head = [record["op"], record["shape"], record["dtype"], record["device"]]
        earlier = before.get(key(record))
        if earlier is None or earlier["status"] != "ok" or record["status"] != "ok":
            states = ["new" if earlier is None else earlier["status"], record["status"]]
            table.add_row(*head, *states, "-", "-")
            continue
        was, now = earlier["seconds"], record["seconds"]
        change = now["median"] / was["median"] - 1
        noise = max(0.05, was["spread"] + now["spread"])
        style = "red" if change > noise else "green" if change < -noise else "dim"
        slower += change > noise
        cpu = f"{100 * (now['cpu'] / was['cpu'] - 1):+.1f}%" if was["cpu"] > 0 else "-"
        table.add_row(
            *head,
            time_text(was["median"]),
            time_text(now["median"]),
            f"[{style}]{100 * change:+.1f}%[/]",
            cpu,
        )
    console.print(table)
    return slower
