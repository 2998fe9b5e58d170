"""The example scripts do what they say, on colored squares and a small model that knows their colors."""

import csv
import importlib.util
from pathlib import Path

import pytest

from tests.helpers.squares import COLOURS, NAMES, square
from tests.helpers.toys import tiny_clip
from tests.helpers.trained import trained_clip

EXAMPLES = Path(__file__).parents[1] / "examples"


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    trained, processor = trained_clip()
    trained.config.zero_shot_templates = ["a {}"]
    trained.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def write_squares(folder: Path, names: list[str], seed: int) -> list[tuple[str, str]]:
    """Files of squares; (file name, caption) of each."""
    folder.mkdir(exist_ok=True)
    pairs = [(f"{name.replace(' ', '-')}-{seed}.png", name) for name in names]
    for file, name in pairs:
        (folder / file).write_bytes(square(name, seed))
    return pairs


def write_csv(file: Path, pairs: list[tuple[str, str]]) -> Path:
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "caption"), *pairs])
    return file


def test_a_folder_is_classified_and_a_broken_file_is_a_line(model, tmp_path, capsys):
    write_squares(tmp_path / "photos", [f"a {color} square at the top left" for color in COLOURS], seed=3)
    (tmp_path / "photos/broken.png").write_bytes(b"no image")
    labels = [f"{color} square" for color in COLOURS]
    script("classify_folder").main([str(tmp_path / "photos"), "--labels", *labels, "--model", model])
    printed = capsys.readouterr()
    rows = list(csv.DictReader(printed.out.splitlines()))
    assert len(rows) == len(COLOURS) and "broken.png" in printed.err
    right = [row["label"].split()[0] == Path(row["image"]).name.split("-")[1] for row in rows]
    assert sum(right) >= 5


def test_a_folder_is_searched_and_only_new_images_are_encoded(model, tmp_path, capsys, monkeypatch):
    search = script("search_folder")
    write_squares(tmp_path, [f"a {color} square at the top left" for color in COLOURS], seed=3)
    best = search.main(str(tmp_path), "a red square", model)
    assert "red" in best[0] and len(best) == 5 and best[0] in capsys.readouterr().out
    encoded, embed = [], search.embed_images
    monkeypatch.setattr(search, "embed_images", lambda *parts: encoded.append(parts[2]) or embed(*parts))
    [(new, _)] = write_squares(tmp_path, ["a red square at the bottom right"], seed=4)
    assert {Path(one).name for one in search.main(str(tmp_path), "a red square", model)[:2]} >= {new}
    assert encoded == [[str(tmp_path / new)]]
    assert len((EXAMPLES / "search_folder.py").read_text().splitlines()) <= 30


@pytest.mark.slow
def test_a_csv_is_fine_tuned_on_and_better_after(tmp_path, capsys):
    for part in tiny_clip(NAMES, num_hidden_layers=1):
        part.save_pretrained(tmp_path / "start")
    pairs = [pair for seed in (0, 1) for pair in write_squares(tmp_path / "squares", NAMES, seed)]
    train = write_csv(tmp_path / "squares/pairs.csv", pairs)
    held_out = write_csv(tmp_path / "squares/held_out.csv", write_squares(tmp_path / "squares", NAMES, seed=2))
    quick = ["steps=60", "batch_size=24", "micro_batch_size=null", "optimizer.learning_rate=3e-3"]
    quick += ["optimizer.warmup_steps=3", "augmentation.scale=0", "augmentation.shift=0"]
    arguments = [str(train), "--held-out", str(held_out), "--model", str(tmp_path / "start")]
    before, after = script("finetune_csv").main([*arguments, "--output-dir", str(tmp_path / "run"), "--set", *quick])
    assert after > before + 0.1
    assert f"{before:.3f} before, {after:.3f} after" in capsys.readouterr().out
