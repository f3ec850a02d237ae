r"""Normalizing flows as posteriors: a diagonal Normal of the features, moved by bijections of the features.

    z_0 ~ N(loc(h), scale(h)^2),    z_k = f_k(z_{k-1}; h),    log q(z_K) = log q(z_0) - sum_k log |det df_k / dz_{k-1}|

All start near the identity, and have an inverse, so that their density is known at any point and not just at what they
drew; a draw's own takes no inverse. No flow has a closed-form KL: an objective estimates it with its samples.
"""

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from math import prod

import pyro.distributions as dist
import torch
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.distributions.transforms import Transform
from torch.nn.functional import softplus

from pyrovae.conditionals.base import vector_length
from pyrovae.conditionals.normal import DiagonalNormal
from pyrovae.flows import Affine, AffineElements, AsTransform, Autoregressive, Elements, Planar, Radial, SplineElements
from pyrovae.nets import Head, as_shape, as_size, near_zero_

__all__ = ["IAF", "Flow", "PlanarFlow", "RadialFlow", "SplineFlow"]


class Flow(DiagonalNormal):
    """Base of the flows: `DiagonalNormal`, moved. A subclass says `transforms(features)`.

    Args:
        feature_shape: shape of one datum's features.
        event_shape: L, length of z.
        num_steps: K, how many bijections.
        min_scale: the floor of the Normal's scales; 0 for none.

    Raises:
        ValueError: if the event is no vector; else as in `DiagonalNormal`.
    """

    def __init__(
        self,
        feature_shape: int | Sequence[int],
        event_shape: int | Sequence[int],
        *,
        num_steps: int,
        min_scale: float = 1e-4,
    ) -> None:
        vector_length(event_shape, type(self).__name__)
        self.num_steps = as_size(num_steps, "num_steps")
        super().__init__(feature_shape, event_shape, min_scale=min_scale)

    @abstractmethod
    def transforms(self, features: Tensor) -> list[Transform]:
        """f_1 to f_K: transforms of vectors, of torch, of Pyro or made of bijections (`pyrovae.flows.AsTransform`)."""

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """The Normal, moved."""
        return dist.TransformedDistribution(super().forward(features), self.transforms(features))


class PlanarFlow(Flow):
    r"""Planar flows: steps that push z along u, across one hyperplane each.

        z_k = z_{k-1} + u^_k tanh(w_k.z_{k-1} + b_k),    u, w, b of the features

    Args:
        feature_shape: shape of one datum's features.
        event_shape: L, length of z.
        num_steps: K; the head gives 2 L + 1 numbers for each.
        min_scale: the floor of the Normal's scales; 0 for none.

    Returns:
        From `forward(features)`: a TransformedDistribution of `pyrovae.flows.Planar`s, whose inverse is found by
        bisection: 24 tanh of one number for each step and datum, 53 in float64.

    Raises:
        ValueError: as in `Flow`.

    Source: Rezende & Mohamed 2015, https://arxiv.org/abs/1505.05770, section 4.1.

    >>> q = PlanarFlow(200, 16, num_steps=10)(torch.zeros(5, 200))
    >>> q.rsample().shape, q.log_prob(torch.zeros(16)).shape
    (torch.Size([5, 16]), torch.Size([5]))
    """

    def __init__(
        self,
        feature_shape: int | Sequence[int],
        event_shape: int | Sequence[int],
        *,
        num_steps: int = 10,
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__(feature_shape, event_shape, num_steps=num_steps, min_scale=min_scale)
        (length,) = self.event_shape
        self.steps = Head(feature_shape, (2 * length + 1) * self.num_steps)
        near_zero_(self.steps.layer, slice(length * self.num_steps))

    def transforms(self, features: Tensor) -> list[Transform]:
        """The planar steps."""
        ((length,), (parameters,)) = self.event_shape, self.steps(features)
        u, rest = parameters.tensor_split([length * self.num_steps], -1)
        w, b = rest.tensor_split([length * self.num_steps], -1)
        each = (part.unflatten(-1, (self.num_steps, -1)).unbind(-2) for part in (w, u, b))
        return [AsTransform(Planar(*step)) for step in zip(*each, strict=True)]


class RadialFlow(Flow):
    r"""Radial flows: steps that draw z towards a point each, or push it away.

        z_k = z_{k-1} + beta_k (z_{k-1} - c_k) / (alpha_k + |z_{k-1} - c_k|)

        alpha = softplus(a),    beta = softplus(a + d) - alpha,    c, a, d of the features

    Args:
        feature_shape: shape of one datum's features.
        event_shape: L, length of z.
        num_steps: K; the head gives L + 2 numbers for each.
        min_scale: the floor of the Normal's scales; 0 for none.

    Returns:
        From `forward(features)`: a TransformedDistribution of `pyrovae.flows.Radial`s, whose inverse is closed.

    Raises:
        ValueError: as in `Flow`.

    Source: Rezende & Mohamed 2015, https://arxiv.org/abs/1505.05770, section 4.1; with d for their softplus(beta^),
    so that d = 0 is the identity.

    >>> q = RadialFlow(200, 16, num_steps=10)(torch.zeros(5, 200))
    >>> q.rsample().shape, q.log_prob(torch.zeros(16)).shape
    (torch.Size([5, 16]), torch.Size([5]))
    """

    def __init__(
        self,
        feature_shape: int | Sequence[int],
        event_shape: int | Sequence[int],
        *,
        num_steps: int = 10,
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__(feature_shape, event_shape, num_steps=num_steps, min_scale=min_scale)
        (length,) = self.event_shape
        self.steps = Head(feature_shape, (length + 2) * self.num_steps)
        near_zero_(self.steps.layer, slice(self.num_steps))

    def transforms(self, features: Tensor) -> list[Transform]:
        """The radial steps."""
        (parameters,) = self.steps(features)
        parts = parameters.tensor_split([self.num_steps, 2 * self.num_steps], -1)
        each = (part.unflatten(-1, (self.num_steps, -1)).unbind(-2) for part in parts)
        steps: list[Transform] = []
        for d, a, centre in zip(*each, strict=True):
            alpha = softplus(a)
            steps.append(AsTransform(Radial(centre, alpha, softplus(a + d) - alpha)))
        return steps


class _AutoregressiveFlow(Flow):
    """A flow of autoregressive steps; the order of the elements is reversed from step to step."""

    def __init__(
        self,
        feature_shape: int | Sequence[int],
        event_shape: int | Sequence[int],
        *,
        num_steps: int,
        hidden: Sequence[int] | None,
        min_scale: float,
        elements: Elements,
    ) -> None:
        super().__init__(feature_shape, event_shape, num_steps=num_steps, min_scale=min_scale)
        (length,) = self.event_shape
        sizes = [10 * length] if hidden is None else list(as_shape(hidden, "hidden"))
        if not sizes or min(sizes) < length:
            raise ValueError(
                f"hidden is {tuple(sizes)}, each layer needs a unit for each of the {length} elements of z; "
                f"pass hidden=({10 * length},)"
            )
        self.elements = elements
        context = prod(self.head.feature_shape)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "ConditionalAutoRegressiveNN input_dim = 1")  # right, if not cheapest
            self.networks = nn.ModuleList(
                _masked_network(length, context, sizes, elements.num_parameters, reverse=k % 2 == 1)
                for k in range(self.num_steps)
            )

    def transforms(self, features: Tensor) -> list[Transform]:
        """The autoregressive steps."""
        context = features.flatten(features.dim() - len(self.head.feature_shape))
        (length,) = self.event_shape
        orders = (range(length), range(length)[::-1])
        return [
            AsTransform(Autoregressive(partial(_parameters, network, context), self.elements, orders[k % 2]))
            for k, network in enumerate(self.networks)
        ]


def _masked_network(length: int, context: int, sizes: list[int], num_parameters: int, *, reverse: bool) -> nn.Module:
    """Parameters of each element from the ones before it, near zero."""
    order = torch.arange(length)
    network = ConditionalAutoRegressiveNN(
        length,
        context,
        sizes,
        [num_parameters],
        permutation=order.flip(0) if reverse else order,
        skip_connections=True,
        nonlinearity=nn.ELU(),
    )
    near_zero_(network.layers[-1])
    with torch.no_grad():
        network.skip_layer.weight *= 0.01
    return network


def _parameters(network: nn.Module, context: Tensor, x: Tensor) -> Tensor:
    leading = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
    # Under autocast the products are in half precision, and nothing else.
    return network(x.expand(*leading, -1), context).to(x.dtype)  # (..., num_parameters, L)


class IAF(_AutoregressiveFlow):
    r"""Inverse autoregressive flow: each element of z is moved and scaled by what stands before it.

        z_k = exp(s_k(z_{k-1}; h)) z_{k-1} + m_k(z_{k-1}; h),    s = 3 tanh(g / 3)

    with g and m from a masked network of z and the features, with connections past its hidden layers, and the order
    of the elements reversed from step to step. It is eq. 10 of the paper, with s in [-3, 3] for their sigma > 0; their
    gate of eq. 14, sigmoid(s) and 1 - sigmoid(s), is the identity nowhere.

    A draw and its density take K passes of the networks. The density at another point takes K L of them, one after the
    other: STL, DReG, PIWAE and wake-sleep ask for it, and so do `surgery` and annealing from the guide.

    Args:
        feature_shape: shape of one datum's features.
        event_shape: L, length of z.
        num_steps: K.
        hidden: sizes of the networks' hidden layers, each at least L; 10 L by default, as in Pyro.
        min_scale: the floor of the first Normal's scales; 0 for none.

    Returns:
        From `forward(features)`: a TransformedDistribution of `pyrovae.flows.Autoregressive`s.

    Raises:
        ValueError: for a hidden layer below L; else as in `Flow`.

    Source: Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling 2016, https://arxiv.org/abs/1606.04934.

    >>> q = IAF(200, 16, num_steps=2)(torch.zeros(5, 200))
    >>> q.rsample().shape, q.log_prob(torch.zeros(16)).shape
    (torch.Size([5, 16]), torch.Size([5]))
    """

    def __init__(
        self,
        feature_shape: int | Sequence[int],
        event_shape: int | Sequence[int],
        *,
        num_steps: int = 4,
        hidden: Sequence[int] | None = None,
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__(
            feature_shape,
            event_shape,
            num_steps=num_steps,
            hidden=hidden,
            min_scale=min_scale,
            elements=AffineElements(),
        )


class SplineFlow(_AutoregressiveFlow):
    r"""Autoregressive spline flow: each element's noise goes through a spline, which what stands before it shapes.

        e_0 ~ N(0, I),    e_k = spline(e_{k-1}; h),    z = loc(h) + scale(h) e_K

    The splines are monotone and rational-quadratic on [-bound, bound], and the identity outside: they bend the noise,
    so that `bound` is in standard deviations wherever z lies. Passes of the networks: as many as for `IAF`.

    Args:
        feature_shape: shape of one datum's features.
        event_shape: L, length of z.
        num_steps: K.
        num_bins: pieces of each spline, at least 2.
        bound: where the splines end.
        hidden: sizes of the networks' hidden layers, each at least L; 10 L by default, as in Pyro.
        min_scale: the floor of the scales; 0 for none.

    Returns:
        From `forward(features)`: a TransformedDistribution of `pyrovae.flows.Autoregressive`s.

    Raises:
        ValueError: for a hidden layer below L, fewer than 2 bins or a bound that is not positive; else as in `Flow`.

    Source: Durkan, Bekasov, Murray & Papamakarios 2019, https://arxiv.org/abs/1906.04032.

    >>> q = SplineFlow(200, 16, num_steps=2)(torch.zeros(5, 200))
    >>> q.rsample().shape, q.log_prob(torch.zeros(16)).shape
    (torch.Size([5, 16]), torch.Size([5]))
    """

    def __init__(
        self,
        feature_shape: int | Sequence[int],
        event_shape: int | Sequence[int],
        *,
        num_steps: int = 2,
        num_bins: int = 8,
        bound: float = 5.0,
        hidden: Sequence[int] | None = None,
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__(
            feature_shape,
            event_shape,
            num_steps=num_steps,
            hidden=hidden,
            min_scale=min_scale,
            elements=SplineElements(num_bins=num_bins, bound=bound),
        )

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """The noise through the splines, moved and scaled."""
        loc, scale = self.moments(features)
        noise = dist.Normal(torch.zeros_like(loc), 1.0).to_event(1)
        return dist.TransformedDistribution(noise, [*self.transforms(features), AsTransform(Affine(loc, scale))])
