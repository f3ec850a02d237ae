"""One-hot categories whose samples have a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from pyro.distributions import OneHotCategorical, RelaxedOneHotCategorical, constraints
from torch import Tensor

__all__ = ["GumbelOneHot"]


class GumbelOneHot(OneHotCategorical):
    r"""A one-hot categorical, sampled by the Gumbel maximum, with the gradient of its relaxation.

        s = softmax((l + g) / temperature),    g_c ~ Gumbel(0, 1);    y = onehot(argmax s), with the gradient of s

    y is a draw of the categorical, whatever the temperature, and log_prob its log-mass: a bound with these samples is
    one of the categorical model, and the gradient alone is biased, less at low temperature and with more noise.
    Pyro's own `RelaxedOneHotCategoricalStraightThrough` has the relaxation's density in log_prob, and a density less a
    prior's log-mass is the bound of nothing. With hard=False the samples are s: log_prob is then that of the category
    with the largest share, and what follows from them no bound on log p(x).

    Args:
        temperature: positive; near 0 s is one-hot itself.
        logits: l, (*batch, C).
        hard: whether samples are y or s.

    Returns:
        From `log_prob(y)`: nats, (..., *batch). From `rsample()`: (..., *batch, C).

    Source: Jang, Gu & Poole 2017, https://arxiv.org/abs/1611.01144, sections 2.1 and 2.2; Maddison et al. 2017,
    https://arxiv.org/abs/1611.00712.

    >>> _ = torch.manual_seed(0)
    >>> y = GumbelOneHot(0.5, torch.zeros(3, requires_grad=True)).rsample()
    >>> y.sum().item(), y.requires_grad
    (1.0, True)
    """

    has_rsample = True

    def __init__(
        self, temperature: float, logits: Tensor, *, hard: bool = True, validate_args: bool | None = None
    ) -> None:
        self.temperature, self.hard = temperature, hard
        super().__init__(logits=logits, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """One-hot vectors, or shares of one."""
        return constraints.one_hot if self.hard else constraints.simplex

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same distribution in each place of `batch_shape`."""
        new = self._get_checked_instance(type(self), _instance)
        new.temperature, new.hard = self.temperature, self.hard
        return super().expand(batch_shape, new)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """y, or s."""
        temperature = self.logits.new_tensor(self.temperature)
        relaxed = RelaxedOneHotCategorical(temperature, logits=self.logits, validate_args=False)
        soft = relaxed.rsample(torch.Size(sample_shape))
        if not self.hard:
            return soft
        y = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
        return y + (soft - soft.detach())
