r"""Priors that are mixtures of the pair's own posteriors q(z | u_k) at K inputs: exact, for any posterior.

p(z) = sum_k pi_k q(z | u_k)
"""

from collections.abc import Callable, Sequence
from typing import Any, Self

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from pyrovae.distributions import pairwise_log_prob
from pyrovae.nets import as_shape

__all__ = ["AggregatedPosterior", "PosteriorMixture", "PosteriorOfInputs"]


class PosteriorMixture(TorchDistribution):
    r"""sum_k pi_k q_k(z), for components of any kind that is batched.

    torch's MixtureSameFamily draws from all K components to keep one, (..., K, *event) numbers, and leaves it to the
    components to broadcast, which conditional flows do not. Here z is expanded to the components, and a sample is drawn
    from the component that was chosen, which `draw` makes.

    Args:
        logits: log pi_k up to a constant, (K,).
        components: q_k, of batch shape (K,).
        draw: the components of given indices (S,), a distribution of batch shape (S,).

    Returns:
        From `log_prob(z)`: nats, shape (..., *batch_shape). It takes memory for K numbers for each z where components
        are diagonal Normals, for K times the numbers of z otherwise.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = False

    def __init__(
        self,
        logits: Tensor,
        components: TorchDistribution,
        draw: Callable[[Tensor], TorchDistribution],
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.components, self.draw = logits, components, draw
        super().__init__(torch.Size(), components.event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same for a larger batch shape."""
        new = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)
        new._batch_shape = torch.Size(batch_shape)
        return new

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """That of the components."""
        return self.components.support

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density at `value`, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        leading = value.shape[: value.dim() - len(self.event_shape)]
        log_prob = torch.logsumexp(self.logits.log_softmax(-1) + pairwise_log_prob(self.components, value), -1)
        return log_prob.expand(torch.broadcast_shapes(leading, self.batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Values drawn from components that are drawn first, shape (*sample_shape, *batch_shape, *event_shape)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        chosen = dist.Categorical(logits=self.logits).sample(shape[: len(shape) - len(self.event_shape)])
        return self.draw(chosen.flatten()).sample().reshape(shape)


class PosteriorOfInputs(nn.Module):
    """Base of the priors that are mixtures of q(z | u_k): a subclass says `inputs()`, and may own `logits`.

    q(z | x) belongs to the pair. The prior refers to it without registering it a second time: the pair's parameters
    have one name each in its `state_dict`, move and change mode with the pair, and, because the reference is a bound
    method of the pair, a deepcopy of the pair has a prior that refers to the copy.

    Args:
        event_shape: shape of one z; an int stands for a vector of that length.
    """

    logits: Tensor
    posterior_of: Callable[[Tensor], TorchDistribution] | None

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        self.posterior_of = None

    def bind(self, posterior_of: Callable[[Tensor], TorchDistribution], event_shape: int | Sequence[int]) -> Self:
        """Say what q(z | x) is; the pair does so once, when its slots are filled.

        Args:
            posterior_of: x (K, *event_shape of x) to a distribution of batch shape (K,). A method of the pair: a
                deepcopy of the pair can't look inside a lambda, whose prior would go on with the first pair's encoder.
            event_shape: shape of one x.

        Raises:
            ValueError: where the prior is bound already, or its inputs have another shape than one x.
        """
        if self.posterior_of is not None:
            raise ValueError(
                f"{type(self).__name__} is bound to the posterior of a pair already; make one prior for each pair, "
                "by passing a class or a functools.partial"
            )
        self._accept(as_shape(event_shape))
        self.__dict__["posterior_of"] = posterior_of  # not by setattr, which would register a module
        return self

    def inputs(self) -> Tensor:
        """u, (K, *event_shape of x)."""
        raise NotImplementedError

    def _accept(self, event_shape: tuple[int, ...]) -> None:
        got = tuple(self.inputs().shape[1:])
        if got != event_shape:
            raise ValueError(
                f"the inputs of {type(self).__name__} have event shape {got}, one x has {event_shape}; "
                f"pass rows of shape {event_shape}"
            )

    def forward(self, context: Tensor | None = None) -> TorchDistribution:
        """p(z). The K posteriors are computed here, once for all particles and data of a run."""
        posterior_of = self.posterior_of
        if posterior_of is None:
            raise ValueError(
                f"{type(self).__name__} is a mixture of posteriors q(z | x) and knows none, bound to no pair; "
                "use it in a VAE, or call prior.bind(pair.posterior_of, event_shape) with a method of the pair, "
                "x -> q(z | x)"
            )
        u = self.inputs()
        q = posterior_of(u)
        if q.batch_shape != u.shape[:1] or q.event_shape != self.event_shape:
            raise ValueError(
                f"q(z | u) of {len(u)} inputs has batch shape {tuple(q.batch_shape)} and event shape "
                f"{tuple(q.event_shape)}, the prior needs {(len(u),)} and {self.event_shape}; "
                f"make the prior with event_shape={tuple(q.event_shape)}"
            )
        return PosteriorMixture(self.logits, q, lambda chosen: posterior_of(u.index_select(0, chosen)))


class AggregatedPosterior(PosteriorOfInputs):
    r"""The exact aggregated posterior of N given data, p(z) = 1/N sum_n q(z | x_n), whatever the context.

    With it as prior the marginal KL(q(z) || p(z)) of an ELBO over the same data is 0, and no other prior gives these a
    higher ELBO with the same q(z | x) and p(x | z).

    Args:
        event_shape: shape of one z; an int stands for a vector of that length.
        points: x_n, (N, *event_shape of x). They are part of the state, and of a checkpoint.

    Returns:
        From `forward(context=None)`: a `PosteriorMixture` of batch shape () and event shape `event_shape`. It encodes
        the N points, so that its parameters take N x L numbers; log_prob of B values takes B x N while it runs, and
        B x N x L where q(z | x) is no diagonal Normal.

    Raises:
        TypeError: if a size is not an int.
        ValueError: if a size is not positive or there is no point.

    Source: Hoffman & Johnson 2016, "ELBO surgery"; Tomczak & Welling 2018, https://arxiv.org/abs/1705.07120, eq. 8.

    >>> from functools import partial
    >>> from pyrovae import VAE
    >>> x = torch.eye(4)
    >>> vae = VAE(4, 2, prior=partial(AggregatedPosterior, points=x))
    >>> z = torch.zeros(2)
    >>> by_hand = vae.posterior_of(x).log_prob(z).exp().mean().log()
    >>> torch.allclose(vae.prior().log_prob(z), by_hand)
    True
    """

    points: Tensor

    def __init__(self, event_shape: int | Sequence[int], *, points: Tensor) -> None:
        super().__init__(event_shape)
        if points.dim() == 0 or len(points) == 0:
            raise ValueError(f"points has shape {tuple(points.shape)}, expected at least one row; pass x (N, *event)")
        self.register_buffer("points", points.detach().clone())
        self.register_buffer("logits", torch.zeros(len(points)), persistent=False)

    def inputs(self) -> Tensor:
        """The points."""
        return self.points
