"""Tables whose columns are of different kinds."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.conditionals.likelihoods import Bernoulli, Categorical
from pyrovae.conditionals.normal import DiagonalNormal
from pyrovae.distributions import Columns, by_element
from pyrovae.nets import as_shape

__all__ = ["Mixed"]


class Mixed(nn.Module):
    r"""x_d ~ Normal, Bernoulli or Categorical, column by column and independent given h: a row of a table.

        log p(x | h) = sum_d log p_d(x_d | h)

    A column with two classes is a `Bernoulli`, one with more a `Categorical`, a real one a `DiagonalNormal`; each kind
    has a head of its own. Real columns are densities in the units of x: standardise them, and the floor of their scale
    means the same for all. The elements are independent, so that `PartialVAE` takes it for tables with missing values.

    Args:
        feature_shape: shape of one datum's features.
        event_shape: (D,).
        num_classes: for each column its number of classes; 0 for a real one. Classes are 0, 1, ..., as numbers in x.
        min_scale: the floor of the scale of real columns.

    Returns:
        From `forward(features)`: a `pyrovae.distributions.Columns` over vectors; the mean of a column with three or
        more classes is NaN.

    Raises:
        ValueError: if num_classes has not one number for each column, or a 1 or one below 0; sizes as in `Conditional`.

    Source: Nazabal et al. 2020 (HI-VAE), https://arxiv.org/abs/1807.03653, without its normalisation, mixture prior and
    positive, count and ordinal columns.

    >>> d = Mixed(200, 4, num_classes=(0, 2, 3, 0))(torch.zeros(5, 200))
    >>> d.batch_shape, d.event_shape, d.sample().shape
    (torch.Size([5]), torch.Size([4]), torch.Size([5, 4]))
    """

    is_density = True

    def __init__(
        self,
        feature_shape: int | Sequence[int],
        event_shape: int | Sequence[int],
        *,
        num_classes: Sequence[int],
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        classes = tuple(num_classes)
        if len(self.event_shape) != 1 or len(classes) != prod(self.event_shape):
            raise ValueError(
                f"num_classes has {len(classes)} numbers, the event shape is {self.event_shape}; pass one for each "
                "column of a row (D,), 0 for a real one"
            )
        if wrong := [c for c in classes if isinstance(c, bool) or not isinstance(c, int) or c < 0 or c == 1]:
            raise ValueError(
                f"num_classes has {wrong[0]!r}; pass 0 for a real column, else a number of 2 or more classes"
            )
        self.kinds = nn.ModuleList()
        for kind in sorted(set(classes)):
            columns = [d for d, c in enumerate(classes) if c == kind]
            if kind == 0:
                head: nn.Module = DiagonalNormal(feature_shape, len(columns), min_scale=min_scale)
            elif kind == 2:
                head = Bernoulli(feature_shape, len(columns))
            else:
                head = Categorical(feature_shape, len(columns), num_classes=kind)
            self.kinds.append(head)
        self.num_classes = classes
        groups = [d for kind in sorted(set(classes)) for d, c in enumerate(classes) if c == kind]
        self.order: Tensor
        self.register_buffer("order", torch.tensor(groups), persistent=False)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """The distribution of a row."""
        kinds = [by_element(kind(features))[0] for kind in self.kinds]
        return Columns(kinds, self.order).to_event(1)
