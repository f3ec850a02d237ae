"""What a guide says of a discrete latent: q(y | x), its most probable value, and how often that is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyrovae.data import Split
from pyrovae.evaluation.running import Evaluation, check_counts, evaluating
from pyrovae.models.base import random_sites

__all__ = ["classification_error", "classify", "enumerated_site"]


def classify(
    pair: Any,
    data: Any,
    *,
    site: str | None = None,
    num_samples: int = 1,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """Probabilities q(y | x) of each value of a latent that the guide enumerates, for each datum.

    Args:
        pair, data, plate, seed, batch_size: see `evaluating`. A model that takes labels gets those of the data, or
            `(x, torch.full((len(x),), -1))` where there are none: q(y | x) of `M2` does not see them.
        site: name of the latent; "y" is also y_unobserved. Default: the only one.
        num_samples: draws of the latents that q(y | .) is given, if any, to average over: z1 of `StackedM2`.

    Returns:
        (N, C), rows that sum to 1.

    Raises:
        ValueError: if the guide enumerates no such site, or several.

    >>> from pyrovae.models import M2
    >>> x, y = torch.rand(5, 8).round(), torch.tensor([0, 2, -1, -1, -1])
    >>> classify(M2(8, 2, num_classes=3), (x, y)).sum(1).sub(1).abs().max().item() < 1e-6
    True
    """
    check_counts(num_samples=num_samples)
    with evaluating(pair, data, plate=plate, seed=seed, batch_size=batch_size) as on:
        name = enumerated_site(on, site)
        parts = []
        for run, batch, _ in on:
            traces = (poutine.trace(run.guide).get_trace(*batch) for _ in range(num_samples))
            parts.append(torch.stack([_probabilities(trace, name) for trace in traces]).mean(0))
        return on.join(parts)


def classification_error(
    pair: Any,
    data: Any,
    *,
    label: str = "y",
    site: str | None = None,
    num_samples: int = 1,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> float:
    """The fraction of labelled rows whose label is not the most probable y under q(y | x).

    Args:
        pair, data, site, num_samples, plate, seed, batch_size: see `classify`.
        label: name of the labels in the data, -1 where unknown: those rows are left out.

    Returns:
        between 0 and 1.

    Raises:
        ValueError: for data without labels, by that name or at all.
    """
    on = Evaluation(pair, data, plate=plate, seed=seed)
    if not isinstance(on.rows, Split) or label not in on.rows.fields:
        raise ValueError(f"the data have {', '.join(on.rows.fields)} and no {label!r} in memory; pass label=")
    labels = on.rows[label]
    known = labels >= 0
    if not known.any():
        raise ValueError(f"all {len(labels)} labels are -1, unknown, and there is no error; pass labelled data")
    q = classify(pair, data, site=site, num_samples=num_samples, plate=plate, seed=seed, batch_size=batch_size)
    if labels.max() >= q.size(1):
        raise ValueError(f"{label} has label {int(labels.max())}, q(y | x) is of {q.size(1)} values; count from 0")
    return (q.argmax(1).to(labels.device) != labels)[known].double().mean().item()


def enumerated_site(on: Evaluation, name: str | None = None) -> str:
    """The name of the latent that the guide enumerates, or of the one that is named.

    Raises:
        ValueError: if there is none, or several and no name.
    """
    sites = list(_enumerated(poutine.trace(on.pair.guide).get_trace(*on.batch())))
    found = sites if name is None else [s for s in sites if s in (name, f"{name}_unobserved")]
    if len(found) != 1:
        asked = "no site is named" if name is None else f"site is {name!r}"
        raise ValueError(
            f"{asked}, the guide enumerates {sites or 'none'}; pass site= with one of them, or mark it "
            'infer={"enumerate": "parallel"} in the guide'
        )
    return found[0]


def _enumerated(trace: Trace) -> Iterator[str]:
    return (site["name"] for site in random_sites(trace) if site["infer"].get("enumerate") == "parallel")


def _probabilities(trace: Trace, name: str) -> Tensor:
    fn = trace.nodes[name]["fn"]
    return fn.log_prob(fn.enumerate_support(expand=False)).exp().movedim(0, -1)  # (B, C)
