import pytest
import torch
from torch import nn

from networks.network.targets import Patterns, Ranks, named_leaves, select

RANKS = Ranks(dim=4, alpha=1.0, conv_dim=2, conv_alpha=0.5)
EVERYTHING = Patterns()
INSIDE = ["attn.to_q", "attn.to_out", "img_mod", "conv", "point"]


def paths_of(model, patterns=EVERYTHING, ranks=RANKS, classes=("Block",)):
    return [target.path for target in select(model, classes, patterns, ranks).targets]


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (Patterns(), INSIDE),
        (
            Patterns(default_excludes=[".*(img_mod|txt_mod|modulation).*"]),
            ["attn.to_q", "attn.to_out", "conv", "point"],
        ),
        # fullmatch: a part of the path matches nothing
        (Patterns(excludes=["attn"]), INSIDE),
        (Patterns(excludes=[".*attn.*"]), ["img_mod", "conv", "point"]),
        # the user's include rescues from the user's exclude …
        (Patterns(excludes=[".*attn.*"], includes=[r".*attn\.to_q.*"]), ["attn.to_q", "img_mod", "conv", "point"]),
        # … is no whitelist …
        (Patterns(includes=[".*to_q"]), INSIDE),
        # … and what it matched is not removed by a default
        (
            Patterns(includes=[".*img_mod.*"], default_excludes=[".*img_mod.*", ".*conv.*"]),
            ["attn.to_q", "attn.to_out", "img_mod", "point"],
        ),
        # an architecture's include does not outrank the user's exclude
        (
            Patterns(excludes=[".*to_q"], default_excludes=[".*"], default_includes=[".*attn.*"]),
            ["attn.to_out"],
        ),
    ],
)
def test_selection(make_model, patterns, left):
    assert paths_of(make_model(), patterns) == [f"blocks.{number}.{leaf}" for number in (0, 1) for leaf in left]


def test_every_skipped_layer_has_its_reason(make_model):
    patterns = Patterns(excludes=[".*to_q"], default_excludes=[".*img_mod"])
    ranks = Ranks(dim=4, alpha=1.0, conv_dim=0, conv_alpha=1.0)
    skipped = select(make_model(), ["Block"], patterns, ranks).skipped
    assert set(skipped) == {f"blocks.{number}.{leaf}" for number in (0, 1) for leaf in ("attn.to_q", "img_mod", "conv")}
    assert "exclude pattern '.*to_q'" in skipped["blocks.0.attn.to_q"]
    assert "default exclude pattern" in skipped["blocks.0.img_mod"]
    assert skipped["blocks.0.conv"] == "conv_dim is 0"


def test_only_a_kernel_makes_a_convolution(make_model):
    ranks = {
        target.path: (target.rank, target.alpha)
        for target in select(make_model(), ["Block"], Patterns(), RANKS).targets
    }
    assert ranks["blocks.0.conv"] == (2, 0.5)
    assert ranks["blocks.0.point"] == ranks["blocks.0.attn.to_q"] == (4, 1.0)


def test_no_classes_is_the_whole_model(make_model):
    assert len(list(named_leaves(make_model()))) == 11
    assert "embed" in paths_of(make_model(), classes=None)


def test_a_layer_in_nested_blocks_is_found_once():
    class Block(nn.Sequential):
        pass

    model = nn.Sequential(Block(nn.Linear(2, 2), Block(nn.Linear(2, 2))))
    assert [path for path, _ in named_leaves(model, ["Block"])] == ["0.0", "0.1.0"]


def test_subclasses_are_left_alone_where_their_weight_is_quantised():
    class Linear4bit(nn.Linear):
        pass

    plain, packed = Linear4bit(2, 2), Linear4bit(2, 2)
    packed.weight = nn.Parameter(torch.zeros(2, 1, dtype=torch.uint8), requires_grad=False)
    selection = select(nn.Sequential(plain, packed, nn.Embedding(2, 2)), None, Patterns(), RANKS)
    assert [target.module for target in selection.targets] == [plain]
    assert list(selection.unfit) == ["1"]
    assert list(selection.others) == ["2"]
