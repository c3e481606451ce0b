"""Which adapter an option without a path speaks of, and what an error says is missing."""

import pytest
from adapters import base, lora, loras

PEFT = "base_model.model.blocks.{}.attn.q"


@pytest.fixture
def place(tmp_path, write_safetensors, monkeypatch):
    """A base, PEFT adapters without their config in p and r, kohya ones: plain, k and l; with a flag, f."""
    monkeypatch.chdir(tmp_path)
    write_safetensors(base(), name="base.safetensors")
    for name in ("p", "r"):
        write_safetensors(lora(PEFT.format(0), alpha=None, spelling="peft"), name=f"{name}.safetensors")
    write_safetensors(loras(1, alpha=8.0), name="k.safetensors")
    write_safetensors(loras(1, alpha=8.0), name="l.safetensors")
    write_safetensors({**loras(1, alpha=8.0), "use_rslora_flag": ("BOOL", (), 1)}, name="f.safetensors")
    return tmp_path


@pytest.fixture
def merge(place, run):
    def merge_command(*arguments):
        named = [argument.partition(":") for argument in arguments if not argument.startswith("--")]
        adapters = [f"{name}.safetensors{colon}{tail}" for name, colon, tail in named]
        options = [word for argument in arguments if argument.startswith("--") for word in argument.split(" ")]
        return run("merge", "base.safetensors", *adapters, *options, "-o", "out.safetensors", "--force", "--json")

    return merge_command


@pytest.fixture
def scales(place, merge):
    """The scale of each adapter as the plan has it, by the adapter's name."""
    from lora_inspect.files.checkpoint import open_checkpoint
    from lora_inspect.reading.ambiguous_options import read_settled
    from lora_inspect.reading.model.settings import Settings, parse_argument

    def read(*arguments, **options):
        named = [parse_argument(argument) for argument in arguments]
        opened = [(open_checkpoint(f"{name}.safetensors"), own) for name, own in named]
        found = read_settled(opened, Settings(**options))
        return [{contribution.scale for contribution in adapter.contributions} for adapter in found]

    return read


def test_an_option_speaks_of_the_one_adapter_that_is_open(scales):
    # alpha 5, rank 16: 5/4 with the square root; the kohya file has alpha 8 of its own and no evidence for the root
    assert scales("p", "k", alpha=5.0, rslora=True) == [{5 / 4}, {8 / 16}]
    assert scales("f", "p", alpha=5.0, rslora=False) == [{8 / 4}, {5 / 16}]


def test_an_option_passes_over_adapters_in_which_it_makes_no_difference(merge, scales, write_safetensors):
    write_safetensors(loras(1, alpha=None), name="n.safetensors")
    assert scales("n", "k", rslora=True) == [{1.0}, {8 / 4}]
    assert merge("n", "f", "--rslora yes").stderr == "Note: f.safetensors: rslora=yes repeats what its flag says.\n"
    assert merge("n", "k", "--alpha 8").stderr == "Note: k.safetensors: alpha=8 repeats the alpha that it has.\n"


def test_settings_on_a_path_speak_of_that_adapter_alone(scales):
    assert scales("p:alpha=5,rslora=yes", "r:alpha=4,rslora=no") == [{5 / 4}, {4 / 16}]
    assert scales("k:rslora=yes", "l") == [{8 / 4}, {8 / 16}]
    assert scales("p:alpha=5", "r:alpha=4,rslora=no", rslora=True) == [{5 / 4}, {4 / 16}]


def test_an_option_of_several_open_adapters_shows_the_form_on_the_path(merge):
    sentence = merge("p:0.5", "r", "--alpha 4").refusal
    assert "p.safetensors:0.5,alpha=4,rslora=yes|no r.safetensors:alpha=4,rslora=yes|no" in sentence
    sentence = merge("k", "l", "--rslora yes").refusal
    assert "k.safetensors:rslora=yes l.safetensors:rslora=yes" in sentence


def test_an_error_names_all_that_is_missing_over_all_adapters(merge):
    sentence = merge("p", "k", "r:0.5").refusal
    assert "p.safetensors:alpha=N,rslora=yes|no r.safetensors:0.5,alpha=N,rslora=yes|no" in sentence
    sentence = merge("p:alpha=3", "r:rslora=no").refusal
    assert "p.safetensors:alpha=3,rslora=yes|no r.safetensors:rslora=no,alpha=N" in sentence


def test_the_second_round_names_what_remains(merge):
    assert "give --alpha N and --rslora yes|no" in merge("p").refusal
    after_alpha, after_rule = merge("p", "--alpha 4").refusal, merge("p", "--rslora no").refusal
    assert after_alpha.endswith("give --rslora yes|no.")
    assert after_rule.endswith("give --alpha N.")
    assert merge("p", "--alpha 4", "--rslora no").status == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("f", "--rslora no"), "its flag says alpha/sqrt(rank), which rslora=no contradicts"),
        (("f:rslora=no",), "its flag says alpha/sqrt(rank), which rslora=no contradicts"),
        (("k", "--alpha 4"), "it says alpha 8, which alpha=4 contradicts"),
        (("k:alpha=4",), "it says alpha 8, which alpha=4 contradicts"),
        (("p:rslora=yes", "--alpha 4", "--rslora no"), "its path says rslora=yes but an option says rslora=no"),
    ],
)
def test_what_contradicts_evidence_is_an_error(arguments, says, merge):
    assert says in merge(*arguments).refusal


@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        (("f", "--rslora yes"), "f.safetensors: rslora=yes repeats what its flag says."),
        (("f:rslora=yes",), "f.safetensors: rslora=yes repeats what its flag says."),
        (("k", "--alpha 8"), "k.safetensors: alpha=8 repeats the alpha that it has."),
    ],
)
def test_what_repeats_evidence_is_a_note(arguments, note, merge):
    outcome = merge(*arguments)
    assert outcome.status == 0
    assert outcome.stderr == f"Note: {note}\n"


def test_a_setting_where_no_alpha_means_scale_one_cannot_apply(merge, write_safetensors):
    write_safetensors(loras(1, alpha=None), name="n.safetensors")
    assert "rslora=yes cannot apply to lora_unet_blocks_0_attn_q, which has no alpha" in merge("n:rslora=yes").refusal
    assert (
        "rslora=no cannot apply to lora_unet_blocks_0_attn_q, which has no alpha" in merge("n", "--rslora no").refusal
    )
    assert "alpha=4 cannot apply to lora_unet_blocks_0_attn_q, which has no alpha" in merge("n", "--alpha 4").refusal


def test_a_multiplier_counts_for_its_component_and_its_modules(merge, place, write_safetensors):
    from safetensors.numpy import load_file

    write_safetensors(loras(3, alpha=16.0), name="m.safetensors")
    before = load_file(place / "base.safetensors")
    outcome = merge("m:0.5,*_1_*=0,model=2")
    assert outcome.json["multipliers"] == {"m.safetensors": {"*": 0.5, "*_1_*": 0.0, "model": 2.0}}
    after = load_file(place / "out.safetensors")
    # down 0.5, up 0.25, rank 16, scale 1: each entry grows by 2 times the multiplier
    growth = {name: set((after[name] - before[name]).ravel().tolist()) for name in before}
    assert growth == {"blocks.0.attn.q.weight": {4.0}, "blocks.1.attn.q.weight": {0.0}, "blocks.2.attn.q.weight": {4.0}}
    assert merge("m:0.5").json["multipliers"] == {"m.safetensors": 0.5}


def test_a_component_that_the_adapter_lacks_is_an_error(merge):
    assert (
        "text_encoder is not a component and matches no module; choose from model" in merge("k:text_encoder=0").refusal
    )


@pytest.mark.parametrize("setting", ["0.5", "model=0.5", "0.5,rslora=yes"])
def test_a_multiplier_means_nothing_to_a_verb_without_strength(setting, place, run):
    for command in (["info"], ["convert", "--to-standard", "-o", "out.safetensors"]):
        outcome = run(*command, f"k.safetensors:{setting}")
        assert outcome.status == 2
        assert "a multiplier has no meaning" in outcome.stderr


def test_info_and_convert_take_settings_on_the_path(place, run):
    assert run("info", "p.safetensors:alpha=4,rslora=yes", "--json").json["scales"] == {"1": 1}
    settled = run("convert", "p.safetensors:alpha=4,rslora=yes", "--to-standard", "-o", "out", "--json")
    assert settled.status == 0
    assert run("info", "out", "--json").json["scales"] == {"1": 1}
    lines = run("info", ".:rslora=yes", "--json").json
    assert {line["path"]: line["rslora"]["value"] for line in lines if line["kind"] == "adapter"} == {
        f"./{name}.safetensors": True for name in "fklpr"
    } | ({"./out/adapter_model.safetensors": False})
