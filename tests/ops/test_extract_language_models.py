"""Adapters extracted from tuned language models, in the real PEFT: its logits are those of the tuned model."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tuned_models import RANK, WEIGHTS, distance, logits, save_model, save_weights, tuned_copy

import lora_inspect
from lora_inspect.ops.compat import compat
from lora_inspect.programs.verdict import SAME

# PEFT warns of tied weights, and transformers of what it deprecates.
pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore")]

RULES = {"rank": {"rank": RANK}, "energy": {"energy": 1 - 1e-9}, "max error": {"max_error": 1e-4}}
TARGETS = (None, "peft", "vllm")
FAMILIES = {
    "Llama": ("LlamaForCausalLM", False),
    "tied Llama": ("LlamaForCausalLM", True),
    "Qwen3": ("Qwen3ForCausalLM", False),
    "tied Qwen3": ("Qwen3ForCausalLM", True),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", False),
    "tied Qwen3-MoE": ("Qwen3MoeForCausalLM", True),
}
QUICK = [("tied Llama", "energy", None), ("Qwen3-MoE", "max error", "peft"), ("tied Qwen3-MoE", "rank", "vllm")]
GRID = [
    pytest.param(family, rule, to, marks=[] if (family, rule, to) in QUICK else pytest.mark.slow)
    for family in FAMILIES
    for rule in RULES
    for to in TARGETS
]
# Products in float32 over two layers.
CLOSE = 1e-5


def rank_of(name):
    """Experts change by fewer directions than the other matrices."""
    return 2 if ".experts." in name else RANK


class Pair:
    """A model and a tuned copy, with the logits of both."""

    def __init__(self, name, tied, folder, keeps=lambda name: False):
        self.name, self.folder = name, folder
        self.base = save_model(name, folder / "base", tied)
        self.tuned = tuned_copy(self.base, folder / "tuned", rank_of, keeps)
        self.out = folder / "out"

    def extract(self, **options):
        result = lora_inspect.extract(self.tuned, self.base, self.out, **options)
        self.config = json.loads((self.out / "adapter_config.json").read_text())
        return result

    def distance(self, folder=None, adapter=None):
        """How far the logits are from the tuned model's, over the distance of the base's."""
        found = logits(self.name, folder or self.base, adapter)
        return distance(found, logits(self.name, self.tuned), logits(self.name, self.base))

    def merged_distance(self):
        lora_inspect.merge(self.base, [self.out], self.folder / "merged", dtype="fp32")
        return self.distance(self.folder / "merged")


@pytest.fixture
def pair_of(tmp_path):
    return lambda name, tied=False, **options: Pair(name, tied, tmp_path, **options)


@pytest.mark.parametrize(("family", "rule", "to"), GRID)
def test_extracted_adapter_gives_logits_of_tuned_model(family, rule, to, pair_of):
    pair = pair_of(*FAMILIES[family])
    result = pair.extract(**RULES[rule], to=to)
    assert pair.distance(adapter=pair.out) < CLOSE
    assert compat(str(pair.out), "peft").verdicts[0].verdict == SAME
    assert lora_inspect.verify(pair.tuned, pair.base, [pair.out]).ok
    assert pair.merged_distance() < CLOSE
    assert pair.config.get("ensure_weight_tying", False) == FAMILIES[family][1]
    assert result.whole_error < CLOSE
    if "MoE" in family:
        assert result.ranks.keys() == {pair.config["r"]} == {RANK}
        assert not pair.config["rank_pattern"]


@pytest.mark.parametrize("tied", [True, False])
def test_unchanged_embedding_leaves_key_out(tied, pair_of):
    pair = pair_of("LlamaForCausalLM", tied, keeps=lambda name: "embed_tokens" in name)
    pair.extract(rank=RANK)
    assert not pair.config.get("ensure_weight_tying")
    assert pair.distance(adapter=pair.out) < CLOSE


def separate_head(pair, head):
    """Give the tuned model a head of its own."""
    save_weights(pair.tuned, {**load_file(pair.tuned / WEIGHTS), "lm_head.weight": head})
    config = json.loads((pair.tuned / "config.json").read_text())
    (pair.tuned / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))


def test_untied_copy_of_tuned_embedding_is_tied(pair_of):
    pair = pair_of("LlamaForCausalLM", True)
    separate_head(pair, load_file(pair.tuned / WEIGHTS)["model.embed_tokens.weight"].clone())
    pair.extract(rank=RANK)
    assert pair.config["ensure_weight_tying"] is True
    assert pair.distance(adapter=pair.out) < CLOSE
    assert pair.merged_distance() < CLOSE


@pytest.mark.parametrize("change", [0.0, 0.05])
def test_separate_head_of_tuned_model_is_extracted(change, pair_of):
    pair = pair_of("LlamaForCausalLM", True)
    shared = load_file(pair.base / WEIGHTS)["model.embed_tokens.weight"]
    numbers = torch.Generator().manual_seed(8)
    up, down = torch.randn(48, 3, generator=numbers), torch.randn(3, 16, generator=numbers)
    separate_head(pair, shared + change * up @ down)
    result = pair.extract(rank=RANK)
    assert not pair.config.get("ensure_weight_tying")
    assert result.ranks == ({3: 1, RANK: 15} if change else {RANK: 15})
    assert result.unpaired == ()
    assert pair.distance(adapter=pair.out) < CLOSE
    # Its change of the embedding alone has no place in a model with one weight for both.
    with pytest.raises(lora_inspect.RefusedError, match="tie_word_embeddings false"):
        pair.merged_distance()


def test_head_of_base_is_extracted_against_tied_head(pair_of):
    """A base that saves its tied head too, and a tuned copy that does not."""
    pair = pair_of("LlamaForCausalLM", True)
    tensors = load_file(pair.base / WEIGHTS)
    save_weights(pair.base, {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    pair.extract(rank=RANK)
    assert not pair.config.get("ensure_weight_tying")
    assert pair.distance(adapter=pair.out) < CLOSE


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "GPTNeoXForCausalLM"])
def test_tied_embedding_of_other_name_is_tied_in_peft(name, pair_of):
    """PEFT reads `ensure_weight_tying` only if a target is called embed_tokens or lm_head."""
    pair = pair_of(name, True, keeps=lambda name: "wpe" in name)
    pair.extract(rank=RANK)
    assert pair.config["ensure_weight_tying"] is True
    assert pair.distance(adapter=pair.out) < CLOSE
    assert pair.merged_distance() < CLOSE


def test_tied_embedding_of_other_name_alone_is_not_tied_in_peft(pair_of):
    """PEFT ignores `ensure_weight_tying` without such a target: the change is of the embedding alone."""
    pair = pair_of("GPT2LMHeadModel", True, keeps=lambda name: "wpe" in name)
    pair.extract(rank=RANK)
    targets = [target for target in pair.config["target_modules"] if target != "lm_head"]
    (pair.out / "adapter_config.json").write_text(json.dumps({**pair.config, "target_modules": targets}))
    assert pair.distance(adapter=pair.out) > 0.1
    with pytest.raises(lora_inspect.RefusedError, match="was trained without the head"):
        pair.merged_distance()


def test_backbone_without_head_is_not_tied(tmp_path):
    """A bare backbone has no head, although its embedding stands alone."""
    base = save_model("LlamaForCausalLM", tmp_path / "base", tied=True)
    tensors = {name.removeprefix("model."): value for name, value in load_file(base / WEIGHTS).items()}
    config = json.loads((base / "config.json").read_text())
    for architectures in (["LlamaModel"], None):
        folder = tmp_path / str(architectures)
        folder.mkdir()
        save_weights(folder, tensors)
        if architectures:
            (folder / "config.json").write_text(json.dumps({**config, "architectures": architectures}))
        tuned = tuned_copy(folder, tmp_path / f"tuned {architectures}")
        lora_inspect.extract(tuned, folder, tmp_path / f"out {architectures}", rank=RANK)
        written = json.loads((tmp_path / f"out {architectures}" / "adapter_config.json").read_text())
        assert not written.get("ensure_weight_tying")


def test_base_without_saved_head_of_untied_model_is_not_tied(tmp_path):
    """Its config says that the head has a weight of its own, which the file lacks."""
    base = save_model("LlamaForCausalLM", tmp_path / "base", tied=True)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    lora_inspect.extract(tuned_copy(base, tmp_path / "tuned"), base, tmp_path / "out", rank=RANK)
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert not written.get("ensure_weight_tying")


def is_kept_of_expert_1(name):
    return ".experts.1." in name or "layers.1.mlp" in name


def is_kept_of_gate_and_down(name):
    return ".experts." in name and ".up_proj" not in name


@pytest.mark.parametrize("keeps", [is_kept_of_expert_1, is_kept_of_gate_and_down])
def test_unchanged_experts_have_factors_of_zeros(keeps, pair_of):
    """PEFT puts the experts of a layer together, so none of them may lack."""
    pair = pair_of("Qwen3MoeForCausalLM", keeps=keeps)
    result = pair.extract(energy=1 - 1e-9)
    assert pair.distance(adapter=pair.out) < CLOSE
    tensors = load_file(pair.out / "adapter_model.safetensors")
    ups = [value for key, value in tensors.items() if ".experts." in key and "lora_B" in key]
    assert {value.shape[1] for value in ups} == {RANK}
    assert sum(not value.any() for value in ups) == (3 if keeps is is_kept_of_expert_1 else 16)
    assert result.modules == len(tensors) // 2


def test_rank_above_width_fills_experts_with_zeros(pair_of):
    pair = pair_of("Qwen3MoeForCausalLM")
    result = pair.extract(rank=32)
    assert (result.ranks, pair.config["r"]) == ({32: result.modules}, 32)
    assert pair.distance(adapter=pair.out) < CLOSE


@pytest.mark.parametrize(("size", "rank"), [("60KB", 4), ("20KB", 1)])
def test_size_gives_experts_largest_common_rank(size, rank, pair_of):
    pair = pair_of("Qwen3MoeForCausalLM")
    result = pair.extract(size=size)
    assert result.ranks.keys() == {rank} == {pair.config["r"]}
    assert result.bytes <= 1000 * int(size.removesuffix("KB"))
    assert compat(str(pair.out), "peft").verdicts[0].verdict == SAME


def test_size_below_rank_1_of_experts_is_refused(pair_of):
    pair = pair_of("Qwen3MoeForCausalLM")
    with pytest.raises(lora_inspect.RefusedError, match=r"one rank, and rank 1 takes .* bytes"):
        lora_inspect.extract(pair.tuned, pair.base, pair.out, size="14KB")
    assert not pair.out.exists()
