"""Which dimensions of a latent the data make use of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from pyrovae.evaluation.running import check_counts, evaluating
from pyrovae.evaluation.sites import guide_traces, is_discrete, latent_site, mean_of, rows_first
from pyrovae.models.base import random_sites

__all__ = ["ActiveUnits", "active_layers", "active_units"]


@dataclass
class ActiveUnits:
    """How many dimensions of a latent the data make use of.

    Attributes:
        count: how many have a variance above the threshold.
        variance: Var_x(E_q[z_u | x]) of each dimension (L,).
        kl: mean over data of KL(q(z_u | x) || p(z_u)) of each dimension (L,), nats; None where the KL has no closed
            form that is a sum over dimensions.
        site: the latent.
        threshold: of the variance.
    """

    count: int
    variance: Tensor = field(repr=False)
    kl: Tensor | None = field(repr=False)
    site: str
    threshold: float

    def __str__(self) -> str:
        return f"{self.count} of {len(self.variance)} units of {self.site} active"


def active_units(
    pair: Any,
    data: Any,
    *,
    site: str | None = None,
    threshold: float = 0.01,
    num_samples: int = 100,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> ActiveUnits:
    r"""Which dimensions of a latent depend on the data: A_u = Var_x(E_q[z_u | x]) > threshold.

    Where E_q[z_u | x] is a mean over `num_samples` draws, as it is for a latent that depends on others, their variance
    is subtracted: without that a dead unit of variance 1 has A_u = 1 / num_samples.

    Args:
        pair, data, plate, seed, batch_size: see `log_likelihood`.
        site: a latent whose event is a vector. Default: the first continuous one, in the model's order.
        threshold: of the variance; the paper's.
        num_samples: as for `pyrovae.evaluation.encode`.

    Returns:
        the `ActiveUnits`, on the CPU.

    Raises:
        ValueError: if there is no such site, or fewer than two data.

    Source: Burda, Grosse & Salakhutdinov 2016, https://arxiv.org/abs/1509.00519, section 5.2.
    """
    check_counts(num_samples=num_samples)
    with evaluating(pair, data, plate=plate, seed=seed, batch_size=batch_size) as on:
        if len(on.rows) < 2:
            raise ValueError("data has one row, a variance over data takes two; pass more rows")
        name = latent_site(on, site, vector=True)["name"]
        means, errors, kls = [], [], []
        for run, batch, _ in on:
            values, kl = [], []
            for trace in guide_traces(run, batch, name, num_samples):
                q = trace.nodes[name]
                mean = mean_of(q)
                values.append(rows_first(q["value"] if mean is None else mean, q).double())
                kl.append(_kl_per_unit(run, batch, trace, name))
            drawn = torch.stack(values)  # (1 or num_samples, B, ..., L)
            means.append(drawn.mean(0))
            errors.append(drawn.var(0) / len(drawn) if len(drawn) > 1 else torch.zeros_like(drawn[0]))
            kls.append([each for each in kl if each is not None])
        excess = on.join(means).var(0) - on.join(errors).mean(0)  # (nested plates..., L)
        variance = excess.reshape(-1, excess.size(-1)).mean(0).clamp(min=0).cpu()
        per_unit = None
        if all(kls):
            per_unit = on.join([torch.stack(each).mean(0) for each in kls]).flatten(0, -2).mean(0).cpu()
        return ActiveUnits(int((variance > threshold).sum()), variance, per_unit, name, threshold)


def active_layers(
    pair: Any,
    data: Any,
    *,
    threshold: float = 0.01,
    num_samples: int = 100,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> dict[str, ActiveUnits]:
    """The `active_units` of each latent whose event is a vector, by its site, in the reverse of the model's order.

    That is from the data up: z1, ..., zL. A unit may vary with the data only because what is above it does: its KL from
    p(z_l | z_{l+1}), where it has a closed form, says whether the layer adds anything.

    Args:
        pair, data, threshold, num_samples, plate, seed, batch_size: see `active_units`.

    Returns:
        the `ActiveUnits` of each site.

    Raises:
        ValueError: if there is no such site, or fewer than two data.

    Source: Sonderby et al. 2016, https://arxiv.org/abs/1602.02282, section 3.2.

    >>> from pyrovae.models import LadderVAE
    >>> list(active_layers(LadderVAE(8, latent_dims=(4, 2), hidden=(5,)), torch.rand(3, 8).round()))
    ['z1', 'z2']
    """
    with evaluating(pair, data, plate=plate, seed=seed, batch_size=batch_size) as on:
        fixed, known = on.rows, on.known
        trace = poutine.trace(on.pair.guide).get_trace(*on.batch())
        vectors = [name for name in known.latent[::-1] if _is_vector(trace, name)]
    options: dict[str, Any] = {"threshold": threshold, "num_samples": num_samples, "batch_size": batch_size}
    options |= {"plate": known.plate, "seed": seed}
    found = [active_units(pair, fixed, site=name, **options) for name in vectors or (None,)]  # None: its error
    return {units.site: units for units in found}


def _is_vector(trace: Any, name: str) -> bool:
    site = trace.nodes.get(name)
    return site is not None and site["fn"].event_dim == 1 and not is_discrete(site)


def _kl_per_unit(run: Any, batch: Sequence[Any], guide_trace: Any, name: str) -> Tensor | None:
    """KL(q || p) of each number of a vector, (B, ..., L), where it is known, valid and a sum over these.

    Valid: where all latents that come before the site in the model come before it in the guide.
    """
    trace = poutine.trace(poutine.replay(run.model, trace=guide_trace)).get_trace(*batch)
    before = [[s["name"] for s in random_sites(t) if not s["is_observed"]] for t in (trace, guide_trace)]
    in_model, in_guide = (names[: names.index(name)] for names in before)
    p, q = trace.nodes[name], guide_trace.nodes[name]
    factorises = isinstance(p["fn"], Independent) and isinstance(q["fn"], Independent)
    if not factorises or not set(in_model) <= set(in_guide) or p["mask"] is not q["mask"]:
        return None
    if q["fn"].base_dist.event_shape or p["fn"].base_dist.event_shape:
        return None
    try:
        kl = kl_divergence(q["fn"].base_dist, p["fn"].base_dist)
    except NotImplementedError:
        return None
    return rows_first(kl.expand(q["fn"].shape()), q).double()
