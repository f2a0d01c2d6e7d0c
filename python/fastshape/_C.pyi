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
    max_length: int,
    max_num: int,
    global_indices: bool,
    workspace: Tensor | None,
    indices: Tensor,
    distances: Tensor | None,
) -> None: ...
def farthest_point_sampling_workspace_bytes(batch: int, total: int, max_length: int, max_num: int) -> int: ...
