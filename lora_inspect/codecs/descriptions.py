"""What in a file speaks of the codes of its weights, beside what each codec has in their module."""

# In the module of a weight: JSON whose `format` names its codec.
FORMAT = "comfy_quant"
# In the metadata of a file: the same JSON for many modules.
FORMATS_KEY = "_quantization_metadata"
# The last name of a tensor that says of all weights below its own place that they are scaled.
MARKER = "scaled_fp8"
