r"""Bijections of vectors, of which priors, posteriors and models make normalizing flows: no probability here.

A bijection has `forward(x)`, y (..., D) and log|det dy/dx| (...) of x (..., D), and `inverse(y)`, x and that same
log|det dy/dx|, at x: one pass of its network serves both numbers. It keeps nothing; `AsTransform` makes it a transform
of torch's, which remembers its last point. `Coupling` and `Autoregressive` are of numbers that go each through a map of
its own, `AffineElements` or `SplineElements`, with parameters of a network's.

Pyro has nearly all of these. This package is for what its own can't do in a step that is captured, in a model that is
copied, or at a point that was not just drawn. Its couplings and splines are modules that keep the last tensors they
saw: they can't be deep-copied then, and invert a batch that is one tensor with the parameters of the step before. Its
splines assert values, assign by masks (as zuko's couplings do) and come back in float32 to within 1e-3 after four
layers, these to 1e-5. `Planar` and `Radial` have no inverse there, and no parameters near zero make `Planar` the
identity. `AffineAutoregressive` reads values, too, and inverts in float32 only. The masked networks of autoregressive
layers are Pyro's.
"""

from pyrovae.flows.base import AsTransform, Bijection
from pyrovae.flows.elements import AffineElements, Elements, SplineElements
from pyrovae.flows.layers import AffineCoupling, Autoregressive, Coupling, SplineCoupling
from pyrovae.flows.steps import ActNorm, Affine, Planar, Radial

__all__ = [
    "ActNorm",
    "Affine",
    "AffineCoupling",
    "AffineElements",
    "AsTransform",
    "Autoregressive",
    "Bijection",
    "Coupling",
    "Elements",
    "Planar",
    "Radial",
    "SplineCoupling",
    "SplineElements",
]
