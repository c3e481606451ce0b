"""docs/extending_models.md shows a file of the package, and one record more is enough for another family."""

import re
from pathlib import Path

import pytest
import torch
from adapters import assert_within, dotted, expected, factors, families, kohya
from safetensors.torch import load_file, save_file

import lora_inspect.architectures.families.ltx_video as shown
from lora_inspect import architectures
from lora_inspect.architectures.correspondence import Correspondence, same, stack, swapped
from lora_inspect.architectures.record import Architecture, Layout, Size

pytestmark = pytest.mark.numeric
PAGE = Path(__file__).parents[2] / "docs" / "extending_models.md"
WIDTH = 6


def test_the_page_shows_the_file_that_it_names():
    _, page = PAGE.read_text(encoding="utf-8").split("# Adding an architecture\n")
    code, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert code == Path(shown.__file__).read_text(encoding="utf-8")


# All that another family is: a fused layer and its parts, halves in either order, and a layer under two names.
PAGODA = Architecture(
    name="pagoda",
    title="Pagoda",
    layouts=(
        Layout("original", ("storeys.{i}.beams", "storeys.{i}.roof_edge", "spire.tip"), blocks=(("storeys", 5),)),
        Layout(
            "diffusers",
            ("floors.{i}.to_a", "floors.{i}.to_b", "floors.{i}.eaves", "norm_top.linear"),
            kohya_prefix="lora_transformer_",
            blocks=(("floors", 5),),
        ),
    ),
    sizes=(Size("small", "storeys.{i}.roof_edge", WIDTH, WIDTH), Size("small", "floors.{i}.eaves", WIDTH, WIDTH)),
    correspondence=Correspondence(
        lambda: (
            stack("storeys.{i}.beams", "floors.{i}.to_a", "floors.{i}.to_b"),
            same("storeys.{i}.roof_edge", "floors.{i}.eaves"),
            swapped("spire.tip", "norm_top.linear"),
        )
    ),
)


@pytest.fixture
def pagoda():
    with architectures.added(PAGODA):
        yield PAGODA


def base():
    generator = torch.Generator().manual_seed(1)
    rows = {"beams": 2 * WIDTH, "roof_edge": WIDTH}
    shapes = {f"storeys.{at}.{leaf}.weight": (out, WIDTH) for at in range(2) for leaf, out in rows.items()}
    shapes["spire.tip.weight"] = (2 * WIDTH, WIDTH)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def in_diffusers(original):
    """The same model in its other layout, written out."""
    tip = original["spire.tip.weight"]
    found = {"norm_top.linear.weight": torch.cat((tip[WIDTH:], tip[:WIDTH]))}
    for at in range(2):
        beams = original[f"storeys.{at}.beams.weight"]
        found[f"floors.{at}.to_a.weight"], found[f"floors.{at}.to_b.weight"] = beams[:WIDTH], beams[WIDTH:]
        found[f"floors.{at}.eaves.weight"] = original[f"storeys.{at}.roof_edge.weight"]
    return {name: value.clone() for name, value in found.items()}


@pytest.fixture
def files(tmp_path):
    """(base, adapter) paths: a base in diffusers' layout, and an adapter in the underscored names of the original."""
    adapter = kohya("lora_unet_", factors(base(), [name.removesuffix(".weight") for name in base()]))
    save_file(in_diffusers(base()), tmp_path / "base.safetensors")
    save_file(adapter, tmp_path / "adapter.safetensors")
    return tmp_path / "base.safetensors", tmp_path / "adapter.safetensors"


def test_without_it_nothing_is_known_of_its_files(files, run):
    own, adapter = files
    assert families(run("info", adapter, "--json").json) == []
    assert "use a base of the adapter's model" in run("merge", own, adapter, "--dry-run").refusal
    refusal = run("convert", adapter, "--layout", "diffusers", "-o", adapter.parent / "x.safetensors").refusal
    assert "knows no model family" in refusal


def test_info_names_it(pagoda, files, run):
    record = run("info", files[1], "--json", "--modules").json
    assert (record["architecture"], record["layout"], record["size"]) == ("pagoda", "original", "small")
    assert {"storeys.1.roof_edge", "spire.tip"} <= {module["path"] for module in record["module_list"]}


@pytest.mark.parametrize("multiplier", [1.0, -0.5])
def test_merge_folds_across_its_layouts(multiplier, pagoda, files, run, tmp_path):
    own, adapter = files
    ended = run("merge", own, f"{adapter}:{multiplier}", "-o", tmp_path / "out.safetensors")
    assert ended.status == 0, ended.stderr
    meant = factors(base(), [name.removesuffix(".weight") for name in base()])
    values, bounds = expected(base(), meant, multiplier, interpolate=False)
    assert_within(load_file(tmp_path / "out.safetensors"), in_diffusers(values), in_diffusers(bounds))


def test_convert_writes_its_other_layout(pagoda, files, run, tmp_path):
    own, adapter = files
    converted = tmp_path / "converted.safetensors"
    ended = run("convert", adapter, "--layout", "diffusers", "-o", converted)
    assert ended.status == 0, ended.stderr
    meant = {"lora_transformer_" + name.removesuffix(".weight").replace(".", "_") for name in in_diffusers(base())}
    assert {name.partition(".")[0] for name in load_file(converted)} == meant
    for file, out in ((adapter, "before"), (converted, "after")):
        assert run("merge", own, file, "-o", tmp_path / f"{out}.safetensors").status == 0
    before, after = (load_file(tmp_path / f"{out}.safetensors") for out in ("before", "after"))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-5, atol=1e-5)


def test_names_of_diffusers_go_on_the_original_base(pagoda, run, tmp_path):
    own = in_diffusers(base())
    meant = factors(own, [name.removesuffix(".weight") for name in own])
    save_file(dotted("transformer.", meant), tmp_path / "adapter.safetensors")
    save_file(base(), tmp_path / "base.safetensors")
    out = tmp_path / "out.safetensors"
    assert run("merge", tmp_path / "base.safetensors", tmp_path / "adapter.safetensors", "-o", out).status == 0
    assert_within(in_diffusers(load_file(out)), *expected(own, meant, 1.0, interpolate=False))


def test_a_name_is_taken_once(pagoda):
    with pytest.raises(ValueError, match="there is a family called pagoda already"):
        architectures.add(pagoda)


def test_what_it_descends_from_has_to_be_known():
    with pytest.raises(ValueError, match="stupa descends from temple, which is not known"):
        architectures.add(PAGODA._replace(name="stupa", descends_from="temple"))


def test_it_stands_behind_the_family_that_it_descends_from():
    with architectures.added(PAGODA._replace(descends_from="sd15")):
        names = [one.name for one in architectures.every()]
        assert names[names.index("sd15") :][:3] == ["sd15", "pagoda", "sd2"]


def test_nothing_of_it_is_left_behind(files, run):
    with architectures.added(PAGODA):
        assert run("info", files[1], "--json").json["architecture"] == "pagoda"
    assert families(run("info", files[1], "--json").json) == []
    with pytest.raises(KeyError):
        architectures.by_name("pagoda")
