"""`fastshape info`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from fastshape import _C, __version__, models
from fastshape.cli.models import default_model, num_parameters, taken
from fastshape.geometry import PrepareSpec, load, shapes
from fastshape.geometry.formats import READERS
from fastshape.models import Autoencoder, NextScaleTransformer, SparseStructureVAE, TripoSFVAE
from fastshape.pipelines import load_latents, preparation_of
from fastshape.pipelines.shape_file import SUFFIX
from fastshape.pipelines.sparse_inputs import NUM_POINTS
from fastshape.pipelines.structure import structure_preparation
from fastshape.train import recipes

_EXTRAS = {
    "geom": ("manifold3d", "igl", "scipy"),
    "image": ("PIL", "transformers"),
    "demo": ("manifold3d", "PIL"),
    "train": ("tensorboard",),
}

_CLOUDS = {"surface": "{} points on the surface", "sharp": "{} on sharp edges"}
_FRAMES = {
    "box": "the mesh's box brought to [-{0}, {0}]^3",
    "sphere": "the farthest vertex brought to a distance of {0} from the box's middle",
}


def run(options: argparse.Namespace) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    found = facts() if options.target is None else facts_of(options.target)
    for name, value in found.items():
        table.add_row(name, value)
    Console(highlight=False).print(table, markup=False)


def facts_of(target: str) -> dict[str, str]:
    """What a model, a file of latents or a mesh is, by name.

    Raises:
        CheckpointError, LatentsError, MeshError: it is none, or cannot be read.
    """
    path = Path(target)
    if not path.is_dir() and target not in models.shipped():
        if path.suffix.lower() == SUFFIX:
            return latents_facts(path)
        if path.suffix.lower() in READERS or path.is_file():
            return mesh_facts(path)
    model = models.load(target)
    return generator_facts(model) if isinstance(model, NextScaleTransformer) else model_facts(taken(model))


def facts() -> dict[str, str]:
    """What is worth knowing in a bug report, by name."""
    built = f"architectures {_C.cuda_architectures}" if _C.cuda_architectures else "not in this build"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu = (
            f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory >> 30} GiB"
        )
    else:
        gpu = "none that torch can use"
    extras = []
    for extra, modules in _EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        extras.append(f"{extra} " + (f"lacks {', '.join(missing)}" if missing else "complete"))
    shipped = [f"{name} (default)" if name == default_model() else name for name in models.shipped()]
    return {
        "fastshape": __version__,
        "torch": str(torch.__version__),
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "compiler": _C.compiler,
        "CUDA kernels": built,
        "GPU": gpu,
        "CPU kernels": f"{_C.instruction_set()}, {torch.get_num_threads()} threads",
        "extras": "; ".join(extras),
        "shipped weights": ", ".join(shipped) or "none",
        "recipes": ", ".join(recipes.RECIPES),
        "shapes": ", ".join([*shapes.NAMES, "csg-SEED"]) + "; others of a kind as NAME-SEED",
    }


def model_facts(model: Autoencoder) -> dict[str, str]:
    """Trained weights: what they are, and what a user must know of them."""
    metadata, size = model.metadata, getattr(model.config, "resolution", None)
    if isinstance(model, SparseStructureVAE):
        spec = structure_preparation(model)
        inputs = f"the voxels that the surface touches, {size} along an axis"
    elif isinstance(model, TripoSFVAE):
        spec = PrepareSpec(normalization="box", extent=model.bounds)
        inputs = (
            f"{NUM_POINTS:,} points on the surface, with normals, and the voxels at it, {size} along an axis"
        )
    else:
        spec = preparation_of(model)
        inputs = " and ".join(_CLOUDS[name].format(f"{model.config.num_inputs:,}") for name in model.inputs)
        inputs += ", with normals" if model.input_channels > 3 else ""
    frame = _FRAMES[spec.normalization].format(f"{spec.extent:g}")
    return {
        "model": f"{model.title} ({type(model).__name__})",
        "name": metadata.name or "not stated",
        "parameters": f"{num_parameters(model):,}",
        "weights": model.fingerprint(),
        "license": metadata.license or "not stated",
        "source": metadata.source or "not stated",
        "inputs": f"{inputs}; {frame}",
        "configuration": _pairs(model.config.to_dict()),
        "preparation": _pairs(metadata.preparation) if metadata.preparation else "not stated",
    }


def generator_facts(model: NextScaleTransformer) -> dict[str, str]:
    """A trained model of tokens."""
    metadata = model.metadata
    weights = f" (weights {metadata.tokenizer_fingerprint})" if metadata.tokenizer_fingerprint else ""
    return {
        "model": f"{model.title} ({type(model).__name__})",
        "name": metadata.name or "not stated",
        "parameters": f"{num_parameters(model):,}",
        "weights": model.fingerprint(),
        "license": metadata.license or "not stated",
        "source": metadata.source or "not stated",
        "tokens": f"{model.config.num_tokens:,} of {len(model.config.scales)} scales, as "
        f"{metadata.tokenizer or 'a tokenizer that is not stated'}{weights} makes them",
        "conditions": ", ".join(model.config.conditions) or "none",
        "configuration": _pairs(model.config.to_dict()),
        "preparation": _pairs(metadata.preparation) if metadata.preparation else "not stated",
    }


def latents_facts(path: Path) -> dict[str, str]:
    """A file of latents: who made it of what."""
    encoded = load_latents(path)
    if encoded.codes is not None:
        codes = encoded.codes
        tokens = " + ".join(map(str, encoded.tokens)) + f", {encoded.num_tokens} in all"
        if codes.num_scales < len(codes.scales):
            tokens += f"; {codes.num_scales} of {len(codes.scales)} scales"
        kind = f"codes of {codes.num_codes:,}"
    else:
        levels = [f"{level.shape[1]} x {level.shape[2]}" for level in encoded.latents]
        tokens = " + ".join(levels) + f", {encoded.num_tokens} in all"
        tokens += f"; of voxels, {encoded.resolution} along an axis" if encoded.resolution else ""
        kind = str(encoded.latents[0].dtype).removeprefix("torch.")
    center = ", ".join(f"{part:g}" for part in encoded.normalization.center)
    return {
        "latents": str(path),
        "model": f"{encoded.weights} ({encoded.model}), weights {encoded.fingerprint or 'not stated'}",
        "tokens": tokens,
        "bytes": f"{encoded.num_bytes:,} as {kind}; {path.stat().st_size:,} in the file",
        "frame": f"center {center}; scale {encoded.normalization.scale:g}",
        "drawn": f"{'from the posterior' if encoded.sampled else 'its mode'}; seed {encoded.seed}",
    }


def mesh_facts(path: Path) -> dict[str, str]:
    """A mesh: how large, how sound."""
    mesh = load(path)
    low, high = mesh.bounds.tolist()
    found = {
        "mesh": str(path),
        "vertices": f"{mesh.num_vertices:,}",
        "faces": f"{mesh.num_faces:,}",
        "bounds": " to ".join(
            "(" + ", ".join(f"{part:g}" for part in corner) + ")" for corner in (low, high)
        ),
        "area": f"{mesh.area:g}",
        "watertight": f"yes, volume {mesh.volume:g}" if mesh.is_watertight else "no",
        "notes": "; ".join(mesh.notes) or "none",
    }
    return found


def _pairs(values: object) -> str:
    assert isinstance(values, dict)
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in values.items())
