"""Pushing: what reaches the Hub loads from there, a push that fails goes on, and no token leaves the machine."""

import errno
import json
import re
import shutil
import tempfile
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, CLIPModel, CLIPProcessor, SiglipModel, SiglipProcessor

from hf_clip import HFCLIPModel, HFCLIPProcessor, HFCLIPSiglipConfig, HFCLIPSiglipModel
from hf_clip.conversion import ConversionError
from hf_clip.conversion.open_clip import open_clip_rules
from hf_clip.conversion.rules import export_tensors
from hf_clip.hub import CardError, CardFacts, PushError, check_model_card, redact, upload, write_model_card
from hf_clip.hub.published_files import DRAWN_BY
from hf_clip.hub.push import prepare, push
from hf_clip_cli import main as cli
from tests.helpers.mock_hub import TOKEN, running_hub, use_in_this_process
from tests.helpers.squares import rows, write_parquet
from tests.model.test_remote_code import LABELS, expected_scores, tiny, without_the_package

NAME = "someone/tiny"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder: a model, its card, what the run left besides."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    model, processor = tiny("vit")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "plots").mkdir()
    drawn = PngInfo()
    drawn.add_text("Software", DRAWN_BY)
    Image.new("RGB", (8, 8)).save(folder / "plots" / "loss.png", pnginfo=drawn)
    (folder / "recipe.yaml").write_text("steps: 3\n")
    (folder / "checkpoints" / "step-3").mkdir(parents=True)
    (folder / "checkpoints" / "step-3" / "optimizer.bin").write_bytes(b"large")
    data = [{"name": "Drawings", "license": "MIT", "images": 12}]
    result = {"task": "zero-shot", "title": "squares", "top_1": 0.5, "images": 2, "classes": 2}
    facts = CardFacts("Tiny", data, results=[result], plots=[("plots/loss.png", "Loss")], example_labels=LABELS)
    write_model_card(folder, facts, runs_snippets=False)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A mock Hub that this process pushes to, without waits between tries."""
    with running_hub({}, tmp_path / "hub") as hub:
        use_in_this_process(hub, monkeypatch, tmp_path / "cache")
        monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path, monkeypatch):
    """Where pushes prepare what they send."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    yield
    assert not list((tmp_path / "temporary").iterdir())


def leftovers(folder: Path) -> list[Path]:
    """What no run leaves in its folder."""
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_run_is_pushed_whole_and_loads_where_the_package_is_missing(hub, trained, tmp_path, capsys):
    assert cli.main(["push", str(trained), NAME, "--private"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == f"{hub.url}/{NAME}"
    there = hub.repositories[NAME]
    files = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
    assert {"model.safetensors", "tokenizer.json", "pipeline_hf_clip.py", "recipe.yaml", "plots/loss.png"} <= files
    assert not any("checkpoints" in file or file.startswith(".") for file in files)
    # Every file was shown before, with what it is.
    rows = dict(re.findall(r"^  (\S+) +[\d.]+ k?B  (\S.*)$", printed.err, re.M))
    assert files == rows.keys() and rows["model.safetensors"] == "weights" and rows["plots/loss.png"] == "plot"
    assert "Not sent: checkpoints/\n" in printed.err
    assert hub.private[NAME] and not leftovers(trained)
    card = ModelCard.load(there / "README.md")
    card.validate()
    assert f'model="{NAME}"' in card.text and "It prints" in card.text and "![Loss](plots/loss.png)" in card.text
    assert [entry.metric_value for entry in card.data.eval_results] == [0.5]
    # Where the package is, nobody is asked to trust the code that came along.
    assert "auto_map" in (there / "config.json").read_text() and type(AutoModel.from_pretrained(there)) is HFCLIPModel
    model, processor = HFCLIPModel.from_pretrained(trained), HFCLIPProcessor.from_pretrained(trained)
    expected = {NAME: expected_scores(model.eval(), processor)}
    # And a model that its own methods push.
    model, processor = tiny("resnet")
    model.push_to_hub("someone/resnet", private=True)
    processor.push_to_hub("someone/resnet")
    ModelCard.load(hub.repositories["someone/resnet"] / "README.md").validate()
    expected["someone/resnet"] = expected_scores(model, processor)
    found = without_the_package(tmp_path, list(expected), hub.environment(tmp_path / "home"))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("is_siglip", [False, True])
def test_as_transformers_it_needs_no_other_code(hub, tmp_path, is_siglip):
    model, processor = tiny("vit")
    if is_siglip:
        text = {**model.config.text_config.to_dict(), "pooling": "last", "is_causal": False, "projection_type": "none"}
        vision = {
            **model.config.vision_config.to_dict(), "pooling": "attention", "has_class_token": False,
            "has_pre_norm": False, "patch_bias": True, "norm_before_pooling": True, "projection_type": "none",
        }  # fmt: skip
        config = HFCLIPSiglipConfig(
            text_config={**text, "projection_size": 32}, vision_config=vision, projection_dim=32
        )
        torch.manual_seed(0)
        model = HFCLIPSiglipModel(config).eval()
        processor = HFCLIPProcessor(processor.image_processor, processor.tokenizer, text_padding="max_length")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    push(tmp_path / "model", NAME, to="transformers")
    there = hub.repositories[NAME]
    assert not list(there.glob("*.py")) and "auto_map" not in (there / "config.json").read_text()
    peer = (SiglipModel if is_siglip else CLIPModel).from_pretrained(there).eval()
    peers_processor = AutoProcessor.from_pretrained(there)
    assert type(peers_processor) is (SiglipProcessor if is_siglip else CLIPProcessor)
    padding = {"padding": "max_length", "max_length": 77} if is_siglip else {"padding": True}
    inputs = peers_processor(text=LABELS, images=Image.new("RGB", (32, 32), "red"), return_tensors="pt", **padding)
    ours = processor(text=LABELS, images=Image.new("RGB", (32, 32), "red"), return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(peer(**inputs).logits_per_image, model(**ours).logits_per_image)
    text = (there / "README.md").read_text()
    assert "trust_remote_code" not in text and f"{type(peer).__name__}.from_pretrained" in text and "It prints" in text


def test_what_transformers_cannot_express_is_refused_before_anything_is_sent(hub, tmp_path):
    model, processor = tiny("resnet")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    with pytest.raises(ConversionError, match="tower='resnet'"):
        push(tmp_path / "model", NAME, to="transformers")
    assert not hub.requests and not leftovers(tmp_path / "model")


def test_a_push_is_tried_again_and_sends_no_large_file_twice(hub, tmp_path, caplog):
    (tmp_path / "folder").mkdir()
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / "folder" / name).write_bytes(name.encode())
    # When all is uploaded.
    hub.failures += [("commit", 503)] * 2
    waited = []
    url = upload(tmp_path / "folder", NAME, revision="next", wait=waited.append)
    said = [record.getMessage() for record in caplog.records if record.name == "hf_clip.hub.upload"]
    assert url == f"{hub.url}/{NAME}/tree/next"
    assert len(said) == len(waited) == 2 and all("Trying again" in line for line in said)
    assert (hub.branches[NAME, "next"] / "b.safetensors").read_bytes() == b"b.safetensors"
    puts = [count for (method, _), count in hub.requests.items() if method == "PUT"]
    assert puts == [1, 1]


@pytest.mark.parametrize("status, part", [(403, "commit"), (401, "create")])
def test_what_no_other_try_mends_is_said_at_once(hub, tmp_path, status, part):
    (tmp_path / "config.json").write_text("{}")
    hub.failures.append((part, status))
    with pytest.raises(PushError):
        upload(tmp_path, NAME, wait=pytest.fail)


def test_a_push_that_failed_goes_on_where_it_stopped(hub, trained, capsys):
    before = everything_in(trained)
    hub.failures.append(("commit", 403))
    assert cli.main(["push", str(trained), NAME, "--revision", "next"]) == 1
    error = capsys.readouterr().err
    assert "Push again to go on: files that the Hub has are not sent twice." in error and TOKEN not in error
    assert everything_in(trained) == before
    sent = sum(count for (method, _), count in hub.requests.items() if method == "PUT")
    assert sent and cli.main(["push", str(trained), NAME, "--revision", "next"]) == 0
    assert sum(count for (method, _), count in hub.requests.items() if method == "PUT") == sent
    assert (hub.branches[NAME, "next"] / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("recipe", "results"),
    [
        ("[not, a, recipe]\n", "[]"),
        ("steps: " + "[" * 3000 + "]" * 3000, "[" * 100_000),
        ("steps: 2024-13-45\n", "{"),
    ],
    ids=["of another kind", "nested", "broken"],
)
def test_only_files_that_are_what_they_seem_are_sent(trained, tmp_path, recipe, results, caplog):
    source = tmp_path / "source"
    shutil.copytree(trained, source)
    text = PngInfo()
    text.add_text("Software", "a camera")
    Image.new("RGB", (8, 8)).save(source / "plots" / "holidays.png", pnginfo=text)
    (source / "plots" / "notes.png").write_bytes(b"no image")
    (source / "plots" / "table.csv").write_text("a,b\n")
    for name in ("LICENSE", "LICENSE-CC-BY-4.0", "NOTICE.md"):
        (source / name).write_text("Permission is granted ...\n")
    for name in ("LICENSE.pem", "LICENSE_KEYS.json", "notes.txt", ".env", "train.py", "data.parquet"):
        (source / name).write_text("of mine alone\n")
    (source / "COPYING").write_bytes(b"PK\x03\x04\x00\xff")
    (source / "recipe.yaml").write_text(recipe)
    (source / "results.json").write_text(results)
    caplog.set_level("INFO", "hf_clip.hub")
    prepare(source, tmp_path / "prepared", NAME)
    said = [record.getMessage() for record in caplog.records if record.name == "hf_clip.hub.push"]
    sent = {path.relative_to(tmp_path / "prepared").as_posix() for path in (tmp_path / "prepared").rglob("*")}
    model = {"model.safetensors", "config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    model |= {"modules.json", "sentence_bert_config.json"}
    beside = {"LICENSE", "LICENSE-CC-BY-4.0", "NOTICE.md", "README.md", "example.png", "plots/loss.png"}
    assert {name for name in sent if not name.endswith(".py")} == model | beside | {"plots"}
    assert {name for name in sent if name.endswith(".py")} == {file.name for file in trained.glob("*.py")}
    assert said[-1].startswith("Not sent: .env, COPYING, LICENSE.pem, LICENSE_KEYS.json, checkpoints/")
    assert "and 5 more" in said[-1] and len(said) == len(sent) + 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"---\na: [\n---\n", r"README\.md: the front matter is not YAML \(line 3"),
        (b"---\n- a\n---\n", r"README\.md: the front matter is a list"),
        ("# Modèle\n".encode("latin-1"), r"README\.md is not UTF-8"),
    ],
    ids=["yaml", "list", "latin-1"],
)
def test_a_card_that_cannot_be_read_stops_a_push_before_it_begins(hub, trained, tmp_path, content, said):
    shutil.copytree(trained, tmp_path / "source")
    (tmp_path / "source" / "README.md").write_bytes(content)
    with pytest.raises(CardError, match=f"^{tmp_path}/source/{said}"):
        push(tmp_path / "source", NAME)
    assert not hub.requests


def test_parts_of_a_card_that_fail_do_not_stop_a_push(hub, trained, tmp_path, monkeypatch, caplog):
    """Snippets, results and the example's image are decoration."""
    shutil.copytree(trained, tmp_path / "source")
    (tmp_path / "source" / "README.md").unlink()
    (tmp_path / "source" / "example.png").unlink()
    (tmp_path / "source" / "results.json").write_text('{"evaluations": {"a": {"task": "magic", "title": "x"}}}')

    def no_image(path: Path):
        raise OSError("no space for images")

    monkeypatch.setattr("hf_clip.hub.model_card.draw_example", no_image)
    push(tmp_path / "source", NAME)
    said = [record.getMessage() for record in caplog.records]
    assert any("written without results: `task=magic`" in line for line in said)
    assert any("written without outputs: example.png could not be drawn" in line for line in said)
    card = ModelCard.load(hub.repositories[NAME] / "README.md")
    assert "was not evaluated" in card.text and "```python" in card.text and "It prints" not in card.text


def test_a_disk_without_room_is_called_so(hub, trained, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hf_clip.hub.push.convert", full)
    with pytest.raises(PushError, match="temporary has too little space for a copy of the model: set TMPDIR"):
        push(trained, NAME)


def test_a_private_push_does_not_land_in_a_public_repository(hub, trained):
    hub.repositories[NAME] = hub.home / NAME
    hub.repositories[NAME].mkdir(parents=True)
    with pytest.raises(PushError, match="exists and is public"):
        push(trained, NAME, private=True)
    assert not list(hub.repositories[NAME].iterdir())


def test_the_token_is_in_no_file_line_or_error(hub, trained, tmp_path, capsys, caplog):
    hub.failures += [("PUT", 403)]
    with caplog.at_level("DEBUG"):
        assert cli.main(["push", str(trained), NAME, "--debug"]) == 1
    printed = capsys.readouterr()
    assert "signature=secret" not in printed.err and "PushError" in printed.err
    assert cli.main(["push", str(trained), NAME]) == 0
    said = printed.out + printed.err + "".join(capsys.readouterr()) + caplog.text
    assert TOKEN not in said
    for folder in (trained, hub.repositories[NAME]):
        assert TOKEN.encode() not in everything_in(folder)


@pytest.mark.parametrize("name", ["recipe.yaml", "LICENSE", "NOTICE", "plots/loss.png"])
@pytest.mark.parametrize("secret", [TOKEN, "hf_" + "aB3" * 11])
def test_a_folder_with_a_token_in_it_is_not_sent(hub, trained, secret, name):
    before = (trained / name).read_bytes() if (trained / name).exists() else None
    (trained / name).write_bytes(b"\x89\xff " + f"data: https://user:{secret}@host/data\n".encode())
    try:
        with pytest.raises(PushError, match=f"{name} holds a (token|URL)") as raised:
            push(trained, NAME)
    finally:
        if before is None:
            (trained / name).unlink()
        else:
            (trained / name).write_bytes(before)
    assert secret not in str(raised.value) and not hub.requests
    assert not leftovers(trained)


@pytest.mark.parametrize("link", ["LICENSE", "plots"])
def test_links_out_of_the_folder_are_not_followed(hub, trained, tmp_path, link):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "token").write_text("secret")
    source = tmp_path / "cloned"
    shutil.copytree(trained, source)
    shutil.rmtree(source / "plots")
    (source / link).symlink_to(tmp_path / "secrets" / ("token" if link == "LICENSE" else ""))
    with pytest.raises(PushError, match=f"{link}.* is a link to .*secrets/token, outside"):
        push(source, NAME)
    assert not hub.requests and not leftovers(source)


@pytest.mark.parametrize(
    "text, shown",
    [
        (f"for url https://host/file?X-Signature=abc&token={TOKEN} (403)", "for url https://host/file?*** (403)"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer ***"),
        ("at https://user:password@host/x", "at https://***@host/x"),
        (f"the token {TOKEN}!", "the token ***!"),
        ("another's hf_aBcDeFgH123", "another's hf_***"),
        ("nothing of hf_clip is hidden, is it?", "nothing of hf_clip is hidden, is it?"),
    ],
)
def test_secrets_are_taken_out_of_errors(monkeypatch, text, shown):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert redact(text) == shown


def test_what_cannot_be_meant_is_said_before_work_begins(hub, trained, tmp_path, capsys):
    assert cli.main(["push", str(tmp_path / "nowhere"), NAME]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    assert cli.main(["push", str(trained), "a/b/c"]) == 2
    assert "REPO_ID a/b/c is not a repository's name" in capsys.readouterr().err
    assert not hub.requests


@pytest.fixture(scope="module")
def repository(trained, tmp_path_factory):
    """The run's repository as a push makes it."""
    folder = tmp_path_factory.mktemp("repository") / "tiny"
    prepare(trained, folder, NAME)
    return folder


@pytest.fixture
def squares_on_the_hub(hub, repository, tmp_path, monkeypatch):
    """The arguments of an evaluation of the model as it is on the Hub, which loads from here."""
    hub.repositories[NAME] = shutil.copytree(repository, tmp_path / "on the hub")
    hub.commits[NAME] = 1
    monkeypatch.setattr("hf_clip_cli.tasks.open_model", lambda *_: tiny("vit"))
    data = write_parquet(tmp_path / "squares.parquet", [{**row, "label": row["caption"]} for row in rows(1)])
    return ["eval", "zero-shot", "--model", NAME, "--data", str(data), "--no-cache", "--device", "cpu"]


def test_results_are_pushed_to_the_card_on_the_hub_once(hub, squares_on_the_hub, tmp_path, capsys):
    file, output = hub.repositories[NAME] / "README.md", tmp_path / "result.json"
    before = file.read_text()
    everything = {path: path.read_bytes() for path in file.parent.rglob("*") if path.is_file() and path != file}
    command = [*squares_on_the_hub, "--title", "my squares", "--push-to-card", "--output", str(output)]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"card: {hub.url}/{NAME}"
    result, after = json.loads(output.read_text()), file.read_text()
    card = ModelCard(after)
    card.validate()
    found = {(one.dataset_name, one.metric_type): one.metric_value for one in card.data.eval_results}
    assert found["squares", "accuracy"] == 0.5
    assert found["my squares", "accuracy"] == pytest.approx(result["top_1"], abs=1e-4)
    rows_of_table = [line for line in after.splitlines() if line.startswith("| my squares |")]
    assert len(rows_of_table) == 1 and f"| {result['top_1']:.3f} |" in rows_of_table[0]
    # Where the model-index and the row stand; all other text, and every other file, is as it was.
    assert ModelCard(before).text == card.text.replace(f"{rows_of_table[0]}\n", "")
    assert everything == {path: path.read_bytes() for path in everything}
    # Nothing is committed that is there.
    count = hub.commits[NAME]
    assert cli.main(command) == 0
    assert hub.commits[NAME] == count == 2 and file.read_text() == after
    # In place of the former: another set of templates.
    assert cli.main([*command, "--templates", "the {}"]) == 0
    again = ModelCard(file.read_text())
    assert again.text.count("| my squares |") == 1 and '"the {}"' in again.text
    assert len(again.data.eval_results) == len(found)


def test_a_card_is_made_on_the_hub_where_there_is_none(hub, squares_on_the_hub):
    file = hub.repositories[NAME] / "README.md"
    file.unlink()
    assert cli.main([*squares_on_the_hub, "--title", "my squares", "--push-to-card"]) == 0
    card = check_model_card(file.read_text())
    assert card.text.startswith("\n# tiny\n\n## Evaluation\n") and "| my squares |" in card.text


@pytest.mark.parametrize(
    ("failure", "code", "said", "has_worked"),
    [
        (("GET /api/models", 404), 2, f"--push-to-card: the card of {NAME} cannot be read", False),
        (("HEAD", 403), 2, f"--push-to-card: the card of {NAME} cannot be read", False),
        (("/commit/", 412), 1, f"the card of {NAME} could not be written", True),
    ],
)
def test_a_card_that_cannot_be_pushed_is_told(hub, squares_on_the_hub, capsys, failure, code, said, has_worked):
    """Before the work where it can be known; after it the numbers are printed in any case."""
    file = hub.repositories[NAME] / "README.md"
    before = file.read_text()
    hub.failures.append(failure)
    assert cli.main([*squares_on_the_hub, "--title", "my squares", "--push-to-card"]) == code
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    # What the numbers were computed in is said with them.
    assert said in lines[-1] and len(lines) == 1 + has_worked and TOKEN not in printed.err
    assert ("my squares" in printed.out) == has_worked and file.read_text() == before


def test_a_model_without_a_card_gets_one(tmp_path):
    model, processor = tiny("vit")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    result = {"task": "zero-shot", "title": "squares", "top_1": 0.5, "images": 2, "classes": 2}
    (tmp_path / "model" / "results.json").write_text(json.dumps({"evaluations": {"squares": result}}))
    prepare(tmp_path / "model", tmp_path / "prepared", NAME)
    card = ModelCard.load(tmp_path / "prepared" / "README.md")
    assert card.text.startswith("\n# tiny") and "| squares | 0.500 |" in card.text
    assert card.data.eval_results[0].metric_value == 0.5 and card.data.to_dict()["widget"]


def test_what_weights_do_not_say_is_said_to_push(hub, trained, tmp_path, capsys):
    """A training checkpoint of OpenCLIP's has no config; a folder that has one is sent in half precision."""
    model, processor = tiny("vit")
    state = export_tensors(model.state_dict(), open_clip_rules(model.config))
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "epoch_3.pt")
    assert cli.main(["push", str(tmp_path / "epoch_3.pt"), NAME]) == 1
    assert "does not say what model it is" in capsys.readouterr().err and not hub.commits
    about = {"config": model.config, "tokenizer": processor.tokenizer, "dtype": torch.float16}
    push(tmp_path / "epoch_3.pt", NAME, load_options=about)
    sent = load_file(hub.repositories[NAME] / "model.safetensors")
    assert torch.equal(sent["visual_projection.weight"], model.visual_projection.weight.half())
    assert cli.main(["push", str(trained), NAME, "--dtype", "bfloat16", "--device", "cpu"]) == 0
    assert load_file(hub.repositories[NAME] / "model.safetensors")["logit_scale"].dtype == torch.bfloat16
