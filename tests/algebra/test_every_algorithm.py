"""Sums of every algorithm with plain LoRA: a merge of the sum is the formula of the case, and the LoRA beside it.

The formulas in float64 are those of the cases in `tests/algorithms`. Where the change depends on the weight, and the
LoRA comes before it, the merge of the two adapters is the truth.
"""

import pytest
import torch
from every_case import CASES, WrittenCase
from safetensors.torch import load_file, save_file

from lora_inspect import combine, merge
from lora_inspect.algorithms import every
from lora_inspect.errors import RefusedError

pytestmark = pytest.mark.numeric
# LoRA on an Embedding is of a weight that lies the other way round, so that a sum with plain LoRA has no meaning.
TURNED = {name for name, algorithm in every().items() if algorithm.transposed}
ALPHA, RANK, OTHER = 3.0, 2, -0.5


def quick_of(cases):
    """The first case of a file of cases and the last one, which differ in the form and mostly in the layer."""
    return {cases[0].id, cases[-1].id}


EVERY = [
    pytest.param(case, id=f"{name}: {case.id}", marks=() if case.id in quick else pytest.mark.slow)
    for name, cases in CASES.items()
    for quick in [quick_of(cases)]
    for case in cases
]


class Pair:
    """A case, and plain LoRA of the same layer, in names that stand for the same module."""

    def __init__(self, case, folder):
        self.case, self.folder, self.written = case, folder, WrittenCase(case, folder)
        # A multiplier that is not the plain one, where the algorithm has any.
        self.multiplier = case.multipliers[-1]
        self.algorithms = [one.algorithm for one in self.written.contributions]
        key = self.written.contributions[0].module.key
        name = key if key.startswith(("lycoris_", "lora_transformer_")) else "layer"
        weight = case.base.get("layer.weight")
        self.lora, self.delta = None, 0.0
        if weight is not None and weight.dim() > 1:
            self.lora, self.delta = self._lora(name, weight.shape)

    def _lora(self, name, shape):
        numbers = torch.Generator().manual_seed(3)
        up = 0.1 * torch.randn(shape[0], RANK, *[1] * (len(shape) - 2), generator=numbers, dtype=torch.float64)
        down = torch.randn(RANK, *shape[1:], generator=numbers, dtype=torch.float64)
        tensors = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
        path = self.folder / "lora.safetensors"
        save_file(tensors | {f"{name}.alpha": torch.tensor(ALPHA)}, path)
        return str(path), ALPHA / RANK * (up.flatten(1) @ down.flatten(1)).reshape(shape)

    @property
    def needs_base(self):
        return any(one.multiplies or one.algorithm.replaces or None in one.shape for one in self.written.contributions)

    def summed(self, *adapters, **options):
        """The base with the sum of the adapters merged into it."""
        options |= {"base": self.written.base} if self.needs_base else {}
        if self.needs_base and self.case.dora_rule:
            options["dora_multiplier"] = self.case.dora_rule
        config = self.case.config or {}
        is_folder = adapters[0][0] == self.written.adapter and ("peft_type" in config or "lora_parameters" in config)
        out = self.folder / ("out" if is_folder else "out.safetensors")
        combine([*adapters], out, **options)
        return self.merged((str(out), 1.0))

    def merged(self, *adapters, **options):
        merge(self.written.base, [*adapters], self.folder / "merged.safetensors", force=True, **options)
        return load_file(self.folder / "merged.safetensors")

    def assert_sum(self, found, meant):
        for name, value in meant.items():
            error = float((found[name].double() - value.double()).abs().max())
            assert error <= max(self.case.bound, 1e-9) * float(value.double().abs().max()), name

    @property
    def is_turned(self):
        return any(one.name in TURNED or one.transposed for one in self.algorithms)

    @property
    def replaces(self):
        return any(one.replaces and one.parameter == "weight" for one in self.algorithms)

    @property
    def changes_bias(self):
        changes = [change for module in self.written.read.modules.values() for change in module.changes]
        biases = [change for change in changes if change.algorithm.parameter == "bias"]
        # PEFT has names for a bias on LoRA's up layer alone.
        return "layer.bias" in self.case.base and any(change.algorithm.name != "lora_bias" for change in biases)


REFUSED = r"whose sides are the other way round|changes a weight of|saved whole and replaces layer.weight, but .*too"


@pytest.mark.parametrize("case", EVERY)
def test_sum_of_full_rank_with_lora_after_it(case, tmp_path):
    pair = Pair(case, tmp_path)
    if not pair.lora and pair.replaces:
        return  # the weight of a norm stays saved whole
    own, lora = (pair.written.adapter, pair.multiplier), (pair.lora, OTHER)
    both = [own, lora] if pair.lora else [own]
    if pair.lora and (pair.is_turned or pair.replaces):
        with pytest.raises(RefusedError, match=REFUSED):
            pair.summed(*both, rank=999)
    elif "base_model.model." in pair.written.contributions[0].module.key and pair.changes_bias:
        with pytest.raises(RefusedError, match="no program reads one under peft names; choose other names"):
            pair.summed(*both, rank=999)
    else:
        meant = pair.case.oracle(pair.multiplier)
        if pair.lora:
            meant = {**meant, "layer.weight": meant["layer.weight"] + OTHER * pair.delta}
        pair.assert_sum(pair.summed(*both, rank=999), meant)


@pytest.mark.parametrize("case", EVERY)
def test_exact_sum_with_lora_before_it(case, tmp_path):
    pair = Pair(case, tmp_path)
    if not pair.lora:
        return
    both = [(pair.lora, OTHER), (pair.written.adapter, pair.multiplier)]
    if pair.is_turned or pair.replaces:
        with pytest.raises(RefusedError, match=REFUSED):
            pair.summed(*both)
    elif pair.needs_base:
        pair.assert_sum(pair.summed(*both), pair.merged(*both, dora_multiplier=case.dora_rule))
    else:
        meant = case.oracle(pair.multiplier)
        pair.assert_sum(pair.summed(*both), {**meant, "layer.weight": meant["layer.weight"] + OTHER * pair.delta})


THIN = {"adalora": 4, "tinylora": 1, "unilora": 1, "vblora": 2}


@pytest.mark.parametrize("name", THIN)
def test_products_of_chosen_or_scaled_entries_become_plain_lora(name, tmp_path):
    case = CASES[name][0]
    written = WrittenCase(case, tmp_path)
    # The second one adds nothing, so the rank is that of the first.
    result = combine([(written.adapter, 1.0), (written.adapter, 0.0)], tmp_path / "out", to="peft")
    assert result.ranks == {THIN[name]: 1}
    merge(written.base, [str(tmp_path / "out")], tmp_path / "merged.safetensors")
    found, meant = load_file(tmp_path / "merged.safetensors"), case.oracle(1.0)
    assert (found["layer.weight"] - meant["layer.weight"]).norm() < 1e-6 * meant["layer.weight"].norm()
