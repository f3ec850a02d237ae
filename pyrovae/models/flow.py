"""The normalizing flow, as the VAE that it is: a deterministic encoder and decoder that share their parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import pyro
import torch
from torch import Tensor, nn

from pyrovae.distributions import TolerantDelta
from pyrovae.flows import AffineCoupling, SplineCoupling
from pyrovae.flows.layers import at_least_two
from pyrovae.models.base import Pair
from pyrovae.models.vae import filled
from pyrovae.nets import as_shape, as_size, leading_shape
from pyrovae.priors import StandardNormal

__all__ = ["AffineCoupling", "NormalizingFlow", "SplineCoupling"]


class NormalizingFlow(Pair):
    r"""Normalizing flow: a VAE whose encoder and decoder are one invertible function and its inverse.

        z ~ p(z)        x | z ~ delta(x - f(z)),  of density 1 / |det df/dz|        q(z | x) = delta(z - f^-1(x))

    q is the posterior, so that KL(q(z | x) || p(z | x)) = 0, and every draw of z is the same one: the ELBO, and each
    importance-weighted bound, is log p(x) = log p(f^-1(x)) - log|det df/dz|, and so are its gradients. f is a chain of
    couplings, between which the numbers of z are reversed, so that each half has its turn.

    A delta is compared within a tolerance, for f(f^-1(x)) is x but for rounding; what is further away has density 0,
    and a flow that can't be inverted in its precision has loss inf, at site x. Under autocast it keeps full precision.

    The density is one of real x. Of data on a grid, such as bits and grey levels, it has no bound: dequantise them
    (`pyrovae.data.dequantize`).

    Args:
        event_shape: shape of one x, of two numbers at least.
        num_layers: couplings.
        hidden: sizes of the hidden layers of each coupling.
        coupling: made by `coupling(dim, hidden=hidden)`: `AffineCoupling`, `SplineCoupling`, or a module of your
            own that is a `pyrovae.flows.Bijection`.
        prior: p(z), called without arguments; made by `prior(dim)`.
        tolerance: of x about f(z), relative to 1 + |x|, in each number.

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers, an event of one number, a slot that is
            neither module nor maker, or a tolerance that is not positive.

    Shapes: x (B, *event_shape), z (B, D) with D numbers in x.
    Source: Nielsen et al. 2020 (SurVAE flows), https://arxiv.org/abs/2007.02731, section 2; Dinh et al. 2017,
    https://arxiv.org/abs/1605.08803.

    >>> from pyrovae.objectives import log_weights
    >>> flow, x = NormalizingFlow(2, num_layers=2), torch.tensor([[0.3, -0.5]])
    >>> z, log_det = flow.inverse(x)
    >>> exact = flow.prior().log_prob(z) - log_det
    >>> torch.allclose(log_weights(flow, x, num_particles=3), exact.expand(3, 1), atol=1e-5)
    True
    """

    continuous = True

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        num_layers: int = 8,
        hidden: Sequence[int] = (64, 64),
        coupling: Callable[..., nn.Module] = AffineCoupling,
        prior: nn.Module | Callable[..., nn.Module] = StandardNormal,
        tolerance: float = 1e-3,
    ) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        dim = at_least_two(prod(self.event_shape), "event_shape")
        num_layers = as_size(num_layers, "num_layers")
        if not tolerance > 0:
            raise ValueError(f"tolerance is {tolerance}, expected a positive number; pass tolerance=1e-3")
        layers = [filled("coupling", coupling(dim, hidden=hidden)) for _ in range(num_layers)]
        self.couplings = nn.ModuleList(layers)
        self.prior = filled("prior", prior, dim)
        self.tolerance = tolerance

    def model(self, x: Tensor) -> None:
        """z ~ p(z), x = f(z), for each row of x."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            value, log_det = self.transform(z)
            decoded = TolerantDelta(value, -log_det, len(self.event_shape), tolerance=self.tolerance)
            pyro.sample("x", decoded, obs=x)

    def guide(self, x: Tensor) -> None:
        """z = f^-1(x), for each row of x."""
        with pyro.plate("data", len(x)):
            z, _ = self.inverse(x)
            pyro.sample("z", TolerantDelta(z, event_dim=1, tolerance=self.tolerance))

    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x = f(z) and log|det df/dz|: (..., *event_shape) and (...)."""
        total = torch.zeros_like(z[..., 0])
        with torch.autocast(z.device.type, enabled=False):
            for coupling in self.couplings:
                z, log_det = coupling(z.flip(-1))
                total = total + log_det
        return z.reshape(*z.shape[:-1], *self.event_shape), total

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z = f^-1(x) and log|det df/dz| there: (..., D) and (...)."""
        z = x.reshape(*leading_shape(x, self.event_shape), prod(self.event_shape))
        total = torch.zeros_like(z[..., 0])
        with torch.autocast(x.device.type, enabled=False):
            for coupling in reversed(self.couplings):
                z, log_det = coupling.inverse(z)  # type: ignore[operator]
                z, total = z.flip(-1), total + log_det
        return z, total
