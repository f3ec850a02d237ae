"""Guides without an encoder: a factorised q with a row of parameters for each datum, for any model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import constraints

from pyrovae.distributions.supports import bijection, bounds, unmixed, with_bounds
from pyrovae.models.base import Functions, Pair, isolated_random_state, random_sites, structure

__all__ = ["MeanField", "latent_sites", "substituted"]


class MeanField(Pair):
    r"""A model of yours with local variational parameters: a row lambda_n for each datum n, nothing amortised.

        q(z | n) = prod over sites i of q_i(z_i; lambda_ni)

    q_i is a diagonal Normal over the reals, carried to the support of the site by `torch.distributions.biject_to` (one
    that depends on sites before it makes q_i depend on them); for a discrete site it is of the site's own family,
    enumerated, but sites that the model marks `infer={"enumerate": "parallel"}` are left to it, to be summed exactly.
    Sites outside the data plate have one factor for all data. It starts at the standard Normal and at uniform
    probabilities.

    The batch is the model's own with the row numbers after it, so that mini-batches find their rows: train it as
    `fit(pair, (x, torch.arange(len(x))))`, with stock SVI, or by turns of guide and model with `fit_em`. Adam's
    momentum also moves rows that are not in a batch.

    Args:
        model: a Pyro model; it keeps its own parameters.
        data: all N rows of what the model is called with, which give shapes, dtype and device; where they are whole
            numbers alone, the dtype is that of the latents.
        plate: name of the data plate, where it is not plain.

    Shapes: batch as the model's, then rows (B,) integers.

    Raises:
        ValueError: for discrete sites with events, and others than Categorical, OneHotCategorical and Bernoulli ones.

    Source: Hoffman, Blei, Wang & Paisley 2013 (local variational parameters); Kucukelbir et al. 2017 (the transform).

    >>> import pyro
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> x = torch.linspace(-1.0, 1.0, 5)
    >>> pair = MeanField(model, x)
    >>> pair.factor("z", torch.tensor([0, 3])).batch_shape
    torch.Size([2])
    """

    def __init__(self, model: Callable[..., Any], *data: Tensor, plate: str | None = None):
        super().__init__()
        prior = poutine.block(model, hide_fn=lambda site: bool(site.get("is_observed")))
        known = structure(Functions(model, prior), *data, plate=plate)
        self.__dict__["_original"] = model  # not as a submodule, which would rename its parameters in the store
        sites, again = (latent_sites(model, *data, seed=seed) for seed in (0, 1))
        self._sites = list(sites)
        values = [*data, *(site["value"] for site in sites.values())]
        like = next((v for v in values if v.is_floating_point()), values[0].to(torch.get_default_dtype()))
        self.factors = nn.ModuleList(
            [_Factor(s, again[name], like, local=name not in known.global_latent) for name, s in sites.items()]
        )

    def model(self, *batch: Tensor) -> None:
        """The model, without the row numbers."""
        self._original(*batch[:-1])

    def guide(self, *batch: Tensor) -> None:
        """The factors of these rows, in the model's plates."""
        factors = {name: partial(factor, batch[-1]) for name, factor in zip(self._sites, self.factors, strict=True)}
        config_enumerate(substituted(self._original, factors), "parallel")(*batch[:-1])

    def factor(self, name: str, rows: Tensor) -> dist.Distribution:
        """q of one site at these rows of the data, its batch shape (nested plates..., B).

        Raises:
            ValueError: where the site's support depends on other latents.
        """
        factor: Any = self.factors[self._sites.index(name)]
        return factor.at(rows)

    def restart(self, *batch: Tensor) -> None:
        """Put the parameters of a batch's rows back to where all started."""
        factor: Any
        for factor in self.factors:
            factor.restart(batch[-1])


class _Factor(nn.Module):
    """q of one site, with a row of parameters for each datum at the last dim of its batch."""

    def __init__(self, site: dict[str, Any], again: dict[str, Any], like: Tensor, *, local: bool):
        super().__init__()
        self.name, fn = site["name"], site["fn"]
        self.local, self.batch_dims = local, len(fn.batch_shape)
        self.family = next(
            (f for f in (dist.Bernoulli, dist.OneHotCategorical, dist.Categorical) if isinstance(fn, f)), None
        )
        if self.family is not None:
            values = fn.logits.shape[len(fn.batch_shape) :]  # () for Bernoulli
            self.logits = nn.Parameter(like.new_zeros(fn.batch_shape + values))
            return
        if fn.support.is_discrete:
            raise ValueError(
                f"site {site['name']!r} is {type(fn).__name__}, and MeanField has factors of discrete sites for "
                "Categorical, OneHotCategorical and Bernoulli without .to_event only; mark it "
                'infer={"enumerate": "parallel"} or write a guide'
            )
        self.support, other = (unmixed(self.name, s["fn"].support) for s in (site, again))
        self.real = _is_real(self.support)
        self.fixed = all(torch.equal(a, b) for a, b in zip(bounds(self.support), bounds(other), strict=True))
        shape = fn.batch_shape + fn.event_shape
        self.dims = len(shape)
        shape = shape if self.real else bijection(self.name, fn.support).inverse_shape(shape)
        self.loc = nn.Parameter(like.new_zeros(shape))
        self.log_scale = nn.Parameter(like.new_zeros(shape))

    def at(self, rows: Tensor) -> dist.Distribution:
        """q at these rows of all data."""
        if self.family is not None or self.real:
            return self._on(rows, None)
        if not self.fixed:
            raise ValueError(
                f"the support of site {self.name!r} depends on other latents, which rows do not tell; take q from "
                "pyro.poutine.trace(pair.guide).get_trace(*batch)"
            )
        return self._on(rows, with_bounds(self.support, lambda bound: self._of_rows(bound, rows)))

    def forward(self, rows: Tensor, fn: Any) -> dist.Distribution:
        """q at these rows, where the model has the distribution `fn`, whose support is that of the rows."""
        return self._on(rows, fn.support)

    def _of_rows(self, bound: Tensor, rows: Tensor) -> Tensor:
        dim = self.batch_dims - 1 - self.dims  # from the right
        bound = bound.to(rows.device)
        return bound.index_select(dim, rows) if self.local and bound.dim() >= -dim and bound.size(dim) > 1 else bound

    def _on(self, rows: Tensor, support: Any) -> dist.Distribution:
        loc, *more = (p.index_select(self.batch_dims - 1, rows) if self.local else p for p in self.parameters())
        if self.family is not None:
            return self.family(logits=loc)
        normal = dist.Normal(loc, more[0].exp()).to_event(loc.dim() - self.batch_dims)
        return normal if self.real else dist.TransformedDistribution(normal, [bijection(self.name, support)])

    def restart(self, rows: Tensor) -> None:
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.index_fill_(self.batch_dims - 1, rows, 0.0) if self.local else parameter.zero_()


def _is_real(support: Any) -> bool:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support is constraints.real


def latent_sites(model: Callable[..., Any], *batch: Any, seed: int | None = None) -> dict[str, dict[str, Any]]:
    """Pyro's records of a model's latent sites, but for those that it marks to be summed, from a run of its prior."""
    with isolated_random_state(seed), torch.no_grad():
        trace = poutine.trace(model).get_trace(*batch)
    return {
        site["name"]: site
        for site in random_sites(trace)
        if not site["is_observed"] and site["infer"].get("enumerate") != "parallel"
    }


Factors = Mapping[str, Callable[[Any], dist.Distribution]]  # of each site, what q is where the model has this


def substituted(model: Callable[..., Any], factors: Factors) -> Callable[..., Any]:
    """A guide that is the model with other distributions at these sites, in the same plates, and no other sites.

    Each is a function of the model's own there. Masks, scales and subsampling that the model puts around a site hold
    for the guide's too.
    """

    def hidden(site: dict[str, Any]) -> bool:
        if site["type"] == "sample":
            return site["name"] not in factors and not site_is_subsample(site)
        return site["type"] == "param"

    return poutine.block(_Substitute(factors)(model), hide_fn=hidden)


class _Substitute(Messenger):
    def __init__(self, factors: Factors):
        super().__init__()
        self.factors = factors

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.factors:
            msg["fn"] = self.factors[msg["name"]](msg["fn"])
