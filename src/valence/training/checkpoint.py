"""Everything a run needs to go on bit for bit: safetensors and JSON, never a pickle; written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from valence.errors import UserError
from valence.training.learner import Learner

PREFIX = "step-"
REPLACED = ".replaced"
"""Ends the name of a checkpoint that a newer one of the same step is taking the place of."""
DRAFT = ".draft-"


def _tensors(tree: Any, path: str, found: dict[str, Tensor]) -> Any:
    """The tree with each tensor replaced by a name in `found`."""
    if isinstance(tree, Tensor):
        # A copy of its own in ordinary memory: a GPU may be full, and safetensors refuses tensors that share theirs.
        found[path] = tree.detach().to("cpu", copy=True).contiguous()
        return {"__tensor__": path}
    if isinstance(tree, dict):
        # JSON keys are strings; optimizer states have integer keys.
        return {"__dict__": [[key, _tensors(value, f"{path}.{key}", found)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return [_tensors(value, f"{path}.{place}", found) for place, value in enumerate(tree)]
    return tree


def _restore(tree: Any, found: dict[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_restore(value, found) for value in tree]
    if isinstance(tree, dict) and "__tensor__" in tree:
        return found[tree["__tensor__"]]
    if isinstance(tree, dict):
        return {key: _restore(value, found) for key, value in tree["__dict__"]}
    return tree


def _modules(learner: Learner) -> dict[str, Any]:
    """What holds weights that learn or follow."""
    modules = {"policy": learner.policy, "critic": learner.critic, "reference": learner.reference}
    return {name: module for name, module in modules.items() if module is not None and hasattr(module, "trainable")}


def _method(learner: Learner) -> dict[str, str]:
    """What a run may not change on the way: its objective and optimizers, by name."""
    kinds = {name: type(optimizer).__name__ for name, optimizer in learner.optimizers.items()}
    return {"objective": type(learner.objective).__name__} | kinds


def save_checkpoint(folder: Path, learner: Learner, source: Any, extra: dict[str, Any]) -> Path:
    """Write `folder/step-N`, and only then drop the older ones and what killed processes left.

    Args:
        extra: whatever else the run must remember; JSON values.
    """
    found: dict[str, Tensor] = {}
    state = learner.objective.state()
    tree = {
        "step": learner.step,
        "method": _method(learner),
        "source": source.state_dict(),
        "extra": extra,
        "weights": {name: dict(module.trainable()) for name, module in _modules(learner).items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in learner.optimizers.items()},
        "objective": {} if state is None else state.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "torch": torch.__version__,
    }
    skeleton = _tensors(tree, "", found)
    final = folder / f"{PREFIX}{learner.step:08d}"
    draft = folder / f"{DRAFT}{os.getpid()}"
    for left in folder.glob(f"{DRAFT}*"):
        shutil.rmtree(left, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(found, draft / "state.safetensors")
    (draft / "state.json").write_text(json.dumps(skeleton))
    if final in checkpoints(folder):
        # It stays a checkpoint under its other name until the new one is in place.
        aside = final.with_name(final.name + REPLACED)
        shutil.rmtree(aside, ignore_errors=True)
        final.replace(aside)
    else:
        shutil.rmtree(final, ignore_errors=True)
    draft.replace(final)
    for old in checkpoints(folder)[:-1]:
        shutil.rmtree(old)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    whole = [path for path in folder.glob(f"{PREFIX}*") if (path / "state.json").is_file()]
    return sorted(whole, key=lambda path: (path.name.removesuffix(REPLACED), not path.name.endswith(REPLACED)))


def load_checkpoint(path: Path, learner: Learner, source: Any) -> dict[str, Any]:
    """Put a checkpoint's state into `learner` and `source`; returns its `extra`.

    Raises:
        UserError: it is of another model or method.
    """
    try:
        tree = _restore(json.loads((path / "state.json").read_text()), load_file(path / "state.safetensors"))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"the checkpoint {path} cannot be read ({error}); delete it, or start without --resume"
        ) from error
    if tree.get("method", _method(learner)) != _method(learner):
        was, now = (" with ".join(method.values()) for method in (tree["method"], _method(learner)))
        raise UserError(f"the checkpoint {path} is of {was}, not {now}: resume with the same settings")
    for name, module in _modules(learner).items():
        mine, theirs = module.trainable(), tree["weights"].get(name, {})
        if {key: part.shape for key, part in mine.items()} != {key: part.shape for key, part in theirs.items()}:
            raise UserError(f"the checkpoint {path} is of another {name}: resume with the same --model and settings")
        with torch.no_grad():
            for key, part in mine.items():
                part.copy_(theirs[key])
    for name, optimizer in learner.optimizers.items():
        try:
            optimizer.load_state_dict(tree["optimizers"][name])
        except ValueError as error:
            raise UserError(
                f"the checkpoint {path} is of another version of valence, whose {name} optimizer groups weights "
                "otherwise: resume with that version, or begin anew with another --out"
            ) from error
    state = learner.objective.state()
    if state is not None:
        state.load_state_dict(tree["objective"])
    source.load_state_dict(tree["source"])
    learner.step = tree["step"]
    torch.set_rng_state(tree["rng"])
    if tree["cuda_rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(tree["cuda_rng"])
    return tree["extra"]
