"""Pictures of triangle meshes: which triangle a pixel shows, attributes there, smooth silhouettes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastshape._library import backend, define


class Rasterized(NamedTuple):
    """What :func:`rasterize` found at each pixel."""

    triangle_id: Tensor
    barycentrics: Tensor
    depth: Tensor
    w: Tensor


def _workspace(op: str, like: Tensor, *sizes: int | bool) -> Tensor | None:
    """Scratch memory for the CUDA kernels."""
    module = backend()
    if not (like.is_cuda or module.emulated):
        return None
    size = getattr(module, f"{op}_workspace_bytes")(*sizes)
    return torch.empty(size, dtype=torch.uint8, device=like.device)


# ---- vertex_sums: the backward step of what follows --------------------------------------------------------


def _new_vertex_sums(
    values: Tensor, weights: Tensor, faces: Tensor, triangle_id: Tensor, num_sets: int, num_vertices: int
) -> Tensor:
    return values.new_empty(num_sets, num_vertices, values.shape[-1])


def _vertex_sums(
    values: Tensor, weights: Tensor, faces: Tensor, triangle_id: Tensor, num_sets: int, num_vertices: int
) -> Tensor:
    sums = _new_vertex_sums(values, weights, faces, triangle_id, num_sets, num_vertices)
    workspace = _workspace("vertex_sums", values, triangle_id.numel())
    backend().vertex_sums(values, weights, faces, triangle_id, workspace, sums)
    return sums


_vertex_sums_op = define(
    "vertex_sums(Tensor values, Tensor weights, Tensor faces, Tensor triangle_id, int num_sets,"
    " int num_vertices) -> Tensor",
    implementation=_vertex_sums,
    fake=_new_vertex_sums,
)


# ---- rasterize ---------------------------------------------------------------------------------------------


def _new_pixels(
    vertices_clip: Tensor, faces: Tensor, face_offsets: Tensor | None, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images = vertices_clip.shape[0] if face_offsets is None else face_offsets.shape[0] - 1
    shape = (images, height, width)
    return (
        vertices_clip.new_empty(shape, dtype=torch.int64),
        vertices_clip.new_empty(*shape, 3),
        vertices_clip.new_empty(shape),
        vertices_clip.new_empty(shape),
    )


def _rasterize(
    vertices_clip: Tensor, faces: Tensor, face_offsets: Tensor | None, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    pixels = _new_pixels(vertices_clip, faces, face_offsets, height, width)
    ragged, images = face_offsets is not None, pixels[0].shape[0]
    workspace = _workspace(
        "rasterize", vertices_clip, *vertices_clip.shape[:2], images, faces.shape[0], height, width, ragged
    )
    backend().rasterize(vertices_clip, faces, face_offsets, workspace, *pixels)
    return pixels


_rasterize_op = define(
    "rasterize(Tensor vertices_clip, Tensor faces, Tensor? face_offsets, int height, int width)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    implementation=_rasterize,
    fake=_new_pixels,
)


def _new_pixel_gradients(
    vertices_clip: Tensor,
    faces: Tensor,
    triangle_id: Tensor,
    grad_barycentrics: Tensor | None,
    grad_depth: Tensor | None,
    grad_w: Tensor | None,
) -> Tensor:
    return vertices_clip.new_empty(*triangle_id.shape, 4)


def _rasterize_backward(
    vertices_clip: Tensor,
    faces: Tensor,
    triangle_id: Tensor,
    grad_barycentrics: Tensor | None,
    grad_depth: Tensor | None,
    grad_w: Tensor | None,
) -> Tensor:
    gradients = vertices_clip.new_empty(*triangle_id.shape, 4)
    backend().rasterize_backward(
        vertices_clip, faces, triangle_id, grad_barycentrics, grad_depth, grad_w, gradients
    )
    return gradients


_rasterize_backward_op = define(
    "rasterize_backward(Tensor vertices_clip, Tensor faces, Tensor triangle_id, Tensor? grad_barycentrics,"
    " Tensor? grad_depth, Tensor? grad_w) -> Tensor",
    implementation=_rasterize_backward,
    fake=_new_pixel_gradients,
)


def _contiguous(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.contiguous()


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, vertices_clip: Tensor, faces: Tensor, face_offsets: Tensor | None, height: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pixels = _rasterize_op(vertices_clip, faces, face_offsets, height, width)
        ctx.save_for_backward(vertices_clip, faces, *pixels[:2])
        ctx.mark_non_differentiable(pixels[0])
        ctx.set_materialize_grads(False)
        return pixels

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, _: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        vertices_clip, faces, triangle_id, barycentrics = ctx.saved_tensors
        if all(grad is None for grad in grads):
            return None, None, None, None, None
        gradients = _rasterize_backward_op(vertices_clip, faces, triangle_id, *map(_contiguous, grads))
        grad_vertices = _vertex_sums_op(gradients, barycentrics, faces, triangle_id, *vertices_clip.shape[:2])
        return grad_vertices, None, None, None, None


def _as_sets(name: str, tensor: Tensor, width: str) -> Tensor:
    """(S, V, C), one set for all images or one for each."""
    if tensor.ndim == 2:
        return tensor[None]
    if tensor.ndim != 3:
        raise ValueError(
            f"`{name}` must have shape (V, {width}) or (B, V, {width}), got {tuple(tensor.shape)}"
        )
    return tensor


def rasterize(
    vertices_clip: Tensor,
    faces: Tensor,
    size: int | tuple[int, int],
    *,
    face_offsets: Tensor | None = None,
) -> Rasterized:
    """Which triangle each pixel of an image shows, with the weights of its vertices and its depth.

    Clip coordinates are what a camera matrix makes of (x, y, z, 1): the point is seen at x/w, y/w in
    [-1, 1], x to the right and y **up**, with the first row of the image at the top, where w > 0 and the
    depth z/w lies in [-1, 1]. Both sides of a triangle are seen.

    A pixel shows, of the triangles that cover its center, the one with the smallest depth, rounded to 2^-32
    of the range; ties go to the lowest face. Vertices are rounded to 1/256 of a pixel for both, and the
    question on which side of an edge a center lies is answered in integers, by the edge's two vertices
    alone; a center on an edge belongs to the triangle to its right or below it. So a mesh has no cracks
    between triangles that share an edge, and no pixel belongs to two of them. Triangles that reach behind the
    camera are cut off where they leave the view. One that is seen edge on, has a vertex that is not finite
    or that is not in ``vertices_clip``, is not drawn.

    Args:
        vertices_clip: (V, 4), or (B, V, 4) for B views of the same faces; float32 or float64, contiguous.
        faces: (F, 3) int64, contiguous. F below 2^32 - 1.
        size: (height, width) of an image in pixels, each from 1 to 32768; one number for both.
        face_offsets: (B + 1,) int64, ascending from 0 to F, which is not checked: image b shows the faces
            ``face_offsets[b]`` to ``face_offsets[b + 1] - 1`` and no others, so that each image has its own
            mesh. The vertices of all are in one (V, 4), with ``faces`` counting through them, or B of (B, V,
            4). None: every image shows all faces.

    Returns:
        ``triangle_id`` (B, H, W) int64, a row of ``faces``, -1 where nothing is seen. ``barycentrics`` (B, H,
        W, 3), the weights of its vertices at the center, in the mesh and not in the picture (perspective
        correct), not negative and with sum 1; 0 where nothing is seen. ``depth`` (B, H, W), z/w; 1 where
        nothing is seen. ``w`` (B, H, W), for a perspective camera the distance from its plane; 0 where
        nothing is seen. Without B for (V, 4) and no ``face_offsets``.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous, a size out of range.

    Gradient: of ``barycentrics``, ``depth`` and ``w`` with respect to ``vertices_clip``, once, for fixed
    ``triangle_id``; :func:`antialias` gives the one of silhouettes. Where rounding puts a center beyond an
    edge, by up to 1/256 of a pixel, the weight there is held at 0. Deterministic.

    Device: CPU and CUDA with equal results, to the bit (the gradients to rounding); no sync. On CUDA 8 bytes
    for a pixel and for a face of an image, 16 for a vertex; backward 48 for a pixel.

    Reference: Olano and Greer 1997, "Triangle Scan Conversion using 2D Homogeneous Coordinates", for
    triangles that reach behind the camera, where we scale the coefficients to integers; Burns and Hunt 2013
    for the visibility buffer, and Schuetz, Kerbl and Wimmer 2021 for depth and id in one word of 64 bits
    whose minimum is kept. The gradient of the weights is derived in ``csrc/raster/pixel.h``.
    """
    height, width = (size, size) if isinstance(size, int) else size
    vertices = _as_sets("vertices_clip", vertices_clip, "4")
    if face_offsets is not None and (face_offsets.ndim != 1 or not len(face_offsets)):
        raise ValueError(f"`face_offsets` must have shape (B + 1,), got {tuple(face_offsets.shape)}")
    if height < 1 or width < 1:
        raise ValueError(f"`size` must be two numbers between 1 and 32768, got ({height}, {width})")
    if torch.is_grad_enabled() and vertices.requires_grad:
        pixels = _Rasterize.apply(vertices, faces, face_offsets, height, width)
    else:
        pixels = _rasterize_op(vertices, faces, face_offsets, height, width)
    if vertices_clip.ndim == 2 and face_offsets is None:
        pixels = tuple(part[0] for part in pixels)
    return Rasterized(*pixels)


# ---- interpolate -------------------------------------------------------------------------------------------


def _new_values(attributes: Tensor, faces: Tensor, triangle_id: Tensor, barycentrics: Tensor) -> Tensor:
    return attributes.new_empty(*triangle_id.shape, attributes.shape[-1])


def _interpolate(attributes: Tensor, faces: Tensor, triangle_id: Tensor, barycentrics: Tensor) -> Tensor:
    values = _new_values(attributes, faces, triangle_id, barycentrics)
    backend().interpolate(attributes, faces, triangle_id, barycentrics, values)
    return values


_interpolate_op = define(
    "interpolate(Tensor attributes, Tensor faces, Tensor triangle_id, Tensor barycentrics) -> Tensor",
    implementation=_interpolate,
    fake=_new_values,
)


def _new_grad_barycentrics(
    grad_values: Tensor, attributes: Tensor, faces: Tensor, triangle_id: Tensor
) -> Tensor:
    return attributes.new_empty(*triangle_id.shape, 3)


def _interpolate_backward(
    grad_values: Tensor, attributes: Tensor, faces: Tensor, triangle_id: Tensor
) -> Tensor:
    grad_barycentrics = _new_grad_barycentrics(grad_values, attributes, faces, triangle_id)
    backend().interpolate_backward(grad_values, attributes, faces, triangle_id, grad_barycentrics)
    return grad_barycentrics


_interpolate_backward_op = define(
    "interpolate_backward(Tensor grad_values, Tensor attributes, Tensor faces, Tensor triangle_id) -> Tensor",
    implementation=_interpolate_backward,
    fake=_new_grad_barycentrics,
)


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, attributes: Tensor, faces: Tensor, triangle_id: Tensor, barycentrics: Tensor
    ) -> Tensor:
        ctx.save_for_backward(attributes, faces, triangle_id, barycentrics)
        return _interpolate_op(attributes, faces, triangle_id, barycentrics)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_values: Tensor) -> tuple[Tensor | None, ...]:
        attributes, faces, triangle_id, barycentrics = ctx.saved_tensors
        grad_values = grad_values.contiguous()
        grad_attributes = grad_barycentrics = None
        if ctx.needs_input_grad[0]:
            grad_attributes = _vertex_sums_op(
                grad_values, barycentrics, faces, triangle_id, *attributes.shape[:2]
            )
        if ctx.needs_input_grad[3]:
            grad_barycentrics = _interpolate_backward_op(grad_values, attributes, faces, triangle_id)
        return grad_attributes, None, None, grad_barycentrics


def interpolate(attributes: Tensor, faces: Tensor, triangle_id: Tensor, barycentrics: Tensor) -> Tensor:
    """Attributes of a mesh's vertices at the pixels of its images.

    Args:
        attributes: (V, C), or (B, V, C) where each image has its own; float32 or float64, contiguous.
        faces: (F, 3) int64, contiguous.
        triangle_id: (H, W) or (B, H, W) int64, of :func:`rasterize`, contiguous.
        barycentrics: (H, W, 3) or (B, H, W, 3), dtype of ``attributes``, contiguous.

    Returns:
        (H, W, C) or (B, H, W, C): the attributes of the triangle's vertices, weighted; 0 where nothing is
        seen.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous.

    Gradient: with respect to ``attributes`` and ``barycentrics``, once; through the latter to the vertices
    of :func:`rasterize`. Deterministic. On CUDA 48 bytes for a pixel, and at most 2^32 / 3 pixels.

    Device: CPU and CUDA with equal results (the gradients to rounding); no sync.
    """
    single = triangle_id.ndim == 2
    inputs = (
        _as_sets("attributes", attributes, "C"),
        faces,
        triangle_id[None] if single else triangle_id,
        barycentrics[None] if single else barycentrics,
    )
    if torch.is_grad_enabled() and (inputs[0].requires_grad or inputs[3].requires_grad):
        values = _Interpolate.apply(*inputs)
    else:
        values = _interpolate_op(*inputs)
    return values[0] if single else values


# ---- antialias ---------------------------------------------------------------------------------------------


def edge_twins(faces: Tensor) -> Tensor:
    """For each edge of each face, the same edge in the face on its other side.

    Args:
        faces: (F, 3) int64, vertices below 2^31; or (F, K), polygons of K corners.

    Returns:
        (F, K) int64: edge k of a face runs from its corner k to the next; ``K * face + edge`` of its twin,
        whichever way that runs, and -1 where it has none or more than one.

    Raises:
        ValueError: wrong shape.

    Gradient: none. Device: any, in torch; no sync.
    """
    if faces.ndim != 2 or faces.shape[1] < 3:
        raise ValueError(f"`faces` must have shape (F, K), K at least 3, got {tuple(faces.shape)}")
    ends = faces, faces.roll(-1, 1)
    keys, order = (torch.minimum(*ends) << 31 | torch.maximum(*ends)).reshape(-1).sort(stable=True)
    same = keys[1:] == keys[:-1]
    alone = torch.ones_like(same[:1])
    # The first of exactly two.
    first = same & torch.cat([alone, ~same])[:-1] & torch.cat([~same, alone])[1:]
    twins = torch.full_like(order, -1)
    left, right = order[:-1], order[1:]
    twins = twins.scatter(0, left, torch.where(first, right, -1))
    # Where `first` is false the place keeps what it has.
    return twins.scatter(0, right, torch.where(first, left, twins[right])).view(faces.shape)


def _antialias(
    image: Tensor, triangle_id: Tensor, depth: Tensor, vertices_clip: Tensor, faces: Tensor, twins: Tensor
) -> Tensor:
    result = torch.empty_like(image)
    backend().antialias(image, triangle_id, depth, vertices_clip, faces, twins, result)
    return result


_antialias_op = define(
    "antialias(Tensor image, Tensor triangle_id, Tensor depth, Tensor vertices_clip, Tensor faces,"
    " Tensor twins) -> Tensor",
    implementation=_antialias,
    fake=lambda image, *others: torch.empty_like(image),
)


def _antialias_backward(
    grad_result: Tensor,
    image: Tensor,
    triangle_id: Tensor,
    depth: Tensor,
    vertices_clip: Tensor,
    faces: Tensor,
    twins: Tensor,
) -> tuple[Tensor, Tensor]:
    grads = torch.empty_like(image), torch.empty_like(vertices_clip)
    workspace = _workspace("antialias_backward", image, triangle_id.numel())
    backend().antialias_backward(
        grad_result, image, triangle_id, depth, vertices_clip, faces, twins, workspace, *grads
    )
    return grads


_antialias_backward_op = define(
    "antialias_backward(Tensor grad_result, Tensor image, Tensor triangle_id, Tensor depth,"
    " Tensor vertices_clip, Tensor faces, Tensor twins) -> (Tensor, Tensor)",
    implementation=_antialias_backward,
    fake=lambda grad_result, image, triangle_id, depth, vertices_clip, *others: (
        torch.empty_like(image),
        torch.empty_like(vertices_clip),
    ),
)


class _Antialias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, vertices_clip: Tensor, *others: Tensor) -> Tensor:
        triangle_id, depth, faces, twins = others
        arguments = (image, triangle_id, depth, vertices_clip, faces, twins)
        ctx.save_for_backward(*arguments)
        return _antialias_op(*arguments)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_result: Tensor) -> tuple[Tensor | None, ...]:
        grads = _antialias_backward_op(grad_result.contiguous(), *ctx.saved_tensors)
        return *grads, None, None, None, None


def antialias(
    image: Tensor,
    triangle_id: Tensor,
    depth: Tensor,
    vertices_clip: Tensor,
    faces: Tensor,
    *,
    twins: Tensor | None = None,
) -> Tensor:
    """Smooth silhouettes, so that a picture changes continuously, and has a gradient, as they move.

    Where two pixels beside or below each other show different triangles and the surface of the nearer one
    ends between their centers, the one that the silhouette cuts takes from the other: beyond the middle the
    farther pixel takes what the surface covers of it, before it the nearer one takes what it does not cover.
    A surface ends at an edge without a neighbor or with one that turns back; the edge is looked for from the
    pixel's triangle through up to 16 neighbors. Silhouettes nearer to the vertical act on pixels beside
    each other, the others on pixels below each other: along straight silhouettes the sum of a mask is the
    area, row by row, and its derivative that of the area.

    Args:
        image: (H, W, C) or (B, H, W, C), what was drawn of ``triangle_id``; float32 or float64, contiguous.
        triangle_id, depth: (H, W) or (B, H, W), of :func:`rasterize`.
        vertices_clip, faces: as given to it.
        twins: (F, 3) int64, of :func:`edge_twins`; None computes it, which takes longer than the rest.

    Returns:
        The shape of ``image``.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous.

    Gradient: with respect to ``image`` and ``vertices_clip``, once. Deterministic. On CUDA 64 bytes for a
    pixel, and at most 2^30 pixels.

    Device: CPU and CUDA with equal results (the gradients to rounding); no sync.

    Reference: Laine et al. 2020, "Modular Primitives for High-Performance Differentiable Rendering", on
    analytic antialiasing, from the paper alone. Following the surface through its neighbors is ours, as
    is the choice of silhouettes by their slope.
    """
    single = image.ndim == 3
    if single:
        image, triangle_id, depth = image[None], triangle_id[None], depth[None]
    vertices = _as_sets("vertices_clip", vertices_clip, "4")
    twins = edge_twins(faces) if twins is None else twins
    if torch.is_grad_enabled() and (image.requires_grad or vertices.requires_grad):
        result = _Antialias.apply(image, vertices, triangle_id, depth.detach(), faces, twins)
    else:
        result = _antialias_op(image, triangle_id, depth.detach(), vertices, faces, twins)
    return result[0] if single else result
