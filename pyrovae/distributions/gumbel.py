"""One-hot categories whose masses are linear, so that samples with a gradient have one in log p and log q, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from pyro.distributions import OneHotCategorical, RelaxedOneHotCategorical, constraints
from torch import Tensor

__all__ = ["GumbelOneHot", "LinearOneHot"]


class LinearOneHot(OneHotCategorical):
    r"""A one-hot categorical whose log-mass is a linear function of y, and so has a derivative by it.

        log p(y) = sum_c y_c log p_c

    At one-hot y it is that of Pyro's `OneHotCategorical`, which takes the argmax of y instead: with a prior of that
    kind the straight-through gradient of log p(y) - log q(y) is lost, and with it all that a sampled KL or an
    importance-weighted bound would tell the guide of its prior.

    Args:
        probs, logits: as for Pyro's.

    Returns:
        From `log_prob(y)`: nats, (..., *batch).

    >>> y = torch.tensor([0.0, 1.0], requires_grad=True)
    >>> LinearOneHot(torch.tensor([0.25, 0.75])).log_prob(y).backward()
    >>> y.grad.exp()
    tensor([0.2500, 0.7500])
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-mass, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        logits = self.logits
        # 0 times minus infinity is no number: an impossible category has the lowest finite one.
        return (value * logits.clamp(min=torch.finfo(logits.dtype).min)).sum(-1)


class GumbelOneHot(LinearOneHot):
    r"""A one-hot categorical, sampled by the Gumbel maximum, with the gradient of its relaxation.

        s = softmax((l + g) / temperature),    g_c ~ Gumbel(0, 1);    y = onehot(argmax s), with the gradient of s

    y is a draw of the categorical, whatever the temperature, and log_prob its log-mass: a bound with these samples is
    one of the categorical model, and the gradient alone is biased, less at low temperature and with more noise.
    Pyro's own `RelaxedOneHotCategoricalStraightThrough` has the relaxation's density in log_prob, and a density less a
    prior's log-mass is the bound of nothing. With hard=False the samples are s: log_prob is then sum_c s_c log q_c, and
    what follows from them no bound on log p(x).

    Bounds without a KL in closed form, `ELBO(closed_form=False)` and `IWAE(K)`, want a prior that is linear in y, too:
    `LinearOneHot`. Pyro's `OneHotCategorical` gives log p(y) no gradient, and the guide would learn its own entropy
    alone.

    Args:
        temperature: positive, a number or a scalar tensor; near 0 s is one-hot itself.
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
        self, temperature: float | Tensor, logits: Tensor, *, hard: bool = True, validate_args: bool | None = None
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
        temperature = torch.as_tensor(self.temperature).to(self.logits)
        relaxed = RelaxedOneHotCategorical(temperature, logits=self.logits, validate_args=False)
        soft = relaxed.rsample(torch.Size(sample_shape))
        if not self.hard:
            return soft
        y = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
        return y + (soft - soft.detach())
