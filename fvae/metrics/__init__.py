"""Disentanglement scores of a representation: codes of a full grid of factors, or with labels.

Scores are comparable only within one protocol: each protocol is a named set of constants in
:mod:`fvae.metrics.protocols`, and every result names the one that made it.
"""

from fvae.metrics.beta_vae import BetaVaeResult, beta_vae_score
from fvae.metrics.constants import (
    EXPLICITNESS,
    GAUSSIAN,
    INFOMEC,
    IRS,
    JEMMIG,
    MCC,
    MIG_SUP,
    MODULARITY,
    MUTUAL_INFORMATION,
    TOTAL_CORRELATION,
    BinsProtocol,
    ExplicitnessProtocol,
    InfomecProtocol,
    IrsProtocol,
    MigSupProtocol,
    SamplesProtocol,
    TotalCorrelationProtocol,
)
from fvae.metrics.dci import DciResult, dci_score
from fvae.metrics.downstream import DownstreamResult, downstream_score
from fvae.metrics.explicitness import ExplicitnessResult, explicitness_score
from fvae.metrics.factor_vae import FactorVaeResult, factor_vae_score
from fvae.metrics.factors import Factors
from fvae.metrics.gaussian_tc import GaussianTcResult, gaussian_tc_score
from fvae.metrics.infomec import InfomecResult, infomec_score
from fvae.metrics.irs import IrsResult, irs_score
from fvae.metrics.jemmig import JemmigResult, jemmig_score
from fvae.metrics.mcc import MccResult, mcc_score
from fvae.metrics.mig import MigResult, mig_score
from fvae.metrics.mig_sup import MigSupResult, mig_sup_score
from fvae.metrics.modularity import ModularityResult, modularity_score
from fvae.metrics.mutual_information import MutualInformationResult, mutual_information_score
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
from fvae.metrics.total_correlation import TotalCorrelationResult, total_correlation_score
from fvae.metrics.wasserstein import WassersteinResult, wasserstein_score
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
    "TOTAL_CORRELATION",
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
    "TotalCorrelationProtocol",
    "TotalCorrelationResult",
    "beta_vae_score",
    "dci_score",
    "downstream_score",
    "factor_vae_score",
    "mig_score",
    "needed",
    "sap_score",
    "total_correlation_score",
    "ExplicitnessResult",
    "explicitness_score",
    "GaussianTcResult",
    "gaussian_tc_score",
    "InfomecResult",
    "infomec_score",
    "IrsResult",
    "irs_score",
    "JemmigResult",
    "jemmig_score",
    "MccResult",
    "mcc_score",
    "MigSupResult",
    "mig_sup_score",
    "ModularityResult",
    "modularity_score",
    "MutualInformationResult",
    "mutual_information_score",
    "WassersteinResult",
    "wasserstein_score",
    "MODULARITY",
    "EXPLICITNESS",
    "IRS",
    "MIG_SUP",
    "JEMMIG",
    "INFOMEC",
    "MCC",
    "GAUSSIAN",
    "MUTUAL_INFORMATION",
    "BinsProtocol",
    "MigSupProtocol",
    "IrsProtocol",
    "ExplicitnessProtocol",
    "InfomecProtocol",
    "SamplesProtocol",
]
