"""ICP undoes a motion that is known."""

import math

import pytest
import torch

from fastshape.geometry import icp, sample_surface, shapes
from fastshape.geometry.icp import best_rigid_motion


def turned(points: torch.Tensor, degrees: float, shift: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Points turned about (1, 2, 3) and shifted, and the rotation."""
    axis = torch.tensor([1.0, 2, 3], dtype=torch.float64)
    x, y, z = (axis / axis.norm()).tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    angle = math.radians(degrees)
    rotation = torch.eye(3).double() + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    return points @ rotation.T + torch.tensor(shift, dtype=torch.float64), rotation


@pytest.fixture
def cloud() -> torch.Tensor:
    return sample_surface(shapes.csg(3), 4000, torch.Generator().manual_seed(0)).points.double()


def test_the_best_motion_of_pairs(cloud) -> None:
    moved, rotation = turned(cloud, 170, [1, -2, 3])
    motion = best_rigid_motion(moved, cloud)
    torch.testing.assert_close(motion.rotation, rotation.T)
    torch.testing.assert_close(motion.apply(moved), cloud)
    assert motion.degrees == pytest.approx(170)
    # A mirror image is not reached by a reflection.
    mirrored = cloud * torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    assert float(torch.linalg.det(best_rigid_motion(mirrored, cloud).rotation)) == pytest.approx(1)


def test_icp_undoes_a_rotation(cloud) -> None:
    moved, rotation = turned(cloud, 12, [0.05, -0.03, 0.02])
    motion = icp(moved, cloud)
    torch.testing.assert_close(motion.rotation, rotation.T, atol=1e-6, rtol=0)
    torch.testing.assert_close(motion.apply(moved), cloud, atol=1e-6, rtol=0)
    assert motion.rms < 1e-6
    assert 1 < motion.iterations < 100
    torch.testing.assert_close(
        motion.rotate(rotation[None, :, 0]), torch.eye(3)[:1].double(), atol=1e-5, rtol=0
    )


def test_icp_of_two_samples_in_float32(cloud) -> None:
    other = sample_surface(shapes.csg(3), 4000, torch.Generator().manual_seed(1)).points
    moved, _ = turned(cloud, 5, [0.02, 0, -0.02])
    motion = icp(moved.float(), other)
    assert motion.degrees == pytest.approx(5, abs=0.2)
    assert float((motion.apply(moved) - cloud).norm(dim=1).mean()) < 0.003


def test_no_steps_and_wrong_inputs(cloud) -> None:
    motion = icp(cloud[:10], cloud, max_iterations=0)
    assert (motion.iterations, motion.degrees) == (0, 0)
    assert torch.equal(motion.apply(cloud), cloud)
    with pytest.raises(ValueError, match="must not be empty"):
        icp(cloud[:0], cloud)
    with pytest.raises(ValueError, match="`max_iterations` must be at least 0"):
        icp(cloud, cloud, max_iterations=-1)
