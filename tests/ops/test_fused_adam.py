"""fused_adam: Adam of all tensors, against itself in float64, and what must not change a bit."""

import itertools
import re

import numpy as np
import pytest
import torch
from shared import needs_extension, threads
from torch.library import opcheck

from fvae import ops

CPP = pytest.param("cpp", marks=needs_extension)
BACKENDS = ["reference", CPP, "triton"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
COPIES = [None, torch.bfloat16, torch.float16]
SHAPES = [(5, 3), (), (1,), (7, 4, 3, 3), (0, 3), (8, 1, 4, 4), (37, 45)]
SETTINGS, EPS = torch.tensor([[1e-2, 0.9, 0.999], [3e-3, 0.5, 0.9]]), 1e-8
GROUPS = [0, 0, 1, 1, 0, 0, 1]
TINY = torch.finfo(torch.float32).tiny  # the smallest normal number


class Weights:
    """Tensors of all shapes, among them convolutions' weights in channels_last."""

    def __init__(self, copies=None, shapes=SHAPES, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        self.params = [self._normal(shape) for shape in shapes]
        self.exp_avg = [torch.zeros_like(p) for p in self.params]
        self.exp_avg_sq = [torch.zeros_like(p) for p in self.params]
        self.copies = [torch.zeros_like(p, dtype=copies) for p in self.params] if copies else []
        self.steps = torch.zeros(len(shapes))

    def _normal(self, shape):
        x = torch.randn(shape, generator=self.generator)
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    def grads(self, dtype=torch.float32):
        return [self._normal(p.shape).to(dtype) for p in self.params]

    def step(self, grads, backend, found_inf=None, groups=GROUPS):
        ops.fused_adam(
            self.params, grads, self.exp_avg, self.exp_avg_sq, self.steps, SETTINGS, groups,
            self.copies, eps=EPS, found_inf=found_inf, backend=backend,
        )  # fmt: skip

    def all(self):
        return [*self.params, *self.exp_avg, *self.exp_avg_sq, *self.copies, self.steps]


def _same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.all(), other.all(), strict=True))


def _textbook(p, grads, group):
    """The paper's algorithm, in float64."""
    p, m, v = p.double().clone(), torch.zeros_like(p).double(), torch.zeros_like(p).double()
    lr, beta1, beta2 = SETTINGS[group].double()
    for t, g in enumerate(grads, start=1):
        g = g.double()
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        p -= lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + EPS)
    return p, m, v


@pytest.mark.parametrize("copies", COPIES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_float64(backend, dtype, copies):
    # In the interpreter twenty steps of all shapes would take a minute.
    interpreted = backend == "triton"
    shapes, steps = ([*SHAPES[:-1], (7, 5)], 6) if interpreted else (SHAPES, 20)
    weights = Weights(copies, shapes)
    begin = [p.clone() for p in weights.params]
    grads = []
    for _ in range(steps):
        grads.append(weights.grads(dtype))
        weights.step(grads[-1], backend)
        for p, copy in zip(weights.params, weights.copies, strict=False):
            assert torch.equal(copy, p.to(copies))
    assert weights.steps.tolist() == [steps] * len(shapes)
    for i, group in enumerate(GROUPS):
        want = _textbook(begin[i], [g[i] for g in grads], group)
        got = (weights.params[i], weights.exp_avg[i], weights.exp_avg_sq[i])
        for x, y in zip(got, want, strict=True):
            torch.testing.assert_close(x, y.float(), rtol=2e-5, atol=2e-6)


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_extension_rounds_each_operation_once(dtype):
    # NumPy's float32, an operation at a time: bit for bit, in vectors and in what is left over.
    weights = Weights(torch.bfloat16, [(1000,), (13,), (7, 31)])
    f = np.float32
    state = [[x[i].numpy().copy() for x in (weights.params, weights.exp_avg, weights.exp_avg_sq)]
             for i in range(3)]  # fmt: skip
    for t in range(1, 4):
        grads = weights.grads(dtype)
        weights.step(grads, "cpp", groups=[0, 1, 0])
        for i, group in enumerate((0, 1, 0)):
            p, m, v = state[i]
            lr, b1, b2 = SETTINGS[group].double().tolist()
            g, step = grads[i].float().numpy(), f(lr / (1 - b1**t))
            m = f(b1) * m + f(1 - b1) * g
            v = f(b2) * v + f(1 - b2) * g * g
            p = p - step * m / (np.sqrt(v) * f(1 / (1 - b2**t) ** 0.5) + f(EPS))
            state[i] = [p, m, v]
            got = (weights.params[i], weights.exp_avg[i], weights.exp_avg_sq[i])
            assert all(np.array_equal(a.numpy(), b) for a, b in zip(got, state[i], strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_pytorch_s_own(backend):
    # Two learning rates, and gradients of no tensor's own type.
    weights = Weights()
    theirs = [torch.nn.Parameter(p.clone()) for p in weights.params]
    each = [[p for p, g in zip(theirs, GROUPS, strict=True) if g == k] for k in (0, 1)]
    groups = [
        {"params": each[k], "lr": float(lr), "betas": (float(b1), float(b2))}
        for k, (lr, b1, b2) in enumerate(SETTINGS)
    ]
    adam = torch.optim.Adam(groups, fused=True)
    for _ in range(3):
        grads = weights.grads()
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g.clone(memory_format=torch.preserve_format)
        adam.step()
        weights.step(grads, backend)
    for p, q in zip(weights.params, theirs, strict=True):
        torch.testing.assert_close(p, q.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_found_inf(backend):
    weights, other = Weights(torch.bfloat16), Weights(torch.bfloat16)
    grads = weights.grads(torch.float16)
    weights.step(grads, backend)
    other.step(grads, backend, torch.tensor(0.0))
    assert _same(weights, other)
    broken = weights.grads(torch.float16)
    broken[0][1, 1], broken[3][0, 0, 0, 0] = torch.inf, torch.nan
    other.step(broken, backend, torch.tensor(1.0))
    assert _same(weights, other)


@pytest.mark.parametrize("copies", [None, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_wherever_the_numbers_lie(backend, copies):
    # Gradients, moments, copies and weights in other orders of memory, with gaps, and not aligned.
    def gaps(x):
        return torch.zeros(*x.shape, 2, dtype=x.dtype)[..., 0].copy_(x)

    def moved(x):
        return torch.zeros(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)

    def turned(x):
        return x.mT.contiguous().mT if x.dim() > 1 else x

    shapes = [(5, 3), (1,), (3, 4, 2, 3), (2, 7)]
    for change in (gaps, moved, turned, torch.Tensor.contiguous):
        names = ("grads", "params", "exp_avg", "exp_avg_sq", "copies")
        for changed in ("grads", "exp_avg_sq", "copies", names):
            weights, other = Weights(copies, shapes), Weights(copies, shapes)
            for _ in range(1 if backend == "triton" else 2):
                grads = weights.grads(torch.bfloat16)
                weights.step(grads, backend, groups=[0, 1, 0, 1])
                if "grads" in changed:
                    grads = [change(g) for g in grads]
                for name in set(names[1:]) & {changed, *changed}:
                    setattr(other, name, [change(x) for x in getattr(other, name)])
                other.step(grads, backend, groups=[0, 1, 0, 1])
            assert _same(weights, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_types_of_gradients_and_copies(backend):
    shapes = [(5, 3), (9,), (4,), (2, 2)]
    weights = Weights(torch.bfloat16, shapes)
    weights.copies[1] = weights.copies[1].half()
    grads = [g.to(d) for g, d in zip(weights.grads(), [*DTYPES, torch.bfloat16], strict=True)]
    weights.step(grads, backend, groups=[0, 1, 0, 1])
    alone = [Weights(torch.bfloat16, shapes) for _ in shapes]
    for i, one in enumerate(alone):
        pick = [x[i : i + 1] for x in (one.params, grads, one.exp_avg, one.exp_avg_sq)]
        ops.fused_adam(*pick, one.steps[i : i + 1], SETTINGS, [i % 2], backend=backend)
        assert torch.equal(one.params[i], weights.params[i])
        assert torch.equal(weights.copies[i], weights.params[i].to(weights.copies[i].dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stack_of_models_is_each_alone(backend):
    # 3 x 77 elements: each model's stand elsewhere in a vector.
    for shape in ((77,), (7, 11)):
        stacked = Weights(torch.bfloat16, [(3, *shape)])
        models = [Weights(torch.bfloat16, [shape]) for _ in range(3)]
        for m, one in enumerate(models):
            one.params = [stacked.params[0][m].clone()]
        for _ in range(3):
            (grad,) = stacked.grads(torch.bfloat16)
            stacked.step([grad], backend, groups=[0])
            for m, one in enumerate(models):
                one.step([grad[m]], backend, groups=[0])
        for m, one in enumerate(models):
            for both, each in zip(stacked.all()[:-1], one.all()[:-1], strict=True):
                assert torch.equal(both[m], each)


@needs_extension
def test_any_number_of_threads_gives_the_same_bits():
    shapes = [(300, 401), (7,), (65_537,), *[(3,)] * 20, (50_000,)]
    found = []
    for count in (1, 2, 3):
        weights = Weights(torch.bfloat16, shapes)
        with threads(count):
            for _ in range(2):
                grads = weights.grads(torch.bfloat16)
                weights.step(grads, "cpp", groups=[i % 2 for i in range(len(shapes))])
        found.append(weights)
    assert _same(found[0], found[1]) and _same(found[0], found[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_settings_are_read_anew_and_steps_count_for_each_tensor(backend):
    weights, settings = Weights(None, [(3,), (3,)]), SETTINGS.clone()
    weights.params[1].copy_(weights.params[0])
    weights.steps = torch.tensor([4.0, 99.0, 7.0, 99.0])[::2]
    before = [p.clone() for p in weights.params]
    args = (weights.params, [torch.ones(3)] * 2, weights.exp_avg, weights.exp_avg_sq, weights.steps)
    settings[:, 0] = 0
    ops.fused_adam(*args, settings, [0, 1], backend=backend)
    assert weights.steps.tolist() == [5, 8]
    assert all(torch.equal(p, q) for p, q in zip(weights.params, before, strict=True))
    settings[1, 0] = 1
    ops.fused_adam(*args, settings, [0, 1], backend=backend)
    assert torch.equal(weights.params[0], before[0]) and (weights.params[1] < before[1]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_fine(backend):
    ops.fused_adam([], [], [], [], torch.zeros(0), SETTINGS, [], backend=backend)
    weights = Weights(torch.bfloat16, [(0,), (2, 0, 3)])
    weights.step(weights.grads(), backend, groups=[0, 0])
    assert weights.steps.tolist() == [1, 1]


@pytest.mark.parametrize("bits", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_copies_of_any_number(backend, bits):
    # Ties, subnormal numbers, what overflows and what is no number: lr is 0, so that p stays.
    p = torch.randint(-(2**31), 2**31, (3000,), generator=torch.Generator().manual_seed(1))
    p = p.to(torch.int32).view(torch.float32)
    odd = [0.0, -0.0, torch.inf, -torch.inf, 65504.0, 65519.99, 65520.0, 2.0**-24, 2.0**-25, 3e-8]
    halves = torch.arange(2000).to(torch.float32) * 2.0**-12 + 1
    p = torch.cat([p, torch.tensor(odd), halves, halves * 2.0**-16, torch.tensor([torch.nan])])
    # The extension takes weights below the smallest normal number as 0.
    normal = p if backend != "cpp" else torch.where(p.abs() < TINY, 0 * p, p)
    want, copy = normal.to(bits), torch.zeros_like(p, dtype=bits)
    zero = torch.zeros(1, 3)
    moments = [torch.zeros_like(p)], [torch.zeros_like(p)]
    settings = zero + torch.tensor([0.0, 0.9, 0.999])
    args = ([p], [torch.zeros_like(p)], *moments, torch.zeros(1), settings, None, [copy])
    ops.fused_adam(*args, backend=backend)
    torch.testing.assert_close(copy, want, rtol=0, atol=0, equal_nan=True)


@needs_extension
def test_moments_of_dead_units_end_at_0():
    # 0.9 times four of the smallest numbers rounds to four of them: for ever, and slowly.
    weights = Weights(None, [(70_000,), (5, 3)])
    for m, v in zip(weights.exp_avg, weights.exp_avg_sq, strict=True):
        m.fill_(-2 * TINY), v.fill_(1.0001 * TINY)
    before = [p.clone() for p in weights.params]
    for _ in range(12):
        weights.step([torch.zeros_like(p) for p in weights.params], "cpp", groups=[0, 0])
    assert not any(x.any() for x in (*weights.exp_avg, *weights.exp_avg_sq))
    assert all(torch.equal(p, q) for p, q in zip(weights.params, before, strict=True))
    # The mode of the thread is as before.
    assert (torch.tensor([TINY / 2]) * 1).item() > 0


def test_a_graph_that_kept_a_weight_notices():
    p = torch.nn.Parameter(torch.ones(3))
    loss = (p * p).sum()
    ops.fused_adam([p], [torch.ones(3)], [torch.zeros(3)], [torch.zeros(3)], torch.zeros(1),
                   SETTINGS)  # fmt: skip
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert p.requires_grad and p.is_leaf


def _raw(weights, found_inf=None):
    grads = weights.grads(torch.bfloat16)
    lists = (weights.params, grads, weights.exp_avg, weights.exp_avg_sq, weights.copies)
    return (weights.steps, SETTINGS, *lists, GROUPS[: len(grads)], EPS, found_inf)


def test_opcheck():
    for copies, found_inf in itertools.product((None, torch.float16), (None, torch.tensor(0.0))):
        weights = Weights(copies, [(3, 2), (4,)])
        opcheck(torch.ops.fvae.fused_adam.default, _raw(weights, found_inf))


def test_compiled_whole():
    weights, other = Weights(torch.bfloat16), Weights(torch.bfloat16)
    grads = weights.grads()
    run = torch.compile(lambda g: other.step(g, None), fullgraph=True, backend="aot_eager")
    for _ in range(2):
        weights.step(grads, None)
        run(grads)
    assert _same(weights, other)


def test_bad_input():
    def refuse(error, message, **changes):
        weights = Weights(torch.bfloat16, [(3, 2), (4,)])
        given = dict(params=weights.params, grads=weights.grads(), exp_avg=weights.exp_avg,
                     exp_avg_sq=weights.exp_avg_sq, steps=weights.steps, settings=SETTINGS,
                     groups=[0, 1], copies=weights.copies)  # fmt: skip
        with pytest.raises(error, match=re.escape(message)):
            ops.fused_adam(**given | changes)

    x, y = torch.zeros(3, 2), torch.zeros(4)
    refuse(ValueError, "grads: got 1 tensors, expected 2, as params", grads=[x])
    refuse(ValueError, "copies: got 1 tensors, expected 2", copies=[x.half()])
    refuse(ValueError, "groups: got 1 entries, expected 2", groups=[0])
    refuse(ValueError, "groups: got 2, expected 0 to 1", groups=[0, 2])
    refuse(ValueError, "groups: got -1, expected 0 to 1", groups=[0, -1])
    refuse(ValueError, "grads[0]: got [2, 3] on cpu, expected [3, 2] on cpu", grads=[x.T, y])
    refuse(ValueError, "exp_avg[1]: got [4] on meta", exp_avg=[x, y.to("meta")])
    refuse(TypeError, "grads[1]: got torch.float64, expected float32 or bfloat16 or float16",
           grads=[x, y.double()])  # fmt: skip
    refuse(TypeError, "params[0]: got torch.bfloat16, expected float32", params=[x.bfloat16(), y])
    refuse(TypeError, "copies[0]: got torch.float32", copies=[x, y])
    refuse(ValueError, "steps: got [3] on cpu, expected [2]", steps=torch.zeros(3))
    refuse(TypeError, "steps: got torch.int64, expected float32", steps=torch.zeros(2).long())
    refuse(ValueError, "settings: got [3] on cpu, expected [G, 3]", settings=SETTINGS[0])
    refuse(ValueError, "found_inf: got [1] on cpu, expected []", found_inf=torch.zeros(1))
    refuse(ValueError, "backend: got 'cuda'", backend="cuda")


@needs_extension
def test_what_the_extension_itself_refuses():
    # Whoever calls the raw op gets no memory that is not his.
    def refuse(message, place, value):
        args = list(_raw(Weights(torch.bfloat16, [(3, 2), (4,)])))
        args[place] = value
        with pytest.raises(RuntimeError, match=message):
            torch.ops.fvae.fused_adam(*args)

    x, y = torch.zeros(3, 2), torch.zeros(4)
    refuse("steps: got 3 counts", 0, torch.zeros(3))
    refuse("settings: expected", 1, SETTINGS[0])
    refuse("one entry for each of 2", 3, [x])
    refuse("expected its shape", 3, [x, y[:2]])
    refuse("grads: expected float32", 3, [x, y.double()])
    refuse("expected float32", 4, [x, y.double()])
    refuse("copies: expected bfloat16", 6, [x, y])
    refuse("groups: got 2", 7, [0, 2])
    refuse("found_inf: expected one", 9, torch.zeros(2))
