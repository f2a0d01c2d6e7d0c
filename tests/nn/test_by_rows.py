"""Layers over many rows: in parts, what they hold between is bounded."""

from __future__ import annotations

import pytest
import torch

from fastshape.nn import rows
from fastshape.nn.rows import by_rows


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 24, 29])
def test_parts_are_the_whole(monkeypatch, count):
    monkeypatch.setattr(rows, "_PART", 8)
    seen = []

    def layer(x):
        seen.append(len(x))
        return torch.stack([x.sum(1), x.prod(1)], 1)

    x = torch.arange(3.0 * count).view(count, 3)
    with torch.no_grad():
        assert torch.equal(by_rows(layer, x), torch.stack([x.sum(1), x.prod(1)], 1))
    assert max(seen) <= 8
    assert sum(seen) == count
    by_rows(layer, x)  # gradients want it whole
    assert seen[-1] == count
