"""The keys of method mig, and the prompts of its annotators."""

from dataclasses import dataclass, field

from adg.base.keys import key, require

_INSTAG_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions. USER: Please identify tags of "
    "user intentions in the following user query and provide an explanation for each tag. Please "
    'respond in the JSON format {"tag": str, "explanation": str}.\nUser query: {query} ASSISTANT:')
_QUALITY_PROMPT = (
    "You are a helpful assistant. Please identify the quality score of the Response corresponding "
    "to the Question. \n #Question#:\n{query}\n#Response#:\n{output} \n##Quality: ")
_COMPLEXITY_PROMPT = (
    "You are a helpful assistant. Please identify the complexity score of the following user "
    "query. \n##Query: {query}  \n##Complexity: ")


@dataclass
class AnnotatorConfig:
    tagger: str = key("OFA-Sys/InsTagger", "model that tags records: hub name or folder", path=True)
    quality_scorer: str = key("hkust-nlp/deita-quality-scorer", "model that scores outputs",
                              path=True)
    complexity_scorer: str = key("hkust-nlp/deita-complexity-scorer", "model that scores "
                                                                       "instructions", path=True)
    tag_encoder: str = key("intfloat/e5-mistral-7b-instruct", "model for the vectors of tags "
                                                               "(state of the last token)",
                           path=True)
    tagger_prompt: str = key(_INSTAG_PROMPT, "its prompt; {query}: instruction and input")
    quality_prompt: str = key(_QUALITY_PROMPT, "its prompt; {query} and {output}")
    complexity_prompt: str = key(_COMPLEXITY_PROMPT, "its prompt; {query}")
    max_length: int = key(2048, "maximum tokens of prompt and reply; records with longer prompts "
                                 "are truncated at the end")
    max_tag_tokens: int = key(512, "maximum tokens written by the tagger", least=1)
    engine: str = key("vllm", "engine of tagger and scorers: vllm, or transformers (slow)",
                      choices=("vllm", "transformers"))

    def __post_init__(self) -> None:
        low, high = self.max_tag_tokens, self.max_length
        require(high > low, "selection.mig.annotator.max_length", high,
                f"above max_tag_tokens ({low})")
        for name, place in (("tagger", "query"), ("complexity", "query"), ("quality", "output")):
            prompt = getattr(self, f"{name}_prompt")
            require(f"{{{place}}}" in prompt, f"selection.mig.annotator.{name}_prompt", prompt,
                    f"a text with {{{place}}}")


@dataclass
class MigConfig:
    annotations: str | None = key(None, "with tag_vectors: tags, quality_scores and "
                                         "complexity_scores by id, a JSONL file or a folder of "
                                         "them; null: the records' own", path=True)
    tag_vectors: str | None = key(None, "vectors of the tags: a .npy [tags, H] beside a .json of "
                                         "their names, or a folder with vectors.npy and tags.json; "
                                         "null: stage measure computes all of this",
                                  path=True)
    valid_tags: str | None = key(None, "JSON array of the tags that count; null: all", path=True)
    threshold: float = key(0.9, "minimum cosine similarity of two similar tags", least=0, most=1)
    prop_weight: float = key(1.0, "weight of similar tags relative to the tag itself", least=0)
    norm: bool = key(False, "divide a record's score by the number of its tags")
    phi: str = key("pow", "value of a label with accumulated weight x: pow, (x + a)^b, or exp, "
                           "1 - exp(-alpha x)", choices=("pow", "exp"))
    phi_a: float = key(1e-6, "phi pow: a", above=0)
    phi_b: float = key(0.8, "phi pow: b", above=0, most=1)
    phi_alpha: float = key(1.0, "phi exp: alpha", above=0)
    annotator: AnnotatorConfig = field(default_factory=AnnotatorConfig)

    def __post_init__(self) -> None:
        require(self.tag_vectors is not None or self.annotations is None,
                "selection.mig.tag_vectors", None, "a file or folder where "
                "selection.mig.annotations is given")
