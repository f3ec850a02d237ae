r"""Priors that are normalizing flows: z = f(e), e ~ N(0, I), with an inverse that is exact and as cheap as f.

    log p(z) = log N(f^-1(z); 0, I) - log |det df/de|

The layers are those of `pyrovae.flows`, which says why they are not Pyro's; Pyro's transforms fill a `Flow` too.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import prod

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions.transforms import ReshapeTransform, Transform

from pyrovae.flows import ActNorm, AffineCoupling, AsTransform, Bijection, Coupling, SplineCoupling
from pyrovae.nets import as_shape, as_size

__all__ = ["Flow", "RealNVP", "SplineFlow"]


class Flow(nn.Module):
    """z = f(e), e ~ N(0, I), where f is a chain of transforms, whatever the context.

    Args:
        event_shape: shape of one z, flattened for the transforms; an int stands for a vector of that length.
        transforms: made by `transforms(length)`, in the order from e to z: transforms over vectors of that length, of
            torch or Pyro, or bijections with a `forward` and an `inverse` (`pyrovae.flows`).

    Returns:
        From `forward(context=None)`: a TransformedDistribution of batch shape () and event shape `event_shape`, with
        rsample and an exact log_prob.

    Raises:
        TypeError: if a size is not an int.
        ValueError: if a size is not positive, or a transform has no inverse: log_prob needs it at every z that the
            posterior draws.

    Source: Rezende & Mohamed 2015, https://arxiv.org/abs/1505.05770, for flows; as priors Chen et al. 2017,
    https://arxiv.org/abs/1611.02731, and Huang et al. 2017, https://arxiv.org/abs/1710.02248.

    >>> from pyro.distributions.transforms import Permute, affine_coupling
    >>> flow = Flow(3, transforms=lambda n: [affine_coupling(n), Permute(torch.tensor([2, 0, 1]))])
    >>> flow().event_shape
    torch.Size([3])
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        transforms: Callable[[int], Iterable[Transform | Bijection]],
    ) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        length = prod(self.event_shape)
        self.register_buffer("loc", torch.zeros(length), persistent=False)
        self.register_buffer("scale", torch.ones(length), persistent=False)
        self.chain = list(transforms(length))
        self.learned = nn.ModuleList(part for part in self.chain if isinstance(part, nn.Module))
        point = torch.linspace(-1, 1, length)
        with torch.no_grad():
            for part, transform in zip(self.chain, self._transforms(), strict=True):
                try:
                    transform.inv(point.clone())
                except (AttributeError, KeyError, NotImplementedError) as error:  # KeyError: Pyro's, of its cache
                    raise ValueError(
                        f"{type(part).__name__} has no inverse, which a prior's log_prob needs; pass a transform "
                        "that has one, RealNVP or SplineFlow, or use it in a posterior"
                    ) from error

    def _transforms(self) -> list[Transform]:
        return [part if isinstance(part, Transform) else AsTransform(part) for part in self.chain]

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """p(z)."""
        transforms = self._transforms()
        if len(self.event_shape) != 1:
            transforms.append(ReshapeTransform(self.loc.shape, torch.Size(self.event_shape)))
        return dist.TransformedDistribution(dist.Normal(self.loc, self.scale).to_event(1), transforms)


class RealNVP(Flow):
    r"""A flow of affine couplings: the second half of z is scaled and shifted by what the first half says.

        y_a = x_a,    y_b = x_b exp(s(x_a)) + t(x_a)

    The halves take turns, and an affine map z_j exp(c_j) + b_j follows each coupling (`pyrovae.flows.ActNorm`); the z
    of a posterior that a KL holds to the prior have mean 0 and variance 1 to begin with. s is limited softly to 3, so
    that a layer scales by 1/20 to 20.

    The last layers of the networks start at zero, so that the prior is exactly the standard Normal at first.

    Args:
        event_shape: shape of one z, of at least two numbers; an int stands for a vector of that length.
        num_layers: how many couplings.
        hidden: sizes of the hidden layers of each coupling's network, ReLU.

    Returns:
        From `forward(context=None)`: as in `Flow`.

    Raises:
        TypeError, ValueError: as in `Flow`; ValueError for one latent, which has no halves.

    Source: Dinh, Sohl-Dickstein & Bengio 2017, https://arxiv.org/abs/1605.08803, eq. 4-8; actnorm: Kingma & Dhariwal
    2018, https://arxiv.org/abs/1807.03039, section 3.1.

    >>> RealNVP(2)().log_prob(torch.zeros(2)).detach()  # - log 2 pi
    tensor(-1.8379)
    """

    def __init__(
        self, event_shape: int | Sequence[int], *, num_layers: int = 6, hidden: Sequence[int] = (128, 128)
    ) -> None:
        super().__init__(event_shape, transforms=partial(_layers, partial(AffineCoupling, hidden=hidden), num_layers))


class SplineFlow(Flow):
    r"""A flow of spline couplings: the first half of z says which monotone spline the second half goes through.

        y_a = x_a,    y_b = g(x_b; x_a)

    where g is a rational-quadratic spline on [-bound, bound] and the identity outside (`pyrovae.flows.SplineElements`).
    As in `RealNVP` the halves take turns, an affine map follows each coupling, and it is the standard Normal at first.

    Args:
        event_shape: shape of one z, of at least two numbers; an int stands for a vector of that length.
        num_layers: how many couplings.
        hidden: sizes of the hidden layers of each coupling's network, ReLU.
        num_bins: pieces of a spline.
        bound: where splines end; 3 leaves 0.3 per cent of a standard Normal outside.

    Returns:
        From `forward(context=None)`: as in `Flow`.

    Raises:
        TypeError, ValueError: as in `RealNVP`; ValueError for fewer than 2 bins or a bound that is not positive.

    Source: Durkan et al. 2019, https://arxiv.org/abs/1906.04032, section 3.

    >>> SplineFlow(2)().log_prob(torch.zeros(2)).detach()  # - log 2 pi
    tensor(-1.8379)
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        num_layers: int = 4,
        hidden: Sequence[int] = (128, 128),
        num_bins: int = 8,
        bound: float = 3.0,
    ) -> None:
        coupling = partial(SplineCoupling, hidden=hidden, num_bins=num_bins, bound=bound)
        super().__init__(event_shape, transforms=partial(_layers, coupling, num_layers))


def _layers(coupling: Callable[..., Coupling], num_layers: int, length: int) -> list[Transform | Bijection]:
    if length < 2:
        raise ValueError(
            "event_shape has one number, which has no halves to couple; pass at least two latents, or GaussianMixture"
        )
    num_layers = as_size(num_layers, "num_layers")
    layers: list[Transform | Bijection] = []
    for index in range(num_layers):
        layer = coupling(length, reads_second=index % 2 == 1)
        with torch.no_grad():  # the identity itself, to start with
            for parameter in layer.head.parameters():
                parameter.zero_()
        layers += [layer, ActNorm(length)]
    return layers
