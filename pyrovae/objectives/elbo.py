"""The evidence lower bound, with any annealed weight on its Kullback-Leibler part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyrovae.objectives.base import Objective, weight
from pyrovae.objectives.weights import Ledger, Term

__all__ = ["ELBO"]


class ELBO(Objective):
    r"""The evidence lower bound, with Kullback-Leibler terms in closed form where that is valid.

        E_q(z|x) [log p(x | z)] - beta KL(q(z | x) || p(z)),    or sum_l beta_l KL_l over the latent sites l

    The closed form is taken site by site, where every latent site that comes before it in the model comes before it in
    the guide, and Monte Carlo elsewhere. With beta 1 it equals Pyro's `Trace_ELBO` (closed_form=False),
    `TraceMeanField_ELBO` and `TraceEnum_ELBO`, each from the same seed.

    Args:
        num_particles: samples of z per datum.
        beta: weight of all latent sites; a number, or a schedule of `pyrovae.training.schedules` for warm-up; or one of
            these for each site, {"z1": 0.5, "z2": Linear(0, 1, epochs=10)}, and 1 for those left out; sites that a
            guide draws as one, as `AutoDiagonalNormal` does, by the name that their KL has in `pyrovae.elbo`. 0 is a
            stochastic autoencoder. With enumerated sites of the model that x depends on, E_q [beta log sum_c p(c, z)
            p(x | z, c)^(1/beta) - beta log q(z | x)]; what is enumerated and what depends on it share one weight.
        closed_form: whether to use closed-form KLs at all.
        plate: name of the data plate, where it is not plain.

    Raises:
        ValueError: for a beta below 0, or of a site that the pair does not have.

    Source: Kingma & Welling 2014, eq. 3; beta: Higgins et al. 2017, eq. 4.

    >>> ELBO(num_particles=8).is_bound, ELBO(beta=0.5).is_bound
    (True, False)
    """

    def __init__(self, num_particles: int = 1, *, beta: Any = 1.0, closed_form: bool = True, plate: str | None = None):
        super().__init__(num_particles, plate=plate)
        self.beta: Any = dict(beta) if isinstance(beta, Mapping) else beta
        self._of_sites = dict(self.beta) if isinstance(self.beta, dict) else {}
        for name, part in self._of_sites.items():
            weight(f"beta[{name!r}]", part)
        if not isinstance(self.beta, dict):
            weight("beta", self.beta)
        self.closed_form = closed_form

    @property
    def is_bound(self) -> bool:  # type: ignore[override]
        """Whether it is a lower bound on log p(x): beta is a number of at least 1, or 1 at every site."""
        if isinstance(self.beta, dict):  # one site's KL alone may be below 0 where the guide has another order
            return all(not hasattr(part, "value") and part == 1 for part in self.beta.values())
        return not hasattr(self.beta, "value") and self.beta >= 1

    def per_datum(self, drawn: Ledger) -> Tensor:
        """The mean over particles, (B,)."""
        if isinstance(self.beta, dict):
            together = drawn.together
            if unknown := sorted(self.beta.keys() - together.keys()):
                raise ValueError(f"beta has weights for {unknown}, the latent sites are {sorted(together)}; name these")
            self._of_sites = {site: part for name, part in self.beta.items() for site in together[name]}
        return drawn.elbo(self._weight, closed_form=self.closed_form).mean(0)

    def _weight(self, term: Term) -> float | Tensor:
        if term.kind == "observed":
            return term.scale
        beta: Any = self._of_sites.get(term.name, 1.0) if isinstance(self.beta, dict) else self.beta
        beta = getattr(beta, "value", beta)
        return beta if isinstance(term.scale, float) and term.scale == 1 else beta * term.scale
