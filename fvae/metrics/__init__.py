"""Disentanglement scores of a representation: codes of a full grid of factors, or with labels.

Scores are comparable only within one protocol: each protocol is a named set of constants in
:mod:`fvae.metrics.protocols`, and every result names the one that made it.
"""

from fvae.metrics.beta_vae import BetaVaeResult, beta_vae_score
from fvae.metrics.dci import DciResult, dci_score
from fvae.metrics.factor_vae import FactorVaeResult, factor_vae_score
from fvae.metrics.factors import Factors
from fvae.metrics.mig import MigResult, mig_score
from fvae.metrics.protocols import (
    BETA_VAE,
    DCI,
    FACTOR_VAE,
    MIG,
    PROTOCOLS,
    SAP,
    TOTAL_CORRELATION,
    BetaVaeProtocol,
    DciProtocol,
    FactorVaeProtocol,
    MigProtocol,
    SapProtocol,
    TotalCorrelationProtocol,
)
from fvae.metrics.sampling import needed
from fvae.metrics.sap import SapResult, sap_score
from fvae.metrics.total_correlation import TotalCorrelationResult, total_correlation_score
from fvae.registry import METRICS

__all__ = [
    "BETA_VAE",
    "DCI",
    "FACTOR_VAE",
    "METRICS",
    "MIG",
    "PROTOCOLS",
    "SAP",
    "TOTAL_CORRELATION",
    "BetaVaeProtocol",
    "BetaVaeResult",
    "DciProtocol",
    "DciResult",
    "FactorVaeProtocol",
    "FactorVaeResult",
    "Factors",
    "MigProtocol",
    "MigResult",
    "SapProtocol",
    "SapResult",
    "TotalCorrelationProtocol",
    "TotalCorrelationResult",
    "beta_vae_score",
    "dci_score",
    "factor_vae_score",
    "mig_score",
    "needed",
    "sap_score",
    "total_correlation_score",
]
