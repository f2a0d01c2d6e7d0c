"""Meshes in clip coordinates for the tests of rasterize, interpolate and antialias."""

import math

import torch

from fastshape import _C, _library, testing


def cpu_kernels():
    """Within it the CPU kernels run, whatever back end the test is for."""
    return _library.use_backend(_C)


def perspective(field_of_view=45.0, near=0.5, far=20.0, aspect=1.0):
    """(4, 4) float64, of a camera that looks along -z."""
    scale = 1 / math.tan(math.radians(field_of_view) / 2)
    matrix = torch.zeros(4, 4, dtype=torch.float64)
    matrix[0, 0], matrix[1, 1] = scale / aspect, scale
    matrix[2, 2], matrix[2, 3] = -(far + near) / (far - near), -2 * far * near / (far - near)
    matrix[3, 2] = -1
    return matrix


def to_clip(vertices, distance=3.0, turn=0.0, dtype=torch.float32, **camera):
    """(V, 4) of a camera on the z axis, the mesh turned about y."""
    c, s = math.cos(turn), math.sin(turn)
    turned = vertices.double() @ torch.tensor([[c, 0, -s], [0, 1, 0], [s, 0, c]], dtype=torch.float64)
    moved = turned - torch.tensor([0, 0, distance], dtype=torch.float64)
    homogeneous = torch.cat([moved, torch.ones(len(vertices), 1, dtype=torch.float64)], 1)
    return (homogeneous @ perspective(**camera).T).to(dtype).contiguous()


def soup(count=40, seed=0, dtype=torch.float32, spread=1.5):
    """Triangles through each other, some reaching behind the camera, some out of view."""
    g = testing.generator(seed)
    vertices = torch.randn(3 * count, 4, generator=g, dtype=torch.float64) * spread
    vertices[:, 3] = torch.rand(3 * count, generator=g, dtype=torch.float64) * 3 - 0.7
    return vertices.to(dtype), torch.arange(3 * count).view(-1, 3)


def flat_grid(rows, columns, seed=0, jitter=0.3, dtype=torch.float32):
    """A triangulation of the square from -1 to 1 with moved inner vertices and random diagonals."""
    g = testing.generator(seed)
    y, x = torch.meshgrid(torch.arange(rows + 1.0), torch.arange(columns + 1.0), indexing="ij")
    move = (torch.rand(2, rows + 1, columns + 1, generator=g) * 2 - 1) * jitter
    move[0, [0, -1]] = 0
    move[1, :, [0, -1]] = 0
    points = torch.stack([(x + move[1]) / columns, (y + move[0]) / rows], -1).view(-1, 2) * 2 - 1
    points[:, 0] = points[:, 0].where(points[:, 0].abs() < 0.999, points[:, 0].sign())
    corner = (torch.arange(rows)[:, None] * (columns + 1) + torch.arange(columns)).flatten()
    a, b, c, d = corner, corner + 1, corner + columns + 2, corner + columns + 1
    first = torch.rand(len(corner), generator=g) < 0.5
    one = torch.where(first[:, None], torch.stack([a, b, c], 1), torch.stack([a, b, d], 1))
    two = torch.where(first[:, None], torch.stack([a, c, d], 1), torch.stack([b, c, d], 1))
    clip = torch.cat([points, torch.zeros(len(points), 1), torch.ones(len(points), 1)], 1)
    return clip.to(dtype), torch.cat([one, two])
