"""The evidence lower bound, with any annealed weight on its Kullback-Leibler part."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from pyrovae.objectives.base import Objective
from pyrovae.objectives.weights import Ledger, Term

__all__ = ["ELBO"]


class ELBO(Objective):
    r"""The evidence lower bound, with Kullback-Leibler terms in closed form where that is valid.

        E_q(z|x) [log p(x | z)] - beta KL(q(z | x) || p(z))

    The closed form is taken site by site, where every latent site that comes before it in the model comes before it in
    the guide, and Monte Carlo elsewhere. With beta 1 it equals Pyro's `Trace_ELBO` (closed_form=False),
    `TraceMeanField_ELBO` and `TraceEnum_ELBO`, each from the same seed.

    Args:
        num_particles: samples of z per datum.
        beta: weight of all latent sites; a number, or a schedule of `pyrovae.training.schedules` for warm-up. With
            enumerated sites of the model that x depends on, E_q [beta log sum_c p(c, z) p(x | z, c)^(1/beta)
            - beta log q(z | x)].
        closed_form: whether to use closed-form KLs at all.
        plate: name of the data plate, where it is not plain.

    Raises:
        ValueError: for a beta below 0.

    Source: Kingma & Welling 2014, eq. 3; beta: Higgins et al. 2017, eq. 4.

    >>> ELBO(num_particles=8).is_bound, ELBO(beta=0.5).is_bound
    (True, False)
    """

    def __init__(self, num_particles: int = 1, *, beta: Any = 1.0, closed_form: bool = True, plate: str | None = None):
        super().__init__(num_particles, plate=plate)
        if not hasattr(beta, "value") and not beta >= 0:
            raise ValueError(f"beta is {beta}; the weight of the KL is at least 0, pass beta=1.0 for the ELBO")
        self.beta = beta
        self.closed_form = closed_form

    @property
    def is_bound(self) -> bool:  # type: ignore[override]
        """Whether it is a lower bound on log p(x): beta is a number of at least 1."""
        return not hasattr(self.beta, "value") and self.beta >= 1

    def for_validation(self) -> ELBO:
        """This objective with beta at the end of its schedule."""
        if not hasattr(self.beta, "at"):
            return self
        return ELBO(self.num_particles, beta=self.beta.at(math.inf), closed_form=self.closed_form, plate=self.plate)

    def per_datum(self, drawn: Ledger) -> Tensor:
        """The mean over particles, (B,)."""
        return drawn.elbo(self._weight, closed_form=self.closed_form).mean(0)

    def _weight(self, term: Term) -> float | Tensor:
        if term.kind == "observed":
            return term.scale
        beta = getattr(self.beta, "value", self.beta)
        return beta if isinstance(term.scale, float) and term.scale == 1 else beta * term.scale
