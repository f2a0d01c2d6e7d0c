"""What a call costs before its kernel does anything: a tiny operation beside one of torch's."""

from __future__ import annotations

import torch

from fastshape import ops
from fastshape.reference import sampling as reference

from .registry import Case, Peer, Target, row


@row(family="overhead", op="farthest_point_sampling", shape="1x16->4")
def farthest_point_sampling(device: torch.device) -> Case:
    points = torch.rand(1, 16, 3, device=device)
    left, right = points[0].clone(), points[0].clone()
    return Case(
        run=lambda: ops.farthest_point_sampling(points, 4),
        reference=lambda: reference.farthest_point_sampling(points, 4),
        peers={
            "torch.add": Peer(lambda: torch.add(left, right), check=lambda *_: None, note="another operation")
        },
        cold=False,
        clock="host",
        target=Target("torch.add", 4.0),
    )
