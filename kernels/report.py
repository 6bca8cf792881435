"""``python -m fvae.kernels.report``: what each kernel compiles to, on a machine without a GPU.

Calls every op, takes down how it starts its kernel, and compiles that for every target as Triton
would on a GPU: registers, shared memory, instructions, bytes of spills and local memory, and the
widest global load and store.
"""

import argparse
import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from fvae import kernels
from fvae.kernels import tiles
from fvae.kernels.launch import Launch, interpreted, planned
from fvae.philox import Philox

TARGETS = {"sm_80": 80, "sm_90": 90, "sm_100": 100}


@dataclass(frozen=True)
class Variant:
    """One kernel as an op starts it.

    Attributes:
        op: registered op.
        name: kernel and variant.
        dtype: of the floating point tensors.
        launch: kernel and arguments.
    """

    op: str
    name: str
    dtype: str
    launch: Launch


@dataclass(frozen=True)
class Row:
    """What one variant compiled to.

    Attributes:
        op: registered op.
        kernel: kernel and variant.
        dtype: of the floating point tensors.
        target: such as "sm_90".
        registers: of a thread.
        shared: bytes of shared memory of a program.
        instructions: machine instructions.
        local: bytes of local memory and stack of a thread: spills would show here.
        load: widest global load, bytes a thread.
        store: widest global store, bytes a thread.
    """

    op: str
    kernel: str
    dtype: str
    target: str
    registers: int
    shared: int
    instructions: int
    local: int
    load: int
    store: int


def variants() -> Iterator[Variant]:
    """Yield every kernel, dtype and form of input: d = 10, 64 x 64 images, 64 of a batch.

    Larger batches and other images where the kernel then is another. The tensors are meta tensors,
    of no memory.
    """
    rng = Philox(0, device="meta")
    zeros = functools.partial(torch.zeros, device="meta")
    key, many = (rng.seed, rng.step, rng.lane), tiles.SORT_ROWS
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for form, shape, width in (
            ("bits", [1, 64, 64], 512), ("bytes", [1, 64, 64], 4096), ("indices", [4, 1, 1], 4),
            ("bits bytewise", [1, 28, 28], 98), ("bytes bytewise", [3, 31, 31], 2883),
        ):  # fmt: skip
            store = zeros(64, width, dtype=torch.uint8)
            args = (store, shape, form.startswith("bits"), 64, *key, dtype)
            yield _variant("gather_batch", form, dtype, *args)
            table = zeros(64, dtype=torch.int64)
            yield _variant("gather_batch", f"{form} by weight", dtype, *args, table)
        for size in (64, many):
            x = zeros(size, 10, dtype=dtype)
            yield _variant("reparameterize", f"B={size}", dtype, x, x, *key)
        kl = zeros(10)
        x = zeros(64, 10, dtype=dtype)
        yield _variant("reparameterize_backward", "", dtype, x, kl, x, x, *key)
        x = zeros(128, 10, dtype=dtype)
        yield _variant("reparameterize_both", "", dtype, x, x, *key)
        yield _variant("reparameterize_both_backward", "", dtype, x[:64], kl, x, x, *key)
        x = x[:64]
        rows, weights = zeros(64), (-1.0, -1.0, -1.0)
        yield _variant("pairwise_tc", "", dtype, x, x, x, *weights)
        sums = (rows, zeros(64, 10))
        yield _variant("pairwise_tc_backward", "", dtype, *[rows] * 3, x, x, x, *sums, *weights)
        yield from _layer_variants(dtype)
        yield from _adam_variants(dtype)
        yield _variant("permute_dims", "B=64", dtype, x, *key)
        yield _variant("permute_dims_backward", "B=64", dtype, x, *key)
        for size in (64, many):
            x = zeros(size, 2, dtype=dtype)
            yield _variant("logit_ratio", f"B={size}", dtype, x, x)
        logits = zeros(64, 1, 64, 64, dtype=dtype)
        for form, target in (
            ("float", logits), ("bool", logits.bool()), ("bytes", logits.byte()),
            ("bits", zeros(64, 512, dtype=torch.uint8)),
        ):  # fmt: skip
            for op in ("bernoulli_nll", "gaussian_nll"):
                yield _variant(op, form, dtype, logits, target)
        logits, target = zeros(64, 1, 28, 28, dtype=dtype), zeros(64, 98, dtype=torch.uint8)
        for op in ("bernoulli_nll", "gaussian_nll"):
            yield _variant(op, "bits bytewise", dtype, logits, target)
    # Sorting takes long to compile, and is the same whatever it permutes.
    x = zeros(many + 1, 10)
    yield _variant("permute_dims", f"B={many}", x.dtype, x[:many], *key)
    yield _variant("permute_dims", "permutation_keys", torch.int64, x, *key)


def _variant(op: str, name: str, dtype: torch.dtype, *args, which: int | None = None) -> Variant:
    """Take down the one launch of an op or, of several, the one that is asked for."""
    with planned() as launches:
        kernels.IMPLEMENTATIONS[op](*args)
    if which is not None:
        launches = [launches[which]]
    return Variant(op, f"{op} {name}".strip(), str(dtype).removeprefix("torch."), *launches)


def _layer_variants(dtype: torch.dtype) -> Iterator[Variant]:
    """Yield the kernels of layers: of images of 32 and 1 channels, and of 1000 units."""
    zeros, last = functools.partial(torch.zeros, device="meta", dtype=dtype), torch.channels_last
    f, one = torch.float32, zeros(32, dtype=torch.float32)
    for name, channels in (("images", 32), ("gray images", 1)):
        y = zeros(64, channels, 32, 32).to(memory_format=last)
        yield _variant("activation_backward", name, dtype, y, y, 0.0, f)
        yield _variant("bias_activation", name, dtype, y, one[:channels], 0.0)
    y = zeros(64, 32, 32, 32)
    yield _variant("activation_backward", "images row-major", dtype, y, y, 0.0, f)
    y, x, weight = zeros(128, 1000), zeros(128, 1000), zeros(1000, 1000)
    factor = torch.zeros(128, device="meta")
    yield _variant("activation_backward", "units", dtype, y, y, 0.2, f, factor)
    yield _variant("activation_backward", "sum", dtype, y, y, 1.0, f)
    yield _variant("bias_activation", "units", dtype, y, None, 0.2)
    yield _variant("linear_backward", "", dtype, y, y, x, weight, 0.0, f, True)
    yield _variant("linear_backward", "factor", dtype, y, y, x, weight, 0.2, f, True, factor)
    yield _variant("linear_backward", "sum", dtype, y, y, x, weight, 1.0, f, False)
    yield _variant("linear_backward", "x alone", dtype, y, y, x, weight, 0.2, f, True, None, False)


def _adam_variants(dtype: torch.dtype) -> Iterator[Variant]:
    """Yield fused_adam's kernels for 38 tensors and gradients, and copies, of one type."""
    zeros = functools.partial(torch.zeros, device="meta")
    grads = [zeros(64, 10, dtype=dtype)] * 38
    copies = [] if dtype == torch.float32 else grads
    for name, p in (("", zeros(64, 10)), ("unaligned", zeros(641)[1:].view(64, 10))):
        params = [p] * 38
        args = (zeros(38), zeros(2, 3), params, grads, params, params, copies, [0] * 38, 1e-8)
        yield _variant("fused_adam", name, dtype, *args, which=-1)
    yield from _linear_adam_variants(dtype)
    if dtype == torch.float32:
        yield _variant("fused_adam", "table", torch.int64, *args, which=0)
        yield _variant("fused_adam", "scales", dtype, *args, which=-2)
        yield _variant("fused_adam", "scales found_inf", dtype, *args, zeros(()), which=-2)


def _linear_adam_variants(dtype: torch.dtype) -> Iterator[Variant]:
    """Yield linear_adam's kernels for 7 layers of 1000 units, with copies of the layers' type."""
    zeros = functools.partial(torch.zeros, device="meta")
    x, factor = [zeros(128, 1000, dtype=dtype)] * 7, zeros(128)
    state = [zeros(1000, 1000), zeros(1000)] * 7
    copies = [] if dtype == torch.float32 else [p.to(dtype) for p in state]
    apart = zeros(1_000_001)[1:].view(1000, 1000)
    for name, p in (("", state[0]), ("unaligned", apart)):
        params = [p, state[1]] * 7
        args = (zeros(14), zeros(2, 3), x, x, x, [0.2] * 7, params, state, state, copies, 1, 1e-8)
        yield _variant("linear_adam", name, dtype, *args, factor, which=-1)
    if dtype == torch.float32:
        yield _variant("linear_adam", "scales", dtype, *args, factor, which=0)


@functools.cache
def _binder(kernel, target: str) -> tuple:
    """Return a kernel compiled by Triton, not interpreted; its target; what binds its arguments."""
    if not isinstance(kernel, JITFunction):
        kernel = JITFunction(kernel.fn, **kernel.kwargs)
    machine = GPUTarget("cuda", TARGETS[target], 32)
    backend = make_backend(machine)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    return kernel, machine, backend, bind


def key_of(launch: Launch) -> tuple:
    """Return what Triton tells the compiled kernels of a function from each other by."""
    *_, bind = _binder(launch.kernel, "sm_90")
    _, special, options = bind(*launch.args, **launch.meta)
    return launch.kernel.__name__, *map(tuple, special), *sorted(options.items())


def compiler_input(launch: Launch, target: str) -> tuple[ASTSource, GPUTarget, dict]:
    """Return source, target and options as Triton would pass them to its compiler."""
    kernel, machine, backend, bind = _binder(launch.kernel, target)
    bound, special, _ = bind(*launch.args, **launch.meta)
    options, *source = kernel._pack_args(backend, launch.meta, bound, special, None)
    return ASTSource(kernel, *source), machine, options.__dict__


def compile_variant(variant: Variant, target: str) -> Row:
    """Compile one variant for one target and read its resources off the machine code."""
    source, machine, options = compiler_input(variant.launch, target)
    compiled = triton.compile(source, target=machine, options=options)
    registers, local, instructions = _resources(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    return Row(
        op=variant.op,
        kernel=variant.name,
        dtype=variant.dtype,
        target=target,
        registers=registers,
        shared=compiled.metadata.shared,
        instructions=instructions,
        local=local,
        load=_widest(ptx, "ld.global"),
        store=_widest(ptx, "st.global"),
    )


def _widest(ptx: str, instruction: str) -> int:
    """Widest access of a kind in the PTX, in bytes a thread."""
    widths = [0]
    for line in ptx.splitlines():
        found = re.search(rf"{re.escape(instruction)}\S*?(?:\.v(\d))?\.[bfsu](\d+)\s", line)
        if found:
            widths.append(int(found[1] or 1) * int(found[2]) // 8)
    return max(widths)


def _resources(cubin: bytes) -> tuple[int, int, int]:
    """Registers a thread, bytes of stack and local memory a thread, instructions."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def run(tool: str, *options: str) -> str:
            command = [tools / tool, *options, file.name]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

        usage = run("cuobjdump", "--dump-resource-usage")
        code = run("nvdisasm", "--print-code")
    number = {key: int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL")}
    instructions = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", code, re.MULTILINE))
    return number["REG"], number["STACK"] + number["LOCAL"], instructions


def compile_all(jobs: Iterable[tuple[Variant, str]] = ()) -> list[Row]:
    """Compile variants for targets, every one for all where none is named; a row each, in order."""
    jobs = list(jobs) or [(variant, target) for variant in variants() for target in TARGETS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda job: compile_variant(*job), jobs))


def markdown(rows: list[Row]) -> str:
    """Return the table of ``kernels/README.md``, a line for each kernel and dtype.

    A cell holds one number where all targets have the same, else theirs in the rows' order.
    """
    targets = list(dict.fromkeys(row.target for row in rows))
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        lines.setdefault((row.kernel, row.dtype), []).append(row)
    names = ("registers", "shared", "instructions", "local", "load", "store")
    table = [f"| kernel | dtype | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for (kernel, dtype), group in lines.items():
        cells = []
        for name in names:
            values = [str(getattr(row, name)) for row in group]
            cells.append(values[0] if len(set(values)) == 1 else " / ".join(values))
        table.append(f"| {kernel} | {dtype} | {' | '.join(cells)} |")
    return f"Triton {triton.__version__}, {' / '.join(targets)}:\n\n" + "\n".join(table)


def main() -> None:
    """Print the table, as plain text, with ``--markdown`` or as JSON with ``--json``."""
    parser = argparse.ArgumentParser(prog="fvae.kernels.report", description=__doc__)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument(
        "--markdown", action="store_true", help="print the table of kernels/README.md"
    )
    options = parser.parse_args()
    if interpreted():
        parser.error("TRITON_INTERPRET=1 is set: unset it, there is nothing to compile with it")
    compiled = compile_all()
    if options.markdown:
        print(markdown(compiled))
        return
    rows = [dataclasses.asdict(row) for row in compiled]
    if options.json:
        print(json.dumps(rows))
        return
    names = [field.name for field in dataclasses.fields(Row)]
    cells = [names] + [[str(row[name]) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    print(f"\ntriton {triton.__version__}; local is bytes of stack and spills a thread;"
          " load and store are the widest, in bytes a thread", file=sys.stderr)  # fmt: skip


if __name__ == "__main__":
    main()
