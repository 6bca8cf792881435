"""Take every kernel through Triton's type checks with every integer argument of 64 bits.

Run by test_compiled.py as a program: the kernels compile only where the interpreter is off. Prints
a line for each kernel and argument.
"""

import dataclasses

from triton._C.libtriton import ir
from triton.compiler import make_backend

from fvae.kernels import report

SMALL, LARGE = 17, (1 << 31) + 16


def type_check(launch):
    source, target, options = report.compiler_input(launch, "sm_90")
    backend = make_backend(target)
    options = backend.parse_options(options)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions = backend.get_codegen_implementation(options)
    source.make_ir(target, options, functions, backend.get_module_map(), context)


def main():
    seen = set()
    for variant in report.variants():
        launch = variant.launch
        known = (launch.kernel.__name__, *launch.meta.items())
        if known in seen or "B=4096" in variant.name or variant.dtype.endswith("float16"):
            continue
        seen.add(known)
        integers = [i for i, a in enumerate(launch.args) if type(a) is int]
        for wide in [*([i] for i in integers), integers]:
            args = list(launch.args)
            for i in integers:
                args[i] = LARGE if i in wide else SMALL
            type_check(dataclasses.replace(launch, args=tuple(args)))
            print(variant.name, *(launch.kernel.arg_names[i] for i in wide))


if __name__ == "__main__":
    main()
