"""Objectives and bounds: functions of the importance weights and the site ledger of any pair."""

from pyrovae.objectives.base import Objective
from pyrovae.objectives.elbo import ELBO
from pyrovae.objectives.importance import IWAE
from pyrovae.objectives.weights import Ledger, Term, ledger, log_weights

__all__ = ["ELBO", "IWAE", "Ledger", "Objective", "Term", "ledger", "log_weights"]
