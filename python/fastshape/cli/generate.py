"""`fastshape generate`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from fastshape import models
from fastshape.cli.app import CommandError
from fastshape.cli.models import num_parameters
from fastshape.cli.process import ensure_directory, progress_bar
from fastshape.geometry import Mesh, load, mesh_sheet, save
from fastshape.geometry.optional import require
from fastshape.models import Condition, NextScaleTransformer, Sampling
from fastshape.pipelines import (
    Encoded,
    encode_mesh,
    generate,
    load_latents,
    load_tokenizer,
    save_latents,
)
from fastshape.pipelines.shape_file import SUFFIX

SHEET = "sheet.png"
_TILE = 128


def run(options: argparse.Namespace) -> int:
    console = Console(stderr=True, highlight=False)
    if not options.no_picture:
        require("PIL.Image", "image", "drawing the sheet")  # before the work, not after it
    model = _model(options.model)
    tokenizer = load_tokenizer(model, options.tokenizer)
    console.print(
        f"{model.title}: {type(model).__name__}, {num_parameters(model):,} parameters; "
        f"tokens of {tokenizer.title}",
        markup=False,
        soft_wrap=True,
    )
    try:
        sampling = Sampling(options.guidance, options.temperature, options.top_k, options.top_p)
        if options.guidance and not model.config.conditions:
            raise ValueError(f"--guidance needs a model with a condition, and {model.title} has none")
        given = None
        if options.origin is not None:
            given = _first_scales(Path(options.origin), tokenizer, options.scales or 1, options.seed)
        elif options.scales is not None:
            raise ValueError("--scales is of the shape that --from gives")
    except ValueError as error:
        raise CommandError(str(error)) from None
    return _write(options, model, tokenizer, sampling, given, console)


def _write(
    options: argparse.Namespace,
    model: NextScaleTransformer,
    tokenizer: models.VAT,
    sampling: Sampling,
    given: Encoded | None,
    console: Console,
) -> int:
    folder = Path(options.output)
    ensure_directory(folder)
    made: list[Mesh | None] = []
    shapes = generate(
        model,
        tokenizer,
        range(options.seed, options.seed + options.number),
        condition=_condition(options, model),
        sampling=sampling,
        given=given,
        resolution=options.resolution,
        surface=options.surface,
    )
    with progress_bar(console) as bar:
        for shape in bar.track(shapes, total=options.number, description="generating"):
            made.append(shape.mesh)
            seed = shape.encoded.seed
            if shape.mesh is None:
                console.print(f"seed {seed}: a field without a surface", style="yellow", markup=False)
            else:
                save(shape.mesh, folder / f"seed-{seed:04}.glb")
                save_latents(shape.encoded, folder / f"seed-{seed:04}{SUFFIX}")
    if not options.no_picture:
        mesh_sheet(made, folder / SHEET, size=_TILE)
    count = sum(mesh is not None for mesh in made)
    sheet = "" if options.no_picture else f" and {folder / SHEET}"
    print(f"wrote {count} meshes to {folder}{sheet}")
    return 0 if count == len(made) else 1


def _first_scales(path: Path, tokenizer: models.VAT, scales: int, seed: int) -> Encoded:
    """Of a mesh, or of what `encode` or `generate` wrote."""
    if path.suffix.lower() == SUFFIX:
        return load_latents(path).coarser(scales)
    return encode_mesh(load(path), tokenizer, seed=seed).coarser(scales)


def _model(name: str | None) -> NextScaleTransformer:
    if name is None:
        there = [known for known, folder in models.shipped().items() if _is_generator(folder)]
        if not there:
            raise CommandError("no generator is shipped with this installation: give one, -m MODEL")
        name = there[0]
    return models.load(name, kind=NextScaleTransformer, device="cuda" if torch.cuda.is_available() else "cpu")


def _is_generator(folder: Path) -> bool:
    return f'"{NextScaleTransformer.__name__}"' in (folder / "config.json").read_text(encoding="utf-8")


def _condition(options: argparse.Namespace, model: NextScaleTransformer) -> Condition:
    """What the command line says of the shapes, one row for all.

    Raises:
        CommandError: a condition that the model does not take, or one that lacks its transformer.
    """
    asked = {"classes": options.label, "text": options.text, "image": options.image}
    for name, value in asked.items():
        if value is not None and name not in model.config.conditions:
            flag = "--class" if name == "classes" else f"--{name}"
            raise CommandError(f"{flag}: {model.title} takes no such condition")
    device = next(model.parameters()).device
    classes = None if options.label is None else torch.tensor([options.label], device=device)
    if classes is not None and not 0 <= options.label < model.config.num_classes:
        raise CommandError(f"--class must be in [0, {model.config.num_classes}), got {options.label}")
    text = image = None
    for name in ("text", "image"):
        if asked[name] is not None and getattr(options, f"{name}_model") is None:
            raise CommandError(f"--{name} needs --{name}-model, a folder or a hub id in the local cache")
    if options.text is not None:
        text = models.TextConditioner(options.text_model)([options.text]).to(device)
    if options.image is not None:
        image = models.ImageConditioner(options.image_model)(_picture(options.image)).to(device)
    found = Condition(classes, text, image)
    for name, tensor, shape in (
        ("text", text, (1, model.config.text_dim)),
        ("image", image, (1, model.config.image_tokens, model.config.image_dim)),
    ):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise CommandError(f"--{name}-model gives {tuple(tensor.shape)}, and {model.title} takes {shape}")
    return found


def _picture(path: str) -> Tensor:
    """(1, 4, H, W) in [0, 1]."""
    pillow = require("PIL.Image", "image", "reading a picture")
    try:
        picture = pillow.open(path).convert("RGBA")
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror or 'not a picture'}") from None
    width, height = picture.size
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(1, height, width, 4).permute(0, 3, 1, 2).float() / 255
