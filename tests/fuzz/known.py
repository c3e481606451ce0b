"""Files that have broken this program or are made to, by what they are; the first path of each is the hostile one."""

import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

from fuzz import hostile, odd_numbers
from fuzz.case import NETWORKS, Case
from fuzz.contents import Content, Folder, Json, Link, Pipe, Socket, Weights, Zeros
from fuzz.odd_json import Fields, Raw, spell
from fuzz.seeds import CONFIG, RANK, base, pairs, sharded, tensor

Files = dict[str, Content]
_Q = "lora_unet_blocks_0_attn_to_q"
_LINEAR = ("blocks.0.attn.to_q", "blocks.0.ffn.0")
# A name on which (a+)+$ and its like try every way of cutting it, and fit in none.
_LONG = "a" * 40 + "!"
_SLOW = ("(a+)+$", "(a|a)*$", "(a|aa)+$", "(.*a){30}$", "(?:a*)*$", "([a-z]+)*$", "(a+){20,}$", "^(([a-z])+.)+[A-Z]$")


def _file(header: Any, zeros: int = 0) -> Files:
    text = (header if isinstance(header, str) else spell(header)).encode()
    return {"a.safetensors": len(text).to_bytes(8, "little") + text + bytes(zeros)}


def _one(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16), name: Any = "x", zeros: int = 16) -> Files:
    """A file of one tensor whose header says anything."""
    return _file(Fields([(name, {"dtype": dtype, "shape": shape, "data_offsets": offsets})]), zeros)


def _adapter(**metadata: str) -> Files:
    return {"a.safetensors": Weights(pairs("kohya", _LINEAR), metadata)}


def _peft(config: Any, layer: str = "blocks.0.attn.to_q") -> Files:
    weights = {f"base_model.model.{layer}.lora_{side}.weight": tensor(RANK, RANK) for side in "AB"}
    return {
        "a/adapter_model.safetensors": Weights(weights, {"format": "pt"}),
        "a/adapter_config.json": config
        if isinstance(config, Json | bytes | Link | Pipe | Socket | Folder | Zeros)
        else Json(config),
    }


def _embedded(config: Any) -> Files:
    """A config in the metadata, as diffusers writes it: a single small file."""
    weights = {f"transformer.{_LONG}.lora_{side}.weight": tensor(RANK, RANK) for side in "AB"}
    return {"a.safetensors": Weights(weights, {"lora_adapter_metadata": json.dumps(config)})}


def _shards(**changed: Content) -> Files:
    """A sharded base in a folder, with other files in it or instead of its own."""
    files = {f"a/{name}": content for name, content in sharded(base()).items()}
    return {**files, **{f"a/{name}": content for name, content in changed.items()}}


def _index(name: Any) -> Files:
    files = _shards()
    index = files["a/model.safetensors.index.json"]
    assert isinstance(index, Json)
    index.value["weight_map"]["embed.weight"] = name
    return files


def _alphas(number: float, ranks: tuple[int, ...]) -> Files:
    held = {}
    for at, rank in enumerate(ranks):
        name = f"lora_unet_blocks_{at}_attn_to_q"
        held |= {f"{name}.lora_down.weight": tensor(rank, 6), f"{name}.lora_up.weight": tensor(6, rank)}
        held[f"{name}.alpha"] = tensor(dtype="F64", of=number)
    return {"a.safetensors": Weights(held)}


def _renamed(name: str) -> Files:
    held = pairs("kohya", _LINEAR)
    return {"a.safetensors": Weights({key.replace(_Q, name): value for key, value in held.items()})}


def _split(number: str) -> Files:
    held = {f"{_Q}.lora_{way}.{number}.weight": tensor(RANK, RANK) for way in ("down", "up")}
    return {"a.safetensors": Weights(held | {f"{_Q}.alpha": tensor(of=1.0)})}


def _with_flag(name: str, *shape: int, dtype: str = "F32") -> Files:
    return {"a.safetensors": Weights(pairs("kohya", _LINEAR) | {name: tensor(*shape, dtype=dtype)})}


def _trained(**said: str) -> Files:
    """An adapter of sd-scripts, whose metadata say the rank and the alpha of its modules but for what is given."""
    return _adapter(ss_network_module="networks.lora", **{"ss_network_dim": "4", "ss_network_alpha": "3", **said})


def _whole_lokr(rank: Any) -> Files:
    """LoKr of PEFT whose rank the config alone says."""
    name = "base_model.model.blocks.0.attn.to_q"
    held = {f"{name}.lokr_w1": tensor(2, 2), f"{name}.lokr_w2": tensor(3, 3)}
    config = {"peft_type": "LOKR", "r": rank, "alpha": 8, "target_modules": ["to_q"]}
    return {"a/adapter_model.safetensors": Weights(held), "a/adapter_config.json": Json(config)}


def _deep(dimensions: int, *beside: str) -> Files:
    """Factors of so many dimensions, and others `beside` them."""
    held = pairs("kohya", _LINEAR) | {f"lora_unet_blocks_0_attn_to_q.{name}": tensor(6, of=1.0) for name in beside}
    return {
        "a.safetensors": Weights(
            {
                name: (dtype, (*shape, *[1] * (dimensions - len(shape))), data)
                for name, (dtype, shape, data) in held.items()
            }
        )
    }


def _refused() -> Iterator[tuple[str, Callable[[], Files]]]:
    for dtype in ([], {}, ["F32"], None, 7, True, "F33", "f32", ""):
        yield f"dtype {dtype!r}", lambda dtype=dtype: _one(dtype)
    for shape in (
        "",
        "4",
        {},
        None,
        4,
        [-4],
        [4.0],
        ["4"],
        [True, 4],
        [[4]],
        [2**62, 2**62, 0],
        [2**63],
        [Raw("4" * 5000)],
    ):
        yield (
            f"shape {shape!r:.40}",
            lambda shape=shape: _one(shape=shape, zeros=0 if shape == [2**62, 2**62, 0] else 16),
        )
    for offsets in (
        [16, 0],
        [0],
        [0, 16, 16],
        [0, 17],
        [-16, 0],
        [0.0, 16.0],
        [0, 2**64],
        [0, Raw("1" * 5000)],
        None,
        "ab",
        {},
    ):
        yield f"offsets {offsets!r:.40}", lambda offsets=offsets: _one(offsets=offsets)
    for token in ("NaN", "Infinity", "-Infinity"):
        yield f"{token} in a shape", lambda token=token: _one(shape=[Raw(token)])
        yield f"{token} in the metadata", lambda token=token: _file(f'{{"__metadata__":{{"a":{token}}}}}')
        yield (
            f"{token} beside the fields",
            lambda token=token: _file(f'{{"x":{{"dtype":"F32","shape":[4],"data_offsets":[0,16],"y":{token}}}}}', 16),
        )
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    yield "a tensor twice", lambda: _file(Fields([("x", entry), ("x", entry)]), 16)
    yield "a field twice", lambda: _file({"x": Fields([*entry.items(), ("dtype", "F32")])}, 16)
    yield "metadata twice", lambda: _file(Fields([("__metadata__", {}), ("__metadata__", {}), ("x", entry)]), 16)
    yield "a mark of byte order", lambda: _file("\ufeff" + spell({"x": entry}), 16)
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        text = spell({"x": entry}).encode(encoding)
        yield encoding, lambda text=text: {"a.safetensors": len(text).to_bytes(8, "little") + text + bytes(16)}
    yield "half of a surrogate pair", lambda: _one(name=Raw('"\\ud800"'))
    yield "no UTF-8", lambda: {"a.safetensors": (30).to_bytes(8, "little") + b'{"\xff\xfe":{}}'.ljust(30)}
    yield "brackets without end", lambda: _file("[" * 200_000)
    yield "objects without end", lambda: _file('{"a":' * 200_000)
    yield "a header longer than the file", lambda: {"a.safetensors": (2**63).to_bytes(8, "little") + b"{}"}
    yield "a header of 101 MB", lambda: {"a.safetensors": Zeros(101_000_008)}
    yield "a number of 5,000 digits", lambda: _file('{"x":' + "1" * 5000 + "}")
    yield "a key of 300,000 dots", lambda: _one(name="." * 300_000)
    yield "a key of dots in an adapter", lambda: _renamed("lora_unet_" + "." * 300_000)
    for number, content in enumerate(hostile.FOREIGN):
        yield f"first bytes, {number}", lambda content=content: {"a.safetensors": content}
    for protocol in (0, 2, 4):
        yield f"a pickle that runs, {protocol}", lambda p=protocol: {"a.safetensors": pickle.dumps(hostile.Runs(), p)}
    for what in (Pipe(), Socket(), Folder(), Link("a.safetensors"), Link("/dev/zero"), Link("nowhere")):
        yield f"no file: {what}", lambda what=what: {"a.safetensors": what}
    for what in (Pipe(), Socket(), Link("/dev/zero"), Folder()):
        yield f"a shard that is none: {what}", lambda what=what: _shards(**{"model-00001-of-00002.safetensors": what})
    for name in ("../secret.txt", "/etc/hostname", "..", "", "tokenizer", "no.safetensors", 7, None, [], {}):
        yield f"an index that leads to {name!r}", lambda name=name: _index(name)


def _odd() -> Iterator[tuple[str, Callable[[], Files]]]:
    for pattern in _SLOW:
        for field in ("rank_pattern", "alpha_pattern"):
            yield f"{field} {pattern}", lambda f=field, p=pattern: _peft({**CONFIG, f: {p: 8}}, layer=_LONG)
        yield f"target_modules {pattern}", lambda p=pattern: _peft({**CONFIG, "target_modules": p}, layer=_LONG)
        yield (
            f"an embedded pattern {pattern}",
            lambda p=pattern: _embedded({"r": 4, "rank_pattern": {p: 8}, "target_modules": p}),
        )
    for pattern in ("[", "(?P<", "q{1000000000}", "(q{900}){900}", "(" * 500, "\\1", "q|" * 3000, "(?i)" * 50):
        yield f"a pattern that is none, {pattern:.20}", lambda p=pattern: _peft({**CONFIG, "rank_pattern": {p: 8}})
    for name in CONFIG:
        for value in (None, [], {}, "x", -1, 1e400, Raw("1" * 5000), Raw("NaN"), True, [[]], {"": None}):
            yield f"{name} {value!r:.20}", lambda name=name, value=value: _peft({**CONFIG, name: value})
    for what in (
        Pipe(),
        Socket(),
        Folder(),
        Link("adapter_config.json"),
        Link("/dev/zero"),
        b"",
        b"[]",
        b"null",
        Zeros((64 << 20) + 1),
    ):
        yield f"a config that is none: {what!r:.30}", lambda what=what: _peft(what)
    for text in odd_numbers.TEXTS:
        for key in ("ss_network_dim", "ss_network_alpha"):
            yield f"{key} {text:.20} of {len(text)}", lambda key=key, text=text: _trained(**{key: text})
    for number in odd_numbers.JSON:
        yield f"the rank of LoKr {number!r:.20} of {len(repr(number))}", lambda number=number: _whole_lokr(number)
    for count in (64, 65, 66, 1000):
        yield f"factors of {count} dimensions", lambda count=count: _deep(count)
        yield f"factors and a magnitude of {count} dimensions", lambda count=count: _deep(count, "dora_scale")
    yield "slices of 5,000 digits", lambda: _split("1" * 5000)
    yield "a slice in other digits", lambda: _split("²")
    yield "the smallest alpha with two ranks", lambda: _alphas(5e-324, (4, 2))
    yield "the largest alpha with two ranks", lambda: _alphas(1.7e308, (4, 2))
    yield "a metadata value of 2 MB", lambda: _adapter(**{str(n): "x" for n in range(1000)}, long="x" * 2_000_000)
    yield "a metadata value of 100,000 marks", lambda: _adapter(long="e" + "\u0301" * 100_000)
    yield "a dimension for each of 200,000", lambda: _one(shape=[1] * 200_000, offsets=[0, 4], zeros=4)
    yield (
        "5,000 empty tensors",
        lambda: _file({f"x{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(5_000)}),
    )
    for name in ("\x1b[2J\x1b[31m", "\x1b]0;x\x07", "a\nError: b", "\r", "\u202e", "\x9b", "e" + "\u0301" * 50):
        yield f"a name with {name!r}", lambda name=name: _renamed(f"lora_unet_{name}")
        yield f"a value with {name!r}", lambda name=name: _adapter(ss_base_model_version=name, software=name)
    for flag in ("use_rslora_flag", "use_dora_flag"):
        for shape in ((0,), (2,), (1, 1, 1)):
            yield f"{flag} of shape {shape}", lambda flag=flag, shape=shape: _with_flag(flag, *shape)
    for what in (
        Pipe(),
        Socket(),
        Link("/dev/zero"),
        Link("../../outside/secret.txt"),
        Link("."),
        Link("nowhere"),
        Link("loop"),
    ):
        yield f"beside the weights: {what}", lambda what=what: _shards(loop=what)
    for name in (
        "x.0123456789abcdef.partial",
        "a\nb",
        "\x1b[31m",
        ".git/config",
        "checkpoint-3/model.safetensors",
        "\udcff",
    ):
        yield f"beside the weights: {name!r}", lambda name=name: _shards(**{name: b"x"})


REFUSED, ODD = dict(_refused()), dict(_odd())


def cases(name: str) -> Iterator[Case]:
    """One of the files through every verb, as an adapter and as a base."""
    hostile_files = (REFUSED | ODD)[name]()
    path = next(iter(hostile_files)).split("/")[0]
    contents = {
        **hostile_files,
        "good.safetensors": Weights(pairs("kohya", _LINEAR)),
        "base.safetensors": Weights(base()),
    }
    commands = (
        ("info", path),
        ("info", path, "--modules", "--metadata"),
        ("info", path, "--modules", "--json"),
        ("info", "good.safetensors", path),
        ("merge", "base.safetensors", path, "-o", "out.safetensors"),
        ("merge", path, "good.safetensors", "-o", "out", "--allow-unmatched"),
        ("merge", "base.safetensors", path, "-o", "out.safetensors", "--dry-run"),
        ("convert", path, "-o", "out.safetensors"),
        ("convert", path, "-o", "out", "--alpha", "4"),
        (NETWORKS, "lora", next(iter(hostile_files))),
    )
    return (Case(contents, command, name) for command in commands)
