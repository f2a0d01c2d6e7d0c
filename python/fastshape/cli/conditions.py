"""`fastshape conditions`."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

import torch
from rich.console import Console

from fastshape import models, pipelines
from fastshape.cli.app import CommandError
from fastshape.cli.prepare import Watch, print_report, rank_of


def run(options: argparse.Namespace) -> int:
    if options.image_model is None and options.text_model is None:
        raise CommandError(
            "what are conditions to be made of? --image-model PATH, --text-model PATH, or both"
        )
    if (options.text_model is None) != (options.captions is None):
        raise CommandError("--text-model and --captions come together")
    console = Console(stderr=True, highlight=False)
    rank = rank_of(options)
    captions = None if options.captions is None else pipelines.read_captions(options.captions)
    shapes = pipelines.shape_sources(options.input, captions)
    untold = sum(shape.caption is None for shape in shapes)
    if captions is not None and untold:
        console.print(
            f"{untold:,} of {len(shapes):,} shapes have no caption: their text is not known", style="yellow"
        )
    device = options.device or "cpu"
    if options.device is None and torch.cuda.is_available():  # torchrun's processes share the GPUs
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    image = text = None
    if options.image_model is not None:
        image = models.ImageConditioner(options.image_model).to(device)
    if options.text_model is not None:
        text = models.TextConditioner(options.text_model).to(device)
    with Watch(console, rank, "conditions") as watch:
        try:
            report = pipelines.make_conditions(
                shapes,
                options.output,
                image=image,
                text=text,
                views=options.views,
                picture_size=options.picture_size,
                up=options.up,
                seed=options.seed,
                meshes=options.meshes,
                rank=rank,
                on_start=watch.start,
                on_item=watch.item,
            )
        except pipelines.PrepareInterrupted as stopped:
            watch.stop()
            again = shlex.join(["fastshape", *options.words])
            raise KeyboardInterrupt(f"{stopped}; to go on: {again}") from None
    print_report(
        report,
        Path(options.output),
        Console(highlight=False),
        done="made",
        result="conditions of {:,} shapes",
    )
    return 1 if options.strict and report.failures else 0
