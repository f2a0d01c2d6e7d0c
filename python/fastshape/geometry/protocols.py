"""Whose numbers an evaluation can be compared with: every choice of a protocol, in one place.

`PROTOCOLS` holds what published tables used, as far as their papers and code tell. What they leave open is
decided here and said in the remarks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from fastshape.geometry.mesh import Mesh, Normalization, normalize

Box = Literal["cube", "unit", "sphere", "given"]

_BOXES = {
    "cube": "target's bounding box in [-1, 1]^3",
    "unit": "target's bounding box in [-0.5, 0.5]^3",
    "sphere": "target centered by its bounding box, in the unit sphere",
    "given": "meshes where they are",
}


@dataclass(frozen=True)
class Column:
    """A number of the paper's table: which score, times what, under which name.

    Attributes:
        key: of `Evaluation.values()`.
        label: as printed.
        factor: what the paper multiplies it by.
        decimals: printed.
    """

    key: str
    label: str
    factor: float = 1.0
    decimals: int = 4

    def format(self, value: float | None) -> str:
        return "-" if value is None else f"{value * self.factor:.{self.decimals}f}"


@dataclass(frozen=True)
class Protocol:
    """How two meshes are compared.

    Attributes:
        name: of the preset, or of yours.
        source: whose table it is.
        box: the frame of all lengths; both meshes are moved by the map that brings the target there.
        num_samples: points drawn from the prediction's surface, uniformly by area.
        num_target_samples: points drawn from the target's; None is `num_samples`.
        thresholds: distances of the F-scores; a distance below the threshold counts.
        align: "icp" moves the prediction's points rigidly onto the target's before distances and normals are
            taken; "none" leaves them.
        num_volume_samples: points drawn uniformly in the box, for the volume IoU; 0 leaves it out.
        num_near_samples: points within `near_distance` of the target's surface, for the near IoU.
        num_near_accuracy: of these, how many the near accuracy is taken over; None is all.
        near_distance: see `near_points`.
        sharp_views: views of the sharp-normal error; 0 leaves it out.
        sharp_size: height and width of its normal maps, in pixels.
        columns: the paper's table.
        ground_truth: what the paper takes as the target.
        remarks: what the paper or its code leaves open or does otherwise.
    """

    name: str = "fastshape"
    source: str = "everything, in the box of the VecSet line of papers"
    box: Box = "cube"
    num_samples: int = 100_000
    num_target_samples: int | None = None
    thresholds: tuple[float, ...] = (0.001, 0.005, 0.01, 0.02)
    align: Literal["none", "icp"] = "none"
    num_volume_samples: int = 40_000
    num_near_samples: int = 40_000
    num_near_accuracy: int | None = None
    near_distance: float = 0.05
    sharp_views: int = 0
    sharp_size: int = 512
    columns: tuple[Column, ...] = (
        Column("chamfer_l1", "CD-L1 (mean of two)"),
        Column("chamfer_l2_sum", "CD-L2² (sum) x1e5", 1e5, 3),
        Column("fscore@0.005", "F@.005"),
        Column("fscore@0.01", "F@.01"),
        Column("normal_consistency", "NC |cos|"),
        Column("volume_iou", "IoU"),
    )
    ground_truth: str = "the target as it is"
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.box not in _BOXES:
            raise ValueError(f"`box` must be one of {sorted(_BOXES)}, got {self.box!r}")
        if self.align not in ("none", "icp"):
            raise ValueError(f"`align` must be 'none' or 'icp', got {self.align!r}")
        for name, least in (
            ("num_samples", 1),
            ("num_target_samples", 1),
            ("num_volume_samples", 0),
            ("num_near_samples", 0),
            ("num_near_accuracy", 1),
            ("sharp_views", 0),
            ("sharp_size", 16),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}")
        if any(threshold <= 0 for threshold in self.thresholds):
            raise ValueError(f"`thresholds` must be positive, got {list(self.thresholds)}")
        if not self.near_distance > 0:
            raise ValueError(f"`near_distance` must be positive, got {self.near_distance}")

    def describe(self) -> str:
        """The protocol in one line, for the caption of a table."""
        targets = self.num_samples if self.num_target_samples is None else self.num_target_samples
        parts = [
            f"{self.name}: {_BOXES[self.box]}",
            f"{self.num_samples:,} points against {targets:,}",
            "F-score at " + ", ".join(f"{threshold:g}" for threshold in self.thresholds),
        ]
        if self.align == "icp":
            parts.append("points aligned by ICP")
        if self.num_volume_samples:
            parts.append(f"IoU over {self.num_volume_samples:,} points in the box")
        if self.num_near_samples:
            parts.append(f"near IoU over {self.num_near_samples:,} points within {self.near_distance:g}")
        if self.sharp_views:
            parts.append(f"SNE over {self.sharp_views} views of {self.sharp_size}²")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "thresholds": list(self.thresholds), "remarks": list(self.remarks)}


def to_box(mesh: Mesh, box: Box) -> Normalization:
    """The map that brings a target into the box of a protocol.

    Raises:
        ValueError: no faces, or all points equal.
    """
    if box == "given":
        return Normalization((0.0, 0.0, 0.0), 1.0)
    _, normalization = normalize(mesh, extent=0.5 if box == "unit" else 1.0)
    if box == "sphere":
        used = mesh.used_vertices.double()
        radius = float((used - used.new_tensor(normalization.center)).norm(dim=1).max())
        normalization = Normalization(normalization.center, 1 / radius)
    return normalization


_OURS = Protocol()

PROTOCOLS: dict[str, Protocol] = {
    "fastshape": _OURS,
    "vecset": Protocol(
        name="vecset",
        source="3DShape2VecSet (Zhang et al. 2023), eval.py",
        num_volume_samples=100_000,
        columns=(
            Column("chamfer_l1_sum", "CD (L1, sum)"),
            Column("fscore@0.02", "F@.02"),
            Column("volume_iou", "IoU"),
        ),
        ground_truth="watertight meshes",
        remarks=(
            "The code exchanges precision and recall; their harmonic mean is the same.",
            "The code compares 100,000 points of the reconstruction with all points of its prepared cloud, "
            "and takes the IoU over its prepared volume points; here both are drawn anew.",
            "The paper extracts on a lattice of 128; that is the reconstruction's, not the evaluation's.",
        ),
    ),
    "lagem": Protocol(
        name="lagem",
        source="LaGeM (Zhang and Wonka 2025), tables 4 and 5",
        box="sphere",
        columns=(
            Column("chamfer_l1_sum", "CD (L1, sum) x100", 100, 3),
            Column("fscore@0.02", "F@.02 x100", 100, 2),
        ),
        ground_truth="watertight meshes by ManifoldPlus; ABO and Pix3D as they are",
        remarks=("The threshold is not stated in the paper; .02 is that of its code's lineage.",),
    ),
    "dora": Protocol(
        name="dora",
        source="Dora-Bench (Chen et al. 2025)",
        num_samples=1_000_000,
        sharp_views=22,
        columns=(
            Column("fscore@0.01", "F@.01 x100", 100, 3),
            Column("fscore@0.005", "F@.005 x100", 100, 3),
            Column("chamfer_l1", "CD-L1 (mean of two) x1e4", 1e4, 3),
            Column("chamfer_l2_sum", "CD-L2² (sum) x1e4", 1e4, 4),
            Column("sharp_normal_error", "SNE x100", 100, 3),
        ),
        ground_truth="watertight remeshes, shown by level of detail",
        remarks=(
            "No code of this evaluation was published. Which Chamfer distance stands under CD x1e4 is not "
            "known to us, so two are shown; the views, the edge detector and the masks of the SNE are ours "
            "(`sharp_normal_error`).",
        ),
    ),
    "triposf": Protocol(
        name="triposf",
        source="TripoSF (He et al. 2025) and Focusing",
        box="unit",
        columns=(
            Column("chamfer_l2_sum", "CD-L2² (sum) x1e5", 1e5, 3),
            Column("fscore@0.005", "F@.005", 1, 3),
        ),
        ground_truth="raw, watertight or visible surfaces, never mixed; mean and deviation by level",
        remarks=(
            "The tables say L2 norm and 1e-5 and name no box: only squared distances in a box of side 1, "
            "that of TripoSF's code, have that size.",
            "At 100,000 points the tables' values at level L1 are about the sampling floor.",
        ),
    ),
    "vat": Protocol(
        name="vat",
        source="VAT (Zhang et al. 2024, arXiv 2412.02202)",
        box="unit",
        num_samples=10_000,
        align="icp",
        num_near_accuracy=10_000,
        columns=(
            Column("pooled_accuracy", "Acc. %", 100, 2),
            Column("pooled_iou", "IoU %", 100, 2),
            Column("near_accuracy", "Near-Acc. %", 100, 2),
            Column("chamfer_l1_sum", "Cham. (L1, sum)"),
            Column("chamfer_l2_sum", "Cham. (L2², sum)", 1, 6),
            Column("fscore@0.01", "F@.01"),
        ),
        ground_truth="Objaverse meshes in the unit cube",
        remarks=(
            "Accuracy and IoU are over 40,000 uniform and 40,000 near points together. The paper asks the "
            "network there; here inside and outside are those of the two meshes, not aligned.",
            "Which Chamfer distance is meant is not said: both are shown. ICP is point to point from where "
            "the reconstruction stands. The floor is not aligned; ICP moves even a perfect reconstruction a "
            "little, after the chance of its samples.",
            "10,000 points cap F@.01 at 0.6 to 1, by the surface's area alone: see the floor.",
        ),
    ),
}


def protocol_named(preset: str | Protocol | None) -> Protocol:
    """The protocol of that name, the protocol itself, or the default.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(preset, Protocol):
        return preset
    name = "fastshape" if preset is None else preset
    if name not in PROTOCOLS:
        raise ValueError(f"`preset` must be one of {', '.join(PROTOCOLS)}, got {preset!r}")
    return PROTOCOLS[name]
