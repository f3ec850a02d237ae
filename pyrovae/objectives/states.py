"""Hidden paths of any pair's sequences, by forward-backward: posterior, marginals, the most probable path."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from pyro.distributions import DiscreteHMM, Independent
from torch import Tensor

from pyrovae.distributions import HiddenMarkov, MarkovChain
from pyrovae.models.base import as_pair, isolated_random_state

__all__ = ["hidden_markov", "pair_marginals", "posterior_marginals", "state_posterior", "viterbi"]


def state_posterior(pair: Any, *batch: Any, site: str = "x") -> MarkovChain:
    r"""p(s | x), a Markov chain itself, of a model whose observed site is a `HiddenMarkov` or Pyro's `DiscreteHMM`.

        p(s_t | s_{t-1}, x) prop. to p(s_t | s_{t-1}) p(x_t, ..., x_n | s_t)

    Sites that the model samples, such as parameters with a prior, are drawn from the guide.

    Args:
        pair: see `pyrovae.as_pair`.
        batch: what model and guide are called with, or one tuple of it.
        site: name of the observed sequences.

    Returns:
        the chain, batch shape (B,); s_1 is the state of the first datum, for Pyro's chain too.

    Raises:
        ValueError: where the site is no observed sequence of either kind.

    Source: Rabiner 1989, https://doi.org/10.1109/5.18626

    >>> import pyro.distributions as dist
    >>> def model(x):
    ...     emission = dist.Normal(torch.tensor([-1.0, 1.0]), 1.0)
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", dist.DiscreteHMM(torch.zeros(2), torch.zeros(2, 2), emission, duration=3), obs=x)
    >>> import pyro
    >>> chain = state_posterior((model, lambda x: None), torch.tensor([[-5.0, 0.0, 5.0]]))
    >>> chain.marginals.round(decimals=2)
    tensor([[[1.0000, 0.0000],
             [0.5000, 0.5000],
             [0.0000, 1.0000]]])
    """
    found, value = hidden_markov(pair, *batch, site=site)
    return found.posterior(value)


def posterior_marginals(pair: Any, *batch: Any, site: str = "x") -> Tensor:
    """p(s_t | x), (B, T, S): zeros after the end of a sequence; arguments as for `state_posterior`."""
    return state_posterior(pair, *batch, site=site).marginals


def pair_marginals(pair: Any, *batch: Any, site: str = "x") -> Tensor:
    """p(s_t, s_{t+1} | x), (B, T - 1, S, S), old state first; arguments as for `state_posterior`."""
    return state_posterior(pair, *batch, site=site).pair_marginals


def viterbi(pair: Any, *batch: Any, site: str = "x") -> Tensor:
    """The most probable path given x, (B, T) integers, 0 after the end; arguments as for `state_posterior`."""
    with torch.no_grad():
        return state_posterior(pair, *batch, site=site).mode


def hidden_markov(pair: Any, *batch: Any, site: str = "x") -> tuple[HiddenMarkov, Tensor]:
    """The distribution of a pair's sequences, and the sequences; arguments as for `state_posterior`."""
    pair = as_pair(pair)
    batch = tuple(batch[0]) if len(batch) == 1 and isinstance(batch[0], tuple | list) else batch
    with isolated_random_state():
        guide = poutine.trace(pair.guide).get_trace(*batch)
        trace = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(*batch)
    found = trace.nodes.get(site)
    fn = None if found is None else found["fn"]
    while isinstance(fn, Independent):
        fn = fn.base_dist
    if not isinstance(fn, HiddenMarkov | DiscreteHMM) or not found["is_observed"]:
        raise ValueError(
            f"site {site!r} of the model is {type(fn).__name__ if found else 'missing'}, not observed sequences of a "
            f"HiddenMarkov or DiscreteHMM; pass site=, one of {trace.observation_nodes}"
        )
    if isinstance(fn, DiscreteHMM):
        fn = _without_the_state_before(fn, found["value"].shape[-1 - fn.observation_dist.event_dim])
    return fn, found["value"]


def _without_the_state_before(hmm: DiscreteHMM, duration: int) -> HiddenMarkov:
    """Pyro's chain goes one step before the first datum."""
    moves = hmm.transition_logits if hmm.transition_logits.dim() > 2 else hmm.transition_logits[None]
    initial = (hmm.initial_logits[..., :, None] + moves[..., 0, :, :]).logsumexp(-2)
    later = moves if moves.shape[-3] == 1 else moves[..., 1:, :, :]
    chain = MarkovChain(initial, later, duration=duration, validate_args=False)
    return HiddenMarkov(chain, hmm.observation_dist, validate_args=False).expand(hmm.batch_shape)
