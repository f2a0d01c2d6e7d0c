"""Losses of pictures of surfaces, and of distances at the corners of voxels."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastshape.losses.checks import require_one_shape

_SSIM_WINDOW = 11
_SSIM_BLOCK = 32  # rows; a few times the window


def depth_loss(depth: Tensor, target: Tensor, mask: Tensor, *, beta: float | None = None) -> Tensor:
    """Mean absolute error of depth where the target shows a surface; the mean is over all pixels.

    Args:
        depth: (...) rendered linear depth; any value, +inf and NaN too, where `mask` is False.
        target: (...) the true one, likewise.
        mask: (...) bool, whether the target shows a surface.
        beta: below this difference the error is its square over 2 beta, and beta / 2 less above it
            (smooth L1); None is L1. TRELLIS has 1 / (2 resolution).

    Returns:
        Scalar.

    Reference: Focusing, equation 3 (L1); TRELLIS (Xiang et al. 2024) for the mask and the smooth form.
    """
    return _masked_loss("depth", depth, target, mask, beta)


def normal_loss(normals: Tensor, target: Tensor, mask: Tensor, *, beta: float | None = None) -> Tensor:
    """Mean absolute error of normals where the target shows a surface; the mean is over pixels and channels.

    Args:
        normals: (..., 3) rendered.
        target: (..., 3) the true ones; see :func:`toward_camera`.
        mask: (...) bool, whether the target shows a surface.
        beta: as in :func:`depth_loss`.

    Returns:
        Scalar.

    Reference: Focusing, equation 3; TRELLIS for the mask.
    """
    require_one_shape("mask", mask, "normals without channels", normals[..., 0])
    return _masked_loss("normals", normals, target, mask[..., None].expand(normals.shape), beta)


def mask_loss(mask: Tensor, target: Tensor, *, beta: float | None = None) -> Tensor:
    """Mean absolute error of a silhouette, over all pixels.

    Args:
        mask: (...) rendered, in [0, 1].
        target: (...) the true one, bool or in [0, 1].
        beta: as in :func:`depth_loss`.

    Returns:
        Scalar.

    Reference: Focusing, equation 3.
    """
    require_one_shape("mask", mask, "target", target)
    return _absolute_loss(mask, target.to(mask.dtype), beta)


def toward_camera(normals: Tensor, directions: Tensor) -> Tensor:
    """Normals turned so that none looks away from the camera: either side of a sheet has the same.

    Args:
        normals: (..., 3).
        directions: (..., 3) from the camera to the points, of any length, in the same frame.

    Returns:
        (..., 3).
    """
    away = (normals * directions).sum(-1, keepdim=True) > 0
    return torch.where(away, -normals, normals)


def ssim(
    image: Tensor, target: Tensor, *, data_range: float = 1.0, border: Literal["valid", "zeros"] = "valid"
) -> Tensor:
    """The structural similarity of pictures: 1 where they are equal.

    Means, variances and covariance under a Gaussian of 11 x 11 pixels and standard deviation 1.5,
    C1 = (0.01 range)^2, C2 = (0.03 range)^2; the mean over the windows and the channels.

    Args:
        image: (B, C, H, W), H and W at least 11 for "valid" borders.
        target: the same shape.
        data_range: largest minus least value that a pixel may have.
        border: "valid" has the windows that lie in the picture, as the paper; "zeros" has one for every
            pixel, over zeros beside the picture, as is usual in training.

    Returns:
        (B,).

    Reference: Wang et al. 2004.
    """
    require_one_shape("image", image, "target", target)
    if border not in ("valid", "zeros"):
        raise ValueError(f"`border` must be 'valid' or 'zeros', got {border!r}")
    if image.ndim != 4 or (border == "valid" and min(image.shape[2:]) < _SSIM_WINDOW):
        raise ValueError(
            f"`image` must have shape (B, C, H, W), H and W at least {_SSIM_WINDOW} for border='valid', "
            f"got {tuple(image.shape)}"
        )
    similarity: Tensor = _Ssim.apply(image.flatten(0, 1), target.flatten(0, 1), data_range, border)
    return similarity.view(image.shape[:2]).mean(1)


class _Ssim(torch.autograd.Function):
    """Of pictures (N, H, W), (N,). Backward keeps a weight of each mean in each window, nothing else."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, target: Tensor, data_range: float, border: str) -> Tensor:
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        pad = _SSIM_WINDOW // 2 if border == "zeros" else 0
        mean, other, square, product = (
            _gaussian_means(picture, pad)
            for picture in (image, target, image * image + target * target, image * target)
        )
        # (2 m o + c1) (2 (p - m o) + c2) / ((m^2 + o^2 + c1) (s - m^2 - o^2 + c2))
        both, lengths = mean * other, (mean * mean).addcmul_(other, other)
        tops = (2 * both).add_(c1), product.sub_(both).mul_(2).add_(c2)
        bottoms = lengths + c1, square.sub_(lengths).add_(c2)
        below = (bottoms[0] * bottoms[1]).reciprocal_()
        similarity = (tops[0] * tops[1]).mul_(below)
        # Its derivatives, of a window: with respect to p and s, to m o, and twice that to m^2 + o^2.
        of_product = tops[0].mul_(below).mul_(2)
        of_square = (similarity / bottoms[1]).neg_()
        of_both = tops[1].mul_(below).sub_(of_product, alpha=0.5).mul_(2)
        of_lengths = bottoms[0].reciprocal_().mul_(similarity).add_(of_square).mul_(-2)
        ctx.pad, ctx.number = pad, similarity[0].numel()
        of_means = [
            (of_both * theirs).addcmul_(of_lengths, own) if needed else None
            for needed, own, theirs in zip(
                ctx.needs_input_grad[:2], (mean, other), (other, mean), strict=True
            )
        ]
        ctx.save_for_backward(image, target, of_square, of_product, *of_means)
        return similarity.mean((1, 2))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image, target, *windows = ctx.saved_tensors
        grad = (grad / ctx.number)[:, None, None]
        # The window is symmetric: what flows back through the means is a mean over a wider border.
        pad = _SSIM_WINDOW - 1 - ctx.pad
        square, product = (_gaussian_means(of, pad) for of in windows[:2])
        grads: list[Tensor | None] = []
        for of, own, theirs in zip(windows[2:], (image, target), (target, image), strict=True):
            if of is None:
                grads.append(None)
                continue
            sums = _gaussian_means(of, pad).addcmul_(square, own, value=2).addcmul_(product, theirs)
            grads.append(sums.mul_(grad))
        return *grads, None, None


def _gaussian_means(images: Tensor, pad: int) -> Tensor:
    """Along both axes, as products of blocks of rows and of columns with a small banded matrix.

    torch's convolutions of one channel take many times as long on a CPU; the product with a matrix of all
    rows at once is nearly all zeros.
    """
    block, more = _SSIM_BLOCK, _SSIM_WINDOW - 1
    step = torch.arange(_SSIM_WINDOW, dtype=images.dtype, device=images.device) - more // 2
    window = torch.exp(-step.square() / (2 * 1.5**2))
    band = torch.zeros(block + more + 1, block, dtype=images.dtype, device=images.device)
    band[:_SSIM_WINDOW] = (window / window.sum())[:, None]
    band = band.T.flatten()[: block * (block + more)].view(block, block + more)  # row i from column i on
    images = F.pad(images, (0, 0, pad, pad))
    images = torch.cat(
        [
            band[:size, : size + more] @ images[:, begin : begin + size + more]
            for begin, size in _blocks(images.shape[1] - more)
        ],
        1,
    )
    images = F.pad(images, (pad, pad))
    return torch.cat(
        [
            images[:, :, begin : begin + size + more] @ band[:size, : size + more].T
            for begin, size in _blocks(images.shape[2] - more)
        ],
        2,
    )


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    """Where each begins and how long it is."""
    for begin in range(0, length, _SSIM_BLOCK):
        yield begin, min(_SSIM_BLOCK, length - begin)


def ssim_loss(
    image: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    data_range: float = 1.0,
    border: Literal["valid", "zeros"] = "valid",
) -> Tensor:
    """1 - :func:`ssim`, the mean over the batch.

    Args:
        image: (B, C, H, W).
        target: the same shape.
        mask: (B, H, W) bool; both pictures are made 0 where it is False.
        data_range: see :func:`ssim`.
        border: see :func:`ssim`.

    Returns:
        Scalar.
    """
    if mask is not None:
        require_one_shape("mask", mask, "image without channels", image[:, 0])
        image = torch.where(mask[:, None], image, 0.0)
        target = torch.where(mask[:, None], target, 0.0)
    return 1 - ssim(image, target, data_range=data_range, border=border).mean()


def load_lpips(weights: str | Path, *, net: Literal["vgg", "alex", "squeeze"] = "vgg") -> torch.nn.Module:
    """The network of :func:`lpips_loss`, from weights that are on this machine: nothing is fetched.

    The `lpips` package brings the weights of its last layers; those of the network under them are
    torchvision's (vgg16-397923af.pth, alexnet-owt-7be5be79.pth, squeezenet1_1-b8a52dc0.pth).

    Args:
        weights: torchvision's file with the state of the network.
        net: which network.

    Returns:
        The package's module, in eval mode, without gradients for its weights.

    Raises:
        ImportError: the package is not installed.
        FileNotFoundError: no such file.
        ValueError: the file does not have the network's weights.

    Reference: Zhang et al. 2018 and their package.
    """
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"`weights` must be torchvision's file with the weights of {net}, got {path}")
    try:
        lpips = importlib.import_module("lpips")
    except ImportError as error:
        raise ImportError("LPIPS needs the package lpips, and torchvision: pip install lpips") from error
    network: torch.nn.Module = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)  # random: or it fetches
    given = torch.load(path, map_location="cpu", weights_only=True)
    backbone = network.get_submodule("net")
    # slice1.0.weight of the package is features.0.weight of torchvision.
    wanted = {key: "features." + key.split(".", 1)[1] for key in backbone.state_dict()}
    missing = sorted(name for name in wanted.values() if name not in given)
    if missing:
        raise ValueError(f"{path} is no state of torchvision's {net}: it lacks {missing[0]}")
    backbone.load_state_dict({key: given[name] for key, name in wanted.items()})
    return network.eval().requires_grad_(False)


def lpips_loss(image: Tensor, target: Tensor, network: torch.nn.Module, mask: Tensor | None = None) -> Tensor:
    """The distance of pictures as a network's features see it, the mean over the batch.

    Args:
        image: (B, 3, H, W) in [0, 1]; normals as (n + 1) / 2.
        target: the same shape.
        network: of :func:`load_lpips`, on the pictures' device.
        mask: (B, H, W) bool; both pictures are made 0 where it is False.

    Returns:
        Scalar.

    Reference: Zhang et al. 2018.
    """
    require_one_shape("image", image, "target", target)
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"`image` must have shape (B, 3, H, W), got {tuple(image.shape)}")
    if mask is not None:
        require_one_shape("mask", mask, "image without channels", image[:, 0])
        image = torch.where(mask[:, None], image, 0.0)
        target = torch.where(mask[:, None], target, 0.0)
    distance: Tensor = network(image, target, normalize=True)
    return distance.mean()


def sparse_tsdf_loss(sdf: Tensor, target: Tensor, truncation: float) -> Tensor:
    """Mean absolute error of the signed distance at the corners of voxels that are near the surface.

    Args:
        sdf: (P,) of the model, negative inside.
        target: (P,) of the raw mesh, negative inside; for open meshes the distance to the closest triangle,
            positive before it.
        truncation: only corners that are nearer than this count, positive; 3 / resolution.

    Returns:
        Scalar; nothing where no corner is near.

    Reference: Focusing, equation 5, which sums; for its first 12000 steps, see :func:`warm_up`.
    """
    require_one_shape("sdf", sdf, "target", target)
    _require_truncation(truncation)
    near = target.abs() < truncation
    difference = torch.where(near, sdf - target.to(sdf.dtype), 0.0).abs()
    return difference.sum() / near.sum().clamp_min(1)


def view_tsdf_loss(
    sdf: Tensor,
    points: Tensor,
    depth: Tensor,
    matrix: Tensor,
    truncation: float,
    *,
    depth_row: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the signed distance at points to what a view's depth says of them.

    It says: the depth of the surface (bilinear between pixels) minus that of the point, cut off at the
    truncation. Points that lie farther behind the surface do not count, for who knows what is there, and nor
    do those that are not in the picture.

    Args:
        sdf: (P,) of the model, negative inside.
        points: (P, 3) in the world.
        depth: (H, W) linear, +inf for background; conventions as those of
            :func:`fastshape.ops.depth_carve`, first row at the top.
        matrix: (4, 4) world to clip, of column vectors.
        truncation: positive; 3 / resolution.
        depth_row: (4,) that gives the linear depth of (x, y, z, 1); None is the last row of `matrix`.

    Returns:
        Scalar; nothing where no point counts.

    Reference: TRELLIS (Xiang et al. 2024), the TSDF term of its mesh decoder's losses.
    """
    require_one_shape("sdf", sdf, "x of the points", points[..., 0])
    _require_truncation(truncation)
    if depth.ndim != 2:
        raise ValueError(f"`depth` must have shape (H, W), got {tuple(depth.shape)}")
    row = matrix[3] if depth_row is None else depth_row
    clip = points @ matrix[:, :3].T + matrix[:, 3]
    own = points @ row[:3] + row[3]
    place = torch.stack([clip[:, 0], -clip[:, 1]], 1) / clip[:, 3:]
    far = torch.finfo(depth.dtype).max / 8  # background: four of them still have a sum
    shown = F.grid_sample(
        depth.clamp(max=far)[None, None], place[None, None], padding_mode="border", align_corners=False
    )[0, 0, 0]
    difference = shown - own
    counts = (clip[:, 3] > 0) & (own > 0) & (place.abs() <= 1).all(1) & (difference > -truncation)
    aim = difference.clamp(-truncation, truncation).detach().to(sdf.dtype)
    return torch.where(counts, sdf - aim, 0.0).square().sum() / counts.sum().clamp_min(1)


def warm_up(step: int, steps: int = 12_000) -> float:
    """The weight of a loss that is there for the first `steps` steps only: 1, and 0 from step `steps` on."""
    return 1.0 if step < steps else 0.0


def _absolute_loss(values: Tensor, target: Tensor, beta: float | None) -> Tensor:
    if beta is None:
        return F.l1_loss(values, target)
    if not beta > 0:
        raise ValueError(f"`beta` must be positive, got {beta}")
    return F.smooth_l1_loss(values, target, beta=beta)


def _masked_loss(name: str, values: Tensor, target: Tensor, mask: Tensor, beta: float | None) -> Tensor:
    require_one_shape(name, values, "target", target)
    require_one_shape("mask", mask, name, values)
    if mask.dtype != torch.bool:
        raise TypeError(f"`mask` must be bool, got {str(mask.dtype).removeprefix('torch.')}")
    # Chosen before the difference: what lies beside the mask reaches neither the sum nor the gradient.
    values = torch.where(mask, values, 0.0)
    return _absolute_loss(values, torch.where(mask, target.to(values.dtype), 0.0), beta)


def _require_truncation(truncation: float) -> None:
    if not truncation > 0:
        raise ValueError(f"`truncation` must be positive, got {truncation}")
