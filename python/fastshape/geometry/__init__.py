"""Meshes: reading and writing, normalization, sampling, extraction from fields, comparison, pictures."""

from fastshape.geometry import shapes as shapes
from fastshape.geometry.distance import DistanceField as DistanceField
from fastshape.geometry.distance import signed_distance as signed_distance
from fastshape.geometry.extract import NoSurfaceError as NoSurfaceError
from fastshape.geometry.extract import extract as extract
from fastshape.geometry.extract import extract_surface as extract_surface
from fastshape.geometry.extract import grid_points as grid_points
from fastshape.geometry.io import MeshError as MeshError
from fastshape.geometry.io import load as load
from fastshape.geometry.io import save as save
from fastshape.geometry.mesh import Mesh as Mesh
from fastshape.geometry.mesh import Normalization as Normalization
from fastshape.geometry.mesh import normalize as normalize
from fastshape.geometry.metrics import Evaluation as Evaluation
from fastshape.geometry.metrics import Scores as Scores
from fastshape.geometry.metrics import evaluate as evaluate
from fastshape.geometry.render import compare_picture as compare_picture
from fastshape.geometry.render import render as render
from fastshape.geometry.render import save_png as save_png
from fastshape.geometry.sampling import Queries as Queries
from fastshape.geometry.sampling import SurfaceSamples as SurfaceSamples
from fastshape.geometry.sampling import sample_queries as sample_queries
from fastshape.geometry.sampling import sample_surface as sample_surface
