"""Labels that some of the data have: the bound of both kinds of rows, and the classifier's own loss on the labelled."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from pyrovae.objectives.base import Objective, weight
from pyrovae.objectives.draws import Draw, Term
from pyrovae.objectives.weights import Ledger

__all__ = ["SemiSupervised"]


class SemiSupervised(Objective):
    r"""The ELBO of labelled and unlabelled rows together, and the cross-entropy of q(y | x) on the labelled.

        labelled      ELBO(x, y) + alpha log q(y | x)
        unlabelled    beta ELBO(x)

    For any pair whose model has `pyro.sample(site, ..., obs=y, obs_mask=known)` and whose guide samples what that makes
    of the unknown labels, `site_unobserved`, under `poutine.mask(mask=~known)`: `M2`, `FactoredM2`, `StackedM2`. The
    ELBO knows nothing of q(y | x) where y is observed; alpha adds it here, so that evaluation, which sees the pair
    alone, is of the bound. The mean is over all rows of a batch, of which a labelled one counts as much as another.
    A `poutine.scale` of the model's label site is one of log q(y | x) as well.

    Args:
        num_particles: samples of z per datum, and per label where z depends on it.
        alpha: weight of the cross-entropy, a number or a schedule. 1 is the notes' loss; the paper's is 0.1 N / N_lab
            for each labelled row of data gone through evenly, and correspondingly less where these recur.
        beta: weight of the unlabelled rows, a number or a schedule. The paper has 1; 0 is the supervised loss.
        site: name of the label's site.
        plate: name of the data plate, where it is not plain.

    Raises:
        ValueError: for weights below 0, a pair without such a site, or with beta=0, in `fit`, for data without labels.

    Source: Kingma et al. 2014, https://arxiv.org/abs/1406.5298, eq. 9 (alpha); the lecture notes, J = L^l + beta L^u.

    >>> SemiSupervised(alpha=0.0).is_bound, SemiSupervised(alpha=1.0).is_bound
    (True, False)
    """

    def __init__(
        self,
        num_particles: int = 1,
        *,
        alpha: Any = 1.0,
        beta: Any = 1.0,
        site: str = "y",
        plate: str | None = None,
    ):
        super().__init__(num_particles, plate=plate)
        self.alpha, self.beta, self.site = weight("alpha", alpha), weight("beta", beta), site

    @property
    def is_bound(self) -> bool:  # type: ignore[override]
        """Whether it is a lower bound on log p(x, y) of the labelled and log p(x) of the other rows: it is the ELBO."""
        weights = (self.alpha, self.beta)
        return not any(hasattr(w, "value") or isinstance(w, Tensor) for w in weights) and weights == (0, 1)

    def check_data(self, data: Any) -> None:
        """Before `fit` starts, refuse to learn from labels alone where there are none, and warn of data without any.

        Args:
            data: a `Split` of the model's arguments, the labels called as the site.
        """
        labels = data.tensors.get(self.site) if hasattr(data, "tensors") else None
        if not isinstance(labels, Tensor) or (labels >= 0).any():
            return
        if not hasattr(self.beta, "value") and not isinstance(self.beta, Tensor) and self.beta == 0:
            raise ValueError(
                f"beta is 0, so that labelled rows count alone, and all {len(labels)} labels of {self.site!r} are -1, "
                "unknown; pass data with labels, or beta=1.0"
            )
        warnings.warn(
            f"all {len(labels)} labels of {self.site!r} are -1, unknown: this is learning without labels, and what y "
            "numbers is arbitrary",
            stacklevel=2,
        )

    def per_datum(self, drawn: Ledger) -> Tensor:
        """The weighted bound and cross-entropy, (B,)."""
        bound = drawn.elbo().mean(0)  # (B,)
        alpha, beta = (getattr(w, "value", w) for w in (self.alpha, self.beta))
        found = [self._labels(draw) for draw in drawn.draws]
        known = found[0][0]
        log_q = torch.stack([value for _, value in found]).mean(0).to(bound)
        return torch.where(known, bound + alpha * log_q, beta * bound)

    def _labels(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Which rows are labelled, (B,), and scaled log q(y | x) of their labels, averaged over particles, (B,)."""
        observed = self._term(draw, f"{self.site}_observed", "observed")
        inferred = self._term(draw, f"{self.site}_unobserved", "guide")
        mask = observed.site["mask"]
        known = torch.as_tensor(True if mask is None else mask, device=observed.log_prob.device).expand(draw.rows)
        log_q = inferred.site["fn"].log_prob(observed.site["value"])  # (..., B)
        return known, (observed.scale * log_q).reshape(-1, draw.rows).mean(0)

    def _term(self, draw: Draw, name: str, kind: str) -> Term:
        found = next((term for term in draw.local if term.name == name and term.kind == kind), None)
        if found is None:
            sites = [term.name for term in draw.local if term.kind == kind]
            side = "guide samples" if kind == "guide" else "model observes"
            raise ValueError(
                f"site={self.site!r}, but the {side} no {name!r} for each datum, only {sites}; pass a pair with "
                "partly observed labels (pyrovae.M2, or obs_mask= in the model), or site= with their name"
            )
        return found
