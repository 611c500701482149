"""
Measure a pretrained model at many k: `python docs/figures/measure_quality.py` writes quality.json.

SmolLM2-135M reads parts of Python's documentation with a pass key hidden in each, as the demo does.
About five minutes on two cores.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from topk_np.demo.experiment import PASS_KEY, make_prompt
from topk_np.demo.inputs import load_model, read_text
from topk_np.models.llama import forward
from topk_np.models.scoring import next_tokens

DATA = Path(__file__).parents[1] / "data" / "quality.json"
TOKENS = 1024
STARTS = (0, 40_000)  # tokens into the text
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    *({"attention_k": k} for k in (256, 128, 64, 32, 16, 8)),
    *({"ffn_k": k} for k in (1024, 768, 512, 384, 256, 128)),
    *({"attention_k": 64, "ffn_k": k} for k in (1024, 768, 512)),
    {"attention_k": {0: None, "rest": 32}},
)


def main() -> None:
    source, text = read_text(None, max(STARTS) + TOKENS)
    name, model = load_model(None)
    ids = model.tokenizer.encode(text)
    prompts = [make_prompt(model.tokenizer, ids[start : start + TOKENS]) for start in STARTS]
    rows = []
    for setting in tqdm(SETTINGS):
        losses, hits, found = [], [], 0
        for prompt in prompts:
            seen = next_tokens(model, forward(replace(model, **setting), prompt.ids), prompt.ids)
            losses.append(seen.loss[prompt.is_text])
            hits.append((seen.best == prompt.ids[1:])[prompt.is_text])
            found += model.tokenizer.decode(seen.best[-prompt.digits :]) == PASS_KEY
        rows.append(
            setting
            | {
                "perplexity": round(float(np.exp(np.mean(np.concatenate(losses)))), 3),
                "accuracy": round(float(np.mean(np.concatenate(hits))), 4),
                "pass_keys_found": found,
            }
        )
    about = {"model": name, "text": source, "sequences": len(STARTS), "tokens": TOKENS}
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    text = f'{{"about": {json.dumps(about)},\n "rows": [\n{lines}\n]}}\n'
    DATA.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
