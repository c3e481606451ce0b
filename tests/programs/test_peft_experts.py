"""Adapters of single experts: the verdict for PEFT beside what the real PEFT computes with transformers 5."""

import json
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from tuned_models import WEIGHTS, distance, logits, save_model, save_weights

import lora_inspect
from lora_inspect.ops.compat import compat
from lora_inspect.programs.verdict import PARTLY, REFUSED, SAME, STRENGTH, UNTESTED

pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore")]

RANK = ALPHA = 4
CLOSE, FAR = 1e-5, 1e-2


def is_expert(path: str) -> bool:
    return ".experts." in path


def is_router(path: str) -> bool:
    return path.endswith((".mlp.gate", ".block_sparse_moe.gate"))


def is_shared(path: str) -> bool:
    return ".shared_expert" in path


def is_up(path: str) -> bool:
    return is_expert(path) and path.endswith((".up_proj", ".w3"))


def is_down(path: str) -> bool:
    return is_expert(path) and path.endswith((".down_proj", ".w2"))


def is_attention(path: str) -> bool:
    return "self_attn" in path


class Case(NamedTuple):
    """An adapter: the layers that have factors, the rank and alpha of each, and further fields of its config."""

    has: Callable[[str], bool] = lambda path: True
    rank: Callable[[str], int] = lambda path: RANK
    alpha: Callable[[str], float] = lambda path: ALPHA
    config: Mapping[str, Any] = MappingProxyType({})
    by_leaf: bool = False


CASES = {
    "one rank": (Case(), SAME),
    "targets by leaf": (Case(by_leaf=True), SAME),
    "another rank of the attention": (Case(rank=lambda path: 2 if is_attention(path) else RANK), SAME),
    "another rank of routers": (Case(rank=lambda path: 2 if is_router(path) else RANK), REFUSED),
    "another rank of experts": (Case(rank=lambda path: 2 if is_expert(path) else RANK), REFUSED),
    "another rank of down": (Case(rank=lambda path: 2 if is_down(path) else RANK), REFUSED),
    "another rank of up": (Case(rank=lambda path: 2 if is_up(path) else RANK), REFUSED),
    "another alpha of routers": (Case(alpha=lambda path: 2 if is_router(path) else ALPHA), STRENGTH),
    "another alpha of experts": (Case(alpha=lambda path: 2 if is_expert(path) else ALPHA), STRENGTH),
    "another alpha of down": (Case(alpha=lambda path: 2 if is_down(path) else ALPHA), STRENGTH),
    "RS-LoRA": (Case(config={"use_rslora": True}), STRENGTH),
    "dropout": (Case(config={"lora_dropout": 0.1}), REFUSED),
    "dropout of the attention": (Case(has=is_attention, config={"lora_dropout": 0.1}), SAME),
    "no up": (Case(has=lambda path: not is_up(path)), REFUSED),
    "no down": (Case(has=lambda path: not is_down(path)), PARTLY),
    "only down": (Case(has=is_down), SAME),
    "only routers": (Case(has=is_router), SAME),
    "no experts": (Case(has=lambda path: not is_expert(path)), SAME),
    "no routers": (Case(has=lambda path: not is_router(path)), SAME),
    "a single expert": (Case(has=lambda path: not is_expert(path) or ".experts.1." in path), REFUSED),
    "no experts in layer 0": (Case(has=lambda path: not (is_expert(path) and ".layers.0." in path)), SAME),
    "rank and alpha of down by its parameter": (
        Case(
            rank=lambda path: 2 if is_down(path) else RANK,
            alpha=lambda path: 2 if is_down(path) else ALPHA,
            config={"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"down_proj": 2}},
        ),
        SAME,
    ),
    "expression": (Case(config={"target_modules": ".*(q_proj|k_proj|v_proj|o_proj)"}, has=is_attention), SAME),
    "expression for experts": (Case(config={"target_modules": r".*(gate|_proj)"}), UNTESTED),
}  # fmt: skip
QWEN, MIXTRAL = "Qwen3MoeForCausalLM", "MixtralForCausalLM"
WITHOUT_SHARED = (QWEN, MIXTRAL, "MiniMaxM2ForCausalLM", "OlmoeForCausalLM")
QUICK = ("one rank", "another rank of routers", "another rank of experts", "RS-LoRA", "a single expert")
GRID = [
    pytest.param(model, case, marks=[] if model == QWEN and case in QUICK else pytest.mark.slow)
    for model in WITHOUT_SHARED
    for case in CASES
    if not (model != QWEN and "down by its parameter" in case)
]


class Folder:
    """A folder of PEFT with random factors, and the base with their changes, from a plain product in float64."""

    def __init__(self, case, base, folder):
        self.adapter, self.expected = folder / "adapter", folder / "expected"
        weights = load_file(base / WEIGHTS)
        paths = [name.removesuffix(".weight") for name, weight in sorted(weights.items()) if weight.dim() == 2]
        paths = [path for path in paths if ".layers." in path and case.has(path)]
        numbers = torch.Generator().manual_seed(5)
        factors = {}
        for path in paths:
            (rows, columns), rank = weights[f"{path}.weight"].shape, case.rank(path)
            down, up = (0.3 * torch.randn(shape, generator=numbers) for shape in ((rank, columns), (rows, rank)))
            factors |= {f"base_model.model.{path}.lora_{side}.weight": one for side, one in (("A", down), ("B", up))}
            scale = case.alpha(path) / (math.sqrt(rank) if case.config.get("use_rslora") else rank)
            weights[f"{path}.weight"] = (weights[f"{path}.weight"] + scale * up.double() @ down.double()).float()
        self.adapter.mkdir()
        save_file(factors, self.adapter / "adapter_model.safetensors")
        config = {
            "peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "lora_dropout": 0.0,
            "target_modules": sorted({path.rpartition(".")[2] for path in paths} if case.by_leaf else paths),
            "rank_pattern": {path: rank for path in paths if (rank := case.rank(path)) != RANK},
            "alpha_pattern": {path: alpha for path in paths if (alpha := case.alpha(path)) != ALPHA},
        }  # fmt: skip
        (self.adapter / "adapter_config.json").write_text(json.dumps({**config, **case.config}))
        self.expected.mkdir()
        (self.expected / "config.json").write_bytes((base / "config.json").read_bytes())
        save_weights(self.expected, weights)

    @property
    def verdict(self):
        return compat(str(self.adapter), "peft").verdicts[0]


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    saved = {}

    def base(model):
        if model not in saved:
            saved[model] = save_model(model, tmp_path_factory.mktemp(model) / "base")
        return saved[model]

    return base


def assert_as_peft(model, folder, base):
    """Assert that the verdict holds in the real PEFT."""
    verdict = folder.verdict
    try:
        found = logits(model, base, folder.adapter)
    except (ValueError, RuntimeError):
        assert verdict.verdict in (REFUSED, UNTESTED), verdict.says
        return
    error = distance(found, logits(model, folder.expected), logits(model, base))
    if verdict.verdict == SAME:
        assert error < CLOSE
    elif verdict.verdict != UNTESTED:
        assert verdict.verdict != REFUSED, error
        assert error > FAR


@pytest.mark.parametrize(("model", "case"), GRID)
def test_verdict_is_result_of_peft(model, case, base_of, tmp_path):
    asked, expected = CASES[case]
    folder = Folder(asked, base_of(model), tmp_path)
    assert folder.verdict.verdict == expected, folder.verdict.says
    assert_as_peft(model, folder, base_of(model))


# PEFT loads no layer with the name of an expert's layer but those of routed experts.
GLM_CASES = {
    "all": (Case(), PARTLY),
    "routed experts": (Case(has=lambda path: not is_shared(path)), SAME),
    "shared expert and attention": (Case(has=lambda path: is_shared(path) or is_attention(path)), PARTLY),
    "another rank of experts": (Case(rank=lambda path: 2 if is_expert(path) else RANK), REFUSED),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", GLM_CASES)
def test_shared_experts_are_lost_in_peft(case, base_of, tmp_path):
    asked, expected = GLM_CASES[case]
    model = "Glm4MoeForCausalLM"
    folder = Folder(asked, base_of(model), tmp_path)
    assert folder.verdict.verdict == expected, folder.verdict.says
    assert_as_peft(model, folder, base_of(model))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["Qwen2MoeForCausalLM", "Qwen3NextForCausalLM"])
@pytest.mark.parametrize("case", ["all", "another rank of experts"])
def test_models_with_one_shared_expert_are_not_told_apart(case, model, base_of, tmp_path):
    """PEFT fuses the config of Qwen3-Next, but not that of Qwen2-MoE, whose layers have the same names."""
    folder = Folder(GLM_CASES[case][0], base_of(model), tmp_path)
    assert folder.verdict.verdict == (UNTESTED if case == "all" else REFUSED)
    assert_as_peft(model, folder, base_of(model))


def test_rslora_multiplies_gate_and_up_by_root_of_2(base_of, tmp_path):
    """Twice the rank and twice the alpha give √2 times the scale: 2 projections of 4 experts in 2 layers."""
    folder = Folder(CASES["RS-LoRA"][0], base_of(QWEN), tmp_path)
    factors = {round(factor, 3): modules for factor, modules in folder.verdict.factors.items()}
    assert factors[1.414] == 16


FIXED = ("another rank of routers", "another alpha of experts", "RS-LoRA", "dropout")


@pytest.mark.parametrize("case", FIXED)
def test_fix_gives_logits_of_meaning(case, base_of, tmp_path):
    folder = Folder(CASES[case][0], base_of(QWEN), tmp_path)
    assert "convert" in folder.verdict.fix
    out = tmp_path / "fixed"
    result = lora_inspect.convert(folder.adapter, out, to="peft")
    assert result.exact
    assert compat(str(out), "peft").verdicts[0].verdict == SAME
    base = base_of(QWEN)
    assert distance(logits(QWEN, base, out), logits(QWEN, folder.expected), logits(QWEN, base)) < CLOSE


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("no down", "the file has none of down_proj"),
        ("no up", "the file has none of up_proj"),
        ("a single expert", "has those of 1 only"),
    ],
)
def test_adapter_without_way_into_peft_has_no_fix(case, reason, base_of, tmp_path):
    folder = Folder(CASES[case][0], base_of(QWEN), tmp_path)
    assert folder.verdict.fix is None
    with pytest.raises(lora_inspect.RefusedError, match=reason):
        lora_inspect.convert(folder.adapter, tmp_path / "out", to="peft")


def test_shared_expert_has_no_way_into_peft(base_of, tmp_path):
    model = "Glm4MoeForCausalLM"
    folder = Folder(Case(), base_of(model), tmp_path)
    assert folder.verdict.fix is None
    with pytest.raises(lora_inspect.RefusedError, match=r"loads no .*shared_experts.*transformers 5"):
        lora_inspect.convert(folder.adapter, tmp_path / "out", to="peft")


def folder_with_idle_expert(base, tmp_path):
    """A folder in which one expert of each layer changes nothing, and its tensors before."""
    folder = Folder(CASES["one rank"][0], base, tmp_path)
    file = folder.adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    idle = [key for key in tensors if ".experts.1." in key and "lora_B" in key]
    save_file({**tensors, **{key: torch.zeros_like(tensors[key]) for key in idle}}, file)
    return folder, tensors


def test_resize_plans_bytes_of_idle_experts(base_of, tmp_path):
    folder, _ = folder_with_idle_expert(base_of(QWEN), tmp_path)
    planned, written = (
        lora_inspect.resize(folder.adapter, output, energy=1 - 1e-9) for output in (None, tmp_path / "out")
    )
    assert planned.bytes == written.bytes


@pytest.mark.parametrize("verb", ["resize", "combine"])
def test_sums_keep_experts_at_one_rank(verb, base_of, tmp_path):
    """An expert without a change stays, with zeros: PEFT needs it."""
    base = base_of(QWEN)
    folder, tensors = folder_with_idle_expert(base, tmp_path)
    out = tmp_path / "out"
    if verb == "resize":
        lora_inspect.resize(folder.adapter, out, energy=1 - 1e-9)
    else:
        lora_inspect.combine([folder.adapter], out)
    assert compat(str(out), "peft").verdicts[0].verdict == SAME
    found = load_file(out / "adapter_model.safetensors")
    assert found.keys() == tensors.keys()
    expected = logits(QWEN, base, folder.adapter)
    assert distance(logits(QWEN, base, out), expected, logits(QWEN, base)) < CLOSE
