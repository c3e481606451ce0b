"""The record of an output has every given option of its verb, so that a new option cannot be forgotten."""

import importlib
import inspect
import json
from dataclasses import dataclass, replace
from types import SimpleNamespace

import click
import pytest
import torch
from dense_sums import kohya, metadata_of
from safetensors.torch import save_file

import lora_inspect
from lora_inspect import combine, merge, option
from lora_inspect.algebra.options import (
    PERMISSIONS,
    RECORDED_IN,
    AverageRequest,
    CombineRequest,
    ExtractRequest,
    ResizeRequest,
    recorded_options,
)
from lora_inspect.merging import record as merge_record
from lora_inspect.merging.options import UNRECORDED as UNRECORDED_OF_MERGE
from lora_inspect.merging.options import MergeOptions, MergeRequest, merge_options
from lora_inspect.ops.average import average, plan_average
from lora_inspect.ops.combine import combine as combine_planned
from lora_inspect.ops.combine import plan_combine
from lora_inspect.ops.extract import extract as extract_planned
from lora_inspect.ops.extract import plan_extract
from lora_inspect.ops.resize import plan_resize, resize
from lora_inspect.reading.model.settings import Settings, requested_settings, spell_settings

REQUESTS = {
    "combine": CombineRequest,
    "resize": ResizeRequest,
    "average": AverageRequest,
    "extract": ExtractRequest,
    "merge": MergeRequest,
}
# Keys of every record, which no option may have as its name.
FIXED = {"version", "verb", "inputs", "rule", "dtype", "error", "rounding", "method", "weights"}


def value_of(declared):
    """A value of an option that is not its default."""
    kind = declared.option.kind
    if kind == option.FLAG:
        return not declared.default
    if kind == option.CHOICE:
        return next(choice for choice in declared.option.chosen_from if choice != declared.default)
    return {
        option.TEXT: "flux",
        option.PATH: "folder/file",
        option.DTYPE: "F16",
        option.WHOLE: 3,
        option.NUMBER: 0.25,
        option.YES_NO: True,
        option.NAMES: ("blocks.0",),
        option.ANSWERS: {"*": True},
    }[kind]


def options_of(verb):
    return option.declared(REQUESTS[verb])


CASES = [(verb, name) for verb in REQUESTS if verb != "merge" for name in options_of(verb)]
UNRECORDED = {*PERMISSIONS, *RECORDED_IN}
# Parameters of the commands and of the functions that decide where an output stands and what is printed.
OF_COMMANDS = {"output", "force", "dry_run", "as_json", "timeout", "quiet", "verbose", "share", "is_finish"}
OF_FUNCTIONS = {"output", "force", "progress"}


@pytest.mark.parametrize("verb", REQUESTS)
def test_command_has_no_undeclared_option(verb):
    module = importlib.import_module(f"lora_inspect.cli.{'' if verb == 'merge' else 'algebra.'}{verb}")
    named = {one.name for one in getattr(module, verb).params if not isinstance(one, click.Argument)}
    assert named - OF_COMMANDS == options_of(verb).keys()


@pytest.mark.parametrize("verb", REQUESTS)
def test_function_has_no_undeclared_option(verb):
    parameters = inspect.signature(getattr(lora_inspect, verb)).parameters.values()
    named = {one.name for one in parameters if one.kind == one.KEYWORD_ONLY}
    assert named - OF_FUNCTIONS <= options_of(verb).keys()


@pytest.mark.parametrize(("verb", "name"), CASES)
def test_record_has_each_option_of_verb(verb, name):
    declared = options_of(verb)[name]
    request = REQUESTS[verb](**{name: value_of(declared)})
    expected = {"base": "file", "model_config": "file", "include": ["blocks.0"], "exclude": ["blocks.0"]}
    expected |= {"only": ["blocks.0"]}
    record = {} if name in UNRECORDED else {name: expected.get(name, value_of(declared))}
    assert recorded_options(request) == record
    assert json.loads(json.dumps(record)) == record
    assert name in UNRECORDED or name not in FIXED


@pytest.mark.parametrize("verb", [verb for verb in REQUESTS if verb != "merge"])
def test_record_of_defaults_is_empty(verb):
    assert recorded_options(REQUESTS[verb]()) == {}


# What the options in other keys of a record are there: with --method for those that need one.
IN_OTHER_KEYS = {
    "rank": ({"rank": 3}, {"rank": 3}),
    "energy": ({"energy": 0.75}, {"energy": 0.75}),
    "max_error": ({"max_error": 0.5}, {"max_error": 0.5}),
    "size": ({"size": "9KB"}, {"size": 9000}),
    "max_rank": ({"max_rank": 3}, {"max_rank": 3}),
    "method": ({"method": "iso-c"}, {"name": "iso-c"}),
    "density": ({"method": "ties", "density": 0.5}, {"name": "ties", "density": 0.5}),
    "t": ({"method": "slerp", "t": 0.25}, {"name": "slerp", "t": 0.25}),
    "seed": ({"method": "dare", "density": 0.5, "seed": 3}, {"name": "dare", "density": 0.5, "seed": 3}),
    "lambda_": ({"lambda_": 0.5}, {"name": "sum", "lambda": 0.5}),
    "calibrate": ({"calibrate": "energy"}, {"name": "sum", "calibrate": "energy"}),
    "clip_sigma": ({"clip_sigma": 2.0}, {"name": "sum", "clip_sigma": 2.0}),
    "dtype": ({"dtype": "bf16"}, "BF16"),
    "weights": ({"weights": "weights.toml"}, ["0.5", ""]),
}


@pytest.mark.parametrize("name", RECORDED_IN)
def test_option_is_in_other_key_of_record(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [kohya(tmp_path / f"{name}.safetensors", seed)[0] for seed, name in ((1, "a"), (2, "b"))]
    (tmp_path / "weights.toml").write_text('["a.safetensors"]\nmultiplier = 0.5\n', encoding="utf-8")
    given, expected = IN_OTHER_KEYS[name]
    combine(paths, tmp_path / "out.safetensors", **given)
    record = json.loads(metadata_of(tmp_path / "out.safetensors")["lora_inspect.combined"])
    part = record[RECORDED_IN[name]]
    assert (part if name != "weights" else [one["settings"] for one in part]) == expected
    assert record.keys() <= FIXED - {"weights"}


@pytest.mark.parametrize("name", PERMISSIONS)
def test_permission_does_not_change_output(name, tmp_path):
    paths = [kohya(tmp_path / f"{seed}.safetensors", seed)[0] for seed in (1, 2)]
    for output, given in (("without", {}), ("with", {name: True})):
        combine(paths, tmp_path / f"{output}.safetensors", **given)
    assert (tmp_path / "with.safetensors").read_bytes() == (tmp_path / "without.safetensors").read_bytes()


def test_record_has_no_folder_and_no_query_of_path():
    address = "https://host.example/models/base.safetensors?signature=secret"
    request = ResizeRequest(base=address, model_config="/home/somebody/model/")
    assert recorded_options(request) == {"base": "base.safetensors", "model_config": "model"}


def with_trial(request):
    """A request of the same class with one option more, which is given."""

    @dataclass(frozen=True)
    class Trial(type(request)):
        trial: float | None = option.number("X", "A trial.")

    return Trial(**{name: getattr(request, name) for name in option.declared(type(request))}, trial=0.125)


def trial_of_combine(folder, request, multiplier):
    adapters = [(kohya(folder / f"{seed}.safetensors", seed)[0], Settings()) for seed in (1, 2)]
    combine_planned(plan_combine(adapters, str(folder / "out.safetensors"), with_trial(request)))


def trial_of_one(folder, request, multiplier):
    adapter = kohya(folder / "a.safetensors", 1)[0], Settings(multiplier=multiplier)
    combine_planned(plan_combine([adapter], str(folder / "out.safetensors"), with_trial(request)))


def trial_of_resize(folder, request, multiplier):
    path = kohya(folder / "a.safetensors", 1)[0]
    resize(plan_resize(path, Settings(), str(folder / "out.safetensors"), with_trial(request)))


def trial_of_average(folder, request, multiplier):
    files = [(kohya(folder / f"{seed}.safetensors", seed)[0], Settings()) for seed in (1, 2)]
    average(plan_average(files, str(folder / "out.safetensors"), with_trial(request)))


def trial_of_extract(folder, request, multiplier):
    generator = torch.Generator().manual_seed(0)
    base = {"model.layers.0.self_attn.q_proj.weight": torch.randn(8, 8, generator=generator)}
    save_file(base, folder / "base.safetensors")
    save_file({key: value + torch.ones(8, 8) for key, value in base.items()}, folder / "tuned.safetensors")
    paths = str(folder / "tuned.safetensors"), str(folder / "base.safetensors")
    extract_planned(plan_extract(*paths, with_trial(request), str(folder / "out")))


TRIALS = {
    "combine": (trial_of_combine, CombineRequest()),
    "combine by a method": (trial_of_combine, CombineRequest(method="ties", density=0.5)),
    "combine of one": (trial_of_one, CombineRequest()),
    "resize": (trial_of_resize, ResizeRequest(rank=2)),
    "average of changes": (trial_of_average, AverageRequest()),
    "average of factors": (trial_of_average, AverageRequest(of="factors")),
    "extract": (trial_of_extract, ExtractRequest(rank=1)),
}


@pytest.mark.parametrize("case", TRIALS)
def test_new_option_is_in_record_of_output(case, tmp_path):
    write, request = TRIALS[case]
    write(tmp_path, request, 0.5)
    files = [*tmp_path.glob("out*.safetensors"), *tmp_path.glob("out*/*.safetensors")]
    record = json.loads(metadata_of(files[0])["lora_inspect.combined"])
    assert record["trial"] == 0.125


# Merging.


def recorded_of_merge(options):
    return merge_record._options(SimpleNamespace(options=options, resized={}))


@pytest.mark.parametrize("name", options_of("merge"))
def test_merge_record_has_each_option(name):
    value = value_of(options_of("merge")[name])
    beside = {"seed": {"rounding": "stochastic"}}.get(name, {})
    request = MergeRequest(**{name: value}, **beside)
    if name in UNRECORDED_OF_MERGE:
        assert name in ("weights", "hash_base")
        return
    recorded = recorded_of_merge(merge_options(request))
    expected = {"only": ["blocks.0"], "include": ["blocks.0"], "exclude": ["blocks.0"], "transposed": ["yes"]}
    if name in ("rslora", "alpha", "expert_packing", "architecture"):  # those of each adapter
        assert spell_settings(requested_settings(request))
        assert recorded == {}
    else:
        assert recorded.pop(merge_record.RECORDED_AS.get(name, name)) == expected.get(name, value)
        assert recorded.keys() <= {"rounding", "seed"}


def test_merge_record_has_new_option():
    @dataclass(frozen=True)
    class Trial(MergeOptions):
        trial: float | None = None

    assert recorded_of_merge(Trial(trial=0.125)) == {"trial": 0.125}
    assert recorded_of_merge(replace(Trial(trial=0.125), trial=None)) == {}


def test_merge_record_has_alpha_of_command_line_per_adapter(tmp_path):
    key = "base_model.model.blocks.0.attn.q"
    factors = {f"{key}.lora_A.weight": torch.ones(4, 8), f"{key}.lora_B.weight": torch.ones(6, 4)}
    adapter, base = tmp_path / "alone.safetensors", tmp_path / "base.safetensors"
    save_file(factors, adapter)
    save_file({"blocks.0.attn.q.weight": torch.ones(6, 8)}, base)
    merge(base, [adapter], tmp_path / "merged.safetensors", alpha=2, rslora=False)
    record = json.loads(metadata_of(tmp_path / "merged.safetensors")["lora_inspect.merged"])
    assert [one["settings"] for one in record["adapters"]] == ["alpha=2,rslora=no"]
