"""The paper's class names and templates, and files of one's own."""

import pytest

from hf_clip.prompts import list_prompts, load_prompts

# Classes as the paper's table 9 counts them; Caltech-101's background and FER's seven emotions as OpenAI's lists do.
CLASS_COUNTS = {
    "Birdsnap": 500, "Caltech101": 102, "CIFAR10": 10, "CIFAR100": 100, "CLEVRCounts": 8, "Country211": 211,
    "DescribableTextures": 47, "EuroSAT": 10, "FacialEmotionRecognition2013": 7, "FGVCAircraft": 100,
    "Flowers102": 102, "Food101": 101, "GTSRB": 43, "HatefulMemes": 2, "ImageNet": 1000, "Kinetics700": 700,
    "KITTI": 4, "MNIST": 10, "OxfordPets": 37, "PascalVOC2007": 20, "PatchCamelyon": 2, "RESISC45": 45, "SST2": 2,
    "StanfordCars": 196, "STL10": 10, "SUN397": 397, "UCF101": 101,
}  # fmt: skip


def test_all_27_data_sets_are_there_with_their_classes():
    assert {name: len(load_prompts(name).classes) for name in list_prompts()} == CLASS_COUNTS
    assert all(load_prompts(name).license == "MIT" and load_prompts(name).source for name in list_prompts())


def test_imagenet_has_80_templates_and_the_best_seven_of_them():
    imagenet = load_prompts("imagenet")
    assert (len(imagenet.templates), len(set(imagenet.templates)), len(imagenet.best_templates)) == (80, 80, 7)
    assert set(imagenet.best_templates) <= set(imagenet.templates)
    assert imagenet.labels[0] == "tench" and imagenet.labels[207] == "Golden Retriever"


def test_a_class_may_have_several_names():
    faces = load_prompts("Facial-Emotion-Recognition-2013")
    assert faces.classes[5] == ("surprised", "shocked", "spooked")
    assert faces.labels[5] == "surprised"


def test_an_unknown_name_raises_with_the_nearest():
    with pytest.raises(ValueError, match="Food101"):
        load_prompts("food-10")


def test_own_templates_and_classes_from_yaml(tmp_path):
    file = tmp_path / "birds.yaml"
    file.write_text("templates: ['a sketch of a {}', 'the {}']\nclasses:\n- wren\n- [robin, redbreast]\n", "utf-8")
    birds = load_prompts(file)
    assert (birds.name, birds.templates) == ("birds", ("a sketch of a {}", "the {}"))
    assert (birds.classes, birds.labels) == ((("wren",), ("robin", "redbreast")), ("wren", "robin"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("templates: ['a photo']", "has no '{}'"),
        ("templates: []", "at least one"),
        ("classes: [a, b]", "needs a key `templates`"),
        ("templates: ['{}']\ntemplate: x", "unknown key template"),
        ("templates: 'a {}'", "`templates` is not a list"),
        ("templates: ['{}']\nclasses: [1, 2]", "own.yaml, line 2: 1 in `classes` is read as int"),
        ("templates: ['{}']\nclasses:\n- yes\n", "own.yaml, line 3: yes in `classes` is read as bool"),
        ("templates: ['{}']\nclasses:\n- wren\n- [robin, no]\n", "line 4: no in `classes` is read as bool, which is"),
        ("templates: ['{}']\nclasses: [a: b]", "line 2: a mapping in `classes` is read as dict"),
        ("templates: ['{}', 2026-11-27]", "line 1: 2026-11-27 in `templates` is read as date"),
        ("templates: ['{}']\nclasses: [a, [[b]]]", "a sequence in `classes` is read as list"),
        ("templates: ['{}']\nclasses: [a, ]\nname: 12:30", "line 3: 12:30 in `name` is read as int"),
        ("templates: ['{}']\nlicense: off", "line 2: off in `license` is read as bool"),
        ("templates: ['{}']\nclasses:\n- a\n-\n", "line 4: an entry of `classes` is empty"),
        ("templates: ['{}']\nclasses: ['']", "an entry of `classes` is empty"),
        ("templates: [", "is not YAML"),
        ("- a {}", "holds no prompts"),
        ("? [a]\n: 1\ntemplates: ['a {}']", "own.yaml is not YAML: while constructing a mapping"),
        ("templates: &b [*b]", "own.yaml is nested too deeply: write one text a line under `templates`"),
        ("templates: " + "[" * 1000 + "]" * 1000, "own.yaml is nested too deeply"),
        ("templates: [2024-13-45]", "own.yaml is not YAML: month must be in 1..12"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path, content, said):
    file = tmp_path / "own.yaml"
    file.write_text(content, "utf-8")
    with pytest.raises(ValueError, match="own.yaml|own") as caught:
        load_prompts(file)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_json_file_and_one_that_is_no_text_say_where(tmp_path):
    file = tmp_path / "own.json"
    file.write_text('{"templates": ["{}"], "classes": ["a", ["b", false]]}', "utf-8")
    with pytest.raises(ValueError, match=r"own.json, classes 1 1: False in `classes` is read as bool"):
        load_prompts(file)
    file.write_text("[" * 100_000, "utf-8")
    with pytest.raises(ValueError, match="own.json is nested too deeply"):
        load_prompts(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="own.json cannot be read as text in UTF-8"):
        load_prompts(file)


def test_a_missing_file_is_named():
    with pytest.raises(ValueError, match="no file nowhere.yaml"):
        load_prompts("nowhere.yaml")
