"""The extension module. Use :mod:`fastshape.ops`: it checks, allocates and differentiates."""

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
def bvh_sizes(num_faces: int) -> tuple[int, int]: ...
def build_bvh(
    vertices: Tensor,
    faces: Tensor,
    morton_order: bool,
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
    grad_points: Tensor,
    grad_vertices: Tensor,
) -> None: ...
