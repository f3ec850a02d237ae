"""The variational-autoencoder family as Pyro model/guide pairs, and tools that take any pair.

>>> import pyrovae as pv
>>> data = pv.data.load("digits")
>>> vae = pv.VAE(data.event_shape, latent_dim=16)
>>> run = pv.fit(vae, data, objective=pv.IWAE(8), max_epochs=1, seed=0, progress=False)
>>> print(pv.log_likelihood(vae, data.test, num_samples=100))  # doctest: +SKIP
-35.9 +- 0.1 nats
"""

from pyrovae import (
    conditionals,
    data,
    distributions,
    flows,
    nets,
    plots,
    priors,
)
from pyrovae.checks import (
    check,
)
from pyrovae.evaluation import (
    TiltedPair,
    active_layers,
    active_units,
    ais,
    bdmc,
    compare_priors,
    elbo,
    expectation,
    gaps,
    generate_from_aggregate,
    implicit_log_likelihood,
    log_likelihood,
    surgery,
)
from pyrovae.models import (
    CVAE,
    NVDM,
    VAE,
    Autoencoder,
    HierarchicalVAE,
    InpaintingVAE,
    LadderVAE,
    MeanFieldVaDE,
    NormalizingFlow,
    PartialVAE,
    PosteriorMatching,
    ProdLDA,
    VaDE,
)
from pyrovae.models.base import (
    Pair,
    as_pair,
    structure,
)
from pyrovae.models.local import (
    MeanField,
)
from pyrovae.objectives import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    MMD,
    PIWAE,
    STL,
    VIMCO,
    AdaptiveContrast,
    AdversarialAutoencoder,
    AdversarialVB,
    Beta,
    Capacity,
    DensityRatio,
    DReG,
    FactorVAE,
    FreeBits,
    ImplicitPrior,
    JointRatio,
    MarginalLikelihood,
    Objective,
    RatioObjective,
    Renyi,
    ReweightedWakeSleep,
    TotalCorrelation,
    WakeSleep,
    exact_posterior,
    forward_kl,
    ledger,
    log_marginal,
    log_weights,
    mean_field_posterior,
    reverse_kl,
)
from pyrovae.training import (
    schedules,
)
from pyrovae.training.em import (
    Ascent,
    CoordinateAscent,
    Exact,
    MonteCarlo,
    fit_em,
)
from pyrovae.training.fit import (
    fit,
)
from pyrovae.training.loop import (
    Callback,
    Run,
)
from pyrovae.training.pretraining import (
    pretrain_stacked,
)
from pyrovae.training.runs import (
    load,
)

__version__ = "0.1.0"

__all__ = [
    "CIWAE",
    "CVAE",
    "ELBO",
    "IWAE",
    "MIWAE",
    "MMD",
    "NVDM",
    "PIWAE",
    "STL",
    "VAE",
    "VIMCO",
    "AdaptiveContrast",
    "AdversarialAutoencoder",
    "AdversarialVB",
    "Ascent",
    "Autoencoder",
    "Beta",
    "Callback",
    "Capacity",
    "CoordinateAscent",
    "DReG",
    "DensityRatio",
    "Exact",
    "FactorVAE",
    "FreeBits",
    "HierarchicalVAE",
    "ImplicitPrior",
    "InpaintingVAE",
    "JointRatio",
    "LadderVAE",
    "MarginalLikelihood",
    "MeanField",
    "MeanFieldVaDE",
    "MonteCarlo",
    "NormalizingFlow",
    "Objective",
    "Pair",
    "PartialVAE",
    "PosteriorMatching",
    "ProdLDA",
    "RatioObjective",
    "Renyi",
    "ReweightedWakeSleep",
    "Run",
    "TiltedPair",
    "TotalCorrelation",
    "VaDE",
    "WakeSleep",
    "active_layers",
    "active_units",
    "ais",
    "as_pair",
    "bdmc",
    "check",
    "compare_priors",
    "conditionals",
    "data",
    "distributions",
    "elbo",
    "exact_posterior",
    "expectation",
    "fit",
    "fit_em",
    "flows",
    "forward_kl",
    "gaps",
    "generate_from_aggregate",
    "implicit_log_likelihood",
    "ledger",
    "load",
    "log_likelihood",
    "log_marginal",
    "log_weights",
    "mean_field_posterior",
    "nets",
    "plots",
    "pretrain_stacked",
    "priors",
    "reverse_kl",
    "schedules",
    "structure",
    "surgery",
]
