"""The registry of problems: all that can be wrong with a file, in the order in which it is told.

To add one is to add its entry here, its row to the table in docs/reading.md, and a file that has it to the tests.
"""

from collections.abc import Callable, Iterable

from lora_inspect.reading.config_alone import missing_weights
from lora_inspect.reading.config_problems import (
    contradicting_shards,
    damaged_metadata,
    missing_tokens,
    refused_patterns,
)
from lora_inspect.reading.expert_coherence import packing_hint
from lora_inspect.reading.expert_packing import packing_setting
from lora_inspect.reading.expert_parameters import lost_parameters
from lora_inspect.reading.file_reading import FileReading
from lora_inspect.reading.formula_settings import unknown_formulas
from lora_inspect.reading.key_problems import (
    embeddings,
    foreign_schemes,
    magnitudes,
    several_schemes,
    unclaimed_tensors,
    unfit_tensors,
)
from lora_inspect.reading.problem import ERROR, NOTE, WARNING, Finding, Problem
from lora_inspect.reading.residual_base import residual_bases, residual_setting
from lora_inspect.reading.saved_tensors import missing_saved
from lora_inspect.reading.scale_problems import alpha_setting, rslora_hint, rule_setting, unknown_scales
from lora_inspect.reading.trained_scales import dylora_scale
from lora_inspect.reading.unbuilt import unbuilt_algorithms, unbuilt_configs
from lora_inspect.reading.weightless import weightless
from lora_inspect.records import NamedTuple

Look = Callable[[FileReading], Iterable[Finding]]


class Entry(NamedTuple):
    """A kind of problem: the code by which scripts know it, how serious it is, and what finds it.

    What finds several kinds stands in the entry of each.
    """

    code: str
    severity: str
    looks: tuple[Look, ...]


PROBLEMS = (
    Entry("weights-missing", ERROR, (missing_weights,)),
    Entry("no-weight", ERROR, (weightless,)),
    Entry("no-adapter", ERROR, (lambda reading: reading.rules.no_adapter(reading.checkpoint.files),)),
    # What explains shapes that fit nothing comes before these.
    Entry("scheme", ERROR, (unfit_tensors, foreign_schemes)),
    Entry("peft-setting", ERROR, (unbuilt_configs,)),
    Entry("twice", ERROR, (unfit_tensors,)),
    Entry("shape", ERROR, (unfit_tensors,)),
    Entry("incomplete", ERROR, (unfit_tensors, missing_saved, missing_tokens)),
    Entry("magnitude-shape", ERROR, (unfit_tensors,)),
    Entry("experts", ERROR, (unfit_tensors, lost_parameters)),
    Entry("algorithm", ERROR, (unbuilt_configs, unbuilt_algorithms)),
    Entry("residual-base", ERROR, (residual_bases,)),
    Entry("pattern", ERROR, (refused_patterns,)),
    Entry("shards-contradict", ERROR, (contradicting_shards,)),
    Entry("dora-conflict", ERROR, (magnitudes,)),
    Entry("dora-missing", ERROR, (magnitudes,)),
    Entry("dora-partial", ERROR, (magnitudes,)),
    Entry("dora-stripped", WARNING, (magnitudes,)),
    Entry("setting-contradicts", ERROR, (rule_setting, alpha_setting, packing_setting, residual_setting)),
    Entry("setting-repeats", NOTE, (rule_setting, alpha_setting, packing_setting)),
    Entry("scale-unknown", ERROR, (unknown_scales,)),
    Entry("formula-unknown", ERROR, (unknown_formulas,)),
    Entry("config-damaged", WARNING, (damaged_metadata,)),
    Entry("mixed-schemes", WARNING, (several_schemes,)),
    Entry("unclaimed", WARNING, (unclaimed_tensors,)),
    Entry("embeddings", NOTE, (embeddings,)),
    Entry("rslora-hint", NOTE, (rslora_hint,)),
    Entry("expert-hint", NOTE, (packing_hint,)),
    Entry(
        "trained-scale", NOTE, (dylora_scale, lambda reading: reading.rules.trained_otherwise(reading.contributions))
    ),
)


def find_problems(reading: FileReading, entries: tuple[Entry, ...] = PROBLEMS) -> tuple[Problem, ...]:
    """All that is wrong with a file; raises KeyError for a finding whose code has no entry."""
    found: dict[str, list[Problem]] = {entry.code: [] for entry in entries}
    severities = {entry.code: entry.severity for entry in entries}
    for look in dict.fromkeys(look for entry in entries for look in entry.looks):
        for code, message, keys in look(reading):
            found[code].append(Problem(code, severities[code], message, keys))
    return tuple(problem for problems in found.values() for problem in problems)
