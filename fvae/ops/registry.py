"""The registry of the ops: schemas, backends, and the choice among them.

Each op is registered once as ``torch.ops.fvae.<name>`` with a schema and a fake; the reference
implementation serves every device, and a faster backend registers itself for the devices it serves.
The extension may do that late: its first use builds it where it is missing.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fvae import philox
from fvae.ops import reference
from fvae.ops.extension import Part

#: Registered op name -> schema.
SCHEMAS = {
    "gather_batch": "(Tensor data, int[] image_shape, bool packed, int batch_size, Tensor seed,"
    " Tensor step, int lane, ScalarType dtype, Tensor? table=None) -> (Tensor, Tensor)",
    "reparameterize": "(Tensor mu, Tensor logvar, Tensor seed, Tensor step, int lane)"
    " -> (Tensor, Tensor)",
    "reparameterize_backward": "(Tensor grad_z, Tensor grad_kl, Tensor mu, Tensor logvar,"
    " Tensor seed, Tensor step, int lane) -> (Tensor, Tensor)",
    "reparameterize_both": "(Tensor mu, Tensor logvar, Tensor seed, Tensor step, int lane)"
    " -> (Tensor, Tensor, Tensor)",
    "reparameterize_both_backward": "(Tensor grad_z, Tensor grad_kl, Tensor mu, Tensor logvar,"
    " Tensor seed, Tensor step, int lane) -> (Tensor, Tensor)",
    "permute_dims": "(Tensor z, Tensor seed, Tensor step, int lane) -> Tensor",
    "permute_dims_backward": "(Tensor grad, Tensor seed, Tensor step, int lane) -> Tensor",
    "logit_ratio": "(Tensor logits_z, Tensor logits_perm)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "bernoulli_nll": "(Tensor logits, Tensor target) -> (Tensor, Tensor)",
    "gaussian_nll": "(Tensor mean, Tensor target) -> (Tensor, Tensor)",
    "pairwise_tc": "(Tensor z, Tensor mu, Tensor logvar, float log_self, float log_next,"
    " float log_other) -> (Tensor, Tensor, Tensor, Tensor)",
    "pairwise_tc_backward": "(Tensor grad_qz, Tensor grad_prod, Tensor grad_qzx, Tensor z,"
    " Tensor mu, Tensor logvar, Tensor log_qz, Tensor log_qzj, float log_self, float log_next,"
    " float log_other) -> (Tensor, Tensor, Tensor)",
    "activation_backward": "(Tensor grad, Tensor y, float slope, ScalarType dtype,"
    " Tensor? factor=None) -> (Tensor, Tensor, Tensor)",
    "bias_activation": "(Tensor(a!) y, Tensor? bias, float slope) -> ()",
    "linear_backward": "(Tensor grad, Tensor y, Tensor x, Tensor weight, float slope,"
    " ScalarType dtype, bool need_x, Tensor? factor=None, bool need_weight=True)"
    " -> (Tensor, Tensor, Tensor)",
    "packed_bits": "(Tensor x) -> (Tensor, Tensor)",
    "conv_from_bits": "(Tensor bits, int side, Tensor weight, Tensor bias) -> Tensor",
    "conv_from_bits_backward": "(Tensor grad, Tensor y, Tensor bits) -> (Tensor, Tensor)",
    "conv_to_pixels": "(Tensor x, Tensor weight, Tensor bias, bool relu) -> Tensor",
    "conv_to_pixels_backward": "(Tensor grad, Tensor x, Tensor weight, bool relu, bool need_x)"
    " -> (Tensor, Tensor, Tensor)",
    "conv4x4": "(Tensor x, Tensor weight, Tensor bias, bool relu, bool transposed) -> Tensor",
    "conv4x4_backward": "(Tensor grad, Tensor? y, Tensor x, Tensor weight, bool transposed,"
    " bool need_x) -> (Tensor, Tensor, Tensor)",
    "has_matrix_units": "(Tensor like) -> bool",
    "linear_adam": "(Tensor(a!) steps, Tensor settings, Tensor[] grads, Tensor[] ys, Tensor[] xs,"
    " float[] slopes, Tensor(b!)[] params, Tensor(c!)[] exp_avg, Tensor(d!)[] exp_avg_sq,"
    " Tensor(e!)[] copies, int group, float eps, Tensor? factor=None) -> ()",
    "philox_words": "(Tensor seed, Tensor step, int stream, Tensor index) -> Tensor",
    # Its counts stand first: where there is no other tensor, they say the device.
    "fused_adam": "(Tensor(a!) steps, Tensor settings, Tensor(b!)[] params, Tensor[] grads,"
    " Tensor(c!)[] exp_avg, Tensor(d!)[] exp_avg_sq, Tensor(e!)[] copies, int[] groups, float eps,"
    " Tensor? found_inf=None) -> ()",
    "metric_votes": "(Tensor codes, int[] factor_sizes, int votes, int samples, bool balanced,"
    " Tensor scale, Tensor active, Tensor seed, Tensor step, int lane, Tensor? offsets=None,"
    " Tensor? rows=None) -> Tensor",
    "pair_features": "(Tensor codes, int[] factor_sizes, int points, int pairs, bool balanced,"
    " Tensor seed, Tensor step, int lane, Tensor? offsets=None, Tensor? rows=None)"
    " -> (Tensor, Tensor)",
    "grouped_variance": "(Tensor codes, int[] factor_sizes, Tensor? offsets=None,"
    " Tensor? rows=None) -> Tensor",
    "boosted_trees": "(Tensor codes, Tensor labels, int[] classes, Tensor test, int stages,"
    " float rate) -> (Tensor, Tensor)",
}

#: The ops of the library: those of a training step in its order, then those of the metrics.
OPS = (
    "gather_batch",
    "reparameterize",
    "permute_dims",
    "logit_ratio",
    "bernoulli_nll",
    "gaussian_nll",
    "pairwise_tc",
    "activation_backward",
    "bias_activation",
    "linear_backward",
    "conv_from_bits",
    "conv_to_pixels",
    "conv4x4",
    "linear_adam",
    "fused_adam",
    "metric_votes",
    "pair_features",
    "grouped_variance",
    "boosted_trees",
)
#: Those of the metrics, which the C++/CUDA extension has.
METRICS = OPS[-4:]
#: Those of them that its CUDA part does not have.
CPU_ONLY = ("boosted_trees",)
#: Ops of layers that PyTorch has slower on a CPU alone.
CPU_LAYERS = (
    "packed_bits", "conv_from_bits", "conv_from_bits_backward", "conv_to_pixels",
    "conv_to_pixels_backward", "conv4x4", "conv4x4_backward", "has_matrix_units",
)  # fmt: skip
#: Words of random numbers, which a GPU's kernels make themselves.
WORDS = "philox_words"
#: Device type -> registered ops that the extension has for it.
EXTENSION = {
    "cpu": (
        *METRICS, *CPU_LAYERS, WORDS, "bernoulli_nll", "gaussian_nll", "pairwise_tc",
        "pairwise_tc_backward", "fused_adam",
    ),
    "cuda": tuple(name for name in METRICS if name not in CPU_ONLY),
}  # fmt: skip


def _triton(name: str) -> Callable[..., Any]:
    """Return the Triton launcher of an op; the kernels are imported at its first call."""

    def run(*args: Any) -> Any:
        from fvae import kernels

        if any(isinstance(a, Tensor) and a.dtype == torch.float64 for a in args):
            raise TypeError(
                f"{name}: backend='triton' computes in float32, got float64; pass"
                " backend='reference'"
            )
        launcher: Any = kernels.IMPLEMENTATIONS[name]
        return launcher(*args)

    return run


#: Backend name -> registered op name -> implementation.
BACKENDS: dict[str, dict[str, Callable]] = {
    "reference": {name: getattr(reference, name) for name in SCHEMAS}
}
if importlib.util.find_spec("triton"):
    _TRITON = [name for name in SCHEMAS if name not in (*METRICS, *CPU_LAYERS, WORDS)]
    BACKENDS["triton"] = {name: _triton(name) for name in _TRITON}

_DEVICE_OF = {"triton": "cuda", "cuda": "cuda", "cpp": "cpu"}


def _extension(name: str, backend: str) -> Callable:
    """Return an op of the C++/CUDA extension, which the dispatcher has under its device."""
    device = _DEVICE_OF[backend]

    def run(codes: Tensor, *args: Any) -> Any:
        if codes.device.type != device:
            raise ValueError(
                f"{name}: backend={backend!r} needs {device} tensors, got {codes.device}"
            )
        return getattr(torch.ops.fvae, name)(codes, *args)

    return run


def _part(module: str, language: str, seconds: int, backend: str) -> Part:
    """Return a part of the extension, which is listed among the backends once it is loaded."""

    def loaded() -> None:
        names = EXTENSION[_DEVICE_OF[backend]]
        BACKENDS[backend] = {name: _extension(name, backend) for name in names}
        if WORDS in names:
            philox.native = getattr(torch.ops.fvae, WORDS)

    return Part(module, language, seconds, loaded)


#: Device type -> the part of the extension that serves it.
_PARTS = {"cpu": _part("_C", "C++", 30, "cpp")}
if torch.version.cuda:
    _PARTS["cuda"] = _part("_C_cuda", "CUDA", 60, "cuda")


def extension_error(device_type: str) -> str | None:
    """Return why the extension's ops are not there for a device type, or None. Builds nothing.

    None where they are, and for device types that the extension never serves: those but "cpu" and,
    where PyTorch is a CUDA build, "cuda". ``NOT_YET`` where nothing is known to be in the way.
    """
    part = _PARTS.get(device_type)
    return part.error() if part else None


def build_extension(device_type: str = "cpu") -> str | None:
    """Build the extension's ops for a device type where they are missing, as the first use does.

    Returns why they are not there, or None, as :func:`extension_error`.
    """
    part = _PARTS.get(device_type)
    return part.build() if part else None


def _until_built(name: str) -> Callable:
    """Return an op's reference, whose first call builds the extension and hands over to it."""

    def run(codes: Tensor, *args: Any) -> Any:
        device = codes.device.type
        part = _PARTS.get(device) if name in EXTENSION.get(device, ()) else None
        # Not where the part is loaded, and still does not serve these codes (a sparse tensor).
        if part and not part.loaded and part.build() is None:
            return getattr(torch.ops.fvae, name)(codes, *args)
        return BACKENDS["reference"][name](codes, *args)

    return run


#: The library that owns the ops' schemas and fakes.
LIBRARY = torch.library.Library("fvae", "DEF")
for _name, _schema in SCHEMAS.items():
    # The outputs never alias an input, and nothing is mutated but what the schema says: tagged so
    # for the compiler.
    LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _run = _until_built(_name) if _name in EXTENSION["cpu"] else BACKENDS["reference"][_name]
    LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
for _name, _run in BACKENDS.get("triton", {}).items():
    LIBRARY.impl(_name, _run, "CUDA")

for _installed in _PARTS.values():
    _installed.load_installed()
# Also what an earlier process has built. The CUDA part waits until it is asked for: what was built
# goes by the GPU, and importing this should not wake one.
extension_error("cpu")


def backend_of(op: str, device_type: str) -> str:
    """Return the name of the backend that serves an op on a device type where backend=None.

    Until the extension is built (:func:`extension_error`), its ops are the reference's.
    """
    if op in EXTENSION.get(device_type, ()):
        extension_error(device_type)  # loads and lists what is built
    for name, implementations in BACKENDS.items():
        if name != "reference" and op in implementations and device_type == _DEVICE_OF[name]:
            return name
    return "reference"


def implementation(name: str, backend: str | None) -> Callable:
    """Return the raw op of a backend, or the dispatcher's op where backend is None."""
    if backend is None:
        return getattr(torch.ops.fvae, name)
    why = build_extension(_DEVICE_OF[backend]) if _is_extension(name, backend) else None
    if backend not in BACKENDS or name not in BACKENDS[backend]:
        known = ", ".join(b for b, table in BACKENDS.items() if name in table)
        raise ValueError(
            f"backend: got {backend!r}, but {name} has {known}" + (f" ({why})" if why else "")
        )
    return BACKENDS[backend][name]


def _is_extension(name: str, backend: str) -> bool:
    return backend in ("cpp", "cuda") and name in EXTENSION[_DEVICE_OF[backend]]
