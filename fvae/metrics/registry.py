"""The metrics of this package; to add one, add an entry."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from fvae.metrics import sampling
from fvae.metrics.beta_vae import beta_vae_error, beta_vae_score
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
)
from fvae.metrics.dci import dci_score
from fvae.metrics.downstream import downstream_score
from fvae.metrics.explicitness import explicitness_score
from fvae.metrics.factor_vae import factor_vae_score
from fvae.metrics.factors import Factors
from fvae.metrics.gaussian_tc import gaussian_tc_score
from fvae.metrics.infomec import infomec_score
from fvae.metrics.irs import irs_score
from fvae.metrics.jemmig import jemmig_score
from fvae.metrics.mcc import mcc_score
from fvae.metrics.mig import mig_score
from fvae.metrics.mig_sup import mig_sup_score
from fvae.metrics.modularity import modularity_score
from fvae.metrics.mutual_information import mutual_information_score
from fvae.metrics.protocols import DCI, DCI_PROTOCOLS, DOWNSTREAM, MIG, PROTOCOLS, SAP
from fvae.metrics.resampling import of_images, of_votes
from fvae.metrics.sap import sap_score
from fvae.metrics.total_correlation import total_correlation_score
from fvae.metrics.wasserstein import wasserstein_score
from fvae.registry import METRICS, Metric


def _of_samples(score: Callable[..., Any]) -> Callable[..., Any]:
    """A score that learns from samples has one protocol, and no use for the KL."""
    return lambda codes, factors, protocol, seed, kl, **options: score(
        codes, factors, seed, **options
    )


def _sampled(train: int, test: int = 0) -> Callable[..., Iterator[Tensor]]:
    return lambda factors, protocol, seed: sampling.sample_rows(factors, train, test, seed)


def _samples(of: Any) -> tuple[int, int]:
    return of.train_samples, of.test_samples


def _unlabelled(count: int) -> Callable[..., Iterator[Tensor]]:
    return lambda factors, protocol, seed: sampling.code_rows(factors, count, seed)


# Each says how its sampling error is made. Votes and points are drawn again from themselves. What
# is a cheap function of 10,000 images (a histogram, a correlation, a regression: milliseconds) is
# taken again of others. Where one turn takes a second (sap), some (explicitness, infomec, the
# forests of dci) or most of a minute (boosted trees, total_correlation's discriminator) there is no
# error: to draw the test images alone again would leave out what training owes to its draw.
for _entry in (
    Metric(
        "factor_vae", "FactorVAE metric",
        lambda codes, factors, protocol, seed, kl: factor_vae_score(
            codes, factors, protocol, seed, kl=kl
        ),
        sampling.factor_vae_chunks, PROTOCOLS, error=of_votes,
    ),
    Metric(
        "beta_vae", "Higgins' (beta-VAE) metric",
        lambda codes, factors, protocol, seed, kl: beta_vae_score(codes, factors, protocol, seed),
        sampling.beta_vae_chunks, error=beta_vae_error,
    ),
    Metric(
        "mig", "mutual information gap", _of_samples(mig_score), _sampled(MIG.samples),
        options=("bins",), error=of_images(MIG.samples),
    ),
    Metric(
        "sap", "separated attribute predictability", _of_samples(sap_score),
        _sampled(SAP.train_samples, SAP.test_samples),
    ),
    Metric(
        "dci", "disentanglement of DCI", _of_samples(dci_score),
        _sampled(DCI.train_samples, DCI.test_samples),
    ),
    *(
        Metric(
            f"dci_{name}", f"disentanglement of DCI by {by}",
            _of_samples(partial(dci_score, protocol=name)),
            _sampled(*_samples(DCI_PROTOCOLS[name])),
            usual=False, error=error,
        )
        for name, by, error in (
            ("locatello2019", "boosted trees", None),
            # Its score is one of the weights, which no test image enters.
            ("linear", "L1 regression", of_images(*_samples(DCI_PROTOCOLS["linear"]))),
        )
    ),
    Metric(
        "downstream", "downstream accuracy", _of_samples(downstream_score),
        _sampled(max(DOWNSTREAM.labels), DOWNSTREAM.test_samples), usual=False,
    ),
    Metric(
        "modularity", "modularity (does each dimension know one factor?)",
        _of_samples(modularity_score), _sampled(MODULARITY.samples),
        usual=False, error=of_images(MODULARITY.samples),
    ),
    Metric(
        "explicitness", "explicitness (can a linear classifier tell the values?)",
        _of_samples(explicitness_score),
        _sampled(EXPLICITNESS.train_samples, EXPLICITNESS.test_samples), usual=False,
    ),
    Metric(
        "irs", "interventional robustness score", _of_samples(irs_score), _sampled(IRS.samples),
        usual=False, error=of_images(IRS.samples),
    ),
    Metric(
        "mig_sup", "mutual information gap of each dimension over the factors",
        _of_samples(mig_sup_score), _sampled(MIG_SUP.samples),
        usual=False, error=of_images(MIG_SUP.samples),
    ),
    Metric(
        "jemmig", "joint entropy minus mutual information gap, 1 is best",
        _of_samples(jemmig_score), _sampled(JEMMIG.samples),
        usual=False, error=of_images(JEMMIG.samples),
    ),
    Metric(
        "infomec", "InfoM of InfoMEC, with InfoE and InfoC", _of_samples(infomec_score),
        _sampled(INFOMEC.samples), usual=False,
    ),
    Metric(
        "mcc", "mean correlation coefficient", _of_samples(mcc_score), _sampled(MCC.samples),
        usual=False, error=of_images(MCC.samples),
    ),
    Metric(
        "gaussian_tc", "total correlation of the codes' Gaussian (less is better)",
        _of_samples(gaussian_tc_score), _unlabelled(GAUSSIAN.samples),
        usual=False, supervised=False,
        error=of_images(GAUSSIAN.samples, labelled=False),
    ),
    Metric(
        "wasserstein", "Wasserstein correlation of the codes' Gaussian (less is better)",
        _of_samples(wasserstein_score), _unlabelled(GAUSSIAN.samples),
        usual=False, supervised=False,
        error=of_images(GAUSSIAN.samples, labelled=False),
    ),
    Metric(
        "mutual_information", "mean mutual information of two dimensions (less is better)",
        _of_samples(mutual_information_score), _unlabelled(MUTUAL_INFORMATION.samples),
        usual=False, supervised=False,
        error=of_images(MUTUAL_INFORMATION.samples, labelled=False),
    ),
    Metric(
        "total_correlation", "total correlation of the aggregate posterior, nats",
        lambda codes, factors, protocol, seed, kl, logvar: total_correlation_score(
            codes, logvar, seed
        ),
        lambda factors, protocol, seed: sampling.sample_rows(
            Factors.unknown(factors.rows), TOTAL_CORRELATION.train_samples,
            TOTAL_CORRELATION.test_samples, seed,
        ),
        usual=False, supervised=False, posterior=True,
    ),
):  # fmt: skip
    METRICS.add(_entry)
