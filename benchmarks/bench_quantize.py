"""Vectors as codes: nearest codes and residual quantization at the sizes of VAT, beside faiss,
vector-quantize-pytorch and the matrix product with argmin that most tokenizers use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastshape import ops
from fastshape.reference import quantize as reference

from .peers import installed
from .registry import Case, Peer, Target, row

_ROWS, _DIM, _LEVELS = 4096, 16, 12
_CHECKED = 128  # rows compared with the reference, which writes all distances


def inputs(num_codes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Vectors (4096, 16), codebooks (12, K, 16) whose scale falls as that of the residuals does."""
    scale = 0.8 ** torch.arange(_LEVELS)[:, None, None]
    return torch.randn(_ROWS, _DIM).to(device), (torch.randn(_LEVELS, num_codes, _DIM) * scale).to(device)


def first_rows_equal(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result[: len(expected)], expected, rtol=0, atol=0, check_device=False)


def nearly_equal(result: Tensor, expected: Tensor) -> None:
    """Codes of a peer: where two codes are nearly as near, its arithmetic may take the other."""
    same = (result[: len(expected)].to(expected.device) == expected).all(-1).float().mean()
    assert same > 0.97, f"only {float(same):.1%} of the rows have the same codes"


def nearest_by_product(x: Tensor, codebook: Tensor) -> Tensor:
    """The formula of VAR and of taming-transformers before it: all distances, then argmin."""
    distance = x.square().sum(1, keepdim=True) + codebook.square().sum(1)
    return distance.addmm_(x, codebook.T, alpha=-2, beta=1).argmin(1)


def residual(nearest: Callable[[Tensor, int], Tensor], x: Tensor, codebooks: Tensor) -> Tensor:
    codes = []
    for level, codebook in enumerate(codebooks):
        codes.append(nearest(x, level))
        x = x - codebook[codes[-1]]
    return torch.stack(codes, 1)


def faiss_package(device: torch.device) -> Any:
    package = installed("faiss") if device.type == "cpu" else None
    if package is not None:
        package.omp_set_num_threads(torch.get_num_threads())
    return package


def faiss_flat(codebooks: Tensor) -> Callable[[Tensor, int], Tensor] | None:
    package = faiss_package(codebooks.device)
    if package is None:
        return None
    indexes = []
    for codebook in codebooks:
        indexes.append(package.IndexFlatL2(codebook.shape[1]))
        indexes[-1].add(codebook.numpy())
    return lambda x, level: torch.from_numpy(indexes[level].search(x.numpy(), 1)[1][:, 0])


def faiss_residual(x: Tensor, codebooks: Tensor) -> Peer | None:
    package = faiss_package(x.device)
    if package is None:
        return None
    levels, num_codes, dim = codebooks.shape
    bits = (num_codes - 1).bit_length()
    quantizer = package.ResidualQuantizer(dim, levels, bits)
    package.copy_array_to_vector(codebooks.numpy().ravel(), quantizer.codebooks)
    quantizer.is_trained = True
    quantizer.max_beam_size = 1
    rows = x.numpy()
    return Peer(
        lambda: quantizer.compute_codes(rows),
        result=lambda packed: torch.from_numpy(package.unpack_bitstrings(packed, levels, bits)).long(),
        check=nearly_equal,
    )


def vector_quantize_pytorch(x: Tensor, codebooks: Tensor) -> Peer | None:
    package = installed("vector_quantize_pytorch")
    if package is None:
        return None
    levels, num_codes, dim = codebooks.shape
    module = package.ResidualVQ(dim=dim, num_quantizers=levels, codebook_size=num_codes).to(x.device).eval()
    with torch.no_grad():
        for layer, codebook in zip(module.layers, codebooks, strict=True):
            layer._codebook.embed.copy_(codebook[None])

    def run() -> Any:
        with torch.no_grad():
            return module(x[None])

    return Peer(run, result=lambda output: output[1][0], check=nearly_equal)


@row(family="quantize", op="nearest_code", shape="4096 x 16, K=2048", num_codes=2048)
@row(family="quantize", op="nearest_code", shape="4096 x 16, K=16384", num_codes=16384)
def nearest_code(device: torch.device, num_codes: int) -> Case:
    x, codebooks = inputs(num_codes, device)
    codebook = codebooks[0]
    flat = faiss_flat(codebooks[:1])

    def column(result: Tensor) -> Tensor:
        return result[:, None]

    return Case(
        run=lambda: ops.nearest_code(x, codebook),
        reference=lambda: reference.nearest_code(x[:_CHECKED], codebook),
        check=lambda result, expected: first_rows_equal(result, expected.view(-1)),
        peers={
            "addmm + argmin": Peer(
                lambda: nearest_by_product(x, codebook),
                check=lambda result, expected: nearly_equal(column(result), column(expected)),
            ),
            "cdist + argmin": Peer(
                lambda: torch.cdist(x, codebook).argmin(1),
                check=lambda result, expected: nearly_equal(column(result), column(expected)),
            ),
            "faiss flat": flat
            and Peer(
                lambda: flat(x, 0),
                check=lambda result, expected: nearly_equal(column(result), column(expected)),
            ),
        },
        bytes=x.nbytes + codebook.nbytes + 8.0 * len(x),
        flops=2.0 * len(x) * num_codes * _DIM,
        target=Target("addmm + argmin", 1 / 3),
    )


@row(family="quantize", op="topk_codes", shape="4096 x 16, K=2048, k=8", num_codes=2048)
def topk_codes(device: torch.device, num_codes: int) -> Case:
    x, codebooks = inputs(num_codes, device)
    codebook = codebooks[0]
    return Case(
        run=lambda: ops.topk_codes(x, codebook, 8)[0],
        reference=lambda: reference.topk_codes(x[:_CHECKED], codebook, 8)[0],
        check=first_rows_equal,
        peers={
            "cdist + topk": Peer(
                lambda: torch.cdist(x, codebook).topk(8, largest=False).indices, check=nearly_equal
            )
        },
        bytes=x.nbytes + codebook.nbytes + 12.0 * 8 * len(x),
        flops=2.0 * len(x) * num_codes * _DIM,
    )


@row(family="quantize", op="residual_quantize", shape="4 x 1024 x 16, 12 levels, K=2048", num_codes=2048)
@row(family="quantize", op="residual_quantize", shape="4 x 1024 x 16, 12 levels, K=16384", num_codes=16384)
def residual_quantize(device: torch.device, num_codes: int) -> Case:
    x, codebooks = inputs(num_codes, device)
    flat = faiss_flat(codebooks)
    peers: dict[str, Peer | None] = {
        "addmm + argmin": Peer(
            lambda: residual(lambda rows, level: nearest_by_product(rows, codebooks[level]), x, codebooks),
            check=nearly_equal,
        ),
        "vector_quantize_pytorch": vector_quantize_pytorch(x, codebooks),
        "faiss residual, beam 1": faiss_residual(x, codebooks),
        "faiss flat, a loop": flat and Peer(lambda: residual(flat, x, codebooks), check=nearly_equal),
    }
    target = Target("faiss residual, beam 1" if num_codes < 4096 else "faiss flat, a loop", 1 / 3)
    return Case(
        run=lambda: ops.residual_quantize(x, codebooks).codes,
        reference=lambda: reference.residual_quantize(x[:_CHECKED], codebooks, _LEVELS)[0],
        check=first_rows_equal,
        peers=peers,
        bytes=2.0 * x.nbytes + codebooks.nbytes + 8.0 * len(x) * _LEVELS,
        flops=2.0 * len(x) * num_codes * _DIM * _LEVELS,
        target=target if device.type == "cpu" else Target("addmm + argmin", 1 / 3),
    )


@row(family="quantize", op="code_sums", shape="49152 x 16 into 2048", num_codes=2048)
def code_sums(device: torch.device, num_codes: int) -> Case:
    values = torch.randn(_ROWS * _LEVELS, _DIM).to(device)
    codes = torch.randint(0, num_codes, (len(values),)).to(device)

    def one_hot() -> Tensor:
        return torch.nn.functional.one_hot(codes, num_codes).to(values.dtype).T @ values

    def close(result: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(result, expected.to(result), rtol=1e-4, atol=1e-4)

    return Case(
        run=lambda: ops.code_sums(values, codes, num_codes)[0],
        reference=lambda: reference.code_sums(values.cpu(), codes.cpu(), num_codes)[0],
        peers={
            "one_hot, matmul": Peer(one_hot, check=close),
            "index_add_": Peer(
                lambda: values.new_zeros(num_codes, _DIM).index_add_(0, codes, values),
                check=close,
                note="on a GPU by atomics",
            ),
        },
        bytes=values.nbytes + 8.0 * len(codes) + 4.0 * num_codes * _DIM,
    )
