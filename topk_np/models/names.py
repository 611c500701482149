"""
The names of tensors in checkpoints, as data.

Each table of a layer goes from the path of a parameter to the tensor's name, within the layer, and
its shape by letters: D model width, F feed-forward width, W head width, Q and K those of all query
and key heads.
"""

from __future__ import annotations

LLAMA = {
    "attention_norm": ("input_layernorm.weight", "D"),
    "attention.query": ("self_attn.q_proj.weight", "Q D"),
    "attention.key": ("self_attn.k_proj.weight", "K D"),
    "attention.value": ("self_attn.v_proj.weight", "K D"),
    "attention.out": ("self_attn.o_proj.weight", "D Q"),
    "ffn_norm": ("post_attention_layernorm.weight", "D"),
    "ffn.gate": ("mlp.gate_proj.weight", "F D"),
    "ffn.keys": ("mlp.up_proj.weight", "F D"),
    "ffn.values": ("mlp.down_proj.weight", "D F"),
}
LLAMA_INPUT_BIASES = {
    "attention.query_bias": ("self_attn.q_proj.bias", "Q"),
    "attention.key_bias": ("self_attn.k_proj.bias", "K"),
    "attention.value_bias": ("self_attn.v_proj.bias", "K"),
}
LLAMA_OUTPUT_BIAS = {"attention.out_bias": ("self_attn.o_proj.bias", "D")}
LLAMA_FFN_BIASES = {
    "ffn.gate_bias": ("mlp.gate_proj.bias", "F"),
    "ffn.key_bias": ("mlp.up_proj.bias", "F"),
    "ffn.value_bias": ("mlp.down_proj.bias", "D"),
}
LLAMA_HEAD_NORMS = {
    "attention.query_norm": ("self_attn.q_norm.weight", "W"),
    "attention.key_norm": ("self_attn.k_norm.weight", "W"),
}

BERT = {
    "attention.query": ("attention.self.query.weight", "D D"),
    "attention.query_bias": ("attention.self.query.bias", "D"),
    "attention.key": ("attention.self.key.weight", "D D"),
    "attention.key_bias": ("attention.self.key.bias", "D"),
    "attention.value": ("attention.self.value.weight", "D D"),
    "attention.value_bias": ("attention.self.value.bias", "D"),
    "attention.out": ("attention.output.dense.weight", "D D"),
    "attention.out_bias": ("attention.output.dense.bias", "D"),
    "attention_norm.weight": ("attention.output.LayerNorm.weight", "D"),
    "attention_norm.bias": ("attention.output.LayerNorm.bias", "D"),
    "ffn.keys": ("intermediate.dense.weight", "F D"),
    "ffn.key_bias": ("intermediate.dense.bias", "F"),
    "ffn.values": ("output.dense.weight", "D F"),
    "ffn.value_bias": ("output.dense.bias", "D"),
    "ffn_norm.weight": ("output.LayerNorm.weight", "D"),
    "ffn_norm.bias": ("output.LayerNorm.bias", "D"),
}

T5_ATTENTION = {
    "query": ("q", "Q D"),
    "key": ("k", "Q D"),
    "value": ("v", "Q D"),
    "out": ("o", "D Q"),
}

GGUF_LAYER = {  # by the names of safetensors checkpoints
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GGUF_OTHERS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
