"""`fastshape encode`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from fastshape.cli.app import CommandError, user_error
from fastshape.cli.models import default_model, load_model, preparation_notes
from fastshape.cli.plan import Plan, Planned, plan
from fastshape.cli.process import ensure_directory, progress_bar
from fastshape.geometry import load
from fastshape.pipelines import Encoded, encode_mesh, save_latents, token_counts
from fastshape.pipelines.shape_file import SUFFIX


def run(options: argparse.Namespace) -> int:
    work = plan(
        options.input, Path(options.output), kinds=(SUFFIX,), result=lambda path: f"{path.stem}{SUFFIX}"
    )
    model = load_model(options.model or (None if options.weights else default_model()), options.weights)
    try:
        token_counts(model, options.tokens)
    except ValueError as error:
        raise CommandError(f"--tokens {options.tokens}: {error}") from None
    console = Console(stderr=True, highlight=False)

    def encode(item: Planned) -> str:
        encoded = encode_mesh(
            load(item.source),
            model,
            resolution=options.resolution,
            num_tokens=options.tokens,
            sample_posterior=options.sample,
            seed=options.seed,
        )
        save_latents(encoded, item.output, dtype=torch.float16 if options.half else torch.float32)
        return f"{item.output}: {token_words(encoded)}, {size_words(item.output, item.source)}"

    with preparation_notes(console):
        return each(work, encode, "encoding", console)


def token_words(encoded: Encoded) -> str:
    """How many tokens a shape has: of each level, or of how many scales."""
    if encoded.codes is not None:
        return f"{encoded.num_tokens} tokens of {encoded.codes.num_scales} scales"
    return " + ".join(map(str, encoded.tokens)) + " tokens"


def size_words(file: Path, source: Path) -> str:
    """A file's size, and how many times smaller or larger than its source it is."""
    size, before = file.stat().st_size, source.stat().st_size
    ratio, word = (before / size, "smaller") if size <= before else (size / before, "larger")
    return f"{size:,} B, {ratio:,.{0 if ratio >= 10 else 1}f}x {word} than {source.name}"


def each(work: Plan, do: Callable[[Planned], str], verb: str, console: Console) -> int:
    """Does something with every item and prints what came of it; of several, one that fails ends nothing.

    Returns:
        The exit code: 1 if one of several failed.
    """
    out = Console(highlight=False)
    ensure_directory(work.items[0].output.parent if work.folder is None else work.folder)
    if work.folder is None:
        with console.status(f"{verb} {work.items[0].name}"):
            said = do(work.items[0])
        out.print(said, markup=False, soft_wrap=True)
        return 0
    failed = 0
    with progress_bar(console) as bar:
        task = bar.add_task(verb, total=len(work.items))
        for item in work.items:
            bar.update(task, description=item.name[-40:])
            try:
                item.output.parent.mkdir(parents=True, exist_ok=True)
                said = do(item)
            except Exception as error:
                reason = user_error(error)
                if reason is None:
                    raise
                failed += 1
                reason = reason if str(item.source) in reason else f"{item.source}: {reason}"
                console.print(reason, style="red", markup=False, soft_wrap=True)
            else:
                out.print(said, markup=False, soft_wrap=True)
            bar.advance(task)
    if failed:
        console.print(f"{failed} of {len(work.items)} failed", markup=False)
    return 1 if failed else 0
