"""Whole ways through the library: a mesh in, a mesh out."""

from fastshape.pipelines.evaluate import EvaluationReport as EvaluationReport
from fastshape.pipelines.evaluate import evaluate_pairs as evaluate_pairs
from fastshape.pipelines.inputs import Item as Item
from fastshape.pipelines.inputs import Rank as Rank
from fastshape.pipelines.inputs import default_rank as default_rank
from fastshape.pipelines.inputs import find_items as find_items
from fastshape.pipelines.pack import PackReport as PackReport
from fastshape.pipelines.pack import pack as pack
from fastshape.pipelines.pairs import Pair as Pair
from fastshape.pipelines.pairs import PairError as PairError
from fastshape.pipelines.pairs import find_pairs as find_pairs
from fastshape.pipelines.prepare import ItemResult as ItemResult
from fastshape.pipelines.prepare import PrepareInterrupted as PrepareInterrupted
from fastshape.pipelines.prepare import PrepareReport as PrepareReport
from fastshape.pipelines.prepare import prepare as prepare
from fastshape.pipelines.reconstruct import Reconstruction as Reconstruction
from fastshape.pipelines.reconstruct import reconstruct as reconstruct
