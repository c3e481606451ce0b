"""Contributions that are alike are judged once: every program says the same of a file when it is asked of each."""

import pytest
from adapters import lora, split
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lora_inspect.architectures import by_name
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.programs import PROGRAMS
from lora_inspect.programs.adapter_view import FramedKeys, View
from lora_inspect.programs.record import RulesByFamily, ScaleOfFile
from lora_inspect.programs.verdict import judge_each
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.identify import adapter_candidates, with_paths

FAMILIES = ("sd15", "sdxl", "flux", "wan", "qwen_image", "z_image", "llm")


def asked_of_each(program):
    """The program with rules that are asked of every contribution by itself."""
    return program._replace(
        loaders=tuple(loader._replace(rules=_all_asked_of_each(loader.rules)) for loader in program.loaders)
    )


def _all_asked_of_each(rules):
    if isinstance(rules, RulesByFamily):
        return RulesByFamily(rules.families, lambda family: map(_asked_of_each, rules.of(family)))
    return tuple(map(_asked_of_each, rules))


def _asked_of_each(rule):
    finds, scale, exceptions = rule.finds, rule.scale, rule.exceptions
    return rule._replace(
        finds=finds and (lambda adapter: _singly(finds(adapter))),
        exceptions=exceptions and _singly(exceptions),
        scale=ScaleOfFile(lambda adapter: _singly(scale.make(adapter) if isinstance(scale, ScaleOfFile) else scale)),
    )


def _singly(rule):
    return lambda one: rule(one)


def told(verdict):
    """All that a verdict says, with the changes one by one."""
    taken = [(one.contribution.module.key, one.contribution.algorithm.name, *one[2:]) for one in verdict.taken]
    reception = verdict.reception
    return (
        *verdict[: verdict._fields.index("reception")],
        verdict.ignored,
        taken,
        reception and (reception.needs, reception.refusal, reception.unknown),
    )


def assert_judged_alike(adapter):
    families = adapter_candidates(adapter)
    adapter = with_paths(adapter, families)
    ours = list(judge_each(adapter, families, PROGRAMS.values()))
    each = judge_each(adapter, families, map(asked_of_each, PROGRAMS.values()))
    for one, other in zip(ours, each, strict=True):
        assert told(one)[1:] == told(other)[1:], one.program.name


KINDS = {
    "kohya": {".lora_down.weight": (4, 8), ".lora_up.weight": (8, 4), ".alpha": ()},
    "without alpha": {".lora_down.weight": (4, 8), ".lora_up.weight": (8, 4)},
    "peft": {".lora_A.weight": (4, 8), ".lora_B.weight": (8, 4)},
    "of rank 2": {".lora_down.weight": (2, 8), ".lora_up.weight": (8, 2), ".alpha": ()},
    "dora": {".lora_down.weight": (4, 8), ".lora_up.weight": (8, 4), ".alpha": (), ".dora_scale": (8, 1)},
    "along inputs": {".lora_A.weight": (4, 8), ".lora_B.weight": (8, 4), ".dora_scale": (1, 8)},
    "magnitude": {".lora_A.weight": (4, 8), ".lora_B.weight": (8, 4), ".lora_magnitude_vector": (8,)},
    "with a bias": {".lora_down.weight": (4, 8), ".lora_up.weight": (8, 4), ".alpha": (), ".diff_b": (8,)},
    "loha": {".hada_w1_a": (8, 2), ".hada_w1_b": (2, 8), ".hada_w2_a": (8, 2), ".hada_w2_b": (2, 8), ".alpha": ()},
    "lokr": {".lokr_w1": (2, 2), ".lokr_w2": (4, 4), ".alpha": ()},
    "core": {".lora_down.weight": (4, 8, 1, 1), ".lora_up.weight": (8, 4, 1, 1), ".lora_mid.weight": (4, 4, 3, 3)},
    "glora": {".a1.weight": (4, 8), ".a2.weight": (8, 4), ".b1.weight": (4, 8), ".b2.weight": (8, 4), ".alpha": ()},
    "oft": {".oft_blocks": (2, 4, 4), ".alpha": ()},
    "difference": {".diff": (8, 8), ".diff_b": (8,)},
    "own scale": {".lora_down.weight": (4, 8), ".lora_up.weight": (8, 4), ".scale": ()},
    "infixed": {".lora_A.default.weight": (4, 8), ".lora_B.default.weight": (8, 4)},
    "half": {".lora_down.weight": (4, 8)},
    "stray": {".lora_down.weight": (4, 8), ".lora_up.weight": (8, 4), ".foo": (2,)},
}
PREFIXES = ("lora_unet_", "diffusion_model.", "transformer.", "unet.", "lycoris_", "base_model.model.", "")


@st.composite
def adapters(draw):
    """Files of a family's names: most modules of one kind and prefix, some of others, with one alpha or two."""
    layout = draw(st.sampled_from(by_name(draw(st.sampled_from(FAMILIES))).layouts))
    kinds = [draw(st.sampled_from(sorted(KINDS))), draw(st.sampled_from(sorted(KINDS)))]
    prefixes = [draw(st.sampled_from(PREFIXES)), draw(st.sampled_from(PREFIXES))]
    alphas = [draw(st.sampled_from([4.0, 2.0, -4.0, 0.0])), draw(st.sampled_from([4.0, 2.0]))]
    every = draw(st.sampled_from([3, 7, 10_000]))
    tensors = {}
    for at, path in enumerate(draw(st.lists(st.sampled_from(layout.paths), min_size=1, max_size=12, unique=True))):
        for block in range(draw(st.sampled_from([1, 2, 3])) if "{i}" in path else 1):
            odd = (3 * at + block) % every == every - 1
            prefix, named = prefixes[odd], path.replace("{i}", str(block))
            module = prefix + (named.replace(".", "_") if prefix.endswith("_") else named)
            for suffix, shape in KINDS[kinds[odd]].items():
                tensors[module + suffix] = ("F32", shape, alphas[odd] if not shape else 0.5)
    for key in draw(st.lists(st.sampled_from(["use_rslora_flag", "stray", "bundle_emb.a.emb_params"]), max_size=1)):
        tensors[key] = ("F32", (1,), 1.0)
    return tensors


@pytest.mark.numeric
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(tensors=adapters())
@pytest.mark.slow
def test_programs_judge_what_is_alike_as_they_judge_each(tensors, write_safetensors):
    assert_judged_alike(read_adapter(open_checkpoint(str(write_safetensors(tensors)))))


def test_programs_judge_real_files_as_they_judge_each_of_their_changes(fixtures):
    for path in sorted(fixtures.glob("*/adapter_model.safetensors")):
        assert_judged_alike(read_adapter(open_checkpoint(str(path))))


def groups(tensors, read):
    return [[member.module.name.key for member in group.members] for group in View(read(tensors)).groups]


def test_modules_of_one_pattern_and_the_same_numbers_are_alike(read):
    names = [f"lora_unet_blocks_{at}_self_attn_{leaf}" for leaf in "qk" for at in range(3)]
    tensors = {key: tensor for name in names for key, tensor in lora(name, out=8, inputs=8).items()}
    assert groups(tensors, read) == [names[:3], names[3:]]


@pytest.mark.parametrize(
    "other",
    [
        {"rank": 4},
        {"alpha": 4.0},
        {"alpha": None},
        {"out": 16},
        {"inputs": 16},
        {"spelling": "peft"},
        {"kernel": (1, 1)},
        {"dtype": "BF16"},
    ],
    ids=str,
)
def test_what_differs_in_anything_is_not_alike(other, read):
    first, second = (f"lora_unet_blocks_{at}_self_attn_q" for at in (0, 1))
    tensors = {**lora(first, **{"out": 8, "inputs": 8}), **lora(second, **{"out": 8, "inputs": 8, **other})}
    assert groups(tensors, read) == [[first], [second]]


def test_what_stands_beside_a_change_is_a_part_of_its_kind(read):
    first, second = (f"lora_unet_blocks_{at}_self_attn_q" for at in (0, 1))
    tensors = {**lora(first, out=8, inputs=8), **lora(second, out=8, inputs=8), f"{second}.diff_b": ("F32", (8,), 0.5)}
    assert groups(tensors, read) == [[first], [second], [second]]


def test_slices_are_none_of_a_kind(read):
    name = "lora_unet_blocks_0_self_attn_q"
    assert groups(split(name, out=8, inputs=8), read) == [[name]] * 3


def test_a_question_about_the_file_is_asked_once(read):
    asked = []
    view = View(read(lora("lora_unet_blocks_0_self_attn_q")))
    assert [view.ask(asked.append) for _ in range(2)] == [None, None]
    assert asked == [view.adapter]


@pytest.mark.parametrize("mark", ["^first", "^second", "first$", "second$"])
def test_a_mark_says_where_any_key_begins_or_ends(mark):
    assert FramedKeys(["first", "second"]).hold((mark,))


@pytest.mark.parametrize("mark", ["^irst", "firs$", "^cond", "^$"])
def test_no_key_begins_or_ends_within_itself(mark):
    assert not FramedKeys(["first", "second"]).hold((mark,))


def test_without_keys_no_mark_is_held():
    assert not FramedKeys([]).hold(("^",))
