"""The table of the steps of a conversion."""

import inspect
from importlib import import_module

import pytest

from lora_inspect.converting.steps.conversion import STEPS
from lora_inspect.converting.steps.part import Context, ModuleParts

ADDRESSES = [step.run for step in STEPS if isinstance(step.run, str)]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_leads_to_a_step(address):
    file, _, name = address.partition(":")
    signature = inspect.signature(getattr(import_module(f"lora_inspect.converting.steps.{file}"), name))
    assert [one.annotation for one in signature.parameters.values()] == [ModuleParts, Context]
    assert signature.return_annotation is ModuleParts
