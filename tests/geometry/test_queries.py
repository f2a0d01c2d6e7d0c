import json
from dataclasses import replace

import pytest
import torch

from fastshape.geometry import (
    QUERY_PRESETS,
    Mesh,
    QueryPreset,
    draw_balanced,
    occupancy,
    sample_queries,
    sample_sharp_edges,
    semi_continuous_occupancy,
    shapes,
    signed_distance,
    tsdf,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def torus_distance(points: torch.Tensor) -> torch.Tensor:
    """To the surface that `shapes.torus()` approximates within 5e-4."""
    ring = points[:, :2].norm(dim=1) - 0.7 / 0.95
    return torch.stack([ring, points[:, 2]], 1).norm(dim=1) - 0.25 / 0.95


def test_volume_and_near_follow_numbers_and_sigmas() -> None:
    queries = sample_queries(shapes.torus(), 5000, 4000, preset="vecset", generator=seeded())
    assert queries.volume.shape == (5000, 3)
    assert queries.near.shape == (4000, 3)
    assert queries.sharp_near.shape == (0, 3)
    assert {part.dtype for part in queries} == {torch.float32}
    assert float(queries.volume.abs().max()) <= 1
    torch.testing.assert_close(queries.volume.mean(0), torch.zeros(3), atol=0.05, rtol=0)
    # Across the surface the displacement is the normal distribution's, for a small sigma.
    small, large = torus_distance(queries.near).split(2000)
    assert float(small.std()) == pytest.approx(0.005, rel=0.1)
    assert float(large.std()) == pytest.approx(0.05, rel=0.15)
    odd = sample_queries(shapes.torus(), 0, 7, sigmas=[0.0, 0.1], generator=seeded())
    assert odd.near.shape == (7, 3)
    assert float(torus_distance(odd.near)[:4].abs().max()) < 1e-3
    assert float(torus_distance(odd.near)[4:].abs().min()) > 1e-3
    wide = sample_queries(shapes.torus(), 2000, 0, bound=1.5, generator=seeded()).volume
    assert 1.4 < float(wide.abs().max()) <= 1.5


@pytest.mark.parametrize("name", sorted(QUERY_PRESETS))
def test_the_presets_draw_what_they_say(name: str) -> None:
    preset = QUERY_PRESETS[name]
    mesh, normalization = preset.normalize(shapes.gear())
    torch.testing.assert_close(normalization.undo_mesh(mesh).vertices.float(), shapes.gear().vertices)
    small = replace(
        preset,
        num_volume=20_000,
        num_near=4000 * len(preset.near_sigmas),
        num_sharp=min(preset.num_sharp, 3000),
        num_sharp_near=3000 * len(preset.sharp_sigmas),
    )
    queries = sample_queries(mesh, preset=small, generator=seeded(1))
    again = sample_queries(mesh, preset=small, generator=seeded(1))
    assert all(torch.equal(a, b) for a, b in zip(queries, again, strict=True))
    assert [len(part) for part in queries] == [20_000, small.num_near, small.num_sharp_near]

    bound = preset.volume_bound
    if preset.volume == "ball":
        radius = queries.volume.norm(dim=1)
        assert float(radius.max()) <= bound * (1 + 1e-6)
        # Equal volumes hold equal numbers.
        shell = ((radius / bound) ** 3 * 10).long().clamp_(max=9).bincount(minlength=10)
    else:
        assert float(queries.volume.abs().max()) <= bound
        shell = ((queries.volume[:, 0] / bound + 1) * 5).long().clamp_(max=9).bincount(minlength=10)
    assert float(((shell.double() - 2000) ** 2 / 2000).sum()) < 50
    octant = ((queries.volume > 0).long() @ torch.tensor([1, 2, 4])).bincount(minlength=8).double()
    assert float(((octant - 2500) ** 2 / 2500).sum()) < 45

    # Same points under every sigma: what they were moved by is found by subtraction.
    near = queries.near.reshape(len(preset.near_sigmas), 4000, 3)
    for (i, a), (j, b) in (
        (p, q) for p in enumerate(preset.near_sigmas) for q in enumerate(preset.near_sigmas)
    ):
        if i < j:
            assert float((near[i] - near[j]).std()) == pytest.approx((a * a + b * b) ** 0.5, rel=0.05)
    if preset.truncation is None and len(preset.sharp_sigmas) > 1:
        near = queries.sharp_near.reshape(len(preset.sharp_sigmas), 3000, 3)
        first, last = preset.sharp_sigmas[0], preset.sharp_sigmas[-1]
        spread = float((near[0] - near[-1]).std())
        assert spread == pytest.approx((first**2 + last**2) ** 0.5, rel=0.05)


def test_numbers_of_the_papers() -> None:
    dora = QUERY_PRESETS["dora"]
    assert (dora.oversample, dora.num_surface, dora.num_sharp) == (200_000, 32_768, 32_768)
    assert (dora.num_volume, dora.num_near, dora.num_sharp_near) == (200_000, 400_000, 4 * 32_768)
    assert (dora.volume_bound, dora.near_sigmas) == (1.05, (0.001, 0.005))
    assert dora.sharp_sigmas == (0.001, 0.005, 0.007, 0.01)
    assert (dora.label, dora.label_width, dora.epsilon) == ("tsdf", 0.015, 2 / 256)
    steps = (dora.sharp_near_per_step, dora.near_per_step, dora.volume_per_step)
    assert steps == (21_384, 10_000, 10_000)
    lagem = QUERY_PRESETS["lagem"]
    assert (lagem.normalization, lagem.volume, lagem.balanced) == ("sphere", "ball", True)
    assert lagem.volume_bound == pytest.approx(3**0.5)
    assert (lagem.num_volume, lagem.num_near, lagem.near_sigmas) == (250_000, 250_000, (0.005, 0.05))
    vat = QUERY_PRESETS["vat"]
    assert (vat.extent, vat.volume_bound, vat.num_surface) == (0.5, 0.5, 80_000)
    assert (vat.volume_per_step, vat.near_per_step) == (20_000, 20_000)
    assert (vat.label, vat.label_width) == ("semi_continuous", 1 / 128)
    vecset = QUERY_PRESETS["vecset"]
    assert (vecset.surface_per_step, vecset.volume_per_step, vecset.near_per_step) == (2048, 1024, 1024)


def test_frames() -> None:
    mesh = shapes.gear().transform(torch.diag(torch.tensor([3.0, 2.0, 1.0, 1.0])))
    for name, preset in QUERY_PRESETS.items():
        vertices = preset.normalize(mesh)[0].vertices
        torch.testing.assert_close(vertices.amin(0), -vertices.amax(0))
        reach = vertices.norm(dim=1).max() if name == "lagem" else vertices.abs().max()
        assert float(reach) == pytest.approx(0.5 if name == "vat" else 1.0)


def test_given_sharp_points_are_used_in_their_order() -> None:
    mesh = shapes.gear()
    sharp = sample_sharp_edges(mesh, 500, generator=seeded()).points
    preset = replace(QUERY_PRESETS["dora"], num_volume=10, num_near=10, num_sharp_near=2000)
    queries = sample_queries(mesh, preset=preset, sharp=sharp, generator=seeded())
    moved = queries.sharp_near.reshape(4, 500, 3) - sharp
    for part, sigma in zip(moved, preset.sharp_sigmas, strict=True):
        assert float(part.std()) == pytest.approx(sigma, rel=0.1)
    fewer = sample_queries(mesh, 1, 1, preset=preset, num_sharp_near=401, sharp=sharp, generator=seeded())
    assert fewer.sharp_near.shape == (401, 3)
    # A smooth mesh has them too.
    smooth = sample_queries(shapes.torus(), 0, 0, preset="dora", num_sharp_near=400, generator=seeded())
    assert float(torus_distance(smooth.sharp_near).abs().max()) < 0.06


def test_truncation() -> None:
    preset = replace(QUERY_PRESETS["hunyuan"], near_sigmas=(1.0,), truncation=0.25)
    plate = Mesh(torch.zeros(3, 3) + torch.eye(3) * 1e-6, torch.tensor([[0, 1, 2]]))
    near = sample_queries(plate, 0, 2000, preset=preset, generator=seeded()).near
    assert float(near.abs().max()) == pytest.approx(0.25, abs=1e-5)


def test_a_preset_survives_json() -> None:
    for preset in QUERY_PRESETS.values():
        assert QueryPreset.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset
    with pytest.raises(ValueError, match=r"unknown fields \['colour'\], missing fields \['reference'\]"):
        QueryPreset.from_dict({"name": "mine", "colour": 1})


def test_wrong_presets_and_queries() -> None:
    mesh = shapes.torus()
    with pytest.raises(ValueError, match="must be one of"):
        sample_queries(mesh, 1, 1, preset="none")
    with pytest.raises(ValueError, match="one or more numbers"):
        sample_queries(mesh, 1, 1, sigmas=[])
    with pytest.raises(ValueError, match="`sharp_sigmas` must be one or more"):
        sample_queries(mesh, 1, 1, num_sharp_near=5)
    with pytest.raises(ValueError, match="`num_near` must be at least 0, got -3"):
        sample_queries(mesh, 1, -3)
    with pytest.raises(ValueError, match="no surface area"):
        sample_queries(Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]])), 1, 1)
    for wrong in (
        {"normalization": "cube"},
        {"num_volume": -1},
        {"near_sigmas": ()},
        {"volume_bound": 0.0},
        {"label": "tsdf", "label_width": 0.0},
    ):
        with pytest.raises(ValueError, match=f"`{list(wrong)[-1]}` must be"):
            replace(QUERY_PRESETS["vecset"], **wrong)


# ---- Labels ------------------------------------------------------------------------------------------------


def test_labels_by_hand() -> None:
    sdf = torch.tensor([-1.0, -0.015, -0.003, 0.0, 0.003, 0.015, 1.0], dtype=torch.float64)
    expected = torch.tensor([-1, -1, -0.2, 0, 0.2, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(tsdf(sdf, 0.015), expected)
    torch.testing.assert_close(QUERY_PRESETS["dora"].labels(sdf), expected)
    soft = torch.tensor([-1.0, -1 / 128, -1 / 256, 0, 1 / 256, 1 / 128, 1.0])
    torch.testing.assert_close(semi_continuous_occupancy(soft), torch.tensor([1, 1, 0.75, 0.5, 0.25, 0.0, 0]))
    torch.testing.assert_close(QUERY_PRESETS["vat"].labels(soft), semi_continuous_occupancy(soft, 1 / 128))
    assert occupancy(sdf).tolist() == [True] * 3 + [False] * 4
    assert QUERY_PRESETS["lagem"].labels(sdf).dtype == torch.bool
    for function in (tsdf, semi_continuous_occupancy):
        with pytest.raises(ValueError, match="must be positive"):
            function(sdf, 0.0)


def test_the_sign_is_negative_inside() -> None:
    mesh = shapes.torus()
    points = torch.tensor([[0.7 / 0.95, 0, 0], [0, 0, 0]])
    sdf = signed_distance(mesh, points)
    assert QUERY_PRESETS["dora"].labels(sdf).tolist() == [-1, 1]
    assert QUERY_PRESETS["vat"].labels(sdf).tolist() == [1, 0]
    assert QUERY_PRESETS["vecset"].labels(sdf).tolist() == [True, False]


# ---- Balanced draws ----------------------------------------------------------------------------------------


def test_half_is_inside_wherever_it_can_be() -> None:
    volume, near = torch.zeros(1000, dtype=torch.bool), torch.zeros(600, dtype=torch.bool)
    volume[300:500] = True
    near[:150] = True
    rows = draw_balanced(volume, near, 300, generator=seeded())
    assert len(rows.unique()) == 300
    assert int(rows.max()) < 1000
    assert int(volume[rows].sum()) == 150
    assert torch.equal(rows, draw_balanced(volume, near, 300, generator=seeded()))
    seen = torch.zeros(1000)
    for seed in range(200):
        seen[draw_balanced(volume, near, 101, generator=seeded(seed))] += 1
    assert 25 < float(seen[volume].min()) <= float(seen[volume].max()) < 80  # 50 expected, sd 6
    assert float(seen[~volume].sum()) == 200 * 51


def test_the_fallback_of_the_balanced_draw() -> None:
    both = torch.cat
    volume, near = torch.zeros(1000, dtype=torch.bool), torch.zeros(600, dtype=torch.bool)
    volume[:10] = True
    near[100:300] = True
    # Too few volume points inside: near points, the right rows of them.
    rows = draw_balanced(volume, near, 200, generator=seeded())
    assert bool((rows[:100] >= 1000).all())
    assert both([volume, near])[rows].tolist() == [True] * 100 + [False] * 100
    # Too few of both: any volume points.
    rows = draw_balanced(volume, near, 500, generator=seeded())
    assert int(rows.max()) < 1000
    assert len(rows[:250].unique()) == 250
    assert not bool(volume[rows[250:]].any())
    # The other half likewise: a solid that fills the cube.
    rows = draw_balanced(~torch.zeros(1000, dtype=torch.bool), near, 200, generator=seeded())
    assert both([torch.ones(1000, dtype=torch.bool), near])[rows].tolist() == [True] * 100 + [False] * 100
    rows = draw_balanced(volume[:20], near[:0], 100, generator=seeded())
    assert len(rows) == 100
    assert draw_balanced(volume, near, 0).shape == (0,)


def test_wrong_balanced_draws() -> None:
    mask = torch.ones(4, dtype=torch.bool)
    with pytest.raises(TypeError, match="`near_inside` must be bool"):
        draw_balanced(mask, mask.float(), 2)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        draw_balanced(mask, mask, -1)
    with pytest.raises(ValueError, match="no volume points"):
        draw_balanced(mask[:0], mask, 1)
