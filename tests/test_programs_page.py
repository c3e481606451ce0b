"""The page of programs tells what `compat` says: of toy programs, and with a place for each that there is."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "docs"))

import write_programs  # noqa: E402
from program_files.folders import FOLDERS  # noqa: E402
from program_files.judged import Judged, shown  # noqa: E402
from program_files.kinds import KINDS  # noqa: E402
from program_files.spellings import SPELLINGS, spelled  # noqa: E402
from program_files.written import layers, named  # noqa: E402

from lora_inspect import architectures, schemes  # noqa: E402
from lora_inspect.programs import PROGRAMS  # noqa: E402
from lora_inspect.programs.record import (  # noqa: E402
    BASE_NORM,
    COMPUTES,
    LEAVES,
    READ,
    WARNS,
    Loader,
    Program,
    Rule,
    Strangers,
    intended_scale,
)
from lora_inspect.programs.verdict import (  # noqa: E402
    LOST,
    NOTHING,
    OTHER,
    PARTLY,
    REFUSED,
    SAME,
    STRENGTH,
    UNTESTED,
    VERDICTS,
    WRONG,
    Verdict,
)

FAMILIES = {family.name: family for family in architectures.every()}
TOY = Program(
    name="toy",
    title="Toy",
    version="7",
    loaders=(
        Loader(
            families=("wan", "flux"),
            rules=(
                Rule(prefixes=("lora_unet_",), alpha=False, says="KeyError: 'KEY.alpha'"),
                Rule(
                    prefixes=("lora_unet_",),
                    kinds={"lora": COMPUTES, "loha": LEAVES},
                    magnitudes={".dora_scale output": BASE_NORM, ".dora_layer.weight output": LEAVES},
                ),
                Rule(prefixes=("diffusion_model.",), dialects=("peft",)),
                Rule(families=("flux",), prefixes=("transformer.",), kinds={"lora": COMPUTES}, by=READ),
            ),
            strangers=Strangers(WARNS, "not loaded"),
        ),
        Loader(
            families=("llm",), rules=(Rule(kinds={"lora": COMPUTES}, scale=intended_scale),), strangers=Strangers(WARNS)
        ),
    ),
    schemes={"": "kohya"},
)


@pytest.fixture
def judged(tmp_path):
    return Judged(tmp_path, [TOY], [FAMILIES["wan"], FAMILIES["flux"], FAMILIES["sdxl"]])


def test_names_are_judged_with_and_without_alpha(judged):
    titles = [spelling.title for spelling in SPELLINGS]
    names = {family: dict(zip(titles, row, strict=True)) for family, row in judged.names(TOY).items()}
    assert list(names) == ["wan", "flux"]
    assert names["wan"]["kohya"] == names["wan"]["musubi"] == "=/ref"
    assert names["wan"]["comfyui A/B"] == "none!"
    assert names["wan"]["comfyui"] == names["wan"]["lycoris"] == names["wan"]["peft"] == "?"
    assert (names["wan"]["diffusers"], names["flux"]["diffusers"]) == ("?", "=°")
    assert (names["wan"]["onetrainer"], names["flux"]["onetrainer"]) == ("", "?")


def test_kinds_are_judged_in_the_programs_own_names(judged):
    kinds = {
        family: dict(zip((one.title for one in KINDS), row, strict=True)) for family, row in judged.kinds(TOY).items()
    }
    assert list(kinds) == ["wan", "flux"]
    assert kinds["wan"]["LoRA"] == "="
    # Rank 4.
    assert kinds["wan"]["RS-LoRA by `use_rslora_flag`"] == kinds["wan"]["RS-LoRA by metadata"] == "x0.5"
    assert kinds["wan"]["DoRA `dora_scale` (out, 1)"] == "norm"
    assert kinds["wan"]["that written for the base's norms"] == "="
    assert kinds["wan"]["DoRA `dora_scale` (1, in)"] == "?"
    assert kinds["wan"]["DoRA `dora_layer.weight`"] == "lost!"
    assert (kinds["wan"]["LoHa"], kinds["wan"]["OFT `oft_blocks`"]) == ("none!", "?")
    assert (kinds["wan"]["LoRA with one of a CLIP"], kinds["flux"]["LoRA with one of a CLIP"]) == ("", "?")


def test_folders_are_judged(judged):
    folders = dict(zip(FOLDERS, judged.folders(TOY), strict=True))
    assert folders["plain LoRA"] == folders["`use_rslora`"] == folders["`alpha_pattern`"] == "="
    assert folders["`lora_bias`"] == "?"


def test_every_file_is_counted_once(judged):
    assert judged.counts(TOY).total() == 0
    judged.names(TOY)
    files = {
        (family, tuple(file.tensors))
        for family in ("wan", "flux")
        for spelling in SPELLINGS
        for alpha in (True, False)
        if (file := spelled(spelling, FAMILIES[family], alpha))
    }
    counts = judged.counts(TOY)
    assert counts.total() == len(files)
    # Of each family kohya's names, which are musubi-tuner's, and ComfyUI's A/B over two layouts; diffusers' of FLUX.
    assert counts[False] == 2 * (1 + 2) + 2 * (1 + 2 + 2)
    judged.names(TOY)
    assert judged.counts(TOY) == counts


def test_what_it_says_has_no_keys(judged):
    judged.names(TOY)
    assert judged.says["toy"] == {"KeyError: 'KEY.alpha'"}


@pytest.mark.parametrize(
    ("verdict", "cell"),
    [
        (Verdict(TOY, SAME), "="),
        (Verdict(TOY, SAME, says="with an option"), "=+"),
        (Verdict(TOY, SAME, by=READ), "=°"),
        (Verdict(TOY, STRENGTH, 0.5, {0.5: 3}, silent=True), "x0.5"),
        (Verdict(TOY, STRENGTH, 1.0, {1.0: 3, 0.25: 1}, silent=True), "x1 x0.25"),
        (Verdict(TOY, LOST, 1.0, {1.0: 3}), "lost!"),
        (Verdict(TOY, LOST, 0.5, {0.5: 3}, silent=True), "lost x0.5"),
        (Verdict(TOY, WRONG, silent=True), "norm"),
        (Verdict(TOY, OTHER, silent=True), "other"),
        (
            Verdict(
                TOY,
                PARTLY,
                1.0,
                {1.0: 3},
                silent=True,
                says="it leaves out 1 of 4 changes, so their effect is missing; it prints nothing",
            ),
            "part 75%",
        ),
        (Verdict(TOY, NOTHING), "none!"),
        (Verdict(TOY, REFUSED, says="ValueError"), "ref"),
        (Verdict(TOY, UNTESTED, says="not tried"), "?"),
    ],
)
def test_every_verdict_has_a_cell(verdict, cell):
    assert shown(verdict) == cell


def test_the_legend_has_every_verdict():
    assert re.findall(r"^\| `[^|]*` \| ([^|]*) \|", write_programs.LEGEND, re.MULTILINE) == list(VERDICTS)


def test_the_layers_are_those_in_blocks_that_most_models_have():
    wan, sdxl = (list(layers(FAMILIES[name].layouts[0])) for name in ("wan", "sdxl"))
    assert "blocks.{i}.cross_attn.k" in wan
    assert not [path for path in wan if "vace" in path or path.endswith("_img") or "{i}" not in path]
    assert all(".transformer_blocks.{i}." in path for path in sdxl)
    assert len(wan) == 10


def test_the_width_of_tokens_tells_a_family():
    modules = named(schemes.by_name("kohya"), FAMILIES["sdxl"], layers(FAMILIES["sdxl"].layouts[0]))
    wide = {module for module, inputs in modules.items() if inputs == 2048}
    assert wide == {module for module in modules if module.endswith(("attn2_to_k", "attn2_to_v"))}


def test_rows_that_agree_are_one():
    rows = {"a": ("=", ""), "b": ("=", "?"), "c": ("ref", "?"), "d": ("", "?")}
    assert write_programs.grouped(rows) == [(["a", "b", "d"], ("=", "?")), (["c"], ("ref", "?"))]


def test_the_page_has_a_place_for_every_program():
    page = (ROOT / "docs" / "programs_messages.md").read_text(encoding="utf-8")
    for program in PROGRAMS.values():
        assert f"**{program.title} {program.version}**" in page


@pytest.mark.parametrize("name", ["programs.md", "programs_names.md", "programs_kinds.md"])
def test_the_rows_of_a_table_are_of_one_width(name):
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    page = page.replace(write_programs.LEGEND, "").replace(write_programs.HEAD, "")
    for table in re.findall(r"(?:^\|.*\|\n)+", page.replace(write_programs.LEGEND, ""), re.MULTILINE):
        assert len(set(map(len, table.splitlines()))) == 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.title)
def test_every_kind_is_one_in_some_family(kind):
    assert any(kind.file(schemes.by_name("kohya"), FAMILIES[name]) for name in write_programs.REFERENCES)


def test_a_config_tells_of_a_scale_without_alpha():
    (kind,) = (kind for kind in KINDS if kind.title == "RS-LoRA by metadata")
    file = kind.file(schemes.by_name("diffusers"), FAMILIES["sdxl"])
    assert json.loads(file.metadata["lora_adapter_metadata"])["unet.use_rslora"] is True
    assert not any(key.endswith(".alpha") for key in file.tensors)
