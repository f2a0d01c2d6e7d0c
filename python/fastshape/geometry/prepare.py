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
from fastshape.geometry.distance import DistanceField
from fastshape.geometry.mesh import Mesh, Normalization, normalize
from fastshape.geometry.sampling import sample_surface

PREPARE_VERSION = 1  # of what the fields mean: another number, other bytes

_DOUBT_POINTS = 8192


@dataclass(frozen=True)
class PrepareSpec:
    """All that decides what `prepare` makes of a mesh.

    Attributes:
        name: of the preset that the fields started from; a label only.
        surface: number of points on the surface, with normals.
        volume: number of queries uniform in the cube [-volume_bound, volume_bound]^3.
        volume_bound: half side of that cube.
        near: number of queries near the surface.
        near_sigmas: standard deviations of their distances from it, each for an equal share.
        labels: "sdf" stores signed distances (negative inside), "occupancy" whether a query is inside.
        dtype: "float32" or "float16", of all stored numbers. Queries are rounded first and labeled where they
            then are.
        sign: the rule for inside and outside, see `geometry.signed_distance`.
        seed: of every draw.
        per_mesh: the draws follow from the seed and the mesh, so that no two meshes share their volume
            points; False: from the seed alone.
    """

    name: str = "custom"
    surface: int = 100_000
    volume: int = 100_000
    volume_bound: float = 1.0
    near: int = 100_000
    near_sigmas: tuple[float, ...] = (0.005, 0.05)
    labels: str = "sdf"
    dtype: str = "float32"
    sign: str = "auto"
    seed: int = 0
    per_mesh: bool = True

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name), _TYPES[field.name])
        for name in ("surface", "volume", "near"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}")
        if self.surface + self.volume + self.near == 0:
            raise ValueError("a specification without any points prepares nothing")
        if not 0 < self.volume_bound < math.inf:
            raise ValueError(f"`volume_bound` must be positive and finite, got {self.volume_bound}")
        if self.near and not self.near_sigmas:
            raise ValueError("`near_sigmas` must not be empty where `near` is not 0")
        if not all(0 <= sigma < math.inf for sigma in self.near_sigmas):
            raise ValueError(f"`near_sigmas` must be finite and at least 0, got {self.near_sigmas}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them, with the version of their meaning."""
        values = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
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
        """The specification of a paper's data: "dora", "vecset", "lagem" or "vat".

        Raises:
            ValueError: another name, or a bad or unknown field.
            TypeError: a field of the wrong type.
        """
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
        _check_names(overrides)
        return cls(**{**PRESETS[name], **overrides, "name": name})


PRESETS: dict[str, dict[str, Any]] = {
    "vecset": {},
    "dora": {"near_sigmas": (0.001, 0.005), "volume_bound": 1.05},
    "lagem": {},
    "vat": {},
}
_TYPES = typing.get_type_hints(PrepareSpec)
_CHOICES = {
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
    if typing.get_origin(expected) is tuple:
        right = isinstance(value, tuple) and all(_is_number(entry) for entry in value)
        words = "a tuple of numbers"
    elif expected is float:
        right, words = _is_number(value), "a number"
    else:
        right = type(value) is expected
        words = {int: "an integer", str: "a word", bool: "true or false"}[expected]
    if not right:
        raise TypeError(f"`{name}` must be {words}, got {value!r}")


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
        CPU tensors by name. `surface_points` and `surface_normals` (N, 3); `volume_points` (N, 3) with
        `volume_sdf` (N,), or `volume_occupancy` (N,) bool; `near_points` in the same way. What a
        specification does not ask for is not there. `metadata` says how the mesh was moved ("center",
        "scale": the points are (x - center) * scale), which share of the queries has a doubtful sign
        ("doubt"), what the reader had to mend ("notes"), the specification and its hash.

    Raises:
        ValueError: no faces, or no surface area.
    """
    spec = PrepareSpec.preset("vecset") if spec is None else spec
    normalized, normalization = normalize(mesh)
    draws = _Draws(spec.seed, mesh if spec.per_mesh else None)
    dtype = getattr(torch, spec.dtype)
    tensors: dict[str, Tensor] = {}
    if spec.surface:
        samples = sample_surface(normalized, spec.surface, draws("surface"))
        tensors["surface_points"] = samples.points.to(dtype)
        tensors["surface_normals"] = samples.normals.to(dtype)
    queries: dict[str, Tensor] = {}
    if spec.volume:
        uniform = torch.rand(spec.volume, 3, generator=draws("volume"), dtype=torch.float64)
        queries["volume"] = (uniform * 2 - 1) * spec.volume_bound
    if spec.near:
        generator = draws("near")
        surface = sample_surface(normalized, spec.near, generator).points
        which = torch.arange(spec.near) * len(spec.near_sigmas) // spec.near
        noise = torch.randn(spec.near, 3, generator=generator, dtype=torch.float64)
        queries["near"] = surface + noise * torch.tensor(spec.near_sigmas, dtype=torch.float64)[which, None]
    queries = {name: points.to(torch.float32).to(dtype) for name, points in queries.items()}
    doubt = 0.0
    if queries:
        field = DistanceField(normalized, sign=spec.sign)  # type: ignore[arg-type]
        points = torch.cat([points.float() for points in queries.values()])
        labels = field(points) if spec.labels == "sdf" else field.inside(points)
        doubt = float(field.doubt(points[:_DOUBT_POINTS]).double().mean())
        place = 0
        for name, stored in queries.items():
            tensors[f"{name}_points"] = stored
            label = labels[place : place + len(stored)]
            tensors[f"{name}_{spec.labels}"] = label.to(dtype) if spec.labels == "sdf" else label
            place += len(stored)
    return Prepared(tensors, _metadata(mesh, spec, normalization, {"doubt": doubt}))


class _Draws:
    """Generators that are a function of the seed, the mesh if there is one, and a word."""

    def __init__(self, seed: int, mesh: Mesh | None) -> None:
        digest = hashlib.sha256(repr(seed).encode())
        if mesh is not None:
            digest.update(mesh.vertices.double().contiguous().numpy().data)
            digest.update(mesh.faces.contiguous().numpy().data)
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
