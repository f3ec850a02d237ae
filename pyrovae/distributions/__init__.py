"""Distributions that torch and Pyro lack, or get wrong in float32.

Those of grey values are over one number, with batch shape that of their parameters; `.to_event` makes events of them.
"""

from pyrovae.distributions.codes import AutoregressiveCategorical, NearestCode
from pyrovae.distributions.delta import TolerantDelta
from pyrovae.distributions.grey import ContinuousBernoulli, CrossEntropy, DiscretizedLogistic
from pyrovae.distributions.gumbel import GumbelOneHot
from pyrovae.distributions.implicit import Implicit
from pyrovae.distributions.products import Columns, by_element, masked
from pyrovae.distributions.words import BagOfWords, log_coefficient

__all__ = [
    "AutoregressiveCategorical",
    "BagOfWords",
    "Columns",
    "ContinuousBernoulli",
    "CrossEntropy",
    "DiscretizedLogistic",
    "GumbelOneHot",
    "Implicit",
    "NearestCode",
    "TolerantDelta",
    "by_element",
    "log_coefficient",
    "masked",
]
