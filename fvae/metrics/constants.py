"""The constants of the scores that have one protocol each, as data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BinsProtocol:
    """Constants of a score that counts in bins: modularity, JEMMIG, mean mutual information.

    Attributes:
        name: of the protocol.
        samples: images drawn.
        bins: bins of equal width between a dimension's least and greatest code.
    """

    name: str
    samples: int
    bins: int


@dataclass(frozen=True)
class MigSupProtocol(BinsProtocol):
    """Constants of MIG-sup.

    Attributes:
        active_variance: a dimension of less variance, in the unit of the codes, is left out.
    """

    active_variance: float


@dataclass(frozen=True)
class IrsProtocol(BinsProtocol):
    """Constants of the interventional robustness score; the bins are those of the factors.

    Attributes:
        quantile: of the deviations of a group, in place of the greatest.
    """

    quantile: float


@dataclass(frozen=True)
class ExplicitnessProtocol:
    """Constants of explicitness.

    Attributes:
        name: of the protocol.
        train_samples: images that train the classifiers.
        test_samples: images that score them.
        bins: of equal width, into which a real-valued factor is cut.
        penalty: C of the logistic regressions.
        max_iter: their most steps of Newton's method.
    """

    name: str
    train_samples: int
    test_samples: int
    bins: int
    penalty: float
    max_iter: int


@dataclass(frozen=True)
class InfomecProtocol:
    """Constants of InfoMEC.

    Attributes:
        name: of the protocol.
        samples: images drawn.
        neighbours: k of the estimators of mutual information.
        prune: a dimension whose range is at most this share of the widest one is left out.
        max_iter: most steps of the logistic regressions.
        random_state: of the noise that tells equal codes apart.
    """

    name: str
    samples: int
    neighbours: int
    prune: float
    max_iter: int
    random_state: int


@dataclass(frozen=True)
class SamplesProtocol:
    """Constants of a score of correlations: MCC, Gaussian total and Wasserstein correlation.

    Attributes:
        name: of the protocol.
        samples: images drawn.
    """

    name: str
    samples: int


@dataclass(frozen=True)
class TotalCorrelationProtocol:
    """Constants of the estimates of total correlation.

    Attributes:
        name: of the protocol.
        train_samples: images of the pairwise estimate, which also train the discriminator.
        test_samples: other images, over which the discriminator's estimate is taken.
        test_draws: draws of z from each of them.
        units: of each hidden layer of the discriminator.
        hidden_layers: of the discriminator.
        slope: of its leaky ReLU.
        steps: that train it.
        batch_size: codes of each class a step.
        learning_rate: of Adam, falling to 0 as a cosine.
        betas: of Adam.
    """

    name: str
    train_samples: int
    test_samples: int
    test_draws: int
    units: int
    hidden_layers: int
    slope: float
    steps: int
    batch_size: int
    learning_rate: float
    betas: tuple[float, float]


@dataclass(frozen=True)
class UdrProtocol:
    """Constants of the unsupervised disentanglement ranking.

    Attributes:
        images: images that all models encode, drawn with replacement.
        threshold: mean KL in nats above which a dimension is informative.
        penalty: of the Lasso, on codes of mean 0 and variance 1.
    """

    images: int
    threshold: float
    penalty: float


@dataclass(frozen=True)
class CentralityProtocol:
    """Constants of ModelCentrality.

    Attributes:
        votes: of a generator, as equally many for each informative dimension as they go.
        samples: images a vote.
    """

    votes: int
    samples: int


MODULARITY = BinsProtocol(name="locatello2019", samples=10_000, bins=20)
EXPLICITNESS = ExplicitnessProtocol(
    name="ridgeway2018",
    train_samples=10_000,
    test_samples=5_000,
    bins=20,
    penalty=1.0,
    max_iter=100,
)
IRS = IrsProtocol(name="locatello2019", samples=10_000, bins=20, quantile=0.99)
MIG_SUP = MigSupProtocol(name="li2020", samples=10_000, bins=20, active_variance=0.01)
JEMMIG = BinsProtocol(name="do2020", samples=10_000, bins=20)
INFOMEC = InfomecProtocol(
    name="hsu2023", samples=10_000, neighbours=10, prune=1 / 20, max_iter=100, random_state=0
)
MCC = SamplesProtocol(name="pearson", samples=10_000)
# Total correlation and Wasserstein correlation of the Gaussian of the codes.
GAUSSIAN = SamplesProtocol(name="locatello2019", samples=10_000)
MUTUAL_INFORMATION = BinsProtocol(name="locatello2019", samples=10_000, bins=20)

# Samples as of the scores that learn from them. The discriminator is ours: one that on Gaussians of
# known total correlation is within a tenth of it, up to 4 nats in 10 dimensions, in some seconds.
TOTAL_CORRELATION = TotalCorrelationProtocol(
    name="estimate",
    train_samples=10_000,
    test_samples=5_000,
    test_draws=4,
    units=256,
    hidden_layers=3,
    slope=0.2,
    steps=2_000,
    batch_size=256,
    learning_rate=1e-3,
    betas=(0.5, 0.9),
)

# The threshold is that of Duan et al. 2020; the other numbers are ours.
UDR = UdrProtocol(images=5_000, threshold=0.01, penalty=0.1)
CENTRALITY = CentralityProtocol(votes=200, samples=32)
