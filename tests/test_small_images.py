"""The image model that Valence carries: it loads without a network, and its digits are digits, each another one."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import valence

pytest.importorskip("diffusers")
pytest.importorskip("sklearn")

FOLDER = Path(valence.__file__).parent / "assets" / "small-digits"
SCRIPT = Path(__file__).parent.parent / "scripts" / "train_small_images.py"


@cache
def recipe() -> Any:
    """The script that trained it, as a module."""
    spec = importlib.util.spec_from_file_location("train_small_images", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def pipeline() -> Any:
    """As a stranger loads it: no dtype named."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    loaded: Any = DiffusionPipeline.from_pretrained(FOLDER, safety_checker=None, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@cache
def samples() -> tuple[Tensor, Tensor]:
    """(images [60,3,32,32] in [-1, 1], the digits asked for [60]) from fixed noise, 8 steps."""
    labels = torch.arange(10).repeat(6)
    return recipe().draw(pipeline(), labels, 1.0, 0), labels


def accuracy(images: Tensor, labels: Tensor) -> float:
    """By a classifier fitted on scans that the model was not trained on."""
    judge = recipe().fit_judge(recipe().load_scans()[1])
    return float((judge.predict(recipe().ink_of(images)) == labels.numpy()).mean())


def test_the_folder_is_small_and_holds_weights_as_safetensors_only() -> None:
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 6e6
    assert {file.suffix for file in files} == {".json", ".safetensors", ".log"}


def test_it_loads_in_float32_with_attention_in_every_block() -> None:
    unet = pipeline().unet
    assert {parameter.dtype for part in pipeline().components.values() if isinstance(part, torch.nn.Module)
            for parameter in part.parameters()} == {torch.float32}  # fmt: skip
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        names = {name.split(".attn2.")[1] for name, _ in block.named_modules() if ".attn2." in name}
        assert {"to_q", "to_k", "to_v", "to_out.0"} <= names
    assert (unet.config.in_channels, unet.config.sample_size, unet.config.time_cond_proj_dim) == (4, 8, 32)


def test_samples_are_the_digits_asked_for() -> None:
    images, labels = samples()
    assert images.shape == (60, 3, 32, 32)
    assert accuracy(images, labels) >= 0.9
    assert accuracy(images, (labels + 1) % 10) <= 0.1


def test_samples_of_one_digit_differ_in_shape_and_colour() -> None:
    images, labels = samples()
    shapes = torch.from_numpy(recipe().ink_of(images))
    for digit in range(10):
        of_one = images[labels == digit]
        apart = torch.pdist(of_one.flatten(1)) / of_one[0].numel() ** 0.5
        assert apart.min() > 0.1
        assert torch.pdist(shapes[labels == digit]).min() > 0.1


def test_noise_between_the_steps_is_drawn_from_the_generator() -> None:
    start, label = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), recipe().FORMS[0].format("two")

    def sample(seed: int, guidance_scale: float = 1.0) -> Tensor:
        return pipeline()(label, latents=start, num_inference_steps=8, guidance_scale=guidance_scale, output_type="pt",
                          generator=torch.Generator().manual_seed(seed)).images  # fmt: skip

    assert torch.equal(sample(0), sample(0))
    assert (sample(0) - sample(1)).abs().max() > 0.05
    assert (sample(0) - sample(0, 3.0)).abs().max() > 1e-3  # the guidance reaches the network


def test_any_text_has_tokens_and_other_words_are_not_unknown() -> None:
    tokenizer = pipeline().tokenizer
    assert tokenizer.tokenize("A handwritten digit three") == ["a</w>", "handwritten</w>", "digit</w>", "three</w>"]
    assert tokenizer.unk_token not in tokenizer.tokenize("Zürich, 7 cats!")
