"""Mixtures of weights: the mean is exact at its ends, the best is picked by the number that was asked for."""

import copy

import pytest
import torch

from hf_clip import average_models, greedy_soup, wise_ft
from hf_clip.conversion import ConversionError
from tests.helpers.squares import NAMES
from tests.helpers.toys import scatter_weights, tiny_clip

# As many words and pairs of letters, and other ones.
OTHER_LETTERS = str.maketrans("abcdefghijkl", "bcdefghijkla")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a start, two models trained from it, as it were, and one of another shape."""
    folder = tmp_path_factory.mktemp("models")
    start, processor = tiny_clip(NAMES, image_size=16, num_hidden_layers=1)
    ends = [scatter_weights(copy.deepcopy(start), by) for by in (0.1, -0.3)]
    wide, other = tiny_clip([name.translate(OTHER_LETTERS) for name in NAMES], image_size=16, num_hidden_layers=1)
    deep, _ = tiny_clip(NAMES, image_size=16)
    paths = []
    for name, model, with_processor in (
        ("start", start, processor),
        ("end", ends[0], processor),
        ("far", ends[1], processor),
        ("deep", deep, processor),
        ("shouting", wide, other),
    ):
        model.save_pretrained(folder / name)
        with_processor.save_pretrained(folder / name)
        paths.append(folder / name)
    return paths


def state(path) -> dict[str, torch.Tensor]:
    from hf_clip import load

    return load(path, dtype=torch.float32)[0].state_dict()


def test_the_average_is_the_weighted_mean_and_exact_at_its_ends(models):
    start, end, far, _, _ = models
    mean, processor = average_models([start, end, far], [2, 1, 1])
    states = [state(path) for path in (start, end, far)]
    for name, tensor in mean.state_dict().items():
        if tensor.is_floating_point():
            expected = sum(w * each[name].double() for w, each in zip((0.5, 0.25, 0.25), states, strict=True))
            assert (tensor - expected).abs().max() < 1e-7, name
    for weights, expected in (([1, 0], states[0]), ([0, 3], states[1])):
        got = average_models([start, end], weights)[0].state_dict()
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    same = average_models([end, end, end])[0].state_dict()
    assert all(torch.equal(same[name], states[1][name]) for name in same)
    assert processor.tokenizer.get_vocab()


def test_models_that_do_not_belong_together_are_refused(models):
    start, end, _, deep, shouting = models
    with pytest.raises(ConversionError, match=r"deep and .*start are of two shapes \(\d+ tensors differ: .*encoder"):
        average_models([start, deep])
    with pytest.raises(ConversionError, match="have two vocabularies: average what was trained from one start"):
        average_models([start, shouting])
    with pytest.raises(ValueError, match="`models` has 1 entries"):
        average_models([start])
    for weights in ([1], [0, 0], [1, -1], [1, float("nan")]):
        with pytest.raises(ValueError, match="`weights`"):
            average_models([start, end], weights)


def test_the_mixture_is_picked_by_its_number_and_others_are_watched(models, caplog):
    start, end, far, _, _ = models
    ends = state(start), state(end)

    def evaluate(model, processor):
        """Best at 0.3 of the way; what is forgotten grows with the way."""
        name = "visual_projection.weight"
        way = ((model.state_dict()[name] - ends[0][name]) / (ends[1][name] - ends[0][name])).mean().item()
        return {"mine": 1 - abs(way - 0.3), "theirs": 1 - way}

    with caplog.at_level("INFO", "hf_clip.training"):
        found = wise_ft(start, end, evaluate, "mine")
    lines = caplog.messages
    assert [entry["weights"][1] for entry in found.curve] == [index / 10 for index in range(11)]
    assert found.best["weights"] == pytest.approx([0.7, 0.3]) and found.best["numbers"]["mine"] > 0.999
    assert found.best["numbers"]["theirs"] == pytest.approx(0.7, abs=1e-3)
    expected = average_models([start, end], [0.7, 0.3])[0].state_dict()
    got = found.model.state_dict()
    assert all(torch.equal(got[name], expected[name]) for name in got)
    assert len(lines) == 11 and "mine" in lines[0]
    assert wise_ft(start, end, evaluate, "theirs", less_is_better=True).best["weights"] == [0, 1]
    with pytest.raises(ValueError, match="`by=other` is not among what is evaluated: mine, theirs"):
        wise_ft(start, end, evaluate, "other", fractions=[0.5])


def test_a_greedy_soup_keeps_what_helps(models):
    start, end, far, _, _ = models
    states = [state(path) for path in (start, end, far)]
    name = "visual_projection.weight"

    def near(target):
        return lambda model, processor: {"n": -(model.state_dict()[name] - target).abs().mean().item()}

    both = greedy_soup([start, end, far], near((states[0][name] + states[1][name]) / 2), "n")
    assert both.best["weights"] == [0.5, 0.5, 0]
    alone = greedy_soup([start, end, far], near(states[2][name]), "n")
    assert alone.best["weights"] == [0, 0, 1] and len(alone.curve) == 5
