"""Alpha, rank, the rule of the scale, and the evidence for RS-LoRA and DoRA."""
