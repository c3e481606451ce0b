"""The table of the steps of reading."""

import inspect
from importlib import import_module

import pytest

from lora_inspect.reading.state import Reading
from lora_inspect.reading.steps import STEPS

ADDRESSES = [step.run for step in STEPS if isinstance(step.run, str)]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_leads_to_a_step(address):
    file, _, name = address.partition(":")
    signature = inspect.signature(getattr(import_module(f"lora_inspect.reading.{file}"), name))
    assert [one.annotation for one in signature.parameters.values()] == [Reading]
    assert signature.return_annotation is Reading
