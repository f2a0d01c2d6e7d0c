"""Losses of pictures and of distances at corners. Those of fields are tested with their models."""

import math
import types

import pytest
import torch

from fastshape import losses, testing


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=testing.generator(seed), dtype=dtype)


# ---- Depth, normals, masks ---------------------------------------------------------------------------------


def test_depth_by_hand():
    depth = torch.tensor([[1.0, 2.0], [3.0, math.nan]], requires_grad=True)
    target = torch.tensor([[1.5, math.inf], [2.0, 7.0]])
    mask = torch.tensor([[True, False], [True, False]])
    loss = losses.depth_loss(depth, target, mask)
    assert loss.item() == (0.5 + 1.0) / 4
    loss.backward()
    assert depth.grad.tolist() == [[-0.25, 0.0], [0.25, 0.0]]
    # Smooth: a difference below beta is squared over 2 beta, one above is beta / 2 less.
    loss = losses.depth_loss(depth, target, mask, beta=0.8)
    assert loss.item() == pytest.approx((0.5**2 / 1.6 + (1.0 - 0.4)) / 4)


def test_normals_by_hand():
    normals = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    target = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert losses.normal_loss(normals, target, torch.tensor([True, False])).item() == pytest.approx(2 / 6)
    assert losses.normal_loss(normals, target, torch.tensor([True, True])).item() == pytest.approx(3 / 6)


def test_masks():
    assert losses.mask_loss(torch.tensor([0.25, 1.0]), torch.tensor([True, False])).item() == 1.75 / 2


def test_toward_camera():
    normals = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.6, -0.8]])
    directions = torch.tensor([[0.5, 0.0, 2.0], [0.0, 1.0, 1.0]])
    assert losses.toward_camera(normals, directions).tolist() == [[0.0, 0.0, -1.0], normals[1].tolist()]


def test_gradients():
    depth, target = rand(3, 4, dtype=torch.float64), rand(3, 4, seed=1, dtype=torch.float64)
    mask = rand(3, 4, seed=2) < 0.6
    testing.check_gradients(lambda d: losses.depth_loss(d, target, mask, beta=0.1), depth)
    image = rand(2, 2, 12, 13, dtype=torch.float64)
    other = rand(2, 2, 12, 13, seed=1, dtype=torch.float64)
    for border in ("valid", "zeros"):
        testing.check_gradients(lambda i, o, b=border: losses.ssim_loss(i, o, border=b), image, other)
    target = rand(20, seed=3, dtype=torch.float64) - 0.5
    testing.check_gradients(lambda s: losses.sparse_tsdf_loss(s, target, 0.3), rand(20, dtype=torch.float64))


# ---- SSIM --------------------------------------------------------------------------------------------------


def test_ssim_is_that_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    image = rand(2, 3, 24, 31, dtype=torch.float64)
    target = (image + 0.2 * torch.randn(image.shape, generator=testing.generator(1))).clamp(0, 1)
    result = losses.ssim(image, target)
    for got, a, b in zip(result, image, target, strict=True):
        want = metrics.structural_similarity(
            a.numpy(),
            b.numpy(),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert got.item() == pytest.approx(want, abs=1e-9)
    scaled = losses.ssim(255 * image, 255 * target, data_range=255.0)
    assert torch.allclose(scaled, result)


@pytest.mark.parametrize("size", [(11, 11), (12, 43), (42, 74), (75, 20)])
def test_ssim_is_the_mean_over_its_windows(size):
    """Windows are worked out in blocks; a picture may end anywhere in one."""
    pictures = rand(1, 1, *size, dtype=torch.float64), rand(1, 1, *size, seed=1, dtype=torch.float64)
    windows = [p.unfold(2, 11, 1).unfold(3, 11, 1).reshape(-1, 1, 11, 11) for p in pictures]
    torch.testing.assert_close(losses.ssim(*pictures)[0], losses.ssim(*windows).mean())
    padded = [torch.nn.functional.pad(p, (5,) * 4) for p in pictures]
    torch.testing.assert_close(losses.ssim(*padded), losses.ssim(*pictures, border="zeros"))


def test_ssim():
    image = rand(2, 3, 20, 20)
    for border in ("valid", "zeros"):
        assert torch.allclose(losses.ssim(image, image, border=border), torch.ones(2))
        assert losses.ssim_loss(image, 1 - image, border=border) > 0.5
    # The windows of "zeros" that lie in the picture are those of "valid".
    padded = torch.nn.functional.pad(image, (5,) * 4), torch.nn.functional.pad(image.flip(3), (5,) * 4)
    assert torch.allclose(losses.ssim(*padded), losses.ssim(image, image.flip(3), border="zeros"), atol=1e-6)
    mask = rand(2, 20, 20, seed=4) < 0.5
    spoiled = torch.where(mask[:, None], image, torch.nan)
    assert losses.ssim_loss(spoiled, image, mask).item() == pytest.approx(0, abs=1e-6)


# ---- LPIPS -------------------------------------------------------------------------------------------------


class Backbone(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.slice1 = torch.nn.Sequential()
        self.slice1.add_module("0", torch.nn.Conv2d(3, 4, 3))
        self.slice2 = torch.nn.Sequential()
        self.slice2.add_module("5", torch.nn.Conv2d(4, 2, 3))


class Package(torch.nn.Module):
    """What :func:`load_lpips` asks of the package."""

    def __init__(self, net, pnet_rand, verbose):
        super().__init__()
        assert pnet_rand  # or the package fetches weights
        self.net = Backbone()

    def forward(self, image, target, normalize):
        assert normalize
        features = [self.net.slice2(self.net.slice1(x)) for x in (image, target)]
        return (features[0] - features[1]).square().mean((1, 2, 3), keepdim=True)


def test_lpips_takes_the_given_weights(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "lpips", types.SimpleNamespace(LPIPS=Package))
    state = {
        "features.0.weight": rand(4, 3, 3, 3),
        "features.0.bias": rand(4),
        "features.5.weight": rand(2, 4, 3, 3),
        "features.5.bias": rand(2),
        "classifier.0.weight": rand(2, 2),
    }
    torch.save(state, tmp_path / "vgg.pth")
    network = losses.load_lpips(tmp_path / "vgg.pth")
    assert torch.equal(network.net.slice2.get_submodule("5").weight, state["features.5.weight"])
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    image, target = rand(2, 3, 9, 9).requires_grad_(), rand(2, 3, 9, 9, seed=1)
    loss = losses.lpips_loss(image, target, network)
    loss.backward()
    assert loss > 0
    assert image.grad.abs().sum() > 0
    nowhere = torch.zeros(2, 9, 9, dtype=torch.bool)
    assert losses.lpips_loss(image, target, network, nowhere) == 0
    del state["features.5.bias"]
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(
        ValueError, match=r"bad\.pth is no state of torchvision's vgg: it lacks features\.5\.bias"
    ):
        losses.load_lpips(tmp_path / "bad.pth")


def test_lpips_without_its_parts(monkeypatch, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"torchvision's file with the weights of vgg, got .*nothing\.pth"
    ):
        losses.load_lpips(tmp_path / "nothing.pth")
    monkeypatch.setitem(__import__("sys").modules, "lpips", None)
    torch.save({}, tmp_path / "vgg.pth")
    with pytest.raises(
        ImportError, match="LPIPS needs the package lpips, and torchvision: pip install lpips"
    ):
        losses.load_lpips(tmp_path / "vgg.pth")


# ---- Truncated distances -----------------------------------------------------------------------------------


def test_sparse_tsdf_by_hand():
    sdf = torch.tensor([0.1, -0.2, 5.0, math.nan], requires_grad=True)
    target = torch.tensor([0.3, -0.1, 0.5, -9.0])
    loss = losses.sparse_tsdf_loss(sdf, target, 0.4)
    assert loss.item() == pytest.approx((0.2 + 0.1) / 2)
    loss.backward()
    assert sdf.grad.tolist() == [-0.5, -0.5, 0.0, 0.0]
    assert losses.sparse_tsdf_loss(sdf, target, 0.01).item() == 0


def test_view_tsdf_of_a_plane():
    """A wall at depth 2: the distance of points along the axis of the camera, cut off at 0.3."""
    matrix = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, -1, 0]])
    depth = torch.full((8, 8), 2.0)
    points = torch.tensor(
        [[0.1, 0.2, -1.9], [0, 0, -2.1], [0, 0, -2.5], [0, 0, -1.0], [9, 0, -2.0], [0, 0, 2.0]]
    )
    aims = torch.tensor([0.1, -0.1, math.nan, 0.3, math.nan, math.nan])  # the third is too far behind
    counts = ~aims.isnan()
    sdf = torch.where(counts, aims, 7.0).requires_grad_()
    assert losses.view_tsdf_loss(sdf, points, depth, matrix, 0.3).item() == pytest.approx(0, abs=1e-10)
    loss = losses.view_tsdf_loss(sdf + 0.5, points, depth, matrix, 0.3)
    assert loss.item() == pytest.approx(0.25, abs=1e-5)
    loss.backward()
    assert torch.equal(sdf.grad != 0, counts)
    row = torch.tensor([0.0, 0, -1, 0.05])
    shifted = losses.view_tsdf_loss(sdf, points, depth, matrix, 0.3, depth_row=row)
    assert shifted.item() == pytest.approx((0.05**2 * 2) / 3, abs=1e-6)


def test_view_tsdf_between_pixels_and_before_background():
    matrix = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, -1, 0]])
    depth = torch.tensor([[2.0, 3.0], [2.0, math.inf]])  # the first row is at the top
    x = torch.tensor([[0.0, 0.75, -2.5], [1.25, -1.25, -2.5]])
    aims = torch.tensor([2.5 - 2.5, 1.0])
    x[0, 1] = 1.25  # the middle of the upper row: between 2 and 3
    assert losses.view_tsdf_loss(aims, x, depth, matrix, 1.0).item() == pytest.approx(0, abs=1e-10)


def test_the_warm_up_is_off_at_its_last_step():
    assert [losses.warm_up(step) for step in (0, 11_999, 12_000, 99_999)] == [1.0, 1.0, 0.0, 0.0]


def test_wrong_inputs():
    x = rand(4, 4)
    with pytest.raises(
        ValueError, match=r"`depth` and `target` must have one shape, got \(4, 4\) and \(3, 4\)"
    ):
        losses.depth_loss(x, x[1:], x > 0)
    with pytest.raises(ValueError, match="`mask` and `depth` must have one shape"):
        losses.depth_loss(x, x, x[0] > 0)
    with pytest.raises(TypeError, match="`mask` must be bool, got float32"):
        losses.depth_loss(x, x, x)
    with pytest.raises(ValueError, match="`beta` must be positive, got 0"):
        losses.mask_loss(x, x, beta=0)
    with pytest.raises(ValueError, match="`mask` and `normals without channels` must have one shape"):
        losses.normal_loss(rand(4, 4, 3), rand(4, 4, 3), x[0] > 0)
    with pytest.raises(ValueError, match=r"`image` must have shape \(B, C, H, W\), H and W at least 11"):
        losses.ssim(rand(1, 1, 10, 20), rand(1, 1, 10, 20))
    with pytest.raises(ValueError, match="`border` must be 'valid' or 'zeros', got 'same'"):
        losses.ssim(rand(1, 1, 20, 20), rand(1, 1, 20, 20), border="same")
    with pytest.raises(ValueError, match=r"`image` must have shape \(B, 3, H, W\), got \(4, 4\)"):
        losses.lpips_loss(x, x, torch.nn.Identity())
    with pytest.raises(ValueError, match="`truncation` must be positive, got 0"):
        losses.sparse_tsdf_loss(x, x, 0)
    with pytest.raises(ValueError, match=r"`depth` must have shape \(H, W\), got \(4,\)"):
        losses.view_tsdf_loss(x[0], rand(4, 3), x[0], torch.eye(4), 0.1)
