"""A run that was interrupted continues bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import helpers
from valence.critics import BatchValue, TokenValue
from valence.data.collate import EncodedGroup
from valence.data.groups import Group
from valence.errors import UserError
from valence.objectives import DPO, DRO, PMPO, REBEL
from valence.sources.offline import OfflineSource
from valence.training import checkpoint
from valence.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from valence.training.learner import Learner, make_optimizer
from valence.training.reference import AdaptersOff, FrozenCopy


def rows(count: int = 7) -> list[EncodedGroup]:
    generator = torch.Generator().manual_seed(0)
    return [
        EncodedGroup(
            helpers.tokens(1 + n % 4, 16, generator),
            [helpers.tokens(2 + n % 3, 16, generator), helpers.tokens(3, 16, generator)],
            Group(f"p{n}", ("a", "b"), reward=(n % 3 - 1.0, 0.5)),
        )
        for n in range(count)
    ]


def run_state(
    optimizer: str = "adamw", critic: str = "none", *, kind: str = "llama", lora: bool = False,
    refresh_every: int = 0, objective: Any = None,
) -> tuple[Learner, OfflineSource]:  # fmt: skip
    """A fresh learner and source, always from the same start."""
    policy = helpers.policy(kind, lora=lora)
    value: Any = None
    if critic == "separate":
        value = TokenValue(policy.frozen_copy().requires_grad_(True))
    elif critic == "shared":
        value = TokenValue(policy, shared=True, per="prompt")
    elif critic == "scalar":
        value = BatchValue()
    if objective is None:
        value_of = {"none": "batch-mean", "separate": "token", "shared": "prompt", "scalar": "batch"}
        objective = DRO(tau=0.5, value=value_of[critic])
    optimizers = {"policy": make_optimizer(policy, kind=optimizer, lr=1e-2, weight_decay=0.01)}
    if value is not None:
        optimizers["value"] = make_optimizer(value, kind=optimizer, lr=3e-2, weight_decay=0.0)
    reference = AdaptersOff(policy) if lora else FrozenCopy(policy, refresh_every=refresh_every)
    learner = Learner(
        policy, objective, reference, optimizers, critic=value, warmup_steps=4, total_steps=9, micro_batch_size=2
    )
    return learner, OfflineSource(rows(), batch_size=3, pad=0, seed=4)


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    modules = [module for module in (learner.policy, learner.critic) if module is not None]
    return {
        f"{place}.{name}": part.detach().clone()
        for place, module in enumerate(modules)
        for name, part in module.named_parameters()
    }


def mark(learner: Learner, number: float) -> None:
    """Put a number into the weights, to tell one checkpoint of a step from another."""
    with torch.no_grad():
        next(learner.policy.parameters()).fill_(number)


def marked(path: Path) -> float:
    """The number that `mark` had put into the weights of a checkpoint."""
    learner, source = run_state()
    load_checkpoint(path, learner, source)
    assert learner.step in (0, 2)
    return float(next(learner.policy.parameters()).detach().flatten()[0])


def steps(learner: Learner, source: OfflineSource, number: int) -> list[dict[str, float]]:
    return [learner.update(source.next(), monitor=True) for _ in range(number)]


VARIANTS: list[dict[str, Any]] = [
    {"optimizer": kind, "critic": critic}
    for kind in ("adamw", "adafactor")
    for critic in ("none", "separate", "shared", "scalar")
] + [{"lora": True}, {"kind": "t5"}, {"refresh_every": 3}]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant.values())))
def test_a_resumed_run_is_the_unbroken_run(variant: dict[str, Any], tmp_path: Path) -> None:
    learner, source = run_state(**variant)
    start = weights(learner)
    steps(learner, source, 4)
    torch.manual_seed(12)
    path = save_checkpoint(tmp_path, learner, source)
    drawn = torch.rand(3)
    figures = steps(learner, source, 5)

    again, other_source = run_state(**variant)
    load_checkpoint(path, again, other_source)
    assert again.step == 4
    assert torch.equal(torch.rand(3), drawn)
    assert steps(again, other_source, 5) == figures
    ours, theirs = weights(again), weights(learner)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], part) for name, part in theirs.items())
    moved = [name for name, part in theirs.items() if not torch.equal(part, start[name])]
    assert len(moved) > 5


def test_nothing_is_pickled_and_only_the_newest_is_kept(tmp_path: Path) -> None:
    learner, source = run_state()
    for _ in range(3):
        steps(learner, source, 1)
        path = save_checkpoint(tmp_path, learner, source)
    assert [folder.name for folder in tmp_path.iterdir()] == [path.name] == ["step-00000003"]
    files = sorted(path.iterdir())
    assert [file.name for file in files] == ["state.json", "state.safetensors"]
    json.loads(files[0].read_text())
    load_file(files[1])
    assert not files[1].read_bytes().startswith(b"PK")
    assert b"torch._utils" not in files[1].read_bytes()


def test_a_step_can_be_saved_again(tmp_path: Path) -> None:
    learner, source = run_state()
    first = save_checkpoint(tmp_path, learner, source)
    mark(learner, 2)
    second = save_checkpoint(tmp_path, learner, source)
    assert first == second and checkpoints(tmp_path) == [second]
    assert marked(second) == 2


def test_a_checkpoint_cut_off_in_the_writing_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, source = run_state()
    steps(learner, source, 1)
    whole = save_checkpoint(tmp_path, learner, source)
    steps(learner, source, 1)

    def killed(self: Path, text: str, *args: Any, **kwargs: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, learner, source)
    assert len(list(tmp_path.iterdir())) == 2
    assert checkpoints(tmp_path) == [whole]
    again, other_source = run_state()
    load_checkpoint(whole, again, other_source)
    assert again.step == 1
    # The next one takes the draft's place.
    last = save_checkpoint(tmp_path, learner, source)
    assert list(tmp_path.iterdir()) == [last]


def test_a_draft_of_a_killed_process_is_ignored(tmp_path: Path) -> None:
    (tmp_path / ".draft-1").mkdir()
    (tmp_path / ".draft-1" / "state.json").write_text("{")
    (tmp_path / "step-00000009").mkdir()  # no state in it
    (tmp_path / "step-00000009.replaced").mkdir()
    assert checkpoints(tmp_path) == []
    assert checkpoints(tmp_path / "nowhere") == []


def test_drafts_of_killed_processes_are_removed_by_the_next_save(tmp_path: Path) -> None:
    for name in (".draft-1", ".draft-4000000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.safetensors").write_bytes(b"half")
    path = save_checkpoint(tmp_path, *run_state())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("killed_at", range(4))
def test_saving_a_step_again_always_leaves_a_whole_checkpoint(
    killed_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each of the four changes on disk: writing, moving aside, putting in place, deleting the old."""
    learner, source = run_state()
    steps(learner, source, 2)
    mark(learner, 1)
    save_checkpoint(tmp_path, learner, source)
    mark(learner, 2)
    changes = 0

    def until_killed(change: Any) -> Any:
        def perhaps(*args: Any, **kwargs: Any) -> Any:
            nonlocal changes
            changes += 1
            if changes > killed_at:
                raise KeyboardInterrupt
            return change(*args, **kwargs)

        return perhaps

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", until_killed(Path.write_text))
        patch.setattr(Path, "replace", until_killed(Path.replace))
        whole = shutil.rmtree
        patch.setattr(
            shutil, "rmtree", lambda path, **options: whole(path, **options) if options else until_killed(whole)(path)
        )
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, learner, source)
    assert changes == killed_at + 1
    assert marked(checkpoints(tmp_path)[-1]) == (2 if killed_at == 3 else 1)
    # The next save tidies up.
    mark(learner, 3)
    last = save_checkpoint(tmp_path, learner, source)
    assert list(tmp_path.iterdir()) == [last] and last.name == "step-00000002"
    assert marked(last) == 3


def test_a_checkpoint_is_written_from_ordinary_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the device: copies made before writing are on the CPU and share nothing with the learner."""
    written: dict[str, torch.Tensor] = {}

    def keep(found: dict[str, torch.Tensor], path: Path) -> None:
        written.update(found)
        save_file(found, path)

    monkeypatch.setattr(checkpoint, "save_file", keep)
    learner, source = run_state()
    steps(learner, source, 1)
    save_checkpoint(tmp_path, learner, source)
    places = {part.untyped_storage().data_ptr() for part in written.values()}
    assert {part.device.type for part in written.values()} == {"cpu"} and len(places) == len(written)
    assert not places & {part.untyped_storage().data_ptr() for part in learner.policy.parameters()}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_states_come_back_on_the_parameters_device(optimizer: str, tmp_path: Path) -> None:
    learner, source = run_state(optimizer)
    steps(learner, source, 2)
    path = save_checkpoint(tmp_path, learner, source)
    again, other_source = run_state(optimizer)
    again.policy.to("cuda")  # pyright: ignore[reportAttributeAccessIssue]
    load_checkpoint(path, again, other_source)
    for part, state in again.optimizers["policy"].state.items():
        assert part.device.type == "cuda"
        assert all(value.device.type == "cuda" for name, value in state.items() if name != "step")


def refused(path: Path, learner: Learner, source: OfflineSource) -> str:
    before = weights(learner)
    with pytest.raises(UserError) as caught:
        load_checkpoint(path, learner, source)
    after = weights(learner)
    assert all(torch.equal(part, before[name]) for name, part in after.items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    learner, source = run_state(critic="separate")
    path = save_checkpoint(tmp_path / "a", learner, source)
    assert "policy" in refused(path, *run_state(kind="gpt2", critic="separate"))
    assert "policy" in refused(path, *run_state(lora=True, critic="separate"))
    refused(path, *run_state(critic="scalar"))
    refused(path, *run_state(optimizer="adafactor", critic="separate"))
    refused(path, *run_state(objective=REBEL()))
    plain = save_checkpoint(tmp_path / "b", *run_state())
    refused(plain, *run_state(critic="separate"))
    refused(plain, *run_state(objective=DPO()))
    assert "PMPO" in refused(plain, *run_state(objective=PMPO()))


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
@pytest.mark.parametrize("what", ["cut", "gone", "nonsense"])
def test_a_damaged_checkpoint_is_a_user_error(name: str, what: str, tmp_path: Path) -> None:
    learner, source = run_state()
    path = save_checkpoint(tmp_path, learner, source)
    file = path / name
    if what == "gone":
        file.unlink()
    elif what == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.write_bytes(b'{"step": 3}')
    assert str(path) in refused(path, learner, source)
