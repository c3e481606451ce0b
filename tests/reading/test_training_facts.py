"""What metadata say of a training: real ones, those of each program, and any at all."""

import json
import time

import pytest
from hypothesis import given
from real_headers import told_by
from strategies import told_metadata

from lora_inspect.reading.metadata.provenance import training_facts


def test_a_file_of_sd_scripts_tells_all_of_it():
    metadata, _ = told_by("sd15-lokr-smart-falcon-4")
    assert training_facts(metadata) == {
        "steps": int(metadata["ss_max_train_steps"]),
        "epoch": int(metadata["ss_epoch"]),
        "epochs": int(metadata["ss_num_epochs"]),
        "batch_size": int(metadata["ss_total_batch_size"]),
        "images": 130,
        "resolution": "768x768",
        "learning_rate": float(metadata["ss_learning_rate"]),
        "optimizer": "Lion",
        "date": time.strftime("%Y-%m-%d", time.gmtime(float(metadata["ss_training_finished_at"]))),
    }


def test_other_programs_tell_some_of_it():
    toolkit = {"training_info": json.dumps({"step": 2500, "epoch": 17})}
    assert training_facts(toolkit) == {"steps": 2500, "epoch": 17}
    onetrainer = {
        "epochs": 100, "batch_size": 2, "learning_rate": 3e-4, "resolution": "768", "optimizer": {"optimizer": "ADAMW"},
    }  # fmt: skip
    assert training_facts({"ot_config": json.dumps(onetrainer), "modelspec.date": "2025-03-02T10:00:00"}) == {
        "epochs": 100, "batch_size": 2, "learning_rate": 3e-4, "resolution": "768x768", "optimizer": "ADAMW",
        "date": "2025-03-02",
    }  # fmt: skip
    assert training_facts({}, told_by("mlx-qwen2.5")[1]) == {
        "steps": 1000, "batch_size": 1, "learning_rate": 1e-05,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("said", "found"),
    {
        "(768, 768)": "768x768", "1024x1024": "1024x1024", "[512,768]": "512x768", "1024": "1024x1024", "(512,)": None,
        "": None, "big": None, "1x2x3": None, "(99999999999, 1)": None, f"1,1{' ' * 1_000_000}x": None,
    }.items(),
)  # fmt: skip
def test_resolutions_are_two_sides(said, found):
    assert training_facts({"ss_resolution": said}).get("resolution") == found


@pytest.mark.parametrize(
    ("said", "found"),
    {
        "prodigyopt.prodigy.Prodigy(decouple=True,betas=(0.9, 0.99))": "Prodigy", "AdamW8bit": "AdamW8bit",
        "torch.optim.AdamW": "AdamW", "x." * 1_000_000: None, "(": None, "None": None,
    }.items(),
)  # fmt: skip
def test_an_optimizer_is_called_by_the_name_of_its_class(said, found):
    assert training_facts({"ss_optimizer": said}).get("optimizer") == found


@pytest.mark.parametrize("rate", ["nan", "inf", "-1", "0", "", "1e999", "x"])
def test_a_rate_that_nothing_learns_at_is_none(rate):
    assert training_facts({"ss_learning_rate": rate, "ss_training_finished_at": rate}) in (
        {}, {"date": "1970-01-01"},
    )  # fmt: skip
    assert "learning_rate" not in training_facts({"ss_learning_rate": rate})


@pytest.mark.parametrize("steps", [" 40 ", "40\x1f", "\n40"])
def test_blanks_around_a_number_do_not_count(steps):
    assert training_facts({"ss_steps": steps})["steps"] == 40


@given(told_metadata)
def test_any_metadata_is_read_and_what_is_found_is_of_its_kind(metadata):
    found = training_facts(metadata)
    for fact in ("steps", "epoch", "epochs", "batch_size", "images"):
        assert type(found.get(fact, 1)) is int
        assert found.get(fact, 1) > 0
    assert found.get("learning_rate", 1) > 0
    assert all(type(found.get(fact, "")) is str for fact in ("resolution", "optimizer", "date"))
    json.dumps(found, allow_nan=False)
