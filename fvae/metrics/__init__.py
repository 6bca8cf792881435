"""Disentanglement scores of a representation: codes of a full grid of factors, or with labels.

Scores are comparable only within one protocol: each protocol is a named set of constants in
:mod:`fvae.metrics.protocols`, and every result names the one that made it.
"""

from fvae.metrics.beta_vae import BetaVaeResult, beta_vae_score
from fvae.metrics.dci import DciResult, dci_score
from fvae.metrics.downstream import DownstreamResult, downstream_score
from fvae.metrics.factor_vae import FactorVaeResult, factor_vae_score
from fvae.metrics.factors import Factors
from fvae.metrics.mig import MigResult, mig_score
from fvae.metrics.protocols import (
    BETA_VAE,
    DCI,
    DCI_PROTOCOLS,
    DOWNSTREAM,
    FACTOR_VAE,
    MIG,
    PROTOCOLS,
    SAP,
    BetaVaeProtocol,
    BoostedDciProtocol,
    DciProtocol,
    DownstreamProtocol,
    FactorVaeProtocol,
    LinearDciProtocol,
    MigProtocol,
    SapProtocol,
)
from fvae.metrics.sampling import needed
from fvae.metrics.sap import SapResult, sap_score
from fvae.registry import METRICS

__all__ = [
    "BETA_VAE",
    "DCI",
    "DCI_PROTOCOLS",
    "DOWNSTREAM",
    "FACTOR_VAE",
    "METRICS",
    "MIG",
    "PROTOCOLS",
    "SAP",
    "BetaVaeProtocol",
    "BetaVaeResult",
    "BoostedDciProtocol",
    "DciProtocol",
    "DciResult",
    "DownstreamProtocol",
    "DownstreamResult",
    "FactorVaeProtocol",
    "FactorVaeResult",
    "Factors",
    "LinearDciProtocol",
    "MigProtocol",
    "MigResult",
    "SapProtocol",
    "SapResult",
    "beta_vae_score",
    "dci_score",
    "downstream_score",
    "factor_vae_score",
    "mig_score",
    "needed",
    "sap_score",
]
