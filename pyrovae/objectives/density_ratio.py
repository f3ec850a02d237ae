r"""Density ratios by classification: a critic that tells samples of q from samples of p, and objectives that own one.

    T = argmin  1/2 E_q [softplus(-T)] + 1/2 E_p [softplus(T)]    =>    T = log q / p

q is labelled 1 and p 0. While training an objective adds T, or takes it off, at each datum's own latents; evaluation
sees the bare pair and knows nothing of it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrovae.models.base import Structure, as_pair, evaluation_mode, structure
from pyrovae.nets import Head, MultiMLP, as_shape
from pyrovae.objectives.base import Objective
from pyrovae.objectives.dreams import uncondition
from pyrovae.objectives.total_correlation import code_name, code_site
from pyrovae.objectives.weights import Ledger, Term

__all__ = [
    "DensityRatio",
    "FactorVAE",
    "ImplicitPrior",
    "RatioObjective",
    "code_in",
    "codes",
    "drawn_code",
    "logistic_loss",
    "shuffled",
]

Values = tuple[Tensor, ...]


def logistic_loss(of_q: Tensor, of_p: Tensor) -> Tensor:
    """Mean logistic loss of a classifier, half of it from each label: log 2 for one that can't tell; a scalar, nats.

    Args:
        of_q: logits of samples from q, labelled 1, of any shape.
        of_p: logits of samples from p, labelled 0; as many or not.
    """
    return (softplus(-of_q).mean() + softplus(of_p).mean()) / 2


class DensityRatio(nn.Module):
    r"""The log-ratio of two densities that one can only draw from, as the logit of a classifier.

        T(v) = log q(v) / p(v)    where   `loss` is least

    At the optimum the mean of T under q is KL(q || p), and the loss log 2 - JS(q, p). A ratio that is far from 1 almost
    everywhere (disjoint q and p, many dims) can't be learned from samples: T is then too small.

    Args:
        event_shapes: shape of one event of each value; (10) for a vector z, ((1, 28, 28), 10) for pairs (x, z).
        hidden: sizes of the hidden layers of the default network.
        activation: class of its nonlinearity. A guide follows the gradient of T: a smooth one is the default.
        network: from the values to features, instead of the default `MultiMLP`; a linear map to the logit follows.

    Returns:
        From `forward(*values)`: T, (...), nats, of values (..., *event_shapes[i]), whose leading dims broadcast.

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers, for no event shape, and at the call for
            values of other shapes.

    Source: Sugiyama, Suzuki & Kanamori 2012, Density Ratio Estimation in Machine Learning, chapter 4; Goodfellow et al.
    2014, https://arxiv.org/abs/1406.2661, proposition 1.

    >>> ratio = DensityRatio(2, hidden=(32,))
    >>> ratio(torch.zeros(5, 3, 2)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        *event_shapes: int | Sequence[int],
        hidden: Sequence[int] = (200, 200),
        activation: type[nn.Module] = nn.SiLU,
        network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not event_shapes:
            raise ValueError("event_shapes is empty, a shape for each value is wanted; pass DensityRatio(10), say")
        self.event_shapes = tuple(as_shape(shape, f"event_shapes[{i}]") for i, shape in enumerate(event_shapes))
        self.network = MultiMLP(self.event_shapes, hidden, activation=activation) if network is None else network
        self.head = Head(_features(self.network, self.event_shapes), ())

    def forward(self, *values: Tensor) -> Tensor:
        """T = log q / p."""
        (logit,) = self.head(self.network(*values))
        return logit  # (...)

    def loss(self, of_q: Values, of_p: Values) -> Tensor:
        """The logistic loss of telling samples of q from samples of p, a scalar in nats: log 2 where it can't.

        Args:
            of_q, of_p: the values of each, (..., *event_shapes[i]).
        """
        return logistic_loss(self(*of_q), self(*of_p))


def _features(network: nn.Module, event_shapes: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    stated = getattr(network, "feature_shape", None)
    if stated is not None:
        return tuple(stated)
    example = next(iter(network.parameters()), torch.zeros(()))
    with torch.no_grad(), evaluation_mode(network):
        return tuple(network(*(example.new_zeros((1, *shape)) for shape in event_shapes)).shape[1:])


class RatioObjective(Objective):
    r"""Base class of objectives that own a critic: a subclass says between which samples, and where its logit goes.

    `pyrovae.fit` trains the two by turns: for each batch of the pair `critic_steps` updates of the critic, each on a
    batch of its own (in another random order of the data), then the pair's. It does so in place, as with the pair: the
    objective keeps its critic, and a second fit goes on with it; pass `copy.deepcopy` of a new one to start anew.
    The critic is part of the run's checkpoints, and of the best epoch's parameters where there is `patience`.

    Neither moves the other: the critic learns from detached samples, drawn in evaluation mode so that no statistics of
    batches move; the pair's gradient goes through the critic's input with its parameters fixed, in evaluation mode
    (without dropout). In stock Pyro:

    >>> import pyro
    >>> from pyrovae import DensityRatio, FactorVAE, VAE
    >>> vae, x = VAE(4, latent_dim=2, hidden=(8,)), torch.ones(16, 4)
    >>> objective = FactorVAE(DensityRatio(2, hidden=(8,)), gamma=6.0)
    >>> svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), objective)
    >>> optimizer = objective.critic_optimizer(objective.critic.parameters())
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     objective.critic_loss(vae, x).backward()
    ...     optimizer.step()
    ...     loss = svi.step(x)

    Args:
        critic: the classifier, called with the values of `samples`; a `DensityRatio`, or any module that gives logits.
            One without parameters is used as it is.
        critic_steps: updates of the critic before each of the pair.
        critic_optimizer: called as `critic_optimizer(parameters)`.
        num_particles, plate: as for `Objective`.

    Raises:
        TypeError, ValueError: for a critic that is no module, steps that are no positive whole number, an optimizer
            that can't be called.
    """

    is_bound = False
    of_x: ClassVar[bool] = False  # whether the critic is of (x, z), and not of z alone
    critic: nn.Module

    def __init__(
        self,
        critic: nn.Module,
        num_particles: int = 1,
        *,
        critic_steps: int = 1,
        critic_optimizer: Callable[..., torch.optim.Optimizer] = partial(torch.optim.Adam, lr=1e-3),  # noqa: B008
        plate: str | None = None,
    ):
        super().__init__(num_particles, plate=plate)
        if not isinstance(critic, nn.Module):
            raise TypeError(f"critic is {critic!r}, a module is wanted; pass pyrovae.DensityRatio(latent_dim)")
        if isinstance(critic_steps, bool) or not isinstance(critic_steps, int) or critic_steps < 1:
            raise ValueError(f"critic_steps is {critic_steps!r}, a whole number of at least 1 is wanted; pass 1")
        if not callable(critic_optimizer):
            raise TypeError(
                f"critic_optimizer is {str(critic_optimizer)[:60]!r}, which makes no torch optimizer; "
                "pass functools.partial(torch.optim.Adam, lr=1e-3)"
            )
        self.critic = critic
        self.critic_steps = critic_steps
        self.critic_optimizer = critic_optimizer

    @classmethod
    def critic_for(cls, pair: Any, *, hidden: Sequence[int] = (200, 200)) -> nn.Module:
        """A critic of the kind that this objective takes, for a pair of the library: what the command line makes.

        Args:
            pair: one with a `latent_dim`.
            hidden: sizes of its hidden layers.

        Raises:
            ValueError: for a pair without.

        >>> from pyrovae import VAE
        >>> FactorVAE.critic_for(VAE(4, latent_dim=2), hidden=(8,)).event_shapes
        ((2,),)
        """
        latent_dim = getattr(pair, "latent_dim", None)
        if not isinstance(latent_dim, int):
            raise ValueError(
                f"{cls.__name__} has a critic of z, and {type(pair).__name__} has no latent_dim to make one for; "
                f"pass {cls.__name__}(DensityRatio(...)) to fit in Python"
            )
        return DensityRatio(*([pair.event_shape] if cls.of_x else []), latent_dim, hidden=hidden)

    @abstractmethod
    def samples(self, pair: Any, *batch: Any, known: Structure) -> tuple[Values, Values]:
        """Fresh draws for the critic: values of q and values of p, each a tuple for `critic(*values)`."""

    def critic_loss(self, pair: Any, *batch: Any, known: Structure | None = None) -> Tensor:
        """The critic's logistic loss on fresh draws of the pair, to which no gradient flows; a scalar, nats.

        Args:
            pair: see `pyrovae.as_pair`; it runs in evaluation mode.
            batch: what model and guide are called with.
            known: the pair's `structure`, where it has been found already.
        """
        pair = as_pair(pair)
        known = structure(pair, *batch, plate=self.plate) if known is None else known
        of_critic = {id(module) for module in self.critic.modules()}
        of_pair = [module for module in known.modules if id(module) not in of_critic]
        with torch.no_grad(), evaluation_mode(pair, *of_pair):
            of_q, of_p = self.samples(pair, *batch, known=known)
        return self.learned_from(of_q, of_p)

    def learned_from(self, of_q: Values, of_p: Values) -> Tensor:
        """The critic's loss on samples that it has."""
        return logistic_loss(self.critic(*of_q), self.critic(*of_p))

    def logit(self, *values: Tensor) -> Tensor:
        """T of values: in evaluation mode, and a constant but for its input."""
        fixed = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        with evaluation_mode(self.critic):
            return torch.func.functional_call(self.critic, fixed, values)


def codes(drawn: Ledger) -> Tensor:
    """The one latent of each datum, flattened: (K, B, L).

    Raises:
        ValueError: see `total_correlation.code_site`; its dims may depend on each other.
    """
    name = code_site(drawn, independent=False).name
    sites = (next(t.site for t in draw.terms if t.name == name and t.kind == "guide") for draw in drawn.draws)
    return torch.cat([site["value"].reshape(-1, drawn.rows, site["fn"].event_shape.numel()) for site in sites])


def shuffled(z: Tensor) -> Tensor:
    """Draws of prod_j q(z_j) from draws of q(z), (B, L) to (B, L): each dim from another row, at random.

    No two dims of a row come from the same row where B >= L. The paper permutes each dim on its own, which leaves one
    in B pairs of dims together, so that a critic could find a ratio of no more than about B.
    """
    rows, dims = z.shape
    order = torch.randperm(rows, device=z.device)
    index = (torch.arange(rows, device=z.device)[:, None] + torch.arange(dims, device=z.device)) % rows
    return z.gather(0, order[index])


class FactorVAE(RatioObjective):
    r"""The ELBO less a weight times the total correlation of the aggregate posterior, by a critic.

        ELBO - gamma E_q(z | x) [T(z)],    T(z) ~ log q(z) / prod_j q(z_j),    q(z) = 1/N sum_n q(z | x_n)

    The mean of T over data is the total correlation KL(q(z) || prod_j q(z_j)), as far as the critic has learned it, and
    so is its gradient: that of log q(z) and of log q(z_j) themselves vanishes in the mean. The critic tells draws of
    q(z | x) from other draws, of which each dim is taken from another datum (`shuffled`). The value is no bound on
    log p(x), and in validation an estimate by the critic of that epoch.

    Args:
        critic: of z, flattened to (L,): `DensityRatio(L)`. The paper's has six layers of 1000 with leaky ReLUs.
        num_particles: samples of z per datum.
        gamma: weight of the total correlation; a number or a schedule. 0 gives the ELBO.
        closed_form: whether to use closed-form KLs at all.
        critic_steps, critic_optimizer: see `RatioObjective`; the paper's.
        plate: name of the data plate, where it is not plain.

    Raises:
        ValueError: for a gamma below 0, and for pairs with other latents than one site per datum.

    Source: Kim & Mnih 2018, https://arxiv.org/abs/1802.05983, eqs. 2 and 3, algorithm 2.

    >>> FactorVAE(DensityRatio(10), gamma=35.0).couples_rows  # each datum's own z counts
    False
    """

    def __init__(
        self,
        critic: nn.Module,
        num_particles: int = 1,
        *,
        gamma: Any = 10.0,
        closed_form: bool = True,
        critic_steps: int = 1,
        critic_optimizer: Callable[..., torch.optim.Optimizer] = partial(  # noqa: B008
            torch.optim.Adam, lr=1e-4, betas=(0.5, 0.9)
        ),
        plate: str | None = None,
    ):
        super().__init__(
            critic, num_particles, critic_steps=critic_steps, critic_optimizer=critic_optimizer, plate=plate
        )
        if not hasattr(gamma, "value") and not gamma >= 0:
            raise ValueError(f"gamma is {gamma}, the weight of the total correlation; pass 0.0, the ELBO, or more")
        self.gamma = gamma
        self.closed_form = closed_form

    @property
    def is_bound(self) -> bool:  # type: ignore[override]
        """Whether it is a lower bound on log p(x): gamma is 0."""
        return not hasattr(self.gamma, "value") and self.gamma == 0

    def samples(self, pair: Any, *batch: Any, known: Structure) -> tuple[Values, Values]:
        """z of each datum, and others with their dims shuffled over the batch."""
        return (drawn_code(pair.guide, batch, known),), (shuffled(drawn_code(pair.guide, batch, known)),)

    def per_datum(self, drawn: Ledger) -> Tensor:
        """The mean over particles, (B,)."""
        weight = getattr(self.gamma, "value", self.gamma) * code_site(drawn, independent=False).scale
        return (drawn.elbo(closed_form=self.closed_form) - weight * self.logit(codes(drawn))).mean(0)


class ImplicitPrior(RatioObjective):
    r"""The ELBO under the prior that makes it largest, the aggregate posterior, whose density a critic knows.

        E_q [log p(x | z)] - KL(q(z | x) || q(z)) = E_q [log p(x | z) + T(z)] - KL(q(z | x) || p(z))

        T(z) ~ log q(z) / p(z),    q(z) = 1/N sum_n q(z | x_n)

    The critic tells draws of q(z | x) from the pair's own p(z), so that p(z) should be close: a standard normal, say.
    The gradient needs none of log q(z) itself, which vanishes in the mean. The pair alone does not know its prior
    p(z) exp T(z): `pyrovae.implicit_log_likelihood` has its likelihood, `generate_from_aggregate` its draws. The value
    is no bound on log p(x), and in validation an estimate by the critic of that epoch, on data that q(z) does not hold.

    Args:
        critic: of z, flattened to (L,): `DensityRatio(L)`. The paper's has three layers of 500, tanh, with dropout.
        num_particles: samples of z per datum.
        beta: weight of KL(q(z | x) || q(z)), a number or a schedule: the paper's warm-up is `Linear(0, 1, 100)`.
        closed_form: whether to use closed-form KLs at all.
        critic_steps: updates of the critic before each of the pair. The authors train it for ten passes over the data
            after each of the pair's; here as many batches are spread over the pair's steps.
        critic_optimizer: see `RatioObjective`; the authors'.
        plate: name of the data plate, where it is not plain.

    Raises:
        ValueError: for a beta below 0, and for pairs with other latents than one site per datum.

    Source: Takahashi, Iwata, Yamanaka, Yamada & Yagi 2019, https://arxiv.org/abs/1809.05284.

    >>> ImplicitPrior(DensityRatio(40, hidden=(500, 500, 500), activation=nn.Tanh)).critic_steps
    10
    """

    def __init__(
        self,
        critic: nn.Module,
        num_particles: int = 1,
        *,
        beta: Any = 1.0,
        closed_form: bool = True,
        critic_steps: int = 10,
        critic_optimizer: Callable[..., torch.optim.Optimizer] = partial(torch.optim.Adam, lr=1e-3),  # noqa: B008
        plate: str | None = None,
    ):
        super().__init__(
            critic, num_particles, critic_steps=critic_steps, critic_optimizer=critic_optimizer, plate=plate
        )
        if not hasattr(beta, "value") and not beta >= 0:
            raise ValueError(f"beta is {beta}; the weight of the KL is at least 0, pass 1.0")
        self.beta = beta
        self.closed_form = closed_form

    def samples(self, pair: Any, *batch: Any, known: Structure) -> tuple[Values, Values]:
        """z of each datum, and as many draws of p(z)."""
        return (drawn_code(pair.guide, batch, known),), (drawn_code(uncondition(pair.model), batch, known),)

    def per_datum(self, drawn: Ledger) -> Tensor:
        """The mean over particles, (B,)."""
        weight = self._weight(code_site(drawn, independent=False))
        return (drawn.elbo(self._weight, closed_form=self.closed_form) + weight * self.logit(codes(drawn))).mean(0)

    def _weight(self, term: Term) -> float | Tensor:
        return term.scale if term.kind == "observed" else getattr(self.beta, "value", self.beta) * term.scale


def drawn_code(program: Callable[..., Any], batch: Iterable[Any], known: Structure) -> Tensor:
    """The one latent of each datum in a run of model or guide, (B, L)."""
    return code_in(poutine.trace(program).get_trace(*batch), known)


def code_in(trace: Trace, known: Structure) -> Tensor:
    """The one latent of each datum in a trace without particles, (B, L)."""
    site = trace.nodes[code_name(known)]
    rows = next(frame.size for frame in site["cond_indep_stack"] if frame.name == known.plate)
    return site["value"].reshape(rows, -1)
