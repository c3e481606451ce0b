import re

import pytest

from networks.network_args import NetworkArguments, NetworkOption, parse, read_bool


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("use_rslora", "True", True),
        ("use_rslora", "on", True),
        ("use_rslora", 1, True),
        ("use_dora", "true", True),
        ("use_dora", " YES ", True),
        ("use_dora", "0", False),
        ("use_dora", False, False),
        ("use_dora", None, False),
        ("verbose", "true", True),
        ("loraplus_lr_ratio", "8", 8.0),
        ("loraplus_lr_ratio", 16, 16.0),
        ("loraplus_lr_ratio", "None", None),
        ("rank_dropout", "0.1", 0.1),
        ("rank_dropout", 0, 0.0),
        ("module_dropout", "none", None),
        ("conv_dim", "32", 32),
        ("conv_dim", 8, 8),
        ("conv_dim", "0", 0),
        ("conv_alpha", "16", 16.0),
        ("conv_alpha", "0", 0.0),
        ("exclude_patterns", "['.*single_blocks.*']", (".*single_blocks.*",)),
        ("exclude_patterns", r"['.*attn\.to_q.*', 'b']", (r".*attn\.to_q.*", "b")),
        ("exclude_patterns", "('a', 'b')", ("a", "b")),
        ("exclude_patterns", "'one'", ("one",)),
        ("include_patterns", ["a", "b"], ("a", "b")),
        ("include_patterns", ("a",), ("a",)),
        ("include_patterns", "[]", ()),
        ("include_patterns", None, ()),
    ],
)
def test_values(name, value, expected):
    assert getattr(parse({name: value}), name) == expected


def test_nothing_given_is_every_default():
    assert parse({}) == NetworkArguments()


def test_lists_are_copied():
    patterns = ["a"]
    arguments = parse({"exclude_patterns": patterns})
    patterns.append("b")
    assert arguments.exclude_patterns == ("a",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_dora", "Ture"),
        ("use_dora", ""),
        ("use_rslora", 2),
        ("verbose", "maybe"),
        ("loraplus_lr_ratio", "fast"),
        ("loraplus_lr_ratio", "0"),
        ("loraplus_lr_ratio", "nan"),
        ("rank_dropout", "1"),
        ("rank_dropout", "-0.1"),
        ("module_dropout", "1.5"),
        ("module_dropout", "half"),
        ("module_dropout", True),
        ("conv_dim", "3.5"),
        ("conv_dim", "-1"),
        ("conv_dim", True),
        ("conv_alpha", "inf"),
        ("conv_alpha", "nan"),
        ("conv_alpha", "-1"),
        ("exclude_patterns", ".*attn.*"),
        ("exclude_patterns", "['(']"),
        ("exclude_patterns", "[1]"),
        ("include_patterns", ["*"]),
        ("include_patterns", 3),
    ],
)
def test_a_value_that_cannot_be_used_names_its_option(name, value):
    with pytest.raises(ValueError, match=name):
        parse({name: value})


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [
        ("use_rs_lora", "use_rslora"),
        ("usedora", "use_dora"),
        ("exclude_pattern", "exclude_patterns"),
        ("conv_dims", "conv_dim"),
    ],
)
def test_an_unknown_option_names_the_nearest(unknown, nearest):
    with pytest.raises(ValueError, match=f"{unknown!r}; did you mean {nearest!r}"):
        parse({unknown: "1"})


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [
        ("rs_lora", "did you mean 'use_rslora'?"),
        ("dora_wd", "did you mean 'use_dora'?"),
        ("use_DoRA", "did you mean 'use_dora'?"),
        ("conv_rank", "did you mean 'conv_dim'?"),
        ("conv_lora_dim", "did you mean 'conv_dim'?"),
        ("lora_plus_ratio", "did you mean 'loraplus_lr_ratio'?"),
        ("network_dropout", "did you mean 'dropout'?"),
        ("lora_rank", "it is --network_dim of the trainer"),
        ("lora_alpha", "it is --network_alpha of the trainer"),
        ("layers_pattern", "known are alpha_pattern, "),
        ("constrain", "known are alpha_pattern, "),
    ],
)
def test_the_name_of_another_program_is_not_taken_for_a_slip_of_another_option(unknown, meant):
    with pytest.raises(ValueError, match=re.escape(f"unknown network_args option {unknown!r}; {meant}")):
        parse({unknown: "1"})


def test_an_option_of_the_algorithm_is_meant_where_there_is_one():
    declared = {"constraint": NetworkOption(read_bool, True)}
    with pytest.raises(ValueError, match="'constrain'; did you mean 'constraint'"):
        parse({"constrain": "1"}, extra=declared)


@pytest.mark.parametrize("place", range(4))
def test_a_slip_of_one_letter_names_the_option(place):
    for name in parse({}).__slots__:
        if name in ("given", "extra", "layers", "neuron_dropout"):
            continue
        for slip in (name[:place] + name[place + 1 :], f"{name[:place]}x{name[place:]}"):
            # Without its first letter, this one is an argument of the trainer.
            if slip != "lora_alpha":
                with pytest.raises(ValueError, match=f"did you mean '{name}'"):
                    parse({slip: "1"})


def test_network_dropout_is_its_own_keyword():
    assert parse({}, neuron_dropout=0.1).neuron_dropout == 0.1
    assert parse({"dropout": None}, neuron_dropout=0.1).neuron_dropout == 0.1
    with pytest.raises(ValueError, match="network_dropout"):
        parse({}, neuron_dropout=1.0)


def test_an_architecture_declares_its_own_options():
    declared = {"exclude_mod": NetworkOption(read_bool, True)}
    assert parse({}, extra=declared).extra == {"exclude_mod": True}
    assert parse({"exclude_mod": "False"}, extra=declared).extra == {"exclude_mod": False}
    with pytest.raises(ValueError, match="exclude_mod"):
        parse({"exclude_mod": "no way"}, extra=declared)
    with pytest.raises(ValueError, match="unknown"):
        parse({"exclude_mod": "False"})


def test_only_what_the_user_set_is_given():
    assert parse({"use_dora": None, "conv_dim": "none", "use_rslora": "False"}).given == {"use_rslora"}


@pytest.mark.parametrize("unknown", ["train_t5xxl", "preset", "zzz"])
def test_did_you_mean_names_an_option_that_is_not_near(unknown):
    with pytest.raises(
        ValueError, match=f"unknown network_args option {unknown!r}; known are alpha_pattern, "
    ) as error:
        parse({unknown: "1"})
    assert "did you mean" not in str(error.value)
