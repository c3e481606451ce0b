"""docs/training_sd_scripts.md: its command has arguments of sd-scripts, and its options make the network."""

import re
import shlex

import pytest
from diffusers import UNet2DConditionModel
from page_snippets import ROOT, blocks_of
from sd_scripts_arguments import ARGUMENTS

from lora_inspect.architectures import by_name
from lora_inspect.architectures.trained import trained
from networks.network.layer_options import options_of

PAGE = ROOT / "docs" / "training_sd_scripts.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = [command.text for block in blocks_of(PAGE) for command in block.commands]
TINY = {
    "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 32, "attention_head_dim": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}  # fmt: skip


def test_every_argument_of_the_page_is_one():
    named = set(re.findall(r"(?<![\w-])--([a-z0-9_]+)", TEXT)) - {"num_cpu_threads_per_process"}
    assert len(named) >= 15
    assert named <= ARGUMENTS


def test_every_module_of_the_page_is_one_of_a_family():
    names = set(re.findall(r"lora_inspect\.networks\.(\w+)", TEXT))
    families = {
        re.search(r"families\.(\w+) import", (ROOT / "networks" / f"{name}.py").read_text(encoding="utf-8"))[1]
        for name in names
    }
    assert len(names) == 7
    assert families <= {architecture.name for architecture in trained()}


def options_in(command):
    words = shlex.split(command)
    after = words[words.index("--network_args") + 1 :]
    return dict(word.split("=", 1) for word in after if not word.startswith("--") and "=" in word)


def test_the_options_of_the_command_make_a_network():
    from lora_inspect.networks import lora_sdxl

    options = options_in(COMMANDS[0])
    network = lora_sdxl.create_network(1.0, 16, 8.0, None, None, UNet2DConditionModel(**TINY), **options)
    ranks = {lora.lora_dim for lora in network.unet_loras}
    assert ranks == {16, int(options["conv_dim"])}
    assert network.use_dora


def test_the_options_of_blocks_make_a_network():
    from lora_inspect.networks import lora_sd15

    network = lora_sd15.create_network(
        1.0, 16, 8.0, None, None, UNet2DConditionModel(**TINY), **options_in(COMMANDS[1])
    )
    groups, descriptions = network.prepare_optimizer_params(1e-4)
    rates = {name: group["lr"] for name, group in zip(descriptions, groups, strict=True)}
    assert len(rates) > 1
    assert rates["unet_block12"] == pytest.approx(5e-5)


def test_the_table_has_every_option_of_blocks_and_layers():
    section = TEXT.split("## Ranks and rates of blocks and layers\n", 1)[1].split("\n## ")[0]
    named = {name for row in re.findall(r"^\|(.*?)\|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert named == {
        name for family in ("sd15", "sdxl", "flux", "sd3", "lumina2") for name in options_of(by_name(family))
    }
