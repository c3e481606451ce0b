"""What metadata say of an adapter's origin: real ones, those of each program, and any at all."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_headers import told_by
from strategies import any_json, told_metadata

from lora_inspect.reading.metadata.provenance import Provenance, provenance


def test_a_file_of_sd_scripts_tells_its_title_base_note_tags_and_images():
    metadata, config = told_by("sd15-lokr-smart-falcon-4")
    found = provenance(metadata, config)
    assert found.title == metadata["ss_output_name"]
    assert found.base == metadata["ss_sd_model_name"] == "animefull-final-pruned.safetensors"
    assert found.notes == (metadata["ss_training_comment"],)
    assert found.images == 43 + 45 + 42  # the folders of ss_dataset_dirs
    by_folder = json.loads(metadata["ss_tag_frequency"])
    counts = {}
    for tags in by_folder.values():
        for tag, count in tags.items():
            counts[tag.strip()] = counts.get(tag.strip(), 0) + count
    assert dict(found.tags).items() <= counts.items()
    assert [count for _, count in found.tags] == sorted(counts.values(), reverse=True)[:20]
    assert metadata["ss_training_comment"] == rf"trigger word is {found.trigger_words[0]}"


def test_configs_tell_the_base_and_a_path_is_cut_to_its_end():
    _, config = told_by("mlx-qwen2.5")
    assert config["model"].startswith("/Users/")
    assert provenance({}, config).base == "Qwen2.5-0.5B-Instruct"
    assert provenance({}, {"base_model_name_or_path": "org/model"}).base == "org/model"
    assert provenance({"ss_sd_model_name": r"D:\models\base.safetensors"}).base == "base.safetensors"
    assert provenance({"ot_config": '{"base_model_name": "org/flux"}'}).base == "org/flux"
    assert provenance({}, {"model": "///"}).base == "///"


def test_the_trigger_word_of_ai_toolkit_is_no_tag():
    found = provenance({"ss_tag_frequency": '{"1_inkw4sh": {"inkw4sh": 1}}'})
    assert (found.trigger_words, found.tags) == (("inkw4sh",), ())
    others = provenance({"ss_tag_frequency": '{"1_inkw4sh": {"inkw4sh": 2}}'})
    assert (others.trigger_words, others.tags) == ((), (("inkw4sh", 2),))


def test_trigger_phrases_are_words_between_commas_each_once():
    said = {"modelspec.trigger_phrase": " sks dog , photo of sks,", "trigger_word": "sks dog"}
    assert provenance(said).trigger_words == ("sks dog", "photo of sks")


@pytest.mark.parametrize(("note", "words"), [
    ("trigger word is sks", ("sks",)), ("Trigger words: sks dog, photo of sks", ("sks dog", "photo of sks")),
    ("trigger=sks", ("sks",)), ("TRIGGER PHRASE IS  a sks ", ("a sks",)), ("trigger-words are a,b", ("a", "b")),
    ("there is no trigger word", ()), ("trigger word is sks\nuse at 0.8", ()), ("triggers: x", ()),
    ("trigger word is ", ()),
    ("the trigger word is sks, and more", ()), ("trigger word is " + "x" * 300, ()), ("trigger word is none", ()),
])  # fmt: skip
def test_a_note_of_trigger_words_alone_tells_them(note, words):
    found = provenance({"ss_training_comment": note})
    assert (found.trigger_words, found.notes) == (words, (note.strip(),))


@pytest.mark.parametrize("nothing", ["", " ", "None", "null", "[name]", "LoRA@1726066908.24"])
def test_what_says_nothing_is_no_title(nothing):
    assert provenance({"modelspec.title": nothing, "ss_output_name": "real"}).title == "real"
    assert provenance({"modelspec.title": nothing}).title is None


def test_images_of_datasets_count_without_those_of_regularisation():
    subsets = [{"img_count": 7, "num_repeats": 3}, {"img_count": 5, "is_reg": True}, {"img_count": "x"}, 3]
    assert provenance({"ss_datasets": json.dumps([{"subsets": subsets}, 1])}).images == 7


@given(told_metadata, st.none() | st.dictionaries(st.sampled_from(("model", "iters", "optimizer")), any_json))
def test_any_metadata_is_read_and_what_is_found_is_of_its_kind(metadata, config):
    found = provenance(metadata, config)
    assert isinstance(found, Provenance)
    assert all(text is None or (isinstance(text, str) and text.strip()) for text in (found.title, found.base))
    assert all(isinstance(word, str) and word for word in (*found.trigger_words, *found.notes))
    assert all(isinstance(tag, str) and tag and count > 0 for tag, count in found.tags)
    assert len(found.tags) <= 20
    assert found.images is None or found.images > 0
