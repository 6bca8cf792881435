"""Gradient-boosted trees, the op behind what the metrics learn as Locatello et al. 2019 do."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fvae.ops.checks import check_float
from fvae.ops.registry import implementation


def boosted_trees(
    codes: Tensor,
    labels: Tensor,
    real: Sequence[bool],
    test: Tensor,
    *,
    stages: int = 100,
    rate: float = 0.1,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Importance of each dimension to each factor, and what the trees predict of other codes.

    Of each factor, ``stages`` times: a regression tree of depth 3, with exact greedy splits on
    squared error, learns label - prediction, and the prediction moves by ``rate`` of it. Of n > 2
    classes there is a tree a class and stage, on softmax; of two one tree, on the sigmoid; each
    leaf is one Newton step of the log-loss, times (n - 1) / n where n > 2. They start at the
    classes' shares or the mean. Importance is a dimension's share of what the splits took off the
    squared error: scikit-learn's GradientBoostingClassifier and GradientBoostingRegressor with
    their default constants, up to the order of equally good splits, which is random there and here
    (here of a fixed key).

    Args:
        codes: ``[n, d]``, floating point, on the CPU for the C++ backend; taken as float32.
        labels: ``[K, n]``, numbers: whole ones of classes, any of a real value. A class that does
            not occur is never predicted; of one class alone nothing is learnt.
        real: whether each of the K factors is real-valued.
        test: ``[T, d]``, as codes.
        stages: trees a class, at least 1.
        rate: learning rate.
        backend: "cpp", "reference" (scikit-learn) or None.

    Returns:
        importance, float64 ``[K, d]``, whose rows sum to 1, or to 0 where nothing was split; and
        predicted labels, float64 ``[K, T]``. The same for any number of threads.

    Raises:
        TypeError: codes or test are not floating point.
        ValueError: a shape, stages or rate is wrong, or a number is not finite.

    Source: Friedman 2001; constants of Locatello et al. 2019.
    """
    check_float("codes", codes, (2,), "[n, d]")
    check_float("test", test, (2,), "[T, d]")
    if test.shape[1] != codes.shape[1]:
        raise ValueError(f"test: got {test.shape[1]} dimensions, but codes have {codes.shape[1]}")
    if labels.shape != (len(real), len(codes)) or not len(real):
        raise ValueError(
            f"labels: got shape {list(labels.shape)}, expected {[len(real), len(codes)]}, a row"
            " for each of real, a column for each code"
        )
    if stages < 1 or not 0 < rate < float("inf"):
        raise ValueError(f"stages, rate: got {stages}, {rate}, expected at least 1, above 0")
    codes, test, labels = codes.detach().float(), test.detach().float(), labels.detach().double()
    for name, x in (("codes", codes), ("test", test), ("labels", labels)):
        if not x.isfinite().all():
            raise ValueError(f"{name}: expected finite numbers, in float32 those of codes and test")
    importance = codes.new_zeros((len(real), codes.shape[1]), dtype=torch.float64)
    predicted = codes.new_empty((len(real), len(test)), dtype=torch.float64)
    learnt, numbers, values = [], [], []
    for k, y in enumerate(labels):
        occurring, number = torch.unique(y, return_inverse=True)
        predicted[k] = occurring[0]
        if len(occurring) > 1:
            learnt.append(k)
            values.append(None if real[k] else occurring)
            numbers.append(y if real[k] else number.double())
    if not learnt:
        return importance, predicted
    classes = [0 if v is None else len(v) for v in values]
    run = implementation("boosted_trees", backend)
    importance[learnt], scores = run(codes, torch.stack(numbers), classes, test, stages, rate)
    each = scores.split([n if n > 2 else 1 for n in classes], dim=1)
    for k, value, score in zip(learnt, values, each, strict=True):
        if value is None:
            predicted[k] = score[:, 0]
        else:
            best = score.argmax(1) if len(value) > 2 else (score[:, 0] >= 0).long()
            predicted[k] = value[best]
    return importance, predicted
