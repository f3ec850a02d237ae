"""What holds an encoder and a codebook together: terms that are no part of a density."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyrovae.distributions import NearestCode
from pyrovae.objectives.base import Objective, weight
from pyrovae.objectives.elbo import ELBO
from pyrovae.objectives.weights import Ledger

__all__ = ["Commitment"]


class Commitment(Objective):
    r"""The ELBO less the distances between an encoder's vectors h and their codes, for guides with `NearestCode` sites.

        ELBO - beta |h - sg(e_k)|^2 - codebook |sg(h) - e_k|^2,    summed over grids;  sg(v) is v without a gradient

    Both terms are of training alone: validation takes the plain ELBO. To a codebook that is a running mean the last
    term has no gradient to give, and is a mere number.

    A datum's distances are summed over its codes, as its log-likelihood is over its pixels; the paper takes means of
    both, so that with n pixels and m numbers in z its beta is about n / (2 m) here where it is 1 there.

    Args:
        beta: weight of the commitment; a number or a schedule.
        codebook: weight of the codebook's own term.
        num_particles: K; a guide on points gives all of them one value.
        plate: name of the data plate, where it is not plain.

    Raises:
        ValueError: for weights below 0; for a pair without such sites.

    Source: van den Oord et al. 2017, https://arxiv.org/abs/1711.00937, eq. 3.

    >>> Commitment(0.25).is_bound  # less than a bound is a bound, too
    True
    """

    def __init__(
        self, beta: Any = 0.25, *, codebook: float = 1.0, num_particles: int = 1, plate: str | None = None
    ) -> None:
        super().__init__(num_particles, plate=plate)
        self.beta, self.codebook = weight("beta", beta), weight("codebook", codebook)

    def per_datum(self, drawn: Ledger) -> Tensor:
        """The ELBO less the distances, (B,)."""
        found = [n for t in drawn.terms if t.kind == "guide" and (n := _nearest(t.site["fn"])) is not None]
        if not found:
            names = [term.name for term in drawn.terms if term.kind == "guide"]
            raise ValueError(
                f"the guide's sites {names} are no codes of a codebook; draw one from "
                "pyrovae.distributions.NearestCode, as VQVAE does, or use ELBO()"
            )
        value = drawn.elbo().mean(0)
        beta = getattr(self.beta, "value", self.beta)
        for nearest in found:
            value = value - drawn.common_scale() * (beta * nearest.commitment() + self.codebook * nearest.distortion())
        return value

    def for_validation(self) -> Objective:
        """The plain ELBO."""
        return ELBO(self.num_particles, plate=self.plate)


def _nearest(fn: Any) -> NearestCode | None:
    while fn is not None and not isinstance(fn, NearestCode):
        fn = getattr(fn, "base_dist", None)
    return fn
