"""Control tokens in the text of records: text like any other, whatever they mean in a template.

`<|im_end|>` in an instruction would otherwise end the user's turn, and `<|endoftext|>` in an output
the answer. A template's control tokens are obeyed; those that the tokenizer adds by itself stay.
"""

import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

OBEY = "obey"  # generation.control_tokens: they are control tokens in records too


class ControlTokens:
    """A tokenizer for the text of records; `handling` is generation.control_tokens.

    Text without control tokens gets the ids that the tokenizer itself gives it.
    """

    def __init__(self, tokenizer: Any, handling: str | None = None) -> None:
        self._tokenizer, self._obeyed = tokenizer, handling == OBEY

    def are_in(self, *texts: str) -> bool:
        """Whether a text holds control tokens that are to be read as text."""
        return not self._obeyed and any(map(self._pattern.search, texts))

    def encode(self, texts: list[str], **options: Any) -> dict[str, list]:
        """What the tokenizer makes of texts that are the records' own from end to end."""
        encoded = self._tokenizer(texts, verbose=False, **options)
        for i in (i for i, text in enumerate(texts) if self.are_in(text)):
            alone = self._tokenizer(texts[i], verbose=False, split_special_tokens=True, **options)
            for name, rows in encoded.items():
                rows[i] = alone[name]
        return encoded

    def ids_around(self, record: dict, render: Callable[[dict], str], *,
                   add_special_tokens: bool) -> list[int]:
        """Token ids of `render(record)`: what is text in the record is text in the whole, and the
        control tokens that `render` puts around it are obeyed."""
        marked = {name: self._swap(value) if isinstance(value, str) else value
                  for name, value in record.items()}
        text = self._swap(render(marked))
        if self._tokenizer.is_fast:
            copy, ids_of_marks = self._copy
            ids = copy.encode(text, add_special_tokens=add_special_tokens).ids
            return [ids_of_marks.get(token, token) for token in ids]
        ids = [token for part in self._either.split(text) for token in self._ids_of_part(part)]
        return self._tokenizer.build_inputs_with_special_tokens(ids) if add_special_tokens else ids

    @cached_property
    def _tokens(self) -> dict[str, Any]:
        """{string: transformers' AddedToken} of the control tokens."""
        return {token.content: token for token in control_tokens_of(self._tokenizer)}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return pattern_of(self._tokens)

    @cached_property
    def _marks(self) -> dict[str, str]:
        """{string that stands for a control token: the token's own}; no record can know them."""
        secret = secrets.token_hex(16)
        return {f"{secret}x{i}x": content for i, content in enumerate(self._tokens)}

    @cached_property
    def _either(self) -> re.Pattern[str]:
        return re.compile(f"({pattern_of([*self._tokens, *self._marks]).pattern})")

    def _swap(self, text: str) -> str:
        """A text with marks for control tokens, and control tokens for marks."""
        other = self._marks | {content: mark for mark, content in self._marks.items()}
        return self._either.sub(lambda match: other[match[0]], text)

    @cached_property
    def _copy(self) -> tuple[Any, dict[int, int]]:
        """(a copy of a fast tokenizer that reads control tokens as text and obeys their marks, with
        the same white space around them; {id of a mark: id of its control token})."""
        from tokenizers import AddedToken, Tokenizer

        copy = Tokenizer.from_str(self._tokenizer.backend_tokenizer.to_str())
        copy.no_truncation()
        copy.no_padding()
        copy.encode_special_tokens = True  # as ordinary text: tokenizers' name for it
        copy.add_tokens([
            AddedToken(mark, special=False, normalized=token.normalized, lstrip=token.lstrip,
                       rstrip=token.rstrip, single_word=token.single_word)
            for mark, token in zip(self._marks, self._tokens.values(), strict=True)])
        return copy, {copy.token_to_id(mark): self._tokenizer.convert_tokens_to_ids(content)
                      for mark, content in self._marks.items()}

    def _ids_of_part(self, part: str) -> list[int]:
        """Of a mark, or of what stands between two, by a tokenizer written in Python."""
        if part in self._marks:
            return [self._tokenizer.convert_tokens_to_ids(self._marks[part])]
        return self._tokenizer(part, add_special_tokens=False, split_special_tokens=True,
                               verbose=False)["input_ids"] if part else []


def pattern_of(strings: Iterable[str]) -> re.Pattern[str]:
    """What finds any of some strings, the longest of those that begin at one place.

    What several begin with is looked for once: a tokenizer can have thousands of control tokens.
    """
    return re.compile(_any_of(set(strings)) or r"(?!)")


def _any_of(strings: set[str]) -> str:
    rests: dict[str, set[str]] = defaultdict(set)  # by first character
    for string in strings - {""}:
        rests[string[0]].add(string[1:])
    branches = "|".join(re.escape(first) + _any_of(rest) for first, rest in sorted(rests.items()))
    return f"(?:{branches})" + "?" * ("" in strings) if branches else ""


def control_tokens_of(tokenizer: Any) -> list[Any]:
    """transformers' AddedToken of each control token that a tokenizer finds in a text."""
    try:
        added = tokenizer.added_tokens_decoder.values()
    except NotImplementedError:  # of mistral-common, to which all text is text
        return []
    return [token for token in added if token.special and token.content]
