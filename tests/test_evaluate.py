"""Encoding for the scores: in chunks that suit the device, which is not waited for in between."""

import torch
from shared import HostTraffic
from small import SMALL

from fvae import evaluate
from fvae.data import Store
from fvae.models import vae as nets


class _Recorder(HostTraffic):
    """Batch sizes of first convolutions, beside what the host reads."""

    def note(self, name, args, kwargs):
        super().note(name, args, kwargs)
        if name in ("conv2d", "convolution") and args[0].shape[1] == 1:
            self.found.append(args[0].shape[0])


def _encode(monkeypatch, images):
    """Results, what happened to the device, and what was said of the progress."""
    vae = nets.build(SMALL, 1)[0]
    data = torch.arange(50 * 512).remainder(251).byte().view(50, 512)
    store = Store("bits", data, (1, 64, 64), True)
    moved, to, cpu, done = [], Store.to, torch.Tensor.cpu, []
    recorder = _Recorder()

    def noted(tensor):
        recorder.found.append("to the host")
        return cpu(tensor)

    monkeypatch.setattr(Store, "to", lambda self, d: moved.append(str(d)) or to(self, d))
    monkeypatch.setattr(torch.Tensor, "cpu", noted)
    with recorder:
        result = evaluate.encode(vae, store, torch.arange(images) % 50, done.append)
    assert moved == ["cpu"]
    return result, recorder.found, done


def test_codes_leave_the_device_once_at_the_end(monkeypatch):
    (codes, _), events, done = _encode(monkeypatch, 150)
    assert events == [64, 64, 22, "to the host", "to the host"]
    assert done == [64, 128, 150]
    assert codes.shape == (150, SMALL.latent_dim)
    # A GPU's chunks, here on the CPU.
    monkeypatch.setattr(evaluate, "_CHUNK", {"cpu": evaluate._CHUNK["cuda"]})
    (same, _), events, done = _encode(monkeypatch, 5000)
    assert events == [4096, 904, "to the host", "to the host"]
    assert done == [4096, 5000]
    torch.testing.assert_close(same[:150], codes)
