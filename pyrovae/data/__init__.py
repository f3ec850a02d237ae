"""Data as named tensors: splits, loading, binarisation, and matching to a model's parameters.

Data in memory are a `Split`, a torch Dataset larger than memory is a `Stream`. Both have ``len``, ``names``,
``event_shape``, ``select``, ``to``, ``batches`` and ``sequential``, and training needs no more.
"""

from pyrovae.data.corpora import load_corpus
from pyrovae.data.datasets import load
from pyrovae.data.masks import half, incomplete, masked, one_of, pixels, rectangle
from pyrovae.data.matching import match
from pyrovae.data.rows import Data, Split, Stream
from pyrovae.data.semi_supervised import PartlyLabelled, hide_labels
from pyrovae.data.sequences import load_sequences, padded
from pyrovae.data.sparse import SparseRows
from pyrovae.data.sprites import Sprites
from pyrovae.data.transforms import bernoulli, bits_per_dimension, dequantize, join_quadrants, quadrants

__all__ = [
    "Data",
    "PartlyLabelled",
    "SparseRows",
    "Split",
    "Sprites",
    "Stream",
    "bernoulli",
    "bits_per_dimension",
    "dequantize",
    "half",
    "hide_labels",
    "incomplete",
    "join_quadrants",
    "load",
    "load_corpus",
    "load_sequences",
    "masked",
    "match",
    "one_of",
    "padded",
    "pixels",
    "quadrants",
    "rectangle",
]
