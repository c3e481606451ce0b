"""Headers that the format admits and that are odd all the same, and names that nobody would write."""

from collections.abc import Iterator

from lora_inspect.checking.subject import Subject
from lora_inspect.escape import printable
from lora_inspect.files.safetensors.dtypes import BITS
from lora_inspect.reading.model.evidence import Finding
from lora_inspect.sentences import counted, some

# What a writer may leave for later changes of the metadata.
_ROOM = 1 << 16


def header_start(subject: Subject) -> Iterator[Finding]:
    """Headers that do not begin as A1111 and Forge want it."""
    for header in subject.headers:
        if header.start not in (b'{"', b"{}"):
            shown = printable(header.start.decode("ascii", "replace"))
            message = f'the header begins with "{shown}" where readers of the metadata look for {{"'
            yield Finding("header-start", message)


def metadata_late(subject: Subject) -> Iterator[Finding]:
    """Metadata that stand behind tensors in the header."""
    for header in subject.headers:
        if not header.metadata_first and subject.checkpoint.file_metadata[header.file]:
            yield Finding("metadata-late", "the metadata do not come first in the header")


def header_padding(subject: Subject) -> Iterator[Finding]:
    """Blanks behind the header that no writer leaves."""
    for header in subject.headers:
        if header.blanks > _ROOM:
            yield Finding("header-padding", f"the header ends in {header.blanks:,} blanks")
        elif not header.spaces:
            yield Finding("header-padding", "the header is padded with other blanks than spaces")


def unaligned(subject: Subject) -> Iterator[Finding]:
    """Tensors that begin at no multiple of their elements' size."""
    if not subject.headers:
        return
    odd = [
        info.name
        for info in subject.checkpoint.tensors.values()
        if info.nbytes and BITS[info.dtype] >= 8 and info.start % (BITS[info.dtype] // 8)
    ]
    if odd:
        message = f"{counted(len(odd), 'tensor')} not at a multiple of the size of the elements ({some(odd, 1)})"
        yield Finding("unaligned", message, tuple(odd[:5]))


def tensor_empty(subject: Subject) -> Iterator[Finding]:
    """Tensors without an element."""
    if empty := [info.name for info in subject.checkpoint.tensors.values() if not info.numel]:
        yield Finding(
            "tensor-empty", f"{counted(len(empty), 'tensor')} without an element ({some(empty, 1)})", tuple(empty[:5])
        )


def odd_names(subject: Subject) -> Iterator[Finding]:
    """Names of tensors and of metadata that are empty, show as something else or begin or end with a blank."""
    for what, names in (("tensor", subject.checkpoint.tensors), ("key", subject.metadata)):
        if odd := [name for name in names if not name or name != name.strip() or printable(name) != name]:
            shown = some([f"'{name}'" for name in odd], 1)
            where = "" if what == "tensor" else " of the metadata"
            message = f"{counted(len(odd), what)}{where} with a blank at an end or unseen characters ({shown})"
            yield Finding("odd-name", message, tuple(odd[:5]))
