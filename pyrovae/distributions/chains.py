"""Markov chains of discrete states, seen or hidden, of sequences that have each a length of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.ops.special import safe_log
from torch import Tensor
from torch.distributions import register_kl

__all__ = ["HiddenMarkov", "MarkovChain"]


class MarkovChain(TorchDistribution):
    r"""A path s_1, ..., s_n of S states, of length n at most T.

        s_1 ~ Cat(pi)        s_t | s_{t-1} ~ Cat(A_t[s_{t-1}])

    torch and Pyro have none. What stands in a path after its length counts for nothing, and is 0 in samples.

    Args:
        initial_logits: log pi up to a constant, (..., S).
        transition_logits: log A_t up to a constant in each row, (..., T - 1 or 1, S, S), from old state to new.
        duration: T.
        lengths: n of each path, whole numbers from 1 to T, (...); default T.

    Returns:
        From `log_prob(s)` of paths s (..., T) of integers: nats, (...); from `sample`: integers (..., T).

    Source: Rabiner 1989, https://doi.org/10.1109/5.18626, whose recursions are here in logarithms.

    >>> chain = MarkovChain(torch.tensor([0.9, 0.1]).log(), torch.tensor([[[0.5, 0.5], [0.2, 0.8]]]).log(), duration=3)
    >>> chain.log_prob(torch.tensor([0, 1, 1])).exp()  # 0.9 * 0.5 * 0.8
    tensor(0.3600)
    >>> chain.marginals[:, 0]
    tensor([0.9000, 0.4700, 0.3410])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = False

    def __init__(
        self,
        initial_logits: Tensor,
        transition_logits: Tensor,
        *,
        duration: int,
        lengths: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.initial_logits = _normalised(initial_logits)
        steps = transition_logits.shape[-3]
        if steps not in (1, duration - 1):
            raise ValueError(
                f"transition_logits have {steps} steps, a path of duration {duration} has {duration - 1}; pass "
                "(..., T - 1, S, S), or (..., 1, S, S) for the same at each step"
            )
        self.transition_logits = _normalised(transition_logits)
        self.lengths, self.duration = lengths, duration
        batch_shape = torch.broadcast_shapes(
            initial_logits.shape[:-1], transition_logits.shape[:-3], () if lengths is None else lengths.shape
        )
        super().__init__(batch_shape, torch.Size([duration]), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Whole numbers below S."""
        return constraints.independent(constraints.integer_interval(0, self.num_states - 1), 1)

    @property
    def num_states(self) -> int:
        """S."""
        return self.initial_logits.shape[-1]

    @property
    def valid(self) -> Tensor:
        """Which steps are before the end, (..., T) or (T,)."""
        steps = torch.arange(self.duration, device=self.initial_logits.device)
        return steps >= 0 if self.lengths is None else steps < self.lengths[..., None]

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The distribution with another batch shape."""
        new = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of paths, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        path = value.long().masked_fill(~self.valid, 0)
        shape, states = torch.broadcast_shapes(path.shape[:-1], self.batch_shape), self.num_states
        path = path.expand(*shape, -1)
        first = self.initial_logits.expand(*shape, states).gather(-1, path[..., :1])
        moves = self._steps().flatten(-2).expand(*shape, -1, -1)  # (..., T - 1, S * S)
        later = moves.gather(-1, (path[..., :-1] * states + path[..., 1:])[..., None])[..., 0]
        return first[..., 0] + torch.where(self.valid[..., 1:], later, 0.0).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Paths, (*sample_shape, *batch_shape, T)."""
        shape = (*torch.Size(sample_shape), *self.batch_shape)
        states = self.num_states
        path = [dist.Categorical(logits=self.initial_logits.expand(*shape, states), validate_args=False).sample()]
        for logits in self._steps().unbind(-3):
            old = path[-1][..., None, None].expand(*shape, 1, states)
            rows = logits.expand(*shape, states, states).gather(-2, old)[..., 0, :]
            path.append(dist.Categorical(logits=rows, validate_args=False).sample())
        return torch.stack(path, -1).masked_fill(~self.valid, 0)

    @property
    def marginals(self) -> Tensor:
        """p(s_t), (..., T, S); zeros after the end."""
        now = [self.initial_logits.exp()]
        with torch.autocast(self.initial_logits.device.type, enabled=False):
            for logits in self._steps().unbind(-3):
                now.append((now[-1][..., None, :] @ logits.exp())[..., 0, :])
        every = torch.stack(torch.broadcast_tensors(*now), -2)
        return torch.where(self.valid[..., None], every, 0.0).expand(*self.batch_shape, -1, -1)

    @property
    def pair_marginals(self) -> Tensor:
        """p(s_t, s_{t+1}), (..., T - 1, S, S), old state first; zeros where t + 1 is after the end."""
        both = self.marginals[..., :-1, :, None] * self._steps().exp()
        return torch.where(self.valid[..., 1:, None, None], both, 0.0)

    @property
    def mode(self) -> Tensor:
        """The most probable path (Viterbi 1967), (..., T), 0 after the end; of several equal ones any."""
        best = self.initial_logits
        origins = []
        for t, logits in enumerate(self._steps().unbind(-3), 1):
            value, origin = (best[..., :, None] + logits).max(-2)
            goes_on = self.valid[..., t, None]
            best = torch.where(goes_on, value, best)
            origins.append(torch.where(goes_on, origin, torch.arange(self.num_states, device=origin.device)))
        path = [best.argmax(-1).expand(self.batch_shape)]
        for origin in reversed(origins):
            path.append(origin.expand(*self.batch_shape, -1).gather(-1, path[-1][..., None])[..., 0])
        return torch.stack(path[::-1], -1).masked_fill(~self.valid, 0)

    def entropy(self) -> Tensor:
        """-E log p(s), in nats."""
        first, later = (_finite(logits, logits == -torch.inf) for logits in (self.initial_logits, self._steps()))
        first = (self.initial_logits.exp() * first).sum(-1)
        later = self.pair_marginals * later
        return -(first + later.sum((-3, -2, -1))).expand(self.batch_shape)

    def log_normalizer(self, potentials: Tensor, *, parallel: bool | None = None) -> Tensor:
        r"""log sum_s p(s) exp(sum_t f_t(s_t)): log p(x) where f_t(s) = log p(x_t | s).

        Args:
            potentials: f, (..., T, S); what is after the end does not count.
            parallel: by `pyro.distributions.DiscreteHMM`, in log2 T steps of S times the work, or by the backward
                recursion, in T steps. Default: whichever is faster.

        Returns:
            nats, (...), differentiable.
        """
        if self._in_parallel(parallel, potentials):
            # Pyro's chain has a state before the first datum: whatever it is, it goes to s_1 as the initial one does.
            lead = torch.broadcast_shapes(self.initial_logits.shape[:-1], self.transition_logits.shape[:-3])
            first = self.initial_logits[..., None, None, :].expand(*lead, 1, self.num_states, self.num_states)
            moves = torch.cat([first, self._steps().expand(*lead, -1, -1, -1)], -3)
            factors = dist.Unit(self._masked(potentials), validate_args=False)
            hmm = dist.DiscreteHMM(torch.zeros_like(first[..., 0, 0, :]), moves, factors, validate_args=False)
            with torch.autocast(potentials.device.type, enabled=False):  # Pyro sums in matrix products
                return hmm.log_prob(potentials.new_empty(*potentials.shape[:-1], 0))
        return self._backward(potentials)[0]

    def tilted(self, potentials: Tensor) -> tuple[MarkovChain, Tensor]:
        r"""The chain q(s) = p(s) exp(sum_t f_t(s_t)) / Z, which is the posterior p(s | x), and log Z.

        Args:
            potentials: f, (..., T, S).

        Returns:
            the chain, whose transitions differ from step to step, and log Z, (...); both differentiable.
        """
        log_z, messages = self._backward(potentials)
        messages = self._masked(potentials) + messages
        initial = self.initial_logits + messages[..., 0, :]
        # Normalised by the chain's constructor, whose constants are the messages to the step before.
        moves = self._steps() + messages[..., 1:, None, :]
        if self.duration == 1:
            moves = self.transition_logits
        return MarkovChain(initial, moves, duration=self.duration, lengths=self.lengths, validate_args=False), log_z

    def _backward(self, potentials: Tensor) -> tuple[Tensor, Tensor]:
        """log Z, and log p(x after t | s_t) for each t, (..., T, S)."""
        potentials = self._masked(potentials)
        lead = torch.broadcast_shapes(potentials.shape[:-2], self.transition_logits.shape[:-3])
        message = potentials.new_zeros(()).expand(*lead, self.num_states)
        messages = [message]
        steps = self._steps().unbind(-3)
        for logits, f in zip(reversed(steps), potentials.unbind(-2)[:0:-1], strict=True):
            message = _logsumexp(logits + (f + message)[..., None, :])
            messages.append(message)
        log_z = _logsumexp(self.initial_logits + potentials[..., 0, :] + message)
        return log_z, torch.stack(messages[::-1], -2)

    def _steps(self) -> Tensor:
        """log A_t for t = 2 ... T, (..., T - 1, S, S)."""
        shape = self.transition_logits.shape
        return self.transition_logits[..., : self.duration - 1, :, :].expand(
            *shape[:-3], self.duration - 1, *shape[-2:]
        )

    def _masked(self, potentials: Tensor) -> Tensor:
        return potentials if self.lengths is None else torch.where(self.valid[..., None], potentials, 0.0)

    def _in_parallel(self, asked: bool | None, potentials: Tensor) -> bool:
        if asked is not None:
            return asked
        # Measured on one core, forward and backward, 20 sequences: of 8 states the scan takes 1.6 times the time of the
        # recursion for T = 20, 0.6 times for 200 and 0.4 for 2000; of 16 states as much, of 32 states 2.5 times.
        return potentials.is_cuda or (self.num_states <= 12 and self.duration > 50)


class HiddenMarkov(TorchDistribution):
    r"""A sequence x_1, ..., x_n that a hidden path gives, the path summed out; in replicates of the same length.

        s ~ MarkovChain        x_t | s_t ~ emission[s_t]

    Pyro's `DiscreteHMM` has sequences of one length, and a state before the first datum: here s_1 gives x_1.

    Args:
        chain: of the path, which knows the lengths.
        emission: p(x_t | s_t = k) at the index k of its last batch dim: batch shape (..., T or 1, S), or (S,).

    Returns:
        From `log_prob(x)` of x (..., T, \*event): nats, (...), exactly; what is after the end counts for nothing, but
        has to be in the support. From `sample`: (..., T, \*event), zeros after the end.

    >>> chain = MarkovChain(torch.zeros(2), torch.zeros(1, 2, 2), duration=3, lengths=torch.tensor([3, 1]))
    >>> hidden = HiddenMarkov(chain, dist.Bernoulli(torch.tensor([0.0, 0.5])))
    >>> hidden.log_prob(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])).exp()  # 3/4 * 1/4 * 3/4 and 3/4
    tensor([0.1406, 0.7500])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = False

    def __init__(self, chain: MarkovChain, emission: TorchDistribution, validate_args: bool | None = None) -> None:
        states = emission.batch_shape[-1:]
        if states != (chain.num_states,):
            raise ValueError(
                f"emission has batch shape {tuple(emission.batch_shape)}, the last wanted is {chain.num_states}, the "
                "number of states; pass one distribution for each state"
            )
        batch_shape = torch.broadcast_shapes(chain.batch_shape, emission.batch_shape[:-2])
        self.chain, self.emission = chain.expand(batch_shape), emission
        super().__init__(batch_shape, torch.Size([chain.duration, *emission.event_shape]), validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """That of the emission, at each step."""
        return constraints.independent(self.emission.support, 1)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The distribution with another batch shape."""
        new = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)
        new._batch_shape = torch.Size(batch_shape)
        new.chain = self.chain.expand(batch_shape)
        return new

    def potentials(self, value: Tensor) -> Tensor:
        """log p(x_t | s_t), (..., T, S)."""
        return self.emission.log_prob(value.unsqueeze(-1 - self.emission.event_dim))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of sequences, in nats."""
        log_p = self.chain.log_normalizer(self.potentials(value))
        return log_p.expand(torch.broadcast_shapes(log_p.shape, self.batch_shape))

    def posterior(self, value: Tensor) -> MarkovChain:
        """p(s | x): its `marginals`, `pair_marginals` and `mode` are those of forward-backward and Viterbi."""
        return self.chain.tilted(self.potentials(value))[0].expand(
            torch.broadcast_shapes(value.shape[: value.dim() - self.event_dim], self.batch_shape)
        )

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Sequences, (*sample_shape, *batch_shape, T, *event)."""
        return self.given(self.chain.sample(sample_shape))

    @torch.no_grad()
    def given(self, path: Tensor) -> Tensor:
        """Sequences of paths (..., T)."""
        event = self.emission.event_shape
        every = self.emission.expand((*path.shape, self.chain.num_states)).sample()  # (..., T, S, *event)
        chosen = path.reshape(*path.shape, 1, *[1] * len(event)).expand(*path.shape, 1, *event)
        x = every.gather(path.dim(), chosen).squeeze(path.dim())
        return torch.where(self.chain.valid.reshape(*self.chain.valid.shape, *[1] * len(event)), x, torch.zeros_like(x))


@register_kl(MarkovChain, MarkovChain)
def _kl_chains(q: MarkovChain, p: MarkovChain) -> Tensor:
    """E_q log q - log p: a sum over pairs of neighbours. The lengths are those of q."""
    first, pairs = q.marginals[..., 0, :], q.pair_marginals
    cross = (first * _finite(p.initial_logits, first == 0)).sum(-1)
    cross = cross + (pairs * _finite(p._steps(), pairs == 0)).sum((-3, -2, -1))
    return -q.entropy() - cross


def _finite(logits: Tensor, never: Tensor) -> Tensor:
    """Minus infinity as 0 where probability 0 multiplies it: 0 * -inf has no gradient, even if it is masked later."""
    return torch.where(never & (logits == -torch.inf), 0.0, logits)


def _logsumexp(values: Tensor) -> Tensor:
    """Over the last dim; torch's own has no gradient where all are minus infinity: a state that leads nowhere."""
    shift = values.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(values.dtype).min)
    return safe_log((values - shift).exp().sum(-1)) + shift[..., 0]


def _normalised(logits: Tensor) -> Tensor:
    """Logits of each row; one that is minus infinity throughout, of a state that can't be reached, stays so."""
    return logits - _logsumexp(logits)[..., None].clamp(min=torch.finfo(logits.dtype).min)
