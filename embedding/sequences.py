"""Records and their answers to rows of token ids: what a recipe embeds, and what it averages.

N records, K answers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from adg.config import Config
from adg.prompts import Prompter
from adg.records import instruction_text
from embedding.pooling import TOKEN_WEIGHTS


class Row(NamedTuple):
    """A prompt, and texts that go on from it independently, each averaged over its own tokens."""

    prompt: list[int]  # token ids; read, never averaged
    texts: list[list[int]]  # token ids of each text
    weights: list[list[float]]  # of each token of each text in the text's mean


class Encoder:
    """Texts to rows by the configured recipe, for a model that takes `longest` tokens.

    Each method returns (rows, how many texts were cut to fit).
    """

    def __init__(self, tokenizer: Any, config: Config, *, longest: int) -> None:
        self.tokenizer = tokenizer
        self.prompter = Prompter(config.generation.prompt, tokenizer, config.generation)
        self.max_length = min(config.embedding.max_length, longest)
        self.instruction_max_length = min(config.embedding.instruction_max_length, longest)
        self._recipe = RECIPES[config.embedding.recipe]
        self._table = TOKEN_WEIGHTS[config.embedding.token_weights](tokenizer)

    def instructions(self, records: list[dict]) -> tuple[list[Row], int]:
        """A row of one text for each record."""
        rows, num_cut = self._recipe.instructions(records, self)
        return [weigh(row, self._table) for row in rows], num_cut

    def answers(self, records: list[dict], texts: list[list[str]]) -> tuple[list[Row], int]:
        """Rows that hold, one after the other, the K texts [N][K] of each record."""
        rows, num_cut = self._recipe.answers(records, texts, self)
        return [weigh(row, self._table) for row in rows], num_cut

    def ids_of(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts, without special tokens; none for an empty text."""
        if not any(texts):
            return [[] for _ in texts]
        ids = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [own if text else [] for own, text in zip(ids, texts, strict=True)]

    def cut(self, texts: list[str], limit: int, **options: Any) -> tuple[list[list[int]], int]:
        """(token ids of each text as the tokenizer itself cuts them, how many it cut)."""
        ids = self.tokenizer(texts, verbose=False, **options)["input_ids"]
        too_long = [i for i, own in enumerate(ids) if len(own) > limit]
        for i in too_long:
            ids[i] = self.tokenizer(texts[i], truncation=True, max_length=limit,
                                    **options)["input_ids"]
        return ids, len(too_long)


def weigh(row: Row, table: list[float] | None) -> Row:
    """A row with its weights times those of the tokens, in each text where one of them is left."""
    if table is None:
        return row
    weights = [[weight * table[token] for token, weight in zip(ids, own, strict=True)]
               for ids, own in zip(row.texts, row.weights, strict=True)]
    return row._replace(weights=[new if any(new) else old
                                 for new, old in zip(weights, row.weights, strict=True)])


def paper_instructions(records: list[dict], encoder: Encoder) -> tuple[list[Row], int]:
    """Recipe `paper`: the instruction (and its input), averaged over all but added special tokens.

    The tokenizer adds those. A longer text loses its end.
    """
    limit = encoder.instruction_max_length
    encoded = encoder.tokenizer([instruction_text(record) for record in records], verbose=False,
                                return_special_tokens_mask=True)
    rows = [Row([], [ids[:limit]], [[1.0 - flag for flag in special[:limit]]])
            for ids, special in zip(encoded["input_ids"], encoded["special_tokens_mask"],
                                    strict=True)]
    return rows, sum(len(ids) > limit for ids in encoded["input_ids"])


def paper_answers(records: list[dict], texts: list[list[str]],
                  encoder: Encoder) -> tuple[list[Row], int]:
    """Recipe `paper`: prompt and answers tokenised apart, averaged over each answer's tokens.

    Where prompt and answer together are too long the answer loses its end: all of it, if the prompt
    alone leaves no room. An answer without a token has no weight at all.
    """
    ids = iter(encoder.ids_of([text for own in texts for text in own]))
    rows, num_cut = [], 0
    for record, own in zip(records, texts, strict=True):
        prompt, _ = encoder.prompter.fitted(record)
        room = max(0, encoder.max_length - len(prompt))
        answers = [next(ids) for _ in own]
        num_cut += sum(len(answer) > room for answer in answers)
        answers = [answer[:room] for answer in answers]
        rows.append(Row(prompt, answers, [[1.0] * len(answer) for answer in answers]))
    return rows, num_cut


def released_instructions(records: list[dict], encoder: Encoder) -> tuple[list[Row], int]:
    """Recipe `released`: the instruction without its input, averaged over all of its tokens.

    The special tokens that the tokenizer adds are among them.
    """
    ids, num_cut = encoder.cut([record["instruction"] for record in records],
                               encoder.instruction_max_length)
    return [_averaged_whole(own) for own in ids], num_cut


def released_answers(records: list[dict], texts: list[list[str]],
                     encoder: Encoder) -> tuple[list[Row], int]:
    """Recipe `released`: instruction, space and answer as one text, averaged over all of it.

    No template, no special tokens. An empty answer leaves the instruction alone.
    """
    joined = [f"{record['instruction']} {text}" if text else record["instruction"]
              for record, own in zip(records, texts, strict=True) for text in own]
    ids, num_cut = encoder.cut(joined, encoder.max_length, add_special_tokens=False)
    return [_averaged_whole(own) for own in ids], num_cut


def _averaged_whole(ids: list[int]) -> Row:
    return Row([], [ids], [[1.0] * len(ids)])


class Recipe(NamedTuple):
    """How records and their answers become rows."""

    instructions: Callable[[list[dict], Encoder], tuple[list[Row], int]]
    answers: Callable[[list[dict], list[list[str]], Encoder], tuple[list[Row], int]]


RECIPES = {"paper": Recipe(paper_instructions, paper_answers),
           "released": Recipe(released_instructions, released_answers)}
