"""Objectives and bounds: functions of the importance weights and the site ledger of any pair."""

from pyrovae.objectives.base import Objective
from pyrovae.objectives.constrained import Beta, Capacity, FreeBits
from pyrovae.objectives.elbo import ELBO
from pyrovae.objectives.importance import CIWAE, IWAE, MIWAE, Renyi
from pyrovae.objectives.path_gradients import PIWAE, STL, DReG
from pyrovae.objectives.weights import Ledger, Term, ledger, log_weights

__all__ = [
    "CIWAE",
    "ELBO",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "STL",
    "Beta",
    "Capacity",
    "DReG",
    "FreeBits",
    "Ledger",
    "Objective",
    "Renyi",
    "Term",
    "ledger",
    "log_weights",
]
