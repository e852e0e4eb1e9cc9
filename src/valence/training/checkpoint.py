"""Checkpoints: what a run needs to continue bit for bit, as safetensors and JSON, never a pickle."""

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
from valence.protocols import Source
from valence.training.learner import Learner

PREFIX = "step-"
REPLACED = ".replaced"
"""Ends the name of a checkpoint while a newer one of the same step takes its place."""
DRAFT = ".draft-"


def _detach_tensors(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Put each tensor of a tree into `tensors`; returns the tree as JSON values, with the tensors' names."""
    if isinstance(tree, Tensor):
        # A copy in ordinary memory: a GPU may be full, and safetensors refuses tensors that share memory.
        tensors[path] = tree.detach().to("cpu", copy=True).contiguous()
        return {"__tensor__": path}
    if isinstance(tree, dict):
        # JSON keys are strings; optimizer states have integer keys.
        return {"__dict__": [[key, _detach_tensors(value, f"{path}.{key}", tensors)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return [_detach_tensors(value, f"{path}.{place}", tensors) for place, value in enumerate(tree)]
    return tree


def _attach_tensors(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """The tree that `_detach_tensors` was called on; its tuples are lists."""
    if isinstance(tree, list):
        return [_attach_tensors(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if "__tensor__" in tree:
        return tensors[tree["__tensor__"]]
    return {key: _attach_tensors(value, tensors) for key, value in tree["__dict__"]}


def _weights(learner: Learner) -> dict[str, dict[str, torch.nn.Parameter]]:
    """The parameters that learn, and those of a reference that follows them."""
    modules = {"policy": learner.policy, "critic": learner.critic, "reference": learner.reference}
    return {name: module.trainable() for name, module in modules.items() if module is not None}


def _method(learner: Learner) -> dict[str, str]:
    """The names of objective and optimizers: a resumed run must have the same."""
    kinds = {name: type(optimizer).__name__ for name, optimizer in learner.optimizers.items()}
    return {"objective": type(learner.objective).__name__} | kinds


def save_checkpoint(folder: Path, learner: Learner, source: Source) -> Path:
    """Write `folder/step-N`, then delete older checkpoints and the drafts of killed processes; returns its path."""
    tensors: dict[str, Tensor] = {}
    state = learner.objective.state()
    tree = {
        "step": learner.step,
        "method": _method(learner),
        "source": source.state_dict(),
        "weights": _weights(learner),
        "optimizers": {name: optimizer.state_dict() for name, optimizer in learner.optimizers.items()},
        "objective": {} if state is None else state.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "torch": torch.__version__,
    }
    values = _detach_tensors(tree, "", tensors)
    final, draft = folder / f"{PREFIX}{learner.step:08d}", folder / f"{DRAFT}{os.getpid()}"
    for old in folder.glob(f"{DRAFT}*"):
        shutil.rmtree(old, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(tensors, draft / "state.safetensors")
    (draft / "state.json").write_text(json.dumps(values))
    if final in checkpoints(folder):
        # It remains a checkpoint under another name until the new one is in place.
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
    """Complete checkpoints, oldest first."""
    complete = [path for path in folder.glob(f"{PREFIX}*") if (path / "state.json").is_file()]
    return sorted(complete, key=lambda path: (path.name.removesuffix(REPLACED), not path.name.endswith(REPLACED)))


def load_checkpoint(path: Path, learner: Learner, source: Source) -> None:
    """Restore `learner` and `source`, which must have been made with the settings of the saved run.

    Raises:
        UserError: the checkpoint cannot be read, or is of another model or method.
    """
    try:
        tree = _attach_tensors(json.loads((path / "state.json").read_text()), load_file(path / "state.safetensors"))
        saved = tree["method"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        advice = "delete it, or start a new run without `resume`"
        raise UserError(f"the checkpoint {path} cannot be read ({error}): {advice}") from error
    if saved != _method(learner):
        was, now = (" with ".join(method.values()) for method in (saved, _method(learner)))
        raise UserError(f"the checkpoint {path} is of {was}, not {now}: resume with the same settings")
    _load_weights(path, tree["weights"], learner)
    for name, optimizer in learner.optimizers.items():
        try:
            optimizer.load_state_dict(tree["optimizers"][name])
        except ValueError as error:
            raise UserError(
                f"the checkpoint {path} is of another version of valence, whose {name} optimizer groups parameters "
                "differently: resume with that version, or start a new run with another `out`"
            ) from error
    if (state := learner.objective.state()) is not None:
        state.load_state_dict(tree["objective"])
    source.load_state_dict(tree["source"])
    learner.step = tree["step"]
    torch.set_rng_state(tree["rng"])
    if tree["cuda_rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(tree["cuda_rng"])


@torch.no_grad()
def _load_weights(path: Path, saved: dict[str, dict[str, Tensor]], learner: Learner) -> None:
    for name, parameters in _weights(learner).items():
        tensors = saved.get(name, {})
        if {key: part.shape for key, part in parameters.items()} != {key: part.shape for key, part in tensors.items()}:
            raise UserError(f"the checkpoint {path} is of another {name}: resume with the same `model` and settings")
        for key, part in parameters.items():
            part.copy_(tensors[key])
