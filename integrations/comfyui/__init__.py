"""ComfyUI nodes of lora-inspect: adapters are combined, converted, resized, extracted and checked as files.

ComfyUI imports this folder from `custom_nodes` and reads the two tables.
"""

from .lora_nodes import CheckLora, CombineLoras, ConvertLora, ExtractLora, InspectLora, ResizeLora

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

# The names are in saved workflows, so they never change.
NODE_CLASS_MAPPINGS = {
    "LoraInspectCombine": CombineLoras,
    "LoraInspectCheck": CheckLora,
    "LoraInspectConvert": ConvertLora,
    "LoraInspectResize": ResizeLora,
    "LoraInspectExtract": ExtractLora,
    "LoraInspectInspect": InspectLora,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "LoraInspectCombine": "Combine LoRAs",
    "LoraInspectCheck": "Check LoRA",
    "LoraInspectConvert": "Convert LoRA for ComfyUI",
    "LoraInspectResize": "Resize LoRA",
    "LoraInspectExtract": "Extract LoRA",
    "LoraInspectInspect": "Inspect LoRA",
}
