"""Whole ways through the library: a mesh in, a mesh out."""

from fastshape.pipelines.encode_inputs import EncoderInputs as EncoderInputs
from fastshape.pipelines.encode_inputs import encoder_inputs as encoder_inputs
from fastshape.pipelines.encode_inputs import preparation_of as preparation_of
from fastshape.pipelines.evaluate import EvaluationReport as EvaluationReport
from fastshape.pipelines.evaluate import evaluate_pairs as evaluate_pairs
from fastshape.pipelines.inputs import Item as Item
from fastshape.pipelines.inputs import Rank as Rank
from fastshape.pipelines.inputs import default_rank as default_rank
from fastshape.pipelines.inputs import find_items as find_items
from fastshape.pipelines.latents import Encoded as Encoded
from fastshape.pipelines.latents import LatentsError as LatentsError
from fastshape.pipelines.latents import load_latents as load_latents
from fastshape.pipelines.latents import save_latents as save_latents
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
from fastshape.pipelines.reconstruct import decode_latents as decode_latents
from fastshape.pipelines.reconstruct import encode_mesh as encode_mesh
from fastshape.pipelines.reconstruct import reconstruct as reconstruct
