"""The quantizer of next-scale models at the size of VAT: 4 shapes of 1024 x 16, 12 scales, 2280 tokens each,
beside the formula of VAR in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastshape import ops
from fastshape.reference import quantize as reference

from .bench_quantize import nearest_by_product
from .registry import Case, Peer, Target, row

_SIDES, _BATCH, _DIM, _PHIS, _BETA = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 24, 32), 4, 16, 4, 0.25
_SIDE = _SIDES[-1]
_INDEX = ops.shared_phi_index(len(_SIDES), _PHIS)


class Inputs(NamedTuple):
    z: Tensor  # (B, 1024, 16)
    codebook: Tensor
    weight: Tensor
    bias: Tensor

    def leaves(self, dtype: torch.dtype = torch.float32) -> Inputs:
        return Inputs(*(tensor.detach().to(dtype).requires_grad_() for tensor in self))


def inputs(num_codes: int, device: torch.device) -> Inputs:
    return Inputs(
        torch.randn(_BATCH, _SIDE**2, _DIM).to(device),
        (torch.randn(num_codes, _DIM) * 0.7).to(device),
        (torch.randn(_PHIS, _DIM, _DIM, 3, 3) / 40).to(device),
        (torch.randn(_PHIS, _DIM) / 10).to(device),
    )


def image(tokens: Tensor) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, (_SIDE, _SIDE))


def formula(data: Inputs, codes: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """What VAR's quantizer computes, in torch: codes (B, T), quantized (B, 16, 32, 32), loss."""
    z = image(data.z)
    rest, fhat = z.detach().clone(), torch.zeros_like(z)
    found, loss = [], z.new_zeros(())
    begin = 0
    for s, side in enumerate(_SIDES):
        if codes is None:
            low = rest if side == _SIDE else F.interpolate(rest, size=(side, side), mode="area")
            rows = low.permute(0, 2, 3, 1).reshape(-1, _DIM)
            index = nearest_by_product(rows, data.codebook.detach()).view(_BATCH, -1)
        else:
            index = codes[:, begin : begin + side**2]
            begin += side**2
        found.append(index)
        h = F.embedding(index.view(_BATCH, side, side), data.codebook).permute(0, 3, 1, 2).contiguous()
        if side != _SIDE:
            h = F.interpolate(h, size=(_SIDE, _SIDE), mode="bicubic").contiguous()
        phi = F.conv2d(h, data.weight[_INDEX[s]], data.bias[_INDEX[s]], padding=1)
        h = h.mul(0.5) + phi.mul(0.5)
        fhat = fhat + h
        rest = rest - h.detach()
        loss = loss + F.mse_loss(fhat.detach(), z) * _BETA + F.mse_loss(fhat, z.detach())
    fhat = (fhat.detach() - z.detach()) + z
    return torch.cat(found, 1), fhat, loss / len(_SIDES)


def gradients(of: Callable[[Inputs], tuple[Tensor, Tensor]], data: Inputs) -> tuple[Tensor, ...]:
    quantized, loss = of(data)
    return torch.autograd.grad(quantized.square().mean() + loss, tuple(data))


def ours(data: Inputs, resampling: ops.Resampling) -> tuple[Tensor, Tensor]:
    result = ops.multiscale_residual_quantize(data.z, data.codebook, resampling, phi=(data.weight, data.bias))
    return result.quantized, (result.codebook_loss + _BETA * result.commitment_loss).mean()


def captured(step: Callable[[], Any]) -> Callable[[], Any]:
    """``step`` as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def close(result: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for got, want in zip(result, expected, strict=True):
        error = (got.double() - want.to(got.device).double()).norm() / want.double().norm()
        assert error < 1e-4, f"gradients differ by {float(error):.2g}"


def nearly(result: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Of a peer: a code that its arithmetic chose otherwise changes all later ones."""
    for got, want in zip(result, expected, strict=True):
        error = (got.double() - want.to(got.device).double()).norm() / want.double().norm()
        assert error < 0.2, f"gradients differ by {float(error):.2g}"


_FLOPS = 2.0 * _BATCH * sum(side**2 for side in _SIDES) * _DIM
_PHI_FLOPS = 2.0 * _BATCH * len(_SIDES) * _SIDE**2 * 9 * _DIM**2


def target(graph: bool) -> Target:
    return Target("VAR's formula", 1 / 10 if graph else 1 / 4)


@row(family="quantize", op="multiscale_quantize", shape="4 x 1024 x 16, 12 scales, K=2048", num_codes=2048)
@row(family="quantize", op="multiscale_quantize", shape="4 x 1024 x 16, 12 scales, K=16384", num_codes=16384)
@row(
    family="quantize",
    op="multiscale_quantize",
    shape="4 x 1024 x 16, 12 scales, K=16384, graph",
    devices=("cuda",),
    num_codes=16384,
    graph=True,
)
def multiscale_quantize(device: torch.device, num_codes: int, graph: bool = False) -> Case:
    data = inputs(num_codes, device)
    resampling = ops.grid_resampling(_SIDES, device=device)

    def run() -> Tensor:
        return ops.multiscale_residual_quantize(
            data.z, data.codebook, resampling, phi=(data.weight, data.bias)
        ).codes

    def first_shape() -> Tensor:
        matrices = [resampling.matrices(s) for s in range(len(_SIDES))]
        phi = (data.weight, data.bias)
        return reference.multiscale_residual_quantize(
            data.z[:1], data.codebook, resampling.grid, matrices, phi, _INDEX
        )[0]

    def equal(result: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(result[:1], expected, rtol=0, atol=0, check_device=False)

    def coarse_equal(result: Tensor, expected: Tensor) -> None:
        """The first scales: one other code there, and all later ones are other ones too."""
        torch.testing.assert_close(result[:1, :5], expected[:, :5], rtol=0, atol=0, check_device=False)

    def by_formula() -> Tensor:
        with torch.no_grad():
            return formula(data)[0]

    return Case(
        run=captured(run) if graph else run,
        reference=first_shape,
        check=equal,
        peers={"VAR's formula": Peer(by_formula, check=coarse_equal)},
        bytes=2.0 * data.z.nbytes + data.codebook.nbytes,
        flops=_FLOPS * num_codes + _PHI_FLOPS,
        target=target(graph),
    )


@row(
    family="quantize",
    op="multiscale_quantize, backward",
    shape="4 x 1024 x 16, 12 scales, K=2048",
    num_codes=2048,
)
@row(
    family="quantize",
    op="multiscale_quantize, backward",
    shape="4 x 1024 x 16, 12 scales, K=16384",
    num_codes=16384,
)
@row(
    family="quantize",
    op="multiscale_quantize, backward",
    shape="4 x 1024 x 16, 12 scales, K=16384, graph",
    devices=("cuda",),
    num_codes=16384,
    graph=True,
)
def multiscale_quantize_backward(device: torch.device, num_codes: int, graph: bool = False) -> Case:
    """Forward and backward, with both losses and the straight-through gradient."""
    data = inputs(num_codes, device)
    resampling = ops.grid_resampling(_SIDES, device=device)
    leaves, theirs = data.leaves(), data.leaves()

    def run() -> tuple[Tensor, ...]:
        return gradients(lambda d: ours(d, resampling), leaves)

    def expected() -> tuple[Tensor, ...]:
        phi = (data.weight, data.bias)
        codes = ops.multiscale_residual_quantize(data.z, data.codebook, resampling, phi=phi).codes
        return gradients(lambda d: formula(d, codes)[1:], data.leaves(torch.float64))

    return Case(
        run=captured(run) if graph else run,
        reference=expected,
        check=close,
        peers={"VAR's formula": Peer(lambda: gradients(lambda d: formula(d)[1:], theirs), check=nearly)},
        bytes=4.0 * data.z.nbytes + 2.0 * data.codebook.nbytes,
        flops=_FLOPS * num_codes + 3 * _PHI_FLOPS,
        target=target(graph),
    )
