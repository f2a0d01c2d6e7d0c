"""The kernels: tensors in, tensors out. Every operator runs on the CPU and on CUDA with the same results."""

from fastshape.ops.corners import VoxelCorners as VoxelCorners
from fastshape.ops.corners import corner_mean as corner_mean
from fastshape.ops.corners import corner_neighbors as corner_neighbors
from fastshape.ops.corners import voxel_corners as voxel_corners
from fastshape.ops.dual_surface import DualSurface as DualSurface
from fastshape.ops.dual_surface import dual_marching_cubes as dual_marching_cubes
from fastshape.ops.dual_surface import flexicubes as flexicubes
from fastshape.ops.isosurface import flood_fill as flood_fill
from fastshape.ops.isosurface import marching_cubes as marching_cubes
from fastshape.ops.isosurface import marching_cubes_sparse as marching_cubes_sparse
from fastshape.ops.mesh import Bvh as Bvh
from fastshape.ops.mesh import ClosestPoint as ClosestPoint
from fastshape.ops.mesh import RayHits as RayHits
from fastshape.ops.mesh import build_bvh as build_bvh
from fastshape.ops.mesh import cast_rays as cast_rays
from fastshape.ops.mesh import closest_point as closest_point
from fastshape.ops.mesh import ray_crossings as ray_crossings
from fastshape.ops.mesh import ray_parity as ray_parity
from fastshape.ops.mesh import winding_number as winding_number
from fastshape.ops.sampling import farthest_point_sampling as farthest_point_sampling
from fastshape.ops.sampling import num_samples_from_ratio as num_samples_from_ratio
