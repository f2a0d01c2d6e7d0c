"""Where a training step asks a field, and what the answers are: the rules of the papers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor

from fastshape.geometry.mesh import Mesh, Normalization, normalize
from fastshape.geometry.sampling import sample_surface
from fastshape.geometry.sharp import sample_sharp_edges

# ---- Labels ------------------------------------------------------------------------------------------------


def occupancy(sdf: Tensor) -> Tensor:
    """Whether a signed distance is negative: inside, bool."""
    return sdf < 0


def tsdf(sdf: Tensor, truncation: float) -> Tensor:
    """The signed distance cut off at +-`truncation` and divided by it: -1 deep inside, 1 far outside.

    Reference: Dora (arXiv 2412.17808) with truncation 0.015. Its data are positive inside; ours, as
    everywhere in the library, negative.

    Raises:
        ValueError: a truncation that is not positive.
    """
    if not truncation > 0:
        raise ValueError(f"`truncation` must be positive, got {truncation}")
    return sdf.clamp(-truncation, truncation) / truncation


def semi_continuous_occupancy(sdf: Tensor, width: float = 1 / 128) -> Tensor:
    """1 where the signed distance is below -`width`, 0 above it, 0.5 - 0.5 sdf / width between.

    Reference: VAT (Zhang et al. 2024, arXiv 2412.02202, 6.3.1), s = 1/128 in the unit cube.

    Raises:
        ValueError: a width that is not positive.
    """
    if not width > 0:
        raise ValueError(f"`width` must be positive, got {width}")
    return (0.5 - sdf * (0.5 / width)).clamp(0, 1)


# ---- Presets -----------------------------------------------------------------------------------------------


def _check_sigmas(sigmas: Sequence[float], name: str) -> None:
    if not sigmas or min(sigmas) < 0:
        raise ValueError(f"`{name}` must be one or more numbers >= 0, got {list(sigmas)}")


@dataclass(frozen=True)
class QueryPreset:
    """How one paper makes training data from a mesh. All lengths are in the normalized frame.

    Attributes:
        name: of the preset.
        reference: where the rules stand, and which of the numbers are ours because the source is silent.
        normalization: "box" (center of the bounding box, longest side to 2 `extent`) or "sphere" (the same
            center, farthest vertex to `extent`).
        extent: see there.
        epsilon: level of the unsigned distance at which the source makes a mesh watertight; None where it
            goes another way. Data record it: within it of the input the labels are those of a thickened
            surface.
        num_surface: stored surface points with normals, uniform by area.
        oversample: points that these are picked from by farthest point sampling; None: no picking.
        num_sharp: stored points on sharp edges, 0 for none.
        sharp_angle, sharp_weighting: as `sample_sharp_edges` takes them.
        volume: domain of the volume queries, "cube" (half side `volume_bound`) or "ball" (radius).
        volume_bound: see there.
        num_volume: stored volume queries.
        num_near: stored near queries, of all sigmas together.
        near_sigmas: standard deviations of their distance from a uniform surface point, per axis. Each point
            is moved once by each.
        num_sharp_near, sharp_sigmas: the same around the points on sharp edges.
        truncation: bound of a displacement along each axis; None leaves the normal distribution as it is.
        label: "occupancy", "tsdf" or "semi_continuous".
        label_width: truncation of the TSDF, or half width of the semi-continuous band; 0 for occupancy.
        surface_per_step, sharp_per_step: points that a training step shows the encoder.
        volume_per_step, near_per_step, sharp_near_per_step: queries that a training step draws.
        balanced: whether half of a step's volume queries are inside, see `draw_balanced`.
    """

    name: str
    reference: str
    normalization: Literal["box", "sphere"] = "box"
    extent: float = 1.0
    epsilon: float | None = None
    num_surface: int = 100_000
    oversample: int | None = None
    num_sharp: int = 0
    sharp_angle: float = 15.0
    sharp_weighting: Literal["dora", "length", "angle", "area"] = "dora"
    volume: Literal["cube", "ball"] = "cube"
    volume_bound: float = 1.0
    num_volume: int = 250_000
    num_near: int = 250_000
    near_sigmas: tuple[float, ...] = (0.005, 0.05)
    num_sharp_near: int = 0
    sharp_sigmas: tuple[float, ...] = ()
    truncation: float | None = None
    label: Literal["occupancy", "tsdf", "semi_continuous"] = "occupancy"
    label_width: float = 0.0
    surface_per_step: int = 2048
    sharp_per_step: int = 0
    volume_per_step: int = 1024
    near_per_step: int = 1024
    sharp_near_per_step: int = 0
    balanced: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "near_sigmas", tuple(self.near_sigmas))
        object.__setattr__(self, "sharp_sigmas", tuple(self.sharp_sigmas))
        for name, allowed in (
            ("normalization", ("box", "sphere")),
            ("sharp_weighting", ("dora", "length", "angle", "area")),
            ("volume", ("cube", "ball")),
            ("label", ("occupancy", "tsdf", "semi_continuous")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {allowed}, got {getattr(self, name)!r}")
        for field in fields(self):
            value = getattr(self, field.name)
            if (field.name.startswith("num_") or field.name.endswith("_per_step")) and value < 0:
                raise ValueError(f"`{field.name}` must be at least 0, got {value}")
        for count, sigmas in (("num_near", "near_sigmas"), ("num_sharp_near", "sharp_sigmas")):
            if getattr(self, count):
                _check_sigmas(getattr(self, sigmas), sigmas)
        for name in ("extent", "volume_bound"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}")
        if self.label != "occupancy" and not self.label_width > 0:
            raise ValueError(f"`label_width` must be positive, got {self.label_width}")

    def normalize(self, mesh: Mesh) -> tuple[Mesh, Normalization]:
        """The mesh in the preset's frame, and the way back."""
        return normalize(mesh, extent=self.extent, fit=self.normalization)

    def labels(self, sdf: Tensor) -> Tensor:
        """What the field's answers are where the signed distance (negative inside) is `sdf`: bool for
        occupancy, else the dtype of `sdf`."""
        if self.label == "tsdf":
            return tsdf(sdf, self.label_width)
        if self.label == "semi_continuous":
            return semi_continuous_occupancy(sdf, self.label_width)
        return occupancy(sdf)

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings and lists, as JSON has them."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QueryPreset:
        """What `to_dict` gave.

        Raises:
            ValueError: a name that is none of the fields, or a field without a default is missing.
        """
        names = {field.name for field in fields(cls)}
        unknown, missing = sorted(set(values) - names), sorted({"name", "reference"} - set(values))
        if unknown or missing:
            raise ValueError(f"not a query preset: unknown fields {unknown}, missing fields {missing}")
        return cls(**values)


QUERY_PRESETS: dict[str, QueryPreset] = {
    preset.name: preset
    for preset in (
        QueryPreset(
            name="vecset",
            reference="3DShape2VecSet (arXiv 2301.11445) and its code. The sigmas are those of LaGeM's "
            "appendix, which says that its preparation is that of 3DILG; the stored numbers too.",
            num_surface=100_000,
            surface_per_step=2048,
            volume_per_step=1024,
            near_per_step=1024,
        ),
        QueryPreset(
            name="lagem",
            reference="LaGeM (arXiv 2410.01295), appendices A to E, and its code.",
            normalization="sphere",
            num_surface=125_000,
            volume="ball",
            volume_bound=3**0.5,
            surface_per_step=8192,
            balanced=True,
        ),
        QueryPreset(
            name="dora",
            reference="Dora (arXiv 2412.17808), sharp_edge_sampling and the training configuration of its "
            "code, v1.1. TSDF with our sign, negative inside.",
            epsilon=2 / 256,
            num_surface=32_768,
            oversample=200_000,
            num_sharp=32_768,
            volume_bound=1.05,
            num_volume=200_000,
            num_near=400_000,
            near_sigmas=(0.001, 0.005),
            num_sharp_near=4 * 32_768,
            sharp_sigmas=(0.001, 0.005, 0.007, 0.01),
            label="tsdf",
            label_width=0.015,
            surface_per_step=32_768,
            sharp_per_step=32_768,
            volume_per_step=10_000,
            near_per_step=10_000,
            sharp_near_per_step=21_384,
        ),
        QueryPreset(
            name="vat",
            reference="VAT (arXiv 2412.02202), 4 and 6.1 to 6.3. It does not say how its near points are "
            "drawn, nor how many are stored: the sigmas are LaGeM's, halved for the unit cube.",
            extent=0.5,
            num_surface=80_000,
            volume_bound=0.5,
            near_sigmas=(0.0025, 0.025),
            label="semi_continuous",
            label_width=1 / 128,
            surface_per_step=80_000,
            volume_per_step=20_000,
            near_per_step=20_000,
        ),
        QueryPreset(
            name="hunyuan",
            reference="Hunyuan3D-2.1 (arXiv 2506.15442): sigmas, bound, truncation and numbers of points as "
            "published; the number of volume and near queries is ours. Its sharp edges are sampled by "
            "length. It asks for the signed distance; this preset gives occupancy.",
            epsilon=4 / 256,
            num_surface=124_928,
            num_sharp=124_928,
            sharp_weighting="length",
            volume_bound=1.05,
            truncation=0.25,
            num_sharp_near=6 * 20_000,
            sharp_sigmas=(0.001, 0.003, 0.06, 0.01, 0.02, 0.04),
        ),
    )
}


def query_preset(preset: str | QueryPreset) -> QueryPreset:
    """A preset by its name, or itself.

    Raises:
        ValueError: unknown name; lists those that exist.
    """
    if isinstance(preset, QueryPreset):
        return preset
    if preset not in QUERY_PRESETS:
        raise ValueError(f"`preset` must be one of {sorted(QUERY_PRESETS)}, got {preset!r}")
    return QUERY_PRESETS[preset]


# ---- Queries -----------------------------------------------------------------------------------------------


class Queries(NamedTuple):
    """Places to ask a field at, float32: in the volume (Nv, 3), near the surface (Nn, 3), near sharp edges
    (Ns, 3)."""

    volume: Tensor
    near: Tensor
    sharp_near: Tensor


def sample_queries(
    mesh: Mesh,
    num_volume: int | None = None,
    num_near: int | None = None,
    *,
    preset: str | QueryPreset = "vecset",
    sigmas: Sequence[float] | None = None,
    bound: float | None = None,
    num_sharp_near: int | None = None,
    sharp: Tensor | None = None,
    generator: Generator | None = None,
) -> Queries:
    """Draw the places where training asks the field of a normalized mesh.

    Volume points are uniform in the preset's cube or ball. Near points are surface points moved by a normal
    distribution along each axis: Nn / len(sigmas) points (rounded up) are drawn by area and moved by the
    first sigma, then the same by the second and so on. Points near sharp edges are made in the same way of
    points on sharp edges.

    Args:
        mesh: a mesh in the preset's frame, see `QueryPreset.normalize`.
        num_volume: Nv; None is the preset's.
        num_near: Nn; None is the preset's.
        preset: a paper's rules: "vecset", "lagem", "dora", "vat", "hunyuan", or your own.
        sigmas: standard deviations of the near points instead of the preset's.
        bound: half side of the cube, or radius of the ball, instead of the preset's.
        num_sharp_near: Ns; None is the preset's where `num_volume` and `num_near` are too, else 0.
        sharp: points on sharp edges (P, 3), those that the encoder is shown; None draws the preset's number.
            Of another number than Ns / len(sharp_sigmas), rounded up, as many are drawn. (Dora's code moves
            all end vertices of sharp edges, where they are more than the encoder is shown.)
        generator: CPU generator; None draws from torch's global one.

    Raises:
        ValueError: unknown preset, a negative count, no sigmas, or no surface area.
    """
    preset = query_preset(preset)
    if num_sharp_near is None:
        num_sharp_near = preset.num_sharp_near if num_volume is None and num_near is None else 0
    num_volume = preset.num_volume if num_volume is None else num_volume
    num_near = preset.num_near if num_near is None else num_near
    for name, count in (
        ("num_volume", num_volume),
        ("num_near", num_near),
        ("num_sharp_near", num_sharp_near),
    ):
        if count < 0:
            raise ValueError(f"`{name}` must be at least 0, got {count}")
    sigmas = preset.near_sigmas if sigmas is None else sigmas
    _check_sigmas(sigmas, "sigmas")
    bound = preset.volume_bound if bound is None else bound

    if preset.volume == "ball":
        volume = _ball(num_volume, bound, generator)
    else:
        volume = (torch.rand(num_volume, 3, generator=generator) * 2 - 1) * bound
    surface = sample_surface(mesh, -(-num_near // len(sigmas)), generator).points
    near = _around(surface, num_near, sigmas, preset.truncation, generator)
    if not num_sharp_near:
        return Queries(volume, near, torch.zeros(0, 3))
    _check_sigmas(preset.sharp_sigmas, "sharp_sigmas")
    count = -(-num_sharp_near // len(preset.sharp_sigmas))
    if sharp is None:
        sharp = sample_sharp_edges(
            mesh,
            preset.num_sharp or count,
            angle=preset.sharp_angle,
            weighting=preset.sharp_weighting,
            generator=generator,
        ).points
    if len(sharp) != count:
        sharp = sharp[torch.randint(len(sharp), (count,), generator=generator)]
    sharp_near = _around(sharp, num_sharp_near, preset.sharp_sigmas, preset.truncation, generator)
    return Queries(volume, near, sharp_near)


def _ball(count: int, radius: float, generator: Generator | None) -> Tensor:
    """Points uniform in a ball, as LaGeM draws them: a direction, and a radius by the third root."""
    direction = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    reach = torch.rand(count, 1, generator=generator, dtype=torch.float64) ** (1 / 3)
    return (torch.nn.functional.normalize(direction, dim=1) * reach * radius).float()


def _around(
    points: Tensor, count: int, sigmas: Sequence[float], truncation: float | None, generator: Generator | None
) -> Tensor:
    """`count` points: all of `points` moved by the first sigma, then by the second, and so on."""
    # In double: torch draws single normal numbers in another way on each kind of processor.
    noise = torch.randn(len(sigmas), len(points), 3, generator=generator, dtype=torch.float64)
    noise *= torch.tensor(list(sigmas), dtype=torch.float64)[:, None, None]
    if truncation is not None:
        noise.clamp_(-truncation, truncation)
    return (points + noise.float()).reshape(-1, 3)[:count]


# ---- Balanced draws ----------------------------------------------------------------------------------------


def draw_balanced(
    volume_inside: Tensor, near_inside: Tensor, count: int, *, generator: Generator | None = None
) -> Tensor:
    """Draw a step's volume queries so that half of them are inside, also of thin shapes.

    The first `count // 2` are inside: volume points if enough of those are inside, else near points if enough
    of those are, else any volume points. The others are outside, by the same rule. Nothing is drawn twice
    unless there are fewer points of all kinds than asked for.

    Args:
        volume_inside: (V,) bool, which stored volume points are inside.
        near_inside: (W,) bool, which stored near points are inside.
        count: number of queries, at least 0.
        generator: CPU generator; None draws from torch's global one.

    Returns:
        (count,) int64, rows of ``torch.cat([volume, near])``.

    Raises:
        TypeError: a mask that is not bool.
        ValueError: a negative count, or no volume points.

    Reference: LaGeM (arXiv 2410.01295), appendix D, and its code, which asks for more than 512 inside points
    whatever the count, and which replaces a draw of near points by volume points of the same rows: where it
    matters, for thin shapes, its inside half is not inside.
    """
    for name, mask in (("volume_inside", volume_inside), ("near_inside", near_inside)):
        if mask.dtype != torch.bool:
            raise TypeError(f"`{name}` must be bool, got {mask.dtype}")
    if count < 0:
        raise ValueError(f"`count` must be at least 0, got {count}")
    if count and not len(volume_inside):
        raise ValueError("there are no volume points to draw from")
    size = len(volume_inside)
    halves = []
    for inside, number in ((True, count // 2), (False, count - count // 2)):
        pool = (volume_inside == inside).nonzero()[:, 0]
        if len(pool) < number:
            pool = (near_inside == inside).nonzero()[:, 0] + size
        if len(pool) < number:
            pool = torch.arange(size)
        if len(pool) < number:
            halves.append(pool[torch.randint(len(pool), (number,), generator=generator)])
        else:
            halves.append(pool[torch.randperm(len(pool), generator=generator)[:number]])
    return torch.cat(halves)
