"""Sums keep what cloneofsimo's lora needs: the classes and the rank of each numbered layer, and all of the layers.

`parse_safeloras` in lora_diffusion/lora.py reads `unet` and `unet:N:rank` for every `unet:N:up`, and builds a layer of
this rank for the N-th layer below modules of these classes.
"""

import json

import pytest
import torch
from dense_sums import metadata_of
from safetensors.torch import load_file, save_file

from lora_inspect import LoraInspectError, average, combine, resize

ATTENTION, CLIP = ("CrossAttention", "Attention"), ("CLIPAttention",)
WIDTHS, TEXT_WIDTH = (8, 16, 24, 32), 20
# The width of each transformer of Stable Diffusion 1.x: two on each way down, three on each way up, one in the middle.
TRANSFORMERS = [WIDTHS[level] for level in (0, 0, 1, 1, 2, 2, 2, 2, 2, 1, 1, 1, 0, 0, 0, 3)]
ATTENTION_SHAPES = [
    shape
    for width in TRANSFORMERS
    for context in (width, TEXT_WIDTH)
    for shape in ((width, width), (width, context), (width, context), (width, width))
]
GEGLU_SHAPES = [(8 * width, width) for width in TRANSFORMERS]
CLIP_SHAPES = [(12, 12)] * 8


def numbered(path, model, shapes, classes, seed, rank=2, **metadata):
    """An adapter as cloneofsimo's lora saves it."""
    generator = torch.Generator().manual_seed(seed)
    metadata |= {model: json.dumps(list(classes))}
    tensors = {}
    for number, (rows, columns) in enumerate(shapes):
        tensors[f"{model}:{number}:up"] = torch.randn(rows, rank, generator=generator)
        tensors[f"{model}:{number}:down"] = torch.randn(rank, columns, generator=generator)
        metadata[f"{model}:{number}:rank"] = str(rank)
    save_file(tensors, path, metadata)
    return path


def loaded(path, model):
    """The classes, and the rank and the change of each layer, as the program takes them from the file."""
    metadata, tensors = metadata_of(path), load_file(path)
    count = sum(key.startswith(f"{model}:") for key in tensors) // 2
    layers = []
    for number in range(count):
        up, down = tensors[f"{model}:{number}:up"], tensors[f"{model}:{number}:down"]
        rank = int(metadata[f"{model}:{number}:rank"])
        assert up.shape[1] == down.shape[0] == rank
        layers.append((rank, up.double() @ down.double()))
    return set(json.loads(metadata[model])), layers


def changes(path, model):
    return [change for _, change in loaded(path, model)[1]]


@pytest.mark.parametrize(
    ("verb", "options", "ranks", "weights"),
    [
        (combine, {}, {4}, (1.0, 1.0)),
        (combine, {"rank": 4}, {4}, (1.0, 1.0)),
        (average, {"exact": True}, {4}, (0.5, 0.5)),
    ],
)
def test_output_has_classes_and_its_ranks(verb, options, ranks, weights, tmp_path):
    paths = [numbered(tmp_path / f"{seed}.safetensors", "text_encoder", CLIP_SHAPES, CLIP, seed) for seed in (1, 2)]
    result = verb(paths, tmp_path / "out.safetensors", **options)
    classes, layers = loaded(tmp_path / "out.safetensors", "text_encoder")
    assert (classes, {rank for rank, _ in layers}) == (set(CLIP), ranks)
    inputs = [changes(path, "text_encoder") for path in paths]
    for (_, change), first, second in zip(layers, *inputs, strict=True):
        torch.testing.assert_close(change, weights[0] * first + weights[1] * second, rtol=0, atol=1e-4)
    assert result.dropped_metadata == []


def test_average_of_factors_has_classes_and_ranks(tmp_path):
    paths = [numbered(tmp_path / f"{seed}.safetensors", "text_encoder", CLIP_SHAPES, CLIP, seed) for seed in (1, 2)]
    average(paths, tmp_path / "out.safetensors", of="factors")
    classes, layers = loaded(tmp_path / "out.safetensors", "text_encoder")
    assert (classes, {rank for rank, _ in layers}) == (set(CLIP), {2})
    first, second, mean = (load_file(path)["text_encoder:3:up"] for path in (*paths, tmp_path / "out.safetensors"))
    torch.testing.assert_close(mean, (first + second) / 2)


def test_average_of_factors_of_other_classes_is_refused(tmp_path):
    paths = [
        numbered(tmp_path / f"{seed}.safetensors", "unet", ATTENTION_SHAPES, classes, seed)
        for seed, classes in ((1, ATTENTION), (2, ATTENTION[:1]))
    ]
    with pytest.raises(LoraInspectError, match="those of other classes"):
        average(paths, tmp_path / "out.safetensors", of="factors")


def test_resized_file_has_its_ranks(tmp_path):
    path = numbered(tmp_path / "a.safetensors", "text_encoder", CLIP_SHAPES, CLIP, 1)
    for rank in (1, 11):
        resize(path, tmp_path / f"{rank}.safetensors", rank=rank)
        assert {layer[0] for layer in loaded(tmp_path / f"{rank}.safetensors", "text_encoder")[1]} == {rank}


@pytest.mark.parametrize("options", [{}, {"energy": 0.9}, {"max_rank": 3}])
def test_sum_below_highest_rank_has_its_ranks(options, tmp_path):
    path = numbered(tmp_path / "a.safetensors", "text_encoder", CLIP_SHAPES, CLIP, 1)
    result = combine([path, f"{path}:0.5"], tmp_path / "out.safetensors", **options)
    _, layers = loaded(tmp_path / "out.safetensors", "text_encoder")
    assert max(rank for rank, _ in layers) == 2
    assert sum(result.ranks.values()) == len(layers)


@pytest.mark.parametrize("is_planned", [True, False], ids=["planned", "written"])
def test_sum_with_zero_layer_is_refused(is_planned, tmp_path):
    path = numbered(tmp_path / "a.safetensors", "text_encoder", CLIP_SHAPES, CLIP, 1)
    tensors = load_file(path)
    tensors["text_encoder:5:up"].zero_()
    save_file(tensors, path, metadata_of(path))
    output = None if is_planned else tmp_path / "out.safetensors"
    with pytest.raises(LoraInspectError, match="8 of them, and the output would have 7"):
        combine([path, path], output)
    assert not (tmp_path / "out.safetensors").exists()


def test_order_of_classes_makes_no_difference(tmp_path):
    """The program writes a set, in any order."""
    paths = [
        numbered(tmp_path / f"{seed}.safetensors", "unet", ATTENTION_SHAPES, classes, seed)
        for seed, classes in ((1, ATTENTION), (2, ATTENTION[::-1]))
    ]
    combine(paths, tmp_path / "out.safetensors")
    assert loaded(tmp_path / "out.safetensors", "unet")[0] == set(ATTENTION)


def test_inputs_with_layers_of_other_classes_are_refused(tmp_path):
    attention = numbered(tmp_path / "a.safetensors", "unet", ATTENTION_SHAPES, ATTENTION, 1)
    geglu = numbered(tmp_path / "b.safetensors", "unet", GEGLU_SHAPES, ("GEGLU",), 2)
    for paths in ([attention, geglu], [geglu, attention]):
        with pytest.raises(LoraInspectError, match=r"number the layers of unet.*choose other names"):
            combine(paths, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_same_layers_of_other_classes_are_refused(tmp_path):
    paths = [
        numbered(tmp_path / f"{seed}.safetensors", "unet", ATTENTION_SHAPES, classes, seed)
        for seed, classes in ((1, ATTENTION), (2, ATTENTION[:1]))
    ]
    with pytest.raises(LoraInspectError, match="those of other classes"):
        combine(paths, tmp_path / "out.safetensors")


@pytest.mark.parametrize("options", [{}, {"rank": 1}])
@pytest.mark.parametrize("is_planned", [True, False], ids=["planned", "written"])
def test_output_without_some_numbered_layers_is_refused(options, is_planned, tmp_path):
    path = numbered(tmp_path / "a.safetensors", "text_encoder", CLIP_SHAPES, CLIP, 1)
    output = None if is_planned else tmp_path / "out.safetensors"
    with pytest.raises(LoraInspectError, match="8 of them, and the output would have 4"):
        combine(path, output, exclude=["text_model.encoder.layers.1"], **options)
    assert not (tmp_path / "out.safetensors").exists()


def test_other_names_need_no_numbers(tmp_path):
    path = numbered(tmp_path / "a.safetensors", "unet", ATTENTION_SHAPES, ATTENTION, 1)
    output = tmp_path / "out.safetensors"
    combine([path, path], output, exclude=["mid_block.*"], to="kohya", architecture="sd15")
    assert len(load_file(output)) == 3 * (len(ATTENTION_SHAPES) - 8)
    assert "unet" not in metadata_of(output)


def test_model_that_is_left_out_needs_no_numbers(tmp_path):
    first = numbered(tmp_path / "a.safetensors", "text_encoder", CLIP_SHAPES, CLIP, 1)
    second = numbered(tmp_path / "b.safetensors", "unet", ATTENTION_SHAPES, ATTENTION, 2)
    tensors, metadata = load_file(first) | load_file(second), metadata_of(first) | metadata_of(second)
    save_file(tensors, tmp_path / "both.safetensors", metadata)
    for options in ({}, {"rank": 1}):
        output = tmp_path / f"{len(options)}.safetensors"
        combine(tmp_path / "both.safetensors", output, exclude=["unet:*"], **options)
        assert len(loaded(output, "text_encoder")[1]) == len(CLIP_SHAPES)
