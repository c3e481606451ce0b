"""The functions for Python programs: they check arguments, call an operation and print nothing.

`lora_inspect` exports all public names of this folder.
"""
