"""Writes docs/formats.md from the registries and from what convert writes: `python docs/write_formats.py`."""

import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from program_files.folders import FOLDERS  # noqa: E402
from program_files.kinds import KINDS  # noqa: E402
from program_files.written import File  # noqa: E402

from lora_inspect import algorithms  # noqa: E402
from lora_inspect.architectures import by_name  # noqa: E402
from lora_inspect.converting.standard_fix import output_beside  # noqa: E402
from lora_inspect.errors import LoraInspectError  # noqa: E402
from lora_inspect.files.checkpoint import open_checkpoint  # noqa: E402
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard  # noqa: E402
from lora_inspect.reading.adapter import read_adapter  # noqa: E402
from lora_inspect.reading.keys.suffixes import parse_key  # noqa: E402
from lora_inspect.reading.model.settings import Settings  # noqa: E402
from lora_inspect.schemes import SCHEMES  # noqa: E402
from lora_inspect.schemes.record import Scheme  # noqa: E402
from lora_inspect.sentences import listed  # noqa: E402

PAGE = ROOT / "docs" / "formats.md"
HEAD = """# The names in files

A key is the name of a module and a suffix. The suffix identifies the algorithm and the role of the tensor in it. The
name is a prefix, which a naming scheme has for each network of a pipeline, and the path of the layer in the model. The
path has dots or underscores:

```text
lora_unet_    blocks_0_self_attn_q    .lora_down.weight
prefix        path                    suffix
```

[Files](files.md) and [reading](reading.md) explain how files, headers and configurations are read.
[Algorithms](algorithms.md) has the formula of each algorithm, and [architectures](architectures.md) the names of layers
in each model.

`docs/write_formats.py` writes this page from the registries in `lora_inspect/schemes/` and `lora_inspect/algorithms/`,
and from the output of `convert`.

## Schemes

A module belongs to the scheme with the longest prefix that its name begins with. {marked} are tried first: they have
prefixes of others, and suffixes of their own. `dotted` takes the rest. `convert --to` takes the schemes with a yes in
the last column, and [programs](cli.md#lora-inspect-convert).

"""
SCHEME_HEAD = ("", "prefixes, and the network", "path", "place of alpha", "written")
WRITTEN = """
## Written names

The sections show the module of one layer, for each kind that `convert --to SCHEME --keep-dora` writes. They come from
converting small files. Most of the refused kinds can be written with `--algorithm lora` or `--algorithm full`, or for
one program: see [converting](converting_for_programs.md#naming-schemes).
"""
SUFFIXES = """
## Read names

The table has every spelling of every algorithm that is merged, by dialect. A file may mix them. If several algorithms
have the same suffix, the tensors next to it decide. N is a number. Some of PEFT's methods have tensors that all modules
share; [algorithms](algorithms.md) lists these.

"""
SUFFIX_HEAD = ("", "dialect", "suffixes")
# What a module without an alpha tensor means.
ALPHA = {"one": "a tensor; scale 1 without", "config": "in the config", "scale": "the scale itself, in the config"}
# The family that stands for the others, where a scheme knows it not: another one.
FAMILY, OTHER_FAMILY = "wan", "sd15"
# The kinds of files that are shown, by their titles.
SHOWN = (
    "LoRA",
    "DoRA `dora_scale` (out, 1)",
    "DoRA `dora_scale` (1, in)",
    "LoRA with `lora_up.bias`",
    "LoHa",
    "LoKr with a thin factor",
    "OFT `oft_blocks`",
    "BOFT `oft_blocks`",
    "GLoRA",
    "(IA)3 `on_input`",
    "`diff` with `diff_b`",
)
# The same for schemes of language models.
SHOWN_OF_LANGUAGE_MODELS = ("plain LoRA", "`use_dora`", "`lora_bias`")
CONFIG = ROOT / "fixtures" / "gguf" / "llama"


def sources(scheme: Scheme) -> tuple[str, Iterator[tuple[str, File]]]:
    """The family, and files of each kind, that are written in a scheme."""
    knows = scheme.writing.layout if scheme.writing else None
    for name in (FAMILY, OTHER_FAMILY):
        family = by_name(name)
        if knows and knows(family) in [own for layout in family.layouts for own in layout.names]:
            kinds = (kind for kind in KINDS if kind.title in SHOWN)
            files = ((kind.title, kind.file(SCHEMES["kohya"], family)) for kind in kinds)
            return name, ((title, file) for title, file in files if file)
    return "llm", ((title, FOLDERS[title]) for title in SHOWN_OF_LANGUAGE_MODELS)


def written(scheme: Scheme) -> Iterator[str]:
    """The lines on one scheme: the keys of a module of each kind, and the kinds that are refused."""
    name, files = sources(scheme)
    family = by_name(name)
    options = ConvertOptions(
        keep_dora=True,
        scheme=scheme.name,
        model_config=str(CONFIG) if scheme.name == "gguf" else None,
        settings=Settings(architecture=None if name == "llm" else name),
    )
    rows, refused, module = [], [], ""
    with tempfile.TemporaryDirectory() as folder:
        for number, (title, file) in enumerate(files):
            source = file.write(Path(folder) / str(number))
            own = options if "DoRA" in title or "dora" in title else _without_dora(options)
            keys = _keys(source, scheme, own)
            if keys is None:
                refused.append(title)
                continue
            module = module or _module_of(keys)
            suffixes = [key.removeprefix(module) for key in keys if key.startswith(f"{module}.")]
            rows.append((title, ", ".join(f"`{suffix}`" for suffix in suffixes)))
    yield f"\n### `{scheme.name}`\n\n{family.title}, `{module}`\n\n"
    yield table(("", "suffixes"), rows)
    if refused:
        yield f"\nRefused: {', '.join(refused)}.\n"


def _without_dora(options: ConvertOptions) -> ConvertOptions:
    return ConvertOptions(scheme=options.scheme, model_config=options.model_config, settings=options.settings)


def _keys(source: str, scheme: Scheme, options: ConvertOptions) -> list[str] | None:
    """The keys that are written; None where the conversion is refused."""
    output = output_beside(read_adapter(open_checkpoint(source), options.settings), "out", scheme.name)
    try:
        convert_to_standard(source, output, options)
    except LoraInspectError:
        return None
    return sorted(open_checkpoint(output).tensors, key=lambda key: (key.endswith(".alpha"), key))


def _module_of(keys: Sequence[str]) -> str:
    """The first module's name."""
    parsed = parse_key(next(key for key in keys if "attn" in key))
    assert parsed is not None
    return parsed.module


def scheme_rows() -> Iterator[tuple[str, ...]]:
    """The table of schemes."""
    for scheme in SCHEMES.values():
        prefixes = [f"`{prefix}` {part}" if prefix else "none" for prefix, part in scheme.prefixes.items()]
        alpha = ALPHA[scheme.absent_alpha]
        if scheme.alpha_of_all:
            alpha = "one for all, in the header"
        elif scheme.absent_alpha == "one" and not scheme.carries_alpha:
            alpha = "nowhere: scale 1"
        yield (
            f"`{scheme.name}`",
            ", ".join(prefixes) or "read as those of `kohya`",
            "underscores" if scheme.flat else "dots",
            alpha,
            f"yes, for {scheme.writing.title}" if scheme.writing else "",
        )


def suffix_rows() -> Iterator[tuple[str, ...]]:
    """The table of suffixes: a row for each dialect of each algorithm."""
    known = sorted((one for one in algorithms.every().values() if one.formula), key=lambda one: one.title.casefold())
    for algorithm in known:
        title = algorithm.title
        dialects = dict(algorithm.dialects)
        if algorithm.name == "lora":
            dialects |= {scheme.name: scheme.own_factors for scheme in SCHEMES.values() if scheme.own_factors}
        for dialect, suffixes in dialects.items():
            numbered = dict.fromkeys(re.sub(r"\.\d+\b", ".N", suffix) for suffix in suffixes.values())
            yield title, dialect, ", ".join(f"`{suffix}`" for suffix in numbered)
            title = ""


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """The lines of a table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]
    return "".join(f"{line}\n" for line in lines)


@cache
def page() -> str:
    """The page as it should be."""
    of_schemes = "".join(line for scheme in SCHEMES.values() if scheme.writing for line in written(scheme))
    return (
        HEAD.format(marked=listed([f"`{scheme.name}`" for scheme in SCHEMES.values() if scheme.marks]))
        + table(SCHEME_HEAD, scheme_rows())
        + WRITTEN
        + of_schemes
        + SUFFIXES
        + table(SUFFIX_HEAD, suffix_rows())
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
