"""The evidence lower bound of pairs that sum some of their states by message passing."""

from __future__ import annotations

from torch import Tensor

from pyrovae.objectives.base import Objective
from pyrovae.objectives.weights import Ledger

__all__ = ["StatesSummed"]


class StatesSummed(Objective):
    r"""The ELBO of a pair that sums its discrete states itself, where the guide's samples of them have no gradient.

        E_q(s, z | x) [log p(x, s, z) - log q(s, z | x)], exact in s, by K draws of z for each state

    The pair has a method `states_summed(*batch, num_particles=K)`, which gives the value of each row, (B,) in nats, as
    `StructuredHMM` does. Its mean is that of `ELBO`.

    Args:
        num_particles: K.
        plate: name of the data plate, where it is not plain.

    Raises:
        TypeError: for a pair without the method.

    Source: Johnson et al. 2016, https://arxiv.org/abs/1603.06277, section 4.2

    >>> import torch
    >>> from pyrovae import StructuredHMM, fit
    >>> pair = StructuredHMM((5, 2), latent_dim=1, num_states=2, hidden=(3,))
    >>> run = fit(pair, torch.rand(8, 5, 2).round(), objective=StatesSummed(), max_epochs=1, seed=0, progress=False)
    """

    reparametrised = False

    def per_datum(self, drawn: Ledger) -> Tensor:
        """The bound, (B,)."""
        pair = getattr(drawn.pair.model, "__self__", drawn.pair)
        if not hasattr(pair, "states_summed"):
            raise TypeError(
                f"{type(pair).__name__} has no states_summed(*batch, num_particles=); use ELBO(), or VIMCO(5) for "
                "discrete sites without a gradient"
            )
        return pair.states_summed(*drawn.batch, num_particles=self.num_particles)
