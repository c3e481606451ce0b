"""Grids and series too long for every run of CI: the share that CI runs, and the mark of the rest.

`pytest -m exhaustive` runs the rest, as CONTRIBUTING.md asks for before a release.
"""

from collections import Counter
from collections.abc import Iterable

import pytest

# CI runs one slow case in this many, from the first one on; 0 leaves the whole test out. Each number is prime, so that
# the cases that CI runs are of every row and every column of a grid.
ONE_IN = {
    "algebra/test_combined_in_diffusers.py::test_pipelines_make_both_adapters_of_it": 3,
    "algebra/test_every_algorithm.py::test_exact_sum_with_lora_before_it": 3,
    "algebra/test_every_algorithm.py::test_sum_of_full_rank_with_lora_after_it": 3,
    "algebra/test_families.py::test_a_merge_of_the_sum_is_the_merge_of_both": 3,
    "algebra/test_range_finder.py::test_the_error_is_near_the_least_for_every_seed": 13,
    "algebra/test_sizes_of_every_algorithm.py::test_every_algorithm_has_the_norm_of_what_a_merge_changes": 3,
    "algebra/test_sizes_of_every_algorithm.py::test_without_a_base_and_torch_a_size_is_the_same_or_left_out": 3,
    "algorithms/test_every_algorithm.py::test_every_property_holds": 3,
    "cli/test_hostile_costs.py::test_a_name_as_long_as_its_bound_costs_no_more": 3,
    "cli/test_main.py::test_a_signal_during_a_merge_leaves_nothing": 5,
    "converting/test_asked_from_libraries.py::test_every_layer_of_what_a_library_saves": 3,
    "converting/test_asked_in_libraries.py::test_every_layer_of_a_model": 5,
    "converting/test_asked_round_trips.py::test_a_cycle_of_all_schemes": 5,
    "files/test_upload.py::test_a_signal_leaves_all_or_nothing": 5,
    "files/test_upload.py::test_sending_takes_150_mb_of_memory_beside_the_merge": 0,
    "fuzz/test_known.py::test_a_file_that_is_read_or_refused": 3,
    "merging/test_layouts.py::test_flux_in_diffusers_names_on_the_original_base": 5,
    "ops/test_ended_merges.py::test_thirty_kills_leave_no_half_output_and_the_next_run_leaves_nothing_else": 0,
    "ops/test_standard_in_diffusers.py::test_every_layer_of_a_whole_flux": 0,
    "ops/test_standard_in_diffusers.py::test_what_diffusers_saves_with_metadata": 3,
    "programs/test_diffusers.py::test_pipelines_do_what_is_said_and_every_fix_makes_the_file_right": 3,
    "programs/test_diffusers_encoders.py::test_pipelines_with_encoders_do_what_is_said": 3,
    "programs/test_peft.py::test_the_verdict_is_what_peft_does": 3,
    "test_callers_states.py::test_a_call_makes_the_same_in_every_state_of_torch": 3,
}


def mark_exhaustive(items: Iterable[pytest.Item]) -> None:
    """Mark the cases that CI leaves out; a case that is asked for by its own name is never one of them."""
    seen: Counter[str] = Counter()
    for item in items:
        test = item.nodeid.partition("[")[0].removeprefix("tests/")
        if test in ONE_IN and item.get_closest_marker("slow"):
            if not ONE_IN[test] or seen[test] % ONE_IN[test]:
                item.add_marker(pytest.mark.exhaustive)
            seen[test] += 1
