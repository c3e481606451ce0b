"""What only some systems have is named in one file; and what stands there in for it where it is missing."""

import ast
from pathlib import Path

import pytest
from platforms import ATTRIBUTES, CONSTANTS, MODULES, is_constant

from lora_inspect.files import system

ROOT = Path(__file__).parents[2]
THE_ONE_FILE = Path(system.__file__)
OTHERS = [
    path for package in ("lora_inspect", "networks") for path in sorted((ROOT / package).rglob("*.py"))
    if path != THE_ONE_FILE
]  # fmt: skip


PLACES = ("/proc/", "/sys/", "/dev/")


def only_some_have(module, name):
    return name in ATTRIBUTES.get(module, ()) or is_constant(module, name)


def is_telling(text):
    """Whether a string is the name of a module or of a constant, or lies where one system alone has files."""
    constants = text.startswith(("O_", "SIG")) and any(is_constant(module, text) for module in CONSTANTS)
    return text in MODULES or constants or text.startswith(PLACES)


def named(source):
    """What of it a file names, as it stands there."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module), level=0):
                if module.split(".")[0] in MODULES:
                    yield module
                yield from (f"{module}.{alias.name}" for alias in node.names if only_some_have(module, alias.name))
            case ast.Attribute(value=ast.Name(id=module), attr=name) if only_some_have(module, name):
                yield f"{module}.{name}"
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr"), args=[ast.Name(id=module), ast.Constant(str(name)), *_]
            ):
                if only_some_have(module, name) and not is_telling(name):
                    yield f"{module}.{name}"
            case ast.Constant(value=str(text)) if is_telling(text):
                yield text


def test_no_other_file_names_what_only_some_systems_have():
    found = {str(path.relative_to(ROOT)): list(named(path.read_text(encoding="utf-8"))) for path in OTHERS}
    assert len(found) > 400
    assert {path: names for path, names in found.items() if names} == {}


def test_the_one_file_names_it():
    assert {
        "fcntl", "msvcrt", "ctypes", "os.link", "os.copy_file_range", "sys.platform", "O_BINARY", "O_NONBLOCK",
        "O_NOFOLLOW", "SIGHUP", "SIGBREAK",
    } <= set(named(THE_ONE_FILE.read_text(encoding="utf-8")))  # fmt: skip


@pytest.mark.parametrize(
    "source",
    ["import fcntl", "from fcntl import flock", "import ctypes.util", "os.fork()", "from os import link",
     "signal.SIGKILL", "signal.SIGUSR1", "getattr(os, 'O_NOFOLLOW', 0)", "os.O_NONBLOCK", "if sys.platform == 'x': 1",
     "os.name", "open('/proc/self/status')", "os.getuid()", "importlib.import_module('resource')", "os.WNOHANG",
     "hasattr(os, 'sendfile')"],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(source):
    assert len(list(named(source))) == 1


@pytest.mark.parametrize(
    "source",
    ["import os, signal, sys, shutil, mmap", "signal.SIGTERM", "os.O_CREAT | os.O_RDWR", "os.replace(a, b)", "os.fsync",
     "module.link", "x.platform", "from .select import x", "'a name'", "'O'", "os.walk", "os.W_OK | os.F_OK",
     "getattr(os, name)"],
)  # fmt: skip
def test_the_search_lets_pass_what_every_system_has(source):
    assert list(named(source)) == []
