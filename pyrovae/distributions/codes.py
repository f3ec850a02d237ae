"""Over grids of codes: the nearest code as a point mass, and chains of categoricals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Self

import torch
from pyro.distributions import Delta, TorchDistribution, constraints
from torch import Tensor

__all__ = ["AutoregressiveCategorical", "NearestCode"]


class NearestCode(Delta):
    r"""q(k | x): all mass on the codes that were found nearest to an encoder's vectors, which it remembers.

        q(k) = 1    if k_i = argmin_j |h_i - e_j| at each place i of the grid

    Args:
        k: the codes' numbers, (*batch, *grid).
        encoded: h, the encoder's vectors, (*batch, D, *grid).
        code: the vectors e_k, (*batch, D, *grid).
        event_dim: number of dims of the grid.

    Returns:
        From `log_prob(k)`: nats, 0 at the codes and -inf elsewhere, shape (..., *batch).

    Source: van den Oord et al. 2017, https://arxiv.org/abs/1711.00937, eqs. 1 to 3.

    >>> h, e = torch.tensor([[0.5, 2.5]]), torch.tensor([[1.0, 2.0]])  # D = 1, a grid of two places
    >>> q = NearestCode(torch.tensor([3, 1]), h, e, event_dim=1)
    >>> q.log_prob(torch.tensor([[3, 1], [3, 2]])), q.straight_through(), q.commitment()
    (tensor([0., -inf]), tensor([[1., 2.]]), tensor(0.5000))
    """

    def __init__(
        self, k: Tensor, encoded: Tensor, code: Tensor, *, event_dim: int, validate_args: bool | None = None
    ) -> None:
        self.encoded, self.code = encoded, code
        log_density = encoded.new_zeros(k.shape[: k.dim() - event_dim])  # of k's dtype it would be an integer
        super().__init__(k, log_density, event_dim, validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """Whole numbers."""
        return constraints.independent(constraints.nonnegative_integer, self.event_dim)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same codes in each place of `batch_shape`."""
        new = self._get_checked_instance(type(self), _instance)
        new.encoded, new.code = self.encoded, self.code  # what is remembered has no copies
        return super().expand(batch_shape, new)

    def straight_through(self) -> Tensor:
        """e_k in value; its gradient goes to the codebook, and to the encoder as if h were e_k: (*batch, D, *grid).

        The first is the derivative of what follows by the code's vector, the second an estimate of what has none.
        """
        return self.code + (self.encoded - self.encoded.detach())

    def commitment(self) -> Tensor:
        """|h - e_k|^2, summed over the grid, with a gradient for the encoder alone: (*batch)."""
        return self._sum((self.encoded - self.code.detach()).square())

    def distortion(self) -> Tensor:
        """|h - e_k|^2, summed over the grid, with a gradient for the codebook alone: (*batch)."""
        return self._sum((self.encoded.detach() - self.code).square())

    def _sum(self, squares: Tensor) -> Tensor:
        return squares.flatten(-1 - self.event_dim).sum(-1)


class AutoregressiveCategorical(TorchDistribution):
    r"""A grid of categoricals, each given those before it, in the order of the flattened grid.

        log p(k) = sum_i log softmax(l_i(k_1, ..., k_{i-1}))_{k_i}

    Args:
        logits_of: from k (..., *event_shape) to logits l (..., *event_shape, C), where l_i must not depend on k_j for
            j >= i: `pyrovae.priors.PixelCNN.logits`. It is not checked here.
        event_shape: shape of one grid.
        num_classes: C.
        batch_shape: leading dims of what else the logits depend on.

    Returns:
        From `log_prob(k)`: nats, (..., *batch_shape), of integers k (..., *event_shape). Samples take a pass for each
        place of the grid.

    Source: van den Oord et al. 2016, https://arxiv.org/abs/1601.06759, eqs. 1 and 2.

    >>> fair = AutoregressiveCategorical(lambda k: torch.zeros(*k.shape, 4), (2, 3), 4)
    >>> fair.sample((5,)).shape, fair.log_prob(torch.zeros(2, 3, dtype=torch.long))  # - 6 log 4
    (torch.Size([5, 2, 3]), tensor(-8.3178))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self,
        logits_of: Callable[[Tensor], Tensor],
        event_shape: Sequence[int],
        num_classes: int,
        batch_shape: Sequence[int] = (),
        validate_args: bool | None = None,
    ) -> None:
        self.logits_of, self.num_classes = logits_of, num_classes
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """Whole numbers 0, ..., C - 1."""
        return constraints.independent(constraints.integer_interval(0, self.num_classes - 1), len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same distribution in each place of `batch_shape`."""
        new = self._get_checked_instance(type(self), _instance)
        new.logits_of, new.num_classes = self.logits_of, self.num_classes
        super(AutoregressiveCategorical, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of the grid, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        value = value.long()
        log_probs = self.logits_of(value).log_softmax(-1)
        own = self.batch_shape + self.event_shape
        shape = torch.broadcast_shapes(value.shape, log_probs.shape[:-1], own)  # a context may have dims of its own
        each = log_probs.expand(*shape, -1).gather(-1, value.expand(shape)[..., None]).squeeze(-1)
        return each.flatten(-len(self.event_shape)).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Grids, drawn place by place: (*sample_shape, *batch_shape, *event_shape)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        k = torch.zeros(shape, dtype=torch.long, device=self._device())
        places = k.view(*shape[: len(shape) - len(self.event_shape)], prod(self.event_shape))
        for i in range(places.size(-1)):
            logits = self.logits_of(k).flatten(-1 - len(self.event_shape), -2)[..., i, :]
            places[..., i] = torch.distributions.Categorical(logits=logits, validate_args=False).sample()
        return k

    def _device(self) -> torch.device | None:
        owner = getattr(self.logits_of, "__self__", getattr(getattr(self.logits_of, "func", None), "__self__", None))
        return next((p.device for p in owner.parameters()), None) if isinstance(owner, torch.nn.Module) else None
