"""Adam on some rows of parameters at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_BETAS = 0.9, 0.999
_EPS = 1e-8


class RowAdam:
    """Adam that moves some rows of its parameters in a step, and keeps a count of the steps of each row.

    `torch.optim.SparseAdam` moves rows alike, but corrects both means for the steps of all: a row that takes
    part for the first time after many steps moves three rates and more, where it moves one here.

    Args:
        parameters: (N, C) each, not to be differentiated.

    Reference: Kingma and Ba 2015.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.means = [torch.zeros_like(tensor) for tensor in self.parameters]
        self.squares = [torch.zeros_like(tensor) for tensor in self.parameters]
        self.counts = [tensor.new_zeros(len(tensor), 1) for tensor in self.parameters]

    @torch.no_grad()
    def step(self, rows: Sequence[Tensor], gradients: Sequence[Tensor], rate: float) -> None:
        """Moves rows (n,) of each parameter, every one once, by their gradients (n, C)."""
        for parameter, mean, square, count, some, gradient in zip(
            self.parameters, self.means, self.squares, self.counts, rows, gradients, strict=True
        ):
            number = count.index_select(0, some).add_(1)
            first = mean.index_select(0, some).lerp_(gradient, 1 - _BETAS[0])
            second = square.index_select(0, some).mul_(_BETAS[1])
            second.addcmul_(gradient, gradient, value=1 - _BETAS[1])
            count.index_copy_(0, some, number)
            mean.index_copy_(0, some, first)
            square.index_copy_(0, some, second)
            first.div_(1 - _BETAS[0] ** number)
            second.div_(1 - _BETAS[1] ** number).sqrt_().add_(_EPS)
            moved = parameter.index_select(0, some).addcdiv_(first, second, value=-rate)
            parameter.index_copy_(0, some, moved)

    def state(self) -> dict[str, Tensor]:
        """Everything that a run needs to go on."""
        return {
            f"{name}.{i}": tensor
            for name in ("means", "squares", "counts")
            for i, tensor in enumerate(getattr(self, name))
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes over a :meth:`state`."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
