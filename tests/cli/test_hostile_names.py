"""Every verb on a terminal, with names and values that are made to take the terminal over or to forge its lines."""

import json
import re
import sys
import unicodedata

import pytest
from adapters import base, lora, loras

from lora_inspect.cli import terminal
from lora_inspect.cli.group import cli
from lora_inspect.sentences import width

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
if sys.platform != "win32":
    from pseudo_terminal import on_a_terminal

# Marks above marks, a title, a cleared screen, a line taken back, C1, DEL, marks of direction, what is drawn as
# nothing, and whatever any terminal or editor takes for the end of a line.
EVIL = (
    "é" + "\u0336" * 9 + "\x1b]0;owned\x07\x1b[2J\x9b2K\x7f\b\u202e\u2066\u200b\ufeff\U000e0041\u3164"
    "\u2028SPOOFED\u2029SPOOFED\x85SPOOFED\x0bSPOOFED\x0cSPOOFED\x1dSPOOFED\r\nSPOOFED\rSPOOFED\nSPOOFED\t"
)  # fmt: skip
# The same with bytes that are no UTF-8, one of which is C1; not every system takes such a name.
EVIL_FILE = EVIL + ("\udc9b2K\udcff" if sys.platform == "linux" else "")
# What click draws around a progress bar, and again before each new state of it; and our own below what is printed, each
# state of it, and the blanks that take it away.
BEFORE_BAR, AFTER_BAR = "\r\x1b[?25l", "\x1b[?25h\r\n"
BAR_BELOW = re.compile(r"\r(?:\w+ \[#*-*\] [0-9/%]+ *| +\r)")
LOOKS = (terminal.BOLD, terminal.FAINT, terminal.WRONG, terminal.DOUBTFUL, terminal.RIGHT)

WORDS = f"lora_unet_{EVIL}"
METADATA = {
    EVIL: EVIL,
    "ss_base_model_version": EVIL,
    "modelspec.architecture": EVIL,
    "ss_network_module": EVIL,
    "ss_init_lora_weights": f"pissa{EVIL}",
    "ss_network_args": json.dumps({"use_rslora": EVIL}),
    "ss_network_alpha": EVIL,
    "lora_inspect.scale": EVIL,
}
CONFIG = {
    "peft_type": EVIL, "bias": EVIL, "init_lora_weights": f"pissa{EVIL}", "r": 16, "lora_alpha": EVIL,
    "target_modules": [EVIL], "rank_pattern": {EVIL: EVIL}, "use_rslora": EVIL, "modules_to_save": [EVIL],
}  # fmt: skip


@pytest.fixture
def write(write_safetensors, tmp_path):
    """`write(tensors, metadata, name, config)`: the path of such a file in a folder with a hostile name."""

    def write_hostile(tensors, metadata=None, name="file.safetensors", config=None, header=None):
        path = write_safetensors(tensors, metadata, f"{EVIL_FILE}/{name}", header)
        if config is not None:
            (path.parent / "adapter_config.json").write_text(json.dumps(config))
        return path

    return write_hostile


def entry(**changes):
    return json.dumps({EVIL: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes}).encode()


def of_info(write, folder):
    adapter = write({**lora(WORDS), f"{EVIL}.stray": ("F32", (1,), 0), EVIL: ("F32", (1,), 0)}, METADATA)
    peft = write(lora(f"base_model.model.{EVIL}", spelling="peft"), METADATA, "peft/adapter_model.safetensors", CONFIG)
    both = adapter, write(loras(1), name=f"{EVIL_FILE}.safetensors")
    yield ["info", adapter]
    yield ["info", adapter, "--modules", "--metadata"]
    yield ["info", *both, "--json"]
    yield ["info", *both, "--jsonl"]
    yield ["info", adapter.parent, "--json"]
    yield ["info", adapter.parent, "--where", f"name={EVIL}"]
    yield ["info", adapter.parent, "--where", EVIL]
    yield ["info", f"{adapter}:alpha=3,rslora=yes"]
    yield ["info", peft.parent]
    yield ["info", write({}, {EVIL: EVIL}, "no-tensors.safetensors"), "--metadata"]
    yield ["info", write({"a": ("F32", (1,), 0)}, name="dtype.safetensors", header=entry(dtype=EVIL))]
    yield ["info", write({"a": ("F32", (1,), 0)}, name="shape.safetensors", header=entry(shape=[9]))]
    yield ["info", write({"a": ("F32", (1,), 0)}, name="hole.safetensors", header=entry(data_offsets=[4, 8]))]
    index = {"weight_map": {EVIL: f"{EVIL_FILE}.safetensors"}}
    (adapter.parent / f"{EVIL_FILE}.safetensors.index.json").write_text(json.dumps(index))
    yield ["info", adapter.parent / f"{EVIL_FILE}.safetensors.index.json"]
    yield ["info", folder / f"missing{EVIL_FILE}"]
    yield ["info", f"{adapter}:{EVIL}"]
    yield ["info", f"{adapter}:0.5"]
    yield ["info", adapter, f"--{EVIL}"]


def of_merge(write, folder):
    weights = {**base(), f"{EVIL}.weight": ("F32", (6, 5), 1), "stays": ("F32", (3,), 1)}
    whole = write(weights, name="base/model.safetensors").parent
    (whole / f"{EVIL_FILE}.bin").write_bytes(b"")
    (whole / f"{EVIL_FILE}.json").write_bytes(b"{}")
    adapter = write({**loras(), **lora(WORDS)}, name=f"{EVIL_FILE}.safetensors")
    more = write({**loras(), **lora(f"lora_unet_other{EVIL}"), **lora(f"lora_te1_{EVIL}"), EVIL: ("F32", (1,), 0)})
    strange = write(lora(f"lora_unet_strange_{EVIL}"), name="strange.safetensors")
    output = folder / f"out{EVIL_FILE}"
    yield ["merge", whole, adapter, "-o", output, "--dry-run"]
    yield ["merge", whole, adapter, "-o", output, "--dry-run", "--json"]
    yield ["merge", whole, f"{adapter}:0.5,*SPOOFED*=2", "-o", output]
    yield ["merge", whole, adapter, "-o", output]  # it exists
    yield ["merge", whole, more, "-o", output, "--force"]
    yield ["merge", whole, more, "-o", output, "--force", "--allow-unmatched"]
    yield ["merge", whole, strange, "-o", output, "--force"]
    yield ["merge", whole, adapter, "-o", output, "--force", "--only", EVIL]
    yield ["merge", whole, adapter, "-o", output, "--force", "--include", EVIL]
    yield ["merge", whole, adapter, "-o", output, "--force", "--exclude", "*SPOOFED*"]
    table = folder / f"{EVIL_FILE}.toml"
    table.write_text(f"[{json.dumps(EVIL)}]", encoding="utf-8")
    yield ["merge", whole, adapter, "-o", output, "--force", "--weights", table]
    yield ["merge", whole, adapter, "-o", output, "--force", "--weights", EVIL]
    yield ["merge", whole, adapter, adapter, "-o", output, "--force"]
    yield ["merge", whole, f"{adapter}:*nothing{EVIL.strip()}*=2", "-o", output, "--force"]
    yield ["merge", folder / EVIL_FILE / "no-base", adapter, "-o", output]
    yield ["merge", adapter, adapter, "-o", output]
    yield ["merge", whole, adapter, "-o", folder / f"no{EVIL_FILE}" / "out"]
    yield ["merge", whole, adapter, "-o", output, "--transposed", EVIL]
    yield ["merge", whole, adapter, "-o", output, "--dtype", EVIL]
    yield ["merge", whole, adapter, "-o", output, "--alpha", EVIL]
    yield ["merge", whole, adapter, "-o", output, f"--{EVIL}"]


def of_unmerge(write, folder):
    weights = {**base(), f"{EVIL}.weight": ("F32", (6, 5), 1), "stays": ("F32", (3,), 1)}
    adapter = write({**loras(), **lora(WORDS)}, name=f"{EVIL_FILE}.safetensors")
    output = folder / f"out{EVIL_FILE}"
    told = {"file": EVIL, "multiplier": {EVIL: 1}, "sha256": {EVIL: EVIL}, "settings": EVIL}
    record = {"version": EVIL, "base": {"file": EVIL}, "adapters": [told], "options": {}}
    for number, options in enumerate(({}, {EVIL: EVIL}, {"transposed": [EVIL]})):
        metadata = {"lora_inspect.merged": json.dumps({**record, "options": options})}
        merged = write(weights, metadata, name=f"merged{number}.safetensors")
        yield ["unmerge", merged, adapter, "-o", output]
        yield ["info", merged]
        yield ["metadata", "show", merged]


def of_verify(write, folder):
    adapter = write(lora(WORDS), METADATA, name=f"{EVIL_FILE}.safetensors")
    weights = {f"{WORDS}.weight": ("F32", (6, 5), 1), f"{EVIL}.weight": ("F32", (6, 5), 1)}
    whole = write(weights, name="base.safetensors")
    other = write({f"{WORDS}.weight": ("F32", (6, 5), 2), EVIL: ("F32", (1,), 0)}, name="other.safetensors")
    yield ["verify", whole, whole, adapter]
    yield ["verify", other, whole, adapter]
    yield ["verify", other, whole, adapter, "--json"]
    yield ["verify", write({EVIL: ("F32", (6, 5), 1)}, name="none.safetensors"), whole, adapter]
    yield ["verify", adapter, whole, adapter]
    yield ["verify", whole, adapter, adapter]
    yield ["verify", folder / f"no{EVIL_FILE}", whole, adapter]
    yield ["verify", whole, whole, f"{adapter}:*nothing{EVIL.strip()}*=2"]
    yield ["verify", whole, whole, adapter, "--only", EVIL]


def of_convert(write, folder):
    stray = {EVIL: ("F32", (1,), 0), f"{WORDS}.use_rslora_flag": ("BOOL", (), 1)}
    rslora = write({**lora(WORDS), **stray}, name=f"{EVIL_FILE}.safetensors")
    magnitude = {"dora_scale": ("F32", (6, 1), 1.0)}
    dora = write(lora(WORDS, **magnitude), name=f"dora{EVIL_FILE}.safetensors")
    weights = write({f"{EVIL}.weight": ("F32", (6, 5), 1)}, name="base.safetensors")
    other = write(base(), name="other.safetensors")
    output = folder / f"out{EVIL_FILE}.safetensors"
    yield ["convert", rslora, "-o", output]
    yield ["convert", rslora, "-o", output]  # it exists
    yield ["convert", rslora, "-o", output, "--force", "--json"]
    yield ["convert", dora, "-o", output, "--force"]
    yield ["convert", dora, "-o", output, "--force", "--keep-dora"]
    yield ["convert", dora, "-o", output, "--force", "--drop-magnitude"]
    yield ["convert", dora, "-o", output, "--force", "--base", weights, "--rank", "1"]
    yield ["convert", dora, "-o", output, "--force", "--base", weights, "--rank", "1", "--allow-loss"]
    yield ["convert", dora, "-o", output, "--force", "--base", other, "--rank", "1"]
    yield ["convert", dora, "-o", output, "--force", "--base", folder / f"no{EVIL_FILE}", "--rank", "1"]
    yield ["convert", rslora, "-o", output, "--force", "--alpha", "3"]
    yield ["convert", rslora, "-o", f"{output}/"]
    yield ["convert", f"{rslora}:0.5", "-o", output]
    yield ["convert", rslora, EVIL, "-o", output]


def of_compat(write, folder):
    stray = {EVIL: ("F32", (1,), 0), f"{WORDS}.use_rslora_flag": ("BOOL", (), 1)}
    adapter = write({**lora(WORDS), **stray}, METADATA, name=f"{EVIL_FILE}.safetensors")
    yield ["compat", adapter]
    yield ["compat", adapter, "--json"]
    yield ["compat", adapter, "--for", "comfyui"]
    yield ["compat", adapter, "--for", EVIL]
    yield ["compat", f"{adapter}:0.5"]
    yield ["compat", write(base(), name="other.safetensors")]


def of_check(write, folder):
    stray = {EVIL: ("F32", (1,), float("nan")), f"{WORDS}.use_rslora_flag": ("BOOL", (), 1)}
    adapter = write({**lora(WORDS), **stray}, METADATA, name=f"{EVIL_FILE}.safetensors")
    yield ["check", adapter]
    yield ["check", adapter, "--tensors"]
    yield ["check", adapter, "--format", "sarif"]
    yield ["check", adapter, "--fix", "-o", folder / f"out{EVIL_FILE}.safetensors"]
    yield ["check", adapter, "--format", EVIL]
    yield ["check", adapter.parent]
    yield ["check", folder / f"missing{EVIL_FILE}"]


def of_metadata(write, folder):
    adapter = write(lora(WORDS), METADATA, name=f"{EVIL_FILE}.safetensors")
    other = write(lora(WORDS), {}, name=f"other{EVIL_FILE}.safetensors")
    yield ["metadata", "show", adapter]
    yield ["metadata", "show", adapter, "--json"]
    # A value that is there is printed in the lines that it has.
    yield ["metadata", "get", adapter, f"missing{EVIL}"]
    yield ["metadata", "unset", adapter, f"missing{EVIL}"]
    yield ["metadata", "set", adapter, EVIL]
    yield ["metadata", "copy", other, "--from", adapter]
    yield ["metadata", EVIL, adapter]


def of_sums(verb, rule):
    """The commands of a verb that makes an adapter of others."""

    def commands(write, folder):
        stray = {EVIL: ("F32", (1,), 0)}
        one = write({**lora(WORDS), **stray}, METADATA, name=f"{EVIL_FILE}.safetensors")
        other = write(lora(WORDS), METADATA, name=f"other{EVIL_FILE}.safetensors")
        output = folder / f"out{EVIL_FILE}.safetensors"
        inputs = [one] if verb == "resize" else [one, other]
        yield [verb, *inputs, *rule, "-o", output]
        yield [verb, *inputs, *rule, "-o", output]  # it exists
        yield [verb, *inputs, *rule, "-o", output, "--force", "--json"]
        yield [verb, *inputs, *rule, "-o", output, "--force", "--dry-run"]
        yield [verb, *inputs, *rule, "-o", output, "--force", "--dtype", EVIL]
        yield [verb, *inputs, *rule, "-o", output, "--force", "--to", EVIL]
        yield [verb, *inputs, *rule, "-o", output, "--force", "--base", folder / f"no{EVIL_FILE}"]
        yield [verb, *inputs[1:], f"{one}:*nothing{EVIL.strip()}*=2", *rule, "-o", output, "--force"]
        yield [verb, *inputs[1:], folder / f"no{EVIL_FILE}", *rule, "-o", output, "--force"]
        yield ["info", output]

    return commands


def of_extract(write, folder):
    weights = {f"{WORDS}.weight": ("F32", (6, 5), 1), f"{EVIL}.weight": ("F32", (6, 5), 1), "stays": ("F32", (3,), 1)}
    whole = write(weights, name=f"{EVIL_FILE}.safetensors")
    tuned = {name: (dtype, shape, 2) for name, (dtype, shape, _) in weights.items()}
    other = write(tuned, name=f"tuned{EVIL_FILE}.safetensors")
    output = folder / f"out{EVIL_FILE}"
    yield ["extract", other, whole, "--rank", "1", "-o", output]
    yield ["extract", other, whole, "--rank", "1", "-o", output, "--json"]
    yield ["extract", other, whole, "--rank", "1", "--dry-run", "--json"]
    yield ["extract", other, whole, "--rank", "1", "-o", output, "--to", EVIL]
    yield ["extract", other, whole, "--rank", "1", "-o", output, "--only", EVIL]
    yield ["extract", other, whole, "--rank", "1", "-o", output, "--include", EVIL]
    yield ["extract", whole, whole, "--rank", "1", "-o", output]
    yield ["extract", folder / f"no{EVIL_FILE}", whole, "--rank", "1", "-o", output]


def of_compare(write, folder):
    one = write(lora(WORDS), METADATA, name=f"{EVIL_FILE}.safetensors")
    other = write(lora(WORDS), METADATA, name=f"other{EVIL_FILE}.safetensors")
    yield ["compare", one, other]
    yield ["compare", one, other, "--json"]
    yield ["compare", one, other, one]
    yield ["compare", one, write(base(), name=f"base{EVIL_FILE}.safetensors")]
    yield ["compare", one, folder / f"no{EVIL_FILE}"]
    yield ["compare", one, other, "--max-difference", EVIL]


def of_report(write, folder):
    one = write(lora(WORDS), METADATA, name=f"{EVIL_FILE}.safetensors")
    other = write(lora(WORDS), METADATA, name=f"other{EVIL_FILE}.safetensors")
    output = folder / f"out{EVIL_FILE}.html"
    yield ["report", one, "-o", output]
    yield ["report", one, "-o", output]  # it exists
    yield ["report", one, other, "-o", output, "--force"]
    yield ["report", one, "-o", output, "--force", "--json"]
    yield ["report", one, "-o", output, "--force", "--base", write(base(), name=f"base{EVIL_FILE}.safetensors")]
    yield ["report", one, "-o", output, "--force", "--base", folder / f"no{EVIL_FILE}"]
    yield ["report", folder / f"no{EVIL_FILE}", "-o", output, "--force"]


# A verb without an entry here fails.
COMMANDS = {
    "info": of_info, "merge": of_merge, "unmerge": of_unmerge, "verify": of_verify, "convert": of_convert,
    "compat": of_compat, "check": of_check, "metadata": of_metadata, "combine": of_sums("combine", []),
    "resize": of_sums("resize", ["--rank", "1"]), "average": of_sums("average", []), "extract": of_extract,
    "compare": of_compare, "report": of_report,
}  # fmt: skip


def without_looks(output):
    """What reaches the terminal without our own colours, in the very bytes that they have."""
    for look in (*LOOKS, "0"):
        output = output.replace(f"\x1b[{look}m".encode(), b"")
    return output


def lines_of(output):
    """The lines on the terminal, each state of a progress bar as one; every end of a line is one of ours."""
    text = without_looks(output).decode("utf-8").replace(BEFORE_BAR, "\r\n").replace(AFTER_BAR, "\r\n")
    return BAR_BELOW.sub("", text).split("\r\n")


def assert_harmless(output):
    for line in lines_of(output):
        obeyed = [f"U+{ord(c):04X}" for c in line if unicodedata.category(c)[0] in "CZ" and c != " "]
        assert obeyed == [], line
        assert "\u3164" not in line
        assert not re.search("\u0336{5}", line)
        assert not line.startswith("SPOOFED")


@pytest.mark.parametrize("verb", cli.list_commands(None))
@pytest.mark.slow
def test_no_name_and_no_value_reaches_the_terminal_as_more_than_letters(verb, write, tmp_path):
    commands = list(COMMANDS[verb](write, tmp_path))
    for words, (status, output) in zip(commands, on_a_terminal(commands, tmp_path), strict=True):
        assert status in (0, 1, 2, 3), output
        assert b"Traceback" not in output
        assert b"SPOOFED" in output, words
        assert_harmless(output)


@pytest.mark.parametrize("verb", cli.list_commands(None))
def test_help_beside_hostile_arguments_is_harmless(verb, tmp_path):
    commands = [[verb, EVIL, "--help"], [verb, f"--{EVIL}"], [EVIL], [f"--{EVIL}"], [verb, f"-{EVIL}"]]
    for _, output in on_a_terminal(commands, tmp_path):
        assert_harmless(output)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252"])
def test_no_byte_of_another_encoding_is_obeyed_either(encoding, write, tmp_path):
    adapter = write({**lora(WORDS + "日本ж\u203a"), EVIL: ("F32", (1,), 0)}, METADATA)
    commands = [
        ["info", adapter, "--modules", "--metadata"],
        ["info", f"{adapter}ж\u203a"],
        ["info", f"--ж\u203a{EVIL}"],
    ]
    for status, output in on_a_terminal(commands, tmp_path, PYTHONIOENCODING=encoding):
        assert status in (0, 1, 2, 3)
        assert b"\\u65e5" in output or b"\\u0436" in output
        lines = without_looks(output).split(b"\r\n")
        assert not any(byte < 0x20 or byte == 0x7F for line in lines for byte in line)
        if encoding != "cp1252":  # which has letters there
            assert not any(0x80 <= byte < 0xA0 for line in lines for byte in line)


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_a_table_has_a_line_for_each_file_whatever_they_are_called(columns, write, tmp_path):
    names = [f"{EVIL_FILE}{number}.safetensors" for number in range(3)]
    files = [write(loras(1), {EVIL: EVIL}, name) for name in names]
    ((_, output),) = on_a_terminal([["info", *files]], tmp_path, COLUMNS=str(columns))
    # A bar that was drawn on a slow machine is taken away before the next row.
    headers, *rows, totals, end = [line.rpartition("\r")[2] for line in lines_of(output)]
    assert headers.split()[:2] == ["name", "model"]
    assert [f"{number}  " in row for number, row in enumerate(rows)] == [True] * 3
    assert totals.startswith("3 adapters: 3 fine by their headers; ")
    assert end == ""
    assert all(width(row) <= columns for row in rows)
