"""Adam of both players' weights: the op beside PyTorch's fused Adam and the casts that it needs.

``python -m bench.adam`` prints one JSON line; a ratio is the other's time over the op's, medians
over rounds that take turns. The weights of the default VAE and discriminator (6 x 1000 units) in
float32, gradients and copies of the weights in bfloat16; and gradients in float32 and no copies,
where PyTorch needs no casts (``--float32`` is that alone).
"""

import json
import sys

import torch
from torch import Tensor

from bench.baseline import decoder, discriminator, encoder
from bench.device_timing import medians, milliseconds, over, seconds_in_turns
from bench.record import keep, options
from fvae import ops

#: lr, beta1 and beta2 of the VAE and of the discriminator.
SETTINGS = ((1e-4, 0.9, 0.999), (1e-4, 0.5, 0.9))
ROUNDS = 100


class Players:
    """A FactorVAE's weights, their moments and gradients, and copies of 16 bits.

    Args:
        device: where they are.
        units: of a layer of the discriminator.
        low: dtype of gradients and copies; float32 for no copies.
    """

    def __init__(
        self, device: str = "cpu", units: int = 1000, low: torch.dtype = torch.bfloat16
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            vae = [*encoder().parameters(), *decoder().parameters()]
            each = [*vae, *discriminator(units=units).parameters()]
            self.params = [p.detach().to(device) for p in each]
            self.grads = [torch.randn(p.shape).to(device, low) * 1e-3 for p in each]
        self.groups = [int(i >= len(vae)) for i in range(len(each))]
        self.exp_avg = [torch.zeros_like(p) for p in self.params]
        self.exp_avg_sq = [torch.zeros_like(p) for p in self.params]
        self.copies = [] if low == torch.float32 else [p.to(low) for p in self.params]
        # PyTorch's gradients in float32, in memory that is there from call to call.
        self.wide = self.grads if low == torch.float32 else [p.clone() for p in self.params]
        self.steps = torch.zeros(len(each), device=device)
        self.settings = torch.tensor(SETTINGS, device=device)

    @property
    def bytes(self) -> int:
        """What one update must read and write."""
        state = 2 * 4 * 3 * sum(p.numel() for p in self.params)
        return state + sum(x.numel() * x.itemsize for x in (*self.grads, *self.copies))

    def ours(self, backend: str | None = None) -> list[Tensor]:
        """Return weights and copies after one more update by the op."""
        ops.fused_adam(
            self.params, self.grads, self.exp_avg, self.exp_avg_sq, self.steps, self.settings,
            self.groups, self.copies, backend=backend,
        )  # fmt: skip
        return [*self.params, *self.copies]

    def theirs(self) -> list[Tensor]:
        """Return them after one more update by PyTorch."""
        steps = list(self.steps)
        if self.copies:
            torch._foreach_copy_(self.wide, self.grads)
        torch._foreach_add_(steps, 1)
        for group, (lr, beta1, beta2) in enumerate(SETTINGS):
            pick = [i for i, g in enumerate(self.groups) if g == group]
            lists = [
                [x[i] for i in pick]
                for x in (self.params, self.wide, self.exp_avg, self.exp_avg_sq, steps)
            ]
            torch._fused_adam_(
                *lists[:4], [], lists[4], lr=lr, beta1=beta1, beta2=beta2,
                weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
            )  # fmt: skip
        if self.copies:
            torch._foreach_copy_(self.copies, self.params)
        return [*self.params, *self.copies]


class Layer:
    """A linear layer's weights with moments and bf16 copies, and what makes their gradients.

    Args:
        rows: its input, output and the gradient of this, ``[rows, units]``.
        weight: ``[units, units]``.
    """

    def __init__(self, rows: Tensor, weight: Tensor) -> None:
        low = [rows.to(torch.bfloat16)]
        self.gradients = ops.LinearGradients(low, low, low, [0.2])
        self.params = [weight.clone(), weight[0].clone()]
        self.exp_avg = [torch.zeros_like(p) for p in self.params]
        self.exp_avg_sq = [torch.zeros_like(p) for p in self.params]
        self.copies = [p.to(torch.bfloat16) for p in self.params]
        self.steps = torch.zeros(2, device=weight.device)
        self.settings = torch.tensor(SETTINGS, device=weight.device)

    @property
    def bytes(self) -> int:
        """What one update must read and write."""
        state = (2 * 4 * 3 + 2) * sum(p.numel() for p in self.params)
        return state + 2 * self.gradients.xs[0].numel()

    def update(self, backend: str | None = None) -> list[Tensor]:
        """Return weights and copies after one more update."""
        ops.linear_adam(
            self.gradients, self.params, self.exp_avg, self.exp_avg_sq, self.steps, self.settings,
            1, self.copies, backend=backend,
        )  # fmt: skip
        return [*self.params, *self.copies]


def main() -> None:
    """Check, time, print."""
    from bench.registry import why_not_compared

    parser = options("bench.adam", __doc__)
    parser.add_argument("--float32", action="store_true", help="in float32 alone")
    args = parser.parse_args()
    if why := why_not_compared("fused_adam", "cpu"):
        print(f"bench.adam: {why}", file=sys.stderr)
        raise SystemExit(2)
    low = [torch.float32] if args.float32 else [torch.bfloat16, torch.float32]
    found = {str(dtype)[6:]: measure(dtype) for dtype in low}
    keep(args.out, found)
    print(json.dumps(medians(found) | {"threads": torch.get_num_threads()}))


def measure(low: torch.dtype) -> dict:
    """Check, and time, with gradients and copies of a dtype; float32 has no copies."""
    ours, theirs = Players(low=low), Players(low=low)
    for _ in range(3):
        torch.testing.assert_close(ours.ours(), theirs.theirs(), rtol=1e-2, atol=1e-6)
    times = seconds_in_turns({"fused_adam": ours.ours, "pytorch": theirs.theirs}, ROUNDS)
    best = milliseconds(times)
    return {
        "weights": sum(p.numel() for p in ours.params),
        "ms": best,
        "ratio": over(times["pytorch"], times["fused_adam"]),
        "GB_s": round(ours.bytes / best["fused_adam"]["p50"] / 1e6, 1),
    }


if __name__ == "__main__":
    main()
