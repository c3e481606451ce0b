"""What the safetensors library refuses in a header is refused here, and what it accepts is accepted: both are asked."""

import json
import re
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from strategies import damaged, metadata, tensor_plans

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.safetensors import strict_header
from lora_inspect.files.safetensors.dtypes import BITS
from lora_inspect.files.safetensors.header import read_header
from lora_inspect.files.safetensors.writer import TensorPlan, encode_header


def entry(dtype='"F32"', shape="[2]", offsets="[0,8]", more=""):
    return f'{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{more}}}'


def one(*fields, **named):
    return f'{{"a":{entry(*fields, **named)}}}'


GOOD = entry()
PLAIN = f'{{"a":{GOOD}}}'


def about(metadata):
    return f'{{"__metadata__":{metadata},"a":{GOOD}}}'


def spare(value):
    return one(more=f',"x":{value}')


# name -> header, with 8 bytes of data after it; where it is a pair, the second says how many
REFUSED = {
    "UTF-16, little end first": PLAIN.encode("utf-16-le"),
    "UTF-16, big end first": PLAIN.encode("utf-16-be"),
    "UTF-16 with a mark": PLAIN.encode("utf-16"),
    "UTF-32": PLAIN.encode("utf-32-le"),
    "a mark of UTF-8": b"\xef\xbb\xbf" + PLAIN.encode(),
    "half a surrogate pair in UTF-8": b'{"\xed\xa0\x80":' + GOOD.encode() + b"}",
    "two bytes for a NUL": b'{"\xc0\x80":' + GOOD.encode() + b"}",
    "Latin-1": b'{"\xe9":' + GOOD.encode() + b"}",
    "half a character after it": PLAIN.encode() + b"\xc3",
    "nothing": "",
    "blanks": "   ",
    "a list": "[]",
    "null": "null",
    "a number": "1",
    "a string": '"a"',
    "NULs after it": PLAIN + "\0\0",
    "a letter after it": PLAIN + "x",
    "a second object after it": PLAIN + PLAIN,
    "a form feed after it": PLAIN + "\f",
    "a form feed in it": "{\f" + PLAIN[1:],
    "a space that is not ASCII": "{\u00a0" + PLAIN[1:],
    "a comma at the end": PLAIN[:-1] + ",}",
    "no end": PLAIN[:-1],
    "no comma": f'{{"a":{GOOD}"b":{GOOD}}}',
    "no colon": f'{{"a"{GOOD}}}',
    "no name": f"{{{GOOD}}}",
    "single quotes": PLAIN.replace('"', "'"),
    "a comment": "{/**/" + PLAIN[1:],
    "a line break in a name": f'{{"a\n":{GOOD}}}',
    "a tab in a name": f'{{"a\t":{GOOD}}}',
    "a NUL in a name": f'{{"a\0":{GOOD}}}',
    "an escape that is none": f'{{"\\x":{GOOD}}}',
    "an escape with a sign": f'{{"\\u+041":{GOOD}}}',
    "an escape of three digits": f'{{"\\u041":{GOOD}}}',
    "half a surrogate pair in a name": f'{{"\\ud800":{GOOD}}}',
    "a surrogate pair the wrong way round": f'{{"\\ude00\\ud83d":{GOOD}}}',
    "half a surrogate pair in a spare field": spare('"\\ud800"'),
    "half a surrogate pair in the name of a spare field": one(more=',"\\ud800":1'),
    "half a surrogate pair in the metadata": about('{"a":"\\ud800"}'),
    "the dtype twice": one(more=',"dtype":"F32"'),
    "the shape twice": one(more=',"shape":[2]'),
    "the offsets twice": one(more=',"data_offsets":[0,8]'),
    "the shape twice, once in escapes": one(more=',"sh\\u0061pe":[2]'),
    "a name twice, the first of them wrong": f'{{"a":{entry(chr(34) + "F99" + chr(34))},"a":{GOOD}}}',
    "a name twice, the second of them wrong": f'{{"a":{GOOD},"a":{entry(offsets="[8,16]")}}}',
    "the metadata twice": f'{{"__metadata__":{{"a":"b"}},{about("{}")[1:]}',
    "the metadata twice, at first null": f'{{"__metadata__":null,{about("{}")[1:]}',
    "a metadata key twice, the first of them wrong": about('{"a":1,"a":"b"}'),
    "metadata with a number": about('{"a":1}'),
    "metadata with null": about('{"a":null}'),
    "metadata with an object": about('{"a":{}}'),
    "metadata a list": about("[]"),
    "metadata of pairs": about('[["a","b"]]'),
    "metadata a string": about('"a"'),
    "metadata false": about("false"),
    "metadata a tensor": about(GOOD),
    "metadata that begin like null": about("nul"),
    "metadata longer than null": about("nulll"),
    "metadata with a comma at the end": about('{"a":"b",}'),
    "metadata without a colon": about('{"a" "b"}'),
    "metadata without an end": '{"__metadata__":{"a":"b"',
    "a tab in the metadata": about('{"a":"\t"}'),
    "no dtype": '{"a":{"shape":[2],"data_offsets":[0,8]}}',
    "no shape": ('{"a":{"dtype":"F32","data_offsets":[0,4]}}', 4),
    "no offsets": '{"a":{"dtype":"F32","shape":[2]}}',
    "no field": '{"a":{}}',
    "an entry that is null": '{"a":null}',
    "an entry that is a list": '{"a":[]}',
    "an entry that is a string": '{"a":"b"}',
    "an entry that is a number": '{"a":1}',
    "an unknown dtype": one('"F128"'),
    "a dtype in small letters": one('"f32"'),
    "a dtype that is null": one("null"),
    "a dtype that is a number": one("0"),
    "a dtype that is true": one("true"),
    "a dtype that is a list": one("[]"),
    "a dtype that is a list of one": one('["F32"]'),
    "a dtype that is an object": one("{}"),
    "a shape that is an empty string": (one(shape='""', offsets="[0,4]"), 4),
    "a shape that is a string": one(shape='"2"'),
    "a shape that is an empty object": (one(shape="{}", offsets="[0,4]"), 4),
    "a shape that is an object": one(shape='{"2":2}'),
    "a shape that is null": (one(shape="null", offsets="[0,4]"), 4),
    "a shape that is a number": one(shape="2"),
    "a shape that is false": (one(shape="false", offsets="[0,4]"), 4),
    "a shape in a shape": one(shape="[[2]]"),
    "a fraction in a shape": one(shape="[2.0]"),
    "an exponent in a shape": one(shape="[2e0]"),
    "a negative shape": one(shape="[-2]"),
    "two negative dimensions": one(shape="[-2,-1]"),
    "minus zero in a shape": (one(shape="[-0]", offsets="[0,0]"), 0),
    "a string in a shape": one(shape='["2"]'),
    "true in a shape": one(shape="[true,2]"),
    "null in a shape": one(shape="[null,2]"),
    "NaN in a shape": one(shape="[NaN]"),
    "a plus in a shape": one(shape="[+2]"),
    "a zero before a number": one(shape="[02]"),
    "a hexadecimal number": one(shape="[0x2]"),
    "a digit that is not ASCII": one(shape="[\u0662]"),
    "no number between commas": one(shape="[2,]"),
    "a dimension beyond 64 bits": (one(shape="[18446744073709551616,0]", offsets="[0,0]"), 0),
    "a shape that overflows before it is zero": (one(shape="[4611686018427387904,4611686018427387904,0]",
                                                     offsets="[0,0]"), 0),
    "a shape that just overflows before it is zero": (one(shape="[4294967296,4294967296,0]", offsets="[0,0]"), 0),
    "a size in bits that overflows": one('"F64"', shape="[288230376151711745]"),
    "one offset": one(offsets="[8]"),
    "three offsets": one(offsets="[0,8,8]"),
    "no offset": one(offsets="[]"),
    "offsets in a list": one(offsets="[[0,8]]"),
    "offsets that are an object": one(offsets='{"0":0,"8":8}'),
    "offsets that are a string": one(offsets='"08"'),
    "a fraction in the offsets": one(offsets="[0,8.0]"),
    "minus zero in the offsets": one(offsets="[-0,8]"),
    "a string in the offsets": one(offsets='["0",8]'),
    "false in the offsets": one(offsets="[false,8]"),
    "offsets the wrong way round": one(offsets="[8,0]"),
    "a negative offset": one(offsets="[-8,0]"),
    "half a byte": (one('"F4"', "[3]", "[0,2]"), 2),
    "a quarter of a byte": (one('"F6_E2M3"', "[3]", "[0,3]"), 3),
    "more bytes than the shape says": one(shape="[1]"),
    "less bytes than the shape says": one(shape="[3]"),
    "an overlap": (f'{{"a":{GOOD},"b":{entry(offsets="[4,12]")}}}', 12),
    "a range twice": f'{{"a":{GOOD},"b":{GOOD}}}',
    "a hole": (f'{{"a":{GOOD},"b":{entry(offsets="[12,20]")}}}', 20),
    "a hole at the start": (one(offsets="[4,12]"), 12),
    "an empty tensor within another": f'{{"a":{GOOD},"b":{entry(shape="[0]", offsets="[4,4]")}}}',
    "an empty tensor beyond the end": f'{{"a":{GOOD},"b":{entry(shape="[0]", offsets="[9,9]")}}}',
    "a byte too much": (PLAIN, 9),
    "a byte too little": (PLAIN, 7),
    "NaN": spare("NaN"),
    "infinity": spare("Infinity"),
    "infinity below zero": spare("-Infinity"),
    "NaN in a list": spare("[NaN]"),
    "a number beyond a double": spare("1e999"),
    "a negative number beyond a double": spare("-1e999"),
    "the first number beyond a double": spare("1.797693134862315807e308"),
    "a whole number beyond a double": spare("9" * 309),
    "a whole number of five thousand digits": spare("9" * 5000),
    "a number that begins with a point": spare(".5"),
    "a number that ends with a point": spare("5."),
    "Python's True": spare("True"),
    "lists 126 deep": spare("[" * 126 + "]" * 126),
    "objects 126 deep": spare('{"x":' * 126 + "1" + "}" * 126),
    "lists without an end": spare("[" * 100_000),
}  # fmt: skip

ACCEPTED = {
    "plain": PLAIN,
    "no tensor": ("{}", 0),
    "blanks before it": " \t\r\n" + PLAIN,
    "blanks after it": PLAIN + " \t\r\n",
    "blanks in it": re.sub(r"([\[\]{}:,])", " \\1\n", PLAIN),
    "a blank after each sign": json.dumps(json.loads(PLAIN)),
    "no name": f'{{"":{GOOD}}}',
    "a name in escapes": f'{{"\\u00e9\\ud83d\\ude00\\n\\/\\u0000":{GOOD}}}',
    "a name of all scripts": f'{{"é日本\U0001f3a8\x7f":{GOOD}}}',
    "a name like the metadata's": f'{{"__metadata":{GOOD}}}',
    "a brace in a name": f'{{"}}{{":{GOOD}}}',
    "an escaped quote in a name": f'{{"\\"a\\\\":{GOOD}}}',
    "metadata": about('{"a":"b"}'),
    "metadata in escapes": f'{{"__met\\u0061data__":{{"a":"b"}},"a":{GOOD}}}',
    "metadata null": about("null"),
    "metadata empty": about("{}"),
    "metadata at the end": f'{{"a":{GOOD},"__metadata__":{{"a":"b"}}}}',
    "a spare field": spare('[1,{"a":null},"}",true,-1.5e3]'),
    "a brace in a spare field": spare('"}"'),
    "an escape in a spare field": spare('"\\u00e9\\ud83d\\ude00"'),
    "a spare field first": f'{{"a":{{"x":1,{GOOD[1:]}}}',
    "lists 125 deep": spare("[" * 125 + "]" * 125),
    "a long spare field": spare('"' + "}" * 5_000 + '"'),
    "a number near the end of a double": spare("1e308"),
    "a number near zero": spare("1e-999"),
    "a zero with an exponent": spare("0e999"),
    "many digits": spare("0." + "9" * 400),
    "minus zero in a spare field": spare("-0"),
    "three thousand dimensions": one(shape="[" + "1," * 3_000 + "2]"),
    "a scalar": (one(shape="[]", offsets="[0,4]"), 4),
    "an empty tensor": (one(shape="[0,3]", offsets="[0,0]"), 0),
    "an empty tensor before another": f'{{"a":{GOOD},"b":{entry(shape="[0]", offsets="[0,0]")}}}',
    "an empty tensor after another": f'{{"a":{GOOD},"b":{entry(shape="[0]", offsets="[8,8]")}}}',
    "a large empty tensor": (one(shape="[0,4611686018427387904,4611686018427387904]", offsets="[0,0]"), 0),
    "an empty tensor that all but overflows": (one(shape="[4294967295,4294967295,0]", offsets="[0,0]"), 0),
    "tensors in another order": (f'{{"b":{entry(offsets="[8,16]")},"a":{GOOD}}}', 16),
    **{dtype: (one(f'"{dtype}"', "[8]", f"[0,{BITS[dtype]}]"), BITS[dtype]) for dtype in BITS},
}  # fmt: skip

_TWICE = "readers differ in which of the two they take"
_NO_WRITER = "no writer writes it, and readers in other languages refuse it"
_SIGNED = "torch, numpy and the system count with a sign"
# What the library accepts and is refused here, with the reason.
STRICTER = {
    "a name twice": (f'{{"a":{GOOD},"a":{GOOD}}}', _TWICE),
    "a name twice with two ranges": (f'{{"a":{entry(offsets="[8,16]")},"a":{GOOD}}}', _TWICE),
    "a metadata key twice": (about('{"a":"b","a":"c"}'), _TWICE),
    "a spare field twice": (one(more=',"x":1,"x":1'), _TWICE),
    "a spare field twice, deep in a field": (spare('[{"x":1,"x":1}]'), _TWICE),
    "an entry as a list": ('{"a":["F32",[2],[0,8]]}', _NO_WRITER),
    "a dtype as an object": (one('{"F32":null}'), _NO_WRITER),
    "data_offsets in escapes": (one().replace("data_offsets", "data_offset\\u0073"), _NO_WRITER),
    "a number within a hundredth of the end of a double": (spare("1.79e308"), "the library rounds some to infinity"),
    "a dimension of 64 bits": (one(shape="[0,18446744073709551615,2]", offsets="[0,0]").replace("8]", "0]"), _SIGNED),
}  # fmt: skip


def verdicts(path, header, data):
    """Whether the library reads such a file, and whether we do; what we say of one that is refused is one sentence."""
    header = header if isinstance(header, bytes) else header.encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(data))
    try:
        with safe_open(path, "np"):
            theirs = True
    except SafetensorError:
        theirs = False
    try:
        read_header(str(path))
    except LoraInspectError as refused:
        sentence = str(refused)
        assert sentence.startswith(f"{path}: ")
        assert sentence.endswith(".")
        assert len(sentence.splitlines()) == 1
        return theirs, False
    return theirs, True


def with_data(case):
    return case if isinstance(case, tuple) else (case, 8)


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_the_library_refuses_is_refused(case, tmp_path):
    assert verdicts(tmp_path / "a.safetensors", *with_data(case)) == (False, False)


@pytest.mark.parametrize("case", ACCEPTED.values(), ids=ACCEPTED)
def test_what_the_library_accepts_is_accepted(case, tmp_path):
    assert verdicts(tmp_path / "a.safetensors", *with_data(case)) == (True, True)


@pytest.mark.parametrize("header", [header for header, _ in STRICTER.values()], ids=STRICTER)
def test_what_is_refused_beyond_that_is_listed_with_its_reason(header, tmp_path):
    data = 0 if "[0,0]" in header else 8
    assert verdicts(tmp_path / "a.safetensors", header, data) == (True, False)


@settings(max_examples=400)
@given(plans=tensor_plans, about=metadata, data=st.data())
def test_a_changed_header_has_the_same_verdict(tmp_path_factory, plans, about, data):
    path = tmp_path_factory.mktemp("header") / "a.safetensors"
    header = encode_header(plans, about)[8:].decode()
    header = data.draw(damaged(header))
    theirs, ours = verdicts(path, header, sum(plan.nbytes for plan in plans))
    if theirs and not ours:
        with pytest.raises(LoraInspectError, match="twice, and programs read different ones"):
            read_header(str(path))
    else:
        assert ours == theirs


@pytest.mark.parametrize("size", range(256, 330, 5))
def test_a_header_is_read_alike_in_pieces_of_any_size(size, tmp_path, monkeypatch):
    plans = [TensorPlan(f"é{number}{'日' * (number % 5)}", "U8", (number % 3,)) for number in range(100)]
    for blank in ("", " ", "\n "):
        header = (
            encode_header(plans, {"a": "b" * 1_000, "c": "\\" * 301 + "\1" * 301 + "é"})[8:]
            .decode()
            .replace(",", "," + blank)
        )
        path = tmp_path / "a.safetensors"
        expected = verdicts(path, header, sum(plan.nbytes for plan in plans))
        assert expected == (True, True)
        whole = read_header(str(path))
        with monkeypatch.context() as patch:
            for bound in ("_PIECE_BYTES", "_KEY_CHARACTERS", "ENTRY_CHARACTERS"):
                patch.setattr(strict_header, bound, size)
            assert read_header(str(path)) == whole
