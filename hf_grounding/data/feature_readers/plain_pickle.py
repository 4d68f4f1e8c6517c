"""Pickles that hold only data, read without ever running anything in them.

`pickle.Unpickler` with a short list of classes still lets a damaged file reserve gigabytes (a memo index is an array
index) or hash nested tuples for hours. Here the few operations that plain data needs are carried out one by one; every
length is compared with the bytes that are left, and no name in the file is ever imported.

Read: None, bool, int (64 bits), float, text, bytes, list, tuple, dict, set, numpy arrays and numpy scalars, the last as
Python numbers. Everything else is refused by its name. All protocols, Python 2's files too.
"""

from __future__ import annotations

import codecs
import math
import pickletools
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .common import Fault, decoding

MAX_BYTES = 2 * 2**30
_OPERATIONS = {operation.code.encode("latin-1"): operation.name for operation in pickletools.opcodes}  # for messages
_GLOBALS = {
    **{
        (f"numpy.{core}.{module}", name): name
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    },
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    **{(module, name): name for module in ("builtins", "__builtin__") for name in ("set", "frozenset", "bytes")},
}


class _Name:
    """A known global, never the thing itself."""

    def __init__(self, name: str):
        self.name = name


class _Dtype:
    def __init__(self, dtype: np.dtype):
        self.dtype = dtype


class _Array:
    """An array whose contents come with a later BUILD."""

    def __init__(self) -> None:
        self.memo_keys: list[int] = []


def load_plain_pickle(path: Path) -> Any:
    """What the file holds, or a [`Fault`]."""
    if not path.is_file():
        raise Fault("the file is missing")
    if path.stat().st_size > MAX_BYTES:
        raise Fault(f"the pickle has {path.stat().st_size} bytes, over the limit of {MAX_BYTES}")
    with decoding("the file"):
        data = path.read_bytes()
    return loads_plain_pickle(data)


def loads_plain_pickle(data: bytes) -> Any:
    """What the bytes hold, or a [`Fault`]."""
    machine = _Machine(data)
    with decoding("the pickle"):
        return machine.run()


class _Machine:
    def __init__(self, data: bytes):
        self.data, self.position = data, 0
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # stacks below the open marks
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        operations = self.operations()
        while True:
            code = self.take(1)
            if code == b".":
                break
            operation = operations.get(code)
            if operation is None:
                raise Fault(f"the pickle is no plain data: operation {_OPERATIONS.get(code, code)!r}")
            operation()
        if self.outer or len(self.stack) != 1:
            raise Fault("the pickle ends in the middle of a value")
        return self.stack[0]

    def take(self, count: int) -> bytes:
        end = self.position + count
        if count < 0 or end > len(self.data):
            raise Fault("the pickle is cut short")
        data = self.data[self.position : end]
        self.position = end
        return data

    def line(self) -> str:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise Fault("the pickle is cut short")
        data = self.data[self.position : end]
        self.position = end + 1
        return data.decode("latin-1").rstrip("\r")

    def number(self, layout: str) -> int:
        return int(struct.unpack(layout, self.take(struct.calcsize(layout)))[0])

    def pop(self) -> Any:
        if not self.stack:
            raise Fault("the pickle takes a value where there is none")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            raise Fault(f"the pickle adds to a {kind.__name__} where there is none")
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        if not self.outer:
            raise Fault("the pickle closes a group that was not opened")
        items, self.stack = self.stack, self.outer.pop()
        return items

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def put(self, key: int) -> None:
        if not self.stack:
            raise Fault("the pickle remembers a value where there is none")
        self.memo[key] = self.stack[-1]
        if isinstance(self.stack[-1], _Array):
            self.stack[-1].memo_keys.append(key)

    def get(self, key: int) -> None:
        if key not in self.memo:
            raise Fault("the pickle repeats a value that it does not have")
        self.stack.append(self.memo[key])

    def decimal(self, text: str) -> int:
        text = text.removesuffix("L")
        if not re.fullmatch(r"[+-]?\d{1,20}", text, re.ASCII):
            raise Fault(f"the pickle has {text[:40]!r} for a whole number")
        return int(text)

    def int_or_bool(self) -> None:
        text = self.line()
        self.stack.append({"00": False, "01": True}.get(text) if text in ("00", "01") else self.decimal(text))

    def long(self, count: int) -> None:
        if count > 9:  # 64 bits and a sign
            raise Fault(f"the pickle has a whole number of {count} bytes")
        self.stack.append(int.from_bytes(self.take(count), "little", signed=True))

    def old_text(self, data: bytes) -> None:
        """Python 2's `str` is text or bytes; as text, from which the bytes can be had again."""
        self.stack.append(data.decode("utf-8", "surrogateescape"))

    def quoted(self) -> None:
        text = self.line()
        if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"":
            raise Fault("the pickle has text without quotes")
        self.old_text(codecs.escape_decode(text[1:-1].encode("latin-1"))[0])

    def unicode(self, layout: str) -> None:
        self.stack.append(self.take(self.number(layout)).decode("utf-8", "surrogatepass"))

    def set_items(self, target: dict, items: list[Any]) -> None:
        if len(items) % 2:
            raise Fault("the pickle has a key without its value")
        for key in items[::2]:
            if type(key) not in (str, int, float, bytes):  # hashing nested tuples can take for ever
                raise Fault(f"the pickle has a key of type {_type_name(key)}; keys are text or numbers")
        target.update(zip(items[::2], items[1::2], strict=True))

    def make_set(self, items: list[Any], kind: type = set) -> Any:
        for item in items:
            if type(item) not in (str, int, float, bytes):
                raise Fault(f"the pickle has a set of {_type_name(item)}; sets hold text or numbers")
        return kind(items)

    def global_name(self, module: Any, name: Any) -> None:
        known = _GLOBALS.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if known is None:
            full = f"{module}.{name}"[:100] if isinstance(module, str) and isinstance(name, str) else "a nameless thing"
            raise Fault(f"the pickle holds {full!r}; only plain data and numpy arrays are read, nothing is run")
        self.stack.append(_Name(known))

    def reduce(self) -> None:
        args, function = self.pop(), self.pop()
        if not isinstance(function, _Name) or type(args) is not tuple:
            raise Fault("the pickle calls something that is no known name")
        self.stack.append(self.call(function.name, args))

    def call(self, name: str, args: tuple) -> Any:
        kinds = [type(arg) for arg in args]
        if name in ("set", "frozenset") and kinds in ([], [list], [tuple]):
            return self.make_set(list(args[0]) if args else [], set if name == "set" else frozenset)
        if name == "bytes" and not args:
            return b""
        if name == "encode" and kinds == [str, str] and args[1] in ("latin1", "latin-1"):
            return args[0].encode("latin-1")
        if name == "dtype" and kinds[:1] == [str] and re.fullmatch(r"[<>|=]?([fiuSU]\d{1,9}|b1)", args[0], re.ASCII):
            return _Dtype(np.dtype(args[0]))
        if name == "scalar" and len(args) == 2 and isinstance(args[0], _Dtype):
            return _array(args[1], args[0], ()).item()
        if name == "_reconstruct" and len(args) == 3 and isinstance(args[0], _Name) and args[0].name == "ndarray":
            return _Array()
        if name == "_frombuffer" and len(args) == 4 and isinstance(args[1], _Dtype) and args[3] in ("C", "F"):
            return _array(args[0], args[1], args[2], fortran_order=args[3] == "F")
        raise Fault(f"the pickle calls {name!r} in a way that plain data does not")

    def build(self) -> None:
        state, target = self.pop(), self.pop()
        if type(state) is not tuple:
            raise Fault("the pickle sets the state of something that is no numpy array")
        if isinstance(target, _Dtype) and len(state) >= 2 and state[1] in ("<", ">", "|", "="):
            if state[1] in ("<", ">"):
                target.dtype = target.dtype.newbyteorder(state[1])
            self.stack.append(target)
        elif isinstance(target, _Array) and len(state) == 5 and isinstance(state[2], _Dtype):
            array = _array(state[4], state[2], state[1], fortran_order=state[3] is True or state[3] == 1)
            for key in target.memo_keys:
                self.memo[key] = array
            self.stack.append(array)
        else:
            raise Fault("the pickle sets the state of something that is no numpy array")

    def operations(self) -> dict[bytes, Callable[[], object]]:
        push = lambda value: self.stack.append(value)  # noqa: E731 - a table of one-liners
        return {
            b"\x80": lambda: self.take(1),  # protocol
            b"\x95": lambda: self.take(8),  # frame
            b"(": self.mark,
            b"0": self.pop,
            b"1": self.since_mark,
            b"N": lambda: push(None),
            b"\x88": lambda: push(True),
            b"\x89": lambda: push(False),
            b"I": self.int_or_bool,
            b"L": lambda: push(self.decimal(self.line())),
            b"J": lambda: push(self.number("<i")),
            b"K": lambda: push(self.number("<B")),
            b"M": lambda: push(self.number("<H")),
            b"\x8a": lambda: self.long(self.number("<B")),
            b"\x8b": lambda: self.long(self.number("<i")),
            b"F": lambda: push(float(self.line())),
            b"G": lambda: push(struct.unpack(">d", self.take(8))[0]),
            b"S": self.quoted,
            b"T": lambda: self.old_text(self.take(self.number("<i"))),
            b"U": lambda: self.old_text(self.take(self.number("<B"))),
            b"V": lambda: push(self.line().encode("latin-1").decode("raw-unicode-escape")),
            b"X": lambda: self.unicode("<I"),
            b"\x8c": lambda: self.unicode("<B"),
            b"\x8d": lambda: self.unicode("<Q"),
            b"B": lambda: push(self.take(self.number("<I"))),
            b"C": lambda: push(self.take(self.number("<B"))),
            b"\x8e": lambda: push(self.take(self.number("<Q"))),
            b"\x96": lambda: push(self.take(self.number("<Q"))),  # bytearray, which numpy writes for its bytes
            b"]": lambda: push([]),
            b"}": lambda: push({}),
            b")": lambda: push(()),
            b"\x8f": lambda: push(set()),
            b"l": lambda: push(self.since_mark()),
            b"t": lambda: push(tuple(self.since_mark())),
            b"\x85": lambda: self.short_tuple(1),
            b"\x86": lambda: self.short_tuple(2),
            b"\x87": lambda: self.short_tuple(3),
            b"d": self.make_dict,
            b"a": self.append,
            b"e": self.extend,
            b"s": self.set_item,
            b"u": self.update,
            b"\x90": self.add_to_set,
            b"\x91": lambda: push(self.make_set(self.since_mark(), frozenset)),
            b"p": lambda: self.put(self.decimal(self.line())),
            b"q": lambda: self.put(self.number("<B")),
            b"r": lambda: self.put(self.number("<I")),
            b"\x94": lambda: self.put(len(self.memo)),
            b"g": lambda: self.get(self.decimal(self.line())),
            b"h": lambda: self.get(self.number("<B")),
            b"j": lambda: self.get(self.number("<I")),
            b"c": lambda: self.global_name(self.line(), self.line()),
            b"\x93": self.stack_global,
            b"R": self.reduce,
            b"b": self.build,
        }

    def short_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise Fault("the pickle takes a value where there is none")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def make_dict(self) -> None:
        made: dict = {}
        self.set_items(made, self.since_mark())
        self.stack.append(made)

    def append(self) -> None:
        item = self.pop()
        self.top(list).append(item)

    def extend(self) -> None:
        items = self.since_mark()
        self.top(list).extend(items)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items(self.top(dict), [key, value])

    def update(self) -> None:
        items = self.since_mark()
        self.set_items(self.top(dict), items)

    def add_to_set(self) -> None:
        items = self.since_mark()
        self.top(set).update(self.make_set(items))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self.global_name(module, name)


def _array(raw: Any, dtype: _Dtype, shape: Any, fortran_order: bool = False) -> np.ndarray:
    if isinstance(raw, str):  # Python 2
        raw = raw.encode("utf-8", "surrogateescape")
    sides = type(shape) is tuple and len(shape) <= 8 and all(type(side) is int and side >= 0 for side in shape)
    if not sides or not isinstance(raw, bytes) or not dtype.dtype.itemsize:
        raise Fault("the pickle has an array without proper shape and bytes")
    if math.prod(shape) * dtype.dtype.itemsize != len(raw):
        raise Fault(f"the pickle has an array of {len(raw)} bytes for shape {str(shape)[:80]} of {dtype.dtype}")
    flat = np.frombuffer(raw, dtype.dtype) if raw else np.empty(0, dtype.dtype)
    return flat.reshape(shape, order="F" if fortran_order else "C")


def _type_name(value: Any) -> str:
    return value.name if isinstance(value, _Name) else type(value).__name__.lstrip("_")
