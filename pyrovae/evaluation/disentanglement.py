"""How far single latents stand for single factors of variation: scores of codes against known factors.

Every score takes codes (N, L), of any encoder (`pyrovae.evaluation.encode(pair, data)` gives means of q), and factors
(N, F), one column of values, each a class, for each factor; each is 1 for a code that is its factors, in any order of
latents.

    >>> factors = np.stack(np.unravel_index(np.arange(640) % 64, (4, 4, 4)), 1)
    >>> codes = factors[:, [2, 0, 1]] + 0.0  # each latent is one factor
    >>> shuffled = np.random.default_rng(0).permutation(codes)
    >>> round(mig(codes, factors), 2), round(mig(shuffled, factors), 2)
    (1.0, 0.0)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, mutual_info_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor

from pyrovae.evaluation.running import check_counts

__all__ = ["DCI", "beta_vae_score", "dci", "disentanglement_scores", "factor_vae_score", "mig", "modularity", "sap"]

Array = NDArray[Any]
POINTS = 10  # of each factor at least, so that both halves have points of several


class DCI(NamedTuple):
    """Disentanglement, completeness and informativeness, each in [0, 1]."""

    disentanglement: float
    completeness: float
    informativeness: float


def disentanglement_scores(codes: Tensor | Array, factors: Tensor | Array, *, seed: int = 0) -> dict[str, float]:
    """Every score of this module, by name, with its defaults.

    Args:
        codes, factors: see the module.
        seed: of what is drawn.
    """
    return {
        "beta_vae_score": beta_vae_score(codes, factors, seed=seed),
        "factor_vae_score": factor_vae_score(codes, factors, seed=seed),
        "mig": mig(codes, factors),
        "sap": sap(codes, factors),
        "modularity": modularity(codes, factors),
        **dci(codes, factors, seed=seed)._asdict(),
    }


def beta_vae_score(
    codes: Tensor | Array, factors: Tensor | Array, *, num_points: int = 1000, num_pairs: int = 64, seed: int = 0
) -> float:
    """The beta-VAE score: accuracy of a linear classifier that tells which factor pairs of data share.

    A point is the mean of |z - z'| over pairs of rows that have one factor k in common, and its class is k. Chance is
    1/F. Half of the points train the classifier, the other half are scored.

    Args:
        codes, factors: see the module; rows are paired among these.
        num_points: of both halves together, 10 for each factor at least.
        num_pairs: averaged for each point.
        seed: of the points.

    Raises:
        TypeError, ValueError: for other numbers of points or pairs.

    Source: Higgins et al. 2017, beta-VAE.
    """
    codes, factors = _checked(codes, factors)
    check_counts(num_pairs=num_pairs)
    _check_points(num_points, factors.shape[1])
    generator = np.random.default_rng(seed)
    classes = _balanced(factors.shape[1], num_points, generator)
    points = np.empty((num_points, codes.shape[1]))
    for k in range(factors.shape[1]):
        chosen = classes == k
        first = generator.integers(len(codes), size=(chosen.sum(), num_pairs))
        second = _sharing(factors[:, k], first, generator)
        points[chosen] = np.abs(codes[first] - codes[second]).mean(1)
    if factors.shape[1] == 1:
        return 1.0
    half = num_points // 2
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    classifier.fit(points[:half], classes[:half])
    return float(accuracy_score(classes[half:], classifier.predict(points[half:])))


def factor_vae_score(
    codes: Tensor | Array, factors: Tensor | Array, *, num_points: int = 1000, num_rows: int = 64, seed: int = 0
) -> float:
    """The FactorVAE score: how well the latent that varies least tells which factor is held fixed.

    A point is the latent of least variance, each in units of its variance over all rows, among rows that share the
    value of a factor k; its class is k. A majority vote for each latent is the classifier; the points that make the
    votes are not scored. Latents that do not vary at all take no part. Chance is 1/F.

    Args:
        codes, factors: see the module; rows are drawn among these.
        num_points: half for the votes, half to score; 10 for each factor at least.
        num_rows: of each point, 2 at least.
        seed: of the points.

    Raises:
        TypeError, ValueError: for other numbers of points or rows.

    Source: Kim & Mnih 2018, https://arxiv.org/abs/1802.05983.
    """
    codes, factors = _checked(codes, factors)
    check_counts(num_rows=num_rows)
    _check_points(num_points, factors.shape[1])
    if num_rows < 2:
        raise ValueError(f"num_rows is {num_rows}, a variance needs 2; pass num_rows=64, say")
    spread = codes.var(0)
    if not (spread > 0).any():
        return 1 / factors.shape[1]
    generator = np.random.default_rng(seed)
    scaled = codes[:, spread > 0] / np.sqrt(spread[spread > 0])
    classes = _balanced(factors.shape[1], num_points, generator)
    least = np.empty(num_points, dtype=int)
    for k in range(factors.shape[1]):
        chosen = classes == k
        first = generator.integers(len(codes), size=(chosen.sum(), 1))
        rows = _sharing(factors[:, k], np.repeat(first, num_rows, 1), generator)
        least[chosen] = scaled[rows].var(1).argmin(1)
    half = num_points // 2
    votes = np.zeros((scaled.shape[1], factors.shape[1]))
    np.add.at(votes, (least[:half], classes[:half]), 1)
    return float(accuracy_score(classes[half:], votes.argmax(1)[least[half:]]))


def mig(codes: Tensor | Array, factors: Tensor | Array, *, bins: int = 20) -> float:
    """Mutual information gap: by how much the best latent of each factor tells more of it than the second best.

        mean over k of (I(z_(1); v_k) - I(z_(2); v_k)) / H(v_k)

    Args:
        codes, factors: see the module.
        bins: of equal width, into which each latent is sorted.

    Source: Chen, Li, Grosse & Duvenaud 2018, eq. 6; the bins are those of Locatello et al. 2019.
    """
    codes, factors = _checked(codes, factors)
    return _gap(_information(codes, factors, bins) / _entropies(factors))


def sap(codes: Tensor | Array, factors: Tensor | Array, *, categorical: Iterable[int] = ()) -> float:
    """Separated attribute predictability: by how much the best single latent predicts a factor better than the next.

    A factor with an order is predicted linearly and scored by R^2. A categorical one is predicted by thresholds on the
    latent, as many as it has classes less one, and scored by balanced accuracy, from 0 at chance to 1: the paper's
    goes from 1/C, so that no code would have a gap of 1.

    Args:
        codes, factors: see the module.
        categorical: columns of factors whose values have no order.

    Source: Kumar, Sattigeri & Balakrishnan 2018, https://arxiv.org/abs/1711.00848.
    """
    values = _array(factors)
    codes, factors = _checked(codes, factors)
    without_order = set(categorical)
    if outside := without_order - set(range(factors.shape[1])):
        raise ValueError(f"categorical has {sorted(outside)}, factors has columns 0 to {factors.shape[1] - 1}")
    scores = np.zeros((codes.shape[1], factors.shape[1]))
    for k, factor in enumerate(factors.T):
        for j, code in enumerate(codes.T):
            if code.std() == 0:
                continue
            if k in without_order:
                tree = DecisionTreeClassifier(
                    max_leaf_nodes=len(np.unique(factor)), class_weight="balanced", random_state=0
                )
                predicted = tree.fit(code[:, None], factor).predict(code[:, None])
                scores[j, k] = balanced_accuracy_score(factor, predicted, adjusted=True)
            else:
                scores[j, k] = np.corrcoef(code, values[:, k])[0, 1] ** 2
    return _gap(scores)


def dci(codes: Tensor | Array, factors: Tensor | Array, *, num_trees: int = 50, seed: int = 0) -> DCI:
    """Disentanglement, completeness, informativeness.

    A random forest predicts each factor from all latents; R (L, F) are its importances. A latent is disentangled where
    its row of R has one factor, a factor complete where its column has one latent: 1 - the entropy of each, in units
    of its largest; latents are averaged by their share of R. Informativeness is the forest's accuracy on other rows,
    from 0 at chance (the commonest class) to 1.

    Args:
        codes, factors: see the module.
        num_trees: of each forest.
        seed: of forests, and of the quarter of rows that they are scored on.

    Source: Eastwood & Williams 2018, a framework for disentangled representations. Their informativeness is an error.
    """
    codes, factors = _checked(codes, factors, at_least=4)  # of which one is scored
    check_counts(num_trees=num_trees)
    order = np.random.default_rng(seed).permutation(len(codes))
    train, test = order[len(order) // 4 :], order[: len(order) // 4]
    importance = np.zeros((codes.shape[1], factors.shape[1]))
    informative = []
    for k, factor in enumerate(factors.T):
        # With all latents at each split: a choice among a few would credit useless ones.
        forest = RandomForestClassifier(num_trees, max_features=None, min_samples_leaf=2, random_state=seed)
        forest.fit(codes[train], factor[train])
        importance[:, k] = forest.feature_importances_
        chance = np.unique(factor[test], return_counts=True)[1].max() / len(test)
        accuracy = accuracy_score(factor[test], forest.predict(codes[test]))
        informative.append(max(0.0, (accuracy - chance) / (1 - chance)) if chance < 1 else 1.0)
    return DCI(_one_sided(importance), _one_sided(importance.T, weigh=False), float(np.mean(informative)))


def modularity(codes: Tensor | Array, factors: Tensor | Array, *, bins: int = 20) -> float:
    """Modularity: whether each latent has information about one factor only.

        mean over latents of 1 - sum_{k != best} I(z_j; v_k)^2 / (max_k I(z_j; v_k)^2 (F - 1))

    Latents without any information have none to share and are left out; without any other the score is 0. It says
    nothing about how much a latent knows: a code of noise, whose estimated informations differ by chance, is above 0.

    Args:
        codes, factors: see the module.
        bins: as for `mig`.

    Source: Ridgeway & Mozer 2018, https://arxiv.org/abs/1802.05312.
    """
    codes, factors = _checked(codes, factors)
    return _modularity(_information(codes, factors, bins))


def _modularity(information: Array) -> float:
    """Of informations (L, F)."""
    best = information.max(1)
    active = best > 1e-12
    if not active.any():
        return 0.0
    if information.shape[1] == 1:
        return 1.0
    squares = information[active] ** 2
    others = squares.sum(1) - best[active] ** 2
    return float((1 - others / (best[active] ** 2 * (information.shape[1] - 1))).mean())


def _one_sided(importance: Array, *, weigh: bool = True) -> float:
    """1 - the entropy of each row, in units of its largest; rows weighed by their sums, or alike."""
    sums = importance.sum(1)
    if not (sums > 0).any():
        return 0.0
    if importance.shape[1] == 1:
        return 1.0
    shares = importance[sums > 0] / sums[sums > 0, None]
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    scores = 1 + (shares * logs).sum(1) / np.log(importance.shape[1])
    return float(np.average(scores, weights=sums[sums > 0] if weigh else None))


def _gap(scores: Array) -> float:
    """Of scores (L, F): largest less second largest in each column, averaged."""
    ordered = np.sort(np.concatenate([np.zeros_like(scores[:1]), scores]), axis=0)
    return float((ordered[-1] - ordered[-2]).mean())


def _information(codes: Array, factors: Array, bins: int) -> Array:
    """I(z_j; v_k) in nats, (L, F), of latents sorted into bins of equal width."""
    check_counts(bins=bins)
    if bins < 2:
        raise ValueError(f"bins is {bins}; a latent in one bin tells nothing, pass bins=20")
    sorted_ = [np.digitize(code, np.histogram_bin_edges(code, bins)[1:-1]) for code in codes.T]
    return np.array([[mutual_info_score(code, factor) for factor in factors.T] for code in sorted_])


def _entropies(factors: Array) -> Array:
    return np.array([mutual_info_score(factor, factor) for factor in factors.T])


def _check_points(num_points: int, num_factors: int) -> None:
    check_counts(num_points=num_points)
    if num_points < POINTS * num_factors:
        raise ValueError(
            f"num_points is {num_points} for {num_factors} factors, {POINTS} for each are the least that half of them "
            "can score; pass num_points=1000, say"
        )


def _balanced(num_classes: int, count: int, generator: np.random.Generator) -> Array:
    """Each class as often as the others, in random order."""
    return generator.permutation(np.arange(count) % num_classes)


def _sharing(factor: Array, rows: Array, generator: np.random.Generator) -> Array:
    """For each row another one, or itself, with the same value of a factor."""
    order = np.argsort(factor, kind="stable")
    _, group, counts = np.unique(factor, return_inverse=True, return_counts=True)
    starts = np.cumsum(counts) - counts
    of = group[rows]
    return order[starts[of] + (generator.random(rows.shape) * counts[of]).astype(int)]


def _checked(codes: Tensor | Array, factors: Tensor | Array, *, at_least: int = 2) -> tuple[Array, Array]:
    """Codes, and the values of each factor as classes 0, 1, ... in their order."""
    codes, factors = _array(codes), _array(factors)
    shaped = codes.ndim == factors.ndim == 2 and codes.shape[1] > 0
    if not shaped or len(codes) != len(factors) or len(codes) < at_least:
        raise ValueError(
            f"codes have shape {codes.shape} and factors {factors.shape}; pass (N, latents), one at least, and "
            f"(N, factors) of the same N rows, at least {at_least}"
        )
    if not np.isfinite(codes).all():
        raise ValueError("codes are not finite; leave out rows with NaN or infinity")
    if factors.dtype.kind == "f" and not np.isfinite(factors).all():
        unknown = [k for k, factor in enumerate(factors.T) if not np.isfinite(factor).all()]
        raise ValueError(f"factors {unknown} are not finite; leave out rows with NaN or infinity")
    # scikit-learn takes numbers that are not whole for those of a regression
    classes = [np.unique(factor, return_inverse=True)[1] for factor in factors.T]
    constant = [k for k, column in enumerate(classes) if not column.any()]
    if constant or not classes:
        raise ValueError(f"factors {constant} of {len(classes)} never change; leave out their columns")
    return codes.astype(float), np.stack(classes, 1)


def _array(values: Tensor | Array) -> Array:
    return np.asarray(values.detach().cpu().double() if isinstance(values, Tensor) else values)  # no half precision
