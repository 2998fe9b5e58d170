"""The tokenizer gives OpenAI's ids for whatever people write, however it is called and was loaded."""

import copy
import gzip
import itertools
import pickle
import unicodedata
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, CLIPTokenizer

import hf_clip  # noqa: F401  registers the tokenizer with AutoTokenizer
from hf_clip.model import tokenization_hf_clip
from hf_clip.model.configuration_hf_clip import HFCLIPConfig
from hf_clip.model.tokenization_hf_clip import HFCLIPTokenizer, clean_text
from tests.helpers.counts import soak_count
from tests.helpers.peers import load_openai_module, load_openai_tokenize

START, END = 49406, 49407

ODD = [
    "<br> &amp;amp;lt; caf&amp;eacute;", "<br> e&#769;", "a\x0bb", "α\u0345 <br> &#x345;!&#x345;?",
    "", " ", "\n\t ", "a", "A photo of a CAT.", "don't we'll I'm they've he'd you're it's",
    "DON'T 'S 'Tis rock'n'roll", "It’s “quoted” ‘twice’ – and… then", "ﬁsh ﬂoat ﬀ ĳ",
    "ﾊﾝｶｸ ｶﾞ ＡＢＣ１２３", "&amp;", "&amp;amp;lt;b&amp;amp;gt;",
    "caf&eacute; &#233; &#xE9; &#x1F600; &notanentity; &copy 2021 &copyright", "e&#769; e\u0301 é",
    "&#xD800; &#0; &#28; &#128;", "&lt;|endoftextoftext|&gt; < | > <||>", "日本語の説明",
    "中文字幕，标点。", "한국어 텍스트", "ᄒ\u1161ᆫ", "שלום עולם", "مرحبا بالعالم ١٢٣",
    "\u202eabc\u202c \u200f\u200e", "नमस्ते दुनिया", "สวัสดี", "Ελληνικά ΑΣ ΣΑΣ", "İstanbul ıI",
    "Straße STRASSE ẞ", "ǅ ǈ Ǳ", "🎉", "👩‍👩‍👧‍👦 👍🏽 🇩🇪 ❤️",
    "a\u200db a\u200cb a\u200bb a\u2060b \ufeffbom", "123 4567 1,000.50 ½ ² Ⅷ ④", "a\r\nb\rc\n\nd",
    "a\x0bb\x0cc", "\x1b[31mred\x1b[0m", "a\x00b\x01\x1c\x1d\x1e\x1f\x7f",
    "\x85 \xa0 \u2028 \u2029 \u3000 \u205f \u180e x", "schÃ¶n cafÃ© â€œquoteâ€\x9d ðŸ˜€", "\ud800",
    "x\udc80y", "\ud83d\ude00", "a\ufffd", "'ſ ſs 'S", "naïve nai\u0308ve", "a" * 500,
    "word " * 200, "é" * 100, "1" * 200, "!" * 300, "😀" * 60, "a" * 75, "a b " * 38,
    "#hashtag @user http://a.b/c?d=e&f=g%20", "C:\\path\\file_name-v1.0.PNG", "$5.99 €10 £3 50%",
    "__init__ snake_case kebab-case CamelCase", "''''s '' \"\" ``", "...!!!???",
    "\u0301\u0302 leading marks", "x\u0301\u0302\u0303\u0304", "\ue000 private \U000f0000",
    "\ufdd0 nonchar \uffff", "𝓈𝒸𝓇𝒾𝓅𝓉 𝕕𝕠𝕦𝕓𝕝𝕖", "Ⓐ ㎏ ㍿ ﷺ", "ℵ K Å Ω", "٣ ৩ 三",
    "\U00020000 \U0002a6df", "<b>bold</b> &lt;i&gt;", "<br>&amp;",
    "l&apos;été &quot;x&quot; &nbsp; y", "&AMP; &LT;", "& &; &a; a&b", "tab\tbetween",
    "trailing \\",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> HFCLIPTokenizer:
    return HFCLIPTokenizer()


@pytest.fixture(scope="module")
def openai():
    return load_openai_tokenize()


@pytest.fixture(scope="module")
def peer():
    return load_openai_module("simple_tokenizer")


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


def test_ids_equal_openais(tokenizer, openai):
    pairs = [f"{left} {right}" for left, right in itertools.pairwise(ODD)]
    glued = [left[-9:] + right[:9] for left, right in zip(ODD, ODD[7:] + ODD[:7], strict=True)]
    tripled = [f"{a[:20]},{b[:20]}\n{c[:20]}" for a, b, c in zip(ODD, ODD[31:], ODD[13:], strict=False)]
    capital = [text.upper() for text in ODD]
    texts = [*ODD, *pairs, *glued, *tripled, *capital]
    assert len(set(texts)) >= 300
    for text in texts:
        assert ids(tokenizer, text) == openai(text), text
    assert tokenizer(texts)["input_ids"] == [openai(text) for text in texts]


def is_known(text: str) -> bool:
    """Whether Python knows every character. Of newer ones `regex` and `tokenizers` differ on which are letters."""
    return all(unicodedata.category(character) != "Cn" for character in text)


@pytest.mark.slow
@settings(deadline=None, derandomize=True, database=None, max_examples=soak_count(150, 20_000))
@given(st.lists(st.one_of(st.text(st.characters(), max_size=8), st.sampled_from(ODD)), max_size=4))
def test_ids_of_any_text_equal_openais(tokenizer, openai, parts):
    text = "".join(parts)
    # After cleaning: repaired text and HTML entities hold characters that the text did not.
    assume(is_known(clean_text(text)))
    assert ids(tokenizer, text) == openai(text)


@settings(deadline=None, derandomize=True, database=None, max_examples=soak_count(100, 5_000))
@given(st.text(st.characters(max_codepoint=127), max_size=40))
@example("a\x0bb").via("a control character that str.split takes for a space")
def test_the_short_way_for_ascii_changes_nothing(peer, text):
    assert clean_text(text) == peer.whitespace_clean(peer.basic_clean(text)).lower()


@pytest.mark.parametrize("text", ["a <|endoftext|> b", "<|STARTOFTEXT|>", "&lt;|endoftext|&gt;", "<|endoftext|>" * 99])
def test_special_tokens_in_a_caption_are_text(tokenizer, text):
    for result in (ids(tokenizer, text), tokenizer.encode(text), tokenizer([text, "b"])["input_ids"][0]):
        assert result[0] == START and result[-1] == END
        assert not {START, END} & set(result[1:-1])


def test_too_long_is_cut_with_the_end_token_kept_even_unasked(tokenizer):
    """As the stock pipeline calls it: padding=True and nothing else."""
    texts = ["word " * 200, "a cat"]
    assert set(tokenizer(texts, padding=True)) == {"input_ids"}
    batch = tokenizer(texts, padding=True, return_attention_mask=True, return_tensors="pt")
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 77)
    assert batch["input_ids"][0, -1] == END and batch["attention_mask"].sum(1).tolist() == [77, 4]
    for options in [
        {"max_length": 9, "truncation": True},
        {"max_length": 9},
        {"max_length": 9, "padding": "max_length"},
    ]:
        result = tokenizer("word " * 200, **options)["input_ids"]
        assert len(result) == 9 and result[-1] == END
    assert len(tokenizer("word " * 200, truncation=True, max_length=500)["input_ids"]) == 77
    assert len(tokenizer("a cat", padding="max_length")["input_ids"]) == 77
    # Without special tokens the ids are not meant for the model: counting them must be possible.
    assert len(tokenizer("word " * 200, add_special_tokens=False)["input_ids"]) == 200
    assert len(HFCLIPTokenizer(model_max_length=1e30)("word " * 200)["input_ids"]) == 77


def test_every_way_to_call_cleans(tokenizer, openai):
    text, clean = "  Caf&amp;eacute;  “X” ", 'café "x"'
    expected = openai(text)
    assert expected == openai(clean)
    assert tokenizer(text)["input_ids"] == tokenizer.encode(text) == expected
    assert tokenizer([text])["input_ids"] == tokenizer((text,))["input_ids"] == [expected]
    assert tokenizer.tokenize(text) == tokenizer.convert_ids_to_tokens(expected[1:-1])
    assert tokenizer(text, text)["input_ids"] == tokenizer(clean, clean)["input_ids"]
    assert tokenizer([(text, text)])["input_ids"] == tokenizer([clean], [clean])["input_ids"]
    assert tokenizer([[text, "b"]], is_split_into_words=True)["input_ids"] == [openai(clean + " b")]
    assert tokenizer.decode(expected, skip_special_tokens=True) == 'café " x "'


def test_left_padding_is_refused_wherever_it_is_asked_for(tokenizer):
    with pytest.raises(ValueError, match="'left'"):
        HFCLIPTokenizer(padding_side="left")
    with pytest.raises(ValueError, match="'left'"):
        tokenizer(["a", "b c"], padding=True, padding_side="left")
    with pytest.raises(ValueError, match="'left'"):
        tokenizer.pad({"input_ids": [[START, END], [START, 320, END]]}, padding_side="left")
    changed = copy.deepcopy(tokenizer)
    changed.padding_side = "left"
    with pytest.raises(ValueError, match="'left'"):
        changed(["a", "b c"], padding=True)


def test_what_is_no_text_is_refused_by_place(tokenizer):
    with pytest.raises(ValueError, match=r"text\[1\] is None"):
        tokenizer(["a", None])
    with pytest.raises(ValueError, match=r"text\[0\]\[1\] is 3 \(int\)"):
        tokenizer([("a", 3)])
    with pytest.raises(ValueError, match="empty list"):
        tokenizer([])
    with pytest.raises(ValueError, match="under 2"):
        tokenizer("a", truncation=True, max_length=1)


def test_without_ftfy_only_text_that_needs_it_is_refused(tokenizer, openai, monkeypatch):
    monkeypatch.setattr(tokenization_hf_clip, "ftfy", None)
    assert ids(tokenizer, "A plain\tcaption!") == openai("A plain\tcaption!")
    with pytest.raises(ImportError, match="pip install ftfy"):
        tokenizer("café")


def odd_ids(tokenizer) -> list[list[int]]:
    return tokenizer(ODD)["input_ids"]


@pytest.mark.slow
def test_saved_loaded_pickled_and_copied(tokenizer, tmp_path: Path):
    tokenizer(["a", "b c"], padding="max_length", max_length=5, truncation=True)
    tokenizer.save_pretrained(tmp_path)
    HFCLIPConfig().save_pretrained(tmp_path)
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert backend.padding is None and backend.truncation is None
    assert backend.encode("A  Photo").ids == [START, 320, 1125, END]
    for other in (
        HFCLIPTokenizer.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
        pickle.loads(pickle.dumps(tokenizer)),
        copy.deepcopy(tokenizer),
    ):
        assert type(other) is HFCLIPTokenizer
        assert other.model_max_length == 77
        assert odd_ids(other) == odd_ids(tokenizer)
    assert CLIPTokenizer.from_pretrained(tmp_path)("a photo")["input_ids"] == [START, 320, 1125, END]
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(OSError, match="no vocabulary"):
        HFCLIPTokenizer.from_pretrained(tmp_path)


def test_a_folder_that_transformers_saved_gives_openais_ids(tokenizer, tmp_path: Path):
    merges = tokenization_hf_clip.read_openai_merges()
    CLIPTokenizer(tokenization_hf_clip.build_vocabulary(merges), merges).save_pretrained(tmp_path)
    loaded = HFCLIPTokenizer.from_pretrained(tmp_path)
    assert loaded.model_max_length == 77
    assert odd_ids(loaded) == odd_ids(tokenizer)


CAPTIONS = [
    f"{color} {animal} {doing}"
    for color in ("Red", "green", "dark blue")
    for animal in ("cat", "dog", "été", "fish")
    for doing in ("running", "sleeping", "jumping")
]


def test_training_gives_clips_layout_and_the_same_vocabulary_every_time():
    tokenizer = HFCLIPTokenizer.train(CAPTIONS, 540, model_max_length=16)
    vocabulary = tokenizer.get_vocab()
    openai = HFCLIPTokenizer().get_vocab()
    symbols = [token for token, index in openai.items() if index < 512]
    assert all(vocabulary[symbol] == openai[symbol] for symbol in symbols)
    assert len(tokenizer) == 540 and tokenizer.model_max_length == 16
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (538, 539, 539)
    for again in (CAPTIONS, CAPTIONS[::-1], [text.upper() + "  " for text in CAPTIONS]):
        assert HFCLIPTokenizer.train(iter(again), 540).get_vocab() == vocabulary
    batches = [CAPTIONS[:10], CAPTIONS[10:]]
    assert tokenizer.train_new_from_iterator(batches, 540).get_vocab() == vocabulary


def test_a_trained_vocabulary_spells_what_it_never_saw_and_learns_what_it_did(tmp_path: Path):
    tokenizer = HFCLIPTokenizer.train(CAPTIONS, 700, model_max_length=16)
    assert tokenizer.tokenize("RED cat") == ["red</w>", "cat</w>"]
    assert len(tokenizer) < 700  # The captions hold no more pairs.
    unseen = tokenizer("zebra 日本")["input_ids"]
    assert tokenizer.unk_token_id not in unseen[1:-1]
    assert tokenizer.decode(unseen, skip_special_tokens=True) == "zebra 日本"
    tokenizer.save_pretrained(tmp_path)
    assert HFCLIPTokenizer.from_pretrained(tmp_path)("zebra 日本")["input_ids"] == unseen
    with pytest.raises(ValueError, match="514"):
        HFCLIPTokenizer.train(CAPTIONS, 513)


def test_the_vocabulary_in_the_tree_is_what_its_script_makes():
    load_openai_module("simple_tokenizer")
    folder = Path(tokenization_hf_clip.__file__).parents[1] / "assets" / "vocabulary"
    spec = spec_from_file_location("make_vocabulary", Path(__file__).parents[2] / "tools" / "make_vocabulary.py")
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    kept = gzip.decompress((folder / "openai_merges.txt.gz").read_bytes()).decode().split("\n")
    assert kept == script.read_merges()
    assert "Copyright (c) 2021 OpenAI" in (folder / "LICENSE").read_text()
