"""Make `openai_merges.txt.gz`, the merges behind OpenAI's 49,408 tokens, from PyPI's `openai-clip`.

    pip install --no-deps openai-clip
    python tools/make_vocabulary.py

The package's `bpe_simple_vocab_16e6.txt.gz` holds a headline and more than 260,000 merges. OpenAI's tokenizer
takes the first 48,894 of them: 49,408 tokens less 512 byte symbols and 2 special tokens. Those are kept, one
a line, in order of rank. The data is OpenAI's, under the MIT license beside the target.
"""

import gzip
from importlib.metadata import distribution
from pathlib import Path

SOURCE = "clip/bpe_simple_vocab_16e6.txt.gz"
TARGET = Path(__file__).parents[1] / "hf_clip/assets/vocabulary/openai_merges.txt.gz"
MERGE_COUNT = 49_408 - 512 - 2


def read_merges() -> list[str]:
    """The merges that OpenAI's tokenizer takes, as "left right"."""
    source = distribution("openai-clip").locate_file(SOURCE)
    with gzip.open(source, "rt", encoding="utf-8") as stream:
        return stream.read().split("\n")[1 : MERGE_COUNT + 1]


def main() -> None:
    # Without a time stamp the file is the same however often it is made.
    content = gzip.compress("\n".join(read_merges()).encode(), compresslevel=9, mtime=0)
    TARGET.write_bytes(content)


if __name__ == "__main__":
    main()
