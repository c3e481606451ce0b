"""The header of one .safetensors file, with every rule of the format checked. Standard library only.

One expression takes apart a header as nearly all programs write it: of each tensor the type, shape and range, in this
order, with no blanks or one after each sign. `HeaderText` reads a header that is spelled otherwise, too long, or wrong
in any way, and gives the reason.

The file also describes bytes of tensors that go from one file into another unchanged.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import chain, pairwise, repeat
from math import prod
from operator import gt, itemgetter, sub
from sys import intern
from typing import Any

from lora_inspect.caching import Remembered
from lora_inspect.errors import DamagedError
from lora_inspect.fast_namedtuple import NamedTuple, make_records
from lora_inspect.files.file_types import START_BYTES, refuse_foreign
from lora_inspect.files.input_file import Identity, InputFile
from lora_inspect.files.safetensors.dtypes import BITS, SIZES
from lora_inspect.files.safetensors.header_recovery import refuse_torn
from lora_inspect.files.strict_json import (
    HEADER_BYTES,
    KEY_BYTES,
    METADATA_KEYS,
    TENSORS,
    is_unicode,
    parse_plain,
    too_many_tensors,
)
from lora_inspect.files.system import without_collecting

# So short a text cannot become so many objects that it matters, whatever stands in it.
LONGEST = 1 << 20
METADATA = "__metadata__"
_LONGEST_NAME = KEY_BYTES // 4
# With as many digits a number is in the range of every reader.
_MOST_DIGITS = 18
_NUMBER = f"(?:0|[1-9][0-9]{{0,{_MOST_DIGITS - 1}}})"
_ENDS = " \t\r\n"
# The tables of the files that were read last, by all that stands in the headers behind the metadata: files of one
# trainer with the same settings have the same.
_LONGEST_REMEMBERED = 1 << 18
_tables: Remembered[tuple[str, int], "Table"] = Remembered(16)


class Table(NamedTuple):
    """The tensors of a header by columns, in the order of their ranges, which begin and end in the data after it."""

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    stops: tuple[int, ...]


class _Spelling:
    """The punctuation of a header; `blank` follows each colon and comma."""

    def __init__(self, blank: str) -> None:
        comma, colon = f",{blank}", f":{blank}"
        self.start = f'{{"{METADATA}"{colon}'
        self.comma = comma
        kind = rf'"([A-Z0-9_]{{1,16}}"{comma}"shape"{colon}\[[0-9{comma}]{{0,250}})\]'
        self._before_shape = f'"{comma}"shape"{colon}['
        self._entry = re.compile(
            rf'"([^"\\\x00-\x1f]{{0,{_LONGEST_NAME}}})"{colon}\{{"dtype"{colon}{kind}{comma}'
            rf'"data_offsets"{colon}\[({_NUMBER}){comma}({_NUMBER})\]\}}(?:{comma}(?=")|\}}\Z)'
        )
        signs = f'""{colon}{{"dtype"{colon}"]{comma}"data_offsets"{colon}[{comma}]}}'
        self._length, self._between = len(signs), len(comma)

    def entries(self, text: str) -> list[tuple[str, str, str, str]] | None:
        """Return (name, kind, start, stop) of each entry at the end of a header; None if it has anything else."""
        found = self._entry.findall(text)
        length = sum(map(len, chain.from_iterable(found)))
        signs = len(found) * self._length + (len(found) - 1) * self._between + len("}")
        return found if found and length + signs == len(text) else None

    def kind(self, text: str) -> tuple[str, tuple[int, ...], int] | None:
        """Return type, shape and size in bytes; None if no tensor can have them."""
        dtype, _, dimensions = text.partition(self._before_shape)
        digits = dimensions.split(self.comma) if dimensions else []
        if dtype not in BITS or not all(map(_is_number, digits)):
            return None
        shape = tuple(map(int, digits))
        needed = prod(shape) * BITS[dtype]
        return None if needed % 8 or not needed else (dtype, shape, needed // 8)


def _is_number(digits: str) -> bool:
    """Return True for a whole number in JSON's spelling, with no more digits than `_NUMBER` takes."""
    return digits.isdecimal() and len(digits) <= _MOST_DIGITS and (digits[0] != "0" or digits == "0")


# Made for the first file that is spelled so: an expression takes longer to compile than to use.
_spelling = cache(_Spelling)


def read_plain(content: bytes | bytearray, room: int) -> tuple[Table, dict[str, str]] | None:
    """Return the tensors, which fill the `room` after the header, and the metadata.

    Returns None for a header in another than the common form, or with a fault.
    """
    try:
        text = content.decode().rstrip(_ENDS)
    except UnicodeDecodeError:
        return None
    spelling = _spelling(" " if '": {"dtype": "' in text else "")
    metadata: dict[str, str] = {}
    start = 1
    if text.startswith(spelling.start):
        about = _metadata(text, len(spelling.start))
        if about is None or not text.startswith(spelling.comma, about[1]):
            return None
        metadata, start = about[0], about[1] + len(spelling.comma)
    elif not text.startswith("{"):
        return None
    table = _table_as_before(spelling, text[start:], room)
    return table and (table, metadata)


def _table_as_before(spelling: _Spelling, text: str, room: int) -> Table | None:
    """Return the result of `_table` for the text, from a cache if possible."""
    if len(text) > _LONGEST_REMEMBERED:
        return _table(spelling, text, room)
    table = _tables.get((text, room))
    if table is None and (table := _table(spelling, text, room)):
        _tables.put((text, room), table)
    return table


def _metadata(text: str, start: int) -> tuple[dict[str, str], int] | None:
    """Return the map of strings that begins there, and the position after it; None if it is none."""
    try:
        found, stop = parse_plain(text, start)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or len(found) > METADATA_KEYS or not all(map(_is_text, found.values())):
        return None
    # Only what is spelled with an escape can be half of a pair.
    if "\\u" in text[start:stop] and not is_unicode("".join(chain.from_iterable(found.items()))):
        return None
    return None if max(map(len, found), default=0) > _LONGEST_NAME else (found, stop)


def _is_text(value: Any) -> bool:
    return type(value) is str


def _table(spelling: _Spelling, text: str, room: int) -> Table | None:
    """Return the tensors of the entries, each with the bytes that its type and shape need, in one sequence.

    Returns None if they are not so.
    """
    entries = spelling.entries(text)
    if not entries:
        return None
    names, kinds, firsts, lasts = zip(*entries, strict=True)
    known = {kind: spelling.kind(kind) for kind in dict.fromkeys(kinds)}
    told = [found for kind in kinds if (found := known[kind])]
    if len(told) < len(kinds) or len({METADATA, *names}) <= len(names):
        return None
    dtypes, shapes, sizes = zip(*told, strict=True)
    starts, stops = tuple(map(int, firsts)), tuple(map(int, lasts))
    if any(map(gt, starts, starts[1:])):
        rows = zip(names, dtypes, shapes, sizes, starts, stops, strict=True)
        names, dtypes, shapes, sizes, starts, stops = zip(*sorted(rows, key=itemgetter(4)), strict=True)
    is_whole = starts == (0, *stops[:-1]) and stops[-1] == room and tuple(map(sub, stops, starts)) == sizes
    return Table(names, dtypes, shapes, starts, stops) if is_whole else None


# What stands before the text of a header: its length, as a number without a sign.
LENGTH_BYTES = 8
# Dimensions and positions are counted with a sign by torch, numpy and the system (`SIZES`), and without by the library.
_BEYOND_UNSIGNED = 1 << 64


class TensorInfo(NamedTuple):
    """One tensor of a file, unread: `start` and `stop` are byte positions in `file`.

    `identity` says which file that was when its header was read.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    stop: int
    identity: Identity | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return count_elements(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in the file, in bytes."""
        return self.stop - self.start


def read_header(file: str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Return tensors in file order and metadata of one .safetensors file; every rule of the format is checked.

    Raises LoraInspectError for a file that is damaged or in another format.
    """
    tensors, metadata, _ = identified_header(file)
    return tensors, metadata


def identified_header(file: str) -> tuple[dict[str, TensorInfo], dict[str, str], Identity]:
    """Return the result of `read_header`, and the identity of the file."""
    with InputFile(file) as source:
        size = source.identity.bytes
        start = bytes(source.read(0, min(size, START_BYTES)))
        refuse_foreign(file, start, size)
        length = int.from_bytes(start[:LENGTH_BYTES], "little")
        if length > HEADER_BYTES or length > size - LENGTH_BYTES:
            raise DamagedError(
                file,
                f"its first 8 bytes announce a header of {length} bytes, but the file has {size} and a header at "
                f"most {HEADER_BYTES}: it is truncated or not a safetensors file",
                "fetch it again",
            )
        refuse_torn(source, LENGTH_BYTES + length)
        try:
            with without_collecting():
                tensors, metadata = _read_plain(source, length) or _read_text(source, length)
        finally:
            source.check_unchanged()
    return tensors, metadata, source.identity


def count_elements(shape: Iterable[int]) -> int:
    """Return the product of the dimensions; 1 for a scalar."""
    return prod(shape)


def _read_plain(source: InputFile, length: int) -> tuple[dict[str, TensorInfo], dict[str, str]] | None:
    """Return the result of `_read_text` for a header in the common form; None for any other."""
    file, identity, data_start = source.path, source.identity, LENGTH_BYTES + length
    if length > LONGEST:
        return None
    plain = read_plain(source.read(LENGTH_BYTES, length), identity.bytes - data_start)
    if plain is None:
        return None
    (names, dtypes, shapes, starts, stops), metadata = plain
    ranges = [data_start + start for start in starts], [data_start + stop for stop in stops]
    rows = zip(names, dtypes, shapes, repeat(file), *ranges, repeat(identity))
    return dict(zip(names, make_records(TensorInfo, rows), strict=True)), metadata


def _read_text(source: InputFile, length: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    from lora_inspect.files.safetensors.strict_header import HeaderText

    file, size, data_start = source.path, source.identity.bytes, LENGTH_BYTES + length
    text = HeaderText(source, LENGTH_BYTES, length)
    found: dict[str, TensorInfo] = {}
    # Many tensors have one shape, and one object for it stays in the processor's cache.
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
    for name, entry in text.entries():
        if name in found:
            raise text.repeats(name)
        found[name] = _parse_entry(file, name, entry, data_start, source.identity, shapes)
    if len(found) > TENSORS:
        raise too_many_tensors(file, len(found))
    if any(info.stop > behind.start for info, behind in pairwise(found.values())):
        in_file_order = sorted(found.values(), key=lambda info: (info.start, info.stop))
        found = {info.name: info for info in in_file_order}
    position = data_start
    for info in found.values():
        if info.start != position:
            relation = "overlaps the tensor before it" if info.start < position else "leaves a hole before it"
            raise DamagedError(file, f"{info.name} {relation}, so the header is damaged", "fetch the file again")
        position = info.stop
    if position != size:
        state = "truncated" if position > size else "longer than its header says"
        raise DamagedError(
            file, f"its tensors end at byte {position} and the file at byte {size}: it is {state}", "fetch it again"
        )
    return found, text.metadata


def _parse_entry(
    file: str,
    name: str,
    entry: Mapping[str, Any],
    data_start: int,
    identity: Identity,
    shapes: dict[tuple[int, ...], tuple[int, ...]],
) -> TensorInfo:
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if dtype is None or not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        from lora_inspect.files.safetensors.strict_header import incomplete_entry

        raise incomplete_entry(file, name)
    bits = BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise DamagedError(file, f"{name} has the unknown dtype {dtype!r}", "fetch it again or update lora-inspect")
    for number in (*shape, *offsets):
        if type(number) is not int or not 0 <= number < SIZES:
            raise DamagedError(
                file, f"the shape or range of {name} has something else than whole numbers", "fetch it again"
            )
    start, stop = offsets
    needed = count_elements(shape) * bits
    if needed % 8 or stop - start != needed // 8:
        raise DamagedError(
            file, f"{name} has {stop - start} bytes, which does not match {dtype} {list(shape)}", "fetch it again"
        )
    if not needed and count_elements(shape[: shape.index(0)]) >= _BEYOND_UNSIGNED:
        raise DamagedError(file, f"the shape {shape} of {name} is beyond 64 bits", "fetch it again")
    known = tuple(shape)
    known = shapes.setdefault(known, known)
    return TensorInfo(name, intern(dtype), known, file, data_start + start, data_start + stop, identity)


class Span(NamedTuple):
    """Bytes `start` to `stop` of the file that the tensor `info` is in, and their position in the new file.

    They are whole tensors in the same sequence in both files, or a part of these.
    """

    info: TensorInfo
    start: int
    stop: int
    at: int

    def pieces(self, most: int) -> Iterator["Span"]:
        """Yield spans of at most so many bytes, one after the other."""
        for start in range(self.start, self.stop, most):
            stop = min(start + most, self.stop)
            yield self._replace(start=start, stop=stop, at=self.at + start - self.start)
