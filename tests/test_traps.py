"""The known ways in which a LoRA-family file is silently read or written wrong, and the tests that hold each of them.

Numbers are those of the list of traps. Tests are named as `file::test`, of a class as `file::Class::test`; several
stand for the several places where a trap could snap. A trap that only another program can fall into has no entry.
"""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# What is read: the meaning of a file and of a base.
READING = {
    1: (
        "a flag of RS-LoRA that is overlooked: the change is too weak by sqrt(rank)",
        "reading/test_evidence.py::test_the_scale_rule_and_its_evidence",
        "ops/test_convert.py::test_rslora_becomes_the_same_delta",
    ),
    2: (
        "LyCORIS folds sqrt(rank) into the alpha that it stores: it would be scaled twice",
        "reading/test_evidence.py::test_the_scale_rule_and_its_evidence",
        "ops/test_convert.py::test_lycoris_rslora_is_not_scaled_again",
    ),
    3: (
        "PEFT's alpha and rule stand in adapter_config.json alone",
        "reading/test_adapter.py::test_peft_weights_without_their_config_have_an_unknown_scale",
        "reading/test_adapter.py::test_the_scale_that_a_config_gives",
    ),
    4: (
        "a magnitude in a spelling that the reader does not know is lost",
        "reading/test_evidence_dora.py::test_the_scan_knows_every_spelling_and_its_axis",
    ),
    5: ("a dora_scale of one dimension has no axis", "maths/test_dora.py::test_the_axis_of_a_magnitude"),
    6: (
        "a magnitude over the norms of the base is read as one over those of the changed weight",
        "converting/test_other_norms.py::test_a_merge_of_the_output_is_that_of_the_input",
        "converting/test_other_norms.py::test_the_file_says_for_which_base_it_is_and_is_read_so",
    ),
    7: (
        "magnitudes of outputs and of inputs are told apart by shape alone",
        "maths/test_dora.py::test_the_axis_of_a_magnitude",
        "reading/test_evidence_dora.py::test_on_a_square_layer_the_place_of_the_one_tells_the_axis",
    ),
    8: (
        "DoRA at another strength than 1 means three things",
        "ops/test_merge.py::TestDora::test_takes_the_rule_of_the_spelling",
    ),
    9: (
        "blissful-tuner divides alpha by the longest side of a whole w2 of LoKr",
        "reading/test_hidden_ranks.py::test_the_flag_divides_the_alpha_of_whole_factors_alone",
    ),
    10: (
        "PEFT divides alpha by the rank of its config where both factors of LoKr are whole",
        "reading/test_hidden_ranks.py::test_the_rank_of_the_config_divides_its_alpha",
    ),
    11: (
        "LyCORIS's own merge of LoHa and LoKr squares the scale",
        "algorithms/merging_properties.py::forward_merge_formula_and_library_agree",
    ),
    12: (
        "sd-scripts saves parts of a fused layer as one of more rank, with the alpha of one",
        "reading/test_requested_rank.py::test_layers_that_split_qkv_saved_in_parts_are_applied_in_full",
    ),
    15: (
        "musubi-tuner's `--target other` guesses dots",
        "reading/test_guessed_dots.py::test_dots_are_those_of_the_family",
    ),
    16: (
        "kohya's names of HunyuanVideo on ComfyUI's names: half of the layers are dropped",
        "merging/test_foreign_layouts.py::test_hunyuan_video_of_musubi_on_the_names_of_comfyui",
    ),
    17: (
        "kohya's names of Z-Image are diffusers': the attention is not matched",
        "merging/test_foreign_layouts.py::test_z_image_of_musubi_on_the_original_names",
    ),
    18: (
        "a prefix of the base hides every weight",
        "matching/test_match.py::test_every_scheme_finds_the_weight_under_every_prefix",
    ),
    19: (
        "the first key decides for all: files of LoRA and LoKr are half read",
        "merging/test_foreign_layouts.py::test_modules_of_two_algorithms_are_each_their_own",
    ),
    20: (
        "halves of the last modulation are swapped in the rows, and not in the ranks",
        "merging/test_layouts.py::test_flux_in_diffusers_names_on_the_original_base",
    ),
    22: (
        "an alpha beside lora_A and lora_B is ignored",
        "merging/test_foreign_layouts.py::test_an_alpha_beside_the_factors_of_peft_counts",
    ),
    25: (
        "a difference beside a LoRA of one module replaces it",
        "ops/test_mixes.py::test_lora_and_differences_of_weight_and_bias_on_one_module",
    ),
    26: (
        "a limit of 0 is none, or no rotation at all",
        "algorithms/test_oft.py::test_an_alpha_that_leaves_the_limit_open",
        "algorithms/test_oft.py::test_an_alpha_that_is_the_limit_everywhere",
    ),
    27: (
        "the two ways to make PEFT's rotation turn in opposite directions",
        "algorithms/merging_properties.py::forward_merge_formula_and_library_agree",
    ),
    28: (
        "PiSSA on the original base doubles the principal components",
        "merging/test_residual_bases.py::test_on_the_original_base_it_is_what_peft_merges",
    ),
    29: (
        "a change that is added to codes as they are stored",
        "merging/test_decoding.py::test_a_lora_on_scaled_codes_is_the_formula",
    ),
    30: (
        "one scale a row of a square weight scales its columns",
        "merging/test_decoding.py::test_one_scale_a_row_of_a_square_weight_scales_rows",
    ),
    31: (
        "flags and alphas are cast with the factors",
        "reading/test_adapter.py::test_a_stored_alpha_of_every_type",
        "reading/test_evidence.py::test_the_scale_rule_and_its_evidence",
    ),
    32: (
        "an embedded config is stale after the tensors were edited",
        "reading/test_adapter.py::test_an_embedded_config_gives_alpha_and_rule_of_its_own_component",
        "reading/test_adapter.py::test_a_stored_alpha_that_contradicts_the_config_is_unknown",
    ),
    34: (
        "families that have all names in common",
        "reading/test_identify.py::test_the_screen_and_the_table_say_flux_or_chroma",
        "reading/test_identify.py::test_candidates_come_with_what_leaves_them_open_and_what_would_settle_it",
    ),
}

# What is written: the names and numbers that other programs read.
WRITING: dict[int, tuple[str, ...]] = {
    1: ("a flag that is dropped takes sqrt(rank) along", "ops/test_convert.py::test_rslora_becomes_the_same_delta"),
    4: (
        "a magnitude is lost in a spelling that the reader does not know",
        "converting/test_asked_scheme.py::test_dora_goes_where_it_is_exact_and_is_asked_for_elsewhere",
    ),
    5: (
        "a magnitude needs a dimension for the inputs",
        "converting/test_key_names.py::test_where_a_magnitude_of_outputs_goes",
    ),
    6: (
        "ComfyUI divides magnitudes of outputs by the norms of the base's rows",
        "converting/test_other_norms.py::test_comfyui_makes_what_was_trained",
        "converting/test_other_norms.py::test_it_does_not_become_a_trainers_dora_without_the_base",
    ),
    13: (
        "factors of a fused layer are taken for block-diagonal ones",
        "converting/test_layouts.py::test_flux_in_original_names_becomes_that_of_diffusers",
        "converting/test_layouts.py::test_flux_is_what_diffusers_own_converter_of_adapters_makes_of_it",
    ),
    14: (
        "parts of a fused layer have alphas of their own",
        "converting/test_layouts.py::test_flux_in_diffusers_names_becomes_original",
    ),
    15: (
        "a layer's own underscores are no dots",
        "converting/test_asked_scheme.py::test_each_scheme_has_its_name_for_a_layer",
    ),
    16: (
        "ComfyUI has names of its own for HunyuanVideo",
        "converting/test_asked_scheme.py::test_each_scheme_has_its_name_for_a_layer",
    ),
    17: (
        "the attention of Z-Image is fused in ComfyUI",
        "converting/test_asked_scheme.py::test_each_scheme_has_its_name_for_a_layer",
    ),
    20: (
        "halves are swapped in the rows of the last modulation, and not in the ranks",
        "converting/test_layouts.py::test_flux_in_diffusers_names_becomes_original",
        "converting/test_target_layout.py::test_halves_change_places",
    ),
    22: (
        "an alpha beside names of diffusers is discarded",
        "converting/test_asked_scheme.py::test_suffixes_and_alpha_are_those_of_the_scheme",
    ),
    23: (
        "diffusers reads no alpha of FLUX's last layers, nor their names under kohya's prefix",
        "converting/test_asked_scheme.py::test_the_last_layers_of_flux_are_diffusers_own",
    ),
    24: (
        "one foreign key keeps diffusers from a whole file",
        "converting/test_asked_scheme.py::test_embeddings_go_where_they_are_read",
    ),
    25: (
        "a difference beside LoRA is all that programs apply",
        "converting/test_target_program.py::test_two_changes_of_one_weight_are_named",
    ),
    26: (
        "ComfyUI takes another limit for a rotation",
        "converting/test_target_program.py::test_what_the_programs_compute",
    ),
    32: (
        "an embedded config is stale once the tensors are others",
        "ops/test_convert.py::test_stale_metadata_is_corrected_and_the_rest_kept",
    ),
    33: (
        "parts of LoHa are all of its ranks",
        "converting/test_target_layout.py::test_parts_of_loha_that_share_one_of_two_factors_keep_the_other_one",
    ),
}

NAMED = [(number, name) for traps in (READING, WRITING) for number, (_, *names) in traps.items() for name in names]


@pytest.mark.parametrize(("number", "name"), NAMED, ids=[f"{number}-{name}" for number, name in NAMED])
def test_a_test_of_the_trap_is_there(number, name):
    file, *inside = name.split("::")
    found: ast.AST = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    for step in inside:
        found = next(
            node
            for node in ast.iter_child_nodes(found)
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == step
        )
    assert isinstance(found, ast.FunctionDef)


def test_every_entry_says_what_the_trap_is_and_names_a_test():
    for traps in (READING, WRITING):
        for number, (says, *names) in traps.items():
            assert 1 <= number <= 34
            assert re.fullmatch(r"[^.]+(\.json [^.]+)?", says)
            assert names
