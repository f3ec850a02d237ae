"""Evaluation of any pair: bounds and likelihoods, and what it encodes, reconstructs and generates."""

from pyrovae.evaluation.annealing import Sandwich, ais, bdmc
from pyrovae.evaluation.classification import classification_error, classify
from pyrovae.evaluation.clustering import (
    Components,
    ari,
    assign_clusters,
    cluster_accuracy,
    components,
    nmi,
    responsibilities,
)
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
from pyrovae.evaluation.latent_data import latent_data
from pyrovae.evaluation.likelihood import ElboParts, elbo, log_likelihood
from pyrovae.evaluation.optimal_prior import PriorComparison, compare_priors
from pyrovae.evaluation.predictive import decode, encode, generate, reconstruct
from pyrovae.evaluation.states import pair_marginals, posterior_marginals, state_posterior, viterbi
from pyrovae.evaluation.surgery import Surgery, surgery
from pyrovae.evaluation.units import ActiveUnits, active_layers, active_units
from pyrovae.evaluation.walks import interpolate, manifold, traverse

__all__ = [
    "ActiveUnits",
    "Components",
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
    "ari",
    "assign_clusters",
    "bdmc",
    "classification_error",
    "classify",
    "cluster_accuracy",
    "code_perplexity",
    "compare_priors",
    "components",
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
    "latent_data",
    "log_likelihood",
    "manifold",
    "missing_log_likelihood",
    "nmi",
    "pair_marginals",
    "perplexity_of",
    "posterior_marginals",
    "reconstruct",
    "responsibilities",
    "state_posterior",
    "surgery",
    "traverse",
    "viterbi",
]
