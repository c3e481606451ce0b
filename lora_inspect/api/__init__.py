"""What Python programs call: one file per function. Parses arguments as Python has them, calls an op, prints nothing.

`lora_inspect` itself exports all of it.
"""
