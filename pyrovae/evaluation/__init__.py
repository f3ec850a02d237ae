"""Evaluation of any pair: bounds and likelihoods, and what it encodes, reconstructs and generates."""

from pyrovae.evaluation.likelihood import ActiveUnits, ElboParts, Estimate, active_units, elbo, log_likelihood
from pyrovae.evaluation.predictive import decode, encode, generate, reconstruct
from pyrovae.evaluation.walks import interpolate, manifold, traverse

__all__ = [
    "ActiveUnits",
    "ElboParts",
    "Estimate",
    "active_units",
    "decode",
    "elbo",
    "encode",
    "generate",
    "interpolate",
    "log_likelihood",
    "manifold",
    "reconstruct",
    "traverse",
]
