"""Token ids as `clip.tokenize` and OpenCLIP's tokenizers return them: tensors of one length, padded with zeros."""

import copy
import functools
import re
from collections.abc import Iterable, Sequence

import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers

from hf_clip.model.processing_hf_clip import HFCLIPProcessor
from hf_clip.model.tokenization_hf_clip import CONTEXT_LENGTH, END, START, WORD_PATTERN, HFCLIPTokenizer, clean_text

# What OpenCLIP calls OpenAI's special tokens.
OPEN_CLIP_START, OPEN_CLIP_END = "<start_of_text>", "<end_of_text>"


@functools.cache
def _backend() -> Tokenizer:
    """OpenAI's vocabulary, which takes special tokens within a text for text."""
    backend = Tokenizer.from_str(HFCLIPTokenizer().backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    return backend


class BytePairs:
    """OpenAI's byte pairs, as its `SimpleTokenizer` applies them.

    Other than `HFCLIPTokenizer` it takes the names of the special tokens within a text for these tokens, as both
    originals do.

    Args:
        start, end: names of the two special tokens.
    """

    def __init__(self, start: str = START, end: str = END):
        self.vocab_size = _backend().get_vocab_size()
        self.sot_token_id, self.eot_token_id = self.vocab_size - 2, self.vocab_size - 1
        self.all_special_ids = [self.sot_token_id, self.eot_token_id]
        self._special = {start: self.sot_token_id, end: self.eot_token_id}
        pattern = Regex("|".join([re.escape(start), re.escape(end), WORD_PATTERN]))
        self._words = pre_tokenizers.Split(pattern, behavior="removed", invert=True)

    def encode(self, text: str) -> list[int]:
        """The ids of one text, of any length, without start and end."""
        cleaned = clean_text(text)
        if not any(name in cleaned for name in self._special):
            return _backend().encode(cleaned, add_special_tokens=False).ids
        ids = []
        for word, _ in self._words.pre_tokenize_str(cleaned):
            special = self._special.get(word)
            ids += [special] if special is not None else _backend().encode(word, add_special_tokens=False).ids
        return ids

    def rows(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of each text between start and end."""
        return [[self.sot_token_id, *self.encode(text), self.eot_token_id] for text in texts]


def listed_texts(texts: str | Sequence[str]) -> list[str]:
    """One text or several as a list. Raises TypeError for anything else."""
    if isinstance(texts, str):
        return [texts]
    wrong = not isinstance(texts, Iterable) or isinstance(texts, bytes | torch.Tensor)
    listed = [] if wrong else list(texts)
    for text in [texts] if wrong else listed:
        if not isinstance(text, str):
            raise TypeError(
                f"`texts` holds {text!r:.60} of type {type(text).__name__}: pass a string, or a list of strings."
            )
    return listed


def zero_padded(rows: Sequence[list[int]], length: int, dtype: torch.dtype) -> torch.Tensor:
    """(texts, `length`) ids, zeros behind each row."""
    ids = torch.zeros(len(rows), length, dtype=dtype)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=dtype)
    return ids


class SimpleTokenizer(BytePairs):
    """OpenCLIP's tokenizer of OpenAI's vocabulary: `tokenizer(texts)` gives int64 ids (texts, `context_length`).

    A text that is too long is cut, and keeps its end token.
    """

    def __init__(self, context_length: int = CONTEXT_LENGTH):
        super().__init__(OPEN_CLIP_START, OPEN_CLIP_END)
        self.context_length = context_length

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> torch.Tensor:
        length = context_length or self.context_length
        rows = [row if len(row) <= length else [*row[: length - 1], row[-1]] for row in self.rows(listed_texts(texts))]
        return zero_padded(rows, length, torch.int64)


class ProcessorTokenizer:
    """OpenCLIP's `HFTokenizer` for any other vocabulary, with the cleaning of a processor.

    `tokenizer(texts)` gives int64 ids (texts, `context_length`), padded with the vocabulary's own padding. Its
    `tokenizer` is transformers'.
    """

    def __init__(self, processor: HFCLIPProcessor, context_length: int | None = None):
        self.context_length = context_length or processor.tokenizer.model_max_length
        self._processors = {processor.tokenizer.model_max_length: processor}
        self.tokenizer = self._of_length(self.context_length).tokenizer

    def _of_length(self, length: int) -> HFCLIPProcessor:
        if length not in self._processors:
            processor = copy.deepcopy(next(iter(self._processors.values())))
            processor.tokenizer.model_max_length = length
            self._processors[length] = processor
        return self._processors[length]

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> torch.Tensor:
        length = context_length or self.context_length
        fixed = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        return self._of_length(length)(text=listed_texts(texts), **fixed)["input_ids"]

    def save_pretrained(self, folder) -> None:
        """Writes the tokenizer's files."""
        self.tokenizer.save_pretrained(folder)
