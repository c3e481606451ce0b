"""Errors: what they say, what they are of Python's own kinds, and what a copy of one keeps."""

import copy
import errno
import pickle

import pytest

from lora_inspect import errors
from lora_inspect.errors import (
    AmbiguousError,
    CouldNotWorkError,
    DamagedError,
    DiskRefused,
    LoraInspectError,
    NeedsLibraryError,
    NeedsTorchError,
    NotFoundError,
    RefusedError,
    WouldOverwriteError,
)

# Each kind with what Python calls it, its code and the status of a command that it ends.
KINDS = {
    RefusedError: (ValueError, "refused", 1),
    DamagedError: (ValueError, "damaged", 1),
    AmbiguousError: (ValueError, "ambiguous", 1),
    WouldOverwriteError: (FileExistsError, "would-overwrite", 1),
    NotFoundError: (FileNotFoundError, "not-found", 3),
    CouldNotWorkError: (OSError, "could-not-work", 3),
    NeedsLibraryError: (ImportError, "needs-library", 3),
    NeedsTorchError: (ImportError, "needs-torch", 3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_one_of_pythons_and_has_a_code_and_a_status(kind):
    builtin, code, status = KINDS[kind]
    error = kind("a.safetensors", "it is bad", "mend it")
    assert isinstance(error, LoraInspectError)
    assert isinstance(error, builtin)
    assert (error.code, error.status) == (code, status)
    assert errors.with_code(code) is kind is errors.kind_of(error)


def test_every_kind_is_listed_here():
    known = {one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, LoraInspectError)}
    assert known == {*KINDS, LoraInspectError, DiskRefused}


@pytest.mark.parametrize("kind", [LoraInspectError, DiskRefused, *KINDS])
@pytest.mark.parametrize(
    ("said", "text", "parts"),
    [
        (("a", "it is bad", "mend it"), "a: it is bad; mend it.", ("a", "it is bad", "mend it")),
        (("a", "it is bad"), "a: it is bad.", ("a", "it is bad", "")),
        (("nothing is there.",), "nothing is there.", ("", "nothing is there.", "")),
    ],
)
def test_a_copy_says_the_same(kind, said, text, parts):
    error = kind(*said)
    for one in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(one) is kind
        assert str(one) == text
        assert (one.path, one.problem, one.fix) == parts


def test_what_the_system_refuses_has_the_names_that_python_has_for_it():
    missing = NotFoundError("a", "there is no such file", "check the path")
    assert (missing.errno, missing.filename, missing.strerror) == (errno.ENOENT, "a", "there is no such file")
    assert WouldOverwriteError("a", "it exists").errno == errno.EEXIST
    refused = DiskRefused("a", "it cannot be written", "free space", "no space")
    assert pickle.loads(pickle.dumps(refused)).reason == "no space"


@pytest.mark.parametrize(
    ("raised", "kind", "text"),
    [
        (FileNotFoundError(errno.ENOENT, "Gone", "a"), NotFoundError, "a: Gone; check the path and its rights."),
        (PermissionError(errno.EACCES, "Denied"), CouldNotWorkError, "Denied; check the path and its rights."),
        (OSError(errno.EIO, "Bad", b"a"), CouldNotWorkError, "a: Bad; check the disk, or fetch the file again."),
    ],
)
def test_an_error_of_the_system_becomes_one_of_ours(raised, kind, text):
    made = errors.of_system(raised)
    assert type(made) is kind
    assert str(made) == text


def test_another_name_for_a_file_takes_the_place_of_the_first_everywhere():
    error = DamagedError("out.partial", "out.partial/a is bad", "remove out.partial")
    error.replace("out.partial", "out")
    assert str(error) == "out: out/a is bad; remove out."
    assert error.path == "out"


def test_the_last_semicolon_of_a_text_begins_the_way_out():
    assert RefusedError.of("a", "it is bad; or worse; mend it").fix == "mend it"
    assert str(RefusedError.of("a", "it is bad")) == "a: it is bad."


def test_an_error_of_a_store_is_copied_and_says_more():
    from lora_inspect.stores.s3 import StoreRefused

    error = StoreRefused("s3://bucket/out", "AccessDenied", "write it")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # what this test has written itself
    assert type(error.saying("more.")) is StoreRefused
    assert str(error.saying("more.")) == "more."
