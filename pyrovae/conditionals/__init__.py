r"""Conditionals: modules whose `forward(features)` returns a Distribution, posterior q(z | x) or likelihood p(x | z).

The contract: `Conditional(feature_shape, event_shape, **options)`, options keyword-only, so that a class or a
`functools.partial` of it fills a pair's slot (`likelihood=partial(FixedNormal, scale=0.1)`). Features
(..., \*feature_shape) give a distribution of batch shape (...) and event shape `event_shape`; the values it takes are
its `.support`. Each holds a `Head`, which maps the features to the distribution's parameters.

>>> from functools import partial
>>> import torch
>>> likelihood = partial(FixedNormal, scale=0.1)(200, (1, 8, 8))
>>> d = likelihood(torch.zeros(5, 3, 200))
>>> d.batch_shape, d.event_shape
(torch.Size([5, 3]), torch.Size([1, 8, 8]))
"""

from pyrovae.conditionals.base import Conditional
from pyrovae.conditionals.categorical import GumbelSoftmax, OneHotCategorical
from pyrovae.conditionals.flows import IAF, Flow, PlanarFlow, RadialFlow, SplineFlow
from pyrovae.conditionals.implicit import Implicit
from pyrovae.conditionals.likelihoods import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    CrossEntropy,
    DiscretizedLogistic,
    Multinomial,
)
from pyrovae.conditionals.mixed import Mixed
from pyrovae.conditionals.mixture import NormalMixture
from pyrovae.conditionals.normal import (
    DiagonalNormal,
    FixedNormal,
    FullNormal,
    LearnedNormal,
    LowRankNormal,
    SoftplusNormal,
)
from pyrovae.conditionals.point import Point
from pyrovae.conditionals.topics import BagOfWords, NormalisedNormal, ProductOfExperts, TopicMixture

__all__ = [
    "IAF",
    "BagOfWords",
    "Bernoulli",
    "Categorical",
    "Conditional",
    "ContinuousBernoulli",
    "CrossEntropy",
    "DiagonalNormal",
    "DiscretizedLogistic",
    "FixedNormal",
    "Flow",
    "FullNormal",
    "GumbelSoftmax",
    "Implicit",
    "LearnedNormal",
    "LowRankNormal",
    "Mixed",
    "Multinomial",
    "NormalMixture",
    "NormalisedNormal",
    "OneHotCategorical",
    "PlanarFlow",
    "Point",
    "ProductOfExperts",
    "RadialFlow",
    "SoftplusNormal",
    "SplineFlow",
    "TopicMixture",
]
