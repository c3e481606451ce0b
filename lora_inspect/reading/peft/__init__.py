"""PEFT's adapter_config.json, and what it says of an adapter."""
