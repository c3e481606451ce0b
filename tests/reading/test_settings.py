"""What hangs on a path: when the last colon counts, and what a setting is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import settings as any_settings

from lora_inspect.errors import LoraInspectError
from lora_inspect.reading.model.settings import (
    Settings,
    parse_argument,
    parse_arguments,
    parse_settings,
    spell_settings,
)

ARGUMENTS = {
    "a.safetensors": ("a.safetensors", Settings()),
    "a.safetensors:0.5": ("a.safetensors", Settings(multiplier=0.5)),
    "a.safetensors:-2": ("a.safetensors", Settings(multiplier=-2.0)),
    "a.safetensors:+.5": ("a.safetensors", Settings(multiplier=0.5)),
    "a:b:1e-1": ("a:b", Settings(multiplier=0.1)),
    "a:alpha=4,rslora=yes": ("a", Settings(alpha=4.0, rslora=True)),
    "a:residual=yes": ("a", Settings(residual=True)),
    "a:0.5,architecture=wan": ("a", Settings(multiplier=0.5, architecture="wan")),
    "a:architecture=hunyuan_video_1_5": ("a", Settings(architecture="hunyuan_video_1_5")),
    "a:architecture=": ("a:architecture=", Settings()),
    "a:architecture=FLUX.1": ("a:architecture=FLUX.1", Settings()),
    "a:architecture=wan,architecture=flux": ("a:architecture=wan,architecture=flux", Settings()),
    "a:1,residual=no": ("a", Settings(multiplier=1.0, residual=False)),
    "a:residual=0.5": ("a:residual=0.5", Settings()),
    "a:0.8,text_encoder=0,*attn*=0.5,rslora=no": (
        "a", Settings(multiplier=0.8, part_multipliers=(("text_encoder", 0.0), ("*attn*", 0.5)), rslora=False)),
    "a:*.[0-9].q=1,?=2": ("a", Settings(part_multipliers=(("*.[0-9].q", 1.0), ("?", 2.0)))),
    "a.safetensors:1_0": ("a.safetensors:1_0", Settings()),
    "a.safetensors: 1": ("a.safetensors: 1", Settings()),
    "a.safetensors:٣": ("a.safetensors:٣", Settings()),
    "a.safetensors:nan": ("a.safetensors:nan", Settings()),
    "a.safetensors:inf": ("a.safetensors:inf", Settings()),
    "a.safetensors:1e999": ("a.safetensors:1e999", Settings()),
    "a.safetensors:": ("a.safetensors:", Settings()),
    "a:0.5,": ("a:0.5,", Settings()),
    "a:0.5,0.6": ("a:0.5,0.6", Settings()),
    "a:q=1,q=2": ("a:q=1,q=2", Settings()),
    "a:=1": ("a:=1", Settings()),
    "a:rslora=1": ("a:rslora=1", Settings()),
    "a:rslora=maybe": ("a:rslora=maybe", Settings()),
    "a:alpha=no": ("a:alpha=no", Settings()),
    ":0.5": (":0.5", Settings()),
    r"C:\a.safetensors": (r"C:\a.safetensors", Settings()),
    r"C:\a.safetensors:0.5": (r"C:\a.safetensors", Settings(multiplier=0.5)),
    "https://host/a.safetensors": ("https://host/a.safetensors", Settings()),
    "https://host:8080/a": ("https://host:8080/a", Settings()),
    "https://host:8080/a:0.5": ("https://host:8080/a", Settings(multiplier=0.5)),
    "https://host:8080": ("https://host:8080", Settings()),
    "https://me:secret@host/a?b=1:0.5,alpha=4": ("https://host/a", Settings(multiplier=0.5, alpha=4.0)),
    "s3://bucket/a:b:0.5": ("s3://bucket/a:b", Settings(multiplier=0.5)),
    "hf://owner/name@main:unet=0.5": ("hf://owner/name@main", Settings(part_multipliers=(("unet", 0.5),))),
}  # fmt: skip


@pytest.mark.parametrize(("argument", "expected"), ARGUMENTS.items())
def test_the_last_colon_counts_where_all_that_follows_is_settings(argument, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_argument(argument) == expected


def test_an_existing_path_with_a_colon_is_that_path(tmp_path):
    path = tmp_path / "style:0.5"
    path.touch()
    assert parse_argument(str(path)) == (str(path), Settings())
    assert parse_argument(f"{path}:2") == (str(path), Settings(multiplier=2.0))
    (tmp_path / "folder:rslora=yes").mkdir()
    assert parse_argument(str(tmp_path / "folder:rslora=yes"))[1] == Settings()


# what stands behind a file, and what behind one colon is told instead
SEVERAL_COLONS = {
    ":0.5:rslora=yes": "0.5,rslora=yes",
    ":alpha=8:rslora=yes": "alpha=8,rslora=yes",
    ":0.5:q=1:rslora=yes": "0.5,q=1,rslora=yes",
    "::0.5": "0.5",
    ":0.5:": "0.5",
}


@pytest.mark.parametrize(("tail", "settings"), SEVERAL_COLONS.items())
def test_settings_behind_several_colons_are_shown_behind_one(tail, settings, tmp_path):
    file = tmp_path / "a.safetensors"
    file.touch()
    with pytest.raises(LoraInspectError, match="after one colon") as refusal:
        parse_argument(f"{file}{tail}")
    assert str(refusal.value).endswith(f": {file}:{settings}.")
    assert parse_argument(f"{file}:{settings}")[0] == str(file)


# what stands behind a file, and what may have been meant
DECIMAL_COMMAS = {
    "alpha=0,5": ["alpha=0.5", "5,alpha=0"],
    "text_encoder=0,5": ["text_encoder=0.5", "5,text_encoder=0"],
    "*attn*=-1,25": ["*attn*=-1.25", "25,*attn*=-1"],
    "alpha=16,0": ["alpha=16.0", "0,alpha=16"],
    "q=1,5e-3": ["q=1.5e-3", "5e-3,q=1"],
    "rslora=no,q=0,5,alpha=4": ["rslora=no,q=0.5,alpha=4", "5,rslora=no,q=0,alpha=4"],
    "0.8,text_encoder=0,5": ["0.8,text_encoder=0.5"],
    "0,8,text_encoder=0,5": ["0.8,text_encoder=0.5"],
    "0,5,alpha=4": ["0.5,alpha=4"],
}


@pytest.mark.parametrize(("tail", "forms"), DECIMAL_COMMAS.items())
def test_a_comma_that_may_stand_for_a_point_is_refused_with_both_forms(tail, forms, tmp_path):
    file = tmp_path / "a.safetensors"
    file.touch()
    with pytest.raises(LoraInspectError, match="may be a decimal point") as refusal:
        parse_argument(f"{file}:{tail}")
    assert str(refusal.value).endswith(f"; write {' or '.join(f'{file}:{form}' for form in forms)}.")
    for form in forms:
        assert parse_argument(f"{file}:{form}")[0] == str(file)


@pytest.mark.parametrize(
    "text", ["alpha=16,0.5", "alpha=0.5,5", "alpha=1e1,5", "alpha=4,-1", "rslora=no,5", "q=1,alpha=5"]
)
def test_a_comma_that_cannot_stand_for_a_point_parts_settings(text):
    assert parse_settings(text) == parse_settings(",".join(reversed(text.split(","))))


@pytest.mark.parametrize("tail", ["half", "0.5,0.6", "rslora=true", "alpha=", "0.5;alpha=4"])
def test_what_follows_a_file_that_exists_and_is_no_setting_is_named(tail, tmp_path):
    path = tmp_path / "a.safetensors"
    path.touch()
    with pytest.raises(LoraInspectError, match=r"write a setting as a number \(the multiplier\), COMPONENT=number"):
        parse_argument(f"{path}:{tail}")


# How somebody may write a multiplier for FILE, which exists, and what each is told to write.
MISWRITTEN = {
    "FILE:0,5": "FILE:0.5",
    "FILE:,5": "FILE:0.5",
    "FILE:-1,25": "FILE:-1.25",
    "FILE: 0.5": "FILE:0.5",
    "FILE:0.5 ": "FILE:0.5",
    "FILE:0.5x": "FILE:0.5",
    "FILE:x2": "FILE:2",
    "FILE:50%": "FILE:0.5",
    "FILE 0.5": "FILE:0.5",
    "FILE  0,5": "FILE:0.5",
    "FILE=0.5": "FILE:0.5",
    "FILE = 0.5": "FILE:0.5",
    "FILE@0.5": "FILE:0.5",
    "FILE*0.5": "FILE:0.5",
}


@pytest.mark.parametrize(("argument", "form"), MISWRITTEN.items())
def test_a_multiplier_in_another_form_is_shown_in_its_own(argument, form, tmp_path):
    file = tmp_path / "a.safetensors"
    file.touch()
    argument, form = (text.replace("FILE", str(file)) for text in (argument, form))
    with pytest.raises(LoraInspectError) as refusal:
        parse_argument(argument)
    assert str(refusal.value).startswith(f"{argument}: there is no such file, and ")
    assert str(refusal.value).endswith(f"; write {form}.")
    assert parse_argument(form)[1].multiplier is not None


def test_a_word_behind_a_multiplier_is_called_no_setting():
    with pytest.raises(ValueError, match="'b' is not a setting"):
        parse_settings("0.5,b")


@pytest.mark.parametrize("tail", [":abc", ":", ":0.5,", ":0.5,0.6", ":nan", ":0.5:abc", ":abc:0.5", ":0.5:0.6", "::"])
def test_what_is_no_multiplier_at_all_is_answered_with_an_example(tail, tmp_path):
    file = tmp_path / "a.safetensors"
    file.touch()
    with pytest.raises(LoraInspectError, match=r"is not a setting|repeats another") as refusal:
        parse_argument(f"{file}{tail}")
    assert str(refusal.value).endswith(f", such as {file}:0.5.")


@pytest.mark.parametrize("argument", MISWRITTEN)
def test_a_path_that_looks_like_one_with_a_multiplier_is_that_path(argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    (tmp_path / argument).touch()
    assert parse_arguments([argument]) == [(argument, Settings())]


@pytest.mark.parametrize("argument", [*MISWRITTEN, "FILE 2.safetensors", "FILE=x", "FILE @", "FILE " + "1" * 100_000])
def test_without_the_file_it_is_a_path_that_is_missing(argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_argument(argument) == (argument, Settings())


# arguments of which one is a number alone, and what is written instead
ALONE = {
    "behind its adapter": (["FILE", "0.5"], "FILE:0.5"),
    "with a comma": (["FILE", "0,5"], "FILE:0.5"),
    "with its colon": (["FILE", ":0.5"], "FILE:0.5"),
    "behind settings": (["FILE:rslora=no", "2"], "FILE:2,rslora=no"),
    "behind the second": (["other", "FILE", "-1"], "FILE:-1"),
    "before any": (["0.5", "FILE"], "ADAPTER:0.5"),
}


@pytest.mark.parametrize(("arguments", "form"), ALONE.values(), ids=ALONE)
def test_a_number_beside_its_path_is_shown_behind_it(arguments, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    with pytest.raises(LoraInspectError, match="a multiplier belongs at the end of a path") as refusal:
        parse_arguments(arguments)
    assert str(refusal.value).endswith(f"; write {form}.")


def test_a_file_called_as_a_number_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0.5").touch()
    assert parse_arguments(["a", "0.5"]) == [("a", Settings()), ("0.5", Settings())]


@given(any_settings)
def test_settings_read_back_as_they_were_spelled(settings):
    spelled = spell_settings(settings)
    if settings == Settings():
        assert spelled == ""
        return
    assert parse_settings(spelled) == settings
    assert parse_argument(f"/no such folder/a:b.safetensors:{spelled}") == ("/no such folder/a:b.safetensors", settings)


@given(st.text(max_size=30))
def test_any_text_is_settings_or_no_settings(text):
    try:
        found = parse_settings(text)
    except ValueError:
        return
    assert found != Settings()
    assert parse_settings(spell_settings(found)) == found


def test_the_multipliers_are_told_with_the_one_of_all_other_modules():
    assert parse_settings("alpha=4").multipliers() == 1.0
    assert parse_settings("0.5").multipliers() == 0.5
    assert parse_settings("text_encoder=0").multipliers() == {"*": 1.0, "text_encoder": 0.0}
    assert parse_settings("0.5,*attn*=2").multipliers() == {"*": 0.5, "*attn*": 2.0}


@pytest.mark.parametrize("text", ["blocks.9-0=1", "blocks.0-9999=1", "*.5-4.*=1"])
def test_a_range_that_is_none_is_said_at_once(text, tmp_path):
    file = tmp_path / "a.safetensors"
    file.touch()
    with pytest.raises(LoraInspectError, match=r"the range .* (ends before it begins; write|has more than)"):
        parse_argument(f"{file}:{text}")
