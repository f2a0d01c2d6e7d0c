"""How far a reconstructed surface is from its target, beside what sampling alone would give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fastshape.geometry.distance import DistanceField
from fastshape.geometry.mesh import Mesh, normalize
from fastshape.geometry.sampling import SurfaceSamples, sample_surface
from fastshape.ops import build_bvh, closest_point


@dataclass(frozen=True)
class Scores:
    """What two samples of points say about each other; lengths in the units of the evaluation's box.

    Attributes:
        chamfer_l1_sum: mean distance prediction -> target plus mean distance target -> prediction.
        chamfer_l1: half of that, the mean of the two.
        chamfer_l2_sum: the same sum of squared distances.
        fscore: threshold -> harmonic mean of precision and recall at that distance.
        normal_consistency: mean |cosine| between the normals of nearest points, mean of both ways.
        signed_normal_consistency: the same with its sign: it falls when faces are turned over.
    """

    chamfer_l1_sum: float
    chamfer_l1: float
    chamfer_l2_sum: float
    fscore: dict[float, float]
    normal_consistency: float
    signed_normal_consistency: float


@dataclass(frozen=True)
class Evaluation:
    """Scores of a prediction, and all that is needed to read them.

    Attributes:
        scores: prediction against target.
        floor: two independent samples of the target against each other: what a perfect prediction scores.
        prediction_to_surface: mean distance from the prediction's points to the target's triangles.
        target_to_surface: mean distance from the target's points to the prediction's triangles.
            These two have no sampling floor.
        volume_iou: intersection over union of the solids, where asked for.
        num_samples: points drawn from each surface.
        seed: of the sampling.
        box: the frame of all lengths.
    """

    scores: Scores
    floor: Scores
    num_samples: int
    seed: int
    box: str
    prediction_to_surface: float
    target_to_surface: float
    volume_iou: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, ready for JSON."""

        def plain(scores: Scores) -> dict[str, Any]:
            values = asdict(scores)
            values["fscore"] = {f"{threshold:g}": value for threshold, value in scores.fscore.items()}
            return values

        return {**asdict(self), "scores": plain(self.scores), "floor": plain(self.floor)}


def _nearest(points: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Distance (N,) float64 and row (N,) of the nearest target of each point, ties to the lowest row."""
    corners = (
        torch.arange(len(targets))[:, None].expand(-1, 3).contiguous()
    )  # every target is a face of no size
    found = closest_point(points.double().contiguous(), build_bvh(targets.double().contiguous(), corners))
    return found.distance, found.face


def _distance_to_surface(points: Tensor, mesh: Mesh) -> float:
    bvh = build_bvh(mesh.vertices.float().contiguous(), mesh.faces.contiguous())
    return float(closest_point(points, bvh).distance.double().mean())


def compare_samples(
    prediction: SurfaceSamples, target: SurfaceSamples, thresholds: Sequence[float]
) -> Scores:
    """Scores between two sets of surface samples."""
    forward, forward_index = _nearest(prediction.points, target.points)
    backward, backward_index = _nearest(target.points, prediction.points)
    fscore = {}
    for threshold in thresholds:
        precision = float((forward < threshold).double().mean())
        recall = float((backward < threshold).double().mean())
        fscore[threshold] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    cosines = [
        (prediction.normals * target.normals[forward_index]).sum(1).double(),
        (target.normals * prediction.normals[backward_index]).sum(1).double(),
    ]
    total = float(forward.mean() + backward.mean())
    return Scores(
        chamfer_l1_sum=total,
        chamfer_l1=total / 2,
        chamfer_l2_sum=float((forward**2).mean() + (backward**2).mean()),
        fscore=fscore,
        normal_consistency=float(sum(cosine.abs().mean() for cosine in cosines) / 2),
        signed_normal_consistency=float(sum(cosine.mean() for cosine in cosines) / 2),
    )


def evaluate(
    prediction: Mesh,
    target: Mesh,
    *,
    num_samples: int = 100_000,
    thresholds: Sequence[float] = (0.001, 0.005, 0.01, 0.02),
    seed: int = 0,
    normalized: bool = False,
    num_volume_samples: int = 0,
) -> Evaluation:
    """Compare two surfaces by points drawn uniformly from both.

    Both meshes are moved by the map that normalizes the target to [-1, 1]^3, so that the thresholds mean the
    same for every shape. The definitions are those of the VecSet line of papers: distances are not squared
    and, in `chamfer_l1_sum`, not halved; F-score at .02 is the usual one.

    Args:
        prediction: the reconstruction, in the frame of the target.
        target: what it should be.
        num_samples: points per surface. The floor falls with its square root.
        thresholds: distances of the F-scores.
        seed: the same seed gives the same result.
        normalized: the meshes are in the wanted box already; leave them where they are.
        num_volume_samples: points drawn in [-1, 1]^3 for the volume IoU; 0 leaves it out. Inside is where
            `signed_distance` is negative.

    Raises:
        ValueError: a mesh without surface.
    """
    if not normalized:
        target, normalization = normalize(target)
        prediction = normalization.apply_mesh(prediction)
    iou = None
    if num_volume_samples:
        generator = torch.Generator().manual_seed(3 * seed)
        points = torch.rand(num_volume_samples, 3, generator=generator) * 2 - 1
        inside = [DistanceField(mesh, dtype=points.dtype).inside(points) for mesh in (prediction, target)]
        union = int((inside[0] | inside[1]).sum())
        iou = int((inside[0] & inside[1]).sum()) / union if union else 1.0
    drawn = []
    for stream, mesh in enumerate((prediction, target, target)):
        generator = torch.Generator().manual_seed(3 * seed + stream)
        drawn.append(sample_surface(mesh, num_samples, generator))
    return Evaluation(
        scores=compare_samples(drawn[0], drawn[1], thresholds),
        floor=compare_samples(drawn[2], drawn[1], thresholds),
        prediction_to_surface=_distance_to_surface(drawn[0].points, target),
        target_to_surface=_distance_to_surface(drawn[1].points, prediction),
        volume_iou=iou,
        num_samples=num_samples,
        seed=seed,
        box="as given" if normalized else "target in [-1, 1]^3 by its bounding box",
    )
