"""The distribution of a pair's sequences with its hidden states, for `pyrovae.state_posterior` and Baum-Welch."""

from __future__ import annotations

from typing import Any

from pyro import poutine
from pyro.distributions import DiscreteHMM, Independent
from torch import Tensor

from pyrovae.distributions import HiddenMarkov, MarkovChain
from pyrovae.models.base import as_pair, isolated_random_state

__all__ = ["hidden_markov"]


def hidden_markov(pair: Any, *batch: Any, site: str = "x") -> tuple[HiddenMarkov, Tensor]:
    """The distribution of a pair's sequences, with gradients, and the sequences.

    Args:
        pair: see `pyrovae.as_pair`.
        batch: what model and guide are called with.
        site: name of the sequences.

    Raises:
        ValueError: where the site is no observed sequence.
    """
    pair = as_pair(pair)
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
