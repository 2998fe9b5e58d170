"""`hf_clip.compat.clip` beside OpenAI's `clip`: the same programs, the same checkpoints, the same outputs."""

import copy
import inspect
import warnings
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from transformers import BatchFeature

from hf_clip import HFCLIPConfig, HFCLIPModel, convert
from hf_clip.compat import clip as drop_in
from tests.helpers.checkpoints import IMAGES, TEXTS, openai_model, openai_state, write_openai_archive
from tests.helpers.counts import soak_count
from tests.helpers.mock_hub import running_hub, use_in_this_process
from tests.helpers.peers import load_openai_clip
from tests.helpers.toys import tiny_clip

TOLERANCE = 1e-5
RESNET = {"vision_layers": (1, 1, 1, 1), "vision_width": 8, "vision_patch_size": None, "image_resolution": 64}
TRICKY = [
    *TEXTS,
    "",
    "  A  \n dog&amp;amp;cat  ",
    "it's <|endoftext|> within",
    "!<|startoftext|>x",
    "<|ENDOFTEXT|> naïve café ﬁ 北京 👩‍🚀",
    "\x1ca\x85b\u2028c",
]


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    return load_openai_clip()


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """A cache folder of OpenAI's with small models under two of its names."""
    folder = tmp_path_factory.mktemp("clip-cache")
    write_openai_archive(folder / "ViT-B-32.pt", openai_model())
    write_openai_archive(folder / "RN50.pt", openai_model(**RESNET))
    return folder


@pytest.fixture
def clips(peer, monkeypatch):
    """The peer, which takes the files as they are, and the drop-in."""
    monkeypatch.setattr(peer.clip, "_download", lambda url, root: f"{root}/{url.rpartition('/')[2]}")
    return peer, drop_in


def usage(clip: ModuleType, name: str, root) -> list:
    """OpenAI's program Usage."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, preprocess = clip.load(name, device=device, download_root=str(root))
    image = preprocess(IMAGES[1]).unsqueeze(0).to(device)
    text = clip.tokenize(["a diagram", "a dog", "a cat"]).to(device)
    with torch.no_grad():
        image_features = model.encode_image(image)
        text_features = model.encode_text(text)
        logits_per_image, logits_per_text = model(image, text)
        probs = logits_per_image.softmax(dim=-1).cpu().numpy()
    similarity = (image_features @ text_features.T).squeeze(0)
    return [image, text, image_features, text_features, logits_per_image, logits_per_text, probs, similarity]


def zero_shot(clip: ModuleType, name: str, root) -> list:
    """OpenAI's program Zero-Shot Prediction."""
    classes = ["apple", "snowman", "fire engine", "dog", "cat", "bird"]
    model, preprocess = clip.load(name, "cpu", download_root=root)
    image_input = preprocess(IMAGES[2]).unsqueeze(0)
    text_inputs = torch.cat([clip.tokenize(f"a photo of a {c}") for c in classes])
    with torch.no_grad():
        image_features = model.encode_image(image_input)
        text_features = model.encode_text(text_inputs)
    image_features /= image_features.norm(dim=-1, keepdim=True)
    text_features /= text_features.norm(dim=-1, keepdim=True)
    similarity = (100.0 * image_features @ text_features.T).softmax(dim=-1)
    values, indices = similarity[0].topk(5)
    return [values, indices]


def linear_probe(clip: ModuleType, name: str, root) -> list:
    """OpenAI's program Linear-probe evaluation, on squares of noise in two tones."""
    model, preprocess = clip.load(name, "cpu", download_root=root)
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 2
    noise = (
        generator.integers(0, 128, (40, 40, 48, 3), dtype=np.uint8)
        + (96 * labels).astype(np.uint8)[:, None, None, None]
    )
    with torch.no_grad():
        features = model.encode_image(torch.stack([preprocess(Image.fromarray(one)) for one in noise])).numpy()
    classifier = LogisticRegression(random_state=0, C=0.316, max_iter=1000).fit(features[:20], labels[:20])
    return [features, classifier.predict(features[20:])]


def assert_same(ours: list, theirs: list) -> None:
    for one, other in zip(ours, theirs, strict=True):
        # A parameter is a tensor to those who compute with it.
        assert isinstance(one, torch.Tensor) == isinstance(other, torch.Tensor)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        one, other = torch.as_tensor(one), torch.as_tensor(other)
        if one.is_floating_point():
            assert (one - other).abs().max() <= TOLERANCE * max(1, other.abs().max())
        else:
            assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B/32", "RN50"])
def test_openais_programs_give_the_same(name, clips, archives):
    for program in (usage, zero_shot, linear_probe) if name == "ViT-B/32" else (usage,):
        theirs, ours = (program(clip, name, archives) for clip in clips)
        assert_same(ours, theirs)
        # Pixels are the same to the bit.
        assert program is not usage or torch.equal(ours[0], theirs[0])


@pytest.mark.slow
def test_the_model_has_what_programs_read_of_it(clips, archives):
    theirs, ours = (clip.load("ViT-B/32", "cpu", download_root=archives)[0] for clip in clips)
    assert not ours.training
    for name in ("context_length", "vocab_size", "dtype"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.visual.input_resolution == theirs.visual.input_resolution == 32
    assert ours.visual.output_dim == theirs.visual.output_dim
    assert torch.equal(ours.logit_scale, theirs.logit_scale)
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert_same([ours.visual(image)], [theirs.visual(image)])
    assert ours.half().dtype == ours.visual.conv1.weight.dtype == torch.float16
    assert ours.float().dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B/32", "RN50"][: soak_count(1, 2)])
def test_state_dicts_pass_between_the_two(name, clips, archives, tmp_path):
    theirs, ours = (clip.load(name, "cpu", download_root=archives)[0] for clip in clips)
    state, same = ({key: one.clone() for key, one in model.state_dict().items()} for model in (theirs, ours))
    assert state.keys() == same.keys()
    assert all(torch.equal(state[key], same[key]) for key in state)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.01)
    # Within another module too, as programs wrap it.
    outer = torch.nn.ModuleDict({"clip": ours})
    theirs.load_state_dict({key.removeprefix("clip."): tensor for key, tensor in outer.state_dict().items()})
    again = copy.deepcopy(ours)
    torch.nn.ModuleDict({"clip": again}).load_state_dict({f"clip.{key}": one for key, one in state.items()})
    image = torch.randn(2, 3, ours.visual.input_resolution, ours.visual.input_resolution)
    with torch.no_grad():
        assert_same([ours.encode_image(image)], [theirs.encode_image(image)])
        assert (again.encode_image(image) - ours.encode_image(image)).abs().max() > 1e-3
    del state["logit_scale"]
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"logit_scale\"\."):
        ours.load_state_dict(state)
    skipped = ours.load_state_dict(state | {"more": torch.zeros(1)}, strict=False)
    assert (skipped.missing_keys, skipped.unexpected_keys) == (["logit_scale"], ["more"])
    with pytest.raises(RuntimeError, match=r"shapes differ in 1 tensor: .*position_embedding"):
        ours.load_state_dict({"positional_embedding": torch.zeros(3, 128)}, strict=False)
    assert all(torch.equal(ours.state_dict()[key], state[key]) for key in state)
    # What was fine-tuned and saved is loaded by the file's name, as there.
    torch.save(theirs.state_dict(), tmp_path / "finetuned.pt")
    saved, again = theirs.state_dict(), drop_in.load(tmp_path / "finetuned.pt", "cpu")[0].state_dict()
    assert all(torch.equal(saved[key], again[key]) for key in saved)


def learned_prompts(clip: ModuleType, root) -> torch.Tensor:
    """How programs that learn prompts (CoOp) run the text tower: on token embeddings that they made."""
    model, _ = clip.load("ViT-B/32", "cpu", download_root=root)
    ids = clip.tokenize(["a photo of a dog.", "a photo of an old apple tree."])
    with torch.no_grad():
        prompts = model.token_embedding(ids).type(model.dtype)
        prompts[:, 1:3] += 0.1
        x = (prompts + model.positional_embedding.type(model.dtype)).permute(1, 0, 2)
        x = model.transformer(x).permute(1, 0, 2)
        x = model.ln_final(x).type(model.dtype)
        return x[torch.arange(len(x)), ids.argmax(dim=-1)] @ model.text_projection


@pytest.mark.slow
def test_programs_that_learn_prompts_run(clips, archives):
    theirs, ours = (learned_prompts(clip, archives) for clip in clips)
    assert_same([ours], [theirs])


def test_token_ids_are_the_peers(peer):
    for options in ({"truncate": True}, {"context_length": 300}, {"context_length": 5, "truncate": True}):
        assert_same([drop_in.tokenize(TRICKY, **options)], [peer.tokenize(TRICKY, **options)])
    assert_same([drop_in.tokenize("one text")], [peer.tokenize("one text")])
    long = "apple " * 90
    for clip in (peer, drop_in):
        with pytest.raises(RuntimeError, match=f"Input {long} is too long for context length 77"):
            clip.tokenize(["short", long])
    with pytest.raises(TypeError, match="`texts` holds 3 of type int: pass a string, or a list of strings"):
        drop_in.tokenize(["a", 3])


def odd_images() -> list[Image.Image]:
    """Images of the modes and shapes in which the order of resizing and converting shows."""
    noise = np.random.default_rng(0).integers(0, 256, (45, 70, 4), dtype=np.uint8)
    colored = Image.fromarray(noise[..., :3])
    turned = Image.fromarray(noise[..., :3])
    turned.getexif()[0x0112] = 6
    one = Image.fromarray(noise[..., 0])
    modes = [colored.convert("P"), colored.convert("CMYK"), Image.fromarray(noise, "RGBA"), one, one.convert("1")]
    return [colored, turned, *modes, colored.resize((32, 32)), colored.resize((33, 32)), colored.resize((3, 90))]


def test_pixels_are_the_peers_for_images_of_any_mode(peer, archives):
    theirs, ours = peer.clip._transform(32), drop_in.load(archives / "ViT-B-32.pt", "cpu")[1]
    for image in odd_images():
        assert torch.equal(ours(image), theirs(image)), image
    with pytest.raises(TypeError, match=r"one PIL image, not str: call preprocess\(Image.open\('cat.png'\)\)"):
        ours("cat.png")


def test_names_and_signatures(peer):
    assert drop_in.available_models() == peer.available_models()
    assert set(drop_in.__all__) == set(peer.clip.__all__)
    for name in peer.clip.__all__:
        ours, theirs = (list(inspect.signature(getattr(clip, name)).parameters) for clip in (drop_in, peer))
        assert ours == theirs


@pytest.mark.slow
def test_a_name_is_looked_for_in_the_folder_then_on_the_hub(archives, tmp_path, monkeypatch):
    torch.save(openai_state(openai_model()), tmp_path / "model.pt")
    convert(tmp_path / "model.pt", to="transformers", output_dir=tmp_path / "repository")
    with running_hub({"openai/clip-vit-base-patch32": tmp_path / "repository"}) as hub:
        use_in_this_process(hub, monkeypatch, tmp_path / "cache")
        model, preprocess = drop_in.load("ViT-B/32", "cpu", download_root=tmp_path / "empty")
        with pytest.raises(RuntimeError, match="Model ViT-L/14 is not on this machine: there is no ViT-L-14.pt in "):
            drop_in.load("ViT-L/14", "cpu", download_root=tmp_path / "empty")
    by_file, _ = drop_in.load("ViT-B/32", "cpu", download_root=archives)
    image = preprocess(IMAGES[0])[None]
    with torch.no_grad():
        assert_same([model.encode_image(image)], [by_file.encode_image(image)])


def test_errors_are_one_line_and_show_the_right_call(peer, archives, tmp_path):
    for clip in (peer, drop_in):
        with pytest.raises(RuntimeError, match=r"Model ViT-B/99 not found; available models = \['RN50'"):
            clip.load("ViT-B/99", "cpu")
    with pytest.raises(RuntimeError, match=r"Model none.pt not found; available models = \['RN50'"):
        drop_in.load("none.pt", "cpu")
    (tmp_path / "broken.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(RuntimeError, match=r"broken\.pt") as error:
        drop_in.load(tmp_path / "broken.pt", "cpu")
    assert "\n" not in str(error.value)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, _ = drop_in.load(archives / "ViT-B-32.pt", "cpu", jit=True)
    assert "`jit=True` has no effect" in str(caught[0].message)
    with pytest.raises(
        TypeError, match=r"of type str \('a cat'\).*call model.encode_text\(clip.tokenize\(\['a cat'\]\)"
    ):
        model.encode_text("a cat")
    with pytest.raises(TypeError, match=r"BatchFeature.*call model.encode_image\(inputs\['pixel_values'\]\)"):
        model.encode_image(BatchFeature({"pixel_values": torch.zeros(1, 3, 32, 32)}))
    with pytest.raises(TypeError, match=r"call model.encode_image\(preprocess\(image\).unsqueeze\(0\)\)"):
        model.encode_image(IMAGES[0])


def test_a_tower_that_openai_has_not_keeps_its_own_names(tmp_path):
    plain, processor = tiny_clip(TEXTS)
    convnet = {"tower": "convnet", "stem_width": 8, "norm_group_size": 8, "stage_widths": [16, 32]}
    vision = plain.config.vision_config.to_dict() | convnet | {"stage_depths": [1, 1]}
    text = plain.config.text_config.to_dict()
    model = HFCLIPModel(HFCLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    taken, preprocess = drop_in.load(tmp_path)
    pixels = preprocess(IMAGES[1]).unsqueeze(0)
    wanted = model.eval().encode_image(processor(images=IMAGES[1], return_tensors="pt").pixel_values, normalize=False)
    torch.testing.assert_close(taken.encode_image(pixels), wanted)
    state = {name: tensor.clone() for name, tensor in taken.state_dict().items()}
    assert "vision_model.stem.weight" in state and "token_embedding.weight" in state
    taken.load_state_dict({name: tensor + 1 for name, tensor in state.items()})
    assert torch.equal(taken.state_dict()["vision_model.stem.weight"], state["vision_model.stem.weight"] + 1)
