"""Labels and class names: an index is one however it is written, names are matched by words, order proves nothing."""

import io

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from hf_clip.evaluation import evaluate_few_shot, evaluate_shift, evaluate_zero_shot
from hf_clip.evaluation.class_names import ClassNames
from hf_clip.prompts import load_prompts
from hf_clip.sources import open_source
from tests.helpers.toys import LookupEncoder, gray, tiny_clip

NAMES = ["cat", "dog", "fish", "bird", "cow"]


def encoded(value: int) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(gray(value)).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def model():
    """A model that takes gray value i for the i-th of NAMES."""
    return LookupEncoder(torch.eye(5), dict(zip(NAMES, torch.eye(5).tolist(), strict=True)))


def table(path, labels, values=None, kind=None):
    """Images whose gray value is `values`' entry, with labels of an Arrow type."""
    images = [encoded(value) for value in values or range(len(labels))]
    pq.write_table(pa.table({"image": images, "label": pa.array(labels, kind)}), path)
    return open_source(str(path))


def counts(result) -> dict[str, int]:
    return {row["label"]: row["images"] for row in result.per_class if row["images"]}


def evaluate(source, labels=NAMES, **options):
    encoder = model()
    return evaluate_zero_shot(encoder, encoder.processor, source, labels=labels, templates=["{}"], **options)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([0, 1, 3], pa.int8()),
        ([0.0, 1.0, 3.0], pa.float64()),
        (["0", "1", "3"], pa.string()),
        (["0.0", "1.0", "3.0"], pa.string()),
        (["000", "001", "003"], pa.string()),
        (["cat", "dog", "bird"], pa.string()),
        (["Cat", "DOG ", "bird"], pa.string()),
    ],
)
def test_an_index_is_an_index_however_it_is_written(labels, kind, tmp_path):
    result = evaluate(table(tmp_path / "a.parquet", labels, [0, 1, 3], kind))
    # A few of the classes are told apart among all.
    assert counts(result) == {"cat": 1, "dog": 1, "bird": 1}
    assert (result.top_1, result.classes, result.chance) == (1, 5, 1 / 5)


def test_booleans_are_the_indices_of_two_names(tmp_path):
    for labels, kind in (([True, False, True], pa.bool_()), (["True", "false", "TRUE"], pa.string())):
        result = evaluate(table(tmp_path / "a.parquet", labels, [1, 0, 1], kind), NAMES[:2])
        assert counts(result) == {"cat": 1, "dog": 2} and result.top_1 == 1


def test_missing_floats_are_rows_without_a_label(tmp_path):
    result = evaluate(table(tmp_path / "a.parquet", [0.0, None, 3.0], [0, 1, 3], pa.float64()))
    assert counts(result) == {"cat": 1, "bird": 1} and result.skipped == {"no_label": 1}


def folders(root, names):
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for copy in range(number + 1):
            Image.fromarray(gray(number)).save(root / name / f"{copy}.png")
    return open_source(str(root))


@pytest.mark.parametrize("pattern", ["{}", "{:04d}", "class_{}"])
def test_folders_with_numbers_are_indices_not_lines_in_sorted_order(pattern, tmp_path):
    """Sorted by their letters, folder 10 comes third."""
    source = folders(tmp_path / "f", [pattern.format(number) for number in range(12)])
    names = [f"name{number}" for number in range(12)]
    encoder = LookupEncoder(torch.eye(12), dict(zip(names, torch.eye(12).tolist(), strict=True)))
    result = evaluate_zero_shot(encoder, encoder.processor, source, labels=names, templates=["{}"])
    assert counts(result) == {f"name{number}": number + 1 for number in range(12)} and result.top_1 == 1


def test_folders_with_numbers_from_one_are_not_taken_in_the_order_of_their_letters(tmp_path):
    """Sorted by their letters, c10 comes second."""
    names = [f"name {letter}" for letter in "abcdefghij"]
    source = folders(tmp_path / "f", [f"c{number}" for number in range(1, 11)])
    with pytest.raises(ValueError, match="label 'c10' is beyond the 10 names .* Indices begin at 0, not at 1. Number"):
        evaluate(source, names)
    from_zero = [f"c{number}" for number in (0, 1, 9, 2)]
    found = ClassNames(names, from_zero, "f").indices(from_zero)
    assert found == {"c0": 0, "c1": 1, "c9": 9, "c2": 2}
    # Each class may have the data's name as one of its own.
    both = ClassNames([(name, f"c{number}") for number, name in enumerate(names, 1)], source.label_names, "f")
    assert both.find("c10", "") == 9 and both.find("c2", "") == 1
    # Codes whose lengths differ have two orders; those of one length have one.
    with pytest.raises(ValueError, match="cannot be matched"):
        ClassNames(NAMES[:3], ["x100", "x20", "x7"], "f")
    assert ClassNames(NAMES[:3], ["x007", "x020", "x100"], "f").find("x100", "") == 2


@pytest.mark.parametrize(
    ("given", "label"),
    [
        (["C", "Java"], "C++"),
        (["C++", "Java"], "C#"),
        (["5 C", "10 C"], "-5 C"),
        (["5 C", "10 C"], "\N{MINUS SIGN}5 C"),
        (["15", "1.5"], "1-5"),
        (["15 kg", "1 kg"], "1.5 kg"),
        (["दिन", "रात"], "दीन"),
        (["😀", "cat"], "😡"),
        (["...", "cat"], "--"),
    ],
)
def test_signs_that_tell_names_apart_are_not_dropped(given, label):
    with pytest.raises(ValueError, match="is none of the 2 classes"):
        ClassNames(given, None, "rows").find(label, "row 0")
    assert ClassNames([*given, label], None, "rows").find(label, "row 0") == 2
    # Nor do words leave them out.
    with pytest.raises(ValueError, match="cannot be matched"):
        ClassNames(given, [given[1], label], "folders")


@pytest.mark.parametrize("label", ["T-shirt", "t_shirt", " T SHIRT.", "tshirt"])
def test_case_spaces_hyphens_and_quotes_tell_no_names_apart(label):
    names = ClassNames(["T-Shirt", "jack-o'-lantern"], None, "rows")
    assert ClassNames(["F-16A", "F-16A/B"], None, "rows").find("f_16A-B", "") == 1
    assert names.find(label, "") == 0 and names.find("Jack o\N{RIGHT SINGLE QUOTATION MARK} Lantern", "") == 1


def test_names_without_words_match_nothing():
    """No words are among the words of every name."""
    for given in (["😀", "😢", "😡"], ["!", "?", "&"]):
        with pytest.raises(ValueError, match="'angry' is not one class there"):
            ClassNames(given, ["angry", "happy", "sad"], "faces")


def test_folders_of_words_take_their_names_whatever_the_order_and_number_of_the_list(tmp_path):
    result = evaluate(folders(tmp_path / "f", ["cat", "dog", "fish"]), ["fish", "cow", "dog", "cat", "bird"])
    assert counts(result) == {"cat": 1, "dog": 2, "fish": 3} and (result.top_1, result.classes) == (1, 5)


EUROSAT = ["AnnualCrop", "Forest", "Highway", "Industrial", "Pasture", "PermanentCrop", "Residential", "River"]
PROMPTS = load_prompts("EuroSAT").classes


def test_names_of_the_data_are_matched_by_words():
    chosen = [names for names in PROMPTS if names[0] not in ("brushland or shrubland", "lake or sea")]
    classes = ClassNames(chosen, EUROSAT, "eurosat")
    found = {name: classes.names[classes.find(name, "row 0")][0] for name in EUROSAT}
    assert found["AnnualCrop"] == "annual crop land" and found["Forest"] == "forest"
    assert found["PermanentCrop"] == "permanent crop land" and len(set(found.values())) == 8
    numbered = ClassNames(["Laysan albatross", "crested auklet"], ["002.Crested_Auklet"], "birds")
    assert numbered.find("002.Crested_Auklet", "") == 1


def test_names_that_do_not_match_are_refused_with_what_the_order_would_say():
    with pytest.raises(ValueError) as error:
        ClassNames(PROMPTS, [*EUROSAT, "HerbaceousVegetation", "SeaLake"], "eurosat.parquet")
    message = str(error.value)
    assert "'HerbaceousVegetation' is not one class there" in message
    assert "By their order alone 'AnnualCrop' would be 'forest', 'Forest' would be 'permanent crop land'" in message
    # A part of a name is no name: nothing says that a dog is a hot dog.
    with pytest.raises(ValueError, match="'dog' would be 'hot dog'"):
        ClassNames(["hot dog", "cat", "cow"], ["dog", "cat"], "pets")
    with pytest.raises(ValueError, match="'chat' would be 'cat'"):
        ClassNames(["cat", "dog"], ["chat", "chien"], "pets")


def test_lists_in_one_order_may_differ_in_words():
    """Published lists of ImageNet name one class in several ways; codes have no words that could differ."""
    own = ["tench, Tinca tinca", "drake", "maillot, tank suit", "goldfish", "cock"]
    given = ["tench", "male duck", "one-piece bathing suit", "goldfish", "rooster hen cock"]
    assert [ClassNames(given, own, "imagenet").find(name, "") for name in own] == [0, 1, 2, 3, 4]
    codes = ["n01440764", "n01443537"]
    assert [ClassNames(given[:2], codes, "imagenet").find(name, "") for name in codes] == [0, 1]
    with pytest.raises(ValueError, match="cannot be matched"):
        ClassNames([given[3], *given[1:3], given[0], given[4]], own, "imagenet")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["0", "7"], "row 1: label '7' is beyond the 5 names of `labels`, whose indices are 0 to 4"),
        ([1, 5], "row 1: label '5' is beyond the 5 names .* Indices begin at 0, not at 1"),
        (["cat", "horse"], "row 1: 'horse' is none of the 5 classes"),
        ([0, -2], "row 1: '-2' is none of the 5 classes"),
        ([1.5, 2.0], "row 0: '1.5' is none of the 5 classes"),
        ([-1, None], "none of its 2 rows has a label in column 'label'"),
        (["-1", "-1.0"], "none of its 2 rows has a label in column 'label'"),
        ([["cat", "dog"], ["cat"]], "row 0 has 2 labels .cat, dog., and one is wanted. Set `label_column`"),
        ([{"name": "cat"}, {"name": "dog"}], "column 'label' of .* holds objects, not texts or numbers"),
    ],
)
def test_labels_that_are_no_classes_are_called_so(labels, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        evaluate(table(tmp_path / "a.parquet", labels))


def test_an_index_beyond_the_datas_own_names_is_called_so(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES[:3])})
    images = [encoded(value) for value in range(3)]
    content = pa.table({"image": images, "label": [0, 3, -1]}).replace_schema_metadata(features.arrow_schema.metadata)
    pq.write_table(content, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="row 1 has a label beyond the names of the classes"):
        evaluate(open_source(str(tmp_path / "a.parquet")), None)


def test_folders_beyond_the_names_are_called_so(tmp_path):
    source = folders(tmp_path / "g", [str(number) for number in range(1, 6)])
    with pytest.raises(ValueError, match="label '5' is beyond the 5 names .* Indices begin at 0"):
        evaluate(source)


def test_a_name_of_two_classes_is_no_label(tmp_path):
    with pytest.raises(ValueError, match="row 0: 'cat' is the name of 2 classes: use their indices"):
        evaluate(table(tmp_path / "a.parquet", ["cat", "dog"]), ["cat", "dog", "cat"])


def test_a_shift_tells_the_other_datas_names_by_words(tmp_path):
    encoder = model()
    source = folders(tmp_path / "f", NAMES)
    other = folders(tmp_path / "g", ["COW", "fish"])
    result = evaluate_shift(encoder, encoder.processor, source, other, templates=["{}"])
    # The images of folder COW are drawn like a cat, those of fish like a dog.
    assert (result.top_1, result.shifted_top_1, result.classes) == (1, 0, 5)
    with pytest.raises(ValueError, match="'horse' is not one class there"):
        evaluate_shift(encoder, encoder.processor, source, folders(tmp_path / "h", ["cat", "horse"]), templates=["{}"])


def test_few_shots_name_classes_as_zero_shot_does(tmp_path):
    names = ["red", "green", "blue"]
    clip = tiny_clip(names)
    source = folders(tmp_path, ["02", "01", "00"])
    more = {"labels": names, "templates": ["a {}"]}
    few = evaluate_few_shot(*clip, source, source, validation=source, shots=(1,), num_seeds=1, **more)
    alone = evaluate_zero_shot(*clip, source, **more)
    assert counts(alone) == {"blue": 1, "green": 2, "red": 3}
    assert (few.zero_shot_top_1, few.templates) == (alone.top_1, ("a {}",))
