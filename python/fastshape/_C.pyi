"""The extension module. Use :mod:`fastshape.ops`: it checks, allocates and differentiates."""

from collections.abc import Sequence

from torch import Tensor

__version__: str
cuda_architectures: str
emulated: bool
compiler: str

def num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
def instruction_set() -> str: ...
def best_instruction_set() -> str: ...
def set_instruction_set(name: str) -> None: ...

# sampling
def farthest_point_sampling(
    points: Tensor,
    clouds: Tensor,
    max_num: int,
    workspace: Tensor | None,
    indices: Tensor,
    distances: Tensor | None,
) -> None: ...
def farthest_point_sampling_workspace_bytes(batch: int, total: int, max_length: int, max_num: int) -> int: ...

# geometry
def first_equal_rows(rows: Tensor, first: Tensor) -> None: ...
def count_edges(faces: Tensor, num_vertices: int) -> tuple[int, int, int]: ...
def build_bvh(
    vertices: Tensor,
    faces: Tensor,
    hilbert_order: bool,
    workspace: Tensor | None,
    boxes: Tensor,
    first_child: Tensor,
    triangles: Tensor,
    face_index: Tensor,
) -> None: ...
def closest_point(
    points: Tensor,
    boxes: Tensor,
    first_child: Tensor,
    triangles: Tensor,
    face_index: Tensor,
    workspace: Tensor | None,
    distance: Tensor,
    face: Tensor,
    barycentric: Tensor,
    point: Tensor,
) -> None: ...
def closest_point_backward(
    grad_distance: Tensor,
    points: Tensor,
    vertices: Tensor,
    faces: Tensor,
    face: Tensor,
    barycentric: Tensor,
    workspace: Tensor | None,
    grad_points: Tensor,
    grad_vertices: Tensor,
) -> None: ...
def bvh_moments(
    boxes: Tensor,
    first_child: Tensor,
    triangles: Tensor,
    face_index: Tensor,
    moments: Tensor,
) -> None: ...
def winding_number(
    points: Tensor,
    boxes: Tensor,
    first_child: Tensor,
    triangles: Tensor,
    face_index: Tensor,
    moments: Tensor,
    beta: float,
    workspace: Tensor | None,
    winding: Tensor,
) -> None: ...
def cast_rays(
    origins: Tensor,
    directions: Tensor,
    boxes: Tensor,
    first_child: Tensor,
    triangles: Tensor,
    face_index: Tensor,
    workspace: Tensor | None,
    t: Tensor,
    face: Tensor,
    barycentric: Tensor,
) -> None: ...
def ray_parity(
    points: Tensor,
    directions: Tensor,
    boxes: Tensor,
    first_child: Tensor,
    triangles: Tensor,
    face_index: Tensor,
    workspace: Tensor | None,
    votes: Tensor,
    crossings: bool,
) -> None: ...
def build_bvh_workspace_bytes(num_faces: int) -> int: ...
def closest_point_workspace_bytes(num_points: int) -> int: ...
def closest_point_backward_workspace_bytes(num_points: int) -> int: ...
def winding_number_workspace_bytes(num_points: int) -> int: ...
def cast_rays_workspace_bytes(num_rays: int) -> int: ...
def ray_parity_workspace_bytes(num_points: int) -> int: ...
def voxelize_mesh_count(
    vertices: Tensor, faces: Tensor, resolution: int, low: float, high: float, counts: Tensor
) -> None: ...
def voxelize_mesh_fill(
    vertices: Tensor,
    faces: Tensor,
    resolution: int,
    low: float,
    high: float,
    offsets: Tensor,
    keys: Tensor,
) -> None: ...

# raster
def rasterize(
    vertices_clip: Tensor,
    faces: Tensor,
    face_offsets: Tensor | None,
    workspace: Tensor | None,
    triangle_id: Tensor,
    barycentrics: Tensor,
    depth: Tensor,
    w: Tensor,
) -> None: ...
def rasterize_workspace_bytes(
    num_sets: int,
    num_vertices: int,
    num_images: int,
    num_faces: int,
    height: int,
    width: int,
    ragged: bool,
) -> int: ...
def rasterize_backward(
    vertices_clip: Tensor,
    faces: Tensor,
    triangle_id: Tensor,
    grad_barycentrics: Tensor | None,
    grad_depth: Tensor | None,
    grad_w: Tensor | None,
    gradients: Tensor,
) -> None: ...
def interpolate(
    attributes: Tensor, faces: Tensor, triangle_id: Tensor, barycentrics: Tensor, values: Tensor
) -> None: ...
def interpolate_backward(
    grad_values: Tensor, attributes: Tensor, faces: Tensor, triangle_id: Tensor, grad_barycentrics: Tensor
) -> None: ...
def vertex_sums(
    values: Tensor,
    weights: Tensor,
    faces: Tensor,
    triangle_id: Tensor,
    workspace: Tensor | None,
    sums: Tensor,
) -> None: ...
def vertex_sums_workspace_bytes(num_pixels: int) -> int: ...
def antialias(
    image: Tensor,
    triangle_id: Tensor,
    depth: Tensor,
    vertices_clip: Tensor,
    faces: Tensor,
    twins: Tensor,
    result: Tensor,
) -> None: ...
def antialias_backward(
    grad_result: Tensor,
    image: Tensor,
    triangle_id: Tensor,
    depth: Tensor,
    vertices_clip: Tensor,
    faces: Tensor,
    twins: Tensor,
    workspace: Tensor | None,
    grad_image: Tensor,
    grad_vertices: Tensor,
) -> None: ...
def antialias_backward_workspace_bytes(num_pixels: int) -> int: ...

# carving
def pack_bits(grid: Tensor, bits: Tensor) -> None: ...
def unpack_bits(bits: Tensor, grid: Tensor) -> None: ...
def dilate_bits(bits: Tensor, size_z: int, dilated: Tensor) -> None: ...
def dilate_values(grid: Tensor, dilated: Tensor) -> None: ...
def set_bits(coords: Tensor, mask: Tensor | None, bits: Tensor, size_z: int, bad_row: Tensor) -> None: ...
def get_bits(coords: Tensor, bits: Tensor, size_z: int, found: Tensor) -> None: ...
def count_set_bits_workspace_bytes(num_words: int) -> int: ...
def count_set_bits(bits: Tensor, size_z: int, workspace: Tensor | None, first: Tensor) -> None: ...
def bit_coords(bits: Tensor, size_z: int, first: Tensor, coords: Tensor) -> None: ...
def depth_carve(
    coords: Tensor,
    depth: Tensor,
    matrices: Tensor,
    depth_rows: Tensor | None,
    resolution: int,
    low: float,
    voxel_size: float,
    threshold: float,
    near: float,
    far: float,
    any_view: bool,
    keep_outside: bool,
    keep_background: bool,
    keep_invalid: bool,
    bottom_up: bool,
    mask: Tensor,
    bad_row: Tensor,
) -> None: ...

# isosurface
def flood_fill(
    points: Tensor,
    solid: Tensor,
    size_x: int,
    size_y: int,
    size_z: int,
    workspace: Tensor | None,
    reached: Tensor,
) -> None: ...
def flood_fill_workspace_bytes(num_solid: int, size_x: int, size_y: int, size_z: int) -> int: ...
def marching_cubes_sparse_workspace_bytes(num_cells: int, cuda: bool) -> int: ...
def marching_cubes_sparse_fill_workspace_bytes(num_vertices: int, cuda: bool) -> int: ...
def marching_cubes_sparse_count(
    values: Tensor, coords: Tensor, level: float, workspace: Tensor, counts: Tensor
) -> None: ...
def marching_cubes_sparse_fill(
    values: Tensor,
    coords: Tensor,
    level: float,
    workspace: Tensor,
    fill_workspace: Tensor | None,
    num_crossed: int,
    vertices: Tensor,
    faces: Tensor,
    source: Tensor,
) -> None: ...
def marching_cubes_workspace_bytes(size_x: int, size_y: int, size_z: int, cuda: bool) -> int: ...
def marching_cubes_count(values: Tensor, level: float, workspace: Tensor, totals: Tensor) -> None: ...
def marching_cubes_fill(
    values: Tensor, level: float, workspace: Tensor, vertices: Tensor, faces: Tensor, source: Tensor
) -> None: ...
def marching_cubes_backward(
    grad_vertices: Tensor, values: Tensor, source: Tensor, level: float, grad_values: Tensor
) -> None: ...
def marching_cubes_sparse_backward(
    grad_vertices: Tensor,
    values: Tensor,
    source: Tensor,
    level: float,
    workspace: Tensor | None,
    grad_values: Tensor,
) -> None: ...
def marching_cubes_sparse_backward_workspace_bytes(num_cells: int) -> int: ...

# isosurface: dual surfaces
def dual_surface_workspace_bytes(
    num_points: int, size_x: int, size_y: int, size_z: int, list: bool, cuda: bool
) -> int: ...
def dual_surface_mark(
    values: Tensor, cubes: Tensor | None, level: float, workspace: Tensor, found: Tensor
) -> None: ...
def dual_surface_count_workspace_bytes(num_crossed: int, cuda: bool) -> int: ...
def dual_surface_count(
    values: Tensor,
    cubes: Tensor | None,
    manifold: bool,
    workspace: Tensor,
    count_workspace: Tensor,
    lowest: Tensor,
    rows: Tensor | None,
    cases: Tensor,
    first_vertex: Tensor,
    first_pair: Tensor | None,
    totals: Tensor,
) -> None: ...
def dual_surface_fill_workspace_bytes(num_quads: int, cuda: bool) -> int: ...
def dual_surface_fill(
    values: Tensor,
    cubes: Tensor | None,
    face_order: int,
    workspace: Tensor,
    count_workspace: Tensor,
    fill_workspace: Tensor,
    lowest: Tensor,
    rows: Tensor,
    cases: Tensor,
    first_vertex: Tensor,
    first_pair: Tensor,
    vertex_cubes: Tensor,
    pair_edges: Tensor,
    quads: Tensor,
    quad_kinds: Tensor,
) -> None: ...
def dual_mesh_fill(
    values: Tensor,
    cubes: Tensor | None,
    positions: Tensor | None,
    level: float,
    workspace: Tensor,
    count_workspace: Tensor,
    fill_workspace: Tensor,
    lowest: Tensor,
    rows: Tensor | None,
    cases: Tensor,
    first_vertex: Tensor,
    vertices: Tensor,
    faces: Tensor,
) -> None: ...
def sharp_vertices(
    points: Tensor,
    normals: Tensor,
    crossing: Tensor,
    first: Tensor,
    lower: Tensor,
    upper: Tensor,
    regularization: float,
    vertices: Tensor,
) -> None: ...
def flexicubes_weights(raw: Tensor, rows: Tensor, sigmoid: bool, weights: Tensor) -> None: ...
def flexicubes(
    values: Tensor,
    cubes: Tensor | None,
    positions: Tensor | None,
    features: Tensor | None,
    alpha: Tensor | None,
    beta: Tensor | None,
    gamma: Tensor | None,
    lowest: Tensor,
    rows: Tensor,
    cases: Tensor,
    first_vertex: Tensor,
    first_pair: Tensor,
    vertex_cubes: Tensor,
    pair_edges: Tensor,
    quads: Tensor,
    quad_kinds: Tensor,
    level: float,
    centers: bool,
    vertices: Tensor,
    out_features: Tensor | None,
    deviation: Tensor,
    faces: Tensor,
) -> None: ...
def flexicubes_backward_workspace_bytes(
    num_crossed: int,
    num_points: int,
    num_features: int,
    positions: bool,
    centers: bool,
    list: bool,
    wide: bool,
    cuda: bool,
) -> int: ...
def flexicubes_backward(
    values: Tensor,
    cubes: Tensor | None,
    positions: Tensor | None,
    features: Tensor | None,
    alpha: Tensor | None,
    beta: Tensor | None,
    gamma: Tensor | None,
    lowest: Tensor,
    rows: Tensor,
    cases: Tensor,
    first_vertex: Tensor,
    first_pair: Tensor,
    vertex_cubes: Tensor,
    pair_edges: Tensor,
    quads: Tensor,
    quad_kinds: Tensor,
    level: float,
    centers: bool,
    vertices: Tensor,
    out_features: Tensor | None,
    grad_vertices: Tensor,
    grad_features: Tensor | None,
    grad_deviation: Tensor,
    activated: bool,
    workspace: Tensor,
    grad_values: Tensor,
    grad_positions: Tensor | None,
    grad_corner_features: Tensor | None,
    grad_alpha: Tensor | None,
    grad_beta: Tensor | None,
    grad_gamma: Tensor | None,
) -> None: ...
def voxel_corners_workspace_bytes(num_voxels: int, cuda: bool) -> int: ...
def voxel_corners_count(coords: Tensor, axis_bits: int, workspace: Tensor, found: Tensor) -> None: ...
def voxel_corners_fill(
    coords: Tensor, axis_bits: int, workspace: Tensor, index: Tensor, keys: Tensor, corners: Tensor
) -> None: ...
def corner_mean(
    values: Tensor, index: Tensor, workspace: Tensor | None, mean: Tensor, counts: Tensor
) -> None: ...
def corner_mean_workspace_bytes(num_voxels: int) -> int: ...

# sparse
def voxel_hash_slots(num_voxels: int) -> int: ...
def voxel_hash(coords: Tensor, slots: Tensor, duplicate: Tensor) -> None: ...
def neighbor_table(
    coords: Tensor,
    slots: Tensor,
    queries: Tensor,
    kernel_size: int,
    stride: int,
    dilation: int,
    rows: Tensor,
) -> None: ...
def invert_table(rows: Tensor, inverse: Tensor) -> None: ...
def order_rows_workspace_bytes(num_rows: int) -> int: ...
def order_rows(rows: Tensor, workspace: Tensor | None, order: Tensor) -> None: ...
def unique_voxels_workspace_bytes(num_voxels: int) -> int: ...
def unique_voxels_count(
    coords: Tensor,
    factor: int,
    batch_bits: int,
    x_bits: int,
    y_bits: int,
    z_bits: int,
    workspace: Tensor | None,
    index: Tensor,
    order: Tensor,
    num_unique: Tensor,
) -> None: ...
def unique_voxels_fill(
    coords: Tensor, factor: int, index: Tensor, order: Tensor, voxels: Tensor, offsets: Tensor
) -> None: ...
def make_segments_workspace_bytes(num_rows: int) -> int: ...
def make_segments(index: Tensor, workspace: Tensor | None, order: Tensor, offsets: Tensor) -> None: ...
def segment_reduce(
    values: Tensor, order: Tensor, offsets: Tensor, reduction: int, out: Tensor, best: Tensor | None
) -> None: ...
def gather_segments(values: Tensor, index: Tensor, best: Tensor | None, out: Tensor) -> None: ...
def sparse_conv3d(
    feats: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, order: Tensor | None, out: Tensor
) -> None: ...
def sparse_conv3d_weight_grad_workspace_bytes(
    num_rows: int, in_channels: int, out_channels: int, num_offsets: int
) -> int: ...
def sparse_conv3d_weight_grad(
    grad_out: Tensor, feats: Tensor, rows: Tensor, workspace: Tensor | None, grad_weight: Tensor
) -> None: ...

# attention
def voxel_order(coords: Tensor, workspace: Tensor | None, bad_row: Tensor, order: Tensor) -> None: ...
def voxel_order_workspace_bytes(count: int) -> int: ...
def window_plan(
    coords: Tensor,
    window: int,
    shift: int,
    workspace: Tensor | None,
    offsets: Tensor,
    run_offsets: Tensor,
    run_starts: Tensor,
    run_positions: Tensor,
    counts: Tensor,
) -> None: ...
def window_plan_workspace_bytes(count: int) -> int: ...
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    run_offsets: Tensor | None,
    run_starts: Tensor | None,
    run_positions: Tensor | None,
    coords: Tensor | None,
    scale: float,
    q_gamma: Tensor | None,
    k_gamma: Tensor | None,
    rope: Tensor | None,
    out: Tensor,
    lse: Tensor,
) -> None: ...
def attention_gamma_parts(num_rows: int, num_sequences: int) -> int: ...
def attention_backward_workspace_bytes(
    num_queries: int, num_sequences: int, num_heads: int, head_dim: int, is_wide: bool, cuda: bool
) -> int: ...
def attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    run_offsets: Tensor | None,
    run_starts: Tensor | None,
    run_positions: Tensor | None,
    coords: Tensor | None,
    scale: float,
    q_gamma: Tensor | None,
    k_gamma: Tensor | None,
    rope: Tensor | None,
    workspace: Tensor | None,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    q_gamma_grad: Tensor | None,
    k_gamma_grad: Tensor | None,
) -> None: ...

# quantize
def nearest_code(
    x: Tensor,
    codebook: Tensor,
    cosine: bool,
    workspace: Tensor,
    indices: Tensor,
    counts: Tensor | None,
) -> None: ...
def topk_codes(
    x: Tensor,
    codebook: Tensor,
    top: int,
    cosine: bool,
    workspace: Tensor,
    indices: Tensor,
    square_distance: Tensor,
) -> None: ...
def nearest_code_workspace_bytes(
    num_codes: int, dim: int, num_rows: int, is_double: bool, cuda: bool
) -> int: ...
def code_sums(
    values: Tensor,
    codes: Tensor,
    num_codes: int,
    levels: int,
    workspace: Tensor,
    sums: Tensor,
    counts: Tensor | None,
) -> None: ...
def code_sums_workspace_bytes(num_rows: int, num_sums: int, cuda: bool) -> int: ...
def residual_quantize(
    x: Tensor,
    codebooks: Tensor,
    cosine: bool,
    workspace: Tensor,
    codes: Tensor,
    quantized: Tensor,
    square_error: Tensor,
    counts: Tensor | None,
) -> None: ...
def residual_quantize_workspace_bytes(
    num_codes: int, dim: int, num_books: int, num_rows: int, is_double: bool, cuda: bool
) -> int: ...
def residual_quantize_backward(
    x: Tensor,
    codebooks: Tensor,
    codes: Tensor,
    residual_weights: Tensor,
    code_weights: Tensor,
    grad_x: Tensor,
    grad_codes: Tensor | None,
) -> None: ...
def residual_decode(codes: Tensor, codebooks: Tensor, quantized: Tensor) -> None: ...
def multiscale_quantize(
    z: Tensor | None,
    codebook: Tensor,
    factors: Tensor,
    bands: Tensor,
    sizes: Sequence[int],
    height: int,
    width: int,
    phi_weight: Tensor | None,
    phi_bias: Tensor | None,
    ratio: float,
    cosine: bool,
    workspace: Tensor,
    codes: Tensor,
    quantized: Tensor,
    square_error: Tensor | None,
    residuals: Tensor | None,
    inputs: Tensor | None,
    counts: Tensor | None,
) -> None: ...
def multiscale_workspace_bytes(
    num_codes: int, dim: int, max_rows: int, all_rows: int, grid_rows: int, is_double: bool, cuda: bool
) -> int: ...
def multiscale_backward(
    codes: Tensor,
    residuals: Tensor,
    codebook: Tensor,
    factors: Tensor,
    bands: Tensor,
    sizes: Sequence[int],
    height: int,
    width: int,
    phi_weight: Tensor | None,
    phi_bias: Tensor | None,
    ratio: float,
    residual_weights: Tensor,
    code_weights: Tensor,
    workspace: Tensor,
    grad_z: Tensor,
    grad_codes: Tensor,
    grad_phi_weight: Tensor | None,
    grad_phi_bias: Tensor | None,
) -> None: ...
def multiscale_backward_workspace_bytes(
    dim: int, all_rows: int, grid_rows: int, num_scales: int, is_double: bool, cuda: bool
) -> int: ...
