"""The kernels: tensors in, tensors out. Every operator runs on the CPU and on CUDA with the same results."""

from fastshape.ops.carving import carve_threshold as carve_threshold
from fastshape.ops.carving import depth_carve as depth_carve
from fastshape.ops.carving import dilate as dilate
from fastshape.ops.carving import dilate_bits as dilate_bits
from fastshape.ops.carving import dilate_coords as dilate_coords
from fastshape.ops.carving import pack_bits as pack_bits
from fastshape.ops.carving import unpack_bits as unpack_bits
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
from fastshape.ops.raster import Rasterized as Rasterized
from fastshape.ops.raster import antialias as antialias
from fastshape.ops.raster import edge_twins as edge_twins
from fastshape.ops.raster import interpolate as interpolate
from fastshape.ops.raster import rasterize as rasterize
from fastshape.ops.sampling import farthest_point_sampling as farthest_point_sampling
from fastshape.ops.sampling import num_samples_from_ratio as num_samples_from_ratio
