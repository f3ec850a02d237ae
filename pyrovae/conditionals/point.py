"""A point: the code of a deterministic encoder."""

import pyro.distributions as dist
from torch import Tensor

from pyrovae.conditionals.base import Conditional

__all__ = ["Point"]


class Point(Conditional):
    """z = loc(h), for certain: the code of an auto-encoder.

    Its log_prob is 0 at the point and -inf elsewhere, no density: a pair that has it as guide is given no bound by
    `ELBO`. `pyrovae.AdversarialAutoencoder` trains a `VAE` with it, the deterministic encoder of Makhzani et al. 2016.

    Args:
        feature_shape: shape of one datum's features.
        event_shape: shape of one z.

    Returns:
        From `forward(features)`: a Delta at the head's output.

    Raises:
        TypeError, ValueError: as in `Conditional`.
    """

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Delta(loc(h))."""
        (loc,) = self.head(features)
        return dist.Delta(loc, event_dim=len(self.event_shape))
