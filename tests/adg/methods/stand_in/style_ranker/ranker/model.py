import torch
from transformers import AutoModel

from style_ranker.ranker.config import StyleRankerConfig


class StyleRanker(torch.nn.Module):
    def __init__(self, config: StyleRankerConfig) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(config.encoder_name, trust_remote_code=True)
        self.style = torch.nn.Linear(2 * config.hidden_dim, config.linear_dim)
        self.score = torch.nn.Linear(config.linear_dim, 1)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        states = [self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
                  for ids, mask in (inputs[:2], inputs[2:])]
        return self.score(torch.tanh(self.style(torch.cat(states, dim=1))))
