"""The compiled histogram kernel: one pass over float32 memory, about 0.4 ns an element and core.

It counts exactly what `Histogram.updated` counts. What makes it fast:

- The memory is read once, in blocks of 512 elements. A vectorised loop looks at the bits of each element as an int32
  and keeps their least and greatest key (see binning.py), which say all about extremes, NaN, infinities and the range
  at once; the same loop writes the 16-bit slot numbers. Only a block with something unusual in it is looked at closer.
- The range is taken to be wide enough. When a block proves otherwise the kernel stops in front of it, the caller
  doubles the range, and it goes on there: doubling between two blocks gives the same counts as doubling before them.
- Incrementing a counter right after itself waits for the store before it (7 to 8 cycles), so four tables take turns.
  Their counters have 16 bits, which keeps the four in the first-level cache, and are emptied before they overflow.
- The counting loop is bound by its stores; it prefetches the next block, which the processor does not do by itself.

Importing this module imports numba, so it is itself imported only when the first array is counted. Machine code is
cached beside this file or in the user's cache folder; if neither can be written, every process compiles for itself.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic

from quantkit.collect.binning import MAX_KEY
from quantkit.collect.histogram import HIGH, INF_SLOT, LOW, MASKED_SLOT, NAN_SLOT, NEEDED, ZEROS

BLOCK = 512
AHEAD = 1024
"""How many elements before their turn the memory is asked for."""
TABLE = 2056
"""Length of one counter table: 2052 slots, padded."""
EMPTY_AFTER = 4 * 60000
"""Elements after which the 16-bit counters (four tables) are emptied into the slots."""

_I32 = np.int32
_U64 = np.uint64
_SIGNLESS = np.int32(0x7FFFFFFF)
_LEAST = np.int32(-0x80000000)
_INF_BITS = np.int32(0x7F800000)
_ONE = np.uint16(1)
_WORD = np.uint64(0xFFFF)

Int64s = npt.NDArray[np.int64]
Bits = npt.NDArray[np.int32]
Scan = Callable[..., bool]
_lock = threading.Lock()
_loaded: list[Scan] = []


def load() -> Scan:
    """`scan`, compiled (a few seconds) or read from numba's cache at the first call.

    Raises:
        ImportError: numba is switched off (NUMBA_DISABLE_JIT), or cannot compile it here.
    """
    with _lock:
        if not _loaded:
            if numba.config.DISABLE_JIT:
                raise ImportError("numba is switched off by NUMBA_DISABLE_JIT.")
            try:
                _loaded.append(_compiled(cache=True))
            except Exception:  # no folder to write to, no space left, a damaged cache: whatever it is, do without
                _loaded.append(_compiled_anew())
        return _loaded[0]


def _compiled_anew() -> Scan:
    """The kernel without numba's cache; where numba cannot compile it at all, a warning and ImportError."""
    try:
        return _compiled(cache=False)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        warnings.warn(f"Histograms are counted with NumPy, 20 times slower: numba failed ({reason}).", stacklevel=2)
        raise ImportError(f"numba cannot compile the histogram kernel: {reason}") from error


def _compiled(cache: bool) -> Scan:
    """The kernel for the one signature it is called with; arrays that are only read may be read-only."""
    bits = types.Array(types.int32, 1, "C", readonly=True)
    runs = types.Array(types.int64, 1, "C", readonly=True)
    numbers = types.Array(types.int64, 1, "C")
    key = types.int64
    signature = types.boolean(bits, runs, runs, numbers, types.float32, key, key, numbers, numbers)
    compiled: Scan = njit(signature, nogil=True, cache=cache)(scan)
    return compiled


@intrinsic
def _read_only(typing_context: Any, array: Any) -> Any:
    """The same array under the type that read-only arrays have, so that functions are compiled for one type only."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return impl_ret_borrowed(context, builder, signature.return_type, arguments[0])

    return types.Array(array.dtype, array.ndim, array.layout, readonly=True)(array), generate


@intrinsic
def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Asks for the cache line of array[index], which need not exist."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        i32, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        function_type = ir.FunctionType(ir.VoidType(), [pointer, i32, i32, i32])
        # LLVM completes the name, which ends differently before and after pointers lost their types.
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch")
        address = builder.bitcast(builder.gep(data, [arguments[1]]), pointer)
        # For reading, to be kept in all caches, data rather than instructions.
        builder.call(function, [address, i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def _as_float(typing_context: Any, word: Any) -> Any:
    """The float32 that an int32's bits stand for."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@njit(nogil=True)
def _slots_of(bits: Bits, begin: int, size: int, scale: np.float32, indices: Any, found: Int64s) -> None:
    """Writes the slot numbers of bits[begin : begin + size]; `found` gets least key, greatest key, zeros.

    Slot numbers mean nothing unless all values are finite and in range; no value harms.
    """
    # Unsigned positions spare numba's look at negative indices; a slice would cost a count of references.
    first = _U64(begin)
    low, high, zeros = _SIGNLESS, _LEAST, _I32(0)
    for i in range(size):
        word = bits[first + _U64(i)]
        key = _I32(word ^ _I32(_I32(word >> _I32(31)) & _SIGNLESS))
        magnitude = _I32(word & _SIGNLESS)
        low = min(low, key)
        high = max(high, key)
        zeros = _I32(zeros + _I32(magnitude == _I32(0)))
        indices[_U64(i)] = np.uint16(_I32(_as_float(magnitude) * scale))
    found[0], found[1], found[2] = low, high, zeros


@njit(nogil=True)
def _slots_by_kind(
    bits: Bits, begin: int, size: int, scale: np.float32, floor: np.int32, indices: Any, found: Int64s
) -> None:
    """Does what `_slots_of` does, for a block with values that have no bin: they get slots of their own.

    Values whose key is below `floor` are mask logits. `found` is about the values that have bins.
    """
    first = _U64(begin)
    low, high, zeros = _SIGNLESS, _LEAST, _I32(0)
    for i in range(size):
        word = bits[first + _U64(i)]
        key = _I32(word ^ _I32(_I32(word >> _I32(31)) & _SIGNLESS))
        magnitude = _I32(word & _SIGNLESS)
        nan, masked, infinite = magnitude > _INF_BITS, key < floor, magnitude == _INF_BITS
        apart = nan | masked | infinite
        low = min(low, _SIGNLESS if apart else key)
        high = max(high, _LEAST if apart else key)
        zeros = _I32(zeros + _I32(magnitude == _I32(0)))
        slot = _I32(_as_float(magnitude) * scale)
        slot = _I32(INF_SLOT) if infinite else slot
        slot = _I32(MASKED_SLOT) if masked else slot
        indices[_U64(i)] = np.uint16(_I32(NAN_SLOT) if nan else slot)
    found[0], found[1], found[2] = low, high, zeros


@njit(nogil=True, inline="always")
def _count(words: Any, indices: Any, size: int, tables: Any, bits: Bits, position: int) -> None:
    """Counts `size` slot numbers (`words` are the same, four in each) in four tables that take turns."""
    for i in range(size >> 4):
        _prefetch(bits, position + 16 * i)
        for j in range(4):
            word = words[4 * i + j]
            tables[word & _WORD] += _ONE
            tables[((word >> _U64(16)) & _WORD) + _U64(TABLE)] += _ONE
            tables[((word >> _U64(32)) & _WORD) + _U64(2 * TABLE)] += _ONE
            tables[(word >> _U64(48)) + _U64(3 * TABLE)] += _ONE
    for i in range(size & ~15, size):
        tables[_U64(indices[i])] += _ONE


@njit(nogil=True)
def _empty(tables: Any, slots: Int64s) -> None:
    """Adds the four tables to the slots and clears them."""
    for i in range(len(slots)):
        total = 0
        for j in range(4):
            total += tables[j * TABLE + i]
        slots[i] += total
    tables[:] = 0


@njit(nogil=True)
def _gather(bits: Bits, starts: Int64s, lengths: Int64s, run: int, offset: int, block: Bits) -> tuple[int, int, int]:
    """Fills `block` from run after run, beginning at `offset` of `run`; returns its size, the next run and offset."""
    size = 0
    while run < len(starts) and size < BLOCK:
        take = min(lengths[run] - offset, BLOCK - size)
        begin, end = _U64(starts[run] + offset), _U64(size)
        for i in range(take):
            block[end + _U64(i)] = bits[begin + _U64(i)]
        size += take
        offset += take
        if offset == lengths[run]:
            run, offset = run + 1, 0
    return size, run, offset


def scan(
    bits: Bits,
    starts: Int64s,
    lengths: Int64s,
    cursor: Int64s,
    scale: np.float32,
    limit: int,
    floor: int,
    slots: Int64s,
    statistics: Int64s,
) -> bool:
    """Counts runs of float32 memory, from the cursor on.

    Args:
        bits: int32 (n,), a view of float32 memory.
        starts: int64 (runs,), where each run begins in `bits`.
        lengths: int64 (runs,), at least 1 each.
        cursor: int64 (2,): the run and the offset in it to begin with; afterwards, where the kernel stopped.
        scale: 2048 / range.
        limit: key of the range, at most MAX_KEY.
        floor: the least key that is counted. Values below are mask logits; with -1 - MAX_KEY there are none.
        slots: int64 (2052,), added to: 2048 bins, what would be bin 2048, NaNs, infinities, mask logits.
        statistics: int64 (4,): least and greatest key and zeros, added to, and the key of NEEDED.

    Returns:
        True when all is counted; False before a block that exceeds `limit`, by the key in statistics[NEEDED].
    """
    indices = np.empty(BLOCK, np.uint16)
    words = indices.view(np.uint64)
    block = np.empty(BLOCK, np.int32)
    block_read = _read_only(block)  # the same memory
    tables = np.zeros(4 * TABLE, np.uint16)
    found = np.zeros(3, np.int64)
    least = max(floor, -1 - limit)
    mask_floor = _LEAST if floor == -1 - MAX_KEY else _I32(floor)
    zero = np.int64(0)  # of the type that a computed position has
    since = 0
    finished = True
    run, offset = cursor[0], cursor[1]
    while run < len(starts):
        begin, left = starts[run] + offset, lengths[run] - offset
        direct = left >= BLOCK or run == len(starts) - 1
        # One call for both, with the array in a variable, would count references and cost a twentieth of the speed.
        if direct:
            size = min(left, BLOCK)
            next_run, next_offset = (run + 1, 0) if size == left else (run, offset + size)
            _slots_of(bits, begin, size, scale, indices, found)
        else:
            size, next_run, next_offset = _gather(bits, starts, lengths, run, offset, block)
            _slots_of(block_read, zero, size, scale, indices, found)
        if found[0] < least or found[1] > limit:
            unusual, first = (bits, begin) if direct else (block_read, zero)
            _slots_by_kind(unusual, first, size, scale, mask_floor, indices, found)
            if found[1] > limit or found[0] < -1 - limit:
                statistics[NEEDED] = max(found[1], -1 - found[0])
                finished = False
                break
        _count(words, indices, size, tables, bits, begin + AHEAD)
        statistics[LOW] = min(statistics[LOW], found[0])
        statistics[HIGH] = max(statistics[HIGH], found[1])
        statistics[ZEROS] += found[2]
        run, offset = next_run, next_offset
        # The last 15 elements of a block may all go to one table, hence the allowance.
        since += size + 64
        if since >= EMPTY_AFTER:
            _empty(tables, slots)
            since = 0
    cursor[0], cursor[1] = run, offset
    _empty(tables, slots)
    return finished
