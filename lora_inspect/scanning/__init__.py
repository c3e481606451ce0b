"""What a folder of adapters holds: a short account of each file, read side by side, chosen and put in order."""
