"""InfoVAE and WAE: reconstruction, with the aggregate posterior held to the prior by maximum mean discrepancy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrovae.objectives.base import Objective, weight
from pyrovae.objectives.total_correlation import code_site
from pyrovae.objectives.weights import Ledger

__all__ = ["MMD", "inverse_multiquadratic", "mean_discrepancy"]

Kernel = Callable[[Tensor, Tensor], Tensor]


def inverse_multiquadratic(x: Tensor, y: Tensor) -> Tensor:
    """C / (C + |x - y|^2) with C = 2 L, the mean |x - y|^2 of a standard normal: x (n, L), y (m, L) to (n, m)."""
    constant = 2 * x.size(-1)
    squares = (x[:, None] - y).square().sum(-1)
    return constant / (constant + squares)


def mean_discrepancy(x: Tensor, y: Tensor, kernel: Kernel = inverse_multiquadratic) -> Tensor:
    """Squared maximum mean discrepancy of the distributions of x (n, L) and y (m, L), unbiased, so maybe below 0.

    Source: Gretton et al. 2012, A kernel two-sample test, eq. 3.
    """
    within = [(k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1)) for k in (kernel(x, x), kernel(y, y))]
    return within[0] + within[1] - 2 * kernel(x, y).mean()


class MMD(Objective):
    r"""InfoVAE with alpha 1, which is WAE with a likelihood: no KL per datum, but a match of q(z) with p(z).

        E_q [log p(x | z)] - scale MMD^2(q(z), p(z)),    q(z) = 1/B sum_b q(z | x_b)

    One z per row and particle and as many draws of the prior, all pooled. Not a bound on log p(x).

    `pyro.infer.Trace_MMD` is another objective: it takes the latents of all rows of a batch for one event and compares
    particles alone, so that every q(z | x) is held to the prior, as by a KL, and not their mixture.

    Args:
        num_particles: samples of z per datum.
        scale: weight of the discrepancy, for each datum; a number or a schedule.
        kernel: of (n, L) and (m, L) to (n, m), such as one of `pyro.contrib.gp.kernels`. Default: the inverse
            multiquadratic of WAE for a standard normal prior.
        plate: name of the data plate, where it is not plain.

    Raises:
        ValueError: for a scale below 0.

    Source: Zhao, Song & Ermon 2019, https://arxiv.org/abs/1706.02262; Tolstikhin et al. 2018,
    https://arxiv.org/abs/1711.01558, whose scale this is.

    >>> MMD(scale=10.0).is_bound
    False
    """

    is_bound = False
    couples_rows = True

    def __init__(
        self,
        num_particles: int = 1,
        *,
        scale: Any = 10.0,
        kernel: Kernel = inverse_multiquadratic,
        plate: str | None = None,
    ):
        super().__init__(num_particles, plate=plate)
        self.scale = weight("scale", scale)
        self.kernel = kernel

    def per_datum(self, drawn: Ledger) -> Tensor:
        """The mean over particles, less the batch's discrepancy, (B,)."""
        name = code_site(drawn, independent=False).name
        terms = [term for draw in drawn.draws for term in draw.terms if term.name == name]
        in_model, in_guide = ([t.site for t in terms if t.kind == kind] for kind in ("latent", "guide"))
        prior, size = in_model[0]["fn"], math.prod(in_model[0]["fn"].event_shape)
        z = torch.cat([site["value"].reshape(-1, size) for site in in_guide])
        if len(z) < 2:
            raise ValueError("the batch has one row and one particle; a discrepancy needs two samples at least")
        if not prior.has_rsample and prior.log_prob(in_model[0]["value"].detach()).requires_grad:
            raise ValueError(
                f"the prior of {name!r} ({type(prior).__name__}) is learned and its draws are not reparametrised, so "
                "that this objective has no gradient for it; fix its parameters or use ELBO()"
            )
        draws = [site["fn"].rsample() if prior.has_rsample else site["fn"].sample() for site in in_model]
        of_prior = torch.cat([value.reshape(-1, size) for value in draws])
        value = drawn.elbo(lambda term: float(term.kind == "observed"), closed_form=False).mean(0)
        scale = getattr(self.scale, "value", self.scale)
        return drawn.common_scale() * (value - scale * mean_discrepancy(z, of_prior, self.kernel))
