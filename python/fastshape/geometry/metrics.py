"""How far a reconstructed surface is from its target, beside what sampling alone would give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from fastshape.geometry.distance import DistanceField
from fastshape.geometry.icp import RigidMotion, icp
from fastshape.geometry.levels import DetailLevel, detail_level
from fastshape.geometry.mesh import Mesh
from fastshape.geometry.nearest import nearest_points
from fastshape.geometry.protocols import Protocol, protocol_named, to_box
from fastshape.geometry.sampling import SurfaceSamples, sample_surface
from fastshape.geometry.sharp_normals import sharp_normal_error, sphere_directions
from fastshape.ops import build_bvh, cast_rays, closest_point

Group = Literal["watertight", "raw", "visible"]
GROUPS: tuple[Group, ...] = ("watertight", "raw", "visible")

_DOUBTED = 8192  # points that are asked whether inside is clear
_CLEAR = 0.01  # the largest share of doubt with which it is


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
        precision: threshold -> share of the prediction's points nearer than that to the target.
        recall: threshold -> share of the target's points nearer than that to the prediction.
    """

    chamfer_l1_sum: float
    chamfer_l1: float
    chamfer_l2_sum: float
    fscore: dict[float, float]
    normal_consistency: float
    signed_normal_consistency: float
    precision: dict[float, float] = field(default_factory=dict)
    recall: dict[float, float] = field(default_factory=dict)

    def values(self) -> dict[str, float]:
        """Every number by name; those of a threshold as `fscore@0.01`."""
        flat: dict[str, float] = {}
        for name, value in asdict(self).items():
            if isinstance(value, dict):
                flat |= {f"{name}@{threshold:g}": number for threshold, number in value.items()}
            else:
                flat[name] = value
        return flat


@dataclass(frozen=True)
class SurfaceDistance:
    """Distances from sampled points to the nearest triangle of the other mesh: they have no sampling floor.

    Attributes:
        mean, rms: over the points.
        p95: 95 of 100 points are nearer.
        max: the farthest point; with many points the one-sided Hausdorff distance from below.
    """

    mean: float
    rms: float
    p95: float
    max: float


@dataclass(frozen=True)
class Occupancy:
    """Whether two solids hold the same points. Inside is what `signed_distance` calls so.

    Attributes:
        volume_iou: intersection over union of the points drawn uniformly in the box; None if none is inside
            of either. Its standard error is about sqrt(IoU (1 - IoU) / n), n the points in the union: of a
            thin shape some hundreds of 40,000, which leaves it no more than two digits.
        volume_accuracy: share of these points on which the two agree.
        near_iou, near_accuracy: the same over points near the target's surface.
        pooled_iou, pooled_accuracy: the same over both kinds together.
        prediction_doubt, target_doubt: the share of points for which inside or outside is in doubt. Above
            0.01 the mesh has no clear inside.
    """

    volume_iou: float | None = None
    volume_accuracy: float | None = None
    near_iou: float | None = None
    near_accuracy: float | None = None
    pooled_iou: float | None = None
    pooled_accuracy: float | None = None
    prediction_doubt: float = 0.0
    target_doubt: float = 0.0

    @property
    def clear(self) -> bool:
        """Whether both meshes have a clear inside, so that the numbers mean something."""
        return max(self.prediction_doubt, self.target_doubt) <= _CLEAR


@dataclass(frozen=True)
class Evaluation:
    """Scores of a prediction, and all that is needed to read them.

    Attributes:
        scores: prediction against target.
        floor: two independent samples of the target against each other: what a perfect prediction scores.
        prediction_to_surface: from the prediction's points to the target's triangles (accuracy).
        target_to_surface: from the target's points to the prediction's triangles (completeness).
        occupancy: IoU and accuracy; None where they were left out.
        sharp_normal_error: see the function of this name; None where it was left out.
        level: how detailed the target is, by its salient edges.
        group: which surfaces were compared: "watertight", "raw" or "visible". Groups are not comparable.
        alignment: the motion that ICP found, where the protocol asks for it.
        protocol: every choice that was made.
        seed: of the sampling.
    """

    scores: Scores
    floor: Scores
    prediction_to_surface: SurfaceDistance
    target_to_surface: SurfaceDistance
    occupancy: Occupancy | None
    sharp_normal_error: float | None
    level: DetailLevel
    group: Group
    alignment: RigidMotion | None
    protocol: Protocol
    seed: int

    @property
    def num_samples(self) -> int:
        return self.protocol.num_samples

    @property
    def box(self) -> str:
        return self.protocol.describe().split(": ", 1)[1].split(";")[0]

    @property
    def hausdorff(self) -> float:
        """The larger of the two greatest point-to-surface distances."""
        return max(self.prediction_to_surface.max, self.target_to_surface.max)

    @property
    def volume_iou(self) -> float | None:
        return None if self.occupancy is None else self.occupancy.volume_iou

    def values(self) -> dict[str, float | None]:
        """Every number by one name, unscaled; None where there is none."""
        flat: dict[str, float | None] = dict(self.scores.values())
        for side in ("prediction_to_surface", "target_to_surface"):
            flat |= {f"{side}_{name}": value for name, value in asdict(getattr(self, side)).items()}
        flat["hausdorff"] = self.hausdorff
        flat |= asdict(self.occupancy or Occupancy())
        if self.occupancy is None:
            flat["prediction_doubt"] = flat["target_doubt"] = None
        flat["sharp_normal_error"] = self.sharp_normal_error
        return flat

    def table(self) -> dict[str, str]:
        """The columns of the paper's table, scaled and formatted as there."""
        values = self.values()
        return {column.label: column.format(values.get(column.key)) for column in self.protocol.columns}

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, ready for JSON."""
        return {
            "protocol": self.protocol.to_dict(),
            "description": self.protocol.describe(),
            "seed": self.seed,
            "group": self.group,
            "level": asdict(self.level),
            "alignment": None if self.alignment is None else self.alignment.to_dict(),
            "inside_is_clear": None if self.occupancy is None else self.occupancy.clear,
            "values": self.values(),
            "floor": self.floor.values(),
        }

    def __str__(self) -> str:
        values, floor = self.values(), self.floor.values()
        lines = [f"{self.protocol.describe()}; seed {self.seed}; {self.group}; {self.level}"]
        lines += [f"  {label}: {value}" for label, value in self.table().items()]
        for name, value in values.items():
            beside = f" (floor {floor[name]:.6g})" if name in floor else ""
            lines.append(f"  {name}: " + ("-" if value is None else f"{value:.6g}") + beside)
        return "\n".join(lines)


def compare_samples(
    prediction: SurfaceSamples, target: SurfaceSamples, thresholds: Sequence[float]
) -> Scores:
    """Scores between two sets of surface samples."""
    forward, forward_index = nearest_points(prediction.points, target.points)
    backward, backward_index = nearest_points(target.points, prediction.points)
    precision = {t: float((forward < t).double().mean()) for t in thresholds}
    recall = {t: float((backward < t).double().mean()) for t in thresholds}
    fscore = {}
    for t in thresholds:
        both = precision[t] + recall[t]
        fscore[t] = 2 * precision[t] * recall[t] / both if both else 0.0
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
        precision=precision,
        recall=recall,
    )


def surface_distance(points: Tensor, mesh: Mesh) -> SurfaceDistance:
    """Distances from points (N, 3) to a mesh, in float32."""
    bvh = build_bvh(mesh.vertices.float(), mesh.faces)
    distance = closest_point(points.float().contiguous(), bvh).distance.double()
    rank = max(-(-95 * len(distance) // 100), 1)
    return SurfaceDistance(
        mean=float(distance.mean()),
        rms=float(distance.square().mean().sqrt()),
        p95=float(distance.kthvalue(rank).values),
        max=float(distance.max()),
    )


def near_points(mesh: Mesh, num_points: int, distance: float, generator: Generator | None = None) -> Tensor:
    """Points (N, 3) no farther than `distance` from a surface: uniform points of it, each moved by a vector
    that is uniform in the ball of that radius."""
    base = sample_surface(mesh, num_points, generator).points
    direction = torch.nn.functional.normalize(torch.randn(num_points, 3, generator=generator), dim=1)
    return base + direction * distance * torch.rand(num_points, 1, generator=generator) ** (1 / 3)


def _iou(a: Tensor, b: Tensor) -> float | None:
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else None


def _accuracy(a: Tensor, b: Tensor) -> float | None:
    return float((a == b).double().mean()) if len(a) else None


def compare_occupancy(
    prediction: Mesh, target: Mesh, volume: Tensor, near: Tensor, num_near_accuracy: int | None = None
) -> Occupancy:
    """Inside or outside of two meshes at points of the volume (N, 3) and near the target's surface (M, 3)."""
    points = torch.cat([volume, near])
    inside, doubt = [], []
    for mesh in (prediction, target):
        field = DistanceField(mesh, dtype=points.dtype)
        inside.append(field.inside(points))
        asked = torch.cat([volume[:_DOUBTED], near[:_DOUBTED]])
        doubt.append(float(field.doubt(asked).double().mean()) if len(asked) else 0.0)
    a, b = inside
    in_volume, nearby = slice(None, len(volume)), slice(len(volume), None)
    first_near = slice(len(volume), None if num_near_accuracy is None else len(volume) + num_near_accuracy)
    return Occupancy(
        volume_iou=_iou(a[in_volume], b[in_volume]),
        volume_accuracy=_accuracy(a[in_volume], b[in_volume]),
        near_iou=_iou(a[nearby], b[nearby]),
        near_accuracy=_accuracy(a[first_near], b[first_near]),
        pooled_iou=_iou(a, b),
        pooled_accuracy=_accuracy(a, b),
        prediction_doubt=doubt[0],
        target_doubt=doubt[1],
    )


def sample_visible(
    mesh: Mesh, num_samples: int, generator: Generator | None = None, *, directions: int = 64
) -> SurfaceSamples:
    """Draw points uniformly from the part of a surface that can be seen from outside.

    A point is seen if, from one of `directions` evenly spread directions (`sphere_directions`), nothing
    stands between it and infinity. Points are drawn until enough are seen.

    Raises:
        ValueError: no surface area, or none of it can be seen.
    """
    bvh = build_bvh(mesh.vertices.float(), mesh.faces)
    lift = 1e-5 * float((mesh.bounds[1] - mesh.bounds[0]).max())
    kept: list[SurfaceSamples] = []
    count, drawn = 0, 0
    while count < num_samples:
        if drawn >= 100 * max(num_samples, 1000) and count * 100 < drawn:
            raise ValueError("less than one hundredth of the surface can be seen from outside")
        batch = sample_surface(mesh, max(num_samples - count, 1000), generator)
        drawn += len(batch.points)
        seen = torch.zeros(len(batch.points), dtype=torch.bool)
        for direction in sphere_directions(directions).float():
            rows = (~seen).nonzero()[:, 0]
            if not len(rows):
                break
            normals = batch.normals[rows]
            side = torch.where((normals @ direction < 0)[:, None], -normals, normals)
            origins = (batch.points[rows] + lift * side).contiguous()
            hits = cast_rays(origins, direction.expand_as(origins).contiguous(), bvh)
            seen[rows[hits.face < 0]] = True
        kept.append(SurfaceSamples(*(part[seen] for part in batch)))
        count += int(seen.sum())
    return SurfaceSamples(*(torch.cat(parts)[:num_samples] for parts in zip(*kept, strict=True)))


def evaluate(
    prediction: Mesh,
    target: Mesh,
    preset: str | Protocol | None = None,
    *,
    num_samples: int | None = None,
    thresholds: Sequence[float] | None = None,
    seed: int = 0,
    normalized: bool = False,
    num_volume_samples: int | None = None,
    num_near_samples: int | None = None,
    sharp_normals: bool | None = None,
    group: Group | None = None,
    level_resolution: int | None = None,
) -> Evaluation:
    """Compare two surfaces: by points drawn from both, as solids, and by their normal maps.

    Both meshes are moved by the map that brings the target into the protocol's box, so that lengths and
    thresholds mean the same for every shape. Points are drawn uniformly by area, independently from both
    surfaces; the distances between two finite samples of one surface are the floor, and stand beside every
    score that has one. Distances from points to the other mesh's triangles have none.

    Args:
        prediction: the reconstruction, in the frame of the target.
        target: what it should be.
        preset: whose protocol: one of `PROTOCOLS` ("fastshape", "vecset", "lagem", "dora", "triposf", "vat"),
            or a `Protocol` of yours. All scores come with each of them; its `columns` are its own table.
        num_samples: points per surface instead of the protocol's. The mean distances of the floor fall with
            its square root.
        thresholds: distances of the F-scores instead of the default's.
        seed: the same seed gives the same result.
        normalized: the meshes are in the wanted box already; leave them where they are.
        num_volume_samples: points of the volume IoU instead of the protocol's; 0 leaves it out.
        num_near_samples: points of the near IoU; 0 leaves it out.
        sharp_normals: whether to compute the sharp-normal error (seconds); None is the protocol's choice.
        group: "watertight" or "raw" say what the meshes are; "visible" also draws points only where a surface
            can be seen from outside (`sample_visible`). None detects: "watertight" if the target is.
        level_resolution: count the salient edges of the level on a watertight remesh of the target of this
            resolution; None counts them on the target as given. Counts of the two kinds do not compare.

    Raises:
        ValueError: a mesh without surface, an unknown preset or group, counts below 1.
    """
    protocol = protocol_named(preset)
    changes: dict[str, Any] = {}
    if num_samples is not None:
        changes |= {"num_samples": num_samples, "num_target_samples": None}
    if thresholds is not None:
        changes["thresholds"] = tuple(float(threshold) for threshold in thresholds)
    if normalized:
        changes["box"] = "given"
    if num_volume_samples is not None:
        changes["num_volume_samples"] = num_volume_samples
    if num_near_samples is not None:
        changes["num_near_samples"] = num_near_samples
    if sharp_normals is not None:
        changes["sharp_views"] = (protocol.sharp_views or 22) if sharp_normals else 0
    protocol = replace(protocol, **changes)
    if group is not None and group not in GROUPS:
        raise ValueError(f"`group` must be one of {', '.join(GROUPS)}, got {group!r}")
    for name, mesh in (("prediction", prediction), ("target", target)):
        if not mesh.num_faces or not mesh.area > 0:
            raise ValueError(f"the {name} has no surface area to compare")
    group = group or ("watertight" if target.is_watertight else "raw")
    level = detail_level(target, resolution=level_resolution)

    normalization = to_box(target, protocol.box)
    prediction, target = normalization.apply_mesh(prediction), normalization.apply_mesh(target)

    def stream(number: int) -> Generator:
        return torch.Generator().manual_seed(8 * seed + number)

    draw = sample_visible if group == "visible" else sample_surface
    wanted = protocol.num_target_samples or protocol.num_samples
    ours = draw(prediction, protocol.num_samples, stream(0))
    theirs = draw(target, wanted, stream(1))
    again = draw(target, protocol.num_samples, stream(2))

    alignment = None
    moved = prediction
    if protocol.align == "icp":
        alignment = icp(ours.points, theirs.points)
        ours = SurfaceSamples(alignment.apply(ours.points), alignment.rotate(ours.normals), ours.faces)
        moved = Mesh(alignment.apply(prediction.vertices), prediction.faces)

    occupancy = None
    if protocol.num_volume_samples or protocol.num_near_samples:
        half = 0.5 if protocol.box == "unit" else 1.0
        volume = torch.rand(protocol.num_volume_samples, 3, generator=stream(3)) * 2 - 1
        volume = volume * half
        if protocol.box == "given":
            middle = target.bounds.mean(0)
            volume = middle + volume * (target.bounds[1] - target.bounds[0]).max() / 2
        near = near_points(target, protocol.num_near_samples, protocol.near_distance, stream(4))
        occupancy = compare_occupancy(prediction, target, volume, near, protocol.num_near_accuracy)

    sharp = None
    if protocol.sharp_views:
        sharp = sharp_normal_error(prediction, target, views=protocol.sharp_views, size=protocol.sharp_size)
    return Evaluation(
        scores=compare_samples(ours, theirs, protocol.thresholds),
        floor=compare_samples(again, theirs, protocol.thresholds),
        prediction_to_surface=surface_distance(ours.points, target),
        target_to_surface=surface_distance(theirs.points, moved),
        occupancy=occupancy,
        sharp_normal_error=sharp,
        level=level,
        group=group,
        alignment=alignment,
        protocol=protocol,
        seed=seed,
    )
