"""Sources that cannot be loaded: one line says what the file or folder is, why the Hub gives none, what to do."""

import traceback
from types import SimpleNamespace

import httpx2
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_clip import load
from hf_clip.conversion import ConversionError, hub_files
from hf_clip.conversion.errors import CheckpointNotFoundError
from tests.helpers.checkpoints import TEXTS, openai_model, openai_state
from tests.helpers.toys import tiny_clip

CLIP = {"visual.conv1.weight": torch.zeros(4, 3, 2, 2), "token_embedding.weight": torch.zeros(5, 4)}
LORA = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"
FILES = [
    ({LORA: torch.zeros(2, 4)}, "holds an adapter of PEFT, not a model.*pass its folder"),
    ({f"model.{name}": tensor for name, tensor in CLIP.items()}, "its tensors under the prefix 'model.'.*is missing"),
    ({"model_state_dict": CLIP, "epoch": 3}, "is missing: it is not a complete CLIP"),
    ({"weights_of": {"a": {"b": 1}}, "epoch": 3}, "holds no tensors, but 'epoch', 'weights_of': save the model's"),
    ({"state_dict": {}, "optimizer": {}}, "holds no tensors"),
    ({"conv.weight": torch.ones(1)}, "no CLIP of a known format; its tensors are conv.weight"),
    (CLIP, "is missing: it is not a complete CLIP"),
]


def line_of(source, **options) -> str:
    with pytest.raises(ConversionError) as error:
        load(source, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("content, problem", FILES)
def test_a_file_that_is_no_clip_is_called_what_it_is(content, problem, tmp_path):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ConversionError, match=problem):
        load(tmp_path / "weights.pt")
    assert str(tmp_path / "weights.pt") in line_of(tmp_path / "weights.pt")


@pytest.mark.parametrize("content", ["{", "[1]", "null", "[" * 100_000, '{"model_type": ["clip"]}', "\udcff"])
def test_a_config_that_is_no_settings_is_named(content, tmp_path):
    (tmp_path / "config.json").write_text(content, errors="surrogateescape")
    torch.save({}, tmp_path / "pytorch_model.bin")
    assert str(tmp_path / "config.json") in line_of(tmp_path)


def response(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "http://hub.invalid/api/models/owner/name"))


ANSWERS = [
    (GatedRepoError("no", response=response(403)), "owner must grant access first: ask for it on its page"),
    (RepositoryNotFoundError("no", response=response(404)), "no such model that may be seen: check the name"),
    (RevisionNotFoundError("no", response=response(404)), "no such `revision`: check the branch, tag or commit"),
    (HfHubHTTPError("no", response=response(500)), "answers with an error .*: try again later"),
    (httpx2.ConnectTimeout("timed\nout"), "cannot be reached .timed out.: check the network .HF_ENDPOINT, proxies."),
    (OSError("no route"), "cannot be reached .no route.*HF_HUB_OFFLINE=1"),
]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Settings of a Hub that is asked through `api.model_info`, whose answers a test gives."""
    monkeypatch.setattr(hub_files.constants, "HF_HUB_OFFLINE", False)
    api = SimpleNamespace(asked=[], answer=None)

    def model_info(name, revision, timeout):
        api.asked.append((name, revision, timeout))
        if isinstance(api.answer, Exception):
            raise api.answer
        return api.answer

    api.model_info = model_info
    monkeypatch.setattr(hub_files, "HfApi", lambda token: api)
    return api


@pytest.mark.parametrize("answer, problem", ANSWERS, ids=lambda value: type(value).__name__)
def test_the_hub_is_asked_once_and_its_answer_told_in_a_line(answer, problem, hub, tmp_path):
    hub.answer = answer
    with pytest.raises(ConversionError, match=f"'owner/name' is no file or folder here.*{problem}") as error:
        load("owner/name", revision="v1", cache_dir=tmp_path)
    assert "\n" not in str(error.value)
    assert hub.asked == [("owner/name", "v1", hub_files.HUB_TIMEOUT_SECONDS)]


def test_a_cache_that_cannot_be_written_is_named(hub, tmp_path, monkeypatch):
    hub.answer = SimpleNamespace(sha="0" * 40, siblings=[SimpleNamespace(rfilename="config.json")])

    def fetch(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(hub_files, "hf_hub_download", fetch)
    line = line_of("owner/name", cache_dir=tmp_path)
    assert f"The cache {tmp_path} cannot be written" in line and "HF_HOME or `cache_dir`" in line


def test_arguments_that_cannot_be_meant_are_refused_before_anything_is_read(tmp_path):
    for options, problem in (
        ({"device": "cuda:99"}, "`device=cuda:99` cannot be used"),
        ({"device": "nonsense"}, "`device=nonsense` cannot be used"),
        ({"dtype": "int8"}, "`dtype=int8` is no floating-point type"),
        ({"dtype": "float99"}, "`dtype=float99` is no floating-point type"),
    ):
        with pytest.raises(ValueError, match=problem):
            load(tmp_path / "nowhere", **options)
    with pytest.raises(CheckpointNotFoundError, match="there is no .*nowhere"):
        load(tmp_path / "nowhere")


def test_the_callers_config_and_tokenizer_stay_as_they_are(tmp_path):
    """Each is used for several checkpoints; loading fits a model and its processor to each other."""
    model, processor = tiny_clip(TEXTS)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    config, tokenizer = model.config, processor.tokenizer
    tokenizer.model_max_length = 1000
    config.text_config.pad_token_id = None
    before = config.to_dict()
    loaded, fitted = load(tmp_path / "weights.pt", config=config, tokenizer=tokenizer, hidden_act="gelu")
    assert loaded.config.text_config.hidden_act == "gelu" != config.text_config.hidden_act
    assert fitted.tokenizer.model_max_length < 1000 == tokenizer.model_max_length
    assert config.to_dict() == before and loaded.config.text_config.pad_token_id is not None


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"source_format": "clip"}, "`source_format=clip` is not known: use hf_clip, transformers, open_clip, openai"),
        ({"hidden_act": "quickgelu"}, "`hidden_act=quickgelu` is not known: use quick_gelu, gelu"),
        ({"hidden_act": "silu"}, "`hidden_act=silu` is not known"),
    ],
)
def test_what_contradicts_weights_is_refused(options, problem, tmp_path):
    torch.save(CLIP, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=problem):
        load(tmp_path / "weights.pt", **options)


def test_large_files_that_are_no_settings_do_not_matter(tmp_path):
    for part in tiny_clip(TEXTS):
        part.save_pretrained(tmp_path)
    (tmp_path / "captions.json").write_bytes(b" " * 5_000_000)
    assert load(tmp_path)[0].source_format == "hf_clip"
    (tmp_path / "generation_config.json").write_bytes(b" " * 5_000_000)
    assert "generation_config.json has 5000000 bytes" in line_of(tmp_path)


def test_a_folder_without_a_config_is_its_one_file_of_weights(tmp_path):
    torch.save(openai_state(openai_model()), tmp_path / "model.pt")
    (tmp_path / "README.md").write_text("of this model")
    assert load(tmp_path)[0].source_format == "openai"
    torch.save(CLIP, tmp_path / "other.bin")
    assert "pass the file: model.pt, other.bin" in line_of(tmp_path)
    (tmp_path / "model.pt").unlink()
    assert "other.bin" in line_of(tmp_path)


def test_an_error_whose_cause_is_told_has_one_traceback(hub):
    hub.answer = httpx2.ConnectTimeout("timed out")
    with pytest.raises(ConversionError, match="cannot be reached .timed out") as error:
        load("owner/name")
    shown = "".join(traceback.format_exception(error.value))
    assert shown.count("Traceback (most recent call last)") == 1
