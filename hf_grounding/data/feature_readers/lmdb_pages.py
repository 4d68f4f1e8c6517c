"""Entries of an LMDB file, in the order of their keys, without the LMDB library.

The library maps the file and follows its page numbers unchecked: a file cut short by a full disk ends the process
with a bus error, which nothing in Python can catch. Walking the tree takes few lines, with every number checked first.

A file is pages of equal size. Pages 0 and 1 are meta pages, the one with the higher transaction number counts; it names
the root page of the main tree. Branch pages hold page numbers, leaf pages keys with values, and a value too long
for its leaf lies on overflow pages of its own. Numbers are little-endian, page numbers have 64 bits.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

from .common import MAX_ARRAY_BYTES, Fault, decoding

_HEADER = struct.Struct("<QHHHH")  # page number, unused, flags, end of the node list, start of the nodes
_META = struct.Struct("<IIQQ")  # magic, version, address, size of the map
_DATABASE = struct.Struct("<IHHQQQQQ")  # page size or unused, flags, depth, three counts of pages, entries, root
_NODE = struct.Struct("<HHHH")  # size or page number low, high; flags or page number; size of the key
_MAGIC = 0xBEEFC0DE
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 1, 2, 4, 8
_BIG, _SUBTREE, _DUPLICATES = 1, 2, 4  # flags of a node
_NO_PAGE = 2**64 - 1
_MAX_DEPTH = 32


def lmdb_entries(stream: BinaryIO, num_bytes: int) -> Iterator[tuple[bytes, Callable[[], bytes]]]:
    """Each key with a function that reads its value; raises [`Fault`] where the file is damaged."""
    tree = _Tree(stream, num_bytes)
    return tree.walk(tree.root, 1)


class _Tree:
    def __init__(self, stream: BinaryIO, num_bytes: int):
        self.stream, self.num_bytes = stream, num_bytes
        self.seen: set[int] = set()
        metas = [meta for meta in (self._meta(0), self._meta(None)) if meta is not None]
        if not metas:
            raise Fault("the file is no LMDB file: it has no meta page")
        _, self.page_size, self.root = max(metas)

    def _meta(self, start: int | None) -> tuple[int, int, int] | None:
        """(transaction, page size, root) of a meta page; of the second one, where the first says it is."""
        if start is None:
            first = self._meta(0)
            sizes = [first[1]] if first else [4096, 8192, 16384, 32768, 65536]
            found = (self._meta(size) for size in sizes)
            return next((meta for meta in found if meta is not None), None)
        size = _HEADER.size + _META.size + 2 * _DATABASE.size + 16
        data = self._bytes(start, size) if start + size <= self.num_bytes else b""
        if not data or not _HEADER.unpack_from(data)[2] & _META_PAGE:
            return None
        magic, version, _, _ = _META.unpack_from(data, _HEADER.size)
        page_size = _DATABASE.unpack_from(data, _HEADER.size + _META.size)[0]
        database = _DATABASE.unpack_from(data, _HEADER.size + _META.size + _DATABASE.size)
        (transaction,) = struct.unpack_from("<Q", data, size - 8)
        if magic != _MAGIC or version != 1 or page_size not in (2**power for power in range(8, 17)):
            return None
        if database[1] & _DUPLICATES:
            raise Fault("the LMDB file has several values for a key, which is no layout of images")
        return transaction, page_size, database[-1]

    def _bytes(self, start: int, size: int) -> bytes:
        if start < 0 or start + size > self.num_bytes:
            raise Fault(f"the LMDB file is cut short: it points to byte {start + size} of {self.num_bytes}")
        with decoding("the LMDB file"):
            self.stream.seek(start)
            data = self.stream.read(size)
        if len(data) != size:
            raise Fault("the LMDB file became shorter while it was read")
        return data

    def walk(self, page: int, depth: int) -> Iterator[tuple[bytes, Callable[[], bytes]]]:
        if page == _NO_PAGE and depth == 1:
            return  # an empty tree
        if page in self.seen or depth > _MAX_DEPTH:
            raise Fault(f"the LMDB file comes to page {page} twice")
        self.seen.add(page)
        data = self._bytes(page * self.page_size, self.page_size)
        number, _, flags, lower, _ = _HEADER.unpack_from(data)
        kind = flags & (_BRANCH | _LEAF | _OVERFLOW | _META_PAGE)
        if number != page or kind not in (_BRANCH, _LEAF) or not _HEADER.size <= lower <= self.page_size or lower % 2:
            raise Fault(f"page {page} of the LMDB file is damaged")
        for offset in struct.unpack_from(f"<{(lower - _HEADER.size) // 2}H", data, _HEADER.size):
            if offset + _NODE.size > self.page_size:
                raise Fault(f"page {page} of the LMDB file is damaged")
            low, high, node_flags, key_size = _NODE.unpack_from(data, offset)
            if kind == _BRANCH:
                yield from self.walk(low | high << 16 | node_flags << 32, depth + 1)
                continue
            start = offset + _NODE.size
            if start + key_size > self.page_size or node_flags & (_SUBTREE | _DUPLICATES):
                raise Fault(f"page {page} of the LMDB file holds no plain entry")
            key = data[start : start + key_size]
            yield key, self._value(data, start + key_size, low | high << 16, bool(node_flags & _BIG))

    def _value(self, data: bytes, start: int, size: int, is_big: bool) -> Callable[[], bytes]:
        def read() -> bytes:
            if size > MAX_ARRAY_BYTES:
                raise Fault(f"it claims {size} bytes, over the limit of {MAX_ARRAY_BYTES}")
            if start + (8 if is_big else size) > self.page_size:
                raise Fault("its value leaves its page")
            if not is_big:
                return data[start : start + size]
            (page,) = struct.unpack_from("<Q", data, start)
            number, _, flags, _, _ = _HEADER.unpack(self._bytes(page * self.page_size, _HEADER.size))
            if number != page or not flags & _OVERFLOW:
                raise Fault(f"its value is not on page {page}, where it should be")
            return self._bytes(page * self.page_size + _HEADER.size, size)

        return read
