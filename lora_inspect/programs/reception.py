"""What a program makes of an adapter: what it takes, passes over and refuses.

It is found out once for contributions that are alike, of which a file has many, and told of each where that is asked.
"""

from collections.abc import Callable, Iterable, Sequence
from math import inf

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.programs.adapter_view import Member
from lora_inspect.programs.record import RUN
from lora_inspect.reading.model.contribution import Contribution, Module


class Taken(NamedTuple):
    """A contribution that the program loads, at the `scale` it applies, None where that is unknown.

    `does` is COMPUTES or MISREADS, ODD, and `magnitude` what it does with the module's magnitude, empty without one.
    """

    module: Module
    contribution: Contribution
    scale: float | None
    does: str
    magnitude: str


class TakenAlike(NamedTuple):
    """Contributions that are alike, and loaded as `Taken` says."""

    members: Sequence[Member]
    scale: float | None
    does: str
    magnitude: str

    @property
    def contribution(self) -> Contribution:
        """The first of them."""
        return self.members[0].contribution


class Left(NamedTuple):
    """Tensors that the program has no use for, of `members` that are alike or of none, and what it does about them.

    `is_change` says that with them the change is lost that the members are. `keys_of` gives those of one member.
    """

    members: Sequence[Member]
    keys_of: Callable[[Member], Iterable[str]]
    does: str
    says: str
    is_change: bool


class Reception:
    """What a program makes of an adapter. `refusal` is what it says where it loads nothing of the file, else empty.

    `by` is RUN where its own code ran on such files for every rule that counted, else READ. `needs` is what the program
    has to be told beside the file, empty for nothing. `others` are the keys of no module that it has no use for.
    """

    __slots__ = ("_at", "_open", "_taken", "by", "left", "needs", "others", "refusal")

    def __init__(self) -> None:
        self._taken: list[TakenAlike] = []
        self.left: list[Left] = []
        self.others: list[str] = []
        self.refusal, self.needs, self.by = "", "", RUN
        self._at: float = -1
        self._open: list[tuple[float, str]] = []

    def take(self, taken: TakenAlike) -> None:
        """Notes that the program loads them."""
        self._taken.append(taken)

    def wonder(self, why: str, place: float = inf) -> None:
        """Notes that no rule speaks of what has this place in the file."""
        self._open.append((place, why))

    def refuse(self, says: str, place: float = inf) -> None:
        """Notes that the program refuses the file for what has this place in it: the last such has the word."""
        if place >= self._at:
            self.refusal, self._at = says, place

    @property
    def unknown(self) -> str:
        """Why it is not known what becomes of the first of what no rule speaks of; empty where all is known."""
        return min(self._open, key=lambda found: found[0])[1] if self._open else ""

    @property
    def taken(self) -> list[TakenAlike]:
        """What it loads, by the place of the first of those that are alike."""
        return sorted(self._taken, key=lambda one: one.members[0].place)

    @property
    def lost(self) -> list[Left]:
        """The changes that it does not make, in the same order."""
        return sorted((left for left in self.left if left.is_change), key=lambda left: left.members[0].place)

    def each_taken(self) -> list[Taken]:
        """What it loads, one by one in the order of the file."""
        found = [(member, one) for one in self._taken for member in one.members]
        found.sort(key=lambda pair: pair[0].place)
        return [Taken(own.module, own.contribution, one.scale, one.does, one.magnitude) for own, one in found]

    def ignored(self) -> tuple[str, ...]:
        """The keys that it has no use for, in the order of the file."""
        found = [(member, left) for left in self.left for member in left.members]
        found.sort(key=lambda pair: pair[0].place)
        of_modules = (key for member, left in found for key in left.keys_of(member))
        return tuple(dict.fromkeys([*of_modules, *self.others]))
