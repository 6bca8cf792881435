"""Which operation waits for which: streams that record it, and a checker of what must wait.

Stand-ins for torch.cuda's streams and events keep vector clocks: of each stream, how many of its
operations are done before what comes next. An operation that touches memory is to come after the
last write of it, and a write after all reads; and what the caching allocator hands out on a stream
may be any block that was made there and is free, so whoever used that block elsewhere is to be
done. What breaks this is a race, whatever the numbers say.
"""

import contextlib
from types import SimpleNamespace

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.launches import _launches


class Point:
    """What is done: operations of each stream, and the longest chain of launches to here."""

    def __init__(self, clock=None, depth=0):
        self.clock, self.depth = dict(clock or {}), depth

    def merge(self, other):
        for stream, count in other.clock.items():
            self.clock[stream] = max(count, self.clock.get(stream, 0))
        self.depth = max(self.depth, other.depth)


class Stream(Point):
    """Stands in for torch.cuda.Stream."""

    def __init__(self, device=None):
        super().__init__()

    def wait_stream(self, other):
        self.merge(other)

    def wait_event(self, event):
        self.merge(event)

    def record_event(self, event=None):
        return Point(self.clock, self.depth)


class Operation:
    """One that was started: its place on its stream, and what came before it."""

    def __init__(self, name, args, stream):
        stream.clock[stream] = stream.clock.get(stream, 0) + 1
        # Of the arguments what is no tensor: one that is kept is not free.
        self.name, self.stream = name, stream
        self.args = [None if isinstance(one, torch.Tensor) else one for one in args]
        self.inputs = [_key(t) for t in _tensors(args)]
        self.number, self.clock = stream.clock[stream], dict(stream.clock)

    def after(self, other):
        return self.clock.get(other.stream, 0) >= other.number

    def __repr__(self):
        return f"{self.name} {self.number}"


class Order(TorchDispatchMode):
    """Record operations; ``races`` says what may come in the wrong order."""

    def __init__(self):
        super().__init__()
        self.main = self.here = Stream()
        self.operations, self.races, self.total = [], [], 0
        self.memory = {}  # by storage
        self.freed = {}  # uses on other streams of free blocks, by stream of creation

    @property
    def streams(self):
        return {operation.stream for operation in self.operations}

    @contextlib.contextmanager
    def on(self, stream):
        before, self.here = self.here, stream
        yield
        self.here = before

    def stand_in(self, patch):
        """Let torch.cuda be this; ``patch(name, value)`` sets an attribute of it."""
        for name, value in {
            "Stream": Stream, "stream": self.on, "current_stream": lambda device=None: self.here,
            "current_device": lambda: 0,
        }.items():  # fmt: skip
            patch(name, value)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, inputs = function.overloadpacket.__name__, _tensors((args, kwargs))
        self._note_free()
        given = function._schema.arguments
        written = [
            value for one, value in zip(given, args, strict=False)
            if one.alias_info and one.alias_info.is_write
        ]  # fmt: skip
        written += [
            kwargs[one.name] for one in given
            if one.alias_info and one.alias_info.is_write and one.name in kwargs
        ]  # fmt: skip
        before = {_key(t) for t in inputs}
        known = {key for key in before if key in self.memory}
        for t in inputs:  # what was there before the recording has no stream
            if _key(t) not in known:
                self._memory(t, None)
        result = function(*args, **kwargs)
        made = [t for t in _tensors(result) if _key(t) not in before]
        count = _launches(function, name, args, kwargs)
        if count:
            self.total += count
            self.here.depth += count
            self._start(Operation(name, args, self.here), inputs, _tensors(written), made)
        else:
            for t in made:
                self._take(Operation(name, args, self.here), t)
        return result

    def _memory(self, t, stream):
        fresh = SimpleNamespace(
            ref=StorageWeakRef(t.untyped_storage()), stream=stream, write=None, reads=[], uses=[]
        )
        return self.memory.setdefault(_key(t), fresh)

    def _start(self, operation, inputs, written, made):
        self.operations.append(operation)
        for t in made:
            self._take(operation, t)
        changed = {_key(t) for t in (*written, *made)}
        for key in {_key(t) for t in inputs} | changed:
            memory = self.memory[key]
            earlier = [memory.write] if memory.write else []
            if key in changed:
                earlier += memory.reads
                memory.write, memory.reads = operation, []
            else:
                memory.reads.append(operation)
            memory.uses.append(operation)
            self._check(operation, earlier, "its memory")

    def _take(self, operation, t):
        """Memory is handed out, perhaps that of what is free."""
        if _key(t) not in self.memory:
            self._memory(t, operation.stream)
            freed = self.freed.pop(operation.stream, [])
            self._check(operation, freed, "a freed block")

    def _check(self, operation, earlier, what):
        self.races += [
            f"{operation!r} before {one!r}: {what}" for one in earlier
            if one is not operation and not operation.after(one)
        ]  # fmt: skip

    def _note_free(self):
        for key in [key for key, memory in self.memory.items() if memory.ref.expired()]:
            memory = self.memory.pop(key)
            elsewhere = [use for use in memory.uses if use.stream is not memory.stream]
            if memory.stream is not None:
                self.freed.setdefault(memory.stream, []).extend(elsewhere)


def _tensors(tree):
    return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]


def _key(t):
    return t.untyped_storage()._cdata


def parallel(a, b):
    """Whether neither of two operations waits for the other."""
    return not a.after(b) and not b.after(a)
