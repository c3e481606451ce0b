"""Spectra of changes against the singular values of dense float64 matrices, and the numbers of several together."""

import json
import math

import numpy
import pytest
import torch
from adapters import base, loras
from dense_sums import key, kohya
from every_case import CASES, WrittenCase
from pseudo_terminal import on_a_terminal
from safetensors.torch import load_file, save_file

import lora_inspect
from lora_inspect import LoraInspectError

pytestmark = pytest.mark.numeric


def dense_ranks(values):
    """The least ranks that keep 90 and 99 % of the squared norm."""
    kept = numpy.cumsum(numpy.square(values)) / numpy.square(values).sum()
    return tuple(int(numpy.argmax(kept >= share - 1e-12)) + 1 for share in (0.9, 0.99))


def by_key(found):
    return {one.key: one for one in found.layers}


def test_values_of_lora_are_those_of_the_dense_matrices(tmp_path):
    path, changes = kohya(tmp_path / "a.safetensors", 1, rank=5, alpha=3.0)
    found = by_key(lora_inspect.open_adapter(path).spectrum())
    assert found.keys() == set(map(key, changes))
    for name, matrix in changes.items():
        values = numpy.linalg.svd(matrix, compute_uv=False)
        one = found[key(name)]
        assert one.values == pytest.approx(values[:5].tolist(), rel=1e-6)
        assert (one.rest, one.ranks) == (0.0, dense_ranks(values[:5]))


SEVERAL = [
    pytest.param(case, id=f"{name}: {case.id}")
    for name in ("lora", "loha", "lokr", "oft", "full", "ia3")
    for case in CASES[name]
]


@pytest.mark.parametrize("case", SEVERAL)
def test_values_of_other_algorithms_are_those_of_what_a_merge_changes(case, tmp_path):
    written = WrittenCase(case, tmp_path)
    weights, merged = load_file(written.base), case.oracle(1.0)
    error = max(case.bound, 1e-9) * max(float(value.double().norm()) for value in weights.values())
    found = lora_inspect.open_adapter(written.adapter).spectrum(written.base)
    changed = [
        torch.linalg.svdvals((merged[name].double() - value.double()).flatten(1))
        for name, value in weights.items()
        if name in merged and name.endswith("weight") and value.dim() > 1 and not torch.equal(merged[name], value)
    ]
    ours = sorted((max(one.values, default=0.0), math.hypot(one.rest, *one.values)) for one in found.layers)
    theirs = sorted((float(values[0]), float(values.norm())) for values in changed if float(values.norm()) > error)
    ours = [one for one in ours if one[1] > error]
    assert ours == [pytest.approx(one, abs=error, rel=1e-6) for one in theirs]


def written(path, spectra):
    """A file of layers whose changes have these singular values."""
    tensors = {}
    for number, values in enumerate(spectra):
        left, right = (
            torch.linalg.qr(torch.randn(40, len(values), generator=torch.Generator().manual_seed(seed)).double()).Q
            for seed in (2 * number, 2 * number + 1)
        )
        name = f"lora_unet_blocks_{number}_self_attn_q"
        tensors[f"{name}.lora_up.weight"] = (left * torch.tensor(values, dtype=torch.float64)).contiguous()
        tensors[f"{name}.lora_down.weight"] = right.T.contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(len(values)))
    save_file(tensors, path)
    return path


SPECTRA = [[8.0, 4.0, 2.0, 1.1], [3.0, 3.0, 3.0, 3.0], [10.0, 0.1], [5.0, 1.0, 1e-9], [2.0, 1.0, 0.5, 0.5, 0.5]]


def test_a_band_has_the_quantiles_of_the_layers_that_have_a_value(tmp_path):
    found = lora_inspect.open_adapter(written(tmp_path / "a.safetensors", SPECTRA)).spectrum()
    (part,) = found.parts.values()
    # What is below 1e-7 of the first value is rounding.
    known = [[8.0, 4.0, 2.0, 1.1], [3.0] * 4, [10.0, 0.1], [5.0, 1.0], [2.0, 1.0, 0.5, 0.5, 0.5]]
    for place in range(5):
        ratios = [values[place] / values[0] for values in known if place < len(values)]
        band = part.low[place], part.median[place], part.high[place]
        assert band == pytest.approx(numpy.percentile(ratios, [10, 50, 90]).tolist(), rel=1e-6)
    ranks = numpy.array([dense_ranks(values) for values in known])
    assert (part.rank_90, part.rank_99) == tuple(numpy.median(ranks, axis=0))
    assert (part.modules, part.directions, part.sigma_1) == (5, 5, pytest.approx(10.0))
    assert next(iter(found.blocks.values())).keys() == {f"blocks.{number}" for number in range(5)}


def test_layers_that_change_nothing_do_not_count(tmp_path):
    path = written(tmp_path / "a.safetensors", [[2.0, 1.0], [0.0, 0.0]])
    found = lora_inspect.open_adapter(path).spectrum()
    assert [len(one.values) for one in found.layers] == [2, 0]
    (part,) = found.parts.values()
    assert (part.modules, part.median) == (1, pytest.approx((1.0, 0.5)))
    untrained = written(tmp_path / "b.safetensors", [[0.0, 0.0]])
    (part,) = lora_inspect.open_adapter(untrained).spectrum().parts.values()
    assert (part.modules, part.rank_90, part.median) == (0, None, ())


def test_a_difference_of_many_directions_has_the_first_ones_and_the_norm_of_the_rest(tmp_path):
    change = torch.randn(1200, 1100, generator=torch.Generator().manual_seed(1))
    save_file({"diffusion_model.blocks.0.self_attn.q.diff": change}, path := tmp_path / "a.safetensors")
    (one,) = lora_inspect.open_adapter(path).spectrum().layers
    values = numpy.linalg.svd(change.double().numpy(), compute_uv=False)
    assert len(one.values) == 64
    assert one.values[0] == pytest.approx(values[0], rel=0.05)
    assert all(ours <= its * (1 + 1e-9) for ours, its in zip(one.values, values, strict=False))
    assert math.hypot(one.rest, *one.values) == pytest.approx(float(numpy.linalg.norm(values)), rel=1e-9)
    assert one.ranks == (None, None)


def test_json_has_the_fields_of_the_result(run, tmp_path):
    path = written(tmp_path / "a.safetensors", SPECTRA)
    record = run("info", path, "--spectrum", "--json").json["spectrum"]
    assert record == json.loads(json.dumps(lora_inspect.open_adapter(path).spectrum().to_dict()))


def rows_of(shown):
    """The rows of the table below the screen by their first words."""
    *_, table = shown.stdout.split("\n\n")
    lines = [line.split() for line in table.splitlines() if line.startswith("  ")]
    return lines[0], {line[0]: line[1:] for line in lines[1:]}


def test_a_pipe_gets_numbers(run, tmp_path):
    shown = run("info", written(tmp_path / "a.safetensors", SPECTRA), "--spectrum")
    headers, rows = rows_of(shown)
    assert headers == ["part", "layers", "rank", "90%", "99%", "sigma_1", "s4/s1", "s16/s1"]
    assert rows["blocks.0"] == ["1", "4", "2", "4", "8", "0.14", "-"]
    assert rows["blocks.2"] == ["1", "2", "1", "1", "10", "-", "-"]
    assert max(map(len, shown.stdout.rpartition("\n\n")[2].splitlines())) <= 80


def test_a_terminal_gets_curves_and_bars(tmp_path):
    path = written(tmp_path / "a.safetensors", [[1.0, 0.1, 0.01, 0.001], [0.5, 0.5, 0.5, 0.5], [0.25, 0.0001]])
    ((status, shown),) = on_a_terminal([["info", path, "--norms", "--spectrum"]], tmp_path, COLUMNS="80")
    assert status == 0
    lines = shown.decode().splitlines()
    curves = [line.rstrip().rpartition(" ")[2] for line in lines if "blocks." in line][3:]
    assert curves == ["█▆▃▁", "████", "█▁"]
    bars = [next(word for word in line.split() if word[0] in "█▏▎▍▌▋▊▉") for line in lines if "blocks." in line][:3]
    # Of the norms 1.005, 1 and 0.25 in tenths of the largest one, by eighths.
    assert bars == ["█" * 10, "█" * 10, "██▌"]


def test_a_terminal_without_block_characters_gets_numbers(tmp_path):
    path = written(tmp_path / "a.safetensors", SPECTRA)
    ((_, shown),) = on_a_terminal([["info", path, "--spectrum"]], tmp_path, COLUMNS="80", PYTHONIOENCODING="ascii")
    assert b"s4/s1" in shown


def test_dora_needs_the_base(run, fixtures):
    path = fixtures / "synthetic" / "dora_without_flag.safetensors"
    found = run("info", path, "--spectrum", "--json").json["spectrum"]
    assert (found["layers"], len(found["left_out"])) == ([], 10)
    whole = run("info", path, "--spectrum", "--json", "--base", fixtures / "synthetic" / "base_f32.safetensors").json
    assert (len(whole["spectrum"]["layers"]), whole["spectrum"]["left_out"]) == (10, [])


def test_several_files_and_no_adapter_are_refused(run, write_safetensors):
    one, other = write_safetensors(loras(1), name="a.safetensors"), write_safetensors(base(1), name="b.safetensors")
    assert run("info", one, other, "--spectrum").stderr == (
        "Usage: lora-inspect info [OPTIONS] PATH[:SETTING,...]...\nTry 'lora-inspect info --help' for help.\n\n"
        "Error: --spectrum measures a single file; name one.\n"
    )
    with pytest.raises(LoraInspectError, match="it is no adapter, so it has no change to measure; name an adapter"):
        lora_inspect.open_adapter(other).spectrum()
