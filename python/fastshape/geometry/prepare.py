"""From a mesh to the points that training draws from: one function without a state, and what decides it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fastshape
from fastshape import ops
from fastshape.geometry.distance import DistanceField
from fastshape.geometry.mesh import Mesh, Normalization, normalize
from fastshape.geometry.queries import QUERY_PRESETS, QueryPreset, query_preset, sample_queries
from fastshape.geometry.sampling import sample_surface
from fastshape.geometry.sharp import sample_sharp_edges
from fastshape.geometry.watertight import MOST_DOUBT, watertight

PREPARE_VERSION = 1  # of what the fields mean: another number, other bytes

_DOUBT_POINTS = 8192
_MOST_VOXELS = 2048

STRUCTURE = "structure"  # the preset without queries


@dataclass(frozen=True)
class PrepareSpec:
    """All that decides what `prepare` makes of a mesh. Lengths are in the normalized frame.

    Attributes:
        name: of the preset that the fields started from; a label only.
        normalization, extent: the frame: "box" scales the longest side of the bounding box to 2 `extent`,
            "sphere" the farthest vertex to a distance of `extent` from the box's center.
        num_surface: points on the surface, uniform by area, with normals.
        oversample: points of which these are picked by farthest point sampling; None: no picking.
        num_sharp, sharp_angle, sharp_weighting: points on sharp edges, with normals; see
            `sample_sharp_edges`.
        volume, volume_bound: domain of the volume queries, a "cube" of that half side or a "ball" of that
            radius.
        num_volume: queries uniform in it.
        num_near, near_sigmas: queries near the surface; see `sample_queries`.
        num_sharp_near, sharp_sigmas: queries near the sharp edges.
        truncation: largest displacement of a near query along an axis; None for no bound.
        watertight: when `watertight` replaces the mesh before anything is drawn: "none", never; "doubt",
            where the sign of more than 1 % of 8192 places is in doubt, by its method "auto"; "auto", "union",
            "winding" or "shell", always, by that method. Sharp edges are found on the mesh as it was, and
            their points moved to where it is nearest now.
        resolution, epsilon: of `watertight`; the epsilon in its own cube [-1, 1]^3, None is 2 / resolution.
        labels: "sdf" stores signed distances (negative inside), "occupancy" whether a query is inside.
        dtype: "float32" or "float16", of all stored numbers. Queries are rounded first and labeled where they
            then are.
        sign: the rule for inside and outside, see `signed_distance`.
        voxels: resolution of a grid over the cube of half side `extent`; the voxels that the mesh touches, as
            it is and never made watertight, are stored. 0 for none.
        seed: of every draw.
        per_mesh: the draws follow from the seed and the mesh, so that no two meshes share their volume
            points; False: from the seed alone.
    """

    name: str = "custom"
    normalization: str = "box"
    extent: float = 1.0
    num_surface: int = 100_000
    oversample: int | None = None
    num_sharp: int = 0
    sharp_angle: float = 15.0
    sharp_weighting: str = "dora"
    volume: str = "cube"
    volume_bound: float = 1.0
    num_volume: int = 250_000
    num_near: int = 250_000
    near_sigmas: tuple[float, ...] = (0.005, 0.05)
    num_sharp_near: int = 0
    sharp_sigmas: tuple[float, ...] = ()
    truncation: float | None = None
    watertight: str = "doubt"
    resolution: int = 256
    epsilon: float | None = None
    labels: str = "sdf"
    dtype: str = "float32"
    sign: str = "auto"
    voxels: int = 0
    seed: int = 0
    per_mesh: bool = True

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name), _TYPES[field.name])
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in _COUNTS:
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.voxels <= _MOST_VOXELS:
            raise ValueError(f"`voxels` must lie in 0..{_MOST_VOXELS}, got {self.voxels}")
        if not self.voxels and not any(getattr(self, name) for name in _COUNTS):
            raise ValueError("a specification without any points prepares nothing")
        for name in ("extent", "volume_bound", "truncation"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be positive and finite, got {value}")
        if self.resolution < 8:
            raise ValueError(f"`resolution` must be at least 8, got {self.resolution}")
        if self.epsilon is not None and not 1.05 / self.resolution < self.epsilon < 1:
            raise ValueError(
                f"`epsilon` must lie between 1.05 / `resolution` = {1.05 / self.resolution:.3g} and 1, "
                f"got {self.epsilon}"
            )
        if not 0 <= self.sharp_angle <= 180:
            raise ValueError(f"`sharp_angle` must lie in 0..180 degrees, got {self.sharp_angle}")
        if self.oversample is not None and self.oversample < self.num_surface:
            raise ValueError(
                f"`oversample` must be at least `num_surface` = {self.num_surface}, got {self.oversample}"
            )
        for count, name in (("num_near", "near_sigmas"), ("num_sharp_near", "sharp_sigmas")):
            sigmas = getattr(self, name)
            if getattr(self, count) and not sigmas:
                raise ValueError(f"`{name}` must not be empty where `{count}` is not 0")
            if not all(0 <= sigma < math.inf for sigma in sigmas):
                raise ValueError(f"`{name}` must be finite and at least 0, got {sigmas}")

    @property
    def queries(self) -> QueryPreset:
        """The same rules as `sample_queries` takes them."""
        shared = {field.name for field in dataclasses.fields(QueryPreset)} & _TYPES.keys()
        return QueryPreset(reference="", **{name: getattr(self, name) for name in shared})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them, with the version of their meaning."""
        values = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
            if name != "voxels" or value  # what is older than this field has the same hash as ever
        }
        return {"version": PREPARE_VERSION, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PrepareSpec:
        """The inverse of `to_dict`.

        Raises:
            ValueError: another version, or a bad or unknown field.
            TypeError: a field of the wrong type.
        """
        values = dict(values)
        version = values.pop("version", PREPARE_VERSION)
        if version != PREPARE_VERSION:
            raise ValueError(f"the specification has version {version}; this release has {PREPARE_VERSION}")
        _check_names(values)
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**fields)

    def to_json(self) -> str:
        """One line, the same for equal specifications."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> PrepareSpec:
        """The inverse of `to_json`."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("a specification must be a JSON object")
        return cls.from_dict(values)

    @property
    def hash(self) -> str:
        """SHA-256 of the JSON, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> PrepareSpec:
        """The specification of a paper's data: "dora", "vecset", "lagem", "vat", "hunyuan" or "structure".

        Labels are signed distances where the paper trains on a function of them, else occupancy. "structure"
        is of TRELLIS' structure autoencoder: 64 voxels along an axis and no points.

        Raises:
            ValueError: another name, or a bad or unknown field.
            TypeError: a field of the wrong type.
        """
        _check_names(overrides)
        if name == STRUCTURE:
            counts = dict.fromkeys(_COUNTS, 0)
            return cls(**{**counts, "voxels": 64, "watertight": "none", **overrides, "name": name})
        try:
            rules = query_preset(name)
        except ValueError:
            there = ", ".join((*QUERY_PRESETS, STRUCTURE))
            raise ValueError(f"there is no preset {name!r}; there are {there}") from None
        fields = {field.name: getattr(rules, field.name) for field in dataclasses.fields(rules)}
        fields = {name: value for name, value in fields.items() if name in _TYPES}
        if rules.epsilon == 2 / PrepareSpec.resolution:
            fields["epsilon"] = None  # it follows the resolution
        fields["labels"] = "occupancy" if rules.label == "occupancy" else "sdf"
        return cls(**{**fields, **overrides, "name": name})


_TYPES = typing.get_type_hints(PrepareSpec)
_COUNTS = ("num_surface", "num_sharp", "num_volume", "num_near", "num_sharp_near")
_CHOICES = {
    "normalization": ("box", "sphere"),
    "sharp_weighting": ("dora", "length", "angle", "area"),
    "volume": ("cube", "ball"),
    "watertight": ("none", "doubt", "auto", "union", "winding", "shell"),
    "labels": ("sdf", "occupancy"),
    "dtype": ("float32", "float16"),
    "sign": ("auto", "winding", "parity"),
}


def _check_names(values: Mapping[str, Any]) -> None:
    unknown = [name for name in values if name not in _TYPES]
    if unknown:
        raise ValueError(
            f"there is no field {unknown[0]!r} in a specification; there are {', '.join(_TYPES)}"
        )


def _check_type(name: str, value: Any, expected: Any) -> None:
    kinds = typing.get_args(expected) or (expected,)
    if typing.get_origin(expected) is tuple:
        right = isinstance(value, tuple) and all(_is_number(entry) for entry in value)
        words = "a tuple of numbers"
    elif float in kinds:
        right, words = _is_number(value), "a number"
    else:
        right = type(value) in kinds
        words = {int: "an integer", str: "a word", bool: "true or false"}[kinds[0]]
    optional = type(None) in kinds
    if not (right or (optional and value is None)):
        raise TypeError(f"`{name}` must be {words}{' or None' if optional else ''}, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Prepared(dict[str, Tensor]):
    """Tensors by name, and in `metadata` what else there is to know about them, as strings."""

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        super().__init__(tensors)
        self.metadata = dict(metadata)


def prepare(mesh: Mesh, spec: PrepareSpec | None = None) -> Prepared:
    """Sample a mesh, normalized to the cube, and label the queries: all that training needs of it.

    The same mesh and specification give the same bytes, whatever the number of threads.

    Args:
        mesh: any mesh with a surface.
        spec: what to make; None is the preset "vecset".

    Returns:
        CPU tensors by name: `surface_points` and `surface_normals` (N, 3); `sharp_points` and `sharp_normals`
        (N, 3); `volume_points` (N, 3) with `volume_sdf` (N,), or `volume_occupancy` (N,) bool; `near_points`
        and `sharp_near_points` in the same way; `voxels` (N, 3) int16, x, y, z in lexicographic order. What a
        specification does not ask for is not there.
        `metadata` says how the mesh was moved ("center", "scale": the points are (x - center) * scale), which
        share of 8192 places has a doubtful sign ("doubt", see `signed_distance`; of the mesh that is sampled,
        and "input_doubt" of the one that came, where that was asked), how many edges are sharp
        ("salient_edges"), what `watertight` did, if it was asked ("watertight", its report), by how much the
        surface was thickened ("epsilon"), what the reader had to mend ("notes"), the specification and its
        hash.

    Raises:
        ValueError: no faces, no surface area, or a `WatertightError`.
    """
    spec = PrepareSpec.preset("vecset") if spec is None else spec
    normalized, normalization = normalize(mesh, extent=spec.extent, fit=spec.normalization)  # type: ignore[call-overload]
    draws = _Draws(spec.seed, mesh if spec.per_mesh else None)
    voxels = torch.zeros(0, 3, dtype=torch.int16)
    if spec.voxels:
        box = (-spec.extent, spec.extent)
        voxels = ops.voxelize_mesh(normalized.vertices, normalized.faces, spec.voxels, box).short()
    sharp = sample_sharp_edges(
        normalized,
        max(spec.num_sharp, -(-spec.num_sharp_near // max(len(spec.sharp_sigmas), 1))),
        angle=spec.sharp_angle,
        weighting=spec.sharp_weighting,  # type: ignore[arg-type]
        generator=draws("sharp"),
    )
    field = DistanceField(normalized, sign=spec.sign)  # type: ignore[arg-type]
    more: dict[str, Any] = {"salient_edges": sharp.num_edges, "epsilon": 0.0}
    more["doubt"] = _doubt(field, normalized, spec.extent, draws("doubt"))
    method = spec.watertight
    if method == "doubt":
        method = "auto" if more["doubt"] > MOST_DOUBT else "none"
    if method != "none":
        closed = watertight(
            mesh,
            resolution=spec.resolution,
            method=method,  # type: ignore[arg-type]
            epsilon=spec.epsilon,
        )
        report = {name: value for name, value in closed.report.to_dict().items() if name != "seconds"}
        more |= {
            "input_doubt": more["doubt"],
            "watertight": report,
            "epsilon": closed.report.epsilon * normalization.scale,
        }
        if closed.mesh is not mesh:
            normalized = normalization.apply_mesh(closed.mesh)
            field = DistanceField(normalized, sign=spec.sign)  # type: ignore[arg-type]
            more["doubt"] = _doubt(field, normalized, spec.extent, draws("doubt"))
            sharp = sharp._replace(points=ops.closest_point(sharp.points, field.bvh).point)
    dtype = getattr(torch, spec.dtype)
    tensors: dict[str, Tensor] = {}
    if spec.voxels:
        tensors["voxels"] = voxels
    if spec.num_surface:
        surface = sample_surface(normalized, spec.num_surface, draws("surface"), oversample=spec.oversample)
        tensors["surface_points"] = surface.points.to(dtype)
        tensors["surface_normals"] = surface.normals.to(dtype)
    if spec.num_sharp:
        tensors["sharp_points"] = sharp.points[: spec.num_sharp].to(dtype)
        tensors["sharp_normals"] = sharp.normals[: spec.num_sharp].to(dtype)
    queries = sample_queries(normalized, preset=spec.queries, sharp=sharp.points, generator=draws("queries"))
    stored = {name: points.to(dtype) for name, points in queries._asdict().items() if len(points)}
    if stored:
        points = torch.cat([points.float() for points in stored.values()])
        labels = field(points).to(dtype) if spec.labels == "sdf" else field.inside(points)
        parts = labels.split([len(points) for points in stored.values()])
        for (name, points), label in zip(stored.items(), parts, strict=True):
            tensors[f"{name}_points"] = points
            tensors[f"{name}_{spec.labels}"] = label
    return Prepared(tensors, _metadata(mesh, spec, normalization, more))


def _doubt(field: DistanceField, mesh: Mesh, extent: float, generator: torch.Generator) -> float:
    """The share of places whose sign is in doubt, half of them uniform in the cube, half near the surface."""
    half = _DOUBT_POINTS // 2
    uniform = (torch.rand(half, 3, generator=generator) * 2 - 1) * extent
    noise = torch.randn(half, 3, generator=generator, dtype=torch.float64).float() * (0.01 * extent)
    points = torch.cat([uniform, sample_surface(mesh, half, generator).points + noise])
    return float(field.doubt(points).double().mean())


class _Draws:
    """Generators that are a function of the seed, the mesh if there is one, and a word."""

    def __init__(self, seed: int, mesh: Mesh | None) -> None:
        digest = hashlib.sha256(repr(seed).encode())
        if mesh is not None:
            digest.update(mesh.vertices.double().numpy().data)
            digest.update(mesh.faces.numpy().data)
        self._digest = digest

    def __call__(self, word: str) -> torch.Generator:
        digest = self._digest.copy()
        digest.update(word.encode())
        return torch.Generator().manual_seed(int.from_bytes(digest.digest()[:8], "little", signed=True))


def _metadata(
    mesh: Mesh, spec: PrepareSpec, normalization: Normalization, more: Mapping[str, Any]
) -> dict[str, str]:
    values = {
        "center": list(normalization.center),
        "scale": normalization.scale,
        "faces": mesh.num_faces,
        "notes": list(mesh.notes),
        "spec": spec.to_dict(),
        "spec_hash": spec.hash,
        "fastshape": fastshape.__version__,
        **more,
    }
    return {
        name: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for name, value in values.items()
    }
