"""Each preset on a case whose table can be computed by hand: squares one above the other."""

import math
from dataclasses import replace

import pytest
import torch
from known_meshes import box, square

from fastshape.geometry import PROTOCOLS, Column, Mesh, Protocol, evaluate
from fastshape.geometry.protocols import to_box

SIDE, SHIFT = 10.0, 0.02  # in the meshes' own unit


def expected(scale: float, count: int, shift: float = SHIFT) -> dict[str, float]:
    """CD and F of parallel squares in closed form, in a box where a unit is `scale` long."""
    height, density = shift * scale, math.pi * count / (SIDE * scale) ** 2
    root = math.sqrt(density) * height
    values = {
        "l1": height + math.sqrt(math.pi / density) / 2 * math.exp(root**2) * math.erfc(root),
        "l2": height**2 + 1 / density,
    }
    for threshold in (0.005, 0.01, 0.02):
        within = threshold**2 - height**2
        values[f"f{threshold}"] = 1 - math.exp(-density * within) if within > 0 else 0.0
    return values


def table(preset: str, count: int) -> dict[str, float]:
    result = evaluate(
        square(SIDE, SHIFT),
        square(SIDE),
        replace(PROTOCOLS[preset], sharp_size=64),
        num_samples=count,
        num_volume_samples=100,
        num_near_samples=100,
    )
    assert result.protocol.name == preset
    assert preset in str(result)
    return {label: math.nan if value == "-" else float(value) for label, value in result.table().items()}


def test_vecset() -> None:
    """[-1, 1]: a square of 10 becomes one of 2. Not squared, not halved, no factor."""
    protocol = PROTOCOLS["vecset"]
    assert (protocol.num_samples, protocol.box, protocol.thresholds[-1]) == (100_000, "cube", 0.02)
    found, wanted = table("vecset", 20_000), expected(0.2, 20_000)
    assert found["CD (L1, sum)"] == pytest.approx(2 * wanted["l1"], rel=0.02)
    assert found["F@.02"] == pytest.approx(wanted["f0.02"], abs=0.01)
    assert math.isnan(found["IoU"])


def test_lagem() -> None:
    """Unit sphere: half the diagonal becomes 1. Times 100."""
    protocol = PROTOCOLS["lagem"]
    assert (protocol.num_samples, protocol.box) == (100_000, "sphere")
    found, wanted = table("lagem", 20_000), expected(1 / (SIDE / 2**0.5), 20_000)
    assert found["CD (L1, sum) x100"] == pytest.approx(200 * wanted["l1"], rel=0.02)
    assert found["F@.02 x100"] == pytest.approx(100 * wanted["f0.02"], abs=1)


def test_dora() -> None:
    protocol = PROTOCOLS["dora"]
    assert (protocol.num_samples, protocol.box, protocol.sharp_views) == (1_000_000, "cube", 22)
    found, wanted = table("dora", 20_000), expected(0.2, 20_000)
    assert found["CD-L1 (mean of two) x1e4"] == pytest.approx(1e4 * wanted["l1"], rel=0.02)
    assert found["CD-L2² (sum) x1e4"] == pytest.approx(2e4 * wanted["l2"], rel=0.03)
    assert found["F@.01 x100"] == pytest.approx(100 * wanted["f0.01"], abs=1)
    assert found["F@.005 x100"] == pytest.approx(100 * wanted["f0.005"], abs=1)
    assert 0 < found["SNE x100"] < 100 / 12


def test_triposf() -> None:
    """A box of side 1; squared; times 1e5."""
    protocol = PROTOCOLS["triposf"]
    assert (protocol.num_samples, protocol.box) == (100_000, "unit")
    found, wanted = table("triposf", 20_000), expected(0.1, 20_000)
    assert found["CD-L2² (sum) x1e5"] == pytest.approx(2e5 * wanted["l2"], rel=0.03)
    assert found["F@.005"] == pytest.approx(wanted["f0.005"], abs=0.01)


def test_vat() -> None:
    """A box of side 1; 10,000 points; ICP takes the shift away, so that the floor is left."""
    protocol = PROTOCOLS["vat"]
    assert (protocol.num_samples, protocol.box, protocol.align) == (10_000, "unit", "icp")
    assert (protocol.num_volume_samples, protocol.num_near_samples) == (40_000, 40_000)
    assert (protocol.num_near_accuracy, protocol.near_distance) == (10_000, 0.05)
    result = evaluate(square(SIDE, 30 * SHIFT), square(SIDE), "vat", num_volume_samples=0, num_near_samples=0)
    assert result.alignment is not None
    assert result.alignment.degrees < 1
    assert float(result.alignment.translation[2]) == pytest.approx(-30 * SHIFT / SIDE, rel=0.01)
    wanted = expected(0.1, 10_000, 0.0)
    assert result.scores.chamfer_l1_sum == pytest.approx(2 * wanted["l1"], rel=0.03)
    assert result.scores.fscore[0.01] == pytest.approx(wanted["f0.01"], abs=0.02)
    assert result.prediction_to_surface.mean < 0.005
    assert result.target_to_surface.mean < 0.005  # to the prediction where ICP moved it


def test_vat_asks_solids_where_they_stand() -> None:
    """[0, 1] against [0.5, 1.5]: 0.5 of the target's box in common, nothing of the rest of the prediction
    in it. Pooled with the near points, of which the first tell the near accuracy."""
    result = evaluate(box((0.5, 0, 0), (1.5, 1, 1)), box((0, 0, 0), (1, 1, 1)), "vat", num_samples=500)
    occupancy = result.occupancy
    assert occupancy is not None
    assert occupancy.volume_iou == pytest.approx(0.5, abs=0.01)  # the box asked is the target's
    assert occupancy.volume_accuracy == pytest.approx(0.5, abs=0.01)
    assert occupancy.pooled_accuracy is not None
    assert occupancy.near_accuracy is not None
    assert 0.5 < occupancy.near_accuracy < 0.9
    assert {"Acc. %", "IoU %", "Near-Acc. %"} <= set(result.table())


def test_boxes() -> None:
    mesh = box((1, 1, 1), (3, 2, 2))
    for name, corner in (
        ("cube", [1, 0.5, 0.5]),
        ("unit", [0.5, 0.25, 0.25]),
        ("sphere", (torch.tensor([1, 0.5, 0.5]) / 1.5**0.5).tolist()),
        ("given", [3, 2, 2]),
    ):
        assert to_box(mesh, name).apply_mesh(mesh).bounds[1].tolist() == pytest.approx(corner)
    far = Mesh(torch.cat([mesh.vertices, torch.full((1, 3), 100.0).double()]), mesh.faces)
    assert to_box(far, "sphere") == to_box(mesh, "sphere")  # unused vertices make no box


def test_a_protocol_of_ones_own() -> None:
    mine = Protocol(
        name="mine", num_samples=500, thresholds=(0.5,), columns=(Column("fscore@0.5", "F@.5 %", 100, 1),)
    )
    result = evaluate(square(), square(), mine, num_volume_samples=0, num_near_samples=0)
    assert result.table() == {"F@.5 %": "100.0"}
    assert result.protocol.describe() == (
        "mine: target's bounding box in [-1, 1]^3; 500 points against 500; F-score at 0.5"
    )
    assert evaluate(square(), square(), mine).protocol == mine


@pytest.mark.parametrize(
    "wrong",
    [
        {"box": "round"},
        {"align": "by eye"},
        {"num_samples": 0},
        {"sharp_size": 4},
        {"near_distance": 0.0},
        {"thresholds": (0.1, -1.0)},
    ],
)
def test_wrong_protocols(wrong) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
        Protocol(**wrong)


def test_every_column_is_a_score() -> None:
    names = set(evaluate(square(), square(), num_samples=10, num_volume_samples=0).values())
    for protocol in PROTOCOLS.values():
        assert {column.key for column in protocol.columns} <= names
