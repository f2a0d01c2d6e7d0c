"""Where the result of each input goes: one file to one file, anything else into a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastshape.cli.app import CommandError
from fastshape.pipelines.inputs import LISTS, Item, find_items
from fastshape.pipelines.shape_file import SUFFIX


@dataclass(frozen=True)
class Planned:
    """An input and its result. `name`: the result's path below the output folder, without its suffix."""

    name: str
    source: Path
    output: Path


@dataclass(frozen=True)
class Plan:
    """All of a command's work. `folder`: where the results go together; None for one file to one file."""

    items: list[Planned]
    folder: Path | None


def plan(
    inputs: Sequence[str],
    output: Path,
    *,
    kinds: Sequence[str],
    result: Callable[[Path], str],
    find: Callable[[str, Path], list[Item]] | None = None,
) -> Plan:
    """Finds the inputs and names the results.

    Args:
        inputs: files, folders (searched at any depth) and lists, as `find_items` takes them.
        output: a file for one file; else a folder.
        kinds: suffixes of results, e.g. (".fsh",).
        result: the file name of an input's result.
        find: instead of `find_items`, of one input.

    Raises:
        CommandError: the output cannot be written, or would replace an input or another output.
        PrepareError: an input that does not exist, or nothing in it.
    """
    find = find or (lambda given, output: find_items([given], output))
    single = len(inputs) == 1 and not _holds_many(Path(inputs[0]))
    is_file = output.suffix.lower() in kinds and not output.is_dir()
    if output.suffix and not is_file and not output.is_dir():
        raise CommandError(
            f"{output}: expected a directory or one of {' '.join(kinds)}, got '{output.suffix}'"
        )
    if is_file and not single:
        many = f"{len(inputs)} inputs need" if len(inputs) > 1 else f"all of {inputs[0]} needs"
        raise CommandError(f"{output}: {many} a directory, not one file")
    found: list[Planned] = []
    for given in inputs:
        for item in find(given, output):
            place = _place(given, item)
            target = output if is_file else output / place.parent / result(Path(place.name))
            name = place.stem if is_file else target.relative_to(output).with_suffix("").as_posix()
            found.append(Planned(name, _source(given, item), target))
    if len({item.name for item in found}) < len(found):
        raise CommandError(f"{output}: two inputs have one name, their results would replace each other")
    sources = {os.path.realpath(item.source) for item in found}
    for planned in found:
        if os.path.realpath(planned.output) in sources:
            raise CommandError(f"{planned.output}: the result would replace the input; choose another output")
    return Plan(found, None if single else output)


def _holds_many(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in LISTS


def _source(given: str, item: Item) -> Path:
    """The file as the user would write it."""
    path = Path(given)
    if path.is_dir():
        return path / item.name
    return Path(item.path) if _holds_many(path) else path


def _place(given: str, item: Item) -> Path:
    """Where an input stands below what was given: by its name alone, if it was named itself."""
    path = Path(item.name)
    if not _holds_many(Path(given)) or path.is_absolute() or ".." in path.parts:
        return Path(path.name)
    return path


def find_latents(given: str, output: Path) -> list[Item]:
    """The latents of a folder, at any depth, or the file itself.

    Raises:
        CommandError: a folder without any.
    """
    path = Path(given)
    if not path.is_dir():
        return [Item(os.path.abspath(path), given)]
    found = [file for file in sorted(path.rglob(f"*{SUFFIX}")) if not file.name.startswith(".")]
    if not found:
        raise CommandError(f"{given}: no latents in it (*{SUFFIX})")
    return [Item(os.path.abspath(file), file.relative_to(path).as_posix()) for file in found]
