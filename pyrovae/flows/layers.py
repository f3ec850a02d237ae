"""Bijections whose elements go through maps of their own, with parameters that a network makes of other elements."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyrovae.flows.elements import AffineElements, Elements, SplineElements
from pyrovae.nets import MLP, Head, as_size, near_zero_

__all__ = ["AffineCoupling", "Autoregressive", "Coupling", "SplineCoupling", "at_least_two"]


class Coupling(nn.Module):
    r"""Half of x says which maps the numbers of the other half go through.

        y_a = x_a,    y_bj = g(x_bj; parameters(x_a)_j),    log|det| = sum_j log g'

    The network starts near zero, which makes the layer nearly the identity: a chain of them at torch's own
    initialisation is far out in the tails, and further the longer it is.

    Args:
        dim: D, at least 2; the first D // 2 numbers are one half, the rest the other.
        elements: g.
        hidden: sizes of the hidden layers of the network, ReLU.
        reads_second: whether it is the second half that is kept.

    Returns:
        From `forward(x)` and `inverse(y)`: the other one, (..., D), and log|det dy/dx|, (...).

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers, or dim below 2.

    Source: Dinh et al. 2017 (RealNVP), https://arxiv.org/abs/1605.08803, eqs. 4 to 8.

    >>> y, log_det = Coupling(3, SplineElements())(torch.ones(5, 3))
    >>> y.shape, log_det.shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self, dim: int, elements: Elements, *, hidden: Sequence[int] = (64, 64), reads_second: bool = False
    ) -> None:
        super().__init__()
        dim = at_least_two(dim, "dim")
        self.sizes = (dim // 2, dim - dim // 2)
        self.elements, self.reads_second = elements, reads_second
        kept, moved = self.sizes[::-1] if reads_second else self.sizes
        self.features = MLP(kept, hidden, activation=nn.ReLU)
        self.head = Head(self.features.feature_shape, (elements.num_parameters, moved))
        near_zero_(self.head.layer)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log|det dy/dx|."""
        kept, moved = self._halves(x)
        out, log_slope = self.elements.forward(moved, self._given(kept))
        return self._joined(kept, out), log_slope.sum(-1)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x and log|det dy/dx| there."""
        kept, moved = self._halves(y)
        out, log_slope = self.elements.inverse(moved, self._given(kept))
        return self._joined(kept, out), log_slope.sum(-1)

    def _given(self, kept: Tensor) -> Tensor:
        (parameters,) = self.head(self.features(kept))
        return parameters  # (..., num_parameters, moved)

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is kept, and what is moved."""
        first, second = x.split(self.sizes, -1)
        return (second, first) if self.reads_second else (first, second)

    def _joined(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([moved, kept] if self.reads_second else [kept, moved], -1)


class AffineCoupling(Coupling):
    r"""Half of x shifts and scales the other half.

        y_a = x_a,    y_b = exp(s(x_a)) x_b + t(x_a),    log|det| = sum s(x_a)

    s is limited softly to 3, so that a layer scales by 1/20 to 20 (`AffineElements`).

    Args:
        dim, hidden, reads_second: as in `Coupling`.

    Source: Dinh et al. 2017 (RealNVP), https://arxiv.org/abs/1605.08803, eqs. 4 to 8.

    >>> layer = AffineCoupling(3)
    >>> y, log_det = layer(torch.ones(5, 3))
    >>> torch.allclose(layer.inverse(y)[0], torch.ones(5, 3))
    True
    """

    def __init__(self, dim: int, *, hidden: Sequence[int] = (64, 64), reads_second: bool = False) -> None:
        super().__init__(dim, AffineElements(), hidden=hidden, reads_second=reads_second)


class SplineCoupling(Coupling):
    """Half of x chooses monotone splines for the numbers of the other half.

        y_a = x_a,    y_bj = spline_j(x_bj; x_a),    log|det| = sum_j log spline_j'

    Rational-quadratic splines on [-bound, bound], the identity outside (`SplineElements`): standardise the data.

    Args:
        dim, hidden, reads_second: as in `Coupling`.
        num_bins: pieces of each spline.
        bound: half the width of the interval in which there are splines.

    Raises:
        TypeError, ValueError: as in `Coupling` and `SplineElements`.

    Source: Durkan et al. 2019, https://arxiv.org/abs/1906.04032, section 3.

    >>> layer = SplineCoupling(3, num_bins=4)
    >>> y, log_det = layer(torch.ones(5, 3))
    >>> torch.allclose(layer.inverse(y)[0], torch.ones(5, 3), atol=1e-5)
    True
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: Sequence[int] = (64, 64),
        num_bins: int = 8,
        bound: float = 3.0,
        reads_second: bool = False,
    ) -> None:
        elements = SplineElements(num_bins=num_bins, bound=bound)
        super().__init__(dim, elements, hidden=hidden, reads_second=reads_second)


class Autoregressive:
    r"""y_i = g(x_i; parameters(x)_i), where parameters(x)_i depends on the elements of x before i, in some order.

    y takes one pass of the network, the inverse D of them, an element after the other.

    Args:
        network: x (..., D) to parameters (..., P, D), such as Pyro's `ConditionalAutoRegressiveNN` on a context.
        elements: g.
        order: the elements, each after those that its parameters depend on.

    Source: Kingma et al. 2016, https://arxiv.org/abs/1606.04934.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], elements: Elements, order: Sequence[int]) -> None:
        self.network, self.elements, self.order = network, elements, order

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log|det dy/dx|."""
        y, log_slope = self.elements.forward(x, self.network(x))
        return y, log_slope.sum(-1)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x and log|det dy/dx| there."""
        found, log_det = list(torch.zeros_like(y).unbind(-1)), torch.zeros_like(y[..., 0])
        for i in self.order:
            # Of one element only: those whose turn has not come may overflow, and a mask's 0 times that is NaN.
            parameters = self.network(torch.stack(found, -1))[..., i : i + 1]
            x, log_slope = self.elements.inverse(y[..., i : i + 1], parameters)
            found[i] = x.squeeze(-1)
            found, log_det = list(torch.broadcast_tensors(*found)), log_det + log_slope.squeeze(-1)
        return torch.stack(found, -1), log_det


def at_least_two(dim: int, name: str) -> int:
    """`dim`, which has to be a whole number above 1."""
    dim = as_size(dim, name)
    if dim < 2:
        raise ValueError(f"{name} is {dim}, a coupling takes two numbers at least, one to transform by the other")
    return dim
