"""Loading: what a folder may hold, and the one line that says what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import helpers
from helpers import assert_close, make_batch
from valence.errors import UserError
from valence.policies.language import CausalLM, Seq2SeqLM
from valence.policies.loading import load_language_policy, small_lm_path
from valence.training.reference import AdaptersOff, FrozenCopy

LOG_PROB = frozenset({"log_prob"})
pytestmark = pytest.mark.filterwarnings("ignore:Moving the following attributes")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved model of each kind."""
    found = {}
    for kind in ("llama", "gpt2", "t5"):
        found[kind] = tmp_path_factory.mktemp(kind)
        helpers.policy(kind).save(found[kind])
    return found


def refused(model: object, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        load_language_policy(str(model), **options)  # pyright: ignore[reportArgumentType]
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def test_what_was_saved_is_loaded_ready_to_train(folders: dict[str, Path]) -> None:
    for kind, expected in (("llama", CausalLM), ("gpt2", CausalLM), ("t5", Seq2SeqLM)):
        subject = load_language_policy(str(folders[kind]), temperature=0.7, max_new_tokens=9)
        assert isinstance(subject, expected)
        assert subject.training and subject.temperature == 0.7 and subject.max_new_tokens == 9
        assert all(part.requires_grad for part in subject.parameters())
        measured = [subject.likelihood(make_batch(), None, LOG_PROB).log_prob for _ in range(2)]
        assert torch.equal(*measured), "dropout is on"


def test_no_folder(tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "nowhere")
    assert "no such folder" in refused("./nowhere")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_text("x")
    assert str(tmp_path) in refused(tmp_path / "model.bin")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    assert str(tmp_path) in refused(tmp_path)


def test_a_hub_id_that_is_not_there() -> None:
    assert "no-such-model" in refused("nobody/no-such-model")


def test_weights_cut_short(folders: dict[str, Path], tmp_path: Path) -> None:
    for path in folders["llama"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert str(tmp_path) in refused(tmp_path)


def test_a_config_that_is_not_json(folders: dict[str, Path], tmp_path: Path) -> None:
    for path in folders["llama"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text("{")
    assert str(tmp_path) in refused(tmp_path)


def test_a_model_that_is_no_language_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 16}))
    assert str(tmp_path) in refused(tmp_path)


def test_weights_in_a_pickle_are_not_read(folders: dict[str, Path], tmp_path: Path) -> None:
    for path in folders["llama"].iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(helpers.network("llama").state_dict(), tmp_path / "pytorch_model.bin")
    assert str(tmp_path) in refused(tmp_path)


def test_unknown_dtype(folders: dict[str, Path]) -> None:
    message = refused(folders["llama"], dtype="float8")
    assert "float8" in message and "bfloat16" in message


@pytest.mark.parametrize("targets", ["nothing_like_this", "q_proj,nor_this", ""])
def test_lora_targets_that_do_not_fit(folders: dict[str, Path], targets: str) -> None:
    if targets == "q_proj,nor_this":
        # peft takes those that fit: at least one has to.
        subject = load_language_policy(str(folders["llama"]), lora_rank=2, lora_targets=targets)
        assert subject.trainable() and all("q_proj" in name for name in subject.trainable())
        return
    assert repr(targets) in refused(folders["llama"], lora_rank=2, lora_targets=targets)


def test_a_tokenizer_without_an_end_token(folders: dict[str, Path], tmp_path: Path) -> None:
    subject = helpers.policy("llama")
    subject.tokenizer.eos_token = None
    subject.save(tmp_path)
    assert "eos_token" in refused(tmp_path)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_an_adapter_folder_is_merged_into_its_base(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    subject = load_language_policy(str(folders[kind]), lora_rank=2)
    helpers.shake(subject)
    with torch.no_grad():
        adapted = subject.likelihood(make_batch(), AdaptersOff(subject), frozenset({"log_prob", "ref_log_prob"}))
    subject.save(tmp_path)
    again = load_language_policy(str(tmp_path))
    with torch.no_grad():
        merged = again.likelihood(make_batch(), None, LOG_PROB).log_prob
    assert_close(merged, adapted.log_prob, 2e-5)
    assert (adapted.log_prob - adapted.ref_log_prob).abs().max() > 1e-3
    assert all(part.requires_grad for part in again.parameters())
    assert not any("lora" in name for name, _ in again.named_parameters())


def test_an_adapter_in_a_pickle_is_not_read(folders: dict[str, Path], tmp_path: Path) -> None:
    load_language_policy(str(folders["llama"]), lora_rank=2).save(tmp_path)
    torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    assert str(tmp_path) in refused(tmp_path)


def test_an_adapter_whose_base_is_gone(folders: dict[str, Path], tmp_path: Path) -> None:
    load_language_policy(str(folders["llama"]), lora_rank=2).save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "gone")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert "gone" in refused(tmp_path)


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_gradient_checkpointing_gives_the_same_gradient(kind: str, lora_rank: int, folders: dict[str, Path]) -> None:
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        subject = load_language_policy(
            str(folders[kind]), lora_rank=lora_rank, gradient_checkpointing=checkpointing
        )  # fmt: skip
        reference = AdaptersOff(subject) if lora_rank else FrozenCopy(subject)
        helpers.shake(subject)
        batch = make_batch()
        measured = subject.likelihood(batch, reference, frozenset({"log_prob", "ref_kl"}))
        grads = {"log_prob": torch.ones_like(measured.log_prob), "ref_kl": torch.ones_like(measured.log_prob)}
        subject.backward(batch, reference, measured, grads)
        found.append(helpers.gradients(subject))
    assert found[0].keys() == found[1].keys() and found[0]
    for name, part in found[0].items():
        assert_close(found[1][name], part, 1e-4)
    assert subject.model.is_gradient_checkpointing


@pytest.mark.skipif(not (small_lm_path() / "config.json").is_file(), reason="the small model is not in this checkout")
def test_the_small_model_that_valence_carries() -> None:
    subject = load_language_policy("small-lm")
    assert subject.tokenizer.eos_token_id is not None
    ids = subject.tokenizer("the film is")["input_ids"]
    text = subject.sample(helpers.context_of(ids), 1, torch.Generator().manual_seed(0)).output
    assert text is not None and isinstance(text[0][0], str)
