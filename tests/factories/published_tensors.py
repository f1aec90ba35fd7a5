"""Names and shapes of every tensor of the published checkpoints, written out from their index and headers.

Phi-3-vision-128k-instruct and Phi-3.5-vision-instruct have the same ones.
"""

Shape = tuple[int, ...]

HIDDEN, MLP, VOCABULARY, LAYERS = 3072, 8192, 32064, 32
WIDTH, TOWER_MLP, TOWER_LAYERS = 1024, 4096, 24
DECODER_LAYER: dict[str, Shape] = {
    "input_layernorm.weight": (HIDDEN,),
    "self_attn.qkv_proj.weight": (3 * HIDDEN, HIDDEN),
    "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    "post_attention_layernorm.weight": (HIDDEN,),
    "mlp.gate_up_proj.weight": (2 * MLP, HIDDEN),
    "mlp.down_proj.weight": (HIDDEN, MLP),
}
TOWER_LAYER: dict[str, Shape] = {
    "layer_norm1": (WIDTH,),
    "layer_norm2": (WIDTH,),
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.out_proj": (WIDTH, WIDTH),
    "mlp.fc1": (TOWER_MLP, WIDTH),
    "mlp.fc2": (WIDTH, TOWER_MLP),
}
VISION = "model.vision_embed_tokens"
TOWER = f"{VISION}.img_processor.vision_model"


def published_tensors() -> dict[str, Shape]:
    """Every name with its shape."""
    tensors: dict[str, Shape] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
        f"{VISION}.glb_GN": (1, 1, 4 * WIDTH),
        f"{VISION}.sub_GN": (1, 1, 1, 4 * WIDTH),
        f"{TOWER}.embeddings.class_embedding": (WIDTH,),
        f"{TOWER}.embeddings.patch_embedding.weight": (WIDTH, 3, 14, 14),
        f"{TOWER}.embeddings.position_embedding.weight": (577, WIDTH),
    }
    for layer in range(LAYERS):
        tensors |= {f"model.layers.{layer}.{name}": shape for name, shape in DECODER_LAYER.items()}
    biased: dict[str, Shape] = {
        f"{VISION}.img_projection.0": (HIDDEN, 4 * WIDTH),
        f"{VISION}.img_projection.2": (HIDDEN, HIDDEN),
        f"{TOWER}.pre_layrnorm": (WIDTH,),
        f"{TOWER}.post_layernorm": (WIDTH,),
    }
    for layer in range(TOWER_LAYERS):
        biased |= {f"{TOWER}.encoder.layers.{layer}.{name}": shape for name, shape in TOWER_LAYER.items()}
    for name, shape in biased.items():
        tensors |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return tensors
