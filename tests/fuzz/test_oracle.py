"""Each promise that is broken on purpose is noticed, by its kind and no other."""

import copy
import os
import pickle
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz import headers, hostile, networks_target, oracle, watch
from fuzz.case import NETWORKS, Case
from fuzz.contents import Files, Pipe
from fuzz.oracle import LIMITS, MEGABYTE, Limits, examine
from fuzz.seeds import seed
from lora_inspect.cli import terminal
from lora_inspect.errors import LoraInspectError
from lora_inspect.ops import convert as converting
from lora_inspect.ops import metadata
from lora_inspect.ops import metadata as metadata_op
from lora_inspect.reading import file_info

INFO = ("info", "a.safetensors")
CONVERT = ("convert", "a.safetensors", "-o", "out.safetensors")
held = []


def fails():
    raise KeyError("lora_A")


def hangs():
    while True:
        pass


def waits():
    os.close(os.open("pipe", os.O_RDONLY))


def grows():
    held.append(b"x" * (150 * MEGABYTE))


def asks_for_too_much():
    bytearray(1 << 40)


def leaks():
    held.append(open("a.safetensors", "rb"))  # noqa: SIM115


def exits_otherwise():
    sys.exit(3)


def says_nothing():
    sys.exit(1)


def says_it_twice():
    terminal.error("a.safetensors: it is bad.")
    raise LoraInspectError("a.safetensors: it is bad.")


def says_more():
    terminal.line("a")
    terminal.aside("what is no error")
    raise LoraInspectError("a.safetensors: it is bad.")


def shows_a_traceback():
    sys.stderr.write("Traceback (most recent call last):\n")


def prints_an_escape():
    sys.stdout.write("\x1b[31m")


def prints_no_json():
    print('{"scale": NaN}')
    sys.exit(0)


def opens_outside():
    Path("/etc/hostname").read_text()


def opens_what_lies_beside():
    Path("../outside/secret.txt").read_text()


def writes():
    Path("a.safetensors.partial").write_text("")


def writes_outside():
    Path("../outside/x").write_text("")


def removes():
    os.remove("base.safetensors")


def renames():
    os.replace("base.safetensors", "a.safetensors")


def makes_a_folder():
    os.mkdir("x")


def starts():
    subprocess.run(["true"])


def starts_a_shell():
    os.system("true")


def connects():
    socket.create_connection(("127.0.0.1", 9))


def unpickles():
    pickle.loads(pickle.dumps(hostile.Runs()))


def evaluates():
    eval("1 + 1")


def imports():
    sys.path.insert(0, os.getcwd())
    try:
        import beside  # noqa: F401
    finally:
        sys.path.pop(0)


def forks():
    os.fork()


def calls_the_library():
    import ctypes

    ctypes.CDLL(None).getpid()


PLANTED = {
    fails: "traceback", hangs: "hang", waits: "hang", grows: "growth",
    asks_for_too_much: "growth", leaks: "descriptor", exits_otherwise: "exit",
    says_nothing: "exit", says_it_twice: "exit", says_more: "exit", shows_a_traceback: "traceback",
    prints_an_escape: "printed", prints_no_json: "printed", opens_outside: "audit", opens_what_lies_beside: "audit",
    writes: "audit", writes_outside: "audit", removes: "audit", renames: "audit", makes_a_folder: "audit",
    starts: "audit", starts_a_shell: "audit", connects: "audit", unpickles: "audit", evaluates: "audit",
    imports: "audit", forks: "audit", calls_the_library: "audit",
}  # fmt: skip


def case(*command, **more):
    return Case(seed("kohya").contents | {"beside.py": b"", "pipe": Pipe()} | more, command)


def kinds(planted_case, limits=LIMITS):
    found = examine(planted_case, limits).violations
    return {violation.kind for violation in found}


@pytest.fixture(autouse=True)
def _prepared():
    oracle.prepare()


@pytest.mark.parametrize("defect", PLANTED, ids=lambda defect: defect.__name__)
def test_a_defect_is_noticed(monkeypatch, defect):
    inspect = file_info.inspect
    monkeypatch.setattr(file_info, "inspect", lambda *arguments: defect() or inspect(*arguments))
    arguments = ("--json",) if defect is prints_no_json else ()
    try:
        limits = Limits(cpu_seconds=0.3, wall_seconds=1.0) if PLANTED[defect] == "hang" else LIMITS
        assert kinds(case(*INFO, *arguments), limits) == {PLANTED[defect]}
    finally:
        while held:
            if not isinstance(kept := held.pop(), bytes):
                kept.close()


def test_without_a_defect_there_is_nothing():
    for command in (INFO, CONVERT, (*CONVERT, "--json"), (*INFO, "--json"), ("info", "missing"), ("info",)):
        assert kinds(case(*command)) == set()
    assert kinds(case("merge", "base.safetensors", "a.safetensors:0.5", "-o", "out.safetensors")) == set()
    assert kinds(case("merge", "shards", "a.safetensors", "-o", "merged")) == set()


def test_folders_of_the_checkout_are_no_part_of_the_path(monkeypatch, tmp_path):
    monkeypatch.setattr(watch, "_CHECKOUT", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "other"), *sys.path])
    (tmp_path / "other").mkdir()
    # The versions of installed packages are looked up along the path.
    assert kinds(Case(seed("peft, in its folder").contents, ("compat", "peft"))) == set()


def native(change):
    """A defect below what the audit hook sees: the convert that does `change` in its output's folder."""

    def planted(monkeypatch):
        convert = converting.convert_planned

        def convert_and_change(*arguments):
            result = convert(*arguments)
            unwatched(monkeypatch, lambda: change(Path(CONVERT[-1])))
            return result

        monkeypatch.setattr(converting, "convert_planned", convert_and_change)

    return planted


def unwatched(monkeypatch, change):
    watching, watch._watching = watch._watching, None
    try:
        change()
    finally:
        watch._watching = watching


def refuse():
    raise LoraInspectError("a.safetensors: it is bad.")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda out: out.write_bytes(b"no safetensors"), "output"),
        (lambda out: out.write_bytes((2).to_bytes(8, "little") + b"{}" + bytes(9)), "output"),
        (lambda out: out.unlink(), "output"),
        (lambda out: out.write_bytes(hostile.SECRET), "output"),
        (lambda out: Path(f"{out}.0123456789abcdef.partial").touch(), "leftover"),
        (lambda out: Path("olddir/x").touch(), "leftover"),
        (lambda out: refuse(), "leftover"),
        (lambda out: Path("old.safetensors").write_bytes(b""), "input"),
        (lambda out: Path("a.safetensors").touch(), "input"),
        (lambda out: Path("base.safetensors").unlink(), "input"),
        (lambda out: Path("pipe").chmod(0o600), "input"),
    ],
)
def test_a_wrong_file_is_noticed(monkeypatch, change, kind):
    native(change)(monkeypatch)
    assert kinds(case(*CONVERT)) == {kind}


SET = ("metadata", "set", "a.safetensors", "title=x")


def editing(monkeypatch, change):
    """A defect of an edit: `change` follows it, below what the audit hook sees."""
    edit = metadata.edit

    def edit_and_change(*arguments):
        edited = edit(*arguments)
        unwatched(monkeypatch, change)
        return edited

    monkeypatch.setattr(metadata, "edit", edit_and_change)


def spoil(place):
    """Changes a byte of the edited file."""
    path = Path("a.safetensors")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("where", [(), ("--in-place",)])
@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda: None, None),
        (lambda: spoil(-1), "input"),
        (lambda: spoil(0), "input"),
        (lambda: Path("a.safetensors").chmod(0o600), "input"),
        (lambda: Path("a.safetensors.header-journal").touch(), "leftover"),
        (lambda: Path("base.safetensors").touch(), "input"),
        (lambda: Path("a.safetensors").unlink(), "input"),
        (lambda: refuse(), "input"),
    ],
)
def test_a_wrong_edit_is_noticed(monkeypatch, change, kind, where):
    editing(monkeypatch, change)
    contents = seed("kohya").contents
    files = Files({"a.safetensors": contents["a.safetensors"]})
    headers.give_room(files)
    assert kinds(case(*SET, *where, **files.contents)) == ({kind} if kind else set())


def test_a_copy_with_other_tensors_is_noticed(monkeypatch):
    command = (*SET, "-o", "out.safetensors")
    assert kinds(case(*command)) == set()
    editing(monkeypatch, lambda: shutil.copy("base.safetensors", "out.safetensors"))
    assert kinds(case(*command)) == {"output"}


def test_a_file_may_be_changed_where_it_stands_only_if_that_was_asked_for(monkeypatch):
    def write(*arguments):
        os.close(os.open("a.safetensors", os.O_RDWR))

    monkeypatch.setattr(metadata, "edit", write)
    assert kinds(case(*SET)) == {"audit"}
    monkeypatch.setattr(metadata, "edit", lambda *arguments: os.remove("a.safetensors"))
    assert kinds(case(*SET, "--in-place")) == {"audit"}
    monkeypatch.setattr(metadata, "edit", lambda *arguments: Path("base.safetensors.header-journal").touch())
    assert kinds(case(*SET, "--in-place")) == {"audit"}


def test_a_wrong_value_is_noticed(monkeypatch):
    files = Files({"a.safetensors": copy.deepcopy(seed("kohya").contents["a.safetensors"])})
    headers.give_words(files)
    command = ("metadata", "get", "a.safetensors", "title")
    assert kinds(case(*command, **files.contents)) == set()
    monkeypatch.setattr(metadata_op, "get", lambda path, key: "Chalk")
    assert kinds(case(*command, **files.contents)) == {"printed"}


@pytest.mark.parametrize("number", range(8))
def test_a_header_that_is_not_put_right_is_noticed(monkeypatch, number):
    files = Files({"a.safetensors": seed("kohya").contents["a.safetensors"]})
    headers.tear(random.Random(number), files)
    command = ("metadata", "show", "a.safetensors")
    assert kinds(case(*command, **files.contents)) == set()
    told = metadata_op.show

    def show_and_change(*arguments):
        found = told(*arguments)
        unwatched(monkeypatch, lambda: spoil(-1))
        return found

    monkeypatch.setattr(metadata_op, "show", show_and_change)
    assert kinds(case(*command, **files.contents)) == {"input"}


def test_an_output_of_a_dry_run_is_noticed(monkeypatch):
    from lora_inspect.ops import merge as merge_op

    planned = merge_op.check_merge_output

    def write(plan, output, force):
        planned(plan, output, force)
        unwatched(monkeypatch, Path(output).touch)

    monkeypatch.setattr(merge_op, "check_merge_output", write)
    dry = ("merge", "base.safetensors", "a.safetensors", "-o", "out.safetensors", "--dry-run")
    assert kinds(case(*dry)) == {"leftover"}


def test_what_a_network_must_not_raise_is_noticed(monkeypatch):
    import networks.lora

    def broken(*arguments, **options):
        raise IndexError

    command = (NETWORKS, "lora", "a.safetensors")
    assert kinds(case(*command)) == set()
    monkeypatch.setattr(networks.lora, "create_network_from_weights", broken)
    assert kinds(case(*command)) == {"traceback"}
    assert set(networks_target.MODULES) == {"lora", "loha", "lokr", "lora_wan"}
