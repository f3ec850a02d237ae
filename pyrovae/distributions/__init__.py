"""Distributions that torch and Pyro lack, or get wrong in float32.

Those of grey values are over one number, with batch shape that of their parameters; `.to_event` makes events of them.
"""

from pyrovae.distributions.chains import HiddenMarkov, MarkovChain
from pyrovae.distributions.codes import AutoregressiveCategorical, NearestCode
from pyrovae.distributions.delta import TolerantDelta
from pyrovae.distributions.flat import Flat, is_improper
from pyrovae.distributions.grey import ContinuousBernoulli, CrossEntropy, DiscretizedLogistic
from pyrovae.distributions.gumbel import GumbelOneHot, LinearOneHot
from pyrovae.distributions.implicit import Implicit
from pyrovae.distributions.pairwise import pairwise_log_prob
from pyrovae.distributions.products import Columns, by_element, masked
from pyrovae.distributions.stock import Bernoulli, MixtureSameFamily, Multinomial
from pyrovae.distributions.wishart import Wishart
from pyrovae.distributions.words import BagOfWords, log_coefficient

__all__ = [
    "AutoregressiveCategorical",
    "BagOfWords",
    "Bernoulli",
    "Columns",
    "ContinuousBernoulli",
    "CrossEntropy",
    "DiscretizedLogistic",
    "Flat",
    "GumbelOneHot",
    "HiddenMarkov",
    "Implicit",
    "LinearOneHot",
    "MarkovChain",
    "MixtureSameFamily",
    "Multinomial",
    "NearestCode",
    "TolerantDelta",
    "Wishart",
    "by_element",
    "is_improper",
    "log_coefficient",
    "masked",
    "pairwise_log_prob",
]
