import json
from pathlib import Path


class StyleRankerConfig:
    def __init__(self, encoder_name: str, hidden_dim: int, linear_dim: int, **ignored: object
                 ) -> None:
        self.encoder_name, self.hidden_dim, self.linear_dim = encoder_name, hidden_dim, linear_dim

    @classmethod
    def from_pretrained(cls, folder: str, **changes: object) -> "StyleRankerConfig":
        return cls(**json.loads(Path(folder, "config.json").read_text()) | changes)
