"""Clusters that a pair finds: what it assigns data to, and how well that agrees with labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.evaluation.chunks import check_support
from pyrovae.evaluation.running import Evaluation, check_counts, evaluating
from pyrovae.evaluation.sites import latent_site
from pyrovae.objectives.dreams import uncondition
from pyrovae.objectives.mean_field import probabilities
from pyrovae.objectives.weights import ledger

__all__ = [
    "Components",
    "ari",
    "assign_clusters",
    "cluster_accuracy",
    "cluster_site",
    "components",
    "nmi",
    "responsibilities",
]

Labels = Tensor | Sequence[Any] | np.ndarray


def responsibilities(
    pair: Any,
    data: Any,
    *,
    site: str | None = None,
    num_samples: int = 10,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    r"""The probabilities of a datum's clusters: E_q(z|x) p(c | x, z) of a site c that the model enumerates.

    Of a site that the guide enumerates they are its q(c | x). They are derivatives of the bound by log p(c).

    Args:
        pair, data, plate, seed, batch_size: see `evaluating`.
        site: a discrete site marked `infer={"enumerate": "parallel"}`. Default: the only one.
        num_samples: draws of z that the mean is taken over; where the guide samples nothing one is exact.

    Returns:
        (N, nested plates..., C), each row a distribution.

    Raises:
        ValueError: if there is no such site, or several to choose from; for data that the likelihood cannot give.

    >>> from pyrovae.models import VaDE
    >>> responsibilities(VaDE(6, 2, 3, hidden=(5,)), torch.rand(8, 6).round()).sum(-1).round(decimals=5).unique()
    tensor([1.])
    """
    check_counts(num_samples=num_samples)
    with evaluating(pair, data, plate=plate, seed=seed, batch_size=batch_size) as on:
        name = cluster_site(on, site)
        sampled = set(on.known.latent) - set(on.known.enumerated)
        count = num_samples if sampled else 1
        parts = []
        for run, batch, _ in on:
            check_support(on, batch)
            total: Tensor | float = 0.0
            for _ in range(count):
                draw = ledger(run, *batch, known=on.known).draws[0]
                total = total + probabilities(draw, draw.shares()[1])[name]  # (nested plates..., B, C)
            assert isinstance(total, Tensor)
            parts.append((total / count).movedim(-2, 0))
        return on.join(parts)


def assign_clusters(pair: Any, data: Any, **options: Any) -> Tensor:
    """The likeliest cluster of each datum, (N, nested plates...); arguments as for `responsibilities`."""
    return responsibilities(pair, data, **options).argmax(-1)


class Components(NamedTuple):
    """A mixture in the latent space: p(c), and mean and covariance of p(z | c)."""

    weights: Tensor
    loc: Tensor
    covariance: Tensor
    samples: dict[str, Tensor]


def components(
    pair: Any, data: Any, *, site: str | None = None, latent: str | None = None, plate: str | None = None, seed: int = 0
) -> Components:
    """p(c) and p(z | c), of a latent vector z whose prior depends on an enumerated site c, at the first datum.

    Args:
        pair, data, plate, seed: see `evaluating`; of the data only the first row counts.
        site: c, as for `responsibilities`.
        latent: z. Default: the first continuous vector that the guide samples.

    Returns:
        weights (C,), loc (C, L), covariance (C, L, L), and the values of c, (C, ...), by the site's name, as
        `generate(fixed=)` takes them one by one.

    Raises:
        ValueError: if there are no such sites, or z does not depend on c.
    """
    with evaluating(pair, data, plate=plate, seed=seed, batch_size=2) as on:
        name, latent = cluster_site(on, site), latent_site(on, latent, dims=(1,))["name"]
        model, batch = uncondition(on.pair.model), on.batch()
        at = poutine.trace(model).get_trace(*batch).nodes[name]
        values = at["fn"].enumerate_support()  # (C, nested plates..., B, *event)
        if at["fn"].batch_shape != (len(batch[0]),):
            raise ValueError(f"site {name!r} lies in nested plates, so that no datum has one cluster; name another")
        found = []
        for value in values:
            fn = poutine.trace(poutine.condition(model, data={name: value})).get_trace(*batch).nodes[latent]["fn"]
            correlated = hasattr(fn, "covariance_matrix")
            covariance = fn.covariance_matrix[0] if correlated else fn.variance[0].diag_embed()
            found.append((at["fn"].log_prob(value).exp()[0], fn.mean[0], covariance))
        weights, loc, covariance = (torch.stack(part) for part in zip(*found, strict=True))
        if (loc == loc[:1]).all() and (covariance == covariance[:1]).all() and len(values) > 1:
            raise ValueError(f"latent {latent!r} does not depend on {name!r}; name another site or latent")
        return Components(weights, loc, covariance, {name: values[:, 0]})


def cluster_site(on: Evaluation, name: str | None = None) -> str:
    """The enumerated latent site that is meant: by name, or the only one.

    Raises:
        ValueError: if there is none, or there are several; it names them.
    """
    found = [site for site in on.known.latent if site in on.known.enumerated]
    if name is None and len(found) == 1:
        return found[0]
    if name is None or name not in found:
        asked = "no site is named" if name is None else f"site={name!r} is none of them"
        fix = "pass site= with one of them" if found else 'mark a discrete one infer={"enumerate": "parallel"}'
        raise ValueError(f"the pair enumerates {found or 'no site'} (latents {list(on.known.latent)}), {asked}; {fix}")
    return name


def cluster_accuracy(labels: Labels, assigned: Labels) -> float:
    """The share of data whose cluster is their label's, under the best one-to-one matching of clusters and labels.

    A cluster beyond the number of labels is matched to none, and all its data count as wrong.

    Args:
        labels: the truth, (N,): whole numbers or names. A datum of label -1, unknown, is left out.
        assigned: clusters, (N,): likewise, in any numbering and number; -1 is a cluster like the others.

    Returns:
        in (0, 1], 1 where clusters are labels but for their names.

    Raises:
        ValueError: where labels and assigned differ in length, or no label is known.

    Source: Yang et al. 2010, https://doi.org/10.1109/TIP.2010.2049235, as DEC and VaDE report it; Kuhn 1955.

    >>> cluster_accuracy([0, 0, 1, 1, 2], ["b", "b", "a", "a", "a"])
    0.8
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics.cluster import contingency_matrix  # it takes half a second, and few use it

    counts = contingency_matrix(*_pair_of("labels", labels, assigned))
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / counts.sum())


def nmi(labels: Labels, assigned: Labels) -> float:
    """Normalised mutual information of labels and clusters, I(y; c) / ((H(y) + H(c)) / 2); 1 where they are the same.

    Args:
        labels, assigned: as for `cluster_accuracy`.

    Raises:
        ValueError: as for `cluster_accuracy`.

    Source: scikit-learn's `normalized_mutual_info_score`, the arithmetic mean.

    >>> nmi([0, 0, 1, 1], [5, 5, 3, 3]), nmi([0, 0, 1, 1], [0, 1, 0, 1])
    (1.0, 0.0)
    """
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(*_pair_of("labels", labels, assigned)))


def ari(labels: Labels, assigned: Labels) -> float:
    """Adjusted Rand index: agreement on pairs of data, 0 on average for random clusters and 1 for the labels' own.

    Args:
        labels, assigned: as for `cluster_accuracy`.

    Raises:
        ValueError: as for `cluster_accuracy`.

    Source: Hubert & Arabie 1985; scikit-learn's `adjusted_rand_score`.

    >>> ari([0, 0, 1, 1], [5, 5, 3, 3])
    1.0
    """
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(*_pair_of("labels", labels, assigned)))


def _pair_of(name: str, labels: Labels, assigned: Labels) -> tuple[np.ndarray, np.ndarray]:
    first, second = (
        value.numpy(force=True) if isinstance(value, Tensor) else np.asarray(value) for value in (labels, assigned)
    )
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ValueError(
            f"{name} has shape {first.shape} and assigned {second.shape}; pass one label and one cluster for each datum"
        )
    known = first != -1 if first.dtype.kind in "iuf" else np.full(len(first), fill_value=True)
    if not known.any():
        raise ValueError(f"all {len(first)} {name} are -1, unknown, so that nothing agrees; pass known ones")
    return first[known], second[known]
