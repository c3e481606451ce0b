"""The real models that confirm the paths of families: tests build them, tiny, and the page of architectures says so."""

HEADS = {"num_attention_heads": 2}
STREAMS = {**HEADS, "attention_head_dim": 16, "num_layers": 1, "num_single_layers": 1}
HUNYUAN = {**HEADS, "attention_head_dim": 10, "num_layers": 1, "num_refiner_layers": 1, "text_embed_dim": 16}
UNET = {
    "block_out_channels": (32, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
}
SDXL = {
    **UNET,
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
}
WAN = {**HEADS, "attention_head_dim": 12, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2}

# Of diffusers: class, arguments of a tiny model, and the families whose names it has: more than one where another
# family has all of its names, which widths, indices or metadata then have to tell apart.
DIFFUSERS: list[tuple[str, dict[str, object], set[str]]] = [
    ("UNet2DConditionModel", {**UNET, "cross_attention_dim": 768}, {"sd15"}),
    ("UNet2DConditionModel", {**UNET, "cross_attention_dim": 1024}, {"sd2"}),
    ("UNet2DConditionModel", {**SDXL, "cross_attention_dim": 2048}, {"sdxl"}),
    (
        "SD3Transformer2DModel",
        {
            **HEADS,
            "attention_head_dim": 8,
            "num_layers": 2,
            "caption_projection_dim": 16,
            "dual_attention_layers": (0,),
        },
        {"sd3"},
    ),
    ("FluxTransformer2DModel", {**STREAMS, "guidance_embeds": True}, {"flux"}),
    ("ChromaTransformer2DModel", {**STREAMS, "approximator_hidden_dim": 32}, {"chroma"}),
    ("Flux2Transformer2DModel", STREAMS, {"flux2"}),
    ("WanTransformer3DModel", WAN, {"wan"}),
    ("WanTransformer3DModel", {**WAN, "added_kv_proj_dim": 24, "image_dim": 16}, {"wan"}),
    ("WanVACETransformer3DModel", {**WAN, "vace_layers": [0, 1]}, {"wan"}),
    (
        "HunyuanVideoTransformer3DModel",
        {**HUNYUAN, "num_single_layers": 1, "guidance_embeds": True, "rope_axes_dim": (2, 4, 4)},
        {"hunyuan_video", "framepack"},
    ),
    ("HunyuanVideo15Transformer3DModel", HUNYUAN, {"hunyuan_video_1_5"}),
    (
        "HunyuanVideoFramepackTransformer3DModel",
        {**HUNYUAN, "num_single_layers": 1, "has_image_proj": True, "has_clean_x_embedder": True},
        {"framepack"},
    ),
    (
        "HunyuanImageTransformer2DModel",
        {**HUNYUAN, "num_single_layers": 1, "text_embed_2_dim": 16, "guidance_embeds": True},
        {"hunyuan_image"},
    ),
    ("QwenImageTransformer2DModel", {**HEADS, "attention_head_dim": 16, "num_layers": 2}, {"qwen_image"}),
    (
        "QwenImageTransformer2DModel",
        {**HEADS, "attention_head_dim": 16, "num_layers": 1, "use_additional_t_cond": True},
        {"qwen_image"},
    ),
    (
        "ZImageTransformer2DModel",
        {"dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [4, 6, 6]},
        {"z_image"},
    ),
    ("Lumina2Transformer2DModel", {"hidden_size": 96, "num_layers": 2, "num_attention_heads": 1}, {"lumina2"}),
    (
        "Kandinsky5Transformer3DModel",
        {"model_dim": 32, "ff_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 1, "axes_dims": (4, 6, 6)},
        {"kandinsky5"},
    ),
    (
        "HiDreamImageTransformer2DModel",
        {
            **STREAMS,
            "patch_size": 2,
            "in_channels": 4,
            "caption_channels": [16, 16],
            "text_emb_dim": 16,
            "num_routed_experts": 2,
            "max_resolution": (16, 16),
            "llama_layers": [0, 1],
        },
        {"hidream_i1"},
    ),
    ("LTXVideoTransformer3DModel", {**HEADS, "attention_head_dim": 16, "num_layers": 1}, {"ltx_video", "ltx2"}),
    (
        "LTX2VideoTransformer3DModel",
        {"num_layers": 1, "gated_attn": True, "audio_gated_attn": True, "cross_attn_mod": True},
        {"ltx2"},
    ),
    (
        "LTX2VideoTransformer3DModel",
        {
            "num_layers": 1,
            "gated_attn": True,
            "audio_gated_attn": True,
            "cross_attn_mod": True,
            "audio_cross_attn_mod": True,
            "ff_bias": False,
            "audio_ff_bias": False,
            "use_prompt_embeddings": False,
            "use_keyframes_abs_pos_embedding": True,
        },
        {"ltx2"},
    ),
    ("AuraFlowTransformer2DModel", {"num_mmdit_layers": 1, "num_single_dit_layers": 1}, {"auraflow"}),
    ("CosmosTransformer3DModel", {**HEADS, "attention_head_dim": 16, "num_layers": 1}, {"cosmos1", "cosmos", "anima"}),
    (
        "CosmosTransformer3DModel",
        {
            **HEADS,
            "attention_head_dim": 16,
            "num_layers": 1,
            "use_crossattn_projection": True,
            "img_context_dim_in": 16,
            "img_context_dim_out": 16,
        },
        {"cosmos"},
    ),
    (
        "AceStepTransformer1DModel",
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
        },
        {"ace_step_1_5"},
    ),
    ("Ideogram4Transformer2DModel", {**HEADS, "attention_head_dim": 16, "num_layers": 1}, {"ideogram4"}),
    ("Krea2Transformer2DModel", {"num_layers": 1}, {"krea2"}),
    (
        "ErnieImageTransformer2DModel",
        {
            **HEADS,
            "hidden_size": 32,
            "num_layers": 2,
            "ffn_hidden_size": 48,
            "text_in_dim": 16,
            "rope_axes_dim": (4, 6, 6),
        },
        {"ernie_image"},
    ),
    (
        "QwenImage21Transformer2DModel",
        {**HEADS, "attention_head_dim": 16, "num_layers": 2, "context_in_dim": 24, "axes_dims_rope": (4, 6, 6)},
        {"qwen_image_2"},
    ),
    (
        "MiniMaxH3Transformer3DModel",
        {
            **HEADS,
            "attention_head_dim": 16,
            "hidden_size": 24,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "ffn_dim": 40,
            "text_dim": 16,
            "time_embed_hidden_dim": 12,
            "time_embed_dim": 20,
            "rope_freq_dim": 2,
        },
        {"minimax_h3"},
    ),
]

DECODER = {
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
EXPERTS = {
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
}
DEEPSEEK = {**EXPERTS, "n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
MIXED = {**EXPERTS, "layer_types": ["linear_attention", "full_attention"]}
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 16, "add_cross_attention": True}
BIGCODE = {**GPT2, "add_cross_attention": False}
NEOX = {**DECODER, "num_key_value_heads": 4}
BERT = {name: DECODER[name] for name in DECODER if name != "num_key_value_heads"}
DISTILBERT = {"vocab_size": 16, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 12}
T5 = {"vocab_size": 16, "d_model": 16, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2}

# Of transformers: class, arguments of a tiny model, and the family and layout that hold every layer of it.
TRANSFORMERS: list[tuple[str, dict[str, object], str, str]] = [
    *((f"{name}ForCausalLM", DECODER, "llm", "hf") for name in (
        "Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3", "Phi", "Phi3", "Olmo2", "Cohere", "Glm4",
        "Granite", "SmolLM3", "Starcoder2", "StableLm",
    )),
    *((f"{name}ForCausalLM", {**DECODER, **EXPERTS}, "llm", "hf") for name in (
        "Mixtral", "Qwen2Moe", "Qwen3Moe", "GptOss", "Olmoe", "Phimoe",
    )),
    *((f"{name}ForCausalLM", {**DECODER, **DEEPSEEK}, "llm", "hf") for name in ("DeepseekV2", "DeepseekV3")),
    ("Qwen3NextForCausalLM", {**DECODER, **MIXED}, "llm", "hf"),
    ("Qwen3_5ForCausalLM", {**DECODER, **MIXED}, "llm", "hf"),
    *((f"{name}Model", DECODER, "llm", "hf-backbone") for name in ("Llama", "Qwen3", "Gemma3Text", "Phi3")),
    ("LlamaForSequenceClassification", DECODER, "llm", "hf"),
    ("GPT2LMHeadModel", GPT2, "gpt2", "hf"),
    ("GPT2Model", GPT2, "gpt2", "hf-backbone"),
    ("GPT2ForSequenceClassification", GPT2, "gpt2", "hf"),
    ("GPT2DoubleHeadsModel", GPT2, "gpt2", "hf"),
    ("GPTBigCodeForCausalLM", BIGCODE, "gpt_bigcode", "hf"),
    ("GPTBigCodeModel", BIGCODE, "gpt_bigcode", "hf-backbone"),
    ("GPTNeoXForCausalLM", NEOX, "gpt_neox", "hf"),
    ("GPTNeoXModel", NEOX, "gpt_neox", "hf-backbone"),
    ("GPTNeoXForSequenceClassification", NEOX, "gpt_neox", "hf"),
    *((f"Bert{end}", BERT, "bert", "hf") for end in (
        "ForMaskedLM", "ForPreTraining", "ForSequenceClassification", "ForQuestionAnswering",
    )),
    *((f"{name}ForMaskedLM", BERT, "bert", "hf") for name in ("Roberta", "XLMRoberta")),
    *((f"{name}Model", BERT, "bert", "hf-backbone") for name in ("Bert", "Roberta")),
    ("RobertaForSequenceClassification", BERT, "bert", "hf"),
    *((f"DistilBert{end}", DISTILBERT, "distilbert", "hf") for end in (
        "ForMaskedLM", "ForSequenceClassification", "ForQuestionAnswering",
    )),
    ("DistilBertModel", DISTILBERT, "distilbert", "hf-backbone"),
    *((name, T5, "t5", "hf") for name in (
        "T5Model", "T5EncoderModel", "T5ForConditionalGeneration", "UMT5EncoderModel", "MT5ForConditionalGeneration",
    )),
    ("T5ForSequenceClassification", {**T5, "decoder_start_token_id": 0}, "t5", "hf-classifier"),
]  # fmt: skip

# Of transformers too: language models with a vision tower, of which the configuration of each part is made small.
MULTIMODAL = [
    "Gemma3ForConditionalGeneration",
    "Gemma4ForConditionalGeneration",
    "LlavaForConditionalGeneration",
    "Mistral3ForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
]
