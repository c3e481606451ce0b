"""Changes of what lies in a case's folder: links, pipes, other files, names that mean something elsewhere."""

import random

from fuzz import hostile
from fuzz.contents import Content, Files, Folder, Link, Pipe, Socket, names_of


def change(source: random.Random, files: Files) -> None:
    held = files.contents
    name = source.choice(list(held))
    chance = source.random()
    if chance < 0.35:
        held[name] = _instead(source, held)
    elif chance < 0.85:
        folders = [path for path in names_of(held) if any(other.startswith(f"{path}/") for other in held)]
        _put(held, f"{source.choice(['.', *folders])}/{source.choice(hostile.SIDE_NAMES)}".removeprefix("./"), source)
    elif chance < 0.93:
        other = source.choice(list(held))
        held[name], held[other] = held[other], held[name]
    else:
        del held[name]


def _instead(source: random.Random, held: dict[str, Content]) -> Content:
    plain = [content for content in held.values() if isinstance(content, bytes)]
    return source.choice(
        (
            Link(source.choice(hostile.LINKS)),
            Link(source.choice(hostile.LINKS)),
            Link(source.choice(list(held))),
            Pipe(),
            Socket(),
            Folder(),
            b"",
            source.choice(hostile.FOREIGN),
            *plain[:1],
        )
    )


def _put(held: dict[str, Content], name: str, source: random.Random) -> None:
    above = name.split("/")[:-1]
    # A file cannot be a folder too.
    if any("/".join(above[:end]) in held for end in range(1, len(above) + 1)) or any(
        other.startswith(f"{name}/") for other in held
    ):
        return
    held[name] = _instead(source, held) if source.random() < 0.6 else b"something beside the weights"
