"""How layouts of one family are related, against the converters of diffusers and the classes of transformers."""

from collections import Counter

import layouts
import pytest
import torch

from lora_inspect.architectures import ARCHITECTURES, by_name
from lora_inspect.architectures.correspondence import Correspondence, interleaved, same, stack, swapped
from lora_inspect.architectures.rows import INPUTS, Interleaved, Runs, Stacked, Swapped

RELATED = [architecture for architecture in ARCHITECTURES if architecture.correspondence.relations]
RELATIONS = [
    pytest.param(architecture, relation, id=f"{architecture.name}-{relation.whole}")
    for architecture in RELATED
    for relation in architecture.correspondence.relations
]


def numbered(path, *layouts_):
    """Whether a path of a relation, which may have numbers for `{i}`, is one of the layouts'."""
    known = {p.replace("{i}", "0") for layout in layouts_ for p in layout.paths}
    given = path.replace("{i}", "0")
    plain = ".".join("0" if part.isdigit() else part for part in given.split("."))
    return given in known or plain in {".".join("0" if p.isdigit() else p for p in k.split(".")) for k in known}


@pytest.mark.parametrize("architecture", RELATED, ids=lambda architecture: architecture.name)
def test_relations_are_between_paths_of_the_family(architecture):
    for relation in architecture.correspondence.relations:
        assert numbered(relation.whole, *architecture.layouts), relation.whole
        for part in relation.parts:
            assert numbered(part, *architecture.layouts), part
            assert part.count("{i}") == relation.whole.count("{i}")


@pytest.mark.parametrize("architecture", RELATED, ids=lambda architecture: architecture.name)
def test_every_path_stands_in_one_relation_of_a_side(architecture):
    wholes = Counter(relation.whole for relation in architecture.correspondence.relations)
    parts = Counter(part for relation in architecture.correspondence.relations for part in relation.parts)
    assert set(wholes.values()) == set(parts.values()) == {1}


@pytest.mark.parametrize("name", ["flux", "chroma", "wan", "krea2"])
def test_no_layer_of_either_layout_is_left_out(name):
    original, diffusers, *_ = by_name(name).layouts
    relations = by_name(name).correspondence.relations
    assert {relation.whole for relation in relations} == set(original.paths)
    assert {part for relation in relations for part in relation.parts} == set(diffusers.paths)


def carried(architecture, base):
    """The weights and biases of a base of the original layout as the relations have them in the other one."""
    found = {}
    for name, tensor in base.items():
        path, _, parameter = name.rpartition(".")
        weight = base.get(f"{path}.weight", tensor)
        if any(relation.whole == path == relation.parts[0] for relation in architecture.correspondence.relations):
            found[name] = tensor
        for link in architecture.correspondence.links(path):
            assert not link.is_whole
            arrangement = link.relation.arrangement
            if arrangement is None:
                found[f"{link.path}.{parameter}"] = tensor
                continue
            runs = arrangement.runs(weight.shape[0], weight.shape[1])[link.part]
            part = torch.full((runs.rows, *tensor.shape[1:]), torch.nan)
            for start, stop, source in runs.each():
                part[source : source + stop - start] = tensor[start:stop]
            found[f"{link.path}.{parameter}"] = part
    return found


def test_flux_is_as_diffusers_converts_it():
    base = layouts.flux(blocks=2, width=4)
    ours, theirs = carried(by_name("flux"), base), layouts.flux_in_diffusers(base)
    assert ours.keys() == {
        name for name in theirs if "norm_q" not in name and "norm_k" not in name and "norm_added" not in name
    }
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_wan_is_as_diffusers_converts_it():
    original, _ = by_name("wan").layouts
    paths = [path.replace("{i}", str(number)) for path in original.paths for number in (0, 1)]
    base = layouts.tensors({f"{path}.weight": (2, 3) for path in paths})
    theirs = layouts.real.convert_wan_transformer_to_diffusers(dict(base))
    ours = carried(by_name("wan"), base)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


UNETS = {
    "sdxl": {"addition_embed_type": "text_time"},
    "sd15": {},
    "sd2": {},
}


@pytest.mark.parametrize("name", UNETS)
def test_unets_are_as_diffusers_converts_them(name):
    original = layouts.original_unet(name)
    theirs = layouts.unet_names(original, UNETS[name])
    assert theirs.keys() == set(original)
    found = {path: list(by_name(name).correspondence.links(path)) for path in original}
    assert {path: [link.path for link in found[path]] for path in original} == {
        path: [other] for path, other in theirs.items()
    }
    # The layers of the blocks are all of them, and nothing of the table is of no use.
    assert {link.relation for item in found.values() for link in item} == set(by_name(name).correspondence.relations)


def test_phi3_computes_what_a_llama_of_its_parts_computes():
    """Fewer key-value heads than heads. The weights of the fused model are cut by the relations."""
    from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

    sizes = {
        "vocab_size": 16, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "rms_norm_eps": 1e-5,
        "attn_implementation": "eager",
    }  # fmt: skip
    torch.manual_seed(0)
    fused = Phi3ForCausalLM(Phi3Config(**sizes)).double().eval()
    split = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False)).double().eval()
    state = fused.state_dict()
    parts = carried(by_name("llm"), state)
    assert len(parts) == 2 * 5
    split.load_state_dict({name: state.get(name, parts.get(name)) for name in split.state_dict()})
    tokens = torch.arange(1, 9).reshape(1, 8)
    with torch.no_grad():
        expected, found = fused(tokens).logits, split(tokens).logits
    assert (expected - found).abs().max() < 1e-12 * expected.abs().max()
    swapped_halves = {**parts, **{
        name.replace("gate", "up") if "gate" in name else name.replace("up_proj", "gate_proj"): value
        for name, value in parts.items() if "mlp" in name
    }}  # fmt: skip
    split.load_state_dict({name: state.get(name, swapped_halves.get(name)) for name in split.state_dict()})
    with torch.no_grad():
        assert (expected - split(tokens).logits).abs().max() > 1e-3 * expected.abs().max()


ARRANGEMENTS = {
    "equal shares": (Stacked((1, 1, 1)), 6, 5, [[0, 1], [2, 3], [4, 5]]),
    "other shares": (Stacked((1, 2)), 6, 5, [[0, 1], [2, 3, 4, 5]]),
    "a query as wide as the inputs": (Stacked((INPUTS, 1, 1)), 8, 4, [[0, 1, 2, 3], [4, 5], [6, 7]]),
    "rows that take turns": (Interleaved(2), 6, 5, [[0, 2, 4], [1, 3, 5]]),
    "heads that take turns": (Interleaved(3, 2), 12, 5, [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]),
    "halves": (Swapped(), 6, 5, [[3, 4, 5, 0, 1, 2]]),
}


@pytest.mark.parametrize(("arrangement", "rows", "inputs", "expected"), ARRANGEMENTS.values(), ids=ARRANGEMENTS)
def test_rows_of_the_parts(arrangement, rows, inputs, expected):
    found = arrangement.runs(rows, inputs)
    for runs, of_whole in zip(found, expected, strict=True):
        pairs = {s + i: start + i for start, stop, s in runs.each() for i in range(stop - start)}
        assert [pairs[row] for row in range(runs.rows)] == of_whole
        back = {s + i: start + i for start, stop, s in runs.inverted.each() for i in range(stop - start)}
        assert back == {whole: part for part, whole in pairs.items()}


@pytest.mark.parametrize(
    ("arrangement", "rows", "inputs"),
    [
        (Stacked((1, 1, 1)), 7, 5),
        (Stacked((1, 1)), 0, 5),
        (Stacked((INPUTS, 1, 1)), 7, 4),
        (Stacked((INPUTS, 1, 1)), 4, 4),
        (Stacked((INPUTS, 1, 1)), 3, 4),
        (Interleaved(2), 7, 5),
        (Interleaved(2, 2), 6, 5),
        (Interleaved(2), 0, 5),
        (Swapped(), 7, 5),
        (Swapped(), 0, 5),
    ],
)
def test_weights_that_are_not_arranged_so(arrangement, rows, inputs):
    assert arrangement.runs(rows, inputs) is None


def test_a_relation_is_read_in_both_directions():
    found = Correspondence(lambda: (stack("a.{i}.qkv", "b.{i}.q", "b.{i}.k"), same("x.0", "y"), swapped("m", "n")))
    assert [(link.path, link.part, link.is_whole) for link in found.links("a.12.qkv")] == [
        ("b.12.q", 0, False),
        ("b.12.k", 1, False),
    ]
    assert [(link.path, link.part, link.is_whole) for link in found.links("b.3.k")] == [("a.3.qkv", 1, True)]
    assert [link.path for link in found.links("x.0")] == ["y"]
    assert [link.path for link in found.links("y")] == ["x.0"]
    assert [link.relation.arrangement for link in found.links("n")] == [Swapped()]
    for other in ("x.1", "a.b.qkv", "a.1.qkv.q", ""):
        assert list(found.links(other)) == []


def test_pairs_are_of_families_without_any_arrangement():
    assert Correspondence(lambda: (same("a", "b"), same("c", "d"))).one_to_one == (("a", "b"), ("c", "d"))
    assert Correspondence(lambda: (same("a", "b"), swapped("c", "d"))).one_to_one == ()
    assert Correspondence().one_to_one == ()


def test_relations_of_other_arrangements():
    assert interleaved("a", "b", "c", run=4).arrangement == Interleaved(2, 4)
    assert Runs(1, 2, 3, 4, 5, 6).inverted == Runs(3, 2, 1, 4, 6, 5)
