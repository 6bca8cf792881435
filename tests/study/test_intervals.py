"""Intervals over seeds, and what they say of settings."""

import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvae.study import intervals
from fvae.study.intervals import BEYOND, UNKNOWN, WITHIN


def _rows(**settings):
    return [
        {"setting": name, "status": "done", "mig": value}
        for name, values in settings.items()
        for value in values
    ]


def test_intervals_hold_the_truth_as_often_as_they_say():
    # 600 intervals of 95 %: outside the bounds below by chance less than once in a million times.
    rng, hit = np.random.default_rng(0), np.zeros(2)
    for _ in range(600):
        a, b = rng.normal(0.7, 0.05, 3), rng.normal(0.6, 0.1, 4)
        for i, (ends, truth) in enumerate(
            ((intervals.mean_interval(a), 0.7), (intervals.difference_interval(a, b), 0.1))
        ):
            hit[i] += ends[0] <= truth <= ends[1]
    assert abs(hit[0] / 600 - 0.95) < 0.047  # exact for normal numbers
    assert 0.89 < hit[1] / 600 < 0.998  # Welch's is an approximation, wide for few


def test_known_intervals():
    # Student's t of 2 degrees has the 0.975 quantile 4.3027, and the mean's error is 0.1 / sqrt 3.
    assert intervals.mean_interval([0.6, 0.7, 0.8]) == pytest.approx((0.4516, 0.9484), abs=1e-4)
    assert intervals.mean_interval([0.7]) is None
    assert intervals.difference_interval([0.7], [0.1, 0.2]) is None
    assert intervals.difference_interval([0.7, 0.7], [0.5, 0.5]) == pytest.approx((0.2, 0.2))


@given(st.floats(0.1, 0.5), st.floats(1e-3, 0.3))
def test_as_many_seeds_of_the_same_spread_have_students_interval(gap, spread):
    a, b = (np.array([-1, 0, 1]) * spread + middle for middle in (gap, 0))
    low, high = intervals.difference_interval(a, b)
    assert (low + high) / 2 == pytest.approx(gap)
    assert (high - low) / 2 == pytest.approx(2.7764 * spread * np.sqrt(2 / 3), rel=1e-4)


def test_settings_beside_the_best():
    rows = _rows(near=[0.70, 0.78, 0.72], best=[0.71, 0.80, 0.75], far=[0.2, 0.22, 0.21], one=[0.5])
    rows += [{"setting": "none", "status": "done", "mig": ""},
             {"setting": "best", "status": "failed", "mig": ""}]  # fmt: skip
    found = intervals.compare(rows, "mig")
    assert [(one.setting, one.verdict) for one in found] == [
        ("best", "best"), ("near", WITHIN), ("one", UNKNOWN), ("far", BEYOND)
    ]  # fmt: skip
    assert found[0].less == 0 and found[2].interval is found[2].less_interval is None
    assert found[3].less == pytest.approx(0.7533 - 0.21, abs=1e-4)


def test_only_what_is_better_the_more_there_is_has_a_best():
    names = ["recon", "factor_vae", "gaussian_tc", "total_correlation", "udr", "mine"]
    assert intervals.comparable(names) == ["factor_vae", "udr"]


def test_a_table_of_results_gives_what_the_page_shows(tmp_path):
    rows = _rows(a=[0.1, 0.3], b=[0.7, 0.75])
    with (tmp_path / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["setting", "status", "mig"])
        writer.writeheader()
        writer.writerows(rows)
    found = intervals.of_results(tmp_path / "results.csv")
    assert [one["setting"] for one in found["mig"]] == ["b", "a"]
    assert found["mig"][1]["verdict"] == intervals.compare(rows, "mig")[1].verdict
    page = intervals.section(rows, ["mig"])
    assert "within the spread of seeds" in page and page.count("<tr>") == 3
    assert intervals.section(_rows(a=[0.1, 0.2]), ["mig"]) == ""
    assert intervals.terminal_table(found).row_count == 2
    assert intervals.terminal_table({"mig": found["mig"][:1]}) is None
