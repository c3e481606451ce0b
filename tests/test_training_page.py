"""docs/training.md: its commands are understood by the trainer, and its options by the network."""

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from musubi_arguments import ARGUMENTS, FLAG, FLOAT, FLOATS, INT, REQUIRED, STEPS, TEXTS
from page_snippets import ROOT, blocks_of
from torch import nn

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

PAGE = ROOT / "docs" / "training.md"
BLOCKS = blocks_of(PAGE)
COMMANDS = [command.text for block in BLOCKS if block.language == "sh" for command in block.commands]
CONFIG = tomllib.loads(
    next(block.text for block in BLOCKS if block.language == "toml" and "network_module" in block.text)
)
LAUNCH = next(command for command in COMMANDS if command.startswith("accelerate "))
TYPES = {INT: int, FLOAT: float, FLOATS: float, STEPS: float}


def table_parser(script):
    """A parser of the table's arguments."""
    parser = argparse.ArgumentParser(script, allow_abbrev=False)
    for option, kind in ARGUMENTS[script].items():
        if kind == FLAG:
            parser.add_argument(option, action="store_true")
        else:
            several = {"nargs": "*"} if kind in (TEXTS, FLOATS) else {}
            choices = kind if isinstance(kind, tuple) else None
            required = option in REQUIRED[script]
            parser.add_argument(option, type=TYPES.get(kind, str), choices=choices, required=required, **several)
    return parser


def real_parser(script):
    """The trainer's own, where it is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "current_device", lambda: 0)  # it is asked for one while it is imported
        module = pytest.importorskip(f"musubi_tuner.{script}", exc_type=ImportError)
    common = {
        "wan_train_network": "musubi_tuner.training.parser_common",
        "wan_cache_latents": "musubi_tuner.cache_latents",
        "wan_cache_text_encoder_outputs": "musubi_tuner.cache_text_encoder_outputs",
    }
    parser = module.wan_setup_parser(importlib.import_module(common[script]).setup_parser_common())
    parser.allow_abbrev = False
    return parser


PARSERS = pytest.mark.parametrize("parser_of", [table_parser, real_parser], ids=["table", "trainer"])


def script_of(words):
    """Which script a command starts, and the words behind it."""
    at = next(at for at, word in enumerate(words) if word.endswith(".py"))
    return Path(words[at]).stem, words[at + 1 :]


@PARSERS
@pytest.mark.parametrize("command", [command for command in COMMANDS if ".py" in command], ids=lambda text: text[:60])
def test_the_trainer_understands_every_argument(command, parser_of):
    script, arguments = script_of(shlex.split(command))
    parser_of(script).parse_args(arguments)


def test_accelerate_understands_its_own():
    launch = pytest.importorskip("accelerate.commands.launch")
    parsed = launch.launch_command_parser().parse_args(shlex.split(LAUNCH)[2:])
    assert parsed.training_script == "src/musubi_tuner/wan_train_network.py"
    assert (parsed.mixed_precision, parsed.num_cpu_threads_per_process) == ("bf16", 1)


@PARSERS
def test_the_file_says_what_the_command_says(parser_of):
    parser = parser_of("wan_train_network")
    by_command = vars(parser.parse_args(script_of(shlex.split(LAUNCH))[1]))
    by_file = vars(parser.parse_args([], argparse.Namespace(**CONFIG)))
    assert {**by_command, "dataset_config": str(by_command["dataset_config"])} == by_file


@PARSERS
def test_every_argument_of_the_page_is_one(parser_of):
    known = {option for action in parser_of("wan_train_network")._actions for option in action.option_strings}
    of_the_trainer = PAGE.read_text(encoding="utf-8").split("## Then")[0]
    named = set(re.findall(r"(?<![\w-])--[a-z0-9_]+", of_the_trainer)) - {"--num_cpu_threads_per_process"}
    assert len(named) >= 50
    assert named - set(ARGUMENTS["wan_cache_text_encoder_outputs"]) <= known


def test_every_module_of_a_model_is_one():
    text = PAGE.read_text(encoding="utf-8")
    modules = set(re.findall(r"`(lora_inspect\.networks\.\w+)`", text))
    others = {"__init__", "adapting", "network_args", "train_example"}
    own = {path.stem for path in (ROOT / "networks").glob("*.py")} - others
    sd_scripts = (ROOT / "docs" / "training_sd_scripts.md").read_text(encoding="utf-8")
    modules |= set(re.findall(r"`(lora_inspect\.networks\.\w+)`", sd_scripts))
    # No trainer that is described trains these.
    without_trainer = {"lora_inspect.networks.lora_ltx2", "lora_inspect.networks.lora_ernie_image"}
    assert modules | without_trainer == {f"lora_inspect.networks.{name}" for name in own}
    for name in modules:
        assert callable(importlib.import_module(name).create_arch_network)


def test_every_script_of_a_model_is_one():
    trainer = pytest.importorskip("musubi_tuner")
    scripts = set(re.findall(r"`(\w+_train_network\.py)`", PAGE.read_text(encoding="utf-8")))
    assert len(scripts) == 12
    assert scripts <= {path.name for folder in trainer.__path__ for path in Path(folder).iterdir()}


def test_a_name_tells_the_expert(tmp_path, run):
    made = tmp_path / "wan-style-high_noise.safetensors"
    made.write_bytes((ROOT / "fixtures" / "synthetic" / "rslora_flag.safetensors").read_bytes())
    assert run("info", made, "--json").json["expert"] == "high noise"


@pytest.mark.parametrize("script", ARGUMENTS)
def test_the_table_is_that_of_the_trainer(script):
    own = {option for action in real_parser(script)._actions for option in action.option_strings}
    assert own - {"-h", "--help"} == set(ARGUMENTS[script])


class WanAttentionBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn = nn.ModuleDict({name: nn.Linear(8, 8) for name in "qkvo"})
        self.ffn = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))


def test_the_network_takes_the_options_and_its_file_says_them(tmp_path, run):
    module = importlib.import_module(CONFIG["network_module"])
    options = dict(argument.split("=") for argument in CONFIG["network_args"])
    model = nn.ModuleDict({"blocks": nn.ModuleList([WanAttentionBlock()])}).requires_grad_(False)
    network = module.create_arch_network(
        1.0, CONFIG["network_dim"], float(CONFIG["network_alpha"]), None, None, model, neuron_dropout=None, **options
    )
    network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
    groups, names = network.prepare_optimizer_params(unet_lr=CONFIG["learning_rate"])
    rates = dict(zip(names, (group["lr"] for group in groups), strict=True))
    assert rates["unet plus"] == 8 * CONFIG["learning_rate"]
    network.save_weights(str(tmp_path / "wan-style.safetensors"), torch.float32, {})
    told = run("info", tmp_path / "wan-style.safetensors", "--json", "--modules").json
    assert (told["rslora"]["value"], told["dora"]["value"], told["scales"]) == (True, True, {"4": 4})
    assert told["ranks"] == {"16": 4}
    assert not [one["module"] for one in told["module_list"] if "ffn" in one["module"]]
