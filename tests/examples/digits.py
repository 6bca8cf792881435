"""Scores of somebody's own encoder: ``python tests/examples/digits.py``.

scikit-learn's 1,797 handwritten digits, 8 x 8, encoded by a PCA. Their labels are no grid of
factors: the digit, and two real-valued factors that are measured on the pixels, ink and slant.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from fvae import metrics


def slant_of(images):
    """Covariance of row and column over the row's variance, weighted by ink: [N, H, W] -> [N]."""
    weight = images / images.sum((1, 2), keepdims=True)
    row, column = np.mgrid[: images.shape[1], : images.shape[2]]
    mean = [(weight * at).sum((1, 2), keepdims=True) for at in (row, column)]
    row, column = row - mean[0], column - mean[1]
    return (weight * row * column).sum((1, 2)) / (weight * row**2).sum((1, 2))


def main():
    """Print the scores, and return them by name."""
    images, digit = load_digits(return_X_y=True)
    codes = PCA(10, random_state=0).fit_transform(images)
    ink, slant = images.mean(1), slant_of(images.reshape(-1, 8, 8))
    # A digit is a class. Ink and slant are rarely the same twice: real-valued, or cut into fifths.
    factors = metrics.Factors.of(np.stack([digit, ink, slant], 1), ("digit", "ink", "slant"), [1])
    fifths = [np.digitize(x, np.quantile(x, [0.2, 0.4, 0.6, 0.8])) for x in (ink, slant)]
    shared = metrics.Factors.of(np.stack([digit, *fifths], 1), factors.names)
    scores = {
        "mig": metrics.mig_score(codes, factors=factors),
        "sap": metrics.sap_score(codes, factors=factors),
        "dci": metrics.dci_score(codes, factors=factors),
        "factor_vae": metrics.factor_vae_score(codes, factors=shared),
        "beta_vae": metrics.beta_vae_score(codes, factors=shared),
    }
    for name, result in scores.items():
        print(f"{name:<10} {result.score:.3f}  {result.note if hasattr(result, 'note') else ''}")
    return {name: result.score for name, result in scores.items()}


if __name__ == "__main__":
    main()
