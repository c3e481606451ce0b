"""What a program's rules make of a file: on toy programs, so that each field of a rule decides something."""

import pytest
from adapters import lora, split

from lora_inspect.ops.compat import compat
from lora_inspect.programs import added
from lora_inspect.programs.record import (
    BASE_NORM,
    COMPUTES,
    FAILS,
    HIDING,
    INFIXED,
    LEAVES,
    MISREADS,
    OTHER_AXIS,
    READ,
    SILENT,
    SLICED,
    TEXT_ENCODERS,
    WARNS,
    Loader,
    LoadFailure,
    Program,
    Rule,
    ScaleOfFile,
    Strangers,
    one,
)
from lora_inspect.programs.verdict import needs_fix
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.scale.dora_evidence import NORMS_KEY, NormsRecord

LORA = Rule(kinds={"lora": COMPUTES})
WAN_Q, WAN_K = "lora_unet_blocks_0_self_attn_q", "lora_unet_blocks_0_self_attn_k"
SAYS = "key not loaded"


TALKS = Strangers(WARNS, SAYS)


def toy_program(*rules, strangers=TALKS, **fields):
    loader = Loader(rules=rules, strangers=strangers, **fields)
    return Program("toy", "Toy", "1.0", (loader,), {})


@pytest.fixture
def judged(write_safetensors):
    def judge(program, tensors, metadata=None):
        with added(program):
            (found,) = compat(str(write_safetensors(tensors, metadata)), "toy").verdicts
        return found

    return judge


def wan(*modules, **options):
    found = {}
    for module in modules or (WAN_Q, WAN_K):
        found |= lora(module, out=8, inputs=8, **options)
    return found


def test_a_plain_file_has_the_same_meaning(judged):
    found = judged(toy_program(LORA), wan())
    assert (found.verdict, found.factor, found.silent, found.ignored, found.by) == (
        "same meaning",
        1.0,
        False,
        (),
        "run",
    )


def test_a_rule_that_was_only_read_says_so(judged):
    assert judged(toy_program(LORA._replace(by=READ)), wan()).by == "read"


def test_a_program_without_the_flag_applies_less(judged):
    found = judged(toy_program(LORA), {**wan(), "use_rslora_flag": ("F32", (), 1.0)})
    assert (found.verdict, found.factor, found.silent) == ("wrong strength", 0.25, True)
    assert found.ignored == ("use_rslora_flag",)


def test_a_program_that_fails_on_flags_refuses_the_file(judged):
    strict = toy_program(LORA, others=Strangers(FAILS, "ValueError"))
    found = judged(strict, {**wan(), "use_rslora_flag": ("F32", (), 1.0)})
    assert (found.verdict, found.says, found.factor) == ("refused", "ValueError", None)


def test_a_scale_rule_is_asked_for_each_change(judged):
    tensors = {**wan(WAN_Q, alpha=8.0), **wan(WAN_K, alpha=32.0)}
    found = judged(toy_program(LORA._replace(scale=one)), tensors)
    assert found.verdict == "wrong strength"
    assert found.factors == {0.5: 1, 2.0: 1}


def test_an_unknown_scale_is_unknown(judged):
    assert judged(toy_program(LORA._replace(scale=lambda given: None)), wan()).verdict == "not tested"


def test_names_that_no_rule_speaks_of_are_unknown(judged):
    found = judged(toy_program(LORA._replace(prefixes=("diffusion_model.",))), wan())
    assert (found.verdict, found.by) == ("not tested", "")
    assert WAN_Q in found.says


@pytest.mark.parametrize(
    ("strangers", "verdict", "silent"),
    [
        (Strangers(SILENT), "nothing loaded", True),
        (Strangers(WARNS, SAYS), "nothing loaded", False),
        (Strangers(FAILS, SAYS), "refused", False),
        (Strangers(WARNS, SAYS, most=5, beyond="too many"), "refused", False),
        (Strangers(WARNS, SAYS, most=6, beyond="too many"), "nothing loaded", False),
    ],
)
def test_names_without_a_layer_are_left(judged, strangers, verdict, silent):
    found = judged(toy_program(Rule(), strangers=strangers), wan())
    assert (found.verdict, found.silent) == (verdict, silent)
    assert verdict == "refused" or len(found.ignored) == 6


def test_names_that_the_program_trips_over_refuse_the_file(judged):
    rules = (Rule(alpha=True, says="KeyError"), LORA)
    assert judged(toy_program(*rules), wan()).verdict == "refused"
    assert judged(toy_program(*rules), wan(alpha=None)).verdict == "same meaning"
    assert judged(toy_program(rules[0]._replace(alpha=False), LORA), wan(alpha=None)).says == "KeyError"


def test_a_part_of_the_layout_may_be_lacking(judged):
    found = judged(toy_program(LORA._replace(lacks=("blocks.{i}.self_attn.k",))), wan())
    assert (found.verdict, found.factor) == ("partly loaded", 1.0)
    assert all(key.startswith(WAN_K) for key in found.ignored)
    assert SAYS in found.says


def test_rules_speak_of_families_and_layouts(judged):
    plain = wan(
        *(f"lora_unet_blocks_{i}_{leaf}" for i in range(2) for leaf in ("self_attn_q", "cross_attn_v", "ffn_0"))
    )
    assert judged(toy_program(LORA._replace(families=("wan",), layouts=("original",))), plain).verdict == "same meaning"
    assert judged(toy_program(LORA._replace(families=("flux",))), plain).verdict == "not tested"
    assert judged(toy_program(LORA._replace(families=("wan",), layouts=("diffusers",))), plain).verdict == "not tested"
    found = judged(toy_program(LORA, families=("flux",)), plain)
    assert (found.verdict, found.says) == ("has no such models", "no models of Wan 2.1 / 2.2 are known there")


def test_text_encoders_are_a_layout_of_their_own(judged):
    encoder = lora("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", out=768, inputs=768)
    rule = LORA._replace(prefixes=("lora_te1_",), layouts=(TEXT_ENCODERS,))
    assert judged(toy_program(rule), encoder).verdict == "same meaning"
    assert judged(toy_program(rule._replace(prefixes=("lora_te2_",))), encoder).verdict == "not tested"


def test_text_encoders_of_one_kind_have_the_root_of_their_blocks(judged):
    encoder = lora("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", out=768, inputs=768)
    clip, t5 = "text_model.encoder.layers.{i}", "encoder.block.{i}.layer.{i}"
    assert judged(toy_program(LORA._replace(layouts=(clip,))), encoder).verdict == "same meaning"
    assert judged(toy_program(LORA._replace(layouts=(t5,))), encoder).verdict == "not tested"


def test_a_rule_may_ask_for_a_key_of_the_file(judged):
    key = f"{WAN_K}.lora_down.weight"
    rule = LORA._replace(where=lambda adapter: key in adapter.checkpoint.tensors)
    assert judged(toy_program(rule), wan()).verdict == "same meaning"
    assert judged(toy_program(rule), wan(WAN_Q)).verdict == "not tested"


def test_a_scale_that_depends_on_the_other_modules_is_made_once_for_a_file(judged):
    made = []

    def scale_of(adapter):
        made.append(adapter)
        return lambda given: given.contribution.scale * len(adapter.modules)

    found = judged(toy_program(LORA._replace(scale=ScaleOfFile(scale_of))), wan())
    assert (found.verdict, found.factor) == ("wrong strength", 2.0)
    assert len({id(adapter) for adapter in made}) == len(made)


def test_a_scale_that_no_tensor_has_is_not_applied(judged):
    metadata = {"lora_adapter_metadata": '{"transformer.r": 16, "transformer.lora_alpha": 32}'}
    modules = ("transformer.blocks.0.attn1.to_q", "transformer.blocks.0.attn1.to_k")
    found = judged(toy_program(LORA), wan(*modules, spelling="peft", alpha=None), metadata)
    assert (found.verdict, found.factor) == ("wrong strength", 0.5)


def test_the_spelling_of_factors_decides(judged):
    peft = wan(spelling="peft")
    assert judged(toy_program(LORA._replace(dialects=("peft",))), peft).verdict == "same meaning"
    assert judged(toy_program(LORA._replace(dialects=("kohya",))), peft).verdict == "not tested"


def test_slices_and_infixes_have_to_be_named(judged):
    sliced = split("lora_unet_blocks_0_self_attn_q", out=8, inputs=8)
    infixed = {key.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default."): tensor
               for key, tensor in wan(spelling="peft").items()}  # fmt: skip
    for tensors, name in ((sliced, SLICED), (infixed, INFIXED)):
        assert judged(toy_program(LORA), tensors).verdict == "not tested"
        assert judged(toy_program(LORA._replace(dialects=(name,))), tensors).verdict == "same meaning"


def test_tensors_of_a_module_count_once_towards_the_limit(judged):
    tensors = wan(WAN_Q) | {f"{WAN_Q}.diff_b": ("F32", (8,), 0.5)}
    limited = Strangers(WARNS, SAYS, most=4, beyond="too many")
    assert judged(toy_program(Rule(), strangers=limited), tensors).verdict == "nothing loaded"
    assert judged(toy_program(Rule(), strangers=limited._replace(most=3)), tensors).verdict == "refused"


@pytest.mark.parametrize(
    ("does", "verdict"),
    [(LEAVES, "partly loaded"), (MISREADS, "wrong change"), (FAILS, "refused"), ("", "not tested")],
)
def test_kinds_are_treated_each_in_its_way(judged, does, verdict):
    tensors = {**wan(WAN_K), f"{WAN_Q}.diff": ("F32", (8, 8), 0.5)}
    assert judged(toy_program(Rule(kinds={"lora": COMPUTES, "full": does})), tensors).verdict == verdict
    assert judged(toy_program(Rule(kinds={"lora": COMPUTES, "": does})), tensors).verdict == verdict


def test_a_single_role_may_be_treated_otherwise(judged):
    tucker = wan(kernel=(1, 1)) | {f"{WAN_Q}.lora_mid.weight": ("F32", (16, 16, 3, 3), 0.5)}
    assert judged(toy_program(LORA._replace(parts={"lora.mid": LEAVES})), tucker).verdict == "partly loaded"


@pytest.mark.parametrize(
    ("does", "verdict"),
    [
        (LEAVES, "partly loaded"),
        (MISREADS, "wrong change"),
        (FAILS, "refused"),
        ("", "not tested"),
        (None, "same meaning"),
    ],
)
def test_a_single_contribution_may_be_an_exception(judged, does, verdict):
    def of_high_rank(given):
        return does if given.contribution.rank == 16 else None

    tensors = {**wan(WAN_Q), **wan(WAN_K, rank=4)}
    assert judged(toy_program(LORA._replace(exceptions=of_high_rank)), tensors).verdict == verdict
    assert judged(toy_program(LORA._replace(exceptions=of_high_rank)), wan(rank=4)).verdict == "same meaning"


def test_what_a_program_says_of_one_contribution_is_the_refusal(judged):
    rule = LORA._replace(exceptions=lambda given: LoadFailure("TypeError") if given.contribution.rank == 16 else None)
    found = judged(toy_program(rule._replace(says="other")), {**wan(WAN_Q), **wan(WAN_K, rank=4)})
    assert (found.verdict, found.says) == ("refused", "TypeError")


def test_a_single_contribution_may_be_passed_over_with_words_of_its_own(judged):
    def of_high_rank(given):
        return Strangers(WARNS, "ERROR") if given.contribution.rank == 16 else None

    found = judged(toy_program(LORA._replace(exceptions=of_high_rank)), {**wan(WAN_Q), **wan(WAN_K, rank=4)})
    assert (found.verdict, found.silent) == ("partly loaded", False)
    assert found.says.endswith("it prints: ERROR")


@pytest.mark.parametrize(
    ("does", "verdict", "silent"),
    [
        (COMPUTES, "same meaning", False),
        (LEAVES, "DoRA lost", False),
        (BASE_NORM, "DoRA wrong", True),
        (OTHER_AXIS, "DoRA wrong", True),
        (FAILS, "refused", False),
        ("", "not tested", False),
    ],
)
def test_magnitudes_are_treated_each_in_its_way(judged, does, verdict, silent):
    tensors = wan()
    tensors |= {f"{module}.dora_scale": ("F32", (8, 1), 1.0) for module in (WAN_Q, WAN_K)}
    found = judged(toy_program(LORA._replace(magnitudes={".dora_scale output": does})), tensors)
    assert (found.verdict, found.silent) == (verdict, silent)
    if does == LEAVES:
        assert len(found.ignored) == 2


BIG, SMALL = wan(WAN_Q, alpha=8.0), wan(WAN_K, alpha=32.0)


@pytest.mark.parametrize(
    ("rule", "tensors", "effect"),
    [
        (LORA._replace(scale=one), wan(alpha=32.0), "0.5 times the right scale, so the effect is too weak"),
        (LORA._replace(scale=one), wan(alpha=8.0), "2 times the right scale, so the effect is too strong"),
        (LORA._replace(scale=one), {**BIG, **SMALL}, "so the modules are not in their trained proportion"),
        (LORA._replace(scale=lambda given: 0.0), wan(), "0 times the right scale, so the adapter has no effect"),
        (LORA._replace(scale=lambda given: -1.0), wan(), "so the effect is reversed"),
        (LORA._replace(kinds={"lora": MISREADS}), wan(), "another change of LoRA, so the result will differ"),
        (Rule(), wan(), "it loads nothing, so the adapter has no effect; it prints: key not loaded"),
        (
            LORA._replace(lacks=("blocks.{i}.self_attn.k",)),
            wan(),
            "it leaves out 1 of 2 changes, so their effect is missing; it prints: key not loaded",
        ),
    ],
)
def test_a_verdict_names_its_effect(judged, rule, tensors, effect):
    assert judged(toy_program(rule), tensors).says.endswith(effect)


@pytest.mark.parametrize(
    ("does", "says"),
    [
        (LEAVES, "it applies plain LoRA without the magnitudes, so the result will differ; it prints: key not loaded"),
        (BASE_NORM, "it divides the magnitudes by the base's norms, so the result will differ"),
    ],
)
def test_a_verdict_on_magnitudes_names_its_effect(judged, does, says):
    tensors = wan() | {f"{module}.dora_scale": ("F32", (8, 1), 1.0) for module in (WAN_Q, WAN_K)}
    assert judged(toy_program(LORA._replace(magnitudes={".dora_scale output": does})), tensors).says == says


def test_compat_says_that_a_refusal_is_an_error(write_safetensors, run):
    shown = run("compat", write_safetensors(wan()), "--for", "peft").stdout
    assert "it stops with an error: it finds no adapter_config.json next to the tensors" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("does", "axis", "verdict", "says"),
    [
        (BASE_NORM, "output", "same meaning", ""),
        (COMPUTES, "output", "DoRA wrong", "by the norms of the changed weight, but they are over the base's"),
        (OTHER_AXIS, "output", "DoRA wrong", "by norms along the other axis"),
        (LEAVES, "output", "DoRA lost", "without the magnitudes"),
        # Of inputs there is one rule alone.
        (COMPUTES, "input", "same meaning", ""),
    ],
)
def test_magnitudes_over_the_norms_of_the_base_are_right_where_those_divide(judged, does, axis, verdict, says):
    shape = (8, 1) if axis == "output" else (1, 8)
    tensors = wan() | {f"{module}.dora_scale": ("F32", shape, 1.0) for module in (WAN_Q, WAN_K)}
    rule = LORA._replace(magnitudes={f".dora_scale {axis}": does})
    found = judged(toy_program(rule), tensors, {NORMS_KEY: NormsRecord("base", "w", "").text()})
    assert found.verdict == verdict
    assert says in found.says


def test_a_file_of_several_families_is_judged_as_each(judged):
    # Names that FLUX and Chroma have in common.
    names = [f"lora_unet_double_blocks_0_img_attn_{leaf}" for leaf in ("qkv", "proj")]
    tensors = {key: tensor for name in names for key, tensor in lora(name, out=3072, inputs=3072).items()}
    found = judged(toy_program(LORA._replace(families=("flux",))), tensors)
    assert found.verdict == "not tested"
    assert "depends on the model of the file" in found.says
    found = judged(toy_program(LORA), tensors)
    assert found.verdict == "same meaning"
    assert all(title in found.says for title in ("FLUX.1", "Chroma", "the verdict is the same for each"))


# Every double block of FLUX.1 and Chroma.
OPEN = [f"lora_unet_double_blocks_{block}_img_attn_proj" for block in range(19)]


@pytest.mark.parametrize(
    ("families", "verdict", "says"),
    [
        (("flux",), "same meaning", "the file may be of FLUX.1 or Chroma, and no models of Chroma are known there"),
        (("chroma",), "same meaning", "and no models of FLUX.1 are known there"),
        (("flux", "chroma"), "same meaning", "the file may be of FLUX.1 or Chroma, and the verdict is the same"),
        (("wan",), "has no such models", "no models of FLUX.1 or Chroma are known there"),
    ],
)
def test_a_family_that_a_program_has_no_models_of_does_not_count(judged, families, verdict, says):
    tensors = {key: tensor for name in OPEN for key, tensor in lora(name, out=3072, inputs=3072).items()}
    found = judged(toy_program(LORA, families=families), tensors)
    assert found.verdict == verdict
    assert says in found.says


def test_families_that_a_program_treats_otherwise_leave_the_verdict_open(judged):
    tensors = {key: tensor for name in OPEN for key, tensor in lora(name, out=3072, inputs=3072).items()}
    rules = (LORA._replace(families=("flux",)), Rule(families=("chroma",), says="no key"))
    found = judged(toy_program(*rules, families=("flux", "chroma")), tensors)
    assert found.verdict == "not tested"
    assert found.says == "it depends on the model of the file: same meaning as FLUX.1 or refused as Chroma"
    assert judged(
        toy_program(*rules, families=("flux", "chroma")), tensors, {"ss_base_model_version": "chroma"}
    ).says == ("no key")


def test_what_refuses_a_whole_file_is_asked(judged):
    def limited(adapter):
        return "rank above 8" if any((c.rank or 0) > 8 for c in adapter.contributions) else None

    assert judged(toy_program(LORA, refuses=limited), wan()).says == "rank above 8"
    assert judged(toy_program(LORA, refuses=limited), wan(rank=8)).verdict == "same meaning"


def test_factors_whose_first_values_are_in_the_base_are_misread(judged):
    pissa = {"ss_init_lora_weights": "pissa"}
    assert judged(toy_program(LORA), wan(), pissa).verdict == "wrong change"
    assert "pissa" in judged(toy_program(LORA), wan(), pissa).says
    assert judged(toy_program(LORA._replace(residual=True)), wan(), pissa).verdict == "same meaning"


def loading(*loaders):
    return Program("toy", "Toy", "1.0", tuple(loaders), {})


@pytest.mark.parametrize(
    ("mark", "verdict"),
    [
        ("lora_down", "same meaning"),
        ("^lora_unet_", "same meaning"),
        (".alpha$", "same meaning"),
        ("^unet_", "refused"),
        ("lora_down$", "refused"),
    ],
)
def test_the_loader_is_the_first_that_finds_its_mark(judged, mark, verdict):
    refuses = Loader(rules=(), strangers=TALKS, refuses=lambda adapter: "another file")
    marked = Loader(rules=(LORA,), strangers=TALKS, marks=(mark, "no such key"))
    assert judged(loading(marked, refuses), wan()).verdict == verdict


def test_a_loader_may_want_a_mark_in_every_key(judged):
    marked = Loader(rules=(LORA,), strangers=TALKS, marks=("lora_down", "lora_up"), all_marked=True)
    assert judged(loading(marked), wan(alpha=None)).verdict == "same meaning"
    assert judged(loading(marked), wan()).verdict == "not tested"


def test_what_rules_leave_and_flags_are_told_from_strangers(judged):
    strict = toy_program(
        LORA._replace(magnitudes={".dora_scale output": LEAVES}),
        strangers=Strangers(FAILS, "left over"),
        leaves=Strangers(WARNS, "no DoRA"),
        flags=Strangers(SILENT),
    )
    decomposed = wan() | {f"{module}.dora_scale": ("F32", (8, 1), 1.0) for module in (WAN_Q, WAN_K)}
    found = judged(strict, decomposed)
    assert (found.verdict, found.silent) == ("DoRA lost", False)
    assert "no DoRA" in found.says
    assert judged(strict, {**wan(), "use_rslora_flag": ("F32", (), 1.0)}).verdict == "wrong strength"
    assert judged(strict, {**wan(), "extra": ("F32", (), 1.0)}).says == "left over"


def test_blocks_may_have_to_be_complete(judged):
    complete = toy_program(LORA, complete=("blocks.{i}.self_attn.q", "blocks.{i}.self_attn.k"))
    assert judged(complete, wan()).verdict == "same meaning"
    assert judged(complete, wan(WAN_Q)).says == "it has nothing for blocks.0.self_attn.k"
    second = wan(*(name.replace("_0_", "_1_") for name in (WAN_Q, WAN_K)))
    assert judged(complete, wan() | second).verdict == "same meaning"
    assert judged(complete, second).says == "it has nothing for blocks.0.self_attn.q"


def test_what_depends_on_a_whole_file_is_unknown(judged):
    found = judged(toy_program(LORA, unsure=lambda adapter: "its choice between two scales"), wan())
    assert (found.verdict, found.says) == ("not tested", "its choice between two scales is unknown")


def test_a_rule_may_speak_of_some_paths(judged):
    rules = (LORA._replace(paths=("blocks.{i}.self_attn.q",)), Rule(paths=("blocks.{i}.self_attn.k",)))
    assert judged(toy_program(*rules), wan()).verdict == "partly loaded"
    assert judged(toy_program(rules[0]), wan()).verdict == "not tested"


@pytest.mark.parametrize(
    ("times", "verdict"), [(1.0009, "same meaning"), (1.01, "wrong strength"), (0.99, "wrong strength")]
)
def test_a_strength_is_right_to_the_rounding_of_half_precision(judged, times, verdict):
    found = judged(toy_program(LORA._replace(scale=lambda given: given.contribution.scale * times)), wan())
    assert found.verdict == verdict


def test_a_residual_base_that_is_given_has_no_first_values_left(write_safetensors):
    path = str(write_safetensors(wan(), {"ss_init_lora_weights": "pissa"}))
    with added(toy_program(LORA)):
        (found,) = compat(path, "toy", Settings(residual=True)).verdicts
    assert found.verdict == "same meaning"


@pytest.mark.parametrize(("takes", "ignored"), [(True, 0), (False, 1)])
def test_embeddings_are_strangers_where_nothing_takes_them(judged, takes, ignored):
    bundle = {"bundle_emb.token.string_to_param.*": ("F32", (2, 768), 0.5)}
    found = judged(toy_program(LORA, embeddings=takes), wan() | bundle)
    assert (found.verdict, len(found.ignored)) == ("same meaning", ignored)


def test_nothing_is_offered_for_what_is_unknown(judged):
    found = judged(toy_program(LORA._replace(prefixes=("diffusion_model.",))), wan())
    assert (found.fix, needs_fix(found)) == (None, False)


def test_keys_that_hide_a_part_of_the_path_have_to_be_named(judged):
    attention = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor"
    tensors = {
        f"{attention}.to_{leaf}_lora.{side}.weight": ("F32", shape, 0.5)
        for leaf in "qkv"
        for side, shape in (("down", (4, 320)), ("up", (320, 4)))
    }
    assert judged(toy_program(LORA), tensors).verdict == "not tested"
    assert judged(toy_program(LORA._replace(dialects=(HIDING,))), tensors).verdict == "same meaning"
