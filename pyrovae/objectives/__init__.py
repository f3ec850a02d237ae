"""Objectives and bounds: functions of the importance weights and the site ledger of any pair."""

from pyrovae.objectives.base import Objective
from pyrovae.objectives.elbo import ELBO
from pyrovae.objectives.importance import IWAE
from pyrovae.objectives.mmd import MMD
from pyrovae.objectives.total_correlation import TotalCorrelation, decomposition, stratified, weighted
from pyrovae.objectives.vimco import VIMCO
from pyrovae.objectives.wake_sleep import ReweightedWakeSleep, WakeSleep
from pyrovae.objectives.weights import Ledger, Term, ledger, log_weights

__all__ = [
    "ELBO",
    "IWAE",
    "MMD",
    "VIMCO",
    "Ledger",
    "Objective",
    "ReweightedWakeSleep",
    "Term",
    "TotalCorrelation",
    "WakeSleep",
    "decomposition",
    "ledger",
    "log_weights",
    "stratified",
    "weighted",
]
