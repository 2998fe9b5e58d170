"""Scores of captions: CIDEr-D is pycocoevalcap's, BLEU and ROUGE-L are their packages', on the texts that we give."""

import random

import pytest

from hf_clip import caption_metrics
from hf_clip.evaluation.captions import tokens_of
from hf_clip.evaluation.cider import cider_d

WORDS = "a the red green cat dog car sits on under mat tree and big small two".split()


def drawn(seed: int, images: int = 40) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Tokens of captions and of one to five references each, some empty, some alike."""
    draw = random.Random(seed)

    def text(least: int = 0) -> list[str]:
        return [draw.choice(WORDS) for _ in range(draw.randint(least, 14))]

    references = [[text(1) for _ in range(draw.randint(1, 5))] for _ in range(images)]
    captions = [draw.choice([text(), list(texts[0]), [*texts[0], "cat"]]) for texts in references]
    return captions, references


@pytest.mark.parametrize("seed", range(3))
def test_cider_d_is_pycocoevalcaps(seed):
    scorer = pytest.importorskip("pycocoevalcap.cider.cider_scorer", reason="a peer of requirements-peers.txt")
    captions, references = drawn(seed)
    peer = scorer.CiderScorer(n=4, sigma=6.0)
    for caption, texts in zip(captions, references, strict=True):
        peer += (" ".join(caption), [" ".join(text) for text in texts])
    mean, scores = peer.compute_score()
    ours = cider_d(captions, references)
    assert ours == pytest.approx(list(scores), abs=1e-10) and sum(ours) / len(ours) == pytest.approx(mean, abs=1e-10)
    assert max(ours) > 2


def test_scores_of_captions_that_are_right_wrong_and_near():
    references = [["A red car.", "a car"], ["two dogs on grass"], ["ein Bär schläft"]]
    right = caption_metrics(["a red car", "Two dogs, on grass", "Ein Bär schläft!"], references)
    assert right["exact"] == 1 and right["rouge_l"] == 1 and right["cider_d"] > 5
    wrong = caption_metrics(["blue sky", "blue sky", "blue sky"], references)
    assert wrong["exact"] == 0 and wrong["rouge_l"] == 0 and wrong["cider_d"] == 0 and wrong["bleu_4"] < 0.02
    near = caption_metrics(["a car", "two dogs on a mat", "ein Bär"], references)
    assert near["exact"] == pytest.approx(1 / 3) and 0.6 < near["rouge_l"] < 1
    assert 0 < near["cider_d"] < right["cider_d"]
    with pytest.raises(ValueError, match="`references\\[1\\]` is empty"):
        caption_metrics(["a", "b"], [["a"], []])


def test_bleu_is_sacrebleus_with_as_many_references_as_an_image_has():
    from sacrebleu.metrics.bleu import BLEU

    captions, references = drawn(5)
    captions, references = ([" ".join(each) for each in captions], [[" ".join(t) for t in r][:2] for r in references])
    doubled = [texts if len(texts) == 2 else texts * 2 for texts in references]
    expected = BLEU(lowercase=True).corpus_score(captions, [[two[0] for two in doubled], [two[1] for two in doubled]])
    assert caption_metrics(captions, references)["bleu_4"] == pytest.approx(expected.score / 100, abs=1e-12)
    assert tokens_of("It's 2 o'clock_now!") == ["it", "s", "2", "o", "clock", "now"]
