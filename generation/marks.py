"""What in the pool's records looks like a part of the prompt around them."""

from pathlib import Path

from adg.base.errors import InputError
from adg.config import Config
from adg.control_tokens import OBEY, pattern_of
from adg.models.control_strings import control_strings
from adg.prompts import MARKERS


class Marks:
    """The records that hold control tokens of the backbone's tokenizer, or markers of the prompt
    templates in use: `ids` has theirs by kind."""

    def __init__(self, config: Config) -> None:
        self._obeyed = config.generation.control_tokens == OBEY
        self._problem: str | None = None  # why control tokens are not looked for
        self.ids: dict[str, list[str]] = {"control_tokens": [], "template_markers": []}
        try:
            tokens = control_strings(config.model.name_or_path,
                                     trust_remote_code=config.model.trust_remote_code)
        except InputError as error:
            tokens, self._problem = set(), str(error)
        self._markers = tuple(dict.fromkeys(
            marker for prompt in (config.generation.prompt, config.train.prompt)
            for marker in MARKERS.get(prompt, ())))
        self._looked_for = [
            (ids, pattern_of(strings).search) for ids, strings in zip(
                self.ids.values(), (tokens, self._markers), strict=True) if strings]

    def look_at(self, record: dict) -> None:
        """Note a record's id where its instruction, input or output holds something."""
        text = f"{record['instruction']}\0{record['input']}\0{record['output']}"
        for ids, search in self._looked_for:
            if search(text):
                ids.append(record["id"])

    def rename(self, changed: dict[str, str]) -> None:
        """Take in that records have other ids: {id noted here: id}."""
        for ids in self.ids.values():
            ids[:] = [changed.get(id, id) for id in ids]

    def notes(self, listed_in: Path) -> list[str]:
        """What was found, in words, a line each."""
        tokens, markers = map(len, self.ids.values())
        parts = []
        if tokens:
            what = "obeyed, generation.control_tokens" if self._obeyed else "as text"
            parts.append(f"with control tokens of the tokenizer ({what}): {tokens}")
        if markers:
            parts.append(f"with markers of the prompt template ({', '.join(self._markers)}; as "
                         f"text): {markers}")
        lines = [f"records {', '.join(parts)}; ids in {listed_in}/"] if parts else []
        if self._problem is not None:
            lines.append(f"control tokens in records were not looked for: {self._problem}")
        return lines
