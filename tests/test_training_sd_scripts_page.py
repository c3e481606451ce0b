"""docs/training_sd_scripts.md: its command has arguments of sd-scripts, and its options make the network."""

import re
import shlex

from diffusers import UNet2DConditionModel
from page_snippets import ROOT, blocks_of
from sd_scripts_arguments import ARGUMENTS

from lora_inspect.architectures.trained import trained

PAGE = ROOT / "docs" / "training_sd_scripts.md"
TEXT = PAGE.read_text(encoding="utf-8")
(COMMAND,) = [command.text for block in blocks_of(PAGE) for command in block.commands]
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


def test_the_options_of_the_command_make_a_network():
    from lora_inspect.networks import lora_sdxl

    words = shlex.split(COMMAND)
    at = words.index("--network_args") + 1
    options = dict(word.split("=", 1) for word in words[at:] if not word.startswith("--") and "=" in word)
    network = lora_sdxl.create_network(1.0, 16, 8.0, None, None, UNet2DConditionModel(**TINY), **options)
    ranks = {lora.lora_dim for lora in network.unet_loras}
    assert ranks == {16, int(options["conv_dim"])}
    assert network.use_dora
