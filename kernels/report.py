"""``python -m fvae.kernels.report``: what each kernel compiles to, on a machine without a GPU.

Compiles every kernel, dtype and target to machine code and prints registers, shared memory,
instructions, bytes of spills and local memory, and the widest global load and store.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fvae.kernels import (
    bernoulli_nll,
    gather_batch,
    logit_ratio,
    permute_dims,
    reparameterize,
    tiles,
)
from fvae.kernels.launch import interpreted

TARGETS = {"sm_80": 80, "sm_90": 90, "sm_100": 100}
_DTYPES = {"float32": "*fp32", "bfloat16": "*bf16"}


@dataclass(frozen=True)
class Variant:
    """One kernel as a training step starts it: batch 64, d = 10, 64 x 64 images.

    Attributes:
        op: registered op.
        name: kernel and variant.
        kernel: the jitted function.
        dtype: of the floating point tensors.
        types: argument name -> Triton type, in order; all pointers are 16-byte aligned.
        constants: compile-time arguments, and run-time ones that are 0 or 1 in practice.
        multiples: integer arguments that are multiples of 16 in practice.
        num_warps: warps of a program.
        wide: whether loads and stores of images must be 16 bytes wide.
    """

    op: str
    name: str
    kernel: object
    dtype: str
    types: dict[str, str]
    constants: dict[str, object]
    multiples: tuple[str, ...] = ()
    num_warps: int = tiles.WARPS
    wide: bool = False


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


def _types(kernel, pointer: str, special: dict[str, str]) -> dict[str, str]:
    """Types by the arguments' names: tensors of the dtype, float32 sums, int64 keys, int32 rest."""
    types = {}
    for name in kernel.arg_names:
        if name in special:
            types[name] = special[name]
        elif name.isupper():
            types[name] = "constexpr"
        elif name in ("seed_ptr", "step_ptr", "index_ptr", "key_ptr"):
            types[name] = "*i64"
        elif name.endswith("_ptr"):
            types[name] = pointer
        else:
            types[name] = "i32"
    return types


def variants() -> Iterator[Variant]:
    """Yield every kernel, dtype and form of input."""
    single = {"key_stride": 0}
    for dtype, pointer in _DTYPES.items():

        def make(op, name, kernel, constants, special=None, pointer=pointer, dtype=dtype, **more):
            types = _types(kernel, pointer, special or {})
            return Variant(op, name, kernel, dtype, types, constants, **more)

        words = {"data_ptr": "*i32"}
        for name, packed in (("bits", True), ("bytes", False)):
            yield make(
                "gather_batch", f"gather_batch {name}", gather_batch.gather_batch_kernel,
                single | {"PACKED": packed, "WORDS": tiles.GATHER_WORDS[name]}, words,
                multiples=("words",), num_warps=tiles.GATHER_WARPS[name], wide=True,
            )  # fmt: skip
        unit = {"mu_d": 1, "lv_d": 1, "mu_m": 0, "lv_m": 0}
        yield make(
            "reparameterize", "reparameterize", reparameterize.reparameterize_kernel,
            single | unit
            | {"GROUPS": tiles.NOISE_GROUPS, "TILE": tiles.kl_rows(64, 16), "DIMS": 16},
            {"kl_ptr": "*fp32"},
        )  # fmt: skip
        yield make(
            "reparameterize_backward", "reparameterize_backward",
            reparameterize.reparameterize_backward_kernel,
            single | unit | {"g_m": 0, "g_d": 1, "GROUPS": tiles.NOISE_GROUPS},
            {"grad_kl_ptr": "*fp32"},
        )  # fmt: skip
        for size in (64, tiles.SORT_ROWS):
            for op, inverse in (("permute_dims", False), ("permute_dims_backward", True)):
                yield make(
                    op, f"{op} B={size}", permute_dims.permute_dims_kernel,
                    single | {"stride_m": 0, "stride_d": 1, "INVERSE": inverse, "SIZE": size},
                    num_warps=tiles.sort_warps(size),
                )  # fmt: skip
        sums = dict.fromkeys(
            ("tc_ptr", "loss_ptr", "accuracy_ptr", "slope_z_ptr", "slope_perm_ptr"), "*fp32"
        )
        yield make(
            "logit_ratio", "logit_ratio", logit_ratio.logit_ratio_kernel,
            {"z_m": 0, "z_c": 1, "perm_m": 0, "perm_c": 1, "TILE": 64}, sums,
        )  # fmt: skip
        partial = {"partial_ptr": "*fp32", "nll_ptr": "*fp32", "counter_ptr": "*i32"}
        for name, target, packed, octets in (
            ("float", pointer, False, False), ("bytes", "*u8", False, True),
            ("bits", "*i32", True, False),
        ):  # fmt: skip
            yield make(
                "bernoulli_nll", f"bernoulli_nll {name}", bernoulli_nll.bernoulli_nll_kernel,
                {
                    "PACKED": packed, "OCTETS": octets, "TILE": tiles.NLL_TILE,
                    "TURNS": tiles.NLL_PIXELS // tiles.NLL_TILE,
                    "PARTIALS": tiles.NLL_PARTIALS,
                },
                partial | {"target_ptr": target}, multiples=("per_model",), wide=True,
            )  # fmt: skip
    yield Variant(
        "permute_dims", "permutation_keys", permute_dims.permutation_keys_kernel, "int64",
        _types(permute_dims.permutation_keys_kernel, "*i64", {}),
        single | {"GROUPS": tiles.KEY_GROUPS},
    )  # fmt: skip


def compile_variant(variant: Variant, target: str) -> Row:
    """Compile one variant for one target and read its resources off the machine code."""
    types = dict(variant.types)
    for name in variant.constants:
        types[name] = "constexpr"
    names = list(types)
    aligned = [n for n, t in types.items() if t.startswith("*") or n in variant.multiples]
    source = ASTSource(
        fn=variant.kernel,
        signature=types,
        constexprs={(names.index(n),): value for n, value in variant.constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", TARGETS[target], 32),
        options={"num_warps": variant.num_warps, "enable_fp_fusion": True},
    )
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


def compile_all(targets: tuple[str, ...] = tuple(TARGETS)) -> list[Row]:
    """Compile every variant for the targets; a row each, in the order of the ops."""
    jobs = [(variant, target) for variant in variants() for target in targets]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda job: compile_variant(*job), jobs))


def main() -> None:
    """Print the table, or JSON with ``--json``."""
    parser = argparse.ArgumentParser(prog="fvae.kernels.report", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if interpreted():
        parser.error("TRITON_INTERPRET=1 is set: unset it, there is nothing to compile with it")
    rows = [dataclasses.asdict(row) for row in compile_all()]
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
