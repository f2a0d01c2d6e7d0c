"""`fastshape decode`."""

from __future__ import annotations

import argparse
from functools import lru_cache
from pathlib import Path

from rich.console import Console

from fastshape.cli.app import CommandError
from fastshape.cli.encode import each, token_words
from fastshape.cli.models import load_model
from fastshape.cli.plan import Planned, find_latents, plan
from fastshape.geometry import save
from fastshape.geometry.formats import WRITERS
from fastshape.models import Autoencoder, CheckpointError
from fastshape.pipelines import Encoded, LatentsError, decode_latents, load_latents


def run(options: argparse.Namespace) -> int:
    work = plan(
        options.input,
        Path(options.output),
        kinds=tuple(WRITERS),
        result=lambda path: f"{path.stem}.glb",
        find=find_latents,
    )
    load = lru_cache(1)(load_model)
    weights = tuple(options.weights)

    def decode(item: Planned) -> str:
        encoded = load_latents(item.source, scales=options.scales)
        if options.model or weights:
            model = load(options.model, weights)
        else:
            model = _maker(encoded, item, load)
        try:
            mesh = decode_latents(
                encoded,
                model,
                resolution=options.resolution,
                surface=options.surface,
                prune=options.prune,
                memory=options.memory,
            )
        except LatentsError as error:
            raise LatentsError(f"{item.source}: {error}") from None
        save(mesh, item.output)
        return f"{item.output}: {mesh.num_faces:,} faces from {token_words(encoded)}"

    return each(work, decode, "decoding", Console(stderr=True, highlight=False))


def _maker(encoded: Encoded, item: Planned, load: object) -> Autoencoder:
    """The weights that made the latents, found by what they were loaded by then."""
    try:
        return load(encoded.weights)  # type: ignore[operator, no-any-return]
    except CheckpointError as error:
        raise CommandError(
            f"{item.source}: made by {encoded.weights} ({encoded.model}), which is not to be found here; "
            f"say where it is: -m MODEL, or -m FAMILY --weights FILE ({error})"
        ) from None
