"""What a file says of its scale rule and of DoRA: every line of the rules as a case, read from real files."""

import itertools
import json

import pytest
from adapters import lora, loras
from make_synthetic import element

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.model import evidence
from lora_inspect.reading.model.settings import Settings

# rank 16 and alpha 8: alpha/rank is 0.5 and alpha/sqrt(rank) is 2.
STANDARD, STABILISED, UNKNOWN = 0.5, 2.0, None
OWN = "lora_inspect.scale"


def args(alpha=None, module="networks.lora", **arguments):
    about = {"ss_network_module": module, "ss_network_args": json.dumps(arguments)}
    return about if alpha is None else {**about, "ss_network_alpha": str(alpha)}


def embedded(**config):
    config = {"r": 16, "lora_alpha": 8, **config}
    return {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in config.items()})}


def flag(dtype="BOOL", value=1, shape=()):
    return {"use_rslora_flag": (dtype, shape, value)}


@pytest.fixture
def read(write_safetensors):
    def read_tensors(tensors, metadata=None, settings=None, config=None, name="file.safetensors"):
        path = write_safetensors(tensors, metadata, name)
        if config is not None:
            (path.parent / "adapter_config.json").write_text(json.dumps(config))
        return read_adapter(open_checkpoint(str(path)), settings or Settings())

    return read_tensors


def scales(adapter):
    return {contribution.scale for contribution in adapter.contributions}


def observations(adapter):
    return [item for item in adapter.evidence if item.about == "rslora"]


def errors(adapter):
    return [problem.code for problem in adapter.problems if problem.severity == "error"]


# tensors, metadata, value, source, scale
RSLORA = {
    "nothing at all": (loras(), {}, False, "default", STANDARD),
    "flag true": ({**loras(), **flag()}, {}, True, "flag", STABILISED),
    "flag false": ({**loras(), **flag(value=0)}, {}, False, "flag", STANDARD),
    "our own key with a rule of a later version": (loras(), {OWN: "alpha/rank^2"}, None, "conflict", UNKNOWN),
    "flag true as bf16": ({**loras(), **flag("BF16")}, {}, True, "flag", STABILISED),
    "flag false as bf16": ({**loras(), **flag("BF16", 0)}, {}, False, "flag", STANDARD),
    "flag true as f16 in a list": ({**loras(), **flag("F16", 1, (1,))}, {}, True, "flag", STABILISED),
    "flag false as f32": ({**loras(), **flag("F32", 0)}, {}, False, "flag", STANDARD),
    "flag true as i64": ({**loras(), **flag("I64")}, {}, True, "flag", STABILISED),
    "flag of a module": (loras(use_rslora_flag=("BOOL", (), 1)), {}, True, "flag", STABILISED),
    "own key, stabilised": (loras(), {OWN: "alpha/sqrt(rank)"}, True, "metadata", STABILISED),
    "own key, standard": (loras(), {OWN: "alpha/rank"}, False, "metadata", STANDARD),
    "embedded config true": (loras(), embedded(use_rslora=True), True, "adapter_config", STABILISED),
    "embedded config false": (loras(), embedded(use_rslora=False), False, "adapter_config", STANDARD),
    "embedded config without the field": (loras(), embedded(), False, "adapter_config", STANDARD),
    "asked alpha is stored": (loras(), args(8, use_rslora="True"), True, "metadata", STABILISED),
    "asked alpha is stored, a JSON true": (loras(), args(8, use_rslora=True), True, "metadata", STABILISED),
    "asked alpha is folded": (loras(alpha=32.0), args(8, use_rslora="True"), False, "metadata", STABILISED),
    "neither": (loras(alpha=9.0), args(8, use_rslora="True"), None, "conflict", UNKNOWN),
    "rank is stored for 0": (loras(alpha=16.0), args(0, use_rslora="True"), None, "conflict", UNKNOWN),
    "some folded, some not": (
        {**loras(), **lora("lora_unet_b", alpha=32.0)}, args(8, use_rslora="True"), None, "conflict", UNKNOWN),
    "patterns excuse other alphas": (
        {**loras(), **lora("lora_unet_b", rank=4, alpha=4.0)},
        {**args(8, use_rslora="True"), "ss_alpha_pattern": "{}"}, True, "metadata", STABILISED),
    "embedded config, a text": (loras(), embedded(use_rslora="true"), True, "adapter_config", STABILISED),
    "embedded config, a number": (loras(), embedded(use_rslora=1), True, "adapter_config", STABILISED),
    "embedded config, off as a text": (loras(), embedded(use_rslora="No"), False, "adapter_config", STANDARD),
    "embedded config, null": (loras(), embedded(use_rslora=None), False, "adapter_config", STANDARD),
    "embedded config, neither": (loras(), embedded(use_rslora="perhaps"), None, "conflict", UNKNOWN),
    "embedded config of another rank has no vote": (
        loras(), embedded(use_rslora=True, r=4), False, "default", STANDARD),
    "option as another usual word": (loras(), args(8, use_rslora="Yes"), True, "metadata", STABILISED),
    "option that is neither": (loras(), args(8, use_rslora="perhaps"), None, "conflict", UNKNOWN),
    "an asked alpha beyond any file": (loras(), args("1e308", use_rslora="True"), True, "metadata", STABILISED),
    "an asked alpha that overflows": (loras(), args("1e999", use_rslora="True"), True, "metadata", STABILISED),
    "an asked alpha of minus infinity": (loras(), args("-inf", use_rslora="True"), True, "metadata", STABILISED),
    "an asked alpha of minus 1e308": (loras(), args("-1e308", use_rslora="True"), True, "metadata", STABILISED),
    "an asked alpha that is not a number": (loras(), args("nan", use_rslora="True"), True, "metadata", STABILISED),
    "option off": (loras(), args(8, use_rslora="False"), False, "metadata", STANDARD),
    "0 asked, sqrt(rank) stored": (loras(alpha=4.0), args(0), True, "metadata", 1.0),
    "0 asked, sqrt(rank) stored as bf16": (
        loras(rank=8, alpha=("BF16", (), element("BF16", 8**0.5))), args(0), True, "metadata", 2.828125 / 8**0.5),
    "0 asked, sqrt(rank) stored, option on": (loras(alpha=4.0), args(0, use_rslora="1"), True, "metadata", 1.0),
    "0 asked, sqrt(rank) stored, option off": (
        loras(alpha=4.0), args(0, use_rslora="False"), None, "conflict", UNKNOWN),
    "0 asked, rank stored": (loras(alpha=16.0), args(0), False, "default", 1.0),
    "LyCORIS folds by itself": (
        loras(alpha=32.0), args(8, "lycoris.kohya", rs_lora="True"), False, "metadata", STABILISED),
    "LyCORIS without the option": (loras(), args(8, "lycoris.kohya", algo="lora"), False, "default", STANDARD),
    "LyCORIS knows no use_rslora": (loras(), args(8, "lycoris.kohya", use_rslora="True"), False, "default", STANDARD),
    "a broken ss_network_args says nothing": (loras(), {"ss_network_args": "{"}, False, "default", STANDARD),
    "ss_network_args of another kind says nothing": (loras(), {"ss_network_args": "[1]"}, False, "default", STANDARD),
    "an asked alpha that is no number says nothing": (loras(), args("None"), False, "default", STANDARD),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "metadata", "value", "source", "scale"), RSLORA.values(), ids=RSLORA)
def test_the_scale_rule_and_its_evidence(tensors, metadata, value, source, scale, read):
    adapter = read(tensors, metadata)
    assert (adapter.rslora.value, adapter.rslora.source) == (value, source)
    assert sorted(scales(adapter)) == [pytest.approx(scale, rel=1e-12)] if scale else scales(adapter) == {None}
    assert errors(adapter) == ([] if scale else ["scale-unknown"])
    assert bool(observations(adapter)) == (source != "default")


# What says yes and what says no, strongest first.
VOICES = {
    "flag": ((flag(), {}), (flag(value=0), {})),
    "metadata": (({}, {OWN: "alpha/sqrt(rank)"}), ({}, {OWN: "alpha/rank"})),
    "adapter_config": (({}, embedded(use_rslora=True)), ({}, embedded(use_rslora=False))),
    "ss_network_args": (({}, args(8, use_rslora="True")), ({}, args(8, use_rslora="False"))),
}
PAIRS = list(itertools.combinations(VOICES, 2))


@pytest.mark.parametrize("yes_first", [True, False])
@pytest.mark.parametrize(("strong", "weak"), PAIRS)
def test_every_pair_that_contradicts_itself_is_a_conflict_until_the_user_settles_it(strong, weak, yes_first, read):
    first, second = VOICES[strong][not yes_first], VOICES[weak][yes_first]
    tensors, metadata = {**loras(), **first[0], **second[0]}, {**first[1], **second[1]}
    adapter = read(tensors, metadata)
    assert (adapter.rslora.value, adapter.rslora.source) == (None, "conflict")
    assert scales(adapter) == {None}
    assert len(observations(adapter)) == 2
    (problem,) = (problem for problem in adapter.problems if problem.severity == "error")
    assert "conflicts" in problem.message
    assert "--rslora yes|no" in problem.message
    assert scales(read(tensors, metadata, Settings(rslora=True))) == {STABILISED}
    assert scales(read(tensors, metadata, Settings(rslora=False))) == {STANDARD}


@pytest.mark.parametrize("yes", [True, False])
@pytest.mark.parametrize(("strong", "weak"), PAIRS)
def test_of_two_that_agree_the_stronger_is_named(strong, weak, yes, read):
    first, second = VOICES[strong][not yes], VOICES[weak][not yes]
    adapter = read({**loras(), **first[0], **second[0]}, {**first[1], **second[1]})
    assert (adapter.rslora.value, adapter.rslora.source) == (yes, strong)
    assert len(observations(adapter)) == 2


def ranks_and_alphas(*pairs):
    return {key: t for i, (rank, alpha) in enumerate(pairs) for key, t in lora(f"lora_unet_{i}_q", rank, alpha).items()}


# (rank, alpha) of the modules, metadata, (share, modules) of the hint
HINTS = {
    "all of them": ([(16, 4.0), (4, 2.0)], {}, (1.0, 2)),
    "two of three": ([(16, 4.0), (16, 4.0), (16, 8.0)], {}, (2 / 3, 2)),
    "exactly half": ([(16, 4.0), (16, 8.0)], {}, None),
    "none": ([(16, 8.0)], {}, None),
    "rank 1 tells nothing": ([(1, 1.0), (1, 1.0), (16, 8.0)], {}, None),
    "rank 1 does not dilute": ([(1, 1.0), (1, 5.0), (16, 4.0)], {}, (1.0, 1)),
    "no alpha tells nothing": ([(16, None), (16, None), (16, 4.0)], {}, (1.0, 1)),
    "within 2^-8": ([(16, 4.0 * (1 + 2**-9))], {}, (1.0, 1)),
    "beyond 2^-8": ([(16, 4.0 * (1 + 2**-7))], {}, None),
    "stated by our own metadata": ([(16, 4.0)], {OWN: "alpha/rank"}, None),
    "stated by the asked alpha": ([(16, 4.0)], {"ss_network_alpha": "4"}, None),
    "another alpha was asked": ([(16, 4.0)], {"ss_network_alpha": "7"}, (1.0, 1)),
    "written by LyCORIS": ([(16, 4.0)], {"ss_network_module": "lycoris.kohya"}, None),
}


@pytest.mark.parametrize(("pairs", "metadata", "expected"), HINTS.values(), ids=HINTS)
def test_the_hint_is_a_note_and_never_applied(pairs, metadata, expected, read):
    adapter = read(ranks_and_alphas(*pairs), metadata)
    hint = adapter.rslora.hint
    assert (hint and (hint.share, hint.modules)) == expected
    assert adapter.rslora.value is False
    assert [c.scale for c in adapter.contributions] == [1.0 if a is None else a / r for r, a in pairs]
    notes = [problem.message for problem in adapter.problems if problem.code == "rslora-hint"]
    assert len(notes) == (expected is not None)
    assert all("rank 4 with alpha 2" in note and "rank 16 with alpha 4" in note for note in notes)
    assert errors(adapter) == []


@pytest.mark.parametrize(("prefix", "count"), [("lora_unet_", 1), ("lycoris_", 0)])
def test_a_hint_is_one_short_note_and_lycoris_names_give_none(prefix, count, read, run):
    adapter = read(lora(f"{prefix}blocks_0_attn_q", 16, 4.0))
    assert (adapter.rslora.hint is not None) == bool(count)
    assert observations(adapter) == []
    shown = run("info", adapter.checkpoint.path)
    notes = [line for line in shown.stdout.splitlines() if line.startswith("-   ")]
    assert ["sqrt(rank)" in note for note in notes] == [True] * count
    assert shown.stdout.count("sqrt") <= 2 * count


def test_where_there_is_evidence_there_is_no_hint(read):
    for value in (0, 1):
        assert read({**loras(alpha=4.0), **flag(value=value)}).rslora.hint is None


@pytest.mark.parametrize("alpha", [float("inf"), float("-inf"), float("nan")])
def test_an_alpha_that_is_no_finite_number_is_near_to_nothing(alpha, read):
    adapter = read({**loras(alpha=alpha)}, args(4, use_rslora="True"))
    assert adapter.rslora.hint is None
    assert not evidence.close(alpha, 4.0)
    assert not evidence.close(alpha, alpha)
