"""Multipliers from TOML: what the tables mean, and the line that is said of what is wrong."""

import pytest

from lora_inspect.errors import LoraInspectError
from lora_inspect.reading.model.settings import Settings, parse_settings
from lora_inspect.reading.weights_toml import read_weights

WHOLE = """\
# strengths of a portrait
["style.safetensors"]
multiplier = 0.8

["style.safetensors".components]
text_encoder = 0.5

["style.safetensors".blocks]
double_blocks.0-9 = 0.3
"single_blocks.7" = -1
IN04 = 1e-1

["style.safetensors".globs]
"*attn*" = 1.2

[face]
multiplier = 2
"""
STYLE = "0.8,text_encoder=0.5,double_blocks.0-9=0.3,single_blocks.7=-1,IN04=0.1,*attn*=1.2"


@pytest.fixture
def read(tmp_path):
    def read_text(text):
        file = tmp_path / "weights.toml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_weights(str(file))

    return read_text


def test_a_table_says_what_could_hang_on_the_path(read):
    joined = read(WHOLE).joined([("folder/style.safetensors", Settings()), ("face.safetensors", Settings())])
    assert joined == [
        ("folder/style.safetensors", parse_settings(STYLE)),
        ("face.safetensors", parse_settings("2")),
    ]


@pytest.mark.parametrize(
    "text", [b"\xef\xbb\xbf[a]\r\nmultiplier = 2\r\n", "a = {multiplier = 2}", "a.multiplier = 2", "", "# nothing"]
)
def test_it_is_any_toml(text, read):
    expected = Settings(multiplier=2.0) if b"2" in (text if isinstance(text, bytes) else text.encode()) else Settings()
    assert read(text).joined([("a", Settings())]) == [("a", expected)]


def test_settings_of_the_path_come_first_and_both_may_say_the_same(read):
    weights = read("[a]\nmultiplier = 2\n[a.blocks]\nb.1 = 0.5\nb.2 = 0.25")
    own = parse_settings("2,*=1,b.2=0.25,rslora=yes")
    assert weights.joined([("a", own)]) == [("a", parse_settings("2,*=1,b.2=0.25,b.1=0.5,rslora=yes"))]


# what is wrong, and what is said of it
WRONG = {
    "[a": "it is not valid TOML: .*line 1",
    "[a]\nmultiplier = ": "it is not valid TOML: .*line 2",
    "[a]\nmultiplier = 1\nmultiplier = 2": "it is not valid TOML: .*line 3",
    "[a]\n\nmultiplier = '1'": 'line 3: the value of "multiplier" is not a number',
    "[a]\nmultiplier = true": 'line 2: the value of "multiplier" is not a number',
    "[a]\nmultiplier = nan": "line 2: .* is not a number",
    "[a]\nmultiplier = inf": "line 2: .* is not a number",
    "[a]\nmultiplier = 1e999": "line 2: .* is not a number",
    f"[a]\nmultiplier = 1{'0' * 400}": "line 2: .* is not a number",
    "[a]\nmultiplier = [\n1,\n2\n]": "line 5: .* is not a number",
    "[a]\nmultiplier = 1979-05-27": "line 2: .* is not a number",
    "[a]\nstrength = 1": 'line 2: "strength" is not one of multiplier, components, blocks and globs',
    "[a]\nblocks = 1": r'line 2: blocks must be a table; write \["a".blocks\]',
    "a = 1": 'line 1: "a" is not in the table of an adapter',
    "\n\nmultiplier = 1\n[a]": 'line 3: "multiplier" is not in the table of an adapter',
    "[style.safetensors]\nmultiplier = 1": r'line 1: a name with a point needs quotes; write \["style.safetensors"\]',
    "[style.safetensors.blocks]\nb.1 = 1": r'line 1: a name with a point needs quotes; write \["style.safetensors"\]',
    '[a.blocks]\nb.1 = 1\n"*" = 1': r'line 3: "\*" is a glob; write it below globs',
    '[a.components]\n"b.1" = 1': 'line 2: "b.1" is not a component; write it below blocks or globs',
    '[a.globs]\nx = 1\n"b/c" = 1': 'line 3: "b/c" is not a module name',
    '[a.globs]\n"" = 1': 'line 2: "" is not a module name',
    '[a.globs]\n"*\\u0000" = 1': "line 2: a module name cannot have zero bytes",
    "[a.blocks]\n" + "b." * 60 + "b = 'x'": 'line 2: the value of "b" is not a number',
    "[a.blocks]\n" + "b." * 30_000 + "b = 1": "line 2 holds a name of more than 64 parts",
    "[a.blocks]\nb.1 = 1\nalpha = 2": 'line 3: "alpha" is not a module name',
    "[a.blocks]\nb.9-0 = 1": "line 2: the range 9-0 ends before it begins; write 0-9",
    "[a.blocks]\nIN09-IN00 = 1": "line 2: the range IN09-IN00 ends before it begins; write IN00-IN09",
    "[a]\n\n[a.blocks]\n" + "b." * 70 + "b = 1": "line 4 holds a name of more than 64 parts",
    '["a".' + '"b" . ' * 70 + "c]": "line 1 holds a name of more than 64 parts",
    "[a.blocks]\nb.1 = 1\n[a.globs]\nc = 1\n'b.1' = 2": 'line 5: "b.1" appears twice',
    "[a.blocks]\nb.1 = 1\n'b.1' = 2": 'line 3: "b.1" appears twice',
    "[a.blocks]\nb.1 = 'x'": 'line 2: the value of "1" is not a number',
    "[a]\n[b]\nmultiplier = 1": r'line 2: \["b"\] names none of the adapters; choose from a.safetensors and other',
    "[a]\n['a.safetensor']": r'line 2: \["a.safetensor"\] names none of the adapters; try a.safetensors',
    "[a]\n['a.safetensors']": r'line 2: \["a.safetensors"\] names folder/a.safetensors, which already has a table',
    b"[a]\n# \xff": "line 2 is not UTF-8",
    "[a]\nx = " + "[" * 10_000: "it is not valid TOML",
    "[a]\nx = " + "{b = " * 5_000: "it is not valid TOML",
    "[a]\n\0 = 1": "it is not valid TOML: .*line 2",
    "[a]\nx = " + "1" * 60_000: "line 2|it is not valid TOML",
    "#" * (1 << 16) + "\n[a]": "it has 65,540 bytes, but lora-inspect reads at most 65,536",
}


@pytest.mark.parametrize(("text", "says"), WRONG.items(), ids=range(len(WRONG)))
def test_what_is_wrong_is_said_with_its_line(text, says, read, tmp_path):
    with pytest.raises(LoraInspectError, match=says) as refusal:
        read(text).joined([("folder/a.safetensors", Settings()), ("other.safetensors", Settings())])
    assert str(refusal.value).startswith(f"{tmp_path / 'weights.toml'}: ")
    assert str(refusal.value).endswith(".")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ("1", "line 2: the path of a says 1 instead"),
        ("b.1=1", "line 1: the path of a says b.1=1 instead"),
    ],
)
def test_a_path_that_says_something_else_is_an_error(own, says, read):
    with pytest.raises(LoraInspectError, match=says):
        read("[a]\nmultiplier = 2\n[a.blocks]\nb.1 = 2").joined([("a", parse_settings(own))])


def test_a_name_of_two_adapters_is_an_error_and_their_paths_are_not(read):
    adapters = [("x/a.safetensors", Settings()), ("y/a.safetensors", Settings())]
    with pytest.raises(
        LoraInspectError, match=r"names x/a.safetensors and y/a.safetensors; write the path of one of them"
    ):
        read("[a]\nmultiplier = 2").joined(adapters)
    paths = read('["y/a.safetensors"]\nmultiplier = 2').joined(adapters)
    assert [own.multiplier for _, own in paths] == [None, 2.0]


def test_the_line_of_a_value_in_a_long_file_is_found_fast(read):
    lines = [f"b.{number} = 1" for number in range(3000)]
    lines[2_000] = "b.2000 = 'x'"
    with pytest.raises(LoraInspectError, match="line 2002:"):
        read("[a.blocks]\n" + "\n".join(lines))


def test_what_is_no_file_is_a_sentence(tmp_path):
    for path in (tmp_path, tmp_path / "none.toml"):
        with pytest.raises(LoraInspectError, match=str(path)):
            read_weights(str(path))
