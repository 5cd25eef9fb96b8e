"""Records and their answers to rows of token ids: what a recipe embeds, and what it averages.

N records, K answers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from adg.base.errors import InputError
from adg.config import Config
from adg.models.loading import LocalModel
from adg.prompts import Prompter
from adg.records import Answer, instruction_text
from embedding.pooling import TOKEN_WEIGHTS


class Row(NamedTuple):
    """A prompt, and texts that go on from it independently, each averaged over its own tokens."""

    prompt: list[int]  # token ids; read, never averaged
    texts: list[list[int]]  # token ids of each text
    weights: list[list[float]]  # of each token of each text in the text's mean


def load_encoder(source: LocalModel, config: Config) -> "Encoder":
    """What makes rows of texts for a model."""
    return Encoder(source.tokenizer(), config, longest=source.max_positions,
                   num_ids=source.described.vocab_size)


class Encoder:
    """Texts to rows by the configured recipe, for a model that takes `longest` of `num_ids` tokens.

    Each method returns (rows, how many texts were cut to fit).
    """

    def __init__(self, tokenizer: Any, config: Config, *, longest: int, num_ids: int) -> None:
        self.tokenizer, self.num_ids = tokenizer, num_ids
        self.prompter = Prompter(config.generation.prompt, tokenizer, config.generation)
        self.control_tokens = self.prompter.control_tokens
        self.max_length = min(config.embedding.max_length, longest)
        self.instruction_max_length = min(config.embedding.instruction_max_length, longest)
        self._recipe = RECIPES[config.embedding.recipe]
        self._table = TOKEN_WEIGHTS[config.embedding.token_weights](tokenizer)

    def instructions(self, records: list[dict]) -> tuple[list[Row], int]:
        """A row of one text for each record."""
        rows, num_cut = self._recipe.instructions(records, self)
        return [weigh(row, self._table) for row in rows], num_cut

    def answers(self, records: list[dict],
                answers: list[list[Answer]]) -> tuple[list[Row], int]:
        """Rows that hold, one after the other, the K answers [N][K] of each record."""
        rows, num_cut = self._recipe.answers(records, answers, self)
        return [weigh(row, self._table) for row in rows], num_cut

    def ids_of(self, answers: list[Answer]) -> list[list[int]]:
        """The answers' own token ids, else those of their texts without special tokens.

        InputError where an id is not one of the model's.
        """
        texts = [answer.text for answer in answers if answer.token_ids is None and answer.text]
        tokenised = iter(self.control_tokens.encode(texts, add_special_tokens=False)["input_ids"]
                         if texts else ())
        ids = [answer.token_ids if answer.token_ids is not None
               else next(tokenised) if answer.text else [] for answer in answers]
        highest = max((max(tokens) for tokens in ids if tokens), default=0)
        if highest >= self.num_ids:
            raise InputError(f"answers/: token_ids holds {highest}, but the model has "
                             f"{self.num_ids} ids: these answers are another model's")
        return ids

    def cut(self, texts: list[str], limit: int, **options: Any) -> tuple[list[list[int]], int]:
        """(token ids of each text as the tokenizer itself cuts them, how many it cut)."""
        ids = self.control_tokens.encode(texts, **options)["input_ids"]
        too_long = [i for i, tokens in enumerate(ids) if len(tokens) > limit]
        for i in too_long:
            ids[i] = self.control_tokens.encode([texts[i]], truncation=True, max_length=limit,
                                                **options)["input_ids"][0]
        return ids, len(too_long)


def weigh(row: Row, table: list[float] | None) -> Row:
    """A row with its weights times those of the tokens, in each text where one of them is left."""
    if table is None:
        return row
    weights = [[weight * table[token] for token, weight in zip(ids, marks, strict=True)]
               for ids, marks in zip(row.texts, row.weights, strict=True)]
    return row._replace(weights=[new if any(new) else old
                                 for new, old in zip(weights, row.weights, strict=True)])


def paper_instructions(records: list[dict], encoder: Encoder) -> tuple[list[Row], int]:
    """Recipe `paper`: the instruction (and its input), averaged over all but added special tokens.

    The tokenizer adds those. A longer text loses its end.
    """
    limit = encoder.instruction_max_length
    encoded = encoder.control_tokens.encode([instruction_text(record) for record in records],
                                            return_special_tokens_mask=True)
    rows = [Row([], [ids[:limit]], [[1.0 - flag for flag in special[:limit]]])
            for ids, special in zip(encoded["input_ids"], encoded["special_tokens_mask"],
                                    strict=True)]
    return rows, sum(len(ids) > limit for ids in encoded["input_ids"])


def paper_answers(records: list[dict], answers: list[list[Answer]],
                  encoder: Encoder) -> tuple[list[Row], int]:
    """Recipe `paper`: prompt and answers tokenised apart, averaged over each answer's tokens.

    Where prompt and answer together are too long the answer loses its end: all of it, if the prompt
    alone leaves no room. An answer without a token has no weight at all.
    """
    ids = iter(encoder.ids_of([answer for drawn in answers for answer in drawn]))
    rows, num_cut = [], 0
    for record, drawn in zip(records, answers, strict=True):
        prompt, _ = encoder.prompter.fitted(record)
        room = max(0, encoder.max_length - len(prompt))
        texts = [next(ids) for _ in drawn]
        num_cut += sum(len(text) > room for text in texts)
        texts = [text[:room] for text in texts]
        rows.append(Row(prompt, texts, [[1.0] * len(text) for text in texts]))
    return rows, num_cut


def released_instructions(records: list[dict], encoder: Encoder) -> tuple[list[Row], int]:
    """Recipe `released`: the instruction without its input, averaged over all of its tokens.

    The special tokens that the tokenizer adds are among them.
    """
    ids, num_cut = encoder.cut([record["instruction"] for record in records],
                               encoder.instruction_max_length)
    return list(map(_averaged_whole, ids)), num_cut


def released_answers(records: list[dict], answers: list[list[Answer]],
                     encoder: Encoder) -> tuple[list[Row], int]:
    """Recipe `released`: instruction, space and answer as one text, averaged over all of it.

    No template, no special tokens. An empty answer leaves the instruction alone.
    """
    joined = [f"{record['instruction']} {answer.text}" if answer.text else record["instruction"]
              for record, drawn in zip(records, answers, strict=True) for answer in drawn]
    ids, num_cut = encoder.cut(joined, encoder.max_length, add_special_tokens=False)
    return list(map(_averaged_whole, ids)), num_cut


def _averaged_whole(ids: list[int]) -> Row:
    return Row([], [ids], [[1.0] * len(ids)])


class Recipe(NamedTuple):
    """How records and their answers become rows."""

    instructions: Callable[[list[dict], Encoder], tuple[list[Row], int]]
    answers: Callable[[list[dict], list[list[Answer]], Encoder], tuple[list[Row], int]]
    reads_token_ids: bool  # of the answers, where they are kept; else it reads their texts


RECIPES = {"paper": Recipe(paper_instructions, paper_answers, True),
           "released": Recipe(released_instructions, released_answers, False)}
