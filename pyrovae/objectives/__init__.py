"""Objectives and bounds: functions of the importance weights and the site ledger of any pair."""

from pyrovae.objectives.adversarial import (
    AdaptiveContrast,
    AdversarialAutoencoder,
    AdversarialVB,
    JointRatio,
    forward_kl,
    reverse_kl,
)
from pyrovae.objectives.base import (
    Objective,
)
from pyrovae.objectives.classical import (
    MarginalLikelihood,
    Posterior,
    exact_posterior,
    log_marginal,
    mean_field_posterior,
)
from pyrovae.objectives.commitment import (
    Commitment,
)
from pyrovae.objectives.constrained import (
    Beta,
    Capacity,
    FreeBits,
)
from pyrovae.objectives.contractive import (
    Contractive,
)
from pyrovae.objectives.density_ratio import (
    DensityRatio,
    FactorVAE,
    ImplicitPrior,
    RatioObjective,
)
from pyrovae.objectives.elbo import (
    ELBO,
)
from pyrovae.objectives.importance import (
    CIWAE,
    IWAE,
    MIWAE,
    Renyi,
)
from pyrovae.objectives.mmd import (
    MMD,
)
from pyrovae.objectives.path_gradients import (
    PIWAE,
    STL,
    DReG,
)
from pyrovae.objectives.semi_supervised import (
    SemiSupervised,
)
from pyrovae.objectives.structured import (
    StatesSummed,
)
from pyrovae.objectives.total_correlation import (
    TotalCorrelation,
    decomposition,
    stratified,
    weighted,
)
from pyrovae.objectives.vimco import (
    VIMCO,
)
from pyrovae.objectives.wake_sleep import (
    ReweightedWakeSleep,
    WakeSleep,
)
from pyrovae.objectives.weights import (
    Ledger,
    Term,
    ledger,
    log_weights,
)

__all__ = [
    "CIWAE",
    "ELBO",
    "IWAE",
    "MIWAE",
    "MMD",
    "PIWAE",
    "STL",
    "VIMCO",
    "AdaptiveContrast",
    "AdversarialAutoencoder",
    "AdversarialVB",
    "Beta",
    "Capacity",
    "Commitment",
    "Contractive",
    "DReG",
    "DensityRatio",
    "FactorVAE",
    "FreeBits",
    "ImplicitPrior",
    "JointRatio",
    "Ledger",
    "MarginalLikelihood",
    "Objective",
    "Posterior",
    "RatioObjective",
    "Renyi",
    "ReweightedWakeSleep",
    "SemiSupervised",
    "StatesSummed",
    "Term",
    "TotalCorrelation",
    "WakeSleep",
    "decomposition",
    "exact_posterior",
    "forward_kl",
    "ledger",
    "log_marginal",
    "log_weights",
    "mean_field_posterior",
    "reverse_kl",
    "stratified",
    "weighted",
]
