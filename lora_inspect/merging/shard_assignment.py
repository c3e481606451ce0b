"""How the files of a base are dealt among several processes: by size, and the same for whoever plans."""

from collections.abc import Mapping, Sequence

from lora_inspect.fast_namedtuple import NamedTuple


class Share(NamedTuple):
    """What one of several processes takes: the share `number` of `of`, counted from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> "Share":
        """What `I/N` says; raises ValueError where it is none of 1/N to N/N."""
        number, slash, of = text.partition("/")
        if not slash or not (_is_count(number) and _is_count(of)) or not 1 <= int(number) <= int(of):
            raise ValueError(f"{text!r} is none of the shares 1/N to N/N, as 3/8")
        return cls(int(number), int(of))


def dealt(sizes: Mapping[str, int], of: int) -> list[list[str]]:
    """The files of each of so many shares, in their order: the largest one goes to whoever has least, and so on."""
    loads, hands = [0] * of, [list[str]() for _ in range(of)]
    for file in sorted(sizes, key=lambda file: (-sizes[file], file)):
        number = min(range(of), key=lambda number: (loads[number], len(hands[number]), number))
        loads[number] += sizes[file]
        hands[number].append(file)
    return [[file for file in sizes if file in hand] for hand in hands]


def taken(share: Share, sizes: Mapping[str, int]) -> Sequence[str]:
    """The files of one share."""
    return dealt(sizes, share.of)[share.number - 1]


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 7
