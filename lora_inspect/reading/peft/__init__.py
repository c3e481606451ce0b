"""PEFT's adapter_config.json, and its meaning for an adapter."""
