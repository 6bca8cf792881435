import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from small import (
    NETS,
    SMALL_OPTIONS,
    assert_a_killed_run_resumes_to_the_same,
    command,
    log,
    photographs,
    refused,
    run,
    write_npz,
)
from torch import nn

import fvae
from fvae.config import TrainConfig
from fvae.models.infogan import Codes, InfoGAN
from fvae.philox import Philox
from fvae.training import checkpoint
from fvae.training import infogan as losses
from fvae.training.trainer import make_trainer

GANS = ("infogan", "infowgan-gp")
SMALL = TrainConfig(
    objective="infowgan-gp", steps=12, batch_size=3, latent_dim=4, categorical_sizes=(3, 2),
    critic_steps=2, device="cpu", precision="fp32", checkpoint_every=5, log_every=4,
    learning_rate=1e-3, disc_learning_rate=1e-3, **NETS,
)  # fmt: skip
# --- the gradient penalty -------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [0.25, 1.0, 3.0])
def test_a_linear_critic_is_penalised_by_its_norm_alone(norm):
    layer = nn.Linear(12, 1).double()
    layer.weight.data *= norm / layer.weight.data.norm()
    x, fake, mixture = torch.rand(2, 5, 3, 2, 2).double().unbind() + (torch.rand(5).double(),)
    penalty = losses.gradient_penalty([nn.Flatten(), layer], x, fake, mixture)
    assert penalty.item() == pytest.approx((norm - 1) ** 2, abs=1e-6)
    (grad,) = torch.autograd.grad(penalty, layer.weight)
    expected = 2 * (norm - 1) * layer.weight / norm
    torch.testing.assert_close(grad, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_penalty_and_its_gradient_are_those_of_a_double_backward(channels):
    critic = InfoGAN(channels, 2, 1, (), **NETS).critic.double()
    x, fake = torch.rand(2, 5, channels, 64, 64).double()
    u = torch.rand(5).double()
    weights = [layer.weight for layer in critic.penalised() if hasattr(layer, "weight")]
    for weight in weights:  # gradients of a size that a penalty sees
        weight.data *= 3

    ours = losses.input_gradient(critic.penalised(), x)
    mixed = (u.view(-1, 1, 1, 1) * x + (1 - u.view(-1, 1, 1, 1)) * fake).requires_grad_()
    x.requires_grad_()
    (expected,) = torch.autograd.grad(critic.score(critic.trunk(x)).sum(), x)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)

    score = critic.score(critic.trunk(mixed)).sum()
    (gradient,) = torch.autograd.grad(score, mixed, create_graph=True)
    textbook = ((gradient.flatten(1).square().sum(1).sqrt() - 1) ** 2).mean()
    penalty = losses.gradient_penalty(critic.penalised(), x.detach(), fake, u)
    # The penalty itself is taken in float32.
    torch.testing.assert_close(penalty.double(), textbook, rtol=1e-5, atol=1e-6)
    grads = torch.autograd.grad(penalty, weights)
    for ours, expected in zip(grads, torch.autograd.grad(textbook, weights), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)


def test_a_layer_of_unknown_slope_is_refused():
    with pytest.raises(TypeError, match="Sigmoid"):
        losses.input_gradient([nn.Linear(3, 1), nn.Sigmoid()], torch.rand(2, 3))


# --- the mutual information bound -----------------------------------------------------------------


def test_bound_of_a_gaussian_q_is_exact():
    # c uniform in [-1, 1] on a fine grid, Q(c|x) = N(c + delta, sigma^2): log Q is a constant.
    model = InfoGAN(1, 2, 1, (), **NETS)
    c = torch.linspace(-1, 1, 64)[:, None].repeat(1, 2)
    codes = Codes(c, torch.zeros(64, 1), torch.zeros(64, 0, dtype=torch.int64))
    delta, sigma = 0.2, 0.5
    q = torch.cat((c + delta, torch.full_like(c, 2 * math.log(sigma))), 1)
    expected = 2 * (
        math.log(2) - math.log(sigma * math.sqrt(2 * math.pi)) - (delta / sigma) ** 2 / 2
    )
    mi = losses.mutual_information(model, q, codes)
    assert float(mi) == pytest.approx(expected, abs=1e-5)


def test_bound_of_categories_is_the_entropy_when_q_is_sure_and_zero_when_it_knows_nothing():
    model = InfoGAN(1, 1, 0, (3, 5), **NETS)
    codes = model.draw(30, Philox(0))
    flat = dataclasses.replace(codes, continuous=torch.zeros(30, 1))
    gaussian = torch.tensor([0.0, math.log(4 / (2 * math.pi))]).repeat(30, 1)  # density 1/2 at 0
    nothing = torch.cat((gaussian, torch.zeros(30, 8)), 1)
    assert float(losses.mutual_information(model, nothing, flat)) == pytest.approx(0, abs=1e-5)
    hot = [nn.functional.one_hot(codes.categories[:, i], k) for i, k in enumerate((3, 5))]
    sure = torch.cat((gaussian, 100.0 * torch.cat(hot, 1)), 1)
    expected = math.log(3) + math.log(5)
    assert float(losses.mutual_information(model, sure, flat)) == pytest.approx(expected, abs=1e-5)


def test_information_of_an_ignored_code_is_zero():
    model = InfoGAN(1, 2, 1, (), **NETS)
    mu = torch.stack((torch.linspace(-1, 1, 100), torch.full((100,), 0.3)), 1)
    information = model.information(mu, torch.full_like(mu, math.log(0.01)))
    variance = mu[:, 0].double().var(correction=0)
    assert float(information[0]) == pytest.approx(0.5 * math.log(1 + variance / 0.01), rel=1e-5)
    assert abs(float(information[1])) < 1e-6


def test_codes_come_from_their_priors():
    model = InfoGAN(1, 3, 2, (4,), **NETS)
    n = 20_000
    codes = model.draw(n, Philox(1))
    uniform = torch.cat((codes.continuous, codes.noise), 1)
    assert uniform.shape == (n, 5)
    assert -1 <= uniform.min() < uniform.max() < 1
    # Standard errors: mean 1 / sqrt(3 n), variance sqrt(4 / 45 / n), correlation 1 / sqrt(n). With
    # twenty-five numbers below 7 of them a false alarm has a chance below 1e-10.
    assert uniform.mean(0).abs().max() < 7 / math.sqrt(3 * n)
    assert (uniform.var(0) - 1 / 3).abs().max() < 7 * math.sqrt(4 / 45 / n)
    correlation = torch.corrcoef(uniform.T) - torch.eye(5)
    assert correlation.abs().max() < 7 / math.sqrt(n)
    counts = torch.bincount(codes.categories[:, 0], minlength=4)
    assert (counts - n / 4).abs().max() < 7 * math.sqrt(n * 3 / 16)
    again = model.draw(n, Philox(1))
    assert torch.equal(codes.noise, again.noise)
    assert not torch.equal(codes.noise, model.draw(n, Philox(1, step=1)).noise)


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", GANS)
def test_each_player_is_updated_alone(objective, store, monkeypatch):
    trainer = make_trainer(dataclasses.replace(SMALL, objective=objective), store)
    update, seen = trainer._update_player, []
    players = (trainer.model.critic, trainer.model.generator)
    names = [[name for name, _ in player.named_parameters()] for player in players]

    def weights():
        return [[p.clone() for p in player] for player in trainer.players]

    def watch(loss, player):
        before = weights()
        update(loss, player)
        after = weights()
        other = 1 - player
        assert all(map(torch.equal, before[other], after[other]))
        # Every tensor of the player moves, trunk and Q head with the critic; but the score's bias
        # cancels in a Wasserstein critic's loss.
        for name, old, new in zip(names[player], before[player], after[player], strict=True):
            assert name == "score.bias" or not torch.equal(old, new), name
        seen.append(player)

    monkeypatch.setattr(trainer, "_update_player", watch)
    trainer.step()
    assert seen == ([0, 1] if objective == "infogan" else [0, 0, 1])


@pytest.mark.parametrize("objective", GANS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_is_the_uninterrupted_one(objective, precision, store, tmp_path):
    config = dataclasses.replace(SMALL, objective=objective, precision=precision, warmup_steps=8)
    whole = assert_a_killed_run_resumes_to_the_same(config, store, tmp_path)
    assert all(t.isfinite().all() for t in whole.values())


def test_the_seed_alone_makes_the_run(store):
    def losses(seed):
        torch.manual_seed(seed + 5)
        trainer = make_trainer(dataclasses.replace(SMALL, seed=seed), store)
        return [{k: float(v) for k, v in trainer.step().items()} for _ in range(3)]

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_bf16_steps_like_fp32(store):
    # Gradients flow through every cast of a weight: the penalty's, where gradients are off for a
    # part, and the others.
    grads = {}
    for precision in ("fp32", "bf16"):
        trainer = make_trainer(dataclasses.replace(SMALL, precision=precision), store)
        codes = trainer.model.draw(3, trainer.rng)
        x = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
        with trainer._autocast():
            terms = losses.critic_terms(
                trainer.model, x, torch.zeros_like(x), codes, torch.tensor([0.1, 0.5, 0.9]), 10.0
            )
        (terms["critic_loss"] - terms["mi"]).backward()
        grads[precision] = torch.cat([p.grad.flatten() for p in trainer.players[0]])
    error = (grads["bf16"] - grads["fp32"]).norm() / grads["fp32"].norm()
    assert error < 0.05


@pytest.mark.parametrize(("objective", "steps"), [("infogan", 240), ("infowgan-gp", 160)])
def test_training_raises_the_mutual_information(objective, steps, dsprites, tmp_path):
    config = dataclasses.replace(
        SMALL, objective=objective, steps=steps, batch_size=16, latent_dim=2, noise_dim=1,
        categorical_sizes=(), log_every=20, hidden_units=32, conv_channels=(8, 8, 8, 8),
        mi_weight=10.0,
    )  # fmt: skip
    run(config, dsprites, tmp_path / "a")
    first, *later = [line["mi"] for line in log(tmp_path / "a")]
    # A Q that knows nothing has -0.35 nats. Seeds 0, 1 and 2 rise by 1.4 to 2.7 (infogan) and 1.6
    # to 2.3 nats (infowgan-gp); the overconfident Q of a small network falls back at times.
    assert max(later) > first + 1


@pytest.mark.parametrize("objective", GANS)
def test_log_names_the_terms(objective, store, tmp_path):
    run(dataclasses.replace(SMALL, objective=objective), store, tmp_path / "a")
    line = log(tmp_path / "a")[-1]
    if objective == "infogan":
        assert 0 <= line["disc_accuracy"] <= 1
        assert line["disc_loss"] > 0
    else:
        loss = 10 * line["gradient_penalty"] - line["wasserstein"]
        assert line["critic_loss"] == pytest.approx(loss, rel=1e-4)
    assert {"generator_loss", "mi"} <= line.keys()


def test_colour_images_train_and_a_run_gives_its_model_back(tmp_path):
    tensors = run(SMALL, photographs(10), tmp_path / "a")
    model = fvae.load(tmp_path / "a")
    assert torch.equal(model.generator[0].weight, tensors["gan.generator.0.weight"])
    mu, logvar = model.encode(torch.rand(2, 3, 64, 64))
    assert mu.shape == logvar.shape == (2, 4)
    logits = model.decode(mu)
    assert logits.shape == (2, 3, 64, 64)
    assert torch.equal(logits, model.decode(mu))
    assert not torch.equal(logits, model.decode(mu, torch.tensor([[2, 1], [0, 1]])))
    assert model(torch.rand(2, 3, 64, 64))[0].shape == (2, 3, 64, 64)


def test_a_vae_of_an_older_configuration_still_loads(store, tmp_path):
    # A checkpoint from before a setting existed.
    config = dataclasses.replace(SMALL, objective="vae", categorical_sizes=())
    tensors = run(config, store, tmp_path / "a")
    old = {k: v for k, v in json.loads(config.to_json()).items() if k != "noise_dim"}
    (tmp_path / "a" / "config.json").write_text(json.dumps(old))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainConfig, "to_json", lambda self: json.dumps(old))
        checkpoint.save(tmp_path / "a", tensors, config)
    assert fvae.load(tmp_path / "a").latent_dim == 4


# --- the command ----------------------------------------------------------------------------------


def test_train_eval_report_traverse(own_cache, tmp_path):
    folder, few = tmp_path / "run", write_npz(tmp_path / "dsprites.npz", (2, 2, 3, 4, 4))
    status, _, err = command(
        "train", "--objective", "infowgan-gp", "--data", few, *SMALL_OPTIONS, "--critic-steps", "2",
        "--log-every", "5", "--steps", "10", "--categorical-sizes", "3", "--out", folder,
    )  # fmt: skip
    assert status == 0
    assert "mi " in err
    status, out, _ = command("eval", folder, "--json", "--device", "cpu")
    assert status == 0
    result = json.loads(out)
    assert len(result["mutual_information_dims"]) == 4
    assert "kl_dims" not in result
    # Barely trained codes vary by little, but they vary: none is dropped for want of a KL.
    assert result["factor_vae"]["active"] == [True] * 4
    assert np.array(result["factor_vae"]["votes"]).sum() == 800
    assert "no KL" in result["factor_vae"]["note"]
    assert command("report", folder)[0] == 0
    page = (folder / "report.html").read_text()
    assert "falling mutual information" in page
    assert "&minus;1 to +1" in page
    assert command("traverse", folder)[0] == 0
    assert (folder / "traversal.gif").stat().st_size > 1000
    assert command("train", "--resume", folder, "--steps", "12")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--critic-steps", "0"), "--critic-steps: got 0"),
        (("--gradient-penalty", "-1"), "--gradient-penalty: got -1"),
        (("--mi-weight", "nan"), "--mi-weight: got nan"),
        (("--noise-dim", "-2"), "--noise-dim: got -2"),
        (("--categorical-sizes", "3", "1"), "--categorical-sizes: got"),
        (("--objective", "wgan"), "--objective"),
    ],
)
def test_bad_settings_give_one_line(arguments, message):
    err = refused("train", "--objective", "infowgan-gp", *arguments)
    assert err.startswith("fvae: error: ")
    assert message in err
