"""One list of ops, shapes and inputs, for benchmarks and for checks."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from bench.adam import Layer, Players
from fvae import Philox, ops
from fvae.ops.registry import CPU_LAYERS, CPU_ONLY

#: Ops of the C++/CUDA extension; the others have a Triton kernel, for CUDA alone.
METRIC_OPS = ("metric_votes", "pair_features", "grouped_variance", "boosted_trees")
#: Those that have a C++ op on a CPU.
HOST_OPS = (*METRIC_OPS, "pairwise_tc", "fused_adam", "conv_from_bits", "conv_to_pixels", "conv4x4")


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
        op: name in ``fvae.ops.OPS``.
        shape: what a row of the table says.
        run: calls the op with a ``backend`` argument on inputs made beforehand.
        bytes: bytes that the op must read and write at the least.
        flops: operations of its matrix products.
    """

    op: str
    shape: str
    run: Callable
    bytes: int
    flops: int = 0

    @property
    def label(self) -> str:
        """Name of the row."""
        return f"{self.op}[{self.shape}]"


def cases(
    device: str = "cpu",
    batches: tuple[int, ...] = (64, 1024),
    image_batches: tuple[int, ...] = (64, 1024),
) -> list[Case]:
    """Return every op at every batch size, with float32 inputs of fixed seed, d = 10."""
    generator = torch.Generator().manual_seed(0)
    rng, d, image = Philox(0, device=device), 10, 4096

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    packed = torch.randint(0, 256, (20_000, image // 8), generator=generator, dtype=torch.uint8)
    store = SimpleNamespace(data=packed.to(device), binary=True, image_shape=(1, 64, 64))
    found = []
    for b in image_batches:
        pixels, target = normal(b, 1, 64, 64), store.data[:b]
        found += [
            Case(
                "gather_batch", f"B={b}",
                lambda backend, b=b: ops.gather_batch(store, b, rng, backend),
                b * (image // 8 + 4 * image),
            ),
            Case(
                "bernoulli_nll", f"B={b}",
                lambda backend, p=pixels, t=target: raw("bernoulli_nll", backend)(p, t),
                b * (4 * image + image // 8 + 4 * image),
            ),
            Case(
                "gaussian_nll", f"B={b}",
                lambda backend, p=pixels, t=target: raw("gaussian_nll", backend)(p, t),
                b * (4 * image + image // 8 + 4 * image),
            ),
        ]  # fmt: skip
    for b in batches:
        mu, logvar, logits = normal(b, d), normal(b, d), normal(b, 2)
        found += [
            Case(
                "reparameterize", f"B={b}",
                lambda backend, m=mu, v=logvar: ops.reparameterize(m, v, rng, backend),
                4 * (3 * b * d + d),
            ),
            Case(
                "permute_dims", f"B={b}",
                lambda backend, z=mu: ops.permute_dims(z, rng, backend),
                4 * 2 * b * d,
            ),
            Case(
                "logit_ratio", f"B={b}",
                lambda backend, z=logits: raw("logit_ratio", backend)(z, z),
                4 * (4 * b + 2 * b),
            ),
        ]  # fmt: skip
    for b in (*batches, 2048) if max(batches) > 64 else batches:
        pair = [normal(b, d) for _ in range(3)]
        found.append(
            Case(
                "pairwise_tc", f"B={b}",
                lambda backend, p=pair: ops.pairwise_tc(*p, backend=backend),
                4 * (3 * b * d + 3 * b + b * d),
            )
        )  # fmt: skip
    # Each backend has weights of its own, which its calls change.
    units = 1000 if max(batches) > 64 else 8
    players = {name: Players(device, units) for name in (None, *ops.BACKENDS)}
    found.append(
        Case(
            "fused_adam", f"T={len(players[None].params)}, bf16",
            lambda backend: players[backend].ours(backend),
            players[None].bytes,
        )
    )  # fmt: skip
    sizes, votes, samples = (3, 6, 40, 32, 32), 800, 100
    codes = normal(737_280, d)
    scale, active = codes.var(0), torch.ones(d, dtype=torch.bool, device=device)
    classes = torch.stack(torch.unravel_index(torch.arange(len(codes)), sizes), dim=1)
    labels = ops.RowIndex.of(classes).to(device)
    found += [
        Case(
            "metric_votes", f"V={votes}, L={samples}{rows}",
            lambda backend, of=of: ops.metric_votes(
                codes, of, votes=votes, samples=samples, scale=scale, active=active, rng=rng,
                backend=backend, balanced=True,
            ),
            4 * votes * samples * width,
        )
        for rows, of, width in (("", sizes, d), (", labels", labels, d + 1))
    ]  # fmt: skip
    found += [
        Case(
            "pair_features", f"P={votes}, L=200",
            lambda backend: ops.pair_features(
                codes, sizes, points=votes, pairs=200, rng=rng, backend=backend, balanced=True
            ),
            4 * votes * 2 * 200 * d,
        ),
        Case(
            "grouped_variance", f"N={len(codes)}",
            lambda backend: ops.grouped_variance(codes, sizes, backend=backend),
            4 * len(sizes) * len(codes) * d,
        ),
    ]  # fmt: skip
    # A real-valued factor: its trees have no equally good splits, which come in random order.
    x, stages = codes[:2000], 20
    y = x[:, :2].sum(1).double() + normal(len(x))
    found.append(
        Case(
            "boosted_trees", f"n={len(x)}, 1 real factor, {stages} stages",
            lambda backend: raw("boosted_trees", backend)(x, y[None], [0], x, stages, 0.1),
            2 * 4 * x.numel() + 8 * 2 * len(x),
        )
    )  # fmt: skip
    found += _layer_cases(normal, 1000 if max(batches) > 64 else 8)
    return found


def _layer_cases(normal: Callable, units: int) -> list[Case]:
    """What is left of the layers of an encoder and a discriminator, and their backward passes."""
    images = normal(64, 32, 32, 32).contiguous(memory_format=torch.channels_last)
    grown = images.clone()  # by each call of an op that works in place
    rows, weight, bias = normal(128, units), normal(units, units), normal(32)
    first, last = normal(32, 1, 4, 4), 0.1 * normal(32, 1, 4, 4)
    inner = (normal(32, 4, 4, 32) / 24).bfloat16()  # outputs of about 1
    bits = ops.packed_bits((normal(64, 1, 64, 64) > 1).float())
    assert bits is not None
    layer = {name: Layer(rows, weight) for name in (None, *ops.BACKENDS)}
    return [
        Case(
            "activation_backward", "64 x 32 x 32 x 32",
            lambda backend: ops.activation_backward(images, images, 0.0, backend=backend),
            4 * 3 * images.numel(),
        ),
        Case(
            "bias_activation", "64 x 32 x 32 x 32",
            lambda backend: ops.bias_activation(grown, bias, 0.0, backend=backend),
            4 * 2 * images.numel(),
        ),
        Case(
            "linear_backward", f"128 rows, {units} x {units}",
            lambda backend: ops.linear_backward(rows, rows, rows, weight, 0.2, backend=backend),
            4 * (4 * rows.numel() + 2 * weight.numel()),
            2 * 2 * len(rows) * weight.numel(),
        ),
        Case(
            "linear_adam", f"128 rows, {units} x {units}, bf16",
            lambda backend: layer[backend].update(backend),
            layer[None].bytes,
            2 * len(rows) * weight.numel(),
        ),
        Case(
            "conv_from_bits", "64 x 64 x 64",
            lambda backend: ops.conv_from_bits(bits, 64, first, bias, backend),
            bits.numel() + 4 * images.numel(),
            2 * 16 * images.numel(),
        ),
        Case(
            "conv_to_pixels", "64 x 32 x 32 x 32",
            lambda backend: ops.conv_to_pixels(
                images.permute(0, 2, 3, 1), last, bias[:1], relu=True, backend=backend
            ),
            4 * (images.numel() + 64 * 64 * 64),
            2 * 16 * images.numel(),
        ),
        Case(
            "conv4x4", "64 x 32 x 32 x 32, fp32",
            lambda backend: ops.conv4x4(
                images.permute(0, 2, 3, 1), inner.float(), bias[:1].expand(32), relu=True,
                backend=backend,
            ),
            4 * (images.numel() + 64 * 16 * 16 * 32),
            2 * 9 * 32 * 64 * 16 * 16 * 32,  # in tiles; 16 as it is written
        ),
        # Elsewhere its reference serves.
        *([
            Case(
                "conv4x4", "64 x 32 x 32 x 32, bf16",
                lambda backend: ops.conv4x4(
                    images.permute(0, 2, 3, 1).bfloat16(), inner, bias[:1].expand(32).bfloat16(),
                    relu=True, backend=backend,
                ),
                2 * (images.numel() + 64 * 16 * 16 * 32),
                2 * 16 * 32 * 64 * 16 * 16 * 32,
            )
        ] if ops.has_matrix_units() else []),
    ]  # fmt: skip


def backend(case: Case | str, device: str | torch.device) -> str:
    """Return the backend that ``backend=None`` picks for a case or an op on a device."""
    op = case if isinstance(case, str) else case.op
    return ops.backend_of(op, torch.device(device).type)


def why_not_compared(case: Case | str, device: str | torch.device) -> str | None:
    """Return :func:`why_itself` after the op and the device that it is about."""
    op = case if isinstance(case, str) else case.op
    why = why_itself(op, device)
    return why and f"{op} on {torch.device(device).type}: {why}"


def why_itself(op: str, device: str | torch.device) -> str | None:
    """Return why an op must not be timed against its reference: it is the reference; else None.

    The line says whether something faster is missing there, and then why.
    """
    kind = torch.device(device).type
    if backend(op, kind) != "reference":
        return None
    if not is_fast(op, kind):
        return "the reference is all there is; there is nothing to compare"
    if op not in (HOST_OPS if kind == "cpu" else METRIC_OPS):
        why = "no triton"
    else:
        why = ops.EXTENSION_ERROR if kind == "cpu" else ops.CUDA_EXTENSION_ERROR
        why = f"the extension's {kind} part is not built: {why}"
    return f"the reference would be timed against itself: {why}"


def is_fast(op: str, kind: str) -> bool:
    """Whether an op is meant to have a backend beside the reference on a device type."""
    return (
        op in HOST_OPS if kind == "cpu" else op not in (*CPU_ONLY, *CPU_LAYERS) and kind == "cuda"
    )


def raw(op: str, backend: str | None) -> Callable:
    """Return the op with its gradient among the outputs, as its autograd function calls it."""
    return ops.implementation(op, backend)
