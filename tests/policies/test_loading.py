"""Loading models: the folders that load, and the one-line message for those that do not."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import helpers
from helpers import assert_close, assert_near, make_batch
from valence.errors import UserError
from valence.policies import checks, loading
from valence.policies.dropout import disable_dropout, dropout_restored
from valence.policies.language import CausalLM, Seq2SeqLM
from valence.policies.loading import carried, load_language_policy
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


def changed(folder: Path, out: Path, name: str = "config.json", **values: Any) -> Path:
    """A copy of a model's folder (or the folder itself) with other values in one of its files; None removes a value."""
    if out != folder:
        shutil.copytree(folder, out, dirs_exist_ok=True)
    fields = json.loads((out / name).read_text()) | values
    (out / name).write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))
    return out


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
        # peft ignores names that do not fit, as long as one does.
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
    assert_near(found[1], found[0])
    assert subject.model.is_gradient_checkpointing


@pytest.mark.skipif(
    not Path(carried("small-lm"), "config.json").is_file(), reason="the small model is not in this checkout"
)
def test_the_small_model_that_valence_carries() -> None:
    subject = load_language_policy("small-lm")
    assert subject.tokenizer.eos_token_id is not None
    ids = subject.tokenizer("the film is")["input_ids"]
    text = subject.sample(helpers.context_of(ids), 1, torch.Generator().manual_seed(0)).output
    assert text is not None and isinstance(text[0][0], str)


def test_a_second_adapter_on_an_adapter_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    load_language_policy(str(folders["llama"]), lora_rank=2).save(tmp_path / "first")
    message = refused(tmp_path / "first", lora_rank=2)
    assert str(tmp_path / "first") in message and "leave out `lora_rank`" in message
    # The way that the message names: merge, then align the merged copy.
    load_language_policy(str(tmp_path / "first")).save(tmp_path / "merged")
    assert load_language_policy(str(tmp_path / "merged"), lora_rank=2).trainable()


@pytest.mark.parametrize("device", ["foo", "", "cuda:99", "meta", "mps:5"])
def test_a_device_that_is_not_here(device: str, folders: dict[str, Path]) -> None:
    message = refused(folders["llama"], device=device)
    assert f"`device` is {device!r}" in message and "give cpu" in message


def test_cuda_without_a_gpu(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "sees 0 GPUs" in refused(folders["llama"], device="cuda")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_attention_heads": 3}, "not a multiple of the number of attention heads"),
        ({"num_attention_heads": 0}, "modulo by zero"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_act": "nope"}, "KeyError 'nope'"),
        ({"num_key_value_heads": 2}, "mismatch"),
    ],
)
def test_a_config_that_makes_no_sense(
    values: dict[str, Any], words: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    message = refused(changed(folders["llama"], tmp_path, **values))
    assert str(tmp_path) in message and words in message


def test_an_encoder_decoder_says_its_start_token_somewhere(folders: dict[str, Path], tmp_path: Path) -> None:
    """transformers 5 leaves decoder_start_token_id out of a plain T5's config."""
    by_generation = changed(folders["t5"], tmp_path / "a", decoder_start_token_id=None)
    changed(by_generation, by_generation, "generation_config.json", decoder_start_token_id=5)
    assert load_language_policy(str(by_generation)).core.config.decoder_start_token_id == 5
    by_padding = changed(by_generation, tmp_path / "b", "generation_config.json", decoder_start_token_id=None)
    subject = load_language_policy(str(by_padding))
    assert subject.core.config.decoder_start_token_id == helpers.PAD
    # It is the same model as the test's own T5, and a saved one names its start token.
    whole = load_language_policy(str(folders["t5"]))
    batch = make_batch()
    with torch.no_grad():
        ours, theirs = (each.likelihood(batch, None, LOG_PROB).log_prob for each in (subject, whole))
    assert torch.equal(ours, theirs)
    subject.save(tmp_path / "c")
    again = load_language_policy(str(tmp_path / "c"))
    assert again.core.config.decoder_start_token_id == helpers.PAD


def test_an_encoder_decoder_without_any_start_token(folders: dict[str, Path], tmp_path: Path) -> None:
    names: dict[str, Any] = {"decoder_start_token_id": None, "pad_token_id": None}
    bare = changed(folders["t5"], tmp_path, **names)
    changed(bare, bare, "generation_config.json", **names)
    changed(bare, bare, "tokenizer_config.json", pad_token=None)
    fields = json.loads((bare / "config.json").read_text())
    # Without the key, T5's default would be read.
    (bare / "config.json").write_text(json.dumps(fields | {"pad_token_id": None}))
    assert "decoder_start_token_id" in refused(bare)


def test_a_tokenizer_larger_than_the_embedding(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["llama"], tmp_path, dirs_exist_ok=True)
    helpers.word_tokenizer(17).save_pretrained(tmp_path)
    message = refused(tmp_path)
    assert "ids up to 16" in message and "has 16 embeddings" in message
    helpers.word_tokenizer(12).save_pretrained(tmp_path)  # a smaller one loads
    load_language_policy(str(tmp_path))


def test_a_model_that_cannot_be_run(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise IndexError("no such\nlayer")

    monkeypatch.setattr(CausalLM, "action_hidden", broken)
    message = refused(folders["llama"])
    assert "LlamaForCausalLM cannot be run" in message and "no such layer" in message


def test_weights_that_are_no_numbers(folders: dict[str, Path], tmp_path: Path) -> None:
    subject = helpers.policy("llama")
    with torch.no_grad():
        subject.core.model.norm.weight.fill_(float("nan"))
    subject.save(tmp_path)
    assert "not finite" in refused(tmp_path)


@pytest.mark.parametrize(("room", "where"), [(loading, "_load"), (checks, "_both_logits")])
def test_a_model_too_large_for_the_device(
    room: ModuleType, where: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr(room, where, full)
    message = refused(folders["llama"])
    assert '`dtype="bfloat16"`' in message and "`lora_rank=16`" in message and "cpu" in message


DROPOUT = {
    "llama": {"attention_dropout": 0.3},
    "gpt2": {"attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1, "summary_first_dropout": 0.1},
    "t5": {"dropout_rate": 0.1, "classifier_dropout": 0.0},
    "bart": {"dropout": 0.1, "attention_dropout": 0.0, "activation_dropout": 0.0},
}


@pytest.mark.parametrize("kind", DROPOUT)
@pytest.mark.parametrize("how", ["plain", "twice", "copied"])
def test_a_saved_config_keeps_its_dropout(kind: str, how: str, tmp_path: Path) -> None:
    expected = DROPOUT[kind]
    helpers.network(kind).save_pretrained(tmp_path / "theirs")
    helpers.word_tokenizer().save_pretrained(tmp_path / "theirs")
    subject = load_language_policy(str(tmp_path / "theirs"))
    if how == "twice":
        disable_dropout(subject.model)
    if how == "copied":
        subject = copy.deepcopy(subject)

    def config() -> dict[str, float]:
        return {name: getattr(subject.core.config, name) for name in expected}

    zero = dict.fromkeys(expected, 0.0)
    assert config() == zero
    with dropout_restored(subject.model):
        assert config() == expected
        subject.model.save_pretrained(tmp_path / "ours")
        # The modules themselves stay without dropout.
        assert not any(module.p for module in subject.modules() if isinstance(module, torch.nn.Dropout))
    assert config() == zero
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "ours"))
    drops = {name for name in before if "drop" in name}
    assert drops >= expected.keys() and {name: after[name] for name in drops} == {name: before[name] for name in drops}
    with pytest.raises(RuntimeError, match="disk"), dropout_restored(subject.model):
        raise RuntimeError("the disk is full")
    assert config() == zero


def test_dropout_is_restored_under_adapters_and_after_a_merge(tmp_path: Path) -> None:
    helpers.network("gpt2").save_pretrained(tmp_path / "theirs")
    helpers.word_tokenizer().save_pretrained(tmp_path / "theirs")
    adapted = load_language_policy(str(tmp_path / "theirs"), lora_rank=2)
    for part in (adapted.model, adapted.core):
        with dropout_restored(part):
            assert adapted.core.config.resid_pdrop == 0.1
        assert adapted.core.config.resid_pdrop == 0.0
    adapted.save(tmp_path / "adapter")
    merged = load_language_policy(str(tmp_path / "adapter"))
    with dropout_restored(merged.model):
        assert merged.core.config.resid_pdrop == 0.1
