"""The short way through a plain header finds what the strict way finds, and leaves to that whatever has a fault."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import damaged, metadata, names

from lora_inspect.caching import Remembered
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.safetensors import header as header_module
from lora_inspect.files.safetensors import header as plain_header
from lora_inspect.files.safetensors.header import LONGEST, read_header, read_plain
from lora_inspect.files.safetensors.writer import TensorPlan
from lora_inspect.files.strict_json import KEY_BYTES

SPELLINGS = {"without blanks": (",", ":"), "with blanks": (", ", ": ")}

plans = st.lists(
    st.builds(
        lambda name, dtype, shape: TensorPlan(name, dtype, tuple(shape)),
        names,
        st.sampled_from(["F32", "BF16", "U8", "F8_E4M3"]),
        st.lists(st.integers(1, 12), max_size=3),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda plan: plan.name,
)


def spelled(plans, about, separators, order=None):
    """The header of these tensors, the entries in another order than the tensors where one is given."""
    entries, position = {}, 0
    for plan in plans:
        offsets = [position, position + plan.nbytes]
        entries[plan.name] = {"dtype": plan.dtype, "shape": list(plan.shape), "data_offsets": offsets}
        position += plan.nbytes
    placed = [entries.items(), *([] if order is None else [order(entries.items())])][-1]
    whole = {} if about is None else {"__metadata__": about}
    return json.dumps({**whole, **dict(placed)}, separators=separators, ensure_ascii=False), position


def write(path, header, data):
    content = header.encode("utf-8", "surrogatepass")
    path.write_bytes(len(content).to_bytes(8, "little") + content + bytes(data))
    return content


def strictly(path):
    """What the strict way finds, None where it refuses the header."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(header_module, "LONGEST", -1)
        try:
            return read_header(str(path))
        except LoraInspectError:
            return None


def shortly(path):
    """What the short way finds, None where it leaves the header to the strict one."""

    def refused(source, length):
        raise LoraInspectError("it is left")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(header_module, "_read_text", refused)
        try:
            return read_header(str(path))
        except LoraInspectError:
            return None


def in_order(found):
    return found and (list(found[0].items()), list(found[1].items()))


@given(plans=plans, about=st.none() | metadata, separators=st.sampled_from(sorted(SPELLINGS.values())), data=st.data())
def test_a_plain_header_is_read_alike_on_both_ways(tmp_path_factory, plans, about, separators, data):
    path = tmp_path_factory.mktemp("header") / "a.safetensors"
    header, size = spelled(plans, about, separators, lambda items: data.draw(st.permutations(list(items))))
    write(path, header + " " * data.draw(st.integers(0, 9)), size)
    found = shortly(path)
    if any("\\" in json.dumps(plan.name, ensure_ascii=False) for plan in plans):
        assert found is None
    else:
        assert found is not None
        assert in_order(found) == in_order(strictly(path))


@settings(max_examples=500)
@given(plans=plans, about=st.none() | metadata, separators=st.sampled_from(sorted(SPELLINGS.values())), data=st.data())
def test_a_damaged_header_is_read_alike_or_left_to_the_strict_way(tmp_path_factory, plans, about, separators, data):
    path = tmp_path_factory.mktemp("header") / "a.safetensors"
    header, size = spelled(plans, about, separators)
    header = data.draw(damaged(header))
    write(path, header, size)
    found = shortly(path)
    assert found is None or in_order(found) == in_order(strictly(path))


GOOD = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
OTHER = GOOD.replace('"a"', '"b"').replace("0,8", "8,16")
LEFT = {
    "twice the same name": "{" + GOOD + "," + GOOD.replace("0,8", "8,16") + "}",
    "the metadata behind": "{" + GOOD + ',"__metadata__":{}}',
    "the metadata among the tensors": "{" + GOOD.replace('"a"', '"__metadata__"') + "}",
    "metadata that is null": '{"__metadata__":null,' + GOOD + "}",
    "metadata with a number": '{"__metadata__":{"a":1},' + GOOD + "}",
    "metadata twice": '{"__metadata__":{},"__metadata__":{},' + GOOD + "}",
    "a metadata name twice": '{"__metadata__":{"a":"","a":""},' + GOOD + "}",
    "half a pair in the metadata": '{"__metadata__":{"a":"\\ud800"},' + GOOD + "}",
    "halves of a pair in two texts": '{"__metadata__":{"a\\ud83d":"\\ude00"},' + GOOD + "}",
    "an escape in a name": "{" + GOOD.replace('"a"', '"\\u0061"') + "}",
    "a NUL in a name": "{" + GOOD.replace('"a"', '"\0"') + "}",
    "a long name": "{" + GOOD.replace('"a"', f'"{"a" * (KEY_BYTES + 1)}"') + "}",
    "a long name of metadata": f'{{"__metadata__":{{"{"a" * (KEY_BYTES + 1)}":""}},{GOOD}}}',
    "an unknown type": "{" + GOOD.replace("F32", "F31") + "}",
    "another shape": "{" + GOOD.replace("[2]", "[3]") + "}",
    "a zero before a number": "{" + GOOD.replace("[2]", "[02]") + "}",
    "a zero before an offset": "{" + GOOD.replace("0,8", "00,8") + "}",
    "a minus": "{" + GOOD.replace("0,8", "-0,8") + "}",
    "a fraction": "{" + GOOD.replace("[2]", "[2.0]") + "}",
    "a hole": "{" + GOOD.replace("0,8", "1,9") + "}",
    "more than the file has": "{" + GOOD.replace("[2]", "[4]").replace("0,8", "0,16") + "}",
    "less than the file has": "{" + GOOD.replace("[2]", "[1]").replace("0,8", "0,4") + "}",
    "no size": "{" + GOOD.replace("[2]", "[0]").replace("0,8", "0,0") + "}",
    "one member more": "{" + GOOD[:-1] + ',"x":1}}',
    "another order": '{"a":{"shape":[2],"dtype":"F32","data_offsets":[0,8]}}',
    "a comma behind": "{" + GOOD + ",}",
    "a comma before": "{," + GOOD + "}",
    "no comma": "{" + GOOD + OTHER + "}",
    "something between": "{" + GOOD + ",x," + OTHER + "}",
    "something behind": "{" + GOOD + "}x",
    "nothing behind": "{" + GOOD,
    "no object": "[" + GOOD + "}",
    "two kinds of blanks": "{" + GOOD.replace(",", ",\n") + "}",
    "deep metadata": '{"__metadata__":' + "[" * 5_000 + "}",
}


@pytest.mark.parametrize("header", LEFT.values(), ids=LEFT)
def test_what_is_not_plain_is_left_to_the_strict_way(header, tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, header, 8 * max(1, header.count('"dtype"')))
    assert shortly(path) is None


@pytest.mark.parametrize("ranges", ["[0,8] [0,8]", "[0,8] [4,12]", "[0,8] [16,24]", "[8,16] [16,24]"])
def test_ranges_that_are_not_one_behind_the_other_are_left_to_the_strict_way(ranges):
    first, second = ranges.split()
    header = f"{{{GOOD.replace('[0,8]', first)},{GOOD.replace('[0,8]', second).replace('a', 'b', 1)}}}"
    assert header.count("[2]") == 2
    end = int(second.strip("[]").split(",")[1])
    assert read_plain(header.encode(), end) is None


def test_text_that_is_not_unicode_is_left_to_the_strict_way():
    header = "{" + GOOD + "}"
    assert read_plain(header.encode(), 8) is not None
    assert read_plain(header.replace("a", "é").encode("latin-1"), 8) is None
    assert read_plain(header.replace('"a"', '"\ud800"').encode("utf-8", "surrogatepass"), 8) is None


def test_a_long_header_is_read_in_pieces(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, ("{" + GOOD + "}").ljust(LONGEST + 1), 8)
    assert shortly(path) is None
    assert list(read_header(str(path))[0]) == ["a"]


def test_a_header_like_an_earlier_one_is_held_to_its_own_file(tmp_path):
    entries = GOOD + "}"
    first, other = tmp_path / "first.safetensors", tmp_path / "other.safetensors"
    write(first, "{" + entries, 8)
    write(other, '{"__metadata__":{"x":"y"},' + entries, 8)
    for path in (first, other):
        assert in_order(shortly(path)) == in_order(strictly(path))
        assert [info.file for info in read_header(str(path))[0].values()] == [str(path)]
    for size in (7, 9):
        write(other, "{" + entries, size)
        assert shortly(other) is None


def test_headers_that_were_read_last_are_remembered_and_long_ones_are_not(monkeypatch):
    monkeypatch.setattr(plain_header, "_tables", Remembered(2))
    header = "{" + GOOD + "}"
    known = read_plain(header.encode(), 8)
    assert read_plain(header.encode(), 8)[0] is known[0]
    monkeypatch.setattr(plain_header, "_LONGEST_REMEMBERED", len(GOOD))
    monkeypatch.setattr(plain_header, "_tables", Remembered(2))
    assert read_plain(header.encode(), 8) == known
    assert len(plain_header._tables) == 0
