"""The format of safetensors: headers, writing, and editing in place."""
