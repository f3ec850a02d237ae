"""The Wishart distribution in a form that a captured step can hold."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import Chi2, Distribution, register_kl

__all__ = ["Wishart"]


class Wishart(dist.Wishart):
    r"""Lambda ~ Wishart(nu, W): positive definite D x D matrices of mean nu W.

    Density and moments are torch's. Its constructor and its draws decide by the values of tensors, which no
    captured step can hold, and its `rsample` takes each good draw for a singular one (`is_singular =
    self.support.check(sample)`): it warns and draws again. Here a draw is Bartlett's decomposition as it comes.

    Args:
        df: nu, greater than D - 1, (...).
        scale_tril: lower triangular with a positive diagonal, W = scale_tril scale_tril^T, (..., D, D).

    Source: Bartlett 1933; Bishop 2006, eq. B.78.

    >>> wishart = Wishart(torch.tensor(5.0), torch.eye(2))
    >>> wishart.mean
    tensor([[5., 0.],
            [0., 5.]])
    """

    def __init__(self, df: Tensor, scale_tril: Tensor, validate_args: bool | None = None) -> None:
        batch_shape = torch.broadcast_shapes(df.shape, scale_tril.shape[:-2])
        self.df = df.expand(batch_shape)
        self.scale_tril = scale_tril.expand((*batch_shape, -1, -1))
        self._unbroadcasted_scale_tril = scale_tril
        Distribution.__init__(self, batch_shape, scale_tril.shape[-2:], validate_args=validate_args)
        self._batch_dims = [-1 - dim for dim in range(len(batch_shape))]
        steps = torch.arange(scale_tril.size(-1), dtype=df.dtype, device=df.device)
        self._dist_chi2 = Chi2(self.df[..., None] - steps, validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: Any = None) -> Wishart:
        """The same distribution in a larger batch."""
        return super().expand(batch_shape, self._get_checked_instance(Wishart, _instance))

    def rsample(self, sample_shape: Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws with a gradient, (*sample_shape, ..., D, D)."""
        with torch.autocast(self.df.device.type, enabled=False):  # else in products of half precision
            return self._bartlett_sampling(torch.Size(sample_shape))


@register_kl(Wishart, Wishart)
def _kl(q: Wishart, p: Wishart) -> Tensor:
    r"""KL(q || p), Penny 2001, in closed form: torch's takes derivatives, which a run without gradients can't."""
    dim = q.event_shape[-1]
    log_det_q, log_det_p = (2 * d.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) for d in (q, p))
    trace = torch.linalg.solve_triangular(p.scale_tril, q.scale_tril, upper=False).pow(2).sum((-2, -1))
    digamma = ((q.df[..., None] - torch.arange(dim, dtype=q.df.dtype, device=q.df.device)) / 2).digamma().sum(-1)
    return (
        p.df * (log_det_p - log_det_q) / 2
        + q.df * (trace - dim) / 2
        + torch.mvlgamma(p.df / 2, dim)
        - torch.mvlgamma(q.df / 2, dim)
        + (q.df - p.df) * digamma / 2
    )
