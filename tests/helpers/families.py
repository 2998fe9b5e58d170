"""Stand-ins for the tokenizers of families of checkpoints: few tokens, with the special ones where they belong."""

from pathlib import Path

from transformers import BertTokenizer, XLMRobertaTokenizer

from hf_clip import HFCLIPTokenizer
from tests.helpers.checkpoints import TEXTS, tokenizer

CHINESE_TEXTS = ["红苹果", "雪地里的两个雪人", "一个 red 苹果，7点", "苹果" * 30]


def clip_tokenizer() -> HFCLIPTokenizer:
    """OpenAI's ids of the two special tokens, and none of its 48,894 merges, which take a second to read and copy."""
    vocabulary = tokenizer().get_vocab() | {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    return HFCLIPTokenizer(vocabulary, [])


def xlm_tokenizer(model_max_length: int) -> XLMRobertaTokenizer:
    """XLM-R's special tokens, letters and two words."""
    letters = sorted({letter for text in TEXTS for letter in text.lower()} - {" "})
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *letters, "▁red", "apple", "<mask>"]
    scores = [(piece, 0.0 if piece.startswith("<") else -1.0) for piece in pieces]
    return XLMRobertaTokenizer(vocab=scores, model_max_length=model_max_length)


def bert_tokenizer(folder: Path) -> BertTokenizer:
    """BERT's special tokens, Chinese letters and a word. Its `vocab.txt` is written to the folder."""
    letters = sorted({letter for text in CHINESE_TEXTS for letter in text} - {" "})
    folder.mkdir(exist_ok=True)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, "red"]
    (folder / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    return BertTokenizer(vocab=str(folder / "vocab.txt"))
