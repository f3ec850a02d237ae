"""Mixtures, summed exactly: of Normals, and of products of categoricals or bits (latent classes)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pyrovae.distributions import Bernoulli
from pyrovae.models.base import Pair
from pyrovae.models.vae import filled
from pyrovae.nets import as_shape, as_size, leading_shape
from pyrovae.priors.covariances import DiagonalCovariance, with_data

__all__ = ["CategoricalMixture", "GaussianMixture", "Mixture"]


class Mixture(Pair):
    r"""Base of the mixtures: a component c for each datum, which the model sums, so that nothing is left for a guide.

        c ~ Cat(pi)        x | c ~ p(x | c)

    Args:
        event_shape: shape of one x.
        num_components: C.

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers.
    """

    def __init__(self, event_shape: int | Sequence[int], num_components: int) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        self.num_components = as_size(num_components, "num_components")

    @abstractmethod
    def maximize(self, responsibilities: Mapping[str, Tensor], x: Tensor) -> None:
        """The M-step in closed form, for `pyrovae.fit_em(pair, x, m_step=pair.maximize)`.

        Args:
            responsibilities: q of each enumerated site, here {"c": (N, C)}.
            x: all the data, (N, *event_shape).
        """

    @property
    @abstractmethod
    def component_weights(self) -> Tensor:
        """pi, (C,)."""

    @property
    @abstractmethod
    def component_means(self) -> Tensor:
        """E[x | c], (C, *event_shape)."""

    def points(self, x: Tensor) -> Tensor:
        """The data as vectors, for k-means: (N, D)."""
        return x.flatten(1)

    def initialise_(self, x: Tensor, responsibilities: Tensor | None = None, *, seed: int = 0) -> Self:
        """Start from a partition of the data: one M-step, at scikit-learn's k-means or at responsibilities of yours.

        Args:
            x: training data (N, *event_shape).
            responsibilities: (N, C), each row of sum 1; by default those of k-means, 0 or 1.
            seed: of k-means.

        Returns:
            This pair.

        Raises:
            ValueError: for data of another shape, fewer data than components, or responsibilities that are none.
        """
        rows = leading_shape(x, self.event_shape)
        if len(rows) != 1:
            raise ValueError(f"x has shape {tuple(x.shape)}, wanted one dim before its event; pass rows of data")
        self.check_size(len(x))
        if responsibilities is None:
            from sklearn.cluster import KMeans  # it takes half a second, and few use it

            means = KMeans(self.num_components, n_init=1, random_state=seed).fit(self.points(x).cpu().numpy())
            labels = torch.as_tensor(means.labels_, device=x.device).long()
            responsibilities = one_hot(labels, self.num_components).to(self.component_weights)
        wanted = len(x), self.num_components
        if responsibilities.shape != wanted or not torch.allclose(
            responsibilities.sum(1), responsibilities.new_ones(()), atol=1e-4
        ):
            raise ValueError(
                f"responsibilities have shape {tuple(responsibilities.shape)}, wanted are {wanted}, each row of sum 1; "
                "pass probabilities, or leave them out for k-means"
            )
        self.maximize({"c": responsibilities}, x)
        return self

    def check_size(self, rows: int) -> None:
        """Refuse fewer data than components, before `fit` starts.

        Raises:
            ValueError: naming both.
        """
        if rows < self.num_components:
            raise ValueError(
                f"num_components is {self.num_components} and the data have {rows} rows; pass num_components<={rows}"
            )


class _Summed(Mixture):
    """A mixture with pi as parameters."""

    def __init__(self, event_shape: int | Sequence[int], num_components: int) -> None:
        super().__init__(event_shape, num_components)
        self.logits = nn.Parameter(torch.zeros(self.num_components))

    @abstractmethod
    def component(self, c: Tensor) -> dist.TorchDistribution:
        """p(x | c), for components c of any shape."""

    def model(self, x: Tensor) -> None:
        """c ~ Cat(pi), x | c ~ p(x | c), for each row of x."""
        leading_shape(x, self.event_shape)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            pyro.sample("x", self.component(c), obs=x)

    def guide(self, x: Tensor) -> None:
        """Nothing: c is summed."""

    def weigh_(self, responsibilities: Tensor) -> None:
        """Set pi to the mean of the responsibilities (N, C)."""
        self.check_size(len(responsibilities))
        with torch.no_grad():
            self.logits.copy_(floored_log(responsibilities.mean(0)))

    @property
    def component_weights(self) -> Tensor:
        return self.logits.softmax(-1)


class GaussianMixture(_Summed):
    r"""Mixture of Normals.

        c ~ Cat(pi)        x | c ~ N(mu_c, Sigma_c)        log p(x) = log sum_c pi_c N(x; mu_c, Sigma_c)

    c is summed, so that the ELBO is log p(x) exactly: `pyrovae.fit(pair, x)` is maximum likelihood by gradients, and
    `pyrovae.fit_em(pair, x, m_step=pair.maximize)` by EM. Components start at means drawn from N(0, I): call
    `initialise_(x)` to start from k-means. `pyrovae.exact_posterior(pair, x).responsibilities["c"]` is p(c | x).

    The density is one of real x: of data on a grid, only the covariances' floor bounds it.

    Args:
        event_shape: shape of one x.
        num_components: C.
        covariance: made by `covariance(num_components, event_shape)`: `DiagonalCovariance`, or for vectors
            `FullCovariance`, `TiedCovariance`.

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers, and as the covariance.

    Shapes: x (B, *event_shape), c (B,).
    Source: Bishop 2006, section 9.2.

    >>> import pyrovae as pv
    >>> from pyrovae.evaluation import generate
    >>> from pyrovae.priors.covariances import FullCovariance
    >>> ends = torch.tensor([[0.0, 0.0], [8.0, 8.0]])
    >>> x = (ends[:, None] + torch.randn(2, 50, 2, generator=torch.Generator().manual_seed(0))).flatten(0, 1)
    >>> pair = GaussianMixture(2, 2, covariance=FullCovariance).initialise_(x)
    >>> run = pv.fit_em(pair, x, m_step=pair.maximize, max_epochs=5)
    >>> pair.component_means.sort(0).values.abs().round().tolist()
    [[0.0, 0.0], [8.0, 8.0]]
    >>> pv.exact_posterior(pair, ends).responsibilities["c"].max(1).values.round()
    tensor([1., 1.])
    >>> generate(pair, 3, like=x, sample=True).shape
    torch.Size([3, 2])
    """

    continuous = True

    def __init__(
        self,
        event_shape: int | Sequence[int],
        num_components: int,
        *,
        covariance: nn.Module | Callable[..., nn.Module] = DiagonalCovariance,
    ) -> None:
        super().__init__(event_shape, num_components)
        self.loc = nn.Parameter(torch.randn(self.num_components, *self.event_shape))
        self.covariance = filled("covariance", covariance, self.num_components, self.event_shape)

    def component(self, c: Tensor) -> dist.TorchDistribution:  # noqa: D102
        return self.covariance(self.loc[c], c)

    def maximize(self, responsibilities: Mapping[str, Tensor], x: Tensor) -> None:  # noqa: D102
        shares, x = responsibilities["c"].to(self.loc), x.to(self.loc)
        self.weigh_(shares)
        counts, sums = shares.sum(0), torch.tensordot(shares.T, x, 1)
        with torch.no_grad():
            # A component without data keeps its place, and its covariance.
            self.loc.copy_(torch.where(with_data(shares, sums), sums / _column(counts, sums), self.loc))
            covariance: Any = self.covariance
            covariance.set_(covariance.scatter(shares, x, self.loc))

    @property
    def component_means(self) -> Tensor:  # noqa: D102
        return self.loc

    @property
    def component_covariances(self) -> Tensor:
        """Sigma of each component, of x as a flat vector: (C, D, D)."""
        return self.covariance.matrices()  # type: ignore[operator]


class CategoricalMixture(_Summed):
    r"""Mixture of products of categoricals, or of Bernoullis: the latent class model.

        c ~ Cat(pi)        x_d | c ~ Cat(theta_cd)        log p(x) = log sum_c pi_c prod_d theta_cd,x_d

    c is summed, so that the ELBO is log p(x) exactly: `pyrovae.fit(pair, x)` is maximum likelihood by gradients, and
    `pyrovae.fit_em(pair, x, m_step=pair.maximize)` by EM. Maximum likelihood gives a value that a component has not
    seen probability 0 (after EM, the smallest number of the dtype); `BayesianCategoricalMixture` smooths it.

    Args:
        event_shape: shape of one x.
        num_components: C.
        num_classes: V, the values 0 ... V - 1 of each number of x; with 2 it is a Bernoulli, whose mean is grey.

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers, or fewer than two classes.

    Shapes: x (B, *event_shape), c (B,).
    Source: Lazarsfeld 1950; Bishop 2006, section 9.3.3.

    >>> import pyrovae as pv
    >>> x = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    >>> pair = CategoricalMixture(3, 2).initialise_(x)
    >>> run = pv.fit_em(pair, x, m_step=pair.maximize, max_epochs=3)
    >>> pair.component_means[pair.component_means[:, 0].argsort()].round(decimals=3).tolist()
    [[0.0, 0.0, 1.0], [1.0, 1.0, 0.5]]
    """

    def __init__(self, event_shape: int | Sequence[int], num_components: int, *, num_classes: int = 2) -> None:
        super().__init__(event_shape, num_components)
        self.num_classes = at_least_two_classes(num_classes)
        self.class_logits = nn.Parameter(torch.randn(self.num_components, *self.event_shape, self.num_classes))

    def component(self, c: Tensor) -> dist.TorchDistribution:  # noqa: D102
        return product(self.class_logits[c], len(self.event_shape))

    def points(self, x: Tensor) -> Tensor:  # noqa: D102
        return as_one_hot(x, self.num_classes).flatten(1)

    def maximize(self, responsibilities: Mapping[str, Tensor], x: Tensor) -> None:  # noqa: D102
        shares = responsibilities["c"].to(self.class_logits)
        self.weigh_(shares)
        counts = torch.tensordot(shares.T, as_one_hot(x, self.num_classes).to(shares), 1)  # (C, *event, V)
        totals = counts.sum(-1, keepdim=True)
        with torch.no_grad():
            logits = floored_log(counts / totals.clamp(min=torch.finfo(totals.dtype).tiny))
            self.class_logits.copy_(torch.where(totals > 0, logits, self.class_logits))

    @property
    def component_means(self) -> Tensor:
        """E[x | c], of the classes as numbers: (C, *event_shape)."""
        probs = self.class_logits.softmax(-1)
        return probs @ torch.arange(self.num_classes, dtype=probs.dtype, device=probs.device)


def product(logits: Tensor, event_dims: int) -> dist.TorchDistribution:
    """Independent categoricals of log-probabilities (..., *event, V); Bernoullis, which have a mean, where V is 2."""
    if logits.size(-1) == 2:
        return Bernoulli(logits=logits[..., 1] - logits[..., 0]).to_event(event_dims)
    return dist.Categorical(logits=logits).to_event(event_dims)


def as_one_hot(x: Tensor, num_classes: int) -> Tensor:
    """Codes (N, *event) as (N, *event, V).

    Raises:
        ValueError: for values that are no codes, naming the first row that has some.
    """
    valid = ((x >= 0) & (x < num_classes) & (x == x.floor())).flatten(1).all(1)
    if not valid.all():
        row = int((~valid).nonzero()[0])
        low, high = x[row].min().item(), x[row].max().item()
        raise ValueError(
            f"x has values that are no class: row {row} lies in [{low:g}, {high:g}], wanted are whole numbers from 0 "
            f"to {num_classes - 1}; pass num_classes=, or binarise the data"
        )
    return one_hot(x.long(), num_classes)


def at_least_two_classes(num_classes: int) -> int:
    """`num_classes`, which has to be a whole number of at least 2."""
    num_classes = as_size(num_classes, "num_classes")
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}, expected at least 2; pass num_classes=2 for bits")
    return num_classes


def floored_log(probs: Tensor) -> Tensor:
    """log p, of 0 that of the smallest normal number."""
    return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()


def _column(counts: Tensor, like: Tensor) -> Tensor:
    """Counts (C,) that are not 0, to divide (C, *event) by."""
    return counts.clamp(min=torch.finfo(counts.dtype).tiny).reshape(-1, *[1] * (like.dim() - 1))
