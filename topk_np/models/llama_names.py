"""How checkpoints name and describe a Llama model: safetensors folders, and GGUF files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from topk_np.models.configs import check, check_groups, number, positive, table
from topk_np.models.llama_blocks import LlamaConfig
from topk_np.models.names import Name, depth_of

Style = Literal["safetensors", "gguf"]

# path -> its name in safetensors and in GGUF files, shape, and whether it is flipped
_LAYER = {
    "attention_norm": ("input_layernorm", "attn_norm", "D", False),
    "attention.query": ("self_attn.q_proj", "attn_q", "Q D", False),
    "attention.key": ("self_attn.k_proj", "attn_k", "K D", False),
    "attention.value": ("self_attn.v_proj", "attn_v", "K D", False),
    "attention.out": ("self_attn.o_proj", "attn_output", "D Q", False),
    "ffn_norm": ("post_attention_layernorm", "ffn_norm", "D", False),
    "ffn.gate": ("mlp.gate_proj", "ffn_gate", "F D", False),
    "ffn.keys": ("mlp.up_proj", "ffn_up", "F D", False),
    "ffn.values": ("mlp.down_proj", "ffn_down", "D F", True),
}


def llama_names(
    tensors: Collection[str], style: Style, /, *, depth: int | None = None, tied: bool = False
) -> list[Name]:
    """
    Where each parameter comes from.

    By default there are as many layers as the tensors show. A GGUF file without an output layer is
    of a tied model; a model in safetensors says whether it is.
    """
    column = 0 if style == "safetensors" else 1
    prefix = ""
    if style == "safetensors" and "embed_tokens.weight" not in tensors:
        prefix = "model."
    embedding, layers, norm, head = (
        (f"{prefix}embed_tokens", f"{prefix}layers", f"{prefix}norm", "lm_head"),
        ("token_embd", "blk", "output_norm", "output"),
    )[column]
    if depth is None:
        depth = depth_of(tensors, f"{layers}.{{}}.{_LAYER['attention.query'][column]}.weight")
    names = [Name("embedding", f"{embedding}.weight", "T D")]
    for i in range(depth):
        for path, row in _LAYER.items():
            tensor = f"{layers}.{i}.{row[column]}.weight"
            names.append(Name(f"layers.{i}.{path}", tensor, row[2], row[3]))
    names.append(Name("norm", f"{norm}.weight", "D"))
    if not tied and (style == "safetensors" or f"{head}.weight" in tensors):
        names.append(Name("head", f"{head}.weight", "T D"))
    return names


def llama_config(config: Mapping[str, Any], /) -> LlamaConfig:
    """
    Read the ``config.json`` of a safetensors checkpoint.

    Raises
    ------
    ValueError
        If something is missing, or the model has a part that is not computed here.
    """
    check("model_type", config.get("model_type"), "llama")
    check("hidden_act", config.get("hidden_act", "silu"), "silu")
    check("attention_bias", config.get("attention_bias", False), False)
    check("mlp_bias", config.get("mlp_bias", False), False)
    heads, groups = number(config, "num_attention_heads"), _groups(config)
    check_groups(heads, groups)
    return LlamaConfig(
        heads=heads,
        groups=groups,
        norm_eps=positive(config, "rms_norm_eps"),
        rope_base=_rope_base(config),
        rope_layout="half",
        context=number(config, "max_position_embeddings"),
    )


def _groups(config: Mapping[str, Any]) -> int:
    given = config.get("num_key_value_heads")
    return number(config, "num_attention_heads" if given is None else "num_key_value_heads")


def _rope_base(config: Mapping[str, Any]) -> float:
    """The base of the rotary positions, which newer configs have among ``rope_parameters``."""
    base = positive(config, "rope_theta", 10_000.0)
    check("partial_rotary_factor", config.get("partial_rotary_factor", 1), None, 1)
    for name in ("rope_scaling", "rope_parameters"):
        rope = table(config, name)
        if any(isinstance(value, Mapping) for value in rope.values()):
            raise ValueError(f"{name} must be the same in all layers for this reader, got {rope}")
        check("rope_type", rope.get("rope_type", rope.get("type", "default")), "default")
        check("partial_rotary_factor", rope.get("partial_rotary_factor", 1), None, 1)
        base = positive(rope, "rope_theta", base)
    return base


def llama_sizes(config: Mapping[str, Any], /) -> dict[str, int]:
    """What the letters of the shapes stand for."""
    width, heads = number(config, "hidden_size"), number(config, "num_attention_heads")
    head = number(config, "head_dim", max(1, width // heads))
    return {
        "T": number(config, "vocab_size"),
        "D": width,
        "F": number(config, "intermediate_size"),
        "Q": heads * head,
        "K": _groups(config) * head,
    }


def llama_ignored(config: Mapping[str, Any], /) -> tuple[str, ...]:
    """Tensors that are known and not needed: what follows from the config, and a tied head."""
    tied = (r"lm_head\.weight",) if config.get("tie_word_embeddings") else ()
    return (r".*rotary_emb\.inv_freq", *tied)
