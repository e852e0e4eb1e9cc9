"""The Triton kernels on CPU tensors, by Triton's interpreter: what a GPU would compute, slowly (see conftest.py)."""

from __future__ import annotations

import os
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from valence.policies import fused
from valence.policies.fused import LinearHead, fused_likelihoods, likelihoods_and_gradients

pytest.importorskip("triton", reason="needs triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("kernels run on CPU tensors by the interpreter alone", allow_module_level=True)

ALL = frozenset({"log_prob", "ref_log_prob", "ref_kl", "policy_kl"})
M, H, G, V = 37, 20, 12, 75
"""None of them a multiple of a block of 16."""
EXTRAS = [{}, {"bias": True}, {"cap": 2.0, "pre": 0.7, "post": 1.3}, {"cap": 1.5, "bias": True}]


@pytest.fixture(scope="module")
def unchecked() -> ModuleType:
    """The kernels' file, loaded without the type checks that the tests add to Valence: Triton reads its source."""
    place = Path(fused.__file__).with_name("fused_triton.py")
    spec = spec_from_file_location("fused_triton", place)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def kernels(unchecked: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Use the kernels on any device, with small blocks and the vocabulary in several parts."""
    for name, size in {"ROWS": 16, "COLUMNS": 16, "DEPTH": 16, "PROGRAMS": 9}.items():
        monkeypatch.setattr(unchecked, name, size)
    monkeypatch.setattr(fused, "KERNEL_COLUMNS", 32)
    monkeypatch.setattr(fused, "_kernels", lambda hidden, dtype: unchecked)
    return unchecked


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def case(*, bias: bool = False, scale: float = 1.0, **extras: float) -> Any:
    def draw(*shape: int) -> Tensor:
        return scale * torch.randn(shape)

    head = LinearHead(draw(V, H).requires_grad_(), draw(V).requires_grad_() if bias else None, **extras)
    other = LinearHead(draw(V, G), draw(V), cap=extras.get("cap"), post=0.9)
    return draw(M, H).requires_grad_(), draw(M, G), torch.randint(V, (M,)), head, other


def off(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((ours - theirs).abs().max().detach() / theirs.abs().max().clamp(min=1e-6).detach())


def run(*, ahead: bool, given: Any, dtype: torch.dtype | None = None) -> tuple[dict[str, Tensor], list[Tensor]]:
    hidden, ref_hidden, targets, head, other = given
    generator = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(M, generator=generator) for name in ("log_prob", "ref_kl")}
    if ahead:
        parts, *grads = likelihoods_and_gradients(
            hidden, ref_hidden, targets, head, other, weights, needs=ALL, dtype=dtype
        )
        return parts, [grad for grad in grads if grad is not None]
    parts = fused_likelihoods(hidden, ref_hidden, targets, head, other, needs=ALL, dtype=dtype)
    loss = torch.stack([(weights[name] * parts[name]).sum() for name in weights]).sum()
    learned = [part for part in (hidden, head.weight, head.bias) if part is not None]
    return parts, list(torch.autograd.grad(loss, learned))


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("extras", EXTRAS)
def test_forward_and_backward_are_plain_torchs(
    extras: dict[str, Any], ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = case(**extras)
    parts, grads = run(ahead=ahead, given=given)
    monkeypatch.setattr(fused, "_kernels", lambda hidden, dtype: None)
    expected, theirs = run(ahead=ahead, given=given)
    assert parts.keys() == expected.keys() and len(grads) == len(theirs) == 2 + ("bias" in extras)
    for name, part in expected.items():
        assert off(parts[name], part) < 1e-5, name
    for ours, grad in zip(grads, theirs, strict=True):
        assert off(ours, grad) < 1e-4


def test_float16_stays_near_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs rounded to 11 bits, sums in float32, logits' gradients rounded again: within 0.5%. (The interpreter of
    Triton 3.9 reads bfloat16's bits as integers in a product, so bfloat16 is tested on a GPU only.)"""
    given = case(scale=0.5)
    parts, grads = run(ahead=False, given=given, dtype=torch.float16)
    monkeypatch.setattr(fused, "_kernels", lambda hidden, dtype: None)
    expected, theirs = run(ahead=False, given=given)
    for name, part in expected.items():
        assert off(parts[name], part) < 0.005, name
    for ours, grad in zip(grads, theirs, strict=True):
        assert ours.dtype == grad.dtype and off(ours, grad) < 0.005


def test_large_logits_and_a_vocabulary_of_one_block(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "COLUMNS", 128)
    given = case(scale=8.0)
    parts, _ = run(ahead=False, given=given)
    monkeypatch.setattr(fused, "_kernels", lambda hidden, dtype: None)
    expected, _ = run(ahead=False, given=given)
    assert float(expected["log_prob"].detach().min()) < -100
    for name, part in expected.items():
        assert off(parts[name], part) < 1e-4, name


@pytest.mark.filterwarnings("ignore:All-NaN slice", "ignore:invalid value")
@pytest.mark.parametrize("bad", ["hidden", "weight", "reference"])
def test_what_is_not_a_number_is_not_hidden(bad: str) -> None:
    given = case()
    hidden, ref_hidden, _, head, _ = given
    with torch.no_grad():
        {"hidden": hidden, "weight": head.weight, "reference": ref_hidden}[bad][2, 1] = torch.nan
    parts, _ = run(ahead=False, given=given)
    assert bool(parts["ref_kl"].isnan().any()) and bool(parts["policy_kl"].isnan().any())
    assert bool(parts["log_prob" if bad != "reference" else "ref_log_prob"].isnan().any())


def test_without_a_reference() -> None:
    hidden, _, targets, head, _ = case(bias=True)
    parts = fused_likelihoods(hidden, None, targets, head, None, needs=ALL)
    assert set(parts) == {"log_prob"}
    logits = hidden @ head.weight.T + head.bias
    expected = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert off(parts["log_prob"], expected) < 1e-5
    parts["log_prob"].sum().backward()
    assert off(hidden.grad, torch.autograd.grad(expected.sum(), hidden)[0]) < 1e-5
