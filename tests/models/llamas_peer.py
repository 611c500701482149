"""The models of `tests.models.llamas` in transformers; run as a module it writes the files."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import transformers

from tests.models import llamas

torch.set_num_threads(1)


def config_of(case: dict[str, Any], **changes: Any) -> Any:
    """The config of transformers."""
    fields = {**llamas.SIZES, **case, **changes}
    kind = transformers.CONFIG_MAPPING[fields["model_type"]]
    return kind(**{name: value for name, value in fields.items() if name != "model_type"})


def build(config: Any) -> Any:
    """The model of transformers with our weights."""
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    state = {
        name: torch.tensor(llamas.weight(name, tuple(tensor.shape)))
        for name, tensor in model.state_dict().items()
    }
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model.eval()


def shapes(model: Any) -> dict[str, list[int]]:
    """The shapes of the tensors that a checkpoint has."""
    tied = model.config.tie_word_embeddings
    return {
        name: list(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def logits(model: Any, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Logits (B, Q, T)."""
    with torch.no_grad():
        found = model(
            torch.tensor(tokens),
            attention_mask=None if mask is None else torch.tensor(mask, dtype=torch.int64),
            use_cache=False,
        )
    return np.asarray(found.logits.numpy())


def gradients(model: Any, tokens: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """The loss of the next tokens, and its gradients by the names of tensors."""
    model.zero_grad()
    inputs = torch.tensor(tokens)
    loss = model(inputs, labels=inputs, use_cache=False).loss
    loss.backward()
    grads = {name: np.asarray(p.grad.numpy()) for name, p in model.named_parameters()}
    return float(loss.detach()), grads


def generated(model: Any, tokens: np.ndarray, mask: np.ndarray, count: int) -> np.ndarray:
    """The most probable tokens that follow (B, count)."""
    inputs = torch.tensor(tokens)
    model.generation_config.eos_token_id = None
    found = model.generate(
        inputs,
        attention_mask=torch.tensor(mask, dtype=torch.int64),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    return np.asarray(found[:, inputs.shape[1] :].numpy())


def results(case: str) -> dict[str, Any]:
    """All that the file of a case has."""
    config = config_of(llamas.CASES[case])
    model = build(config)
    tokens, mask = llamas.tokens(), llamas.mask()
    plain, padded = logits(model, tokens), logits(model, tokens, mask)[mask]
    loss, grads = gradients(model, tokens)
    return {
        "config": json.loads(model.config.to_json_string(use_diff=False)),
        "shapes": shapes(model),
        "logits": llamas.sample(plain),
        "padded": llamas.sample(padded),
        "scale": float(np.max(np.abs(plain))),
        "loss": loss,
        "grads": {name: llamas.sample(grad) for name, grad in grads.items()},
        "grad_scales": {name: float(np.max(np.abs(grad))) for name, grad in grads.items()},
        # by a fresh one, as dynamic rope depends on the longest sequence that a model has seen
        "generated": generated(build(config), tokens[:, :12], mask[:, :12], 6).tolist(),
    }


def main() -> None:
    """Write the files."""
    llamas.DATA.mkdir(exist_ok=True)
    for case in llamas.CASES:
        text = json.dumps(results(case), separators=(",", ":"))
        (llamas.DATA / f"{case}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
