"""Evaluation of any pair: bounds and likelihoods, and what it encodes, reconstructs and generates."""

from pyrovae.evaluation.annealing import Sandwich, ais, bdmc
from pyrovae.evaluation.codes import code_perplexity, perplexity_of
from pyrovae.evaluation.estimates import Estimate
from pyrovae.evaluation.expectations import Expectation, expectation
from pyrovae.evaluation.gaps import Gaps, gaps
from pyrovae.evaluation.implicit_prior import (
    ImplicitLikelihood,
    TiltedPair,
    generate_from_aggregate,
    implicit_log_likelihood,
)
from pyrovae.evaluation.imputation import Imputation, impute, impute_by_gibbs, missing_log_likelihood
from pyrovae.evaluation.likelihood import ElboParts, elbo, log_likelihood
from pyrovae.evaluation.optimal_prior import PriorComparison, compare_priors
from pyrovae.evaluation.predictive import decode, encode, generate, reconstruct
from pyrovae.evaluation.surgery import Surgery, surgery
from pyrovae.evaluation.units import ActiveUnits, active_layers, active_units
from pyrovae.evaluation.walks import interpolate, manifold, traverse

__all__ = [
    "ActiveUnits",
    "ElboParts",
    "Estimate",
    "Expectation",
    "Gaps",
    "ImplicitLikelihood",
    "Imputation",
    "PriorComparison",
    "Sandwich",
    "Surgery",
    "TiltedPair",
    "active_layers",
    "active_units",
    "ais",
    "bdmc",
    "code_perplexity",
    "compare_priors",
    "decode",
    "elbo",
    "encode",
    "expectation",
    "gaps",
    "generate",
    "generate_from_aggregate",
    "implicit_log_likelihood",
    "impute",
    "impute_by_gibbs",
    "interpolate",
    "log_likelihood",
    "manifold",
    "missing_log_likelihood",
    "perplexity_of",
    "reconstruct",
    "surgery",
    "traverse",
]
