r"""Networks: tensors to tensors, and no probability.

A datum has an event shape; whatever stands before it are leading dims (a batch B, particles K, both or none).
Every network maps x (..., \*event_shape) to features (..., \*feature_shape) for any leading dims: particles come as
(K, B, ...), which convolutions and `x.view(len(x), -1)` do not take, so the networks flatten them themselves.
Weights start as torch initialises them.
"""

from pyrovae.nets.codebook import Codebook, EMACodebook
from pyrovae.nets.corruption import GaussianNoise, Masking, SaltAndPepper
from pyrovae.nets.frozen import Frozen
from pyrovae.nets.grids import CausalConv2d, GridDecoder, GridEncoder
from pyrovae.nets.layers import (
    MLP,
    BatchNorm,
    ConvDecoder,
    ConvEncoder,
    Head,
    as_shape,
    as_size,
    leading_shape,
    near_zero_,
)
from pyrovae.nets.masked import MaskedConvEncoder, MaskedMLP, PartialConv2d, PartialConvEncoder
from pyrovae.nets.multi import MultiLinear, MultiMLP

__all__ = [
    "MLP",
    "BatchNorm",
    "CausalConv2d",
    "Codebook",
    "ConvDecoder",
    "ConvEncoder",
    "EMACodebook",
    "Frozen",
    "GaussianNoise",
    "GridDecoder",
    "GridEncoder",
    "Head",
    "MaskedConvEncoder",
    "MaskedMLP",
    "Masking",
    "MultiLinear",
    "MultiMLP",
    "PartialConv2d",
    "PartialConvEncoder",
    "SaltAndPepper",
    "as_shape",
    "as_size",
    "leading_shape",
    "near_zero_",
]
