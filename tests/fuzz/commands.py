"""Odd command lines, made of what the verbs say of themselves: a new one is fuzzed as soon as it is there."""

import random
from collections.abc import Sequence

import click

from fuzz import hostile, metadata_words
from fuzz.case import NETWORKS, VERBS
from fuzz.contents import Files, Weights, names_of
from fuzz.networks_target import MODULES

# How often an option is there; without some of them a command says only that they are missing.
_OFTEN = {
    "output": 0.97, "force": 0.3, "dry_run": 0.1, "as_json": 0.3, "as_json_": 0.4, "json": 0.4, "allow_unmatched": 0.3,
    "base": 0.2, "keep_dora": 0.25, "layout": 0.25, "modules": 0.3, "metadata": 0.3, "rank": 0.02, "max_error": 0.02,
    "source": 0.98, "everything": 0.3, "other_meaning": 0.5, "title": 0.2, "thumbnail": 0.1,
    "allow_loss": 0.3,
    "weights": 0.02, "seed": 0.02, "share": 0.02, "is_finish": 0.02,
    "only": 0.02, "include": 0.02, "exclude": 0.02, "expert_packing": 0.02, "transposed": 0.02, "dora_multiplier": 0.02,
    "rslora": 0.02, "alpha": 0.02,
}  # fmt: skip
_SELDOM = 0.03
# Options that mostly come with another one.
_WITH = {"base": ("rank", "rank", "max_error"), "seed": ("rounding",)}
# What writes only where it is told to, and what is said of its output.
_MENDS, _OF_MENDING = "fixes", ("output", "force")
# What a merge is taken back with where there was one, and how often each is there.
_UNMERGE = "unmerge"
_UNMERGED_WITH = {"output": 0.97, "base": 0.3, "allow_ambiguous": 0.7, "as_json": 0.3, "force": 0.1}
# Verbs of several adapters, which may be the same one, and the rules of one that needs a rule.
_OF_SEVERAL = ("average", "compare", "report")
# What writes a page.
_PAGES = "report"
_RULES = {"extract": ("rank", "max_rank", "energy")}
# Parts of a sharded base.
_SHARES = ("1/1", "1/2", "2/2", "2/2", "1/9", "0/2", "3/2", "1", "")
# What changes a file itself where no output is named, and may do so only in its header.
_IN_PLACE = "in_place"
_HELP = "--help"
_NUMBERS = (
    "0.5", "1", "2", "4", "0.1", "0", "-1", "1e-3", "1e400", "nan", "inf", "-inf", "", "x", "0x4", "1_0", "٣",
    "9" * 400,
)  # fmt: skip
# Those that most options of a type take.
_INTEGERS, _FRACTIONS = ("1", "2", "4"), ("0.5", "0.1", "0.9")
_SETTINGS = (
    "0.8", "0", "-1.5", "1e3", "*=0.3", "alpha=4", "alpha=0", "alpha=5e-324", "alpha=x", "rslora=yes", "rslora=no",
    "rslora=maybe", "model=0.5", "text_encoder=2", "blocks.0.*=0.5", "*to_q*=2", "[=1", "0.5,0.6", "alpha=4,rslora=yes",
    "0.5,alpha=4", "1e400", "nan", "", ",", "=", "x", ":", "::1", "0,5", "*" * 40 + "=1", "a" * 3000 + "=1",
)  # fmt: skip
_GOOD_SETTINGS = 5
_ANSWERS = ("yes", "no", "*=yes", "*to_q*=no", "*=no")
_COMPONENTS = ("model", "model", "text_encoder", "unet")
_WORDS = ("=yes", "x=y", "[=no", *hostile.TEXTS)
_OUTPUTS = (
    "out.safetensors", "out.safetensors", "out.safetensors", "out", "out", "outdir", "outdir/", "olddir", "olddir/",
    "old.safetensors", "olddir/out.safetensors", "shards", "shards/", "base.safetensors", "a.safetensors", "peft",
    "peft/out.safetensors", "missing/out.safetensors", "out.ckpt", "out.bin", "out.json", "", ".", "..", "./", "-",
    "x" * 250, "y" * 300, "a\nb.safetensors", "\x1b[31m.safetensors", "\udcff.safetensors", "../outside/secret.txt",
    "/dev/null", "/dev/full", "/proc/out.safetensors", "old.safetensors/out.safetensors", "out.safetensors:0.5",
    "config.json", ".safetensors",
)  # fmt: skip
_PATHS = (
    "missing.safetensors", "a", ".", "..", "", "-", "/dev/null", "/dev/zero", "../outside/secret.txt", "a.safetensors/",
    "olddir", "shards/config.json", "shards/model-00001-of-00002.safetensors", "a.safetensors:", "\udcff", "a\x00b",
)  # fmt: skip


def targets() -> tuple[str, ...]:
    """What a command may be for: each verb that there is, and half as often the networks."""
    return *VERBS, *VERBS, NETWORKS


def command(source: random.Random, target: str, files: Files) -> tuple[str, ...]:
    """A command line of a target over the files."""
    if target == NETWORKS:
        return NETWORKS, _network_module(source, files), _weights_file(source, files)
    words = [*target.split(), *_arguments(source, VERBS[target], files)]
    if source.random() < 0.03:
        words[0] = source.choice(("inf", "Merge", "", "--version", "-h", *_PATHS[:4], *files.adapters))
    if source.random() < 0.03:
        place = source.randrange(len(words) + 1)
        words.insert(place, source.choice((_HELP, "--no-such-option", "--", "-", "-x", "--forc", *hostile.WORDS)))
    # No program can be given these.
    return tuple(
        word.replace("\x00", "")
        .encode("utf-8", "replace" if "\ud800" in word else "surrogateescape")
        .decode("utf-8", "surrogateescape")
        for word in words
    )


def _weights_file(source: random.Random, files: Files) -> str:
    """A file, or a name that is none: the networks take no folders."""
    found = [name for name in files.contents if not name.startswith(("shards/", "old", "base", "hub"))]
    return source.choice([*found, *found, *found, "missing.safetensors"])


def _network_module(source: random.Random, files: Files) -> str:
    """Mostly the one that the weights are for."""
    keys = repr(files.contents.get("a.safetensors"))[:2000]
    fitting = "loha" if "hada_" in keys else "lokr" if "lokr_" in keys else "lora"
    return fitting if source.random() < 0.8 else source.choice(list(MODULES))


def _arguments(source: random.Random, verb: click.Command, files: Files) -> list[str]:
    options = {option.name or "": option for option in verb.params if isinstance(option, click.Option)}
    chosen = [name for name in options if source.random() < _OFTEN.get(name, _SELDOM)]
    if _MENDS in options and source.random() < 0.5:
        chosen = [name for name in chosen if name not in (_MENDS, *_OF_MENDING)]
    elif _MENDS in options:
        chosen = [*(name for name in chosen if name != _MENDS), _MENDS]
    undoes = verb.name == _UNMERGE and bool(files.merged) and source.random() < 0.8
    if undoes:
        chosen = [name for name, often in _UNMERGED_WITH.items() if source.random() < often]
    if _IN_PLACE in options and source.random() < 0.6:
        chosen = [name for name in chosen if name not in (_IN_PLACE, *_OF_MENDING)]
        chosen += source.choice(([], [_IN_PLACE]))
    if verb.name in _RULES and source.random() < 0.9:
        chosen.append(source.choice(_RULES[verb.name]))
    for name in list(chosen):
        if name in _WITH and source.random() < 0.9:
            chosen.append(source.choice(_WITH[name]))
        if options[name].multiple and source.random() < 0.3:
            chosen.append(name)
    pieces: list[list[str]] = []
    for argument in (found for found in verb.params if isinstance(found, click.Argument)):
        first = pieces[0][0] if pieces else ""
        is_key = argument.name in metadata_words.ARGUMENTS
        pieces.append(
            metadata_words.operands(source, argument, first, files)
            if is_key
            else _operands(source, argument, files, undoes, verb.name in _OF_SEVERAL)
        )
    fitting = "out.safetensors" if _IN_PLACE in options else _fitting_output(pieces, files)
    # The adapter of a model of no known family has PEFT's names, in a folder.
    fitting = "out" if verb.name in _RULES else "out.html" if verb.name == _PAGES else fitting
    pieces += [_option(source, options[name], files, fitting) for name in chosen if name in options]
    if source.random() < 0.3:
        source.shuffle(pieces)
    return [word for piece in pieces for word in piece]


def _operands(
    source: random.Random, argument: click.Argument, files: Files, undoes: bool, is_several: bool
) -> list[str]:
    count = 1 if argument.nargs == 1 else source.choice((1, 1, 1, 1, 2, 3))
    wants_base = argument.name in ("base", "merged", "tuned")
    usual = (
        files.merged
        if files.merged and argument.name in ("merged", "tuned")
        else files.bases
        if wants_base
        else [*files.adapters, *files.bases]
        if argument.name == "paths"
        else _single_files(files)
        if argument.name == "path"
        else files.adapters
    )
    # The same one twice is refused at once.
    named = source.sample(usual, min(count, len(usual))) if source.random() < 0.93 else []
    named = named or [_path(source, usual, files) for _ in range(count)]
    if is_several and source.random() < 0.9:
        named.append(source.choice([*files.adapters, *named]))
    with_settings = (
        0.0 if wants_base else 0.06 if argument.nargs == 1 or argument.name == "paths" else 0.1 if undoes else 0.35
    )
    return [f"{path}:{_setting(source)}" if source.random() < with_settings else path for path in named]


def _single_files(files: Files) -> list[str]:
    """Mostly what is no set of several files."""
    shards = [name for name in files.contents if name.startswith("shards/model-")]
    return [*files.adapters * 4, *files.bases[:1] * 2, *shards[:1], *files.bases[-1:]]


def _fitting_output(operands: Sequence[Sequence[str]], files: Files) -> str:
    """A file for what is read from a file, a folder for what is read from one."""
    first = next((words[0] for words in operands if words), "")
    is_file = isinstance(files.contents.get(first.partition(":")[0]), bytes | Weights)
    return "out.safetensors" if is_file else "out"


def _setting(source: random.Random) -> str:
    return source.choice(_SETTINGS[:_GOOD_SETTINGS] if source.random() < 0.75 else _SETTINGS)


def _path(source: random.Random, usual: Sequence[str], files: Files) -> str:
    chance = source.random()
    if chance < 0.9 and usual:
        return source.choice(usual)
    return source.choice(names_of(files.contents)) if chance < 0.95 else source.choice(_PATHS)


def _option(source: random.Random, option: click.Option, files: Files, output: str) -> list[str]:
    name = source.choice(option.opts)
    if option.is_flag:
        return [name]
    value = _value(source, option, files, output)
    return [f"{name}={value}"] if name.startswith("--") and source.random() < 0.2 else [name, value]


def _value(source: random.Random, option: click.Option, files: Files, output: str) -> str:
    kind = option.type
    if option.name == "output":
        return output if source.random() < 0.6 else source.choice(_OUTPUTS)
    if option.name in metadata_words.OPTIONS:
        return metadata_words.value(source, option, files)
    if option.name == "share":
        return source.choice(_SHARES)
    if option.name == "source":
        return _path(source, _single_files(files), files)
    if isinstance(kind, click.Choice) and source.random() < 0.95:
        return str(source.choice(list(kind.choices)))
    if option.name == "base" or isinstance(kind, click.Path):
        return _path(source, files.bases, files)
    if source.random() < 0.15:
        return source.choice((*_WORDS, *_NUMBERS))
    if isinstance(kind, click.types.IntParamType | click.types.FloatParamType):
        return source.choice(_INTEGERS if isinstance(kind, click.types.IntParamType) else _FRACTIONS)
    return source.choice(_ANSWERS if "yes" in (option.metavar or "") else _COMPONENTS)
