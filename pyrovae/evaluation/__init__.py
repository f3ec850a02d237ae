"""Evaluation of any pair: bounds and likelihoods, and what it encodes, reconstructs and generates."""

from pyrovae.evaluation.disentanglement import (
    DCI,
    beta_vae_score,
    dci,
    disentanglement_scores,
    factor_vae_score,
    mig,
    modularity,
    sap,
)
from pyrovae.evaluation.likelihood import ActiveUnits, ElboParts, Estimate, active_units, elbo, log_likelihood
from pyrovae.evaluation.predictive import decode, encode, generate, reconstruct
from pyrovae.evaluation.walks import interpolate, manifold, traverse

__all__ = [
    "DCI",
    "ActiveUnits",
    "ElboParts",
    "Estimate",
    "active_units",
    "beta_vae_score",
    "dci",
    "decode",
    "disentanglement_scores",
    "elbo",
    "encode",
    "factor_vae_score",
    "generate",
    "interpolate",
    "log_likelihood",
    "manifold",
    "mig",
    "modularity",
    "reconstruct",
    "sap",
    "traverse",
]
