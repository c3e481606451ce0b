"""Changes of one file: of tensors that stay well formed, of a header, of JSON, of bytes."""

import math
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

from fuzz import hostile, odd_numbers
from fuzz.contents import Json, Tensor, Weights, as_bytes
from fuzz.odd_json import Fields, Raw, spell

_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8,
         "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "C64": 64, "U16": 16}  # fmt: skip
_SMALL_SHAPES = (
    (), (1,), (1, 1), (2,), (4,), (0,), (0, 4), (4, 4), (6, 6), (6, 4), (4, 6), (6, 6, 1, 1), (6, 4, 3, 3), (1, 6),
    (6, 1), (2, 3, 4), (1,) * 40,
)  # fmt: skip
_ENDS = (
    "alpha", "lora_down.weight", "lora_up.weight", "lora_A.weight", "lora_B.weight", "lora_A.default.weight",
    "lora_mid.weight", "lora_down.0.weight", "lora_up.0.weight", "lora_down.1.weight", "dora_scale",
    "dora_layer.weight", "magnitude", "lora_magnitude_vector", "hada_w1_a", "lokr_w1", "lokr_w2", "lokr_t2",
    "oft_blocks", "diff", "diff_b", "weight", "bias", "base_layer.weight", "lora_B.bias", "lora_embedding_A",
    f"lora_up.{'9' * 5000}.weight", "lora_down.00.weight", "scale_weight", "weight_scale", "comfy_quant",
    "quant_state.bitsandbytes__nf4",
)  # fmt: skip
_FLAGS = ("use_rslora_flag", "use_dora_flag", "lokr_factor", "scaled_fp8", "__metadata__")


def tensors(source: random.Random, weights: Weights) -> None:
    """Changes one or more tensors, so that the file is still one."""
    change = source.choice(_TENSOR_CHANGES)
    if weights.tensors or change is _add:
        change(source, weights.tensors)


def _name(source: random.Random, held: dict[str, Tensor]) -> str:
    return source.choice(list(held))


def _renamed(held: dict[str, Tensor], old: str, new: str) -> None:
    if new != "__metadata__":
        entries = [(new if name == old else name, tensor) for name, tensor in held.items()]
        held.clear()
        held.update(entries)


def _rename(source: random.Random, held: dict[str, Tensor]) -> None:
    name, word = _name(source, held), source.choice(hostile.WORDS).encode("utf-8", "replace").decode()
    parts = name.split(".")
    place = source.randrange(len(parts))
    ways = (
        lambda: name + word,
        lambda: word + name,
        lambda: word,
        lambda: ".".join([*parts[:place], word, *parts[place + 1 :]]),
        lambda: ".".join([*parts[:place], *parts[place + 1 :]]),
        lambda: f"{name.rpartition('.')[0]}.{source.choice(_ENDS)}",
        lambda: name.replace("0", source.choice(("1", "00", "-1", "9" * 30, "²"))),
        lambda: name.replace("_", "."),
        lambda: name.upper(),
    )
    _renamed(held, name, source.choice(ways)())


def _drop(source: random.Random, held: dict[str, Tensor]) -> None:
    del held[_name(source, held)]


def _copy(source: random.Random, held: dict[str, Tensor]) -> None:
    name = _name(source, held)
    stem = name.rpartition(".")[0]
    held[f"{stem}.{source.choice(_ENDS)}" if source.random() < 0.7 else f"{name}.{name}"] = held[name]


def _add(source: random.Random, held: dict[str, Tensor]) -> None:
    held[source.choice(_FLAGS[:4])] = _filled(source, source.choice(list(_BITS)), source.choice(_SMALL_SHAPES))


def _exchange(source: random.Random, held: dict[str, Tensor]) -> None:
    first, second = _name(source, held), _name(source, held)
    held[first], held[second] = held[second], held[first]


def _reshape(source: random.Random, held: dict[str, Tensor]) -> None:
    name = _name(source, held)
    dtype, shape, _ = held[name]
    sizes = list(shape)
    if sizes and source.random() < 0.7:
        place = source.randrange(len(sizes))
        sizes[place] = source.choice((0, 1, 2, 3, 5, sizes[place] + 1, sizes[place] * 2, 64))
    else:
        sizes = list(source.choice(_SMALL_SHAPES))
    held[name] = _filled(source, dtype, tuple(sizes))


def _transpose(source: random.Random, held: dict[str, Tensor]) -> None:
    name = _name(source, held)
    dtype, shape, data = held[name]
    held[name] = dtype, shape[::-1], data


def _retype(source: random.Random, held: dict[str, Tensor]) -> None:
    name = _name(source, held)
    held[name] = _filled(source, source.choice(list(_BITS)), held[name][1])


def _retype_all(source: random.Random, held: dict[str, Tensor]) -> None:
    dtype = source.choice(("BF16", "F16", "F64", "F8_E4M3", "I8"))
    held.update({name: _filled(source, dtype, shape) for name, (_, shape, _) in list(held.items())})


def _fill(source: random.Random, held: dict[str, Tensor]) -> None:
    names = [_name(source, held)] if source.random() < 0.6 else [name for name in held if name.endswith("alpha")]
    number = source.choice(hostile.FLOATS)
    for name in names:
        dtype, shape, data = held[name]
        form = {"F32": "f", "F64": "d"}.get(dtype)
        if form:
            largest = 3.4028234663852886e38
            fitting = number if form == "d" or abs(number) <= largest or not math.isfinite(number) else largest
            element = struct.pack(f"<{form}", fitting)
            held[name] = dtype, shape, element * (len(data) // len(element))


def _wide_alpha(source: random.Random, held: dict[str, Tensor]) -> None:
    """An alpha in the type that says most."""
    for name in [name for name in held if name.endswith("alpha")]:
        held[name] = "F64", (), struct.pack("<d", source.choice(hostile.FLOATS))


def _scatter(source: random.Random, held: dict[str, Tensor]) -> None:
    name = _name(source, held)
    dtype, shape, data = held[name]
    held[name] = dtype, shape, source.randbytes(len(data))


_TENSOR_CHANGES: tuple[Callable[[random.Random, dict[str, Tensor]], None], ...] = (
    _rename, _rename, _drop, _copy, _add, _exchange, _reshape, _reshape, _transpose, _retype, _retype_all, _fill,
    _wide_alpha, _scatter, odd_numbers.deepen, odd_numbers.deepen,
)  # fmt: skip


def _filled(source: random.Random, dtype: str, shape: tuple[int, ...]) -> Tensor:
    bits = math.prod(shape) * _BITS[dtype]
    if bits % 8:
        shape, bits = (*shape, 8), bits * 8
    if bits > 1 << 20:
        return "F32", (), bytes(4)
    if dtype == "F32":
        return dtype, shape, b"".join(struct.pack("<f", source.gauss(0, 0.3)) for _ in range(bits // 32))
    # Numbers of no sign and a small exponent in every type of floats.
    return dtype, shape, bytes([0x3C]) * (bits // 8)


def metadata(source: random.Random, weights: Weights) -> None:
    if source.random() < 0.6:
        odd_numbers.metadata(source, weights)
        return
    weights.metadata = dict(weights.metadata or {})
    for _ in range(source.choice((1, 1, 2, 4))):
        name = source.choice(hostile.METADATA_FIELDS) if source.random() < 0.85 else source.choice(hostile.WORDS)
        weights.metadata[name] = source.choice(hostile.METADATA_VALUES)


def header(source: random.Random, weights: Weights) -> bytes:
    """The file with a header that is JSON of that form, but for what is changed in it."""
    entries = Fields([("__metadata__", weights.metadata)] if weights.metadata is not None else [])
    position, body = 0, b""
    for name, (dtype, shape, data) in weights.tensors.items():
        entry = Fields([("dtype", dtype), ("shape", list(shape)), ("data_offsets", [position, position + len(data)])])
        entries.append((name, entry))
        position, body = position + len(data), body + data
    for _ in range(source.choice((1, 1, 1, 2, 3))):
        if entries:
            source.choice(_HEADER_CHANGES)(source, entries)
    return _framed(source, spell(entries), body)


def _entry(source: random.Random, entries: Fields) -> Fields | None:
    found = source.choice(entries)[1]
    return found if isinstance(found, Fields) and found else None


def _field(source: random.Random, entries: Fields) -> None:
    entry = _entry(source, entries)
    if entry is None:
        return
    place = source.randrange(len(entry))
    name, value = entry[place]
    pools = {"dtype": hostile.DTYPES, "shape": hostile.SHAPES}
    if name in pools:
        entry[place] = name, source.choice(pools[name])
    elif _are_offsets(value):
        entry[place] = name, _offsets(source, value)


def _are_offsets(value: Any) -> bool:
    """Whether a value is still two places in a file, and not what an earlier change has made of them."""
    return isinstance(value, list) and len(value) == 2 and all(type(n) is int and abs(n) < 1 << 64 for n in value)


def _offsets(source: random.Random, offsets: list[Any]) -> Any:
    start, stop = offsets
    number = source.choice(hostile.NUMBERS)
    return source.choice(
        (
            *([stop, start], [start], [], [start, stop, stop], [number, stop], [start, number], [start, stop + 4]),
            *([start + 4, stop], None, {}, "ab", [str(start), str(stop)], [float(start), float(stop)], [0, 0], [-4, 0]),
        )
    )


def _odd_field(source: random.Random, entries: Fields) -> None:
    entry = _entry(source, entries)
    if entry is not None:
        place = source.randrange(len(entry))
        ways = (
            lambda: entry.pop(place),
            lambda: entry.append(entry[place]),
            lambda: entry.insert(0, (entry[place][0], source.choice(hostile.JSON_VALUES))),
            lambda: entry.append((source.choice(hostile.WORDS), source.choice(hostile.JSON_VALUES))),
            lambda: entry.__setitem__(place, (entry[place][0], source.choice(hostile.JSON_VALUES))),
        )
        source.choice(ways)()


def _odd_entry(source: random.Random, entries: Fields) -> None:
    place = source.randrange(len(entries))
    name, entry = entries[place]
    ways = (
        lambda: entries.append((name, entry)),
        lambda: entries.__setitem__(place, (source.choice(hostile.WORDS), entry)),
        lambda: entries.__setitem__(place, (name, source.choice(hostile.JSON_VALUES))),
        lambda: entries.__setitem__(place, (Raw('"\\ud83d"'), entry)),
        lambda: entries.insert(0, ("__metadata__", source.choice(hostile.JSON_VALUES))),
        lambda: entries.insert(0, ("__metadata__", {"format": source.choice(hostile.JSON_VALUES)})),
        lambda: entries.append((source.choice(hostile.WORDS), source.choice(hostile.JSON_VALUES))),
        lambda: entries.extend([(f"{name}.{number}", entry) for number in range(2000)]),
    )
    source.choice(ways)()


_HEADER_CHANGES = (_field, _field, _odd_field, _odd_entry)


def _framed(source: random.Random, text: str, body: bytes) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    if source.random() < 0.15:
        encoded = source.choice(
            (
                b"\xef\xbb\xbf" + encoded,
                text.encode("utf-16", "replace"),
                text.encode("utf-32", "replace"),
                encoded + b"}",
                encoded + b"\x00" * 8,
                b" " * 7 + encoded,
                b"[" + encoded + b"]",
                encoded[:-1],
                encoded.replace(b'"', b"'"),
            )
        )
    length = len(encoded)
    if source.random() < 0.08:
        length = source.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1, 100_000_001))
    return struct.pack("<Q", length) + encoded + body


def damage(source: random.Random, data: bytes) -> bytes:
    """The bytes with some changed, cut, doubled or put in; most of them near the beginning, where formats are told."""
    changed = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 5))):
        _damage_once(source, changed)
    return bytes(changed)


def _damage_once(source: random.Random, data: bytearray) -> None:
    place = source.randrange((len(data) if source.random() < 0.4 else min(len(data), 600)) + 1)
    length = struct.pack("<Q", source.choice((0, 2, len(data), 2**40, 2**64 - 1)))
    start, stop, put = source.choice(
        (
            (place, place + 1, bytes([source.randrange(256)])),
            (place, place + 1, bytes([(*data, 0)[place] ^ 1 << source.randrange(8)])),
            (place, place + source.choice((1, 8, len(data))), b""),
            (place, place, source.randbytes(source.choice((1, 8, 500)))),
            (place, place, data[place : place + 64]),
            (len(data), len(data), bytes(source.choice((1, 8, 4096)))),
            (0, 8, length),
        )
    )
    data[start:stop] = put


def json_value(source: random.Random, content: Json) -> None:
    """Changes a configuration or an index somewhere."""
    if not isinstance(content.value, dict) or source.random() < 0.04:
        content.value = source.choice(hostile.JSON_VALUES)
    elif "weight_map" in content.value:
        _index(source, content.value)
    else:
        _config(source, content.value)


def _config(source: random.Random, config: dict[str, Any]) -> None:
    if source.random() < 0.5:
        odd_numbers.config(source, config)
        return
    for _ in range(source.choice((1, 1, 2, 3))):
        name = source.choice(hostile.CONFIG_FIELDS) if source.random() < 0.9 else source.choice(hostile.WORDS)
        config[name] = _config_value(source, name)
    if source.random() < 0.1:
        config.pop(source.choice(list(config)), None)


def _config_value(source: random.Random, name: str) -> Any:
    """Mostly of the type that the field has."""
    number = source.choice((0, 1, 2, 4, 8, *hostile.NUMBERS))
    pattern, other = source.choice(hostile.PATTERNS), source.choice(hostile.PATTERNS)
    fitting: dict[str, Sequence[Any]] = {
        "r": (number,),
        "lora_alpha": (number,),
        "rank_pattern": ({pattern: number}, {pattern: number, other: 2}),
        "alpha_pattern": ({pattern: number, "q": 2},),
        "target_modules": (pattern, [pattern, "to_q"], ["to_q"] * 3000, [number]),
        "use_rslora": (True, False),
        "use_dora": (True, False),
        "peft_type": hostile.TEXTS,
    }
    return source.choice(fitting[name] if name in fitting and source.random() < 0.8 else hostile.JSON_VALUES)


def _index(source: random.Random, index: dict[str, Any]) -> None:
    weight_map = index["weight_map"]
    if not isinstance(weight_map, dict) or not weight_map:
        index["weight_map"] = source.choice(hostile.JSON_VALUES)
        return
    name = source.choice(list(weight_map))
    ways: tuple[Callable[[], Any], ...] = (
        lambda: weight_map.__setitem__(name, source.choice(hostile.WORDS)),
        lambda: weight_map.__setitem__(name, source.choice(hostile.LINKS)),
        lambda: weight_map.__setitem__(name, source.choice(list(weight_map.values()))),
        lambda: weight_map.__setitem__(name, source.choice(hostile.JSON_VALUES)),
        lambda: weight_map.__setitem__(source.choice(hostile.WORDS), weight_map[name]),
        lambda: weight_map.update(dict.fromkeys(weight_map, "../outside/secret.txt")),
        lambda: weight_map.pop(name),
        lambda: weight_map.clear(),
        lambda: index.__setitem__("metadata", source.choice(hostile.JSON_VALUES)),
        lambda: index.__setitem__("weight_map", source.choice(hostile.JSON_VALUES)),
        lambda: index.__setitem__(source.choice(hostile.WORDS), source.choice(hostile.JSON_VALUES)),
    )
    source.choice(ways)()


def content(source: random.Random, held: bytes | Weights | Json) -> bytes | Weights | Json:
    """One file changed in one of these ways."""
    if source.random() < 0.12:
        return damage(source, as_bytes(held))
    if source.random() < (0.5 if isinstance(held, bytes) else 0.03):
        return source.choice(hostile.FOREIGN)
    if isinstance(held, Json):
        json_value(source, held)
    elif isinstance(held, Weights):
        chance = source.random()
        if chance < 0.48:
            tensors(source, held)
        elif chance < 0.72:
            metadata(source, held)
        else:
            return header(source, held)
    else:
        return damage(source, held)
    return held
