"""`hf_clip.compat.open_clip` beside `open_clip`: the same programs, the same checkpoints, the same outputs."""

import json
from types import ModuleType

import pytest
import torch

from hf_clip import load
from hf_clip.compat import creating, pretrained
from hf_clip.compat import open_clip as drop_in
from hf_clip.model import configuration_hf_clip as configuration
from tests.compat.test_clip import TRICKY, assert_same, odd_images
from tests.helpers.checkpoints import IMAGES, TEXTS, open_clip_config, write_open_clip_folder
from tests.helpers.mock_hub import running_hub, use_in_this_process
from tests.helpers.peers import load_open_clip

PREPROCESSING = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear"}
SIGMOID = {"init_logit_bias": -3.0, "custom_text": True}


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    return load_open_clip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of OpenCLIP's: OpenAI's vocabulary, a transform of its own."""
    folder = tmp_path_factory.mktemp("open_clip") / "small"
    text = {"vocab_size": 49408, "context_length": 77, "hf_tokenizer_name": ""}
    write_open_clip_folder(folder, open_clip_config(text=text), PREPROCESSING)
    for file in folder.glob("*token*"):
        file.unlink()
    return folder


def usage(open_clip: ModuleType, name: str) -> list:
    """OpenCLIP's program Usage."""
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    model.eval()
    tokenizer = open_clip.get_tokenizer(name)
    image = preprocess(IMAGES[1]).unsqueeze(0)
    text = tokenizer(["a diagram", "a dog", "a cat"])
    with torch.no_grad():
        image_features = model.encode_image(image)
        text_features = model.encode_text(text)
        raw = [image_features.clone(), text_features.clone()]
        image_features /= image_features.norm(dim=-1, keepdim=True)
        text_features /= text_features.norm(dim=-1, keepdim=True)
        text_probs = (100.0 * image_features @ text_features.T).softmax(dim=-1)
        called, logits = model(image, text), model.get_logits(image, text)
        normalized = model.encode_image(image, normalize=True)
    return [image, text, *raw, text_probs, normalized, *called, *logits]


def zero_shot(open_clip: ModuleType, name: str) -> list:
    """OpenCLIP's zero-shot builder, with functions and with texts as templates."""
    model, preprocess = open_clip.create_model_from_pretrained(name, return_transform=True)
    tokenizer, names = open_clip.get_tokenizer(name), open_clip.IMAGENET_CLASSNAMES[:7]
    build, model = open_clip.build_zero_shot_classifier, model.eval()
    of_functions = build(model, tokenizer, names, open_clip.SIMPLE_IMAGENET_TEMPLATES, num_classes_per_batch=3)
    of_texts = build(model, tokenizer, names, ["a {}.", "two of {}!"], num_classes_per_batch=None, use_tqdm=True)
    with torch.no_grad():
        images = torch.stack([preprocess(image) for image in IMAGES])
        logits = 100.0 * model.encode_image(images, normalize=True) @ of_functions
    return [of_functions, of_texts, logits.softmax(dim=-1)]


@pytest.mark.slow
def test_openclips_programs_give_the_same(peer, folder):
    name = f"local-dir:{folder}"
    for program in (usage, zero_shot):
        theirs, ours = (program(open_clip, name) for open_clip in (peer, drop_in))
        assert_same(ours, theirs)
        # Pixels are the same to the bit.
        assert program is not usage or torch.equal(ours[0], theirs[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vocabulary of its own", "sigmoid, longest edge"])
def test_other_kinds_of_models_give_the_same(kind, peer, tmp_path):
    is_sigmoid = kind.startswith("sigmoid")
    settings = {"resize_mode": "longest", "fill_color": 90} if is_sigmoid else {"resize_mode": "squash"}
    write_open_clip_folder(tmp_path / "small", open_clip_config(**SIGMOID if is_sigmoid else {}), settings)
    name = f"local-dir:{tmp_path / 'small'}"
    theirs, ours = (open_clip.create_model(name).eval() for open_clip in (peer, drop_in))
    ids = [open_clip.get_tokenizer(name)(TEXTS) for open_clip in (peer, drop_in)]
    assert_same([ids[1]], [ids[0]])
    assert_same([drop_in.get_tokenizer(name)(TEXTS[:2], 9)], [peer.get_tokenizer(name)(TEXTS[:2], 9)])
    preprocess = [open_clip.create_model_and_transforms(name)[2] for open_clip in (peer, drop_in)]
    for image in odd_images():
        assert torch.equal(preprocess[1](image), preprocess[0](image)), image
    images = torch.stack([preprocess[0](image) for image in IMAGES])
    with torch.no_grad():
        assert_same(ours(images, ids[0]), theirs(images, ids[0]))
        theirs.output_dict = ours.output_dict = True
        one, other = ours(text=ids[0]), theirs(text=ids[0])
    assert one.keys() == other.keys() and one["image_features"] is None
    assert_same([one["text_features"], one["logit_scale"]], [other["text_features"], other["logit_scale"]])
    state, same = theirs.state_dict(), ours.state_dict()
    assert state.keys() == same.keys() and all(torch.equal(state[key], same[key]) for key in state)
    ours.load_state_dict(state)


@pytest.mark.slow
def test_options_of_create_model(peer, folder):
    name, image = f"local-dir:{folder}", torch.randn(2, 3, 48, 48)
    ids = peer.tokenize(["one", "two texts"])
    options = {"force_image_size": 48, "force_quick_gelu": True, "output_dict": True, "force_context_length": 40}
    theirs, ours = (open_clip.create_model(name, **options).eval() for open_clip in (peer, drop_in))
    with torch.no_grad():
        one, other = ours(image, ids[:, :40]), theirs(image, ids[:, :40])
    assert_same(list(one.values()), list(other.values()))
    assert drop_in.create_model(name).training and peer.create_model(name).training
    half = drop_in.create_model(name, precision="bf16")
    assert half.encode_image(torch.randn(1, 3, 32, 32)).dtype == half.dtype == torch.bfloat16
    asked = {"image_mean": (0.1, 0.2, 0.3), "image_interpolation": "bicubic", "image_resize_mode": "squash"}
    made = [open_clip.create_model_and_transforms(name, **asked) for open_clip in (peer, drop_in)]
    assert torch.equal(made[1][2](IMAGES[2]), made[0][2](IMAGES[2]))
    assert made[1][0].visual.image_size == made[0][0].visual.image_size == (32, 32)
    # The transform for training draws the same parts from one seed.
    for image in (*IMAGES, IMAGES[0].resize((10, 90)), IMAGES[0].resize((90, 10))):
        torch.manual_seed(3)
        expected = made[0][1](image)
        torch.manual_seed(3)
        assert torch.equal(made[1][1](image), expected)
    for wrong, said in ({"pretrained_image": True}, "hf_clip.join_towers"), ({"precision": "fp8"}, "use fp32"):
        with pytest.raises(ValueError, match=said):
            drop_in.create_model(name, **wrong)
    with pytest.raises(ValueError, match="`aug_cfg` has color_jitter: `scale` alone is there"):
        drop_in.create_model_and_transforms(name, aug_cfg={"scale": (0.5, 1.0), "color_jitter": 0.3})
    with pytest.raises(TypeError, match="create_model has no argument `force_text_size`. The nearest is `force_"):
        drop_in.create_model(name, force_text_size=3)


@pytest.fixture
def small_architecture(peer, folder, tmp_path, monkeypatch):
    """A name under which the peer and the drop-in both know the folder's architecture."""
    (tmp_path / "configs").mkdir()
    model_cfg = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    del model_cfg["text_cfg"]["hf_tokenizer_name"]
    for name, more in (("tiny", {}), ("tiny-quickgelu", {"quick_gelu": True})):
        (tmp_path / "configs" / f"{name}.json").write_text(json.dumps(model_cfg | more))
    monkeypatch.setattr(peer.factory, "_MODEL_CONFIGS", dict(peer.factory._MODEL_CONFIGS))
    monkeypatch.setattr(peer.factory, "_MODEL_CONFIG_PATHS", [])
    peer.add_model_config(tmp_path / "configs")
    config = load(folder)[0].config
    known = {}
    for name, act in (("tiny", "gelu"), ("tiny-quickgelu", "quick_gelu")):
        shape = json.loads(config.to_json_string(use_diff=False))
        keep = {
            "vision_config": [
                "tower", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size",
                "patch_size",
            ],
            "text_config": [
                "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "max_position_embeddings",
            ],
        }  # fmt: skip
        towers = {
            tower: {key: shape[tower][key] for key in keys} | {"hidden_act": act} for tower, keys in keep.items()
        }
        known[name] = {
            "name": name,
            "aliases": [f"open_clip/{name}"],
            "config": {"model_type": "hf_clip", "projection_dim": shape["projection_dim"], **towers},
            "preprocessing": {},
            "tokenizer": {"name": "clip"},
        }
    real = configuration.read_architectures()
    for module in (configuration, creating):
        monkeypatch.setattr(module, "read_architectures", lambda: json.loads(json.dumps(real | known)))
    creating.known_models.cache_clear()
    yield "tiny"
    creating.known_models.cache_clear()


@pytest.mark.slow
def test_names_with_files_and_tags(peer, folder, small_architecture, tmp_path, monkeypatch):
    file = folder / "open_clip_model.safetensors"
    theirs = peer.create_model("tiny", pretrained=str(file)).eval()
    ours, preprocess = drop_in.create_model_from_pretrained("tiny", pretrained=str(file))
    ours.eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert_same([ours.encode_image(image)], [theirs.encode_image(image)])
    their_transform = peer.create_model_and_transforms("tiny", str(file))[2]
    assert torch.equal(preprocess(IMAGES[0]), their_transform(IMAGES[0]))
    assert drop_in.get_tokenizer("tiny")(TRICKY).equal(peer.get_tokenizer("tiny")(TRICKY))
    # A tag: from the folder where OpenCLIP keeps what it downloaded, or the Hub; with its own transform.
    own = {"mean": [0.5] * 3, "std": [0.5] * 3}
    by_url = pretrained.Pretrained("https://somewhere/tiny-weights.safetensors", "", True, own)
    by_hub = pretrained.Pretrained("", "owner/tiny/", False, own)
    table = {"tiny": {"by_url": by_url, "by_hub": by_hub, "openai": by_url}, "tiny-quickgelu": {"by_url": by_url}}
    for module in (creating, pretrained):
        monkeypatch.setattr(module, "read_pretrained", lambda: table)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tiny-weights.safetensors").write_bytes(file.read_bytes())
    with running_hub({"owner/tiny": folder}) as hub:
        use_in_this_process(hub, monkeypatch, tmp_path / "hub")
        of_hub, preprocess = drop_in.create_model_from_pretrained("tiny", "BY-HUB")
        assert list(preprocess.image_processor.image_mean) == [0.5] * 3
        with pytest.warns(UserWarning, match="QuickGELU mismatch.*Use 'tiny-quickgelu'"):
            of_url = drop_in.create_model("tiny", "by_url", cache_dir=tmp_path / "cache")
        quick = drop_in.create_model("tiny-quickgelu", "by_url", cache_dir=tmp_path / "cache")
        openais = drop_in.create_model("tiny", "openai", cache_dir=tmp_path / "cache")
        with pytest.raises(RuntimeError, match=r"tiny cannot be loaded: there is no tiny-weights\.safetensors in "):
            drop_in.create_model("tiny", "openai")
    with torch.no_grad():
        expected = ours.encode_image(image)
        for model in (of_hub, of_url):
            assert_same([model.eval().encode_image(image)], [expected])
        assert_same([openais.eval().encode_image(image)], [quick.eval().encode_image(image)])
        assert (quick.encode_image(image) - expected).abs().max() > 1e-3
    with pytest.raises(RuntimeError, match="neither a file nor a tag of tiny: it has by_url, by_hub, openai"):
        drop_in.create_model("tiny", "laion9b")
    with pytest.raises(RuntimeError, match="has no weights: name a tag or a file"):
        drop_in.create_model_from_pretrained("tiny")
    assert drop_in.create_model("tiny").encode_image(image).shape == (2, 40)


@pytest.mark.slow
def test_repositories_and_folders_of_other_formats(folder, tmp_path, monkeypatch):
    with running_hub({"owner/tiny": folder}) as hub:
        use_in_this_process(hub, monkeypatch, tmp_path / "hub")
        by_hub = usage(drop_in, "hf-hub:owner/tiny")
        with pytest.raises(RuntimeError, match=r"hf-hub:owner/none cannot be loaded: .*no such model") as error:
            drop_in.create_model("hf-hub:owner/none")
    assert_same(by_hub, usage(drop_in, f"local-dir:{folder}"))
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="There is no folder 'nowhere'"):
        drop_in.create_model("local-dir:nowhere")


def test_names_are_the_peers(peer):
    known = drop_in.list_models()
    assert len(known) >= 131 and known == [name for name in peer.list_models() if name in known]
    pairs = [(name, tag) for name, tag in peer.list_pretrained() if name in known]
    assert drop_in.list_pretrained() == pairs and len(pairs) > 150
    assert drop_in.list_pretrained(as_str=True)[0] == "RN50:openai"
    assert drop_in.IMAGENET_CLASSNAMES == tuple(peer.IMAGENET_CLASSNAMES)
    for name in ("OPENAI_IMAGENET_TEMPLATES", "SIMPLE_IMAGENET_TEMPLATES"):
        ours, theirs = ([template("{a} b") for template in getattr(clip, name)] for clip in (drop_in, peer))
        assert ours == theirs
    assert drop_in.OPENAI_DATASET_MEAN == peer.OPENAI_DATASET_MEAN
    with pytest.raises(RuntimeError, match="'ViT-B-99' not found. Nearest: ViT-B-"):
        drop_in.create_model("ViT-B/99")
    with pytest.raises(AttributeError, match="has no 'ClipLoss'; it has IMAGENET_CLASSNAMES"):
        drop_in.ClipLoss  # noqa: B018


def test_where_weights_are_and_their_transforms_are_the_peers(peer):
    for name, tag in drop_in.list_pretrained():
        ours = drop_in.read_pretrained()[name][tag]
        theirs = peer.get_pretrained_cfg(name, tag)
        assert (ours.url, ours.hf_hub) == (theirs["url"], theirs["hf_hub"])
        assert ours.quick_gelu == theirs.get("quick_gelu", False)
        default = {"mean": peer.OPENAI_DATASET_MEAN, "std": peer.OPENAI_DATASET_STD}
        settings = default | {"interpolation": "bicubic", "resize_mode": "shortest"} | ours.preprocessing
        assert all(settings[key] == theirs[key] or tuple(settings[key]) == tuple(theirs[key]) for key in settings)


def test_token_ids_are_the_peers(peer):
    texts = [*TRICKY, "a <end_of_text> b", "!<start_of_text>"]
    assert_same([drop_in.tokenize(texts), drop_in.tokenize("x", 9)], [peer.tokenize(texts), peer.tokenize("x", 9)])
    theirs, ours = (clip.get_tokenizer("ViT-B-32") for clip in (peer, drop_in))
    for name in ("context_length", "vocab_size", "sot_token_id", "eot_token_id", "all_special_ids"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.encode(texts[0]) == theirs.encode(texts[0])
    with pytest.warns(UserWarning, match="'nothing' is not in list_models"):
        assert drop_in.get_tokenizer("nothing")("a").equal(peer.get_tokenizer("nothing")("a"))


def test_wrong_kinds_are_told_the_right_call(folder):
    model = drop_in.create_model(f"local-dir:{folder}")
    with pytest.raises(TypeError, match=r"call model.encode_text\(tokenizer\(\['a cat'\]\)\)"):
        model.encode_text("a cat")
    for wrong in ({"classnames": "cat"}, {"templates": "a {}"}):
        arguments = {"classnames": ["cat"], "templates": ["a {}"]} | wrong
        with pytest.raises(TypeError, match=f"`{next(iter(wrong))}` is of type str: pass a list"):
            drop_in.build_zero_shot_classifier(model, drop_in.get_tokenizer("ViT-B-32"), **arguments)
