"""One mesh as a field of sparse voxels, fitted by differentiable rendering.

    from fastshape import fit, geometry

    found = fit.fit_mesh(geometry.load("chair.glb"), fit.FitConfig(resolution=256))
    geometry.save(found.mesh, "fitted.glb")

`start` gives the field that fitting begins with, the mesh's own distances; its surface is what dual marching
cubes of that resolution make of the mesh.
"""

from fastshape.fit.field import Surface, SurfaceField, voxels_near
from fastshape.fit.loop import (
    Fit,
    FitConfig,
    FitInterrupted,
    FitWarning,
    Step,
    dual_marching_cubes_mesh,
    fit_mesh,
    start,
)
from fastshape.fit.tables import TABLES, Row, tables
from fastshape.fit.views import Camera, camera_at, random_camera

__all__ = [
    "TABLES",
    "Camera",
    "Fit",
    "FitConfig",
    "FitInterrupted",
    "FitWarning",
    "Row",
    "Step",
    "Surface",
    "SurfaceField",
    "camera_at",
    "dual_marching_cubes_mesh",
    "fit_mesh",
    "random_camera",
    "start",
    "tables",
    "voxels_near",
]
