"""The command: help that fits a screen, examples that work, exit codes, and one line for whatever goes wrong."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from hf_clip.training import load_recipe
from hf_clip_cli import main as cli
from hf_clip_cli.running import make_parser
from tests.helpers.checkpoints import openai_model, openai_state
from tests.helpers.squares import NAMES, SIZE, recipe, rows, write_parquet, write_recipe
from tests.helpers.toys import tiny_clip
from tests.helpers.warm_python import warm_python

ROOT = Path(__file__).parents[2]
VERBS = (
    "train",
    "plan",
    "teach",
    "compare",
    "average",
    "eval",
    "classify",
    "locate",
    "dedup",
    "prompts",
    "convert",
    "push",
    "doctor",
)
TASKS = (
    "zero-shot", "retrieval", "languages", "linear-probe", "few-shot", "robustness", "segmentation", "groups",
    "clip-score",
)  # fmt: skip
LABELS = ",".join(NAMES[:4])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small untrained model, images, broken ones, and data sets of several kinds of wrong."""
    place = tmp_path_factory.mktemp("place")
    (place / "examples").symlink_to(ROOT / "examples")
    model, processor = tiny_clip(NAMES, SIZE)
    model.save_pretrained(place / "runs/emoji")
    processor.save_pretrained(place / "runs/emoji")
    # By the Hub id of the help's example.
    (place / "openai").mkdir()
    (place / "openai/clip-vit-base-patch32").symlink_to(place / "runs/emoji")
    (place / "photos/more").mkdir(parents=True)
    content = rows(1)
    for index, row in enumerate(content[:3]):
        (place / f"photos/{index}.jpg").write_bytes(row["image"]["bytes"])
    (place / "photos/more/3.PNG").write_bytes(content[3]["image"]["bytes"])
    (place / "photos/notes.txt").write_text("no image")
    (place / "broken.png").write_bytes(content[0]["image"]["bytes"][:-40])
    (place / "empty").mkdir()
    torch.save(openai_state(openai_model()), place / "ViT-B-32.pt")
    (place / "no_config").mkdir()
    write_parquet(place / "pairs.parquet", [{**row, "label": row["caption"].split(" ")[1]} for row in content])
    write_parquet(place / "images_only.parquet", [{"image": row["image"]} for row in content])
    write_parquet(place / "captions_only.parquet", [{"caption": row["caption"]} for row in content])
    write_parquet(place / "unlabeled.parquet", content)
    write_parquet(place / "broken.parquet", [{**row, "image": {"bytes": b"x", "path": None}} for row in content])
    write_recipe(place / "recipe.yaml", recipe(place / "pairs.parquet", steps=2, optimizer={"warmup_steps": 1}))
    write_recipe(place / "misspelt.yaml", recipe(place / "pairs.parquet", step=2))
    return place


@pytest.fixture(autouse=True)
def stand_there(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "80")


def help_of(verb: str, capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main([*verb.split(), "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", ["", *VERBS, *(f"eval {task}" for task in TASKS)])
def test_help_fits_one_screen(verb, capsys):
    text = help_of(verb, capsys)
    assert len(text.splitlines()) <= 40
    # Examples are to be copied whole; all else keeps to the width.
    lines = text.split("example:")[0].splitlines()
    assert max(len(line) for line in lines) <= 80


def example_of(verb: str, capsys) -> list[str]:
    command = shlex.split(help_of(verb, capsys).split("example: ")[1])
    assert command[:2] == ["hf-clip", verb]
    return command[1:]


@pytest.mark.parametrize("verb", ["plan", "eval", "classify", "locate", "prompts", "convert", "doctor"])
def test_the_example_of_the_help_works(verb, capsys):
    assert cli.main(example_of(verb, capsys)) == 0
    out = capsys.readouterr().out
    told = {"eval": "R@1", "classify": "photos/0.jpg", "locate": "photos/0.jpg", "prompts": "EuroSAT: 10 classes"}
    told |= {"plan": "80 GB, FSDP2", "convert": "largest difference", "doctor": "transformers"}
    assert told[verb] in out


def test_the_example_of_train_is_a_run(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = make_parser().parse_args(example_of("train", capsys))
    assert load_recipe(options.recipe, options.overrides).steps == 500


def test_classify_prints_a_table(capsys):
    command = ["classify", "photos", "--labels", LABELS, "--model", "runs/emoji", "--top-k", "2"]
    assert cli.main(command) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["image", "label", "1", "label", "2"]
    assert [line.split()[0] for line in lines] == [*(f"photos/{n}.jpg" for n in range(3)), "photos/more/3.PNG"]
    scores = [float(lines[0].split()[1]), float(lines[0][header.index("label 2") :].split()[0])]
    assert 1 >= scores[0] >= scores[1] > 0
    assert lines[0][header.index("label 1") + 6 :].startswith(tuple(NAMES[:4]))


def test_classify_as_json_lines_gives_every_label_with_its_score(capsys, tmp_path):
    names = tmp_path / "labels.txt"
    names.write_text("\n".join([*NAMES[:4], "", NAMES[0], "ein grünes, nein: rotes Quadrat"]))
    command = ["classify", "photos/*.jpg", "--labels", f"@{names}", "--model", "runs/emoji", "--format", "jsonl"]
    assert cli.main([*command, "--top-k", "9", "--batch-size", "2", "--templates", "see {}"]) == 0
    guesses = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [guess["image"] for guess in guesses] == [f"photos/{n}.jpg" for n in range(3)]
    for guess in guesses:
        assert {one["label"] for one in guess["labels"]} == {*NAMES[:4], "ein grünes, nein: rotes Quadrat"}
        assert sum(one["score"] for one in guess["labels"]) == pytest.approx(1)


def test_a_broken_image_is_named_and_the_others_are_classified(capsys):
    command = ["classify", "photos/0.jpg", "broken.png", "photos/notes.txt", "photos/1.jpg", "--labels", LABELS]
    assert cli.main([*command, "--model", "runs/emoji"]) == 1
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["image", "photos/0.jpg", "photos/1.jpg"]
    assert "hf-clip: broken.png: " in err and "hf-clip: photos/notes.txt: " in err
    assert err.splitlines()[-1] == "hf-clip: 2 of 4 images could not be read."


def test_a_label_longer_than_the_model_reads_is_cut(capsys):
    labels = f"a cat,{'a very long story ' * 40}"
    assert cli.main(["classify", "photos/0.jpg", "--labels", labels, "--model", "runs/emoji"]) == 0
    assert "a very long story" in capsys.readouterr().out


@pytest.mark.parametrize(("task", "number"), [("retrieval", "image_to_text"), ("zero-shot", "top_1")])
def test_eval_prints_a_table_and_writes_json(task, number, capsys, tmp_path):
    file = tmp_path / "result.json"
    command = ["eval", task, "--model", "runs/emoji", "--data", "pairs.parquet", "--output", str(file)]
    assert cli.main(command) == 0
    result = json.loads(file.read_text())
    assert result["task"] == task and number in result
    assert "24" in capsys.readouterr().out
    assert cli.main([*command, "--where", "label=red", "label=blue"]) == 0
    assert "8" in capsys.readouterr().out and json.loads(file.read_text()) != result


def test_a_column_named_twice_may_have_either_value(capsys):
    command = ["eval", "zero-shot", "--model", "runs/emoji", "--data", "pairs.parquet", "--label-column", "label"]
    assert cli.main([*command, "--where", "label=red", "label=blue"]) == 0
    assert " 8 " in capsys.readouterr().out


def test_doctor_says_what_is_there(capsys, monkeypatch):
    assert cli.main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings["packages"]["torch"] and findings["devices"][0]["device"] == "cpu"
    assert findings["devices"][0]["training_precision"] in ("no", "bf16")
    missing = ("matplotlib", "lancedb")
    monkeypatch.setattr("hf_clip_cli.doctor._version", lambda name: None if name in missing else "1.0")
    assert cli.main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "not installed (needed for plots of the model card: pip install matplotlib)" in told
    assert "not installed (needed for search: pip install 'hf_clip[search]')" in told


WITHOUT_EXTRAS = """
import sys
for name in ("accelerate", "datasets", "pyarrow", "matplotlib"):
    sys.modules[name] = None
from hf_clip_cli import main as cli
codes = [cli.main(["doctor"]), cli.main(["train", "--recipe", "emoji", "--output-dir", "out"])]
codes.append(cli.main(["classify", "photos/0.jpg", "--labels", "a,b", "--model", "runs/emoji"]))
print(codes)
"""


def test_without_what_training_needs_doctor_and_classify_work_and_train_says_what_is_missing(place):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*warm_python("libraries"), "-c", WITHOUT_EXTRAS], cwd=place, env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[0, 1, 0]", done.stderr
    assert "pip install 'hf_clip[train]'" in done.stderr


def test_train_ends_with_a_model_that_classify_takes(capsys, tmp_path):
    run = tmp_path / "run"
    assert cli.main(["train", "--recipe", "recipe.yaml", "--output-dir", str(run), "--set", "steps=3"]) == 0
    err = capsys.readouterr().err
    assert "step 3/3  loss " in err and "\r" not in err and f"The model is in {run}" in err
    assert cli.main(["classify", "photos/0.jpg", "--labels", "a red square,a blue one", "--model", str(run)]) == 0
    assert "a red square" in capsys.readouterr().out
    assert cli.main(["train", "--recipe", "recipe.yaml", "--output-dir", str(run)]) == 1
    for own in ([], ["--recipe", str(run / "recipe.yaml")]):
        assert cli.main(["train", *own, "--output-dir", str(run), "--resume"]) == 1
        assert "is finished" in capsys.readouterr().err


TRAIN = "train --output-dir out --recipe recipe.yaml"
CLASSIFY = "classify photos/0.jpg --labels a,b --model runs/emoji"
EVAL = "eval retrieval --model runs/emoji --data pairs.parquet"


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        # train
        ("train --output-dir out", 2, "--recipe is missing: name one of emoji"),
        ("train --output-dir out --resume", 2, "There is no run to resume in out: start one with --recipe"),
        ("train --output-dir out --recipe emojis", 2, "There is no recipe 'emojis': did you mean emoji?"),
        ("train --output-dir out --recipe gone.yaml", 2, "There is no file 'gone.yaml': name one of emoji"),
        (f"{TRAIN} --set steps", 2, "--set 'steps' is not KEY=VALUE: write it as --set steps=500"),
        ("train --output-dir out --recipe misspelt.yaml", 2, "step is not a key of a recipe. Did you mean steps?"),
        (f"{TRAIN} --set stepz=3", 2, "Did you mean steps?"),
        (f"{TRAIN} --set data.train=[gone.parquet]", 1, "gone.parquet"),
        (f"{TRAIN} --set data.train=[empty]", 1, "empty"),
        (f"{TRAIN} --set data.train=[captions_only.parquet]", 1, "no column that looks like an image"),
        (f"{TRAIN} --set data.train=[images_only.parquet]", 1, "no column that looks like a caption"),
        (f"{TRAIN} --set data.train=[broken.parquet]", 1, "24 skipped as unknown_format"),
        (f"{TRAIN} --set batch_size=25", 1, "has 24 pairs, fewer than batch_size=25. Lower batch_size to 24"),
        (f"{TRAIN} --set data.where.color=red", 1, "color"),
        (f"{TRAIN} --set model.config.text_config.num_attention_heads=5", 2, "cannot be divided into"),
        ("train --output-dir photos --recipe recipe.yaml", 1, "photos is not empty: go on with the run in it"),
        ("train --output-dir recipe.yaml --recipe recipe.yaml", 2, "--output-dir recipe.yaml is a file"),
        # plan
        ("plan", 2, "--recipe is missing: name one of emoji"),
        ("plan --recipe emojis", 2, "There is no recipe 'emojis'"),
        ("plan --recipe recipe.yaml --processes 3", 2, "16 cannot be divided among 3 processes: set it to 15"),
        ("plan --recipe recipe.yaml --set mixed_precision=fp16 --device cpu", 2, "fp16 needs a CUDA GPU"),
        # classify
        ("classify gone.png --labels a,b --model runs/emoji", 2, "gone.png: there is no such image"),
        (
            "classify empty --labels a,b --model runs/emoji",
            2,
            "empty: there is no such image, and no folder of that name with images",
        ),
        ("classify gone/*.png --labels a,b --model runs/emoji", 2, "gone/*.png: there is no such image"),
        ("classify photos/0.jpg --labels ,, --model runs/emoji", 2, "--labels: ',,' names no label"),
        ("classify photos/0.jpg --labels @gone.txt --model runs/emoji", 2, "there is no file gone.txt"),
        ("classify photos/0.jpg --labels a,b --model no_config", 1, "no_config has neither config.json nor"),
        ("classify photos/0.jpg --labels a,b --model ./gone", 2, "--model ./gone does not exist: give a checkpoint"),
        ("classify photos/0.jpg --labels a,b --model gone", 2, "--model gone does not exist"),
        (f"{CLASSIFY} --device nonsense", 2, "--device: 'nonsense' is not a device: use one of cpu, cuda"),
        (f"{CLASSIFY} --templates nothing", 2, "--templates 'nothing' has no '{}'"),
        # eval
        ("eval retrieval --model runs/emoji --data gone.parquet", 2, "--data gone.parquet does not exist"),
        ("eval retrieval --model runs/emoji --data empty", 1, "empty"),
        ("eval retrieval --model runs/emoji --data images_only.parquet", 1, "no column that looks like a caption"),
        ("eval zero-shot --model runs/emoji --data unlabeled.parquet", 1, "no column that looks like a label"),
        (f"{EVAL} --where shape=round", 1, "shape"),
        (f"{EVAL} --where label=pink", 1, "no row of 'pairs.parquet' has label=pink"),
        (f"{EVAL} --where label", 2, "--where 'label' is not COLUMN=VALUE: write it as --where label=cat"),
        (f"{EVAL} --output gone/result.json", 2, "--output gone/result.json: there is no folder gone"),
        ("eval retrieval --model runs/emoji --data broken.parquet", 1, "no image could be read (24 unknown_format)"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(place, capsys, command, code, message):
    before = sorted(place.rglob("*"))
    assert cli.main(shlex.split(command)) == code
    err = capsys.readouterr().err.strip()
    assert message in err
    assert err.startswith("hf-clip: ") and len(err.splitlines()) == 1 and "Traceback" not in err
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "the following arguments are required: VERB: see hf-clip --help"),
        ("draw", "'draw' is no verb of hf-clip: there are train, "),
        ("clasify", "'clasify' is no verb of hf-clip: did you mean classify?"),
        ("train", "required: --output-dir: see hf-clip train --help"),
        ("plan --recipe emoji --device-memory 0", "--device-memory: '0' is not a number above 0"),
        ("eval guess --model m --data d", "'guess' is no task of hf-clip eval: there are "),
        ("classify p --labels a", "required: --model"),
        ("classify --model m --labels a p.png", "required: IMAGE (images come before flags, or after --)"),
        (f"{CLASSIFY} --top-k 0", "--top-k: '0' is not a whole number of 1 or more"),
        (f"{EVAL} --batch-size many", "--batch-size: 'many' is not a whole number"),
        (f"{EVAL} --template {{}}", "--template is not a flag of hf-clip eval retrieval"),
        ("eval zero-shot --model m --data d --template {}", "did you mean --templates?"),
        # The misspelt flag is told, rather than the one that it leaves missing.
        ("classify photos --labls a --model m", "--labls is not a flag of hf-clip classify: did you mean --labels?"),
        ("classify photos --labels imagenet --model runs/emoji", "--prompts ImageNet gives that data set's classes"),
        (f"{CLASSIFY} --format xml", "--format: invalid choice: 'xml'"),
        ("eval linear-probe --model m --data d --seed -1", "--seed: '-1' is not a whole number of 0 or more"),
        ("doctor now", "'now' is one argument too many: see hf-clip doctor --help"),
        (f"{CLASSIFY} --labels @gone.txt", "--labels: @gone.txt: there is no file gone.txt"),
        (f"{CLASSIFY} --device cud", "did you mean cuda?"),
    ],
)
def test_arguments_that_do_not_parse_are_one_line_of_wrong_usage(command, message, capsys):
    assert cli.main(shlex.split(command)) == 2
    out, err = capsys.readouterr()
    assert message in err and err.startswith("hf-clip: ") and len(err.splitlines()) == 1 and out == ""


def test_debug_shows_the_traceback_and_keeps_the_exit_code(capsys):
    assert cli.main([*shlex.split(TRAIN), "--set", "stepz=3", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err and err.splitlines()[-1].startswith("hf-clip: stepz is not")


def test_a_stopped_run_and_an_interrupted_one_and_a_full_disk(capsys, monkeypatch):
    from hf_clip.training.loop import TrainingStopped

    for error, code, message in (
        (TrainingStopped("SIGTERM: saved at step 5."), 3, "SIGTERM: saved at step 5."),
        (KeyboardInterrupt(), 1, "interrupted"),
        (OSError(28, "No space left on device"), 1, "free some space; a run that was training goes on with --resume"),
        (RuntimeError("first\n  second"), 1, "first second"),
        (ValueError(), 1, "ValueError"),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr("hf_clip.training.loop.train", fail)
        assert cli.main(shlex.split(TRAIN)) == code
        assert message in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(capsys, tmp_path):
    tmp_path.chmod(0o500)
    try:
        assert cli.main(["train", "--recipe", "recipe.yaml", "--output-dir", str(tmp_path / "out")]) == 1
    finally:
        tmp_path.chmod(0o700)
    assert "Permission denied" in capsys.readouterr().err
