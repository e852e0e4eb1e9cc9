"""Image rewards by models in local folders: a classifier, and the aesthetic predictor."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from valence.errors import UserError
from valence.rewards.image_loading import load_image_reward

LABELS = {0: "cat", 1: "tiger cat, Felis", 2: "golden_retriever", 3: "Crane", 4: "crane"}
SHARES = [0.1, 0.2, 0.3, 0.15, 0.25]
VISION: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 16, "patch_size": 8}  # fmt: skip
IMAGES = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)) for seed in (1, 2)]


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A tiny classifier that says `SHARES` of every image."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    model: Any = ViTForImageClassification(ViTConfig(**VISION, id2label=LABELS))
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor(SHARES).log())
    model.save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A tiny CLIP vision model of random weights with embeddings of 4 numbers, without a head."""
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=4)).save_pretrained(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16).save_pretrained(tmp_path)
    return tmp_path


def scored(folder: Path, head: dict[str, torch.Tensor]) -> list[Any]:
    save_file(head, folder / "head.safetensors")
    return load_image_reward(f"aesthetic:{folder}")(["p", "p"], IMAGES, metadata=[{}, {}])


@pytest.mark.parametrize(
    ("prompt", "row", "share"),
    [
        ("a photo of a Cat", {}, 0.1), ("a tiger cat on a cat", {}, 0.2), ("felis", {}, 0.2),
        ("one golden retriever", {}, 0.3), ("a crane", {}, 0.4), ("a cathedral", {}, None), ("", {}, None),
        ("a cat", {"label": "Golden Retriever"}, 0.3), ("a cat", {"label": 4}, 0.25), ("a cat", {"label": "dog"}, None),
        ("a cat", {"label": 9}, None), ("a cat", {"label": None}, 0.1),
    ],
)  # fmt: skip
def test_a_classifier_by_hand(classifier: Path, prompt: str, row: dict[str, Any], share: float | None) -> None:
    judge = load_image_reward(f"classifier:{classifier}")
    sure, found = judge(["a cat", prompt], IMAGES, metadata=[{}, row])
    assert sure == pytest.approx(math.log(0.1), abs=1e-5)
    assert found == (None if share is None else pytest.approx(math.log(share), abs=1e-5))
    assert judge.failures == ({"no finite number": 1} if share is None else {})


def test_a_classifier_looks_at_the_image(classifier: Path) -> None:
    """One at a time or together, an image's number is the same; different images have different ones."""
    from safetensors.torch import load_file

    held = load_file(classifier / "model.safetensors")
    held["classifier.weight"] = torch.randn(held["classifier.weight"].shape, generator=torch.Generator().manual_seed(0))
    save_file(held, classifier / "model.safetensors", metadata={"format": "pt"})
    judge = load_image_reward(f"classifier:{classifier}")
    found: Any = judge(["a cat"] * 40, [IMAGES[place % 2] for place in range(40)])
    assert found[0] != pytest.approx(found[1], abs=1e-3)
    assert found == pytest.approx([*judge(["a cat"] * 2, IMAGES)] * 20, abs=1e-5)


def test_a_folder_without_a_classifier_gives_one_clear_line(classifier: Path) -> None:
    def told(path: Path) -> str:
        with pytest.raises(UserError) as error:
            load_image_reward(f"classifier:{path}")
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "is no folder" in told(classifier / "missing")
    (classifier / "empty").mkdir()
    assert "cannot be loaded as a vision model" in told(classifier / "empty")
    config = json.loads((classifier / "config.json").read_text())
    unnamed = {"id2label": {str(index): f"LABEL_{index}" for index in LABELS}, "label2id": {}}
    (classifier / "config.json").write_text(json.dumps(config | unnamed))
    assert "no names for its labels" in told(classifier)


def test_a_model_without_its_classifying_weights_is_refused(clip: Path) -> None:
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(**VISION, id2label=LABELS)).save_pretrained(clip)
    with pytest.raises(UserError, match=r"lacks 2 of the weights of ViTForImageClassification, such as classifier"):
        load_image_reward(f"classifier:{clip}")


def test_an_aesthetic_score_is_linear_in_the_normalised_embedding(clip: Path) -> None:
    """Heads that read one number each of a unit vector: their squares add up to 1; weight and bias by hand."""
    axes = torch.eye(4)
    parts = np.asarray([scored(clip, {"weight": axes[number][None].clone()}) for number in range(4)])
    assert (parts**2).sum(0) == pytest.approx([1, 1], abs=1e-5)
    assert np.abs(parts[:, 0] - parts[:, 1]).max() > 1e-3
    weight = torch.tensor([[1.0, -2.0, 0.5, 3.0]])
    expected = parts.T @ weight[0].numpy()
    assert scored(clip, {"weight": weight, "bias": torch.tensor([5.0])}) == pytest.approx(expected + 5, abs=1e-5)
    # Layers in the order of their numbers, 10 after 2: ((3 e) w + 1) * -2.
    chain = {"layers.0.weight": 3 * axes, "layers.2.weight": weight, "layers.2.bias": torch.ones(1),
             "layers.10.weight": torch.tensor([[-2.0]])}  # fmt: skip
    assert scored(clip, chain) == pytest.approx(-2 * (3 * expected + 1), abs=1e-4)


def test_the_hubs_own_clip_folder_will_do(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Both halves of CLIP in one file, and an old name for the processor; nothing is printed."""
    from transformers import CLIPConfig, CLIPModel

    text = {key: VISION[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    text |= {"num_attention_heads": 2, "vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=VISION | {"projection_dim": 4}, projection_dim=4)
    ).save_pretrained(tmp_path)
    sizes = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 16, "crop_size": 16, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(sizes))
    capfd.readouterr()
    found = [scored(tmp_path, {"weight": torch.eye(4)[axis][None].clone()}) for axis in range(4)]
    assert (np.asarray(found) ** 2).sum(0) == pytest.approx([1, 1], abs=1e-5)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"weight": torch.ones(1, 5)}, r"weight has the shape \[1, 5\], and must take 4 numbers"),
        ({"weight": torch.ones(2, 4)}, "gives 2 numbers for an image"),
        ({"other": torch.ones(4)}, "gives 4 numbers for an image"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(clip: Path, head: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        scored(clip, head)


def test_missing_aesthetic_files_are_named_with_where_they_come_from(clip: Path) -> None:
    with pytest.raises(UserError, match=r"lacks head\.safetensors: .*clip-vit-large-patch14.*linearMSE\.pth") as told:
        load_image_reward(f"aesthetic:{clip}")
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match=r"lacks config\.json, model\.safetensors, preprocessor_config\.json, head"):
        load_image_reward(f"aesthetic:{clip}/missing")
    (clip / "head.safetensors").write_bytes(b"none")
    with pytest.raises(UserError, match="cannot be read"):
        load_image_reward(f"aesthetic:{clip}")
