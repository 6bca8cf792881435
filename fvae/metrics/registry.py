"""The metrics of this package; to add one, add an entry."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from fvae.metrics import sampling
from fvae.metrics.beta_vae import beta_vae_score
from fvae.metrics.dci import dci_score
from fvae.metrics.downstream import downstream_score
from fvae.metrics.factor_vae import factor_vae_score
from fvae.metrics.mig import mig_score
from fvae.metrics.protocols import DCI, DCI_PROTOCOLS, DOWNSTREAM, MIG, PROTOCOLS, SAP
from fvae.metrics.sap import sap_score
from fvae.registry import METRICS, Metric


def _of_samples(score: Callable[..., Any]) -> Callable[..., Any]:
    """A score that learns from samples has one protocol, and no use for the KL."""
    return lambda codes, factors, protocol, seed, kl, **options: score(
        codes, factors, seed, **options
    )


def _sampled(train: int, test: int = 0) -> Callable[..., Iterator[Tensor]]:
    return lambda factors, protocol, seed: sampling.sample_rows(factors, train, test, seed)


for _entry in (
    Metric(
        "factor_vae", "FactorVAE metric",
        lambda codes, factors, protocol, seed, kl: factor_vae_score(
            codes, factors, protocol, seed, kl=kl
        ),
        sampling.factor_vae_chunks, PROTOCOLS,
    ),
    Metric(
        "beta_vae", "Higgins' (beta-VAE) metric",
        lambda codes, factors, protocol, seed, kl: beta_vae_score(codes, factors, protocol, seed),
        sampling.beta_vae_chunks,
    ),
    Metric(
        "mig", "mutual information gap", _of_samples(mig_score), _sampled(MIG.samples),
        options=("bins",),
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
            _sampled(DCI_PROTOCOLS[name].train_samples, DCI_PROTOCOLS[name].test_samples),
            usual=False,
        )
        for name, by in (("locatello2019", "boosted trees"), ("linear", "L1 regression"))
    ),
    Metric(
        "downstream", "downstream accuracy", _of_samples(downstream_score),
        _sampled(max(DOWNSTREAM.labels), DOWNSTREAM.test_samples), usual=False,
    ),
):  # fmt: skip
    METRICS.add(_entry)
