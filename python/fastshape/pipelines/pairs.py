"""Which prediction is compared with which target, and what is known of its latents."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastshape.geometry.formats import READERS
from fastshape.geometry.metrics import GROUPS


class PairError(ValueError):
    """What keeps two lists of meshes from being compared, with the names that it is about."""


@dataclass(frozen=True)
class Pair:
    """A reconstruction and what it should be.

    Attributes:
        name: unique in a run; the stem of the files, below the folders that were given.
        prediction, target: the files; None where it is missing.
        group: "watertight", "raw" or "visible", where a list says so.
        latent_bytes: the size of what the prediction was decoded from.
        latent_length: how many latent vectors that is.
    """

    name: str
    prediction: Path | None
    target: Path | None
    group: str | None = None
    latent_bytes: int | None = None
    latent_length: int | None = None


def find_pairs(
    predictions: str | os.PathLike[str],
    targets: str | os.PathLike[str] | None = None,
    *,
    allow_missing: bool = False,
) -> list[Pair]:
    """Match predictions with targets.

    Two files are one pair. In two folders, searched at any depth, a file's partner is the one at the same
    place with the same stem; the formats may differ. A single CSV lists pairs: columns `prediction` and
    `target` (relative to the list's folder), and optionally `name`, `group`, `latent_bytes`,
    `latent_length`. Hidden files and folders do not count.

    Args:
        predictions: file, folder or CSV.
        targets: file or folder; None for a CSV.
        allow_missing: a file without a partner becomes a pair that will count as failed, instead of an error.

    Raises:
        PairError: nothing to compare, a file without a partner, two files of one stem, a bad list.
    """
    first = Path(predictions)
    if targets is None:
        if first.suffix.lower() != ".csv":
            raise PairError(f"{first}: expected two meshes, two folders, or one .csv of pairs")
        pairs = _of_csv(first)
    else:
        second = Path(targets)
        for path in (first, second):
            if not path.exists():
                raise PairError(f"{path}: no such file or folder")
        if first.is_dir() != second.is_dir():
            raise PairError(f"{first} and {second}: expected two files or two folders")
        pairs = _of_folders(first, second) if first.is_dir() else [Pair(first.stem, first, second)]
    if not pairs:
        raise PairError(f"{first}: no meshes to compare ({' '.join(READERS)})")
    seen: set[str] = set()
    for pair in pairs:
        if Path(pair.name).is_absolute() or ".." in Path(pair.name).parts:
            raise PairError(f"the name '{pair.name}' leads out of the output folder")
        if pair.name in seen:
            raise PairError(f"two pairs have the name '{pair.name}'")
        seen.add(pair.name)
    lonely = [pair for pair in pairs if pair.prediction is None or pair.target is None]
    if lonely and not allow_missing:
        listed = "; ".join(
            f"{pair.name} has no {'prediction' if pair.prediction is None else 'target'}"
            for pair in lonely[:8]
        )
        more = f"; and {len(lonely) - 8} more" if len(lonely) > 8 else ""
        raise PairError(
            f"{len(lonely)} of {len(pairs)} have no partner: {listed}{more}; "
            "with --allow-missing they count as failed"
        )
    if len(lonely) == len(pairs):
        raise PairError("no prediction has a target of the same name")
    return pairs


def _of_folders(predictions: Path, targets: Path) -> list[Pair]:
    found = [_by_stem(predictions), _by_stem(targets)]
    return [Pair(name, found[0].get(name), found[1].get(name)) for name in sorted({*found[0], *found[1]})]


def _by_stem(folder: Path) -> dict[str, Path]:
    """Meshes below a folder, by their path in it without the extension."""
    found: dict[str, Path] = {}
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # a link to a folder above, or a second one to the same
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(files):
            path = Path(here) / file
            if file.startswith(".") or path.suffix.lower() not in READERS:
                continue
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise PairError(f"{found[name]} and {path}: two files of one name; which is meant?")
            found[name] = path
    return found


def _of_csv(path: Path) -> list[Pair]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise PairError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PairError(f"{path}: the list cannot be read ({error})") from error
    rows = csv.DictReader(io.StringIO(text))
    lacking = {"prediction", "target"} - set(rows.fieldnames or ())
    if lacking:
        got = ", ".join(rows.fieldnames or ["none"])
        raise PairError(f"{path}: expected the columns prediction and target, got {got}")
    pairs = []
    for number, row in enumerate(rows, 2):
        cells = {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}
        files = [path.parent / cells[key] if cells[key] else None for key in ("prediction", "target")]
        named = next((file for file in (files[1], files[0]) if file is not None), None)
        if named is None:
            continue
        group = cells.get("group") or None
        if group is not None and group not in GROUPS:
            raise PairError(
                f"{path}: line {number}: `group` must be one of {', '.join(GROUPS)}, got '{group}'"
            )
        sizes = [_whole(path, number, cells.get(key)) for key in ("latent_bytes", "latent_length")]
        prediction, target = (file if file is not None and file.exists() else None for file in files)
        pairs.append(Pair(cells.get("name") or named.stem, prediction, target, group, *sizes))
    return pairs


def _whole(path: Path, number: int, text: str | None) -> int | None:
    if not text:
        return None
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise PairError(f"{path}: line {number}: expected a whole number, got '{text}'")
    return value


def with_latents(pairs: Sequence[Pair], source: str | int) -> list[Pair]:
    """The pairs with the size of their latents.

    Args:
        pairs: those that say nothing themselves take what `source` says.
        source: a number of bytes for all; or a file: a CSV with the columns `name`, `bytes` and perhaps
            `length`, or JSON from names to bytes, or to objects with `bytes` and perhaps `length`. A file
            must know every pair.

    Raises:
        PairError: neither a number nor such a file, or a name that it lacks.
    """
    if isinstance(source, int) or source.isdecimal():
        return [_sized(pair, int(source), None) for pair in pairs]
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise PairError(f"{source}: expected a number of bytes, or a CSV or JSON file of them") from None
    table: dict[str, tuple[int, int | None]] = {}
    try:
        if path.suffix.lower() == ".json":
            for name, value in json.loads(text).items():
                size = value if isinstance(value, dict) else {"bytes": value}
                table[name] = (int(size["bytes"]), int(size["length"]) if size.get("length") else None)
        else:
            for row in csv.DictReader(io.StringIO(text)):
                table[row["name"]] = (int(row["bytes"]), int(row["length"]) if row.get("length") else None)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise PairError(f"{path}: expected the latents' bytes (and length) by name") from None
    lacking = [pair.name for pair in pairs if pair.latent_bytes is None and pair.name not in table]
    if lacking:
        raise PairError(f"{path}: no latent bytes for {', '.join(lacking[:8])}")
    return [_sized(pair, *table.get(pair.name, (0, None))) for pair in pairs]


def _sized(pair: Pair, count: int, length: int | None) -> Pair:
    if pair.latent_bytes is not None:
        return pair
    return Pair(pair.name, pair.prediction, pair.target, pair.group, count, pair.latent_length or length)
