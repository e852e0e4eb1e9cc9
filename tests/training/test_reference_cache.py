"""The reference's log-probs and hidden states on disk: the same figures, no second pass, no row taken for another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import helpers
from helpers import PAD, as_batch, assert_near, make_batch
from valence.data.collate import pad_actions, pad_left
from valence.errors import UserError
from valence.protocols import HiddenCache, LogProbCache
from valence.training.reference import AdaptersOff, FrozenCopy
from valence.training.reference_cache import FILE, CachedHidden, CachedLogProbs, cache_reference

BOTH = frozenset({"log_prob", "ref_log_prob"})


class Counting:
    """A reference that counts how often it is used."""

    def __init__(self, reference: Any) -> None:
        self.reference, self.used = reference, 0

    @contextlib.contextmanager
    def active(self) -> Iterator[Any]:
        self.used += 1
        with self.reference.active() as policy:
            yield policy

    def after_step(self, policy: Any, step: int) -> None:
        self.reference.after_step(policy, step)

    def trainable(self) -> dict[str, Any]:
        return self.reference.trainable()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_what_was_measured_once_is_the_same_and_is_not_measured_again(kind: str, lora: bool, tmp_path: Path) -> None:
    policy = helpers.policy(kind, lora=lora)
    plain = AdaptersOff(policy) if lora else FrozenCopy(policy)
    helpers.shake(policy)
    batch, counting = make_batch(), Counting(plain)
    expected = policy.likelihood(batch, plain, BOTH)
    cached = CachedLogProbs(counting, tmp_path)
    for _ in range(2):
        measured = policy.likelihood(batch, cached, BOTH)
        torch.testing.assert_close(measured.ref_log_prob, expected.ref_log_prob, rtol=1e-6, atol=1e-6)
        assert torch.equal(measured.log_prob, expected.log_prob) and measured.log_prob.requires_grad
        assert torch.equal(measured.mask, expected.mask) and measured.ref_kl is None
    rows = int(batch.action.mask.any(-1).sum())
    assert (cached.misses, cached.hits) == (rows, rows)
    # Once for the fingerprint and once for the missing rows; a later run needs only the fingerprint.
    assert counting.used == 2
    later = CachedLogProbs(counting, tmp_path)
    policy.likelihood(batch, later, BOTH)
    assert (later.misses, later.hits, counting.used) == (0, rows, 3)


def test_another_model_or_temperature_is_another_reference(tmp_path: Path) -> None:
    batch, found = make_batch(), []
    for options in ({}, {"seed": 1}, {"temperature": 0.7}, {}):
        policy = helpers.policy("llama", **options)
        cached = CachedLogProbs(FrozenCopy(policy), tmp_path)
        with torch.no_grad():
            found.append(policy.likelihood(batch, cached, BOTH))
        assert (cached.misses > 0) == (len(found) < 4)
        # Here policy and reference are one.
        torch.testing.assert_close(found[-1].ref_log_prob, found[-1].log_prob, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0].log_prob, found[1].log_prob)
    assert not torch.allclose(found[0].log_prob, found[2].log_prob)


def test_settings_count_and_adapters_do_not(tmp_path: Path) -> None:
    """Equal weights with another rotary base are another model; a model with its adapters switched off is the same."""
    batch, policy = make_batch(), helpers.policy("llama")
    with torch.no_grad():
        policy.likelihood(batch, CachedLogProbs(FrozenCopy(policy), tmp_path), BOTH)
    other = helpers.policy("llama")
    other.core.config.rope_parameters = {"rope_type": "default", "rope_theta": 123.0}
    for policy, known in ((other, False), (helpers.policy("llama", lora=True), True)):
        cached = CachedLogProbs(AdaptersOff(policy) if known else FrozenCopy(policy), tmp_path)
        with torch.no_grad():
            policy.likelihood(batch, cached, BOTH)
        assert (cached.misses == 0) == known and (cached.hits > 0) == known


def test_the_same_tokens_split_elsewhere_are_another_row(tmp_path: Path) -> None:
    policy = helpers.policy("llama")
    cached = CachedLogProbs(FrozenCopy(policy), tmp_path)
    for prompt, steps in (([4, 5], [6, 7]), ([4, 5, 6], [7]), ([4], [5, 6, 7])):
        batch = as_batch(pad_left([prompt], PAD), pad_actions([[steps]], PAD))
        with torch.no_grad():
            measured = policy.likelihood(batch, cached, BOTH)
        torch.testing.assert_close(measured.ref_log_prob, measured.log_prob, rtol=1e-5, atol=1e-5)
    assert (cached.misses, cached.hits) == (3, 0)


def test_log_probs_do_not_give_an_exact_kl(tmp_path: Path) -> None:
    policy = helpers.policy("llama")
    cached = CachedLogProbs(FrozenCopy(policy), tmp_path)
    helpers.shake(policy)
    measured = policy.likelihood(make_batch(), cached, BOTH | {"ref_kl"})
    assert float(measured.ref_kl.detach().sum()) > 0 and cached.misses == cached.hits == 0


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_states_give_the_exact_kl_without_another_pass(lora: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    policy = helpers.policy("llama", lora=lora)
    policy.mixed_precision = None if dtype == torch.float32 else dtype
    plain = AdaptersOff(policy) if lora else FrozenCopy(policy)
    helpers.shake(policy)
    batch, needs = make_batch(), BOTH | {"ref_kl"}
    generator = torch.Generator().manual_seed(0)
    grads = {name: torch.randn(batch.action.mask.shape, generator=generator) for name in ("log_prob", "ref_kl")}
    expected = policy.likelihood_and_backward(batch, plain, needs, grads)
    gradients = helpers.gradients(policy)
    cached = CachedHidden(plain, tmp_path)
    for _ in range(2):
        policy.zero_grad()
        measured = policy.likelihood_and_backward(batch, cached, needs, grads)
        for name in needs:
            torch.testing.assert_close(getattr(measured, name), getattr(expected, name), rtol=1e-6, atol=1e-6)
        assert_near(helpers.gradients(policy), gradients)
    rows = int(batch.action.mask.any(-1).sum())
    assert (cached.misses, cached.hits) == (rows, rows) and float(expected.ref_kl.sum()) > 0
    # Log-probs in the same folder are other entries.
    other = CachedLogProbs(plain, tmp_path)
    policy.likelihood(batch, other, BOTH)
    assert (other.misses, other.hits) == (rows, 0)


def test_the_cache_fits_what_the_objective_reads(tmp_path: Path) -> None:
    reference = FrozenCopy(helpers.policy("llama"))
    for needs, kind, protocol in (
        ({"ref_log_prob"}, CachedLogProbs, LogProbCache), ({"mismatched"}, CachedLogProbs, LogProbCache),
        ({"log_prob", "ref_kl"}, CachedHidden, HiddenCache),
    ):  # fmt: skip
        cached = cache_reference(reference, tmp_path, frozenset(needs))
        assert type(cached) is kind and isinstance(cached, protocol) and cached.trainable() == {}
        assert isinstance(cached, LogProbCache) != isinstance(cached, HiddenCache)
    with pytest.raises(UserError, match="reads nothing of the reference"):
        cache_reference(reference, tmp_path, frozenset({"log_prob"}))


def test_a_folder_that_cannot_be_used_is_reported_in_one_line(tmp_path: Path) -> None:
    policy = helpers.policy("llama")
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / FILE).write_text("no data base at all, but long enough to be looked at " * 20)
    for folder in ("file", "other"):
        with pytest.raises(UserError, match=r"reference cache .* give another folder"):
            CachedLogProbs(FrozenCopy(policy), tmp_path / folder)
