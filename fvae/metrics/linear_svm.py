"""Linear support vector machines on one feature, solved exactly and all classes at once.

Locatello et al. 2019 fit scikit-learn's LinearSVC for each dimension and factor, which takes most
of a minute on dSprites. With one feature the machine has two parameters, and the examples inside
its margin are those on one side of a threshold: sums over a sorted column give the loss, gradient
and Hessian without another walk over the data.
"""

import numpy as np

# Newton's method on a convex piecewise quadratic ends after a few steps; these only bound it.
_STEPS = 100
_HALVINGS = 40


def fit_predict(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, penalty: float) -> np.ndarray:
    """Class of each test feature under one-against-the-rest linear machines.

    The machine of class c has the least ``(w^2 + b^2) / 2 + C sum_i m_i max(0, 1 - s_i (w x_i +
    b))^2``, with s_i = 1 and m_i = n / (classes * n_c) where y_i = c (n_c examples), else s_i = -1
    and m_i = 1; of two classes both have the balanced weight. That is LinearSVC(C=penalty,
    class_weight="balanced") without its stopping tolerance.

    Args:
        x: float64 ``[n]``, the feature.
        y: int64 ``[n]``, classes.
        x_test: float64 ``[m]``.
        penalty: C.

    Returns:
        int64 ``[m]``, the class whose ``w x + b`` is greatest; ties to the lowest class.
    """
    classes, label, count = np.unique(y, return_inverse=True, return_counts=True)
    balanced = len(x) / (len(classes) * count)
    order = np.argsort(x, kind="stable")
    x, label = x[order], label[order]
    powers = np.stack((np.ones_like(x), x, x * x))
    everything = _prefix(powers)
    weights = []
    for c in range(len(classes)):
        mine = _prefix(powers * (label == c))
        rest = balanced[1 - c] if len(classes) == 2 else 1.0
        weights.append(_solve(x, mine, everything - mine, penalty * balanced[c], penalty * rest))
    w, b = np.array(weights).T
    return classes[(w[:, None] * x_test + b[:, None]).argmax(0)]


def _prefix(powers: np.ndarray) -> np.ndarray:
    """Sums over the first 0, 1, ... n examples of 1, x and x^2: ``[3, n + 1]``."""
    return np.concatenate((np.zeros((3, 1)), powers.cumsum(1)), axis=1)


def _solve(
    x: np.ndarray, mine: np.ndarray, others: np.ndarray, c_mine: float, c_others: float
) -> np.ndarray:
    """Minimum (w, b) of one machine, by Newton's method with step halving."""

    def terms(at: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        w, b = at
        loss, gradient, hessian = at @ at / 2, at.copy(), np.eye(2)
        for sign, sums, c in ((1.0, mine, c_mine), (-1.0, others, c_others)):
            s0, s1, s2 = _inside(x, sums, sign * w, sign * b)
            margin = 1 - sign * b
            loss += c * (margin * margin * s0 - 2 * sign * w * margin * s1 + w * w * s2)
            gradient[0] -= 2 * c * sign * (margin * s1 - sign * w * s2)
            gradient[1] -= 2 * c * sign * (margin * s0 - sign * w * s1)
            hessian += 2 * c * np.array(((s2, s1), (s1, s0)))
        return loss, gradient, hessian

    at = np.zeros(2)
    loss, gradient, hessian = terms(at)
    for _ in range(_STEPS):
        step = -np.linalg.solve(hessian, gradient)
        slope = gradient @ step
        if -slope <= 1e-12 * (1 + abs(loss)):
            break
        for _ in range(_HALVINGS):
            trial = terms(at + step)
            if trial[0] <= loss + 1e-4 * slope:
                break
            step, slope = step / 2, slope / 2
        else:
            break
        at = at + step
        loss, gradient, hessian = trial
    return at


def _inside(x: np.ndarray, sums: np.ndarray, w: float, b: float) -> np.ndarray:
    """Sums of 1, x and x^2 over the examples with ``w x + b < 1``."""
    if w == 0:
        return sums[:, -1] if b < 1 else np.zeros(3)
    place = np.searchsorted(x, (1 - b) / w)
    return sums[:, place] if w > 0 else sums[:, -1] - sums[:, place]
