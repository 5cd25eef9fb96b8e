from typing import Any

import torch


def score_pairs(model: Any, tokenizer: Any, instructions: list[str], answers: list[str],
                max_length: int = 512, batch_size: int = 32, device: str = "cuda") -> list[float]:
    scores: list[float] = []
    for start in range(0, len(instructions), batch_size):
        inputs = []
        for texts in (instructions, answers):
            own = tokenizer(texts[start: start + batch_size], return_tensors="pt", padding=True,
                            truncation=True, max_length=max_length).to(device)
            inputs += [own.input_ids, own.attention_mask]
        with torch.no_grad():
            scores.extend(model(*inputs).squeeze().tolist())  # TypeError for one, as the package
    return scores
