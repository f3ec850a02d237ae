"""Hidden Markov models of sequences, each with a length of its own; their states are summed exactly."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import cast

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import pyro_method
from torch import Tensor, nn

from pyrovae.conditionals import Bernoulli, Categorical, DiagonalNormal, FixedNormal
from pyrovae.conditionals.base import Conditional, positive
from pyrovae.distributions import HiddenMarkov, MarkovChain
from pyrovae.models.base import Functions, Pair
from pyrovae.models.batches import data_plate
from pyrovae.models.mixture import at_least_two_classes
from pyrovae.models.vae import filled
from pyrovae.nets import as_shape, as_size

__all__ = ["HMM", "BayesianHMM", "check_sequences"]


class HMM(Pair):
    r"""Hidden Markov model: sequences x of T steps at most, the n-th of length l_n.

        s_1 ~ Cat(pi)    s_t | s_{t-1} ~ Cat(A[s_{t-1}])    x_t | s_t ~ p(x_t | s_t)        t = 1 ... l_n

    The path s is summed inside the density of the one site x (`pyrovae.distributions.HiddenMarkov`), the guide is
    empty, and the ELBO is log p(x). `with_states` is the same model with s as a site. Train it by gradients with
    `pyrovae.fit`, or by Baum-Welch: `fit_em(hmm, (x, lengths), e_step=ForwardBackward(), m_step=hmm.maximize)`.

    Args:
        event_shape: (T, \*shape of one step); sequences of another T are taken too.
        num_states: S.
        likelihood: p(x_t | s_t), of the one-hot vector of s_t, so that its layer is a table: a conditional of the
            library, made by `likelihood(S, shape of one step)`: `Bernoulli`, `Categorical`, `DiagonalNormal`, ...

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers, or an event without a time.

    Shapes: x (B, T, \*step), lengths (B,) whole numbers from 1 to T, by default T; what is in x after the end of a
    sequence counts for nothing, but has to be in the support, as zeros are.
    Source: Rabiner 1989, https://doi.org/10.1109/5.18626

    >>> hmm = HMM((3, 2), num_states=4)
    >>> from pyrovae import log_weights, posterior_marginals
    >>> x, lengths = torch.ones(2, 3, 2), torch.tensor([3, 1])
    >>> log_weights(hmm, x, lengths).shape, posterior_marginals(hmm, x, lengths).shape
    (torch.Size([1, 2]), torch.Size([2, 3, 4]))
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        num_states: int,
        *,
        likelihood: nn.Module | Callable[..., nn.Module] = Bernoulli,
    ) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        if not self.event_shape:
            raise ValueError("event_shape is (), a sequence has steps; pass event_shape=(T, ...)")
        self.num_states = as_size(num_states, "num_states")
        self.initial_logits = nn.Parameter(torch.zeros(self.num_states))
        self.transition_logits = nn.Parameter(torch.randn(self.num_states, self.num_states))
        self.likelihood = filled("likelihood", likelihood, self.num_states, self.event_shape[1:])

    def model(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """x ~ p(x) of each row, summed over paths."""
        with pyro.plate("data", len(x)):
            pyro.sample("x", HiddenMarkov(self.chain(x, lengths), self.emission()), obs=x)

    def guide(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Nothing: no site is left."""

    def check_batch(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Refuse sequences of another shape, and lengths outside 1 ... T, before `fit` starts."""
        check_sequences(x, lengths, self.event_shape[1:])

    def chain(self, x: Tensor, lengths: Tensor | None = None) -> MarkovChain:
        """p(s) of sequences as long as these."""
        return MarkovChain(self.initial_logits, self.transition_logits[None], duration=x.shape[1], lengths=lengths)

    def emission(self) -> dist.TorchDistribution:
        """p(x_t | s_t) of each state, batch shape (S,)."""
        return self.likelihood(torch.eye(self.num_states).to(self.initial_logits))

    @property
    def with_states(self) -> Functions:
        """The pair with s as a site, (B, T): s ~ p(s), x | s; its guide is p(s | x), so each weight is p(x).

        `Predictive(hmm.with_states.model, num_samples=K)` then draws paths and sequences.
        """
        return Functions(self._model_with_states, self._states_given_x)

    @pyro_method
    def _model_with_states(self, x: Tensor, lengths: Tensor | None = None) -> None:
        chain, emission = self.chain(x, lengths), self.emission()
        with pyro.plate("data", len(x)):
            s = pyro.sample("s", chain)
            pyro.sample("x", _GivenPath(chain, emission, s), obs=x)

    @pyro_method
    def _states_given_x(self, x: Tensor, lengths: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("s", HiddenMarkov(self.chain(x, lengths), self.emission()).posterior(x))

    @torch.no_grad()
    def maximize(self, responsibilities: dict[str, Tensor], x: Tensor, lengths: Tensor | None = None) -> None:
        r"""The M-step of Baum-Welch: the parameters at which E_q log p(x, s) is largest, in closed form.

        Probabilities of 0 are kept at the smallest number above 0 (Bernoulli's at one rounding from 0 and 1). A state
        that q never visits keeps its emission, and one that it never leaves its moves: there any are as good.

        Args:
            responsibilities: s, q(s_t), (B, T, S), and s_pairs, q(s_t, s_{t+1}), (B, T - 1, S, S).
            x, lengths: all of the data.

        Raises:
            TypeError: for a likelihood without a closed form here; pass m_step=Ascent(steps) to `fit_em`.
            ValueError: for responsibilities of another E-step.
        """
        if not {"s", "s_pairs"} <= set(responsibilities):
            raise ValueError(
                f"responsibilities are of {sorted(responsibilities)}, Baum-Welch needs s and s_pairs; "
                "pass e_step=ForwardBackward() to fit_em"
            )
        weights, pairs = responsibilities["s"], responsibilities["s_pairs"].sum((0, 1))
        tiny = torch.finfo(weights.dtype).tiny
        initial = weights[:, 0].mean(0)
        self.initial_logits.copy_(initial.clamp(min=tiny).log())
        left = pairs.sum(-1, keepdim=True)
        moves = (pairs / left.clamp(min=tiny)).clamp(min=tiny).log()
        self.transition_logits.copy_(torch.where(left >= tiny, moves, self.transition_logits))
        counts = weights.sum((0, 1))  # (S,)
        share = weights.flatten(0, 1) / counts.clamp(min=tiny)
        head = _closed_form(self.likelihood, share, x.flatten(0, 1).to(weights.dtype)).reshape(self.num_states, -1)
        layer = cast(Conditional, self.likelihood).head.layer
        assert layer.bias is not None
        old = layer.weight + layer.bias[:, None]  # a column for each state
        layer.weight.copy_(torch.where(counts >= tiny, head.T, old))
        layer.bias.zero_()


def _closed_form(likelihood: nn.Module, share: Tensor, x: Tensor) -> Tensor:
    """The head's numbers of each state, (S, P, *step), for data x (N, *step) with shares (N, S) of each."""

    def mean(values: Tensor) -> Tensor:
        return torch.einsum("ns,n...->s...", share, values)

    if isinstance(likelihood, Bernoulli):
        return mean(x).clamp(torch.finfo(x.dtype).eps, 1 - torch.finfo(x.dtype).eps).logit()
    if isinstance(likelihood, Categorical):
        classes = torch.arange(likelihood.head.num_parameters, device=x.device)
        frequency = mean((x[:, None] == classes.reshape(-1, *[1] * (x.dim() - 1))).to(x.dtype))  # (S, C, *step)
        return frequency.clamp(min=torch.finfo(x.dtype).tiny).log()
    if isinstance(likelihood, FixedNormal):
        return mean(x)
    if type(likelihood) is DiagonalNormal:
        loc = mean(x)
        variance = torch.einsum("ns,ns...->s...", share, (x[:, None] - loc) ** 2)
        above = (variance.sqrt() - likelihood.min_scale).clamp(min=torch.finfo(x.dtype).tiny)
        return torch.stack([loc, 2 * above.log()], 1)
    raise TypeError(
        f"likelihood is {type(likelihood).__name__}, whose M-step has no closed form here (Bernoulli, Categorical, "
        "DiagonalNormal and FixedNormal have); pass m_step=Ascent(10)"
    )


class _GivenPath(HiddenMarkov):
    """x given its path."""

    def __init__(self, chain: MarkovChain, emission: dist.TorchDistribution, path: Tensor) -> None:
        super().__init__(chain, emission, validate_args=False)
        self.path = path
        self._batch_shape = torch.broadcast_shapes(self.batch_shape, path.shape[:-1])

    def log_prob(self, value: Tensor) -> Tensor:
        each = self.potentials(value)
        own = (*self.batch_shape, each.shape[-2])
        path = self.path.expand(torch.broadcast_shapes(self.path.shape, each.shape[:-1], own))
        each = each.expand(*path.shape, -1).gather(-1, path[..., None])[..., 0]
        return torch.where(self.chain.valid, each, 0.0).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.given(self.path.expand(*torch.Size(sample_shape), *self.batch_shape, -1))


class BayesianHMM(Pair):
    r"""A hidden Markov model of classes, with priors over its parameters, which are latents of all data together.

        pi ~ Dir(alpha)    A[k] ~ Dir(alpha)    B[k, d] ~ Dir(beta)        x | pi, A, B ~ HMM, states summed

        q(pi) prod_k q(A[k]) prod_kd q(B[k, d]), Dirichlets

    Each number of a step is of one of C classes; C = 2 has Beta-Bernoulli emissions. With one state it is the
    Dirichlet-multinomial, whose posterior q can be. Train it with `pyrovae.fit`.

    Args:
        event_shape: (T, \*shape of one step).
        num_states: S.
        num_classes: C.
        state_concentration: alpha, of each state.
        class_concentration: beta, of each class.
        data_size: N, the rows of all data, of which a batch is a part. Default: the batch is all of them, so that
            `fit` has to be told batch_size=N.

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers, fewer than two classes, or concentrations
            that are not positive.

    Shapes: x (B, T, \*step) whole numbers from 0 to C - 1; lengths (B,), by default T; global sites initial (S,),
    transition (S, S), emission (S, \*step, C).
    Source: MacKay 1997, Ensemble learning for hidden Markov models; here the path is summed out, not factorised.

    >>> pair = BayesianHMM((3, 2), num_states=4)
    >>> from pyrovae import structure
    >>> structure(pair, torch.ones(2, 3, 2)).global_latent
    ('initial', 'transition', 'emission')
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        num_states: int,
        *,
        num_classes: int = 2,
        state_concentration: float = 1.0,
        class_concentration: float = 1.0,
        data_size: int | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        self.num_states, self.num_classes = as_size(num_states, "num_states"), at_least_two_classes(num_classes)
        self.data_size = None if data_size is None else as_size(data_size, "data_size")
        of_state = positive("state_concentration", state_concentration)
        of_class = positive("class_concentration", class_concentration)
        step = self.event_shape[1:]
        self.register_buffer("state_prior", torch.full((self.num_states,), of_state))
        self.register_buffer("class_prior", torch.full((self.num_classes,), of_class))
        # Random counts, a few to each: equal ones would make all states alike.
        self.initial = nn.Parameter(torch.rand(self.num_states))
        self.transition = nn.Parameter(torch.rand(self.num_states, self.num_states))
        self.emission = nn.Parameter(2 * torch.rand(self.num_states, *step, self.num_classes))

    def model(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Parameters from their priors, then x of each row, summed over paths."""
        initial = pyro.sample("initial", dist.Dirichlet(self.state_prior))
        rows = dist.Dirichlet(self.state_prior.expand(self.num_states, -1)).to_event(1)
        transition = pyro.sample("transition", rows)
        tables = dist.Dirichlet(self.class_prior.expand(self.emission.shape)).to_event(self.emission.dim() - 1)
        table = pyro.sample("emission", tables)
        tiny = torch.finfo(table.dtype).tiny  # draws may round to 0
        logits = table.clamp(min=tiny).log().unsqueeze(-1 - self.emission.dim())  # (..., 1, S, *step, C)
        emission = dist.Categorical(logits=logits).to_event(len(self.event_shape) - 1)
        moves = transition.clamp(min=tiny).log().unsqueeze(-3)
        chain = MarkovChain(initial.clamp(min=tiny).log(), moves, duration=x.shape[1], lengths=lengths)
        with data_plate(x, self.data_size):
            pyro.sample("x", HiddenMarkov(chain, emission), obs=x)

    def guide(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """A Dirichlet for each vector of probabilities."""
        pyro.sample("initial", dist.Dirichlet(self.initial.exp()))
        pyro.sample("transition", dist.Dirichlet(self.transition.exp()).to_event(1))
        pyro.sample("emission", dist.Dirichlet(self.emission.exp()).to_event(self.emission.dim() - 1))
        with data_plate(x, self.data_size):
            pass

    def check_batch(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Refuse sequences of another shape, and lengths outside 1 ... T, before `fit` starts."""
        check_sequences(x, lengths, self.event_shape[1:])


def check_sequences(x: Tensor, lengths: Tensor | None, step: tuple[int, ...]) -> None:
    """Refuse what are no sequences of such steps, or lengths that are not theirs.

    Raises:
        ValueError: saying what came, and the first row that is wrong.
    """
    if x.dim() < 2 or tuple(x.shape[2:]) != step or x.shape[1] == 0:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, sequences (B, T, {', '.join(map(str, step))}) of T >= 1 steps are wanted; "
            f"pass event_shape=(T, {', '.join(map(str, x.shape[2:]))}) to the constructor"
        )
    if x.shape[1] == 1:
        warnings.warn(
            f"x has shape {tuple(x.shape)}, sequences of one step each, in which no state follows another; if these "
            "are images (B, 1, H, W) whose lines are the steps, pass x.squeeze(1) and event_shape=(H, W)",
            stacklevel=2,
        )
    if lengths is None:
        return
    if lengths.shape != x.shape[:1] or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(
            f"lengths are {lengths.dtype} of shape {tuple(lengths.shape)}, one whole number for each of the {len(x)} "
            "sequences is wanted; pass them as int64 (B,)"
        )
    wrong = (lengths < 1) | (lengths > x.shape[1])
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"lengths of {int(wrong.sum())} sequences are not in 1 ... {x.shape[1]}, the first {int(lengths[row])} in "
            f"row {row}; leave sequences without steps out, and pad x to the longest"
        )
