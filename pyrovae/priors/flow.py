r"""Priors that are normalizing flows: z = f(e), e ~ N(0, I), with an inverse that is exact and as cheap as f.

    log p(z) = log N(f^-1(z); 0, I) - log |det df/de|

Why the couplings are written here. Pyro's AffineCoupling and SplineCoupling keep the last tensors they saw as
attributes: a pair that has run can't be deep-copied, and Pyro's spline asserts a tensor's values and indexes by masks,
which a captured step can't have. Zuko's CouplingTransform finds its two parts by `mask.nonzero()` at each call, which a
captured step can't have either. Here a coupling makes a transform of torch's kind each time the prior is called, which
remembers what it computed for as long as that distribution lives. Pyro's transforms fill a `Flow` all the same.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import exp, log, prod

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform, ReshapeTransform, Transform
from torch.nn.functional import pad, softplus

from pyrovae.nets import MLP, Head, as_shape

__all__ = ["Flow", "RationalQuadraticSpline", "RealNVP", "SplineFlow"]


class Flow(nn.Module):
    """z = f(e), e ~ N(0, I), where f is a chain of transforms, whatever the context.

    Args:
        event_shape: shape of one z, flattened for the transforms; an int stands for a vector of that length.
        transforms: made by `transforms(length)`, in the order from e to z: transforms over vectors of that length, of
            torch or Pyro, or modules whose `forward()` returns one.

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
        transforms: Callable[[int], Iterable[Transform | nn.Module]],
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
            for transform in self._transforms():
                try:
                    transform.inv(point.clone())
                except (KeyError, NotImplementedError) as error:  # the first is Pyro's, for what is not in a cache
                    raise ValueError(
                        f"{type(transform).__name__} has no inverse, which a prior's log_prob needs; pass a transform "
                        "that has one, RealNVP or SplineFlow, or use it in a posterior"
                    ) from error

    def _transforms(self) -> list[Transform]:
        return [part if isinstance(part, Transform) else part() for part in self.chain]

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """p(z)."""
        transforms = self._transforms()
        if len(self.event_shape) != 1:
            transforms.append(ReshapeTransform(self.loc.shape, torch.Size(self.event_shape)))
        return dist.TransformedDistribution(dist.Normal(self.loc, self.scale).to_event(1), transforms)


class RealNVP(Flow):
    r"""A flow of affine couplings: the second half of z is scaled and shifted by what the first half says.

        y_a = x_a,    y_b = x_b exp(s(x_a)) + t(x_a)

    The halves take turns, and an affine map z_j exp(c_j) + b_j follows each coupling. That map is Glow's actnorm
    without its initialisation from a first batch: the z of a posterior that a KL holds to the prior have mean 0 and
    variance 1 to begin with, and a first batch would make the parameters depend on which data come first and on
    how many processes share them. s is limited softly to 3, so that a layer scales by 1/20 to 20.

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
        super().__init__(event_shape, transforms=partial(_layers, 2, _affine, num_layers, hidden))


class SplineFlow(Flow):
    r"""A flow of spline couplings: the first half of z says which monotone spline the second half goes through.

        y_a = x_a,    y_b = g(x_b; x_a)

    where g is a rational-quadratic spline on [-bound, bound] and the identity outside (`RationalQuadraticSpline`). As
    in `RealNVP` the halves take turns, an affine map follows each coupling, and it is the standard Normal at first.

    Args:
        event_shape: shape of one z, of at least two numbers; an int stands for a vector of that length.
        num_layers: how many couplings.
        hidden: sizes of the hidden layers of each coupling's network, ReLU.
        num_bins: pieces of a spline.
        bound: where splines end; 3 leaves 0.3 per cent of a standard Normal outside.

    Returns:
        From `forward(context=None)`: as in `Flow`.

    Raises:
        TypeError, ValueError: as in `RealNVP`; ValueError for a bound that is not positive.

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
        (num_bins,) = as_shape(num_bins, "num_bins")
        if bound <= 0:
            raise ValueError(f"bound is {bound}, expected a positive number; pass bound=3.0")
        elementwise = partial(_spline, bound=bound)
        super().__init__(event_shape, transforms=partial(_layers, 3 * num_bins - 1, elementwise, num_layers, hidden))


class RationalQuadraticSpline(Transform):
    r"""A monotone spline for each number: a ratio of quadratics between K + 1 knots, the identity outside.

    Between the knots (x_k, y_k) and (x_k+1, y_k+1) with slopes d_k and d_k+1, with w and h for the differences,
    r = (x - x_k) / w and m = h / w,

        y = y_k + h (m r^2 + d_k r (1 - r)) / (m + (d_k + d_k+1 - 2 m) r (1 - r))

    Widths and heights of the bins are at least 1/1000 of the whole, slopes at least 1/1000, those at the ends 1.
    Zeros for all parameters give the identity.

    Args:
        widths, heights: (..., K), unconstrained.
        slopes: of the K - 1 inner knots, (..., K - 1), unconstrained.
        bound: the first and the last knot are at (-bound, -bound) and (bound, bound).

    Source: Durkan et al. 2019, https://arxiv.org/abs/1906.04032, eq. 4-8.

    >>> spline = RationalQuadraticSpline(torch.zeros(4), torch.zeros(4), torch.zeros(3))
    >>> spline(torch.tensor([-5.0, 0.5, 2.0]))
    tensor([-5.0000, 0.5000, 2.0000])
    """

    domain = codomain = constraints.real
    bijective = True
    sign = 1
    least = 1e-3

    def __init__(self, widths: Tensor, heights: Tensor, slopes: Tensor, *, bound: float = 3.0) -> None:
        super().__init__()
        self.bound = bound
        self.x, self.y = self._knots(widths), self._knots(heights)
        inner = self.least + softplus(slopes + log(exp(1 - self.least) - 1))
        self.slopes = pad(inner, (1, 1), value=1.0)

    def _knots(self, lengths: Tensor) -> Tensor:
        share = self.least + (1 - self.least * lengths.size(-1)) * lengths.softmax(-1)
        inner = self.bound * (2 * share.cumsum(-1)[..., :-1] - 1)
        # The ends are written, not summed up: what lies beyond them is the identity.
        return pad(pad(inner, (1, 0), value=-self.bound), (0, 1), value=self.bound)

    def _bin(self, knots: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Of the bin of each value: x_k, y_k, w, h, d_k, d_k+1."""
        index = (value.unsqueeze(-1) >= knots[..., 1:-1]).sum(-1, keepdim=True)

        def at(of: Tensor) -> Tensor:
            return of.expand(*index.shape[:-1], of.size(-1)).gather(-1, index).squeeze(-1)

        x, y, d = self.x, self.y, self.slopes
        return at(x[..., :-1]), at(y[..., :-1]), at(x.diff()), at(y.diff()), at(d[..., :-1]), at(d[..., 1:])

    def _inside(self, value: Tensor) -> tuple[Tensor, Tensor]:
        return value.abs() < self.bound, value.clamp(-self.bound, self.bound)

    def _call(self, x: Tensor) -> Tensor:
        inside, clamped = self._inside(x)
        x_k, y_k, w, h, d, d_next = self._bin(self.x, clamped)
        r, m = (clamped - x_k) / w, h / w
        y = y_k + h * (m * r**2 + d * r * (1 - r)) / (m + (d + d_next - 2 * m) * r * (1 - r))
        return torch.where(inside, y, x)

    def _inverse(self, y: Tensor) -> Tensor:
        inside, clamped = self._inside(y)
        x_k, y_k, w, h, d, d_next = self._bin(self.y, clamped)
        m = h / w
        above, bend = clamped - y_k, d + d_next - 2 * m
        a, b, c = h * (m - d) + above * bend, h * d - above * bend, -m * above
        root = (b**2 - 4 * a * c).clamp(min=torch.finfo(y.dtype).tiny).sqrt()  # positive, but for rounding
        return torch.where(inside, x_k + w * 2 * c / (-b - root), y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log of the derivative, element by element."""
        inside, clamped = self._inside(x)
        x_k, _, w, h, d, d_next = self._bin(self.x, clamped)
        r, m = (clamped - x_k) / w, h / w
        numerator = d_next * r**2 + 2 * m * r * (1 - r) + d * (1 - r) ** 2
        log_slope = 2 * m.log() + numerator.log() - 2 * (m + (d + d_next - 2 * m) * r * (1 - r)).log()
        return torch.where(inside, log_slope, 0.0)


class _Coupling(nn.Module):
    """The network of a coupling, and which half it reads."""

    def __init__(
        self,
        length: int,
        num_parameters: int,
        elementwise: Callable[[tuple[Tensor, ...]], Transform],
        hidden: Sequence[int],
        reads_second: bool,
    ) -> None:
        super().__init__()
        self.sizes = (length // 2, length - length // 2)
        self.elementwise, self.reads_second = elementwise, reads_second
        kept, moved = self.sizes[::-1] if reads_second else self.sizes
        self.features = MLP(kept, hidden, activation=nn.ReLU)
        self.head = Head(self.features.feature_shape, moved, num_parameters)
        with torch.no_grad():  # the identity, to start with
            for parameter in self.head.parameters():
                parameter.zero_()

    def forward(self) -> Transform:
        return _CouplingTransform(self)

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is kept, and what is moved."""
        first, second = x.split(self.sizes, -1)
        return (second, first) if self.reads_second else (first, second)

    def joined(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([moved, kept] if self.reads_second else [kept, moved], -1)

    def given(self, kept: Tensor) -> Transform:
        """What the other half goes through."""
        return self.elementwise(self.head(self.features(kept)))


class _CouplingTransform(Transform):
    """A coupling as a transform; the density of a point runs its network once."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, coupling: _Coupling) -> None:
        super().__init__()
        self.coupling = coupling
        self.last: tuple[Tensor, Transform] | None = None

    def _call(self, x: Tensor) -> Tensor:
        kept, moved = self.coupling.halves(x)
        return self.coupling.joined(kept, self.coupling.given(kept)(moved))

    def _inverse(self, y: Tensor) -> Tensor:
        kept, moved = self.coupling.halves(y)
        through = self.coupling.given(kept)
        x = self.coupling.joined(kept, through.inv(moved))
        self.last = x, through
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        (kept, before), (_, after) = self.coupling.halves(x), self.coupling.halves(y)
        through = self.last[1] if self.last is not None and self.last[0] is x else self.coupling.given(kept)
        return through.log_abs_det_jacobian(before, after).sum(-1)


class _ActNorm(nn.Module):
    """z_j exp(c_j) + b_j."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(length))
        self.log_scale = nn.Parameter(torch.zeros(length))

    def forward(self) -> Transform:
        return AffineTransform(self.loc, self.log_scale.exp(), event_dim=1)


def _layers(
    num_parameters: int,
    elementwise: Callable[[tuple[Tensor, ...]], Transform],
    num_layers: int,
    hidden: Sequence[int],
    length: int,
) -> list[nn.Module]:
    if length < 2:
        raise ValueError(
            "event_shape has one number, which has no halves to couple; pass at least two latents, or GaussianMixture"
        )
    (num_layers,) = as_shape(num_layers, "num_layers")
    layers: list[nn.Module] = []
    for index in range(num_layers):
        layers += [_Coupling(length, num_parameters, elementwise, hidden, index % 2 == 1), _ActNorm(length)]
    return layers


def _affine(parameters: tuple[Tensor, ...]) -> Transform:
    loc, raw = parameters
    return AffineTransform(loc, torch.exp(3 * torch.tanh(raw / 3)))


def _spline(parameters: tuple[Tensor, ...], bound: float) -> Transform:
    bins = (len(parameters) + 1) // 3
    widths, heights, slopes = torch.stack(parameters, -1).split([bins, bins, bins - 1], -1)  # (..., n, bins)
    return RationalQuadraticSpline(widths, heights, slopes, bound=bound)
