"""Objectives and bounds: functions of the importance weights and the site ledger of any pair."""

from pyrovae.objectives.base import Objective
from pyrovae.objectives.classical import (
    MarginalLikelihood,
    Posterior,
    exact_posterior,
    log_marginal,
    mean_field_posterior,
)
from pyrovae.objectives.elbo import ELBO
from pyrovae.objectives.importance import IWAE
from pyrovae.objectives.weights import Ledger, Term, ledger, log_weights

__all__ = [
    "ELBO",
    "IWAE",
    "Ledger",
    "MarginalLikelihood",
    "Objective",
    "Posterior",
    "Term",
    "exact_posterior",
    "ledger",
    "log_marginal",
    "log_weights",
    "mean_field_posterior",
]
