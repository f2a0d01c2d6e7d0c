"""Latent tokens as codes of one codebook on coarser and finer scales: the quantizer of next-scale models.

    for each scale s:  r_s = Down_s(z - f_{s-1});  code = nearest(r_s);  f_s = f_{s-1} + phi_s(Up_s(code))

Zhang et al.: "3D representation in 512-Byte: Variational tokenizer is the key for autoregressive 3D
generation" (VAT), 2024, section 3.2; Tian et al.: "Visual autoregressive modeling" (VAR), 2024, algorithms 1
and 2, and its released code for phi and the loss. The kernels are `ops.multiscale_residual_quantize` and
`ops.multiscale_decode`.

Neither paper says how the codebook begins, nor what becomes of codes that nothing takes: here it begins with
the k-means of the residuals (`start`), and such codes become residuals of the day (`revive`). phi begins as
the identity, so that what k-means found holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastshape.ops import (
    MultiscaleCodes,
    Resampling,
    code_sums,
    ema_codebook,
    grid_resampling,
    line_resampling,
    matrix_resampling,
    multiscale_decode,
    multiscale_residual_quantize,
    shared_phi_index,
    topk_codes,
)

RESAMPLINGS = ("grid2d", "linear1d", "query")
_QUERY_DIM = 64
_SAMPLED_CODES = 8  # of which a stochastic code is drawn


class Quantized(NamedTuple):
    """What `MultiscaleQuantizer.quantize` gives."""

    tokens: Tensor  # (B, sum of L_s) int64, coarse to fine
    quantized: Tensor  # (B, K, d), whose gradient goes to z as it is
    loss: Tensor  # scalar: of codebook and commitment, the mean over the scales
    counts: Tensor  # (S, V) int64: how many tokens of each scale have each code


class CodeUsage(NamedTuple):
    """How much of the codebook each scale uses, as running means over the training."""

    share: Tensor  # (S,): of the codes, those with at least 0.08 / V of the scale's tokens, as VAR reports it
    perplexity: Tensor  # (S,): codes that would be as hard to guess if all were as frequent
    unused: int  # codes that no scale has taken lately


def check_scales(scales: Sequence[int], resample: str) -> tuple[int, ...]:
    """The scales as a tuple.

    Raises:
        ValueError: scales that are not positive with the largest last, or are no squares for "grid2d"; an
            unknown resampling.
    """
    scales = tuple(int(size) for size in scales)
    if resample not in RESAMPLINGS:
        raise ValueError(f"`resample` must be one of {', '.join(RESAMPLINGS)}, got {resample!r}")
    if not scales or min(scales) < 1 or max(scales) != scales[-1]:
        raise ValueError(f"`scales` must be positive with the largest last, got {scales}")
    if len(scales) > 32:
        raise ValueError(f"`scales` must be at most 32, got {len(scales)}")
    if resample == "grid2d" and any(math.isqrt(size) ** 2 != size for size in scales):
        raise ValueError(f"`scales` must be squares with `resample` = 'grid2d', got {scales}")
    return scales


class MultiscaleQuantizer(nn.Module):
    """K latent vectors as the codes of S scales, and back.

    Args:
        num_codes: V, at most 65536.
        dim: d of the vectors.
        scales: tokens L_s of each scale, coarse to fine; the last one is K.
        resample: how a scale's tokens come from the vectors and go back. "grid2d": the vectors are a square
            grid, area means down, bicubic up (VAR). "linear1d": a line, means down, linear up. "query":
            learned scores between the scale's queries and the vectors, softmax over either side (after
            G3PT's cross-attention, but a function of the places alone).
        num_phis: convolutions that the scales share; 0: none.
        phi_ratio: how much of the convolution there is.
        commitment: weight of the commitment loss.
        cosine: codes are found by their direction.
        ema: the codebook is the running mean of what has its codes, and gets no gradient.
        decay: of the running means, of usage and of the codebook.
        temperature: in training a code is drawn from those nearest by softmax(-distance^2 / temperature), as
            stochastic sampling in Lee et al. 2022; 0 takes the nearest.

    Whatever the autocast or the dtype of its input, it computes in float32 (float64 for such an input).
    """

    phi_weight: nn.Parameter | None
    phi_bias: nn.Parameter | None
    usage: Tensor
    cluster_size: Tensor
    code_sum: Tensor

    def __init__(
        self,
        num_codes: int,
        dim: int,
        scales: Sequence[int],
        *,
        resample: str = "grid2d",
        num_phis: int = 4,
        phi_ratio: float = 0.5,
        commitment: float = 0.25,
        cosine: bool = False,
        ema: bool = False,
        decay: float = 0.99,
        temperature: float = 0.0,
    ) -> None:
        super().__init__()
        if not 1 <= num_codes <= 65536:
            raise ValueError(f"`num_codes` must be in [1, 65536], got {num_codes}")
        for name, value in (("num_phis", num_phis), ("temperature", temperature)):
            if value < 0:
                raise ValueError(f"`{name}` must not be negative, got {value}")
        self.scales = check_scales(scales, resample)
        self.num_codes, self.dim, self.resample = num_codes, dim, resample
        self.phi_ratio, self.commitment, self.cosine = phi_ratio, commitment, cosine
        self.ema, self.decay, self.temperature = ema, decay, temperature
        self.ends = (0, *accumulate(self.scales))
        self.phi_index = shared_phi_index(len(self.scales), num_phis) if num_phis else None
        self.codebook = nn.Parameter(torch.randn(num_codes, dim), requires_grad=not ema)
        if num_phis:
            weight = torch.zeros(num_phis, dim, dim, 3, 3)
            weight[:, range(dim), range(dim), 1, 1] = 1.0
            self.phi_weight, self.phi_bias = nn.Parameter(weight), nn.Parameter(torch.zeros(num_phis, dim))
        else:
            self.phi_weight = self.phi_bias = None
        if resample == "query":
            # The last scale has a token for each vector: nothing is learned of it.
            self.queries = nn.Parameter(torch.randn(self.ends[-2], _QUERY_DIM))
            self.keys = nn.Parameter(torch.randn(self.scales[-1], _QUERY_DIM))
        # Of each scale's tokens the share with each code.
        self.register_buffer("usage", torch.full((len(self.scales), num_codes), 1.0 / num_codes))
        if ema:
            self.register_buffer("cluster_size", torch.ones(num_codes))
            self.register_buffer("code_sum", self.codebook.detach().clone())
        self._resamplings: dict[tuple[torch.dtype, torch.device], Resampling] = {}

    @property
    def num_tokens(self) -> int:
        """Tokens of all scales."""
        return self.ends[-1]

    # ---- There and back ------------------------------------------------------------------------------------

    def quantize(
        self, z: Tensor, *, num_scales: int | None = None, generator: torch.Generator | None = None
    ) -> Quantized:
        """Vectors as tokens, with the losses of training.

        Args:
            z: (B, K, d).
            num_scales: quantize with the first of the scales alone; None: with all.
            generator: draws stochastic codes.

        Returns:
            `Quantized`; `loss` is the mean over the scales of mean((f_s - z)^2), with gradients to the codes
            and phi, plus `commitment` times the same with gradients to z. `quantized` hands its gradient to z
            alone.

        Raises:
            ValueError: another shape, or no such number of scales.
        """
        self._check(z, "z")
        count = self._count(num_scales)
        with torch.autocast(z.device.type, enabled=False):
            z = _inner(z)
            if self.training and self.temperature > 0.0:
                tokens = self._draw(z, count, generator)
                sums = self._sums(tokens, z.dtype)
                quantized = z + (sums[-1] - z).detach()
                codebook_loss = _losses(sums, z.detach())
                commitment_loss = _losses([f.detach() for f in sums], z)
                counts = self._counts(tokens)
            else:
                tokens, quantized, codebook_loss, commitment_loss, found = self._nearest(z, count)
                assert found is not None
                counts = F.pad(found, (0, 0, 0, len(self.scales) - count))
                if self.resample == "query" and torch.is_grad_enabled():  # the kernel gives matrices none
                    codebook_loss = _losses(self._sums(tokens, z.dtype), z.detach())
            loss = (codebook_loss + self.commitment * commitment_loss).mean()
        return Quantized(tokens, quantized, loss, counts)

    def forward(self, z: Tensor, **options: Any) -> Quantized:
        """`quantize`."""
        return self.quantize(z, **options)

    def decode(self, tokens: Tensor, scales: int | None = None) -> Tensor:
        """The vectors of tokens, without gradients; to the last bit those that `quantize` gave.

        Args:
            tokens: (B, T) int64, of all scales or of the first of them.
            scales: use the first of them alone: a coarser answer.

        Returns:
            (B, K, d) float32 (float64 where the module is).
        """
        count = self._scales_of(tokens)
        if scales is not None:
            tokens = tokens[:, : self.ends[min(count, self._count(scales))]]
        with torch.no_grad():
            codes = self._codes()
            out = multiscale_decode(tokens.contiguous(), codes, **self._options(codes, 0, len(self.scales)))
        assert isinstance(out, Tensor)
        return out

    def scale_inputs(self, tokens: Tensor) -> Tensor:
        """What a next-scale model is shown of each scale but the first: teacher forcing.

        Args:
            tokens: (B, T) int64, of all scales or of the first of them.

        Returns:
            (B, T - L_0, d): of each scale s >= 1 the sum of the scales before it, brought down to its tokens.
        """
        self._scales_of(tokens)
        with torch.no_grad():
            codes = self._codes()
            options = self._options(codes, 0, len(self.scales))
            return multiscale_decode(tokens.contiguous(), codes, **options, return_inputs=True)[1]

    def next_input(self, accumulated: Tensor | None, codes: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        """One step of sampling: adds a scale, and gives what the model is shown of the next.

        Args:
            accumulated: (B, K, d), the sum of the scales before; None before the first.
            codes: (B, L_scale) int64 of this scale.
            scale: counted from 0.

        Returns:
            The sum with this scale (B, K, d); and what `scale_inputs` gives of the next scale
            (B, L_{scale+1}, d), without rows after the last one.
        """
        if not 0 <= scale < len(self.scales):
            raise ValueError(f"`scale` must be in [0, {len(self.scales)}), got {scale}")
        wanted = self.scales[scale]
        if codes.dim() != 2 or codes.shape[1] != wanted:
            raise ValueError(
                f"`codes` must have shape (B, {wanted}) for scale {scale}, got {tuple(codes.shape)}"
            )
        with torch.no_grad():
            book = self._codes()
            added = multiscale_decode(codes.contiguous(), book, **self._options(book, scale, scale + 1))
            assert isinstance(added, Tensor)
            accumulated = added if accumulated is None else accumulated + added
            if scale + 1 == len(self.scales):
                return accumulated, accumulated[:, :0]
            return accumulated, self._resampling(book).down(accumulated, scale + 1)

    def residuals(self, z: Tensor, tokens: Tensor) -> Tensor:
        """What each token stands for: r_s of every scale, (B, T, d), without gradients.

        Down is linear: Down_s(z - f_{s-1}) is Down_s(z) less the next-scale model's input.
        """
        with torch.no_grad():
            z = _inner(z)
            resampling, count = self._resampling(z), self._scales_of(tokens)
            parts = torch.cat([resampling.down(z, s) for s in range(count)], 1)
            parts[:, self.scales[0] :] -= self.scale_inputs(tokens)
            return parts

    # ---- The codebook's care -------------------------------------------------------------------------------

    @torch.no_grad()
    def start(self, z: Tensor, *, iterations: int = 10, generator: torch.Generator | None = None) -> None:
        """Begins the codebook with k-means of the residuals of all scales.

        The first codes are chosen from the residuals that perfect codes would leave, from each scale as many
        as from every other where it has them: the last one alone has nearly half of the tokens. Each
        iteration quantizes as the quantizer does.

        Args:
            z: (N, K, d), the latents of some batches.
            iterations: of Lloyd's algorithm.
            generator: CPU generator of the choice.
        """
        self._check(z, "z")
        z = _inner(z.detach())
        self.codebook.copy_(self._choose(self._perfect_residuals(z), generator))
        for _ in range(iterations):
            tokens = self._nearest(z).codes
            means, counts = code_sums(self.residuals(z, tokens).contiguous(), tokens, self.num_codes)
            means /= counts[:, None].clamp_min(1).to(means.dtype)
            self.codebook.copy_(
                torch.where(counts[:, None] > 0, means.to(self.codebook.dtype), self.codebook)
            )
        found = self._nearest(z).counts
        assert found is not None
        counts = found.to(self.usage.dtype)
        self.usage.copy_(counts / counts.sum(1, keepdim=True).clamp_min(1.0))
        if self.ema:
            self.cluster_size.copy_(counts.sum(0))
            self.code_sum.copy_(self.codebook * self.cluster_size[:, None])

    @torch.no_grad()
    def tally(self, counts: Tensor, sums: Tensor | None = None) -> None:
        """Takes a step's counts into the running means, and with `ema` moves the codebook.

        Args:
            counts: (S, V), as `quantize` gives them; summed over processes.
            sums: (V, d) of `code_sums`, summed likewise; needed with `ema`.
        """
        seen = counts.sum(1, keepdim=True)
        shares = (counts / seen.clamp_min(1)).to(self.usage.dtype)
        self.usage.copy_(torch.where(seen > 0, self.usage.lerp(shares, 1.0 - self.decay), self.usage))
        if self.ema:
            if sums is None:
                raise ValueError("`sums` must be given where the codebook is a running mean")
            self.codebook.copy_(
                ema_codebook(self.cluster_size, self.code_sum, counts.sum(0), sums, decay=self.decay)
            )

    def code_sums(self, z: Tensor, tokens: Tensor) -> Tensor:
        """(V, d): of each code the sum of the residuals that it was taken for."""
        return code_sums(self.residuals(z, tokens).contiguous(), tokens, self.num_codes)[0]

    def unused(self, threshold: float = 0.03) -> Tensor:
        """(V,) bool: codes with less than `threshold` of the mean code's share of all tokens."""
        lengths = torch.tensor(self.scales, dtype=self.usage.dtype, device=self.usage.device)
        share = (self.usage * lengths[:, None]).sum(0) / lengths.sum()
        return share < threshold / self.num_codes

    @torch.no_grad()
    def revive(
        self,
        z: Tensor,
        tokens: Tensor,
        *,
        threshold: float = 0.03,
        noise: float = 0.01,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Gives codes that hardly any token takes to residuals of the day, with a little noise.

        Args:
            z, tokens: of a batch.
            threshold: as of `unused`.
            noise: its standard deviation, as a share of that of the residuals.
            generator: CPU generator.

        Returns:
            Which codes, int64, ascending: an optimizer's moments of these rows are void.
        """
        rows = self.unused(threshold).nonzero().flatten()
        if len(rows):
            pool = self.residuals(z, tokens).flatten(0, 1)
            chosen = torch.randint(len(pool), (len(rows),), generator=generator).to(pool.device)
            codes = pool[chosen]
            codes = codes + noise * pool.std() * torch.randn(codes.shape, generator=generator).to(codes)
            self.codebook[rows] = codes.to(self.codebook.dtype)
            self.usage[:, rows] = 1.0 / self.num_codes  # a chance
            if self.ema:
                self.cluster_size[rows] = self.cluster_size.mean()
                self.code_sum[rows] = self.codebook[rows] * self.cluster_size[rows, None]
        return rows

    def report(self) -> CodeUsage:
        """How much of the codebook each scale uses."""
        usage = self.usage.float()
        entropy = -torch.special.xlogy(usage, usage).sum(1)
        share = (usage >= 0.08 / self.num_codes).float().mean(1)
        return CodeUsage(share, entropy.exp(), int(self.unused().sum()))

    # ---- Inside --------------------------------------------------------------------------------------------

    def _codes(self, dtype: torch.dtype | None = None) -> Tensor:
        codebook = _inner(self.codebook)
        return codebook if dtype is None else codebook.to(dtype)

    def _nearest(self, z: Tensor, count: int | None = None) -> MultiscaleCodes:
        """The kernel's answer, of the first scales or of all."""
        options = self._options(z, 0, len(self.scales) if count is None else count)
        return multiscale_residual_quantize(
            z, self._codes(z.dtype), **options, cosine=self.cosine, return_counts=True
        )

    def _options(self, like: Tensor, begin: int, end: int) -> dict[str, Any]:
        """Resampling and phi of some scales, for the kernels."""
        options: dict[str, Any] = {
            "resampling": self._resampling(like).part(begin, end),
            "phi_ratio": self.phi_ratio,
        }
        if self.phi_weight is not None:
            assert self.phi_bias is not None
            assert self.phi_index is not None
            options["phi"] = (self.phi_weight.to(like.dtype), self.phi_bias.to(like.dtype))
            options["phi_index"] = self.phi_index[begin:end]
        return options

    def _resampling(self, like: Tensor) -> Resampling:
        if self.resample == "query":
            matrices = [self._learned(s, like.dtype) for s in range(len(self.scales))]
            return matrix_resampling([down for down, _ in matrices], [up for _, up in matrices])
        key = (like.dtype, like.device)
        if key not in self._resamplings:
            if self.resample == "grid2d":
                sides = [math.isqrt(size) for size in self.scales]
                self._resamplings[key] = grid_resampling(sides, dtype=like.dtype, device=like.device)
            else:
                self._resamplings[key] = line_resampling(self.scales, dtype=like.dtype, device=like.device)
        return self._resamplings[key]

    def _learned(self, scale: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Down (L, K) and Up (K, L) of a scale: one matrix of scores, its softmax over either side."""
        keys = self.keys.to(dtype)
        if scale == len(self.scales) - 1:
            one = torch.eye(len(keys), dtype=dtype, device=keys.device)
            return one, one
        queries = self.queries[self.ends[scale] : self.ends[scale + 1]].to(dtype)
        scores = queries @ keys.T / math.sqrt(_QUERY_DIM)
        return scores.softmax(1), scores.T.softmax(1)

    def _up(self, vectors: Tensor, scale: int) -> Tensor:
        """phi_s(Up_s(vectors)), (B, L_s, d) -> (B, K, d), in torch: with gradients to everything."""
        grid, (height, width) = (resampling := self._resampling(vectors)).grid, resampling.scales[scale]
        if self.resample == "query":
            up = (self._learned(scale, vectors.dtype)[1] @ vectors)[:, None]
        else:
            up_y, up_x = resampling.matrices(scale)[2:]
            up = torch.einsum("yi,xj,bijd->byxd", up_y, up_x, vectors.unflatten(1, (height, width)))
        if self.phi_weight is not None:
            assert self.phi_bias is not None
            assert self.phi_index is not None
            phi = self.phi_index[scale]
            weight, bias = self.phi_weight[phi].to(up.dtype), self.phi_bias[phi].to(up.dtype)
            blurred = F.conv2d(up.permute(0, 3, 1, 2), weight, bias, padding=1).permute(0, 2, 3, 1)
            up = (1.0 - self.phi_ratio) * up + self.phi_ratio * blurred
        assert up.shape[1:3] == grid
        return up.flatten(1, 2)

    def _sums(self, tokens: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """f_s of each scale, with gradients to codebook, phi and learned resampling."""
        codes = self._codes(dtype)
        sums: list[Tensor] = []
        for scale in range(self._scales_of(tokens)):
            added = self._up(codes[tokens[:, self.ends[scale] : self.ends[scale + 1]]], scale)
            sums.append(added if not sums else sums[-1] + added)
        return sums

    @torch.no_grad()
    def _draw(self, z: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
        """Stochastic codes of the first scales."""
        tokens, rest, codes = [], z, self._codes(z.dtype)
        resampling = self._resampling(z)
        for scale in range(count):
            vectors = resampling.down(rest, scale).contiguous()
            k = min(_SAMPLED_CODES, self.num_codes)
            indices, distances = topk_codes(vectors, codes, k, cosine=self.cosine)
            weights = (-distances / self.temperature).softmax(-1).flatten(0, 1)
            if generator is not None:
                weights = weights.to(generator.device)
            drawn = torch.multinomial(weights, 1, generator=generator).view(*indices.shape[:2], 1)
            tokens.append(indices.gather(2, drawn.to(indices.device)).squeeze(2))
            rest = rest - self._up(codes[tokens[-1]], scale)
        return torch.cat(tokens, 1)

    def _counts(self, tokens: Tensor) -> Tensor:
        found = tokens.new_zeros(len(self.scales), self.num_codes)
        for scale in range(self._scales_of(tokens)):
            codes = tokens[:, self.ends[scale] : self.ends[scale + 1]].flatten()
            found[scale].index_add_(0, codes, torch.ones_like(codes))
        return found

    def _perfect_residuals(self, z: Tensor) -> list[Tensor]:
        """The residuals (N * L_s, d) of each scale if every token were its own code, and phi the identity."""
        found, rest, resampling = [], z, self._resampling(z)
        for scale, (height, width) in enumerate(resampling.scales):
            vectors = resampling.down(rest, scale)
            up_y, up_x = resampling.matrices(scale)[2:]
            grid = vectors.unflatten(1, (height, width))
            rest = rest - torch.einsum("yi,xj,bijd->byxd", up_y, up_x, grid).flatten(1, 2)
            found.append(vectors.flatten(0, 1))
        return found

    def _choose(self, pools: list[Tensor], generator: torch.Generator | None) -> Tensor:
        """V rows (V, d), from each pool as many as from every other where it has them."""
        chosen, left = [], self.num_codes
        for rank, pool in enumerate(sorted(pools, key=len)):
            count = min(left // (len(pools) - rank), len(pool))
            chosen.append(pool[torch.randperm(len(pool), generator=generator)[:count].to(pool.device)])
            left -= count
        if left:  # fewer residuals than codes: some twice, told apart by noise
            pool = torch.cat(pools)
            rows = torch.randint(len(pool), (left,), generator=generator).to(pool.device)
            noise = torch.randn(left, self.dim, generator=generator).to(pool)
            chosen.append(pool[rows] + 0.01 * pool.std() * noise)
        return torch.cat(chosen).to(self.codebook.dtype)

    def _count(self, num_scales: int | None) -> int:
        count = len(self.scales) if num_scales is None else num_scales
        if not 1 <= count <= len(self.scales):
            raise ValueError(f"the number of scales must be in [1, {len(self.scales)}], got {count}")
        return count

    def _scales_of(self, tokens: Tensor) -> int:
        """How many scales the tokens (B, T) are of."""
        if tokens.dim() != 2 or tokens.shape[1] not in self.ends:
            raise ValueError(
                f"`tokens` must have shape (B, T), T the tokens of all or of the first of the scales, "
                f"{self.scales}; got {tuple(tokens.shape)}"
            )
        return self.ends.index(tokens.shape[1])

    def _check(self, z: Tensor, name: str) -> None:
        if z.dim() != 3 or z.shape[1:] != (self.scales[-1], self.dim):
            raise ValueError(
                f"`{name}` must have shape (B, {self.scales[-1]}, {self.dim}), got {tuple(z.shape)}"
            )


def _inner(x: Tensor) -> Tensor:
    """Contiguous, in float32, or float64 where it is."""
    return (x if x.dtype == torch.float64 else x.float()).contiguous()


def _losses(sums: Sequence[Tensor], z: Tensor) -> Tensor:
    return torch.stack([F.mse_loss(f, z) for f in sums])
