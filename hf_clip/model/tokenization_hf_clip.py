"""OpenAI's tokenizer on transformers' fast one: the same ids, cleaning included.

transformers' CLIPTokenizer gives OpenAI's ids for plain text. This module adds what it lacks: repair of broken
text and HTML entities; special tokens in a caption taken as text; a text that is too long cut to the model's
context with the end token kept, whether or not the caller asked for it; and how a model wants its texts (padding,
cleaning, mask), saved in the tokenizer's own file, so that a tokenizer that is loaded alone gives the same ids.
"""

import gzip
import html
import inspect
import json
import os
import re
import string
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase
from transformers.models.clip.tokenization_clip import CLIPTokenizer
from transformers.processing_utils import TextKwargs
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils.generic import PaddingStrategy

from .arguments_hf_clip import refuse_unknown_arguments
from .remote_code_hf_clip import SavedWithCode

try:
    import ftfy
except ImportError:
    ftfy = None

START, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT_LENGTH = 77

# OpenAI's pattern. It ignores case, which after lower() makes two differences: a long s is an s, and the iota
# subscript U+0345 is neither a letter nor anything else, and is dropped. The special tokens are not in the pattern,
# so that they are split like other text.
WORD_PATTERN = r"'[sſ]|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+"

# ASCII that ftfy and html.unescape leave alone: no control characters, no "&".
_PLAIN = re.compile(r"[\t\n\r -%'-~]*")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# The characters with Unicode's property White_Space. Python's own \s has four control characters more.
_WHITESPACE = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")


def clean_text(text: str) -> str:
    """`text` as OpenAI's tokenizer sees it: repaired, unescaped twice, in lower case, with single spaces.

    Lone surrogates become U+FFFD. The steps are those of `basic_clean` and `whitespace_clean` in OpenAI's
    `simple_tokenizer.py`.

    Raises:
        ImportError: if ftfy is missing and the text is not plain ASCII, which needs no repair.
    """
    if _PLAIN.fullmatch(text):
        return " ".join(text.split()).lower()
    if ftfy is None:
        raise ImportError(f"cleaning {text[:50]!r} as OpenAI does needs ftfy: pip install ftfy")
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _WHITESPACE.sub(" ", text).strip().lower()


def clean_whitespace(text: str) -> str:
    """`text` repaired, unescaped twice and with single spaces, its case kept: OpenCLIP's cleaning "whitespace".

    Raises:
        ImportError: as `clean_text` does.
    """
    if _PLAIN.fullmatch(text):
        return " ".join(text.split())
    if ftfy is None:
        raise ImportError(f"cleaning {text[:50]!r} as OpenCLIP does needs ftfy: pip install ftfy")
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def canonicalize_text(text: str) -> str:
    """`text` as SigLIP was trained on it: repaired, in lower case, without ASCII punctuation, with single spaces.

    An underscore counts as a space. OpenCLIP's cleaning "canonicalize", after big_vision's.

    Raises:
        ImportError: as `clean_text` does.
    """
    return " ".join(clean_whitespace(text).replace("_", " ").translate(_NO_PUNCTUATION).lower().split())


PADDINGS = ("longest", "max_length")
CLEANINGS = {"whitespace": clean_whitespace, "lower": clean_text, "canonicalize": canonicalize_text}
# How a model wants its texts, in a tokenizer's own file; what is not there is as here.
TEXT_OPTIONS: dict[str, Any] = {"text_padding": "longest", "text_cleaning": None, "returns_text_mask": False}


def text_options(tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    """How a model wants its texts, as a tokenizer of any class has it from its file; see `HFCLIPTokenizer`."""
    saved = getattr(tokenizer, "init_kwargs", {})
    return {name: saved.get(name, default) for name, default in TEXT_OPTIONS.items()}


def set_text_options(tokenizer: PreTrainedTokenizerBase, **options) -> None:
    """Sets how a model wants its texts, for this tokenizer of any class and for the file that it saves.

    Without a mask on every call (`returns_text_mask`), the tokenizer returns one on request alone: transformers'
    pipelines pass on what a tokenizer returns.

    Raises:
        ValueError: for another padding or cleaning than there are.
    """
    if (padding := options.get("text_padding", "longest")) not in PADDINGS:
        raise ValueError(f"`text_padding={padding}` is unknown: use {' or '.join(map(repr, PADDINGS))}.")
    cleaning = options.get("text_cleaning")
    if cleaning is not None and cleaning not in CLEANINGS:
        raise ValueError(f"`text_cleaning={cleaning}` is unknown: use {', '.join(map(repr, CLEANINGS))} or None.")
    tokenizer.init_kwargs.update(options)
    is_masked = text_options(tokenizer)["returns_text_mask"]
    names = [name for name in tokenizer.model_input_names if name != "attention_mask"]
    tokenizer.model_input_names = [*names, "attention_mask"] if is_masked else names
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names


def lowers_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer makes texts lower case itself, as transformers' Siglip2Tokenizer does."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return normalizer is not None and "a" in normalizer.normalize_str("A")


def cleaning_around(clean: Callable[[str], str], tokens: Iterable[AddedToken]) -> Callable[[str], str]:
    """`clean` for texts in which added tokens are to be found: they stay as they are, the text around them is cleaned.

    As in transformers' CLIPTokenizer, the case of letters does not matter for a token that is normalized.
    """
    spelled = {token.content: f"(?i:{re.escape(token.content)})" for token in tokens if token.normalized}
    spelled |= {token.content: re.escape(token.content) for token in tokens if not token.normalized}
    if not spelled:
        return clean
    of_lower = {content.lower(): content for content in spelled}
    longest_first = sorted(spelled, key=len, reverse=True)
    pattern = re.compile("|".join(spelled[content] for content in longest_first))

    def cleaned(text: str) -> str:
        parts, start = [], 0
        for found in pattern.finditer(text):
            token = found[0] if found[0] in spelled else of_lower[found[0].lower()]
            parts += [_cleaned_within(clean, text[start : found.start()]), token]
            start = found.end()
        return "".join([*parts, _cleaned_within(clean, text[start:])]).strip()

    return cleaned


def _cleaned_within(clean: Callable[[str], str], part: str) -> str:
    """A part of a text cleaned, with a space where it was set off from what is around it."""
    left, right = (" " if edge.isspace() else "" for edge in (part[:1], part[-1:]))
    return f"{left}{clean(part)}{right}"


class _Guard:
    """A lock for one thread at a time, new in a forked process, where the thread that held it is gone."""

    def __init__(self):
        self._lock, self._process = threading.RLock(), os.getpid()

    def __enter__(self):
        if self._process != os.getpid():
            self.__init__()
        self._lock.acquire()

    def __exit__(self, *error):
        self._lock.release()


_GUARDS: WeakKeyDictionary[PreTrainedTokenizerBase, _Guard] = WeakKeyDictionary()


def guard_of(tokenizer: PreTrainedTokenizerBase) -> _Guard:
    """The lock of a tokenizer: transformers' fast ones write a call's padding and truncation into a shared object."""
    return _GUARDS.setdefault(tokenizer, _Guard())


def byte_symbols() -> list[str]:
    """The 256 characters that stand for bytes in the vocabulary, in OpenAI's order: printable bytes first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]


def build_vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Token to id: 256 bytes, 256 bytes that end a word, a token a merge, and the two special tokens."""
    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *map("".join, merges), START, END]
    return {token: index for index, token in enumerate(tokens)}


def read_openai_merges() -> list[tuple[str, str]]:
    """The 48,894 merges of OpenAI's vocabulary, best first.

    Raises:
        FileNotFoundError: where this file was shipped alone, with a model on the Hub.
    """
    path = Path(__file__).parents[1] / "assets" / "vocabulary" / "openai_merges.txt.gz"
    if not path.is_file():
        raise FileNotFoundError(f"OpenAI's vocabulary is not at {path}. Use from_pretrained, or install hf_clip.")
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    return [(left, right) for left, _, right in (line.partition(" ") for line in lines)]


def _word_splitter() -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="removed", invert=True)
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


class HFCLIPTokenizer(SavedWithCode, CLIPTokenizer):
    """CLIP's BPE with OpenAI's cleaning. Without arguments the vocabulary is OpenAI's, 49,408 tokens.

    Every call (`__call__`, `encode`, `tokenize`, batches, pairs) cleans its texts. Up to and including the
    end token the ids equal those of OpenAI's `clip.tokenize(..., truncate=True)`, with two exceptions:
    `<|endoftext|>` and `<|startoftext|>` within a caption are text here and tokens there, and letters newer
    than the Unicode of the `tokenizers` library count as punctuation.

    A sequence with special tokens is never longer than `model_max_length`, even without `truncation=True` and
    with a larger `max_length`. Without special tokens it is cut only on request. Padding is to the right: the
    model finds a text's end at the first end token. Tokens that are added (`add_tokens`, `add_special_tokens`) are
    found in every text. One tokenizer may be called from several threads.

    Args:
        vocab, merges: token to id, and the merges from the best on; or paths of vocab.json and merges.txt.
        model_max_length: tokens of a text, special tokens included. What transformers writes for "no limit"
            counts as CLIP's 77.
        text_padding: "longest", or "max_length" for models whose text towers see the padding (SigLIP, CLIPA): every
            text with special tokens then has `model_max_length` tokens, whatever a call asks for.
        text_cleaning: what is done to a text before OpenAI's cleaning: "whitespace", "lower" or "canonicalize" (see
            the functions `clean_whitespace`, `clean_text`, `canonicalize_text`); None: nothing.
        returns_text_mask: True returns the attention mask unless a call says otherwise; False, on request.

    Raises:
        TypeError: for arguments of a call that it does not have.
        ValueError: for left padding, for what is not a string, for a `max_length` under 2, and for another padding or
            cleaning.
    """

    _auto_class = "AutoTokenizer"

    def __init__(
        self,
        vocab: str | dict[str, int] | None = None,
        merges: Any = None,
        unk_token: str = END,
        bos_token: str = START,
        eos_token: str = END,
        pad_token: str = END,
        model_max_length: int = CONTEXT_LENGTH,
        split_special_tokens: bool = True,
        text_padding: str = "longest",
        text_cleaning: str | None = None,
        returns_text_mask: bool = False,
        **kwargs,
    ):
        if vocab is None:
            read = read_openai_merges()
            vocab, merges = build_vocabulary(read), read
        _refuse_left_padding(kwargs.get("padding_side"))
        super().__init__(
            vocab=vocab,
            merges=merges,
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            model_max_length=CONTEXT_LENGTH if model_max_length > 2**31 else model_max_length,
            split_special_tokens=split_special_tokens,
            **kwargs,
        )
        set_text_options(
            self, text_padding=text_padding, text_cleaning=text_cleaning, returns_text_mask=returns_text_mask
        )
        # clean_text does its work, and a second NFC would compose what HTML entities spelt out.
        self._tokenizer.normalizer = None
        self._tokenizer.pre_tokenizer = _word_splitter()

    def _wrap_decode_method_backend_tokenizer(self) -> None:
        """Nothing: what transformers hangs on the backend a copy of it would lack. `_decode` does it."""

    def _decode(self, token_ids, skip_special_tokens: bool = False, **kwargs) -> str:
        if isinstance(token_ids, dict):
            token_ids = token_ids["input_ids"]
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        if skip_special_tokens:
            # The backend knows the tokens that were added as special ones for plain ones; see `_add_tokens`.
            special = set(self.all_special_ids)
            ids = [index for index in ids if index not in special]
        text = super()._decode(ids, skip_special_tokens=skip_special_tokens, **kwargs)
        return text.replace("</w>", " ").strip()

    def _tokens_of_the_model(self) -> set[str]:
        """The special tokens that CLIP has: in a caption they are text."""
        return {str(token) for token in (self.bos_token, self.eos_token, self.unk_token, self.pad_token)}

    def _add_tokens(self, new_tokens: list[str | AddedToken], special_tokens: bool = False) -> int:
        # The backend finds special tokens in a text all or none. Those of the model it must not find, so that the
        # others, which a user added to find them, are plain ones to it.
        own = self._tokens_of_the_model()
        special = [token for token in new_tokens if str(token) in own]
        others = [token for token in new_tokens if str(token) not in own]
        count = super()._add_tokens(special, special_tokens=True) if special else 0
        return count + super()._add_tokens([_as_plain(token, special_tokens) for token in others])

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs):
        """Vocabulary and merges from the files of a folder.

        transformers hands a whole `tokenizer.json` to remote code; only the vocabulary is wanted here.

        Raises:
            OSError: where there is none. The constructor would take OpenAI's, whatever the model knows.
        """
        native = super().convert_to_native_format(trust_remote_code=False, **kwargs)
        if native.get("vocab") is None and native.get("tokenizer_object") is None:
            raise OSError(
                f"{kwargs.get('name_or_path')!r} has no vocabulary: no tokenizer.json, nor vocab.json with "
                "merges.txt. For OpenAI's vocabulary call HFCLIPTokenizer() without a folder."
            )
        return native

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        model_max_length: int = CONTEXT_LENGTH,
        min_frequency: int = 2,
        **kwargs,
    ) -> "HFCLIPTokenizer":
        """Learn a vocabulary of CLIP's layout from captions. The same captions give the same vocabulary.

        Args:
            texts: captions, in any order; they are cleaned first.
            vocab_size: tokens, of which 512 stand for bytes and 2 are special. It is an upper limit: few
                captions hold few pairs.
            model_max_length: as in the constructor, which takes `kwargs` too.
            min_frequency: how often a pair must occur to become a token.

        Raises:
            ValueError: if `vocab_size` is under 514.
        """
        symbols = byte_symbols()
        symbols += [symbol + "</w>" for symbol in symbols]
        if vocab_size < len(symbols) + 2:
            raise ValueError(f"vocab_size={vocab_size} is too small: bytes and special tokens alone are 514.")
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 2,
            min_frequency=min_frequency,
            # Given beforehand, all symbols count towards vocab_size, and have the same ids in every run: by ids
            # the trainer breaks ties.
            special_tokens=symbols,
            end_of_word_suffix="</w>",
            show_progress=False,
        )
        backend = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
        backend.pre_tokenizer = _word_splitter()
        backend.train_from_iterator((clean_text(text) for text in texts), trainer)
        merges = [tuple(merge) for merge in json.loads(backend.to_str())["model"]["merges"]]
        return cls(build_vocabulary(merges), merges, model_max_length=model_max_length, **kwargs)

    def train_new_from_iterator(
        self,
        text_iterator: Iterable[str | list[str]],
        vocab_size: int,
        length: int | None = None,
        new_special_tokens: list | None = None,
        special_tokens_map: dict | None = None,
        **kwargs,
    ) -> "HFCLIPTokenizer":
        """transformers' name for `train`: texts or batches of texts, and this tokenizer's context length."""
        if new_special_tokens or special_tokens_map:
            raise ValueError("CLIP's special tokens are fixed. Train first, then call add_special_tokens.")
        texts = (text for item in text_iterator for text in ([item] if isinstance(item, str) else item))
        return self.train(texts, vocab_size, self.model_max_length, **kwargs)

    def _encode_plus(
        self,
        text,
        text_pair=None,
        add_special_tokens: bool = True,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        max_length: int | None = None,
        **kwargs,
    ):
        refuse_unknown_arguments(type(self).__name__, kwargs, _CALL_ARGUMENTS)
        if isinstance(text, list | tuple) and not text:
            raise ValueError("`text` is an empty list. Pass at least one text; '' is one.")
        if add_special_tokens:
            if truncation_strategy == TruncationStrategy.DO_NOT_TRUNCATE:
                truncation_strategy = TruncationStrategy.LONGEST_FIRST
                if padding_strategy != PaddingStrategy.MAX_LENGTH:
                    max_length = None
            # The Rust side counts in 64 bits; transformers' "no limit" is 1e30.
            limit = min(int(self.model_max_length), 2**31)
            max_length = limit if max_length is None else min(max_length, limit)
            if text_options(self)["text_padding"] == "max_length":
                padding_strategy, max_length = PaddingStrategy.MAX_LENGTH, limit
            if max_length < 2:
                raise ValueError(f"`max_length={max_length}` is under 2, which the start and end tokens take.")
        clean = self._cleaning()
        text = _clean_all(text, "text", clean)
        text_pair = None if text_pair is None else _clean_all(text_pair, "text_pair", clean)
        with guard_of(self):
            return super()._encode_plus(
                text,
                text_pair,
                add_special_tokens=add_special_tokens,
                padding_strategy=padding_strategy,
                truncation_strategy=truncation_strategy,
                max_length=max_length,
                **kwargs,
            )

    def _cleaning(self) -> Callable[[str], str]:
        """What is done to a text: the model's cleaning, then OpenAI's, around the tokens that were added."""
        first = CLEANINGS.get(text_options(self)["text_cleaning"])
        clean = clean_text if first is None else lambda text: clean_text(first(text))
        own = self._tokens_of_the_model()
        return cleaning_around(clean, [one for one in self.added_tokens_decoder.values() if one.content not in own])

    def set_truncation_and_padding(self, padding_strategy, *args, padding_side=None, **kwargs) -> None:
        if padding_strategy != PaddingStrategy.DO_NOT_PAD:
            _refuse_left_padding(padding_side or self.padding_side)
        super().set_truncation_and_padding(padding_strategy, *args, padding_side=padding_side, **kwargs)

    def _pad(
        self,
        encoded_inputs,
        max_length: int | None = None,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        *args,
        padding_side=None,
        **kwargs,
    ) -> dict:
        _refuse_left_padding(padding_side or self.padding_side)
        if text_options(self)["text_padding"] == "max_length":
            padding_strategy, max_length = PaddingStrategy.MAX_LENGTH, int(self.model_max_length)
        return super()._pad(encoded_inputs, max_length, padding_strategy, *args, padding_side=padding_side, **kwargs)

    def _save_pretrained(self, *args, **kwargs) -> tuple[str, ...]:
        # The last call's truncation and padding are no property of the vocabulary. The normalizer is for
        # runtimes that read tokenizer.json alone (Rust, JavaScript): as near to clean_text as they can come.
        with guard_of(self):
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            self._tokenizer.normalizer = normalizers.Sequence(
                [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
            )
            try:
                return super()._save_pretrained(*args, **kwargs)
            finally:
                self._tokenizer.normalizer = None


# Of a call of transformers' tokenizers, and what they hand on within it.
_CALL_ARGUMENTS = set(TextKwargs.__annotations__) | set(inspect.signature(CLIPTokenizer._encode_plus).parameters)


def _as_plain(token: str | AddedToken, is_special: bool) -> AddedToken:
    """A token as one that is not special; a special one is never normalized."""
    if isinstance(token, str):
        return AddedToken(token, normalized=not is_special, special=False)
    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=False,
    )


def _clean_all(item, name: str, clean: Callable[[str], str]) -> Any:
    """`item` with every string in it cleaned; `name` is what an error calls it."""
    if isinstance(item, str):
        return clean(item)
    if isinstance(item, list | tuple):
        return type(item)([_clean_all(part, f"{name}[{index}]", clean) for index, part in enumerate(item)])
    raise ValueError(f"{name} is {item!r:.50} ({type(item).__name__}). Pass a string or a list of strings.")


def _refuse_left_padding(side: str | None) -> None:
    if side == "left":
        raise ValueError(
            "padding_side='left' moves a text away from the positions that CLIP learnt it at. Use 'right'."
        )
