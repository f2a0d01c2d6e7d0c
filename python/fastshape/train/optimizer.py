"""The optimizer of a run: AdamW, or Muon for the matrices of the layers and AdamW for all else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastshape.train.config import RunConfig

# What attention and feed-forward layers call their matrices. Embeddings, projections of inputs and outputs,
# codebooks and convolutions are not among them: what Muon does to all directions alike does these no good.
_MATRICES = ("to_q", "to_kv", "to_qkv", "to_out", "proj_in", "proj_out", "mlp_in", "mlp_out")


def make_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """The optimizer that `config.optimizer` names, of the parameters of `model`."""
    options: dict[str, Any] = {"betas": config.betas, "eps": config.adam_eps, "fused": True}
    both: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), **both, **options)
    matrices = [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in _MATRICES
    ]
    if not matrices:
        raise ValueError(f"`optimizer` 'muon' needs layers of attention, {type(model).__name__} has none")
    chosen = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return Joined(
        # with this adjustment a step is as large as one of AdamW, and one learning rate serves both
        torch.optim.Muon(matrices, **both, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, **both, **options),
    )


class Joined(torch.optim.Optimizer):
    """Several optimizers of one group of parameters each, as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of each."""
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of every optimizer."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """The parts work on this optimizer's own state and groups."""
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.state, part.param_groups = self.state, [group]
