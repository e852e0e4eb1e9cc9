"""The fused head against the obvious computation: values and gradients, tile by tile, in every kind of model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import helpers
from helpers import make_batch
from valence.policies import fused
from valence.policies.dropout import disable_dropout
from valence.policies.fused import LinearHead, fused_likelihoods, likelihoods_and_gradients, linear_head
from valence.policies.language import LanguagePolicy
from valence.training.reference import AdaptersOff, FrozenCopy

NAMES = ("log_prob", "ref_log_prob", "ref_kl", "policy_kl")
ALL = frozenset(NAMES)
LOG_PROB = frozenset({"log_prob"})
M, H, G, V = 13, 6, 4, 23


def plain_logits(hidden: Tensor, head: LinearHead) -> Tensor:
    logits = (head.pre * hidden) @ head.weight.T + (0 if head.bias is None else head.bias)
    return head.post * (logits if head.cap is None else head.cap * torch.tanh(logits / head.cap))


def plain(
    hidden: Tensor, ref_hidden: Tensor, targets: Tensor, head: LinearHead, other: LinearHead
) -> dict[str, Tensor]:
    """All logits at once."""
    log_p = plain_logits(hidden, head).log_softmax(-1)
    log_q = plain_logits(ref_hidden, other).log_softmax(-1).detach()
    return {
        "log_prob": log_p.gather(1, targets[:, None])[:, 0],
        "ref_log_prob": log_q.gather(1, targets[:, None])[:, 0],
        "ref_kl": (log_q.exp() * (log_q - log_p)).sum(-1),
        "policy_kl": (log_p.exp() * (log_p - log_q)).sum(-1),
    }


def off(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the largest value; NaN where either is NaN."""
    return float((ours.double() - theirs.double()).abs().max().detach() / theirs.abs().max().clamp(min=1e-6).detach())


def flat(parts: dict[str, Tensor]) -> Tensor:
    return torch.cat([parts[name].flatten() for name in sorted(parts)])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def case(*, dtype: torch.dtype = torch.float64, bias: bool = True, scale: float = 1.0, **extras: Any) -> Any:
    """Random (hidden, ref_hidden, targets, head, ref_head)."""

    def draw(*shape: int) -> Tensor:
        return scale * torch.randn(shape, dtype=dtype)

    head = LinearHead(
        draw(V, H).requires_grad_(), draw(V).requires_grad_() if bias else None, **extras
    )  # fmt: skip
    other = LinearHead(draw(V, G), None, cap=extras.get("cap"), post=0.9)
    return draw(M, H).requires_grad_(), draw(M, G), torch.randint(V, (M,)), head, other


@pytest.fixture(params=[(7, 5, 3 * V), (V, M, M * V), (4096, 2048, 3 * 2**24)], ids=["tiles", "one tile", "defaults"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in zip(("COLUMNS", "ROWS", "HELD"), request.param, strict=True):
        monkeypatch.setattr(fused, name, size)


EXTRAS = [
    {"bias": False}, {"bias": True}, {"cap": 2.0}, {"pre": 0.7, "post": 1.3}, {"pre": 0.7, "cap": 1.5, "post": 0.6},
]  # fmt: skip


def inputs(hidden: Tensor, head: LinearHead) -> list[Tensor]:
    return [part for part in (hidden, head.weight, head.bias) if part is not None]


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("extras", EXTRAS)
def test_both_ways_are_the_plain_one_to_1e_10(extras: dict[str, Any]) -> None:
    hidden, ref_hidden, targets, head, other = case(**extras)
    expected = plain(hidden, ref_hidden, targets, head, other)
    found = fused_likelihoods(hidden, ref_hidden, targets, head, other, needs=ALL)
    assert tuple(found) == NAMES
    for name in NAMES:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-10)
    assert not found["ref_log_prob"].requires_grad and not found["policy_kl"].requires_grad
    every = ("log_prob", "ref_kl")
    weights = {name: torch.randn(M, dtype=torch.float64) for name in every}

    def gradients(parts: dict[str, Tensor], *names: str) -> tuple[Tensor, ...]:
        loss = sum((weights[name] * parts[name]).sum() for name in names)
        return torch.autograd.grad(loss, inputs(hidden, head), retain_graph=True)

    for names in (every, every[:1], every[1:]):
        for ours, theirs in zip(gradients(found, *names), gradients(expected, *names), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    for names in (every, every[:1], every[1:]):
        known = {name: weights[name] for name in names}
        parts, *grads = likelihoods_and_gradients(hidden, ref_hidden, targets, head, other, known, needs=ALL)
        for name in NAMES:
            torch.testing.assert_close(parts[name], expected[name].detach(), rtol=0, atol=1e-10)
        grads = [grad for grad in grads if grad is not None]
        for ours, theirs in zip(grads, gradients(expected, *names), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("extras", EXTRAS)
def test_gradients_pass_gradcheck(extras: dict[str, Any]) -> None:
    hidden, ref_hidden, targets, head, other = case(**extras)

    def measured(hidden: Tensor, weight: Tensor, *bias: Tensor) -> tuple[Tensor, ...]:
        mine = LinearHead(weight, bias[0] if bias else None, head.pre, head.cap, head.post)
        parts = fused_likelihoods(hidden, ref_hidden, targets, mine, other, needs=ALL)
        return parts["log_prob"], parts["ref_kl"]

    assert torch.autograd.gradcheck(measured, inputs(hidden, head), fast_mode=True)


@pytest.mark.usefixtures("tiles")
def test_large_logits_neither_overflow_nor_vanish() -> None:
    """float32 logits of some hundreds, whose exponentials are infinite, against float64."""
    hidden, ref_hidden, targets, head, other = case(dtype=torch.float32, scale=12.0)
    found = fused_likelihoods(hidden, ref_hidden, targets, head, other, needs=ALL)
    wide = [LinearHead(one.weight.double(), None if one.bias is None else one.bias.double(), post=one.post)
            for one in (head, other)]  # fmt: skip
    expected = plain(hidden.double(), ref_hidden.double(), targets, *wide)
    assert float(expected["log_prob"].detach().min()) < -200
    for name in NAMES:
        assert off(found[name], expected[name]) < 1e-4
    grads = torch.autograd.grad(found["ref_kl"].sum() + found["log_prob"].sum(), inputs(hidden, head))
    theirs = torch.autograd.grad(expected["ref_kl"].sum() + expected["log_prob"].sum(), inputs(hidden, head))
    for ours, other_grad in zip(grads, theirs, strict=True):
        assert off(ours, other_grad) < 1e-2


def test_a_policy_that_is_its_reference_has_a_kl_of_nought_and_no_gradient_of_it() -> None:
    hidden, _, targets, head, _ = case(dtype=torch.float32)
    found = fused_likelihoods(hidden, hidden.detach(), targets, head, head.detach(), needs=ALL)
    for name in ("ref_kl", "policy_kl"):
        assert bool((found[name] >= 0).all()) and float(found[name].detach().max()) < 1e-5
    _, grad, *_ = likelihoods_and_gradients(
        hidden, hidden.detach(), targets, head, head.detach(), {"ref_kl": torch.ones(M)}, needs=ALL
    )
    assert float(grad.abs().max()) < 1e-5


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("bad", ["hidden", "weight"])
def test_what_is_not_a_number_is_not_hidden(bad: str) -> None:
    hidden, ref_hidden, targets, head, other = case()
    with torch.no_grad():
        (hidden if bad == "hidden" else head.weight)[2, 1] = torch.nan
    found = fused_likelihoods(hidden, ref_hidden, targets, head, other, needs=ALL)
    for name in ("log_prob", "ref_kl", "policy_kl"):
        assert bool(found[name].isnan().any()), name


@pytest.mark.usefixtures("tiles")
def test_bfloat16_products_stay_near_float32() -> None:
    """Products in bfloat16 (8 bits: 2^-8 = 0.4% a factor), sums in float32: within 2% of the largest value."""
    hidden, ref_hidden, targets, head, other = case(dtype=torch.float32)
    known = {"log_prob": torch.randn(M), "ref_kl": torch.rand(M)}
    wide, *grads = likelihoods_and_gradients(hidden, ref_hidden, targets, head, other, known, needs=ALL)
    narrow, *near = likelihoods_and_gradients(
        hidden, ref_hidden, targets, head, other, known, needs=ALL, dtype=torch.bfloat16
    )
    pairs = [*zip(wide.values(), narrow.values(), strict=True), *zip(grads, near, strict=True)]
    for exact, rough in pairs:
        assert rough is not None and exact is not None and rough.dtype == torch.float32
        assert off(rough, exact) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("extras", EXTRAS)
def test_no_tokens_give_empty_quantities_and_gradients_of_zero(dtype: torch.dtype, extras: dict[str, Any]) -> None:
    hidden, ref_hidden, targets, head, other = case(dtype=torch.float32, **extras)
    nothing = (hidden[:0].detach().requires_grad_(), ref_hidden[:0], targets[:0])
    found = fused_likelihoods(*nothing, head, other, needs=ALL, dtype=dtype)
    assert tuple(found) == NAMES and all(part.shape == (0,) and part.dtype == torch.float32 for part in found.values())
    (found["log_prob"].sum() + found["ref_kl"].sum()).backward()
    assert nothing[0].grad is not None and nothing[0].grad.shape == (0, H)
    assert head.weight.grad is not None and head.weight.grad.shape == (V, H) and not head.weight.grad.any()
    known = {name: torch.zeros(0) for name in ("log_prob", "ref_kl")}
    parts, on_hidden, on_weight, on_bias = likelihoods_and_gradients(
        *nothing, head, other, known, needs=ALL, dtype=dtype
    )
    assert tuple(parts) == NAMES and all(part.shape == (0,) and part.dtype == torch.float32 for part in parts.values())
    assert on_hidden.shape == (0, H) and on_weight is not None and not on_weight.any()
    assert (on_bias is None) == (head.bias is None)
    assert set(fused_likelihoods(nothing[0], None, nothing[2], head, None, needs=ALL)) == {"log_prob"}


def test_only_what_is_asked_for_is_measured() -> None:
    hidden, ref_hidden, targets, head, other = case()
    assert set(fused_likelihoods(hidden, None, targets, head, None, needs=ALL)) == {"log_prob"}
    assert set(fused_likelihoods(hidden, ref_hidden, targets, head, other, needs=LOG_PROB)) == {"log_prob"}
    some = frozenset({"log_prob", "ref_kl"})
    assert set(fused_likelihoods(hidden, ref_hidden, targets, head, other, needs=some)) == some


def test_the_logits_of_the_whole_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """No intermediate tensor is as large as M by V."""
    rows, vocabulary = 256, 3000
    monkeypatch.setattr(fused, "COLUMNS", 128)
    monkeypatch.setattr(fused, "ROWS", 64)
    monkeypatch.setattr(fused, "HELD", 8 * vocabulary)
    head, other = (LinearHead(torch.randn(vocabulary, H, requires_grad=learns)) for learns in (True, False))
    hidden, targets = torch.randn(rows, H, requires_grad=True), torch.randint(vocabulary, (rows,))
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for part in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(part, Tensor):
                    largest = max(largest, part.numel())
            return out

    with Sizes():
        parts = fused_likelihoods(hidden, hidden.detach() + 1, targets, head, other, needs=ALL)
        (parts["log_prob"] + parts["ref_kl"]).sum().backward()
        likelihoods_and_gradients(
            hidden.detach(), hidden.detach() + 1, targets, head, other,
            {"log_prob": torch.ones(rows), "ref_kl": torch.ones(rows)}, needs=ALL,
        )  # fmt: skip
    # The head's own weight and its gradient are [V, H]; a tile is 64 x 128.
    assert largest <= max(vocabulary * H, 64 * 128) < rows * vocabulary / 40


@pytest.fixture(params=helpers.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_two_heads_can_be_swapped_in_every_model(kind: str, temperature: float, lora: bool) -> None:
    """Values, gradients, and gradients known ahead, by the fused head and by the plain one."""
    policy = helpers.policy(kind, lora=lora, temperature=temperature)
    reference = AdaptersOff(policy) if lora else FrozenCopy(policy)
    helpers.shake(policy)
    batch = make_batch()
    generator = torch.Generator().manual_seed(0)
    grads = {name: torch.randn(batch.action.mask.shape, generator=generator) for name in ("log_prob", "ref_kl")}

    def run(*, quick: bool, ahead: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        policy.fused = quick
        policy.zero_grad()
        if ahead:
            measured = policy.likelihood_and_backward(batch, reference, ALL, grads)
            assert not measured.log_prob.requires_grad
        else:
            measured = policy.likelihood(batch, reference, ALL)
            policy.backward(batch, reference, measured, grads)
        return {name: getattr(measured, name).detach() for name in ALL}, helpers.gradients(policy)

    assert linear_head(policy.core) is not None
    values, parameters = run(quick=False, ahead=False)
    assert parameters
    for quick, ahead in ((True, False), (True, True), (False, True)):
        others = run(quick=quick, ahead=ahead)
        for name in NAMES:
            assert off(others[0][name], values[name]) < 1e-5
        assert others[1].keys() == parameters.keys()
        # Some gradients are zero but for rounding (those of key biases): all are compared with the largest.
        assert off(flat(others[1]), flat(parameters)) < 1e-4


def test_a_head_that_is_more_than_a_matrix_goes_the_plain_way() -> None:
    from peft import LoraConfig, get_peft_model

    model = helpers.network("llama", 16, seed=0, spread=0.3)
    disable_dropout(model)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM"))
    base = helpers.policy("llama")
    policy = type(base)(wrapped, base.tokenizer)
    assert isinstance(policy, LanguagePolicy) and linear_head(policy.core) is None
    reference, batch = AdaptersOff(policy), make_batch()
    helpers.shake(policy)
    grads = {"log_prob": torch.ones(batch.action.mask.shape)}
    measured, found = policy.likelihood_and_backward(batch, reference, ALL, grads), helpers.gradients(policy)
    policy.zero_grad()
    policy.fused = False
    expected = policy.likelihood(batch, reference, ALL)
    policy.backward(batch, reference, expected, grads)
    theirs = helpers.gradients(policy)
    assert float(measured.ref_kl.sum()) > 0 and found.keys() == theirs.keys() and found
    assert off(measured.ref_kl, expected.ref_kl.detach()) < 1e-6 and off(flat(found), flat(theirs)) < 1e-6


def test_what_of_a_head_learns_is_what_gets_a_gradient() -> None:
    """Both, a bias alone, a weight alone, neither."""
    hidden, ref_hidden, targets, head, other = case()
    known = {"log_prob": torch.randn(M, dtype=torch.float64)}
    for weight, bias in ((True, True), (False, True), (True, False), (False, False)):
        head.weight.requires_grad_(weight)
        head.bias.requires_grad_(bias)
        _, _, on_weight, on_bias = likelihoods_and_gradients(hidden, ref_hidden, targets, head, other, known, needs=ALL)
        assert (on_weight is not None, on_bias is not None) == (weight, bias)


def test_a_frozen_copy_in_bfloat16_keeps_its_frequencies() -> None:
    """Rotary frequencies in bfloat16 would be off by radians at far positions."""
    policy = helpers.policy("llama")
    copy = policy.frozen_copy(dtype=torch.bfloat16)
    assert {part.dtype for part in copy.model.parameters()} == {torch.bfloat16}
    assert all(part.dtype == torch.float32 for name, part in copy.model.named_buffers() if "inv_freq" in name)
    assert any("inv_freq" in name for name, _ in copy.model.named_buffers())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the kernels as they are used")
def test_the_kernels_on_a_gpu_in_bfloat16() -> None:
    """Real blocks, a vocabulary and widths that they do not divide, against float64: within 2%."""
    rows, width, other_width, vocabulary = 300, 200, 136, 5003
    draw = {"device": "cuda", "dtype": torch.bfloat16}
    hidden, ref_hidden = torch.randn(rows, width, **draw), torch.randn(rows, other_width, **draw)
    head = LinearHead((torch.randn(vocabulary, width, **draw) / width**0.5).requires_grad_())
    other = LinearHead(torch.randn(vocabulary, other_width, **draw) / other_width**0.5)
    targets = torch.randint(vocabulary, (rows,), device="cuda")
    known = {"log_prob": torch.randn(rows, device="cuda"), "ref_kl": torch.rand(rows, device="cuda")}
    assert fused._kernels(hidden, torch.bfloat16) is not None
    parts, *grads = likelihoods_and_gradients(hidden, ref_hidden, targets, head, other, known, needs=ALL)
    wide = (LinearHead(one.weight.double()) for one in (head, other))
    exact = {name: value.double() for name, value in known.items()}
    expected, *theirs = likelihoods_and_gradients(
        hidden.double(), ref_hidden.double(), targets, *wide, exact, needs=ALL
    )
    for name in NAMES:
        assert off(parts[name], expected[name]) < 0.02, name
    for ours, grad in zip(grads[:2], theirs[:2], strict=True):
        assert off(ours, grad) < 0.02
