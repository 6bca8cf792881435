"""``fvae eval --metrics`` with the scores that are not taken unless they are named."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from small import SMALL, bits, command, refused

from fvae import metrics
from fvae.data import Store
from fvae.registry import DATA, METRICS, DataSet
from fvae.training import loop

SUPERVISED = ("modularity", "explicitness", "irs", "mig_sup", "jemmig", "infomec", "mcc")
FREE = ("gaussian_tc", "wasserstein", "mutual_information")
IMAGES = 240


def _store(labelled):
    rng = np.random.default_rng(0)
    labels = np.stack([rng.permutation(IMAGES) % n for n in (3, 40)], axis=1)
    data = bits(IMAGES, torch.Generator().manual_seed(0)).data
    known = {"factor_names": ("kind", "angle"), "labels": torch.tensor(labels)} if labelled else {}
    return Store("named", data, (1, 64, 64), True, **known)


@pytest.fixture(params=[True, False], ids=["labelled", "plain"])
def run(request, tmp_path):
    """A run on data with or without labels."""
    DATA.add(DataSet("named", "a test's", lambda progress: _store(request.param)))
    folder = tmp_path / "run"
    config = loop.settle(dataclasses.replace(SMALL, steps=1, data="named"))
    loop.create_run(config, folder)
    loop.train(config, _store(request.param), folder)
    yield folder, request.param
    DATA.remove("named")


def test_scores_by_name(run):
    folder, labelled = run
    assert all(not METRICS[name].usual for name in SUPERVISED + FREE)
    names = (*SUPERVISED, *FREE) if labelled else FREE
    status, out, _ = command("eval", folder, "--device", "cpu", "--json", "--metrics", *names)
    assert status == 0
    result = json.loads(out)
    assert result == json.loads((folder / "eval-kim2018.json").read_text())
    for name in names:
        assert -1 <= result[name]["score"] < np.inf
        assert result[name]["protocol"]["name"]
    assert "factor_vae" not in result and result["images_encoded"] == IMAGES
    # Alone it is what it was among others.
    status, out, _ = command(
        "eval", folder, "--device", "cpu", "--json", "--metrics", "gaussian_tc"
    )
    assert json.loads(out)["gaussian_tc"] == result["gaussian_tc"]
    if not labelled:
        assert "--metrics takes gaussian_tc" in refused(
            "eval", folder, "--device", "cpu", "--metrics", "modularity"
        )
    assert "draws random numbers" in refused(
        "eval", folder, "--device", "cpu", "--protocol", "exhaustive", "--metrics", names[0]
    )


def test_the_usual_scores_read_no_more():
    sizes = (30, 40, 20)
    usual = metrics.needed(sizes, ["mig", "sap"])
    more = metrics.needed(sizes, [*SUPERVISED, *FREE])
    assert torch.equal(usual, more)
