"""The table of a folder: columns as wide as the terminal bears, chosen before the first file is read."""

from collections.abc import Iterable, Sequence

from lora_inspect.cli.info_headline import size_in_words
from lora_inspect.cli.sheet import Line, Sheet
from lora_inspect.cli.terminal import DOUBTFUL, FAINT, PLAIN, WRONG, Piece
from lora_inspect.cli.wrapped import cut
from lora_inspect.escape import width
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.reading.file_info import ADAPTER
from lora_inspect.scanning.scan_file import ANSWER, CONVERT, INFO_ONLY, ScannedFile

_HEADERS = ("name", "model", "type", "rank", "scale", "size", "note")
_AT_RIGHT = ("rank", "scale", "size")
# The columns of a line from which on there is room for these.
_ROOM_FOR = {"size": 72, "rank": 56}
# The columns of names of models: so much of the line, but no less and no more.
_MODEL_SHARE, _MODEL = 8, (9, 22)
_WIDTHS = {"type": 7, "rank": 5, "scale": 5, "size": 6}
_NAME, _NOTE, _NOTE_SHARE = 12, 18, 0.4
# What people call models that the tables have longer titles for, where those do not fit.
_SHORT_MODELS = {
    "Stable Diffusion 1.x": "SD 1.x",
    "Stable Diffusion 2.x": "SD 2.x",
    "Stable Diffusion 3": "SD 3",
    "Stable Diffusion XL": "SDXL",
    "Language model (Llama line)": "LLM (Llama)",
    "Wan 2.1 / 2.2": "Wan 2",
    "Lumina-Image 2.0": "Lumina 2",
    "Cosmos Predict 2": "Cosmos 2",
    "HunyuanVideo 1.5": "HyVideo 1.5",
    "HunyuanVideo": "HunyuanVid.",
    "HunyuanImage 2.1": "HunyuanImg",
}
_SEVERAL, _UNKNOWN, _NONE = "mixed", "?", "-"
_LOOKS = {CONVERT: WRONG, INFO_ONLY: DOUBTFUL, ANSWER: DOUBTFUL}


class _Column(NamedTuple):
    header: str
    width: int

    @property
    def at_right(self) -> bool:
        return self.header in _AT_RIGHT


class FolderTable:
    """Makes the lines of a table for files whose names are known before."""

    def __init__(self, sheet: Sheet, names: Iterable[str]) -> None:
        self._sheet = sheet
        longest = max((width(sheet.shown(name)) for name in names), default=0)
        self._columns = _columns(sheet.columns, longest)

    def headers(self) -> Line:
        """The line above all rows."""
        return self._line([column.header for column in self._columns], FAINT)

    def row(self, name: str, one: ScannedFile, duplicate_of: str = "") -> Line:
        """The line of a file that could be read; `duplicate_of` is what the first file with its tensors is called."""
        cells = {
            "name": name,
            "model": self._model(one),
            "type": _types(one),
            "rank": _span(list(map(str, one.ranks)), self._room("rank")),
            "scale": _span([_number(scale) for scale in one.scales], self._room("scale")),
            "size": _size(one.bytes),
            "note": self._note(one, duplicate_of),
        }
        look = PLAIN if duplicate_of else _LOOKS.get(one.state, PLAIN)
        return self._line([cells[column.header] for column in self._columns], PLAIN, look)

    def _line(self, cells: Sequence[str], look: str, note_look: str = "") -> Line:
        pieces: list[Piece] = []
        for number, (column, cell) in enumerate(zip(self._columns, cells, strict=True)):
            shown = cut(self._sheet.shown(cell), column.width, self._sheet.mark)
            blanks = " " * (column.width - width(shown))
            gap = "" if not number else " " if column.at_right else "  "
            padded = blanks + shown if column.at_right else shown + blanks
            pieces.append(Piece(gap + padded, note_look or look if column.header == "note" else look))
        return pieces

    def _room(self, header: str) -> int:
        return next((column.width for column in self._columns if column.header == header), 0)

    def _model(self, one: ScannedFile) -> str:
        if not one.model:
            return _UNKNOWN if one.kind == ADAPTER else _NONE
        if width(one.model) <= self._room("model"):
            return one.model
        short = one.model
        for title, name in _SHORT_MODELS.items():
            short = short.replace(title, name)
        return short

    def _note(self, one: ScannedFile, duplicate_of: str) -> str:
        """The longest form of the note that fits."""
        notes = (f"duplicate of {duplicate_of}", f"= {duplicate_of}") if duplicate_of else one.notes
        shown = [self._sheet.shown(note) for note in notes]
        return next((note for note in shown if width(note) <= self._room("note")), shown[-1] if shown else "")


def _types(one: ScannedFile) -> str:
    if one.kind != ADAPTER:
        return one.kind
    first, *others = one.types or (_UNKNOWN,)
    return f"{first}+{len(others)}" if others else first


def _columns(columns: int, longest: int) -> list[_Column]:
    widths = {header: _WIDTHS.get(header, 0) for header in _HEADERS if columns >= _ROOM_FOR.get(header, 0)}
    least, most = _MODEL
    widths["model"] = min(max(columns // _MODEL_SHARE + 1, least), most)
    gaps = sum(1 if header in _AT_RIGHT else 2 for header in widths) - 2
    room = columns - sum(widths.values()) - gaps
    note = max(min(_NOTE, room // 2), int(room * _NOTE_SHARE))
    widths["name"] = max(min(longest, room - note), min(_NAME, room // 2), len("name"))
    widths["note"] = max(room - widths["name"], len("note"))
    return [_Column(header, widths[header]) for header in widths]


def _span(values: Sequence[str], room: int) -> str:
    """One value, the first and the last of several, or that there are several where these do not fit."""
    if len(values) < 2:
        return values[0] if values else _NONE
    span = f"{values[0]}-{values[-1]}"
    return span if len(span) <= room and _UNKNOWN not in values else _SEVERAL


def _number(scale: float | None) -> str:
    if scale is None:
        return _UNKNOWN
    forms = (f"{scale:.{digits}g}" for digits in (4, 3, 2, 1))
    return next((form for form in forms if len(form) <= _WIDTHS["scale"]), f"{scale:.0e}")


def _size(count: int) -> str:
    """As people say it, in six letters at most."""
    number, _, unit = size_in_words(count).partition(" ")
    return f"{number} {'B' if unit == 'bytes' else unit}"
