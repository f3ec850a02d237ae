"""The normalizing flow, as the VAE that it is: a deterministic encoder and decoder that share their parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from math import prod

import pyro
import torch
from pyro.distributions.transforms import affine_coupling
from pyro.nn import DenseNN
from torch import Tensor, nn

from pyrovae.distributions import TolerantDelta
from pyrovae.models.base import Pair
from pyrovae.models.vae import filled
from pyrovae.nets import as_shape, leading_shape
from pyrovae.priors import StandardNormal
from pyrovae.splines import rational_quadratic

__all__ = ["AffineCoupling", "NormalizingFlow", "SplineCoupling"]


class AffineCoupling(nn.Module):
    r"""Half of z shifts and scales the other half.

        x_1 = z_1,    x_2 = exp(s(z_1)) z_2 + m(z_1),    log|det| = sum s(z_1)

    s is clipped to [-5, 3], with gradients as if it were not. The layer is Pyro's, without its memory: that keeps the
    last input by identity, to invert it for nothing, but a batch that is the same tensor at each step would then be
    inverted with the parameters of the step before, and a module that holds tensors with a history can't be copied.

    Args:
        dim: D, at least 2; the first D // 2 numbers are z_1.
        hidden: sizes of the hidden layers of the network of m and s, ReLU.

    Returns:
        From `forward(z)` and `inverse(x)`: the other one, (..., D), and log|det dx/dz|, (...).

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers, or dim below 2.

    Source: Dinh et al. 2017 (RealNVP), https://arxiv.org/abs/1605.08803, eqs. 4-8;
    `pyro.distributions.transforms.AffineCoupling`.

    >>> x, log_det = AffineCoupling(3)(torch.ones(5, 3))
    >>> x.shape, log_det.shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, dim: int, *, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.layer = affine_coupling(_coupled(dim), list(as_shape(hidden, "hidden")))
        _start_near_identity(self.layer.nn)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x = f(z) and log|det df/dz|."""
        x = self.layer(z)
        return x, self._log_det(z, x)

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z = f^-1(x) and log|det df/dz| there."""
        z = self.layer.inv(x)
        return z, self._log_det(z, x)

    def _log_det(self, z: Tensor, x: Tensor) -> Tensor:
        log_det = self.layer.log_abs_det_jacobian(z, x)  # of what the layer remembers, not computed again
        self.layer._cached_x_y, self.layer._cached_log_scale = (None, None), None
        return log_det


class SplineCoupling(nn.Module):
    """Half of z chooses monotone splines for the numbers of the other half.

        x_1 = z_1,    x_2j = spline_j(z_2j; z_1),    log|det| = sum_j log spline_j'

    Rational-quadratic splines on [-bound, bound], the identity outside: standardise the data.

    Args:
        dim: D, at least 2; the first D // 2 numbers are z_1.
        hidden: sizes of the hidden layers of the network that gives the splines, ReLU.
        num_bins: pieces of each spline.
        bound: half the width of the interval in which there are splines.

    Returns:
        From `forward(z)` and `inverse(x)`: the other one, (..., D), and log|det dx/dz|, (...).

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers, dim below 2, fewer than two bins, or a
            bound that is not positive.

    Source: Durkan et al. 2019, https://arxiv.org/abs/1906.04032; see `pyrovae.splines` for why not Pyro's.

    >>> spline = SplineCoupling(3, num_bins=4)
    >>> x, log_det = spline(torch.ones(5, 3))
    >>> torch.allclose(spline.inverse(x)[0], torch.ones(5, 3), atol=1e-5)
    True
    """

    def __init__(self, dim: int, *, hidden: Sequence[int] = (64, 64), num_bins: int = 8, bound: float = 3.0) -> None:
        super().__init__()
        (num_bins,) = as_shape(num_bins, "num_bins")
        if num_bins < 2:
            raise ValueError(f"num_bins is {num_bins}, expected at least 2; pass num_bins=8")
        if not 0 < bound < math.inf:
            raise ValueError(f"bound is {bound}, expected a positive number; pass bound=3.0")
        self.kept, self.bound, self.sizes = _coupled(dim) // 2, float(bound), (dim - dim // 2, 3 * num_bins - 1)
        self.network = DenseNN(self.kept, list(as_shape(hidden, "hidden")), [prod(self.sizes)])
        _start_near_identity(self.network)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x = f(z) and log|det df/dz|."""
        return self._split(z, inverse=False)

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z = f^-1(x) and log|det df/dz| there."""
        return self._split(x, inverse=True)

    def _split(self, value: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        first, second = value[..., : self.kept], value[..., self.kept :]
        parameters = self.network(first).unflatten(-1, self.sizes)
        out, log_slope = rational_quadratic(parameters, second, bound=self.bound, inverse=inverse)
        return torch.cat([first, out], -1), log_slope.sum(-1)


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
        coupling: made by `coupling(dim, hidden=hidden)`: `AffineCoupling`, `SplineCoupling`, or a class of your own
            with their `forward` and `inverse`.
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
        dim = _coupled(prod(self.event_shape), "event_shape")
        (num_layers,) = as_shape(num_layers, "num_layers")
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


@torch.no_grad()
def _start_near_identity(network: DenseNN) -> None:
    """A chain of layers at torch's own initialisation is far out in the tails of p(z), and further the longer it is."""
    for parameter in network.layers[-1].parameters():
        parameter.mul_(0.01)


def _coupled(dim: int, name: str = "dim") -> int:
    (dim,) = as_shape(dim, name)
    if dim < 2:
        raise ValueError(f"{name} is {dim}, a coupling takes two numbers at least, one to transform by the other")
    return dim
