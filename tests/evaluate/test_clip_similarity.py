"""CLIP similarity with a tiny random CLIP of our own; no hub."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from emptyset.errors import ImagesError, MissingExtraError, TeacherError
from emptyset.evaluate.clip_similarity import ClipEncoder, clip_similarity
from emptyset.images.image_set import ImageSet
from emptyset.teachers.teacher import InputSpec

transformers = pytest.importorskip("transformers")

SPEC = InputSpec((3, 10, 12), (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
SIDE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP, both towers, as `save_pretrained` writes it."""
    path = tmp_path_factory.mktemp("clip")
    config = transformers.CLIPConfig(
        text_config={
            "hidden_size": 8, "intermediate_size": 9, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 11, "max_position_embeddings": 7,
        },
        vision_config={
            "hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 2,
            "num_attention_heads": 3, "image_size": SIDE, "patch_size": 4,
        },
        projection_dim=6,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.CLIPModel(config).save_pretrained(path)
    processor = {
        "do_resize": True, "size": {"shortest_edge": SIDE}, "do_center_crop": True,
        "crop_size": {"height": SIDE, "width": SIDE}, "resample": 3,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25],
        "image_processor_type": "CLIPImageProcessor",
    }  # fmt: skip
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


def images(count: int, targets: torch.Tensor | None = None) -> ImageSet:
    drawn = torch.Generator().manual_seed(1)
    return ImageSet(SPEC.normalise(torch.rand(count, 3, 10, 12, generator=drawn)), targets)


def by_the_whole_model(folder: Path, given: ImageSet) -> torch.Tensor:
    """Embeddings by the model with both towers, and photos resized by Pillow."""
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    shown = []
    for pixels in SPEC.pixels(given.images):
        channels = []
        for channel, mean, std in zip(pixels, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), strict=True):
            # 10 rows become 16, 12 columns 19; the middle 16 are kept.
            photo = Image.fromarray(channel.numpy()).resize((19, 16), 3)
            channels.append((np.asarray(photo).clip(0, 1)[:, 1:17] - mean) / std)
        shown.append(torch.from_numpy(np.stack(channels)).float())
    with torch.no_grad():
        seen = model.vision_model(pixel_values=torch.stack(shown)).pooler_output
        return model.visual_projection(seen).double()


def test_it_is_the_mean_cosine_of_the_whole_models_embeddings(folder: Path) -> None:
    given = images(5, torch.tensor([2, 0, 2, 1, 2]))
    found = clip_similarity(given, SPEC, ClipEncoder.load(folder), batch_size=2)
    units = torch.nn.functional.normalize(by_the_whole_model(folder, given), dim=1)
    cosines = {(i, j): float(units[i] @ units[j]) for i in range(5) for j in range(i)}
    assert found.similarity == pytest.approx(sum(cosines.values()) / 10, abs=2e-4)
    within = [cosines[2, 0], cosines[4, 0], cosines[4, 2]]
    assert found.similarity_within_class == pytest.approx(sum(within) / 3, abs=2e-4)
    assert (found.count, found.model) == (5, str(folder))
    assert found.to_json()["count"] == 5


def test_without_targets_there_is_nothing_within_a_class(folder: Path) -> None:
    assert (
        clip_similarity(images(3), SPEC, ClipEncoder.load(folder)).similarity_within_class is None
    )


def test_equal_images_are_alike_and_grey_ones_count_as_colour(folder: Path) -> None:
    encoder, spec = ClipEncoder.load(folder), InputSpec((1, 9, 7), (0.5,), (0.25,))
    grey = torch.rand(1, 1, 9, 7, generator=torch.Generator().manual_seed(2))
    same = ImageSet(spec.normalise(grey).expand(3, -1, -1, -1).contiguous())
    assert clip_similarity(same, spec, encoder).similarity == pytest.approx(1.0, abs=1e-6)
    colour = encoder.embeddings(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(encoder.embeddings(grey), colour)


def test_loading_leaves_the_random_state_and_says_nothing(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_rng_state()
    ClipEncoder.load(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")


def test_a_folder_without_a_processor_is_taken_as_one_of_openais(
    folder: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    encoder = ClipEncoder.load(tmp_path)
    assert encoder.embeddings(torch.rand(2, 3, 20, 30)).shape == (2, 6)


def test_what_cannot_be_compared_is_refused(folder: Path) -> None:
    encoder = ClipEncoder.load(folder)
    with pytest.raises(ImagesError, match="at least 2"):
        clip_similarity(images(1), SPEC, encoder)
    with pytest.raises(ImagesError, match="1 or 3 channels"):
        encoder.embeddings(torch.rand(2, 4, 8, 8))


def test_without_a_network_the_message_says_to_name_a_folder() -> None:
    with pytest.raises(TeacherError, match=r"nobody/clip: .*name its folder"):
        ClipEncoder.load("nobody/clip")


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="no CLIP model"):
        ClipEncoder.load(tmp_path)
    config = transformers.ViTConfig(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=3, intermediate_size=8,
        image_size=8, patch_size=4,
    )  # fmt: skip
    with torch.random.fork_rng():
        transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(TeacherError, match="CLIP"):
        ClipEncoder.load(tmp_path / "vit")


def test_a_checkpoint_without_the_image_side_is_refused_and_nothing_is_drawn(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    weights = load_file(folder / "model.safetensors")
    rest = {name: value for name, value in weights.items() if not name.startswith("visual_")}
    save_file(rest, tmp_path / "model.safetensors", {"format": "pt"})
    before = torch.get_rng_state()
    with pytest.raises(TeacherError, match=r"1 weights .* \(visual_projection\.weight\)"):
        ClipEncoder.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r'pip install "emptyset\[diffusion\]"'):
        ClipEncoder.load("openai/clip-vit-base-patch32")
