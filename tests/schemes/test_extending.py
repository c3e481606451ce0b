"""docs/extending.md shows a file of the package, and one record more is enough for another scheme."""

import re
from pathlib import Path

import layouts
import pytest
from adapters import Names, Spelling, assert_within, expected, factors, kohya
from layouts import FUSED, SPLIT
from safetensors.torch import load_file, save_file

import lora_inspect.schemes.lycoris as shown
from lora_inspect import schemes
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.convert import convert_to_standard
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.reading.file_info import inspect
from lora_inspect.reporting.file_record import as_json
from lora_inspect.schemes.kohya import KOHYA
from lora_inspect.schemes.record import ITS_OWN, LOST, MODEL, OWN, Scheme, Writing, first_of

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
FLUX = {"ss_base_model_version": "flux1"}


def test_the_page_shows_the_file_that_it_names():
    _, page = PAGE.read_text(encoding="utf-8").split("# Adding a scheme\n")
    code, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert code == Path(shown.__file__).read_text(encoding="utf-8")


# All that another scheme is: underscored names over the layout of diffusers, of the model and of two text encoders.
ABACUS = Scheme(
    name="abacus",
    prefixes={"abacus__": MODEL, "abacus_clip__": "text_encoder", "abacus_t5__": "text_encoder_2"},
    flat=True,
    suffixes=KOHYA.suffixes,
    carries_alpha=True,
    writing=Writing(
        title="Abacus",
        layout=lambda family: first_of(family, "diffusers"),
        prefix="abacus__",
        encoders=lambda family: ("abacus_clip__", "abacus_t5__")[: len(family.text_encoders)],
    ),
)


@pytest.fixture
def abacus():
    with schemes.added(ABACUS):
        yield


@pytest.fixture
def merged(tmp_path):
    def fold(base, adapter):
        save_file({name: value.contiguous() for name, value in base.items()}, tmp_path / "base.safetensors")
        plan = plan_merge(str(tmp_path / "base.safetensors"), [(str(adapter), 0.5)], MergeOptions())
        merge(plan, str(tmp_path / "merged.safetensors"), force=True)
        return load_file(tmp_path / "merged.safetensors")

    return fold


def test_without_it_its_names_are_of_none(tmp_path):
    save_file(kohya("abacus__", factors(layouts.flux(width=4), FUSED[:1])), tmp_path / "a.safetensors")
    assert as_json(inspect(str(tmp_path / "a.safetensors")))["scheme"] == "dotted"
    assert "abacus" not in schemes.SCHEMES


@pytest.mark.numeric
def test_it_is_read_and_merged(abacus, merged, tmp_path):
    base = layouts.flux(blocks=2, width=4)
    own = layouts.flux_in_diffusers(base)
    adapter = factors(own, SPLIT)
    save_file(kohya("abacus__", adapter), tmp_path / "own.safetensors", FLUX)
    record = as_json(inspect(str(tmp_path / "own.safetensors")))
    assert (record["scheme"], record["architecture"], record["layout"]) == ("abacus", "flux", "diffusers")
    assert (record["modules"], record["unclaimed"], record["problems"]) == (len(SPLIT), [], [])
    meant = expected(own, adapter, 0.5, interpolate=False)
    assert_within(merged(own, tmp_path / "own.safetensors"), *meant)
    assert_within(layouts.flux_in_diffusers(merged(base, tmp_path / "own.safetensors")), *meant)


@pytest.mark.numeric
def test_it_is_written_and_left(abacus, merged, tmp_path):
    base = layouts.flux(blocks=2, width=4)
    adapter = factors(base, FUSED)
    clip = "text_model_encoder_layers_0_mlp_fc1"
    encoder = factors({"x.weight": layouts.tensors({"x": (8, 768)})["x"]}, ["x"])["x"]
    tensors = kohya("lora_unet_", adapter) | kohya("lora_te1_", {clip: encoder})
    save_file(tensors, tmp_path / "kohya.safetensors", FLUX)
    convert_to_standard(
        str(tmp_path / "kohya.safetensors"), str(tmp_path / "own.safetensors"), ConvertOptions(scheme="abacus")
    )
    written = load_file(tmp_path / "own.safetensors")
    names = {key.partition(".")[0] for key in written}
    assert f"abacus_clip__{clip}" in names
    assert "abacus__transformer_blocks_0_attn_to_q" in names
    assert all(name.startswith(("abacus__", "abacus_clip__")) for name in names)
    read = as_json(inspect(str(tmp_path / "own.safetensors")))
    assert (read["scheme"], read["modules"]) == ("abacus", len(names))
    back = tmp_path / "back.safetensors"
    convert_to_standard(str(tmp_path / "own.safetensors"), str(back), ConvertOptions(scheme="kohya", only=("model",)))
    assert {key.partition(".")[0] for key in load_file(back)} == {
        key.partition(".")[0] for key in kohya("lora_unet_", adapter)
    }
    values, bounds = expected(base, adapter, 0.5, interpolate=False)
    # Each of the two conversions rounds once more than a merge alone.
    assert_within(merged(base, back), values, {name: 2 * bound for name, bound in bounds.items()})


# One whose factors have suffixes that no algorithm has.
TALLY = Scheme(
    name="tally",
    prefixes={"tally::": MODEL},
    flat=False,
    suffixes={"down": ".A", "up": ".B", "alpha": ".alpha"},
    carries_alpha=True,
    dialect=ITS_OWN,
    writing=Writing("Tally", lambda family: OWN, "tally::", algorithms=frozenset(("lora",)), magnitudes=LOST),
)


@pytest.mark.numeric
def test_suffixes_of_its_own_are_read_written_and_left(merged, tmp_path):
    base = layouts.flux(blocks=2, width=4)
    adapter = factors(base, FUSED)
    tensors = Names("tally::", "", False, Spelling(".A", ".B", "")).tensors(adapter)
    own, kohyas, again = (tmp_path / f"{name}.safetensors" for name in ("own", "kohya", "again"))
    save_file(tensors, own, FLUX)
    assert as_json(inspect(str(own)))["kind"] != "adapter"
    with schemes.added(TALLY):
        record = as_json(inspect(str(own)))
        assert (record["scheme"], record["architecture"], record["modules"]) == ("tally", "flux", len(FUSED))
        assert (record["unclaimed"], record["problems"]) == ([], [])
        meant = expected(base, adapter, 0.5, interpolate=False)
        assert_within(merged(base, own), *meant)
        convert_to_standard(str(own), str(kohyas), ConvertOptions(scheme="kohya"))
        assert load_file(kohyas).keys() == kohya("lora_unet_", adapter).keys()
        assert_within(merged(base, kohyas), *meant)
        # To it, and where the scale alone changes.
        for source, options in ((kohyas, ConvertOptions(scheme="tally")), (own, ConvertOptions())):
            convert_to_standard(str(source), str(again), options, force=True)
            assert load_file(again).keys() == tensors.keys()
        # What became LoRA is called so too, and what cannot be called so is refused.
        difference = {f"lora_unet_{path.replace('.', '_')}.diff": own.up @ own.down for path, own in adapter.items()}
        save_file(difference, kohyas, FLUX)
        with pytest.raises(LoraInspectError, match="which Tally cannot load under tally names"):
            convert_to_standard(str(kohyas), str(again), ConvertOptions(scheme="tally"), force=True)
        options = ConvertOptions(scheme="tally", algorithm="lora", rank=4, allow_loss=True)
        convert_to_standard(str(kohyas), str(again), options, force=True)
        assert load_file(again).keys() == tensors.keys()
        save_file(kohya("lora_unet_", factors(base, FUSED, dora=True)), kohyas, FLUX)
        with pytest.raises(LoraInspectError, match="Tally applies none"):
            convert_to_standard(str(kohyas), str(again), ConvertOptions(scheme="tally", keep_dora=True), force=True)
