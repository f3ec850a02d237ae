"""Priors: modules called as `prior(context=None)` that return the Distribution p(z), or p(z | context).

The contract: `Prior(event_shape, **options)`, options keyword-only, so that a class or a `functools.partial` of it
fills a pair's slot (`VAE(..., prior=partial(GaussianMixture, num_components=10))`). The returned distribution has event
shape `event_shape` (z of one datum) and, without a context, an empty batch shape, which the model's plate expands. A
prior that depends on its context takes the context's leading dims as batch shape; one that does not ignores it.
Constants are buffers, so that `.to(device)` and `.double()` move them.

A prior that is made of the pair's own q(z | x) has a method `bind(posterior_of, event_shape)`, which the pair calls
once when its slots are filled: see `AggregatedPosterior`.

>>> from functools import partial
>>> prior = partial(GaussianMixture, num_components=10)(2)
>>> prior().batch_shape, prior().event_shape
(torch.Size([]), torch.Size([2]))
"""

from pyrovae.priors.aggregated import AggregatedPosterior
from pyrovae.priors.bernoulli import FactorisedBernoulli
from pyrovae.priors.codes import PixelCNN, UniformCodes
from pyrovae.priors.conditional import ClassConditional, ConditionalNormal
from pyrovae.priors.dirichlet import LaplaceDirichlet
from pyrovae.priors.flow import Flow, RealNVP, SplineFlow
from pyrovae.priors.mixture import GaussianMixture
from pyrovae.priors.standard import StandardNormal
from pyrovae.priors.vamp import VampPrior

__all__ = [
    "AggregatedPosterior",
    "ClassConditional",
    "ConditionalNormal",
    "FactorisedBernoulli",
    "Flow",
    "GaussianMixture",
    "LaplaceDirichlet",
    "PixelCNN",
    "RealNVP",
    "SplineFlow",
    "StandardNormal",
    "UniformCodes",
    "VampPrior",
]
