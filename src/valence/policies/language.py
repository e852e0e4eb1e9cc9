"""Language policies: T Categoricals over a vocabulary, by any transformers model.

`LanguagePolicy` holds what causal and encoder-decoder models share; `CausalLM` and `Seq2SeqLM` add where the hidden
state that predicts each token is. The context is a `TokenContext`, the action's steps are token ids `[N, K, T]`.
The end-of-sequence token counts in log pi; a truncated completion has none. A sampling temperature other than 1 is
part of the policy, in `likelihood` too.

Shape legend: see `valence.types`; R rows, S prompt tokens, M steps of all rows, H hidden units.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from valence.policies import token_head
from valence.policies.base import REFERENCED, pull_back, referenced
from valence.policies.dropout import dropout_restored
from valence.policies.fused import LinearHead, fused_likelihoods, linear_head
from valence.policies.rows import Rows, check_padding, pad_right, present_rows
from valence.policies.shared_prompt import Trees, make_trees, plan
from valence.protocols import HiddenCache, LogProbCache, Reference
from valence.types import Action, Batch, Likelihood, TokenContext

GivenT = TypeVar("GivenT", Rows, Tensor)
TOKENS_TOGETHER = {False: 1024, True: 32768}
"""Tokens, with padding, that run through the model at a time: on a CPU, and on a GPU."""


class LanguagePolicy(nn.Module):
    """A language model as a policy.

    Args:
        model: a transformers (or peft) model.
        tokenizer: its tokenizer; must have an end-of-sequence token.
        temperature: divides the logits, in sampling and in likelihood.
        max_new_tokens: length at which a sample is truncated.
        mixed_precision: if set, matrix products run in this precision (autocast); weights keep their own.
        fused: measure through the fused head where the model's head is one matrix. The plain head, which holds tiles
            of logits, serves all others (see `valence.policies.token_head`).
    Attributes:
        shares_prompts: read the completions of one prompt as one sequence (see `valence.policies.shared_prompt`).
        packs: read all rows of a batch as one sequence without padding. The loader sets both where the model can.
    """

    encoder_decoder = False

    def __init__(
        self, model: Any, tokenizer: Any, *, temperature: float = 1.0, max_new_tokens: int = 128,
        mixed_precision: torch.dtype | None = None, fused: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"`temperature` is {temperature}, and must be above 0")
        self.model: Any = model
        self.tokenizer, self.end_token_ids = tokenizer, end_token_ids(model, tokenizer)
        self.temperature, self.max_new_tokens = temperature, max_new_tokens
        self.mixed_precision, self.fused = mixed_precision, fused
        self.shares_prompts = self.packs = False

    @property
    def core(self) -> Any:
        """The transformers model, also where peft wraps it (its adapters stay in place)."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def vocabulary(self) -> int:
        """V, the number of logits."""
        return self.core.get_output_embeddings().weight.shape[0]

    @property
    def pad_token_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def precision(self) -> torch.autocast:
        """Inside, matrix products run in the policy's mixed precision, if it has one."""
        return torch.autocast(self.device.type, self.mixed_precision, enabled=self.mixed_precision is not None)

    def action_hidden(self, rows: Rows) -> Float[Tensor, "R T H"]:
        """The backbone's last hidden state at the position that predicts each step of each row."""
        raise NotImplementedError

    def tree_hidden(self, trees: Trees) -> Float[Tensor, "M H"]:
        """`action_hidden` of rows that share their prompts, at the real steps, row by row."""
        raise NotImplementedError

    def packed_hidden(self, rows: Rows) -> Float[Tensor, "M H"]:
        """`action_hidden` at the real steps, row by row, from one sequence of all rows."""
        raise NotImplementedError

    def padded_size(self, prompts: list[int], steps: list[int]) -> int:
        """The tokens, padding included, of rows that run together: here prompts and steps are padded apart."""
        return len(steps) * (max(prompts) + max(steps))

    def hidden_at_steps(self, rows: Rows) -> Float[Tensor, "M H"]:
        """`action_hidden` at the M real steps of all rows, row by row; rows of similar length run together."""
        hidden, order, groups, alone = [], [], [], range(len(rows.steps))
        budget = TOKENS_TOGETHER[self.device.type == "cuda"]
        if self.shares_prompts:
            positions = getattr(self.core.config.get_text_config(), "max_position_embeddings", None) or budget
            groups, alone = plan(rows, budget=budget, longest=min(positions, budget))
        for group in groups:
            trees = make_trees(rows, group)
            with self.precision():
                hidden.append(self.tree_hidden(trees))
            order.append(trees.rows)
        for which in rows.by_length(alone, budget, self.padded_size):
            part = rows.pick(which)
            with self.precision():
                hidden.append(self.packed_hidden(part) if self.packs else self.action_hidden(part)[part.mask])
            order.append(which)
        if not hidden:
            return torch.zeros(0, self.core.get_output_embeddings().weight.shape[1], device=self.device)
        number, order = rows.mask.flatten().cumsum(0).view_as(rows.mask), torch.cat(order)
        return torch.cat(hidden)[number[order][rows.mask[order]].argsort()]

    def hidden_states(self, batch: Batch) -> tuple[Float[Tensor, "M H"], Bool[Tensor, "N K T"]]:
        """(the hidden states that predict the M steps of a batch, row by row; the steps' places in `[N, K, T]`)."""
        return self.hidden_at_steps(present_rows(batch.context, batch.action)), batch.action.mask

    def likelihood(self, batch: Batch, reference: Reference | None, needs: frozenset[str]) -> Likelihood:
        """Measure, per step, with exact KLs over the full vocabulary.

        Raises:
            ValueError: a reference quantity is in `needs` and `reference` is None; padding on the wrong side.
        """
        cache, own, asked = None, reference, needs
        if needs & REFERENCED == {"ref_log_prob"} and isinstance(reference, LogProbCache):
            cache, own, asked = reference, None, needs - REFERENCED
        states = self._states(batch, own, asked)
        if states is None:
            return self._nothing(batch, needs)
        parts = self._through_head(states, own, asked)
        if cache is not None:
            # It calls `measure` for the rows that it has not stored.
            measure = self._measured_by(cache, LanguagePolicy.step_log_probs)
            parts["ref_log_prob"] = cache.recall_log_probs(present_rows(batch.context, batch.action), measure)
        return token_head.scatter(parts, batch.action.mask)

    def backward(
        self, batch: Batch, reference: Reference | None, likelihood: Likelihood, grads: Mapping[str, Tensor]
    ) -> None:
        pull_back(likelihood, grads)

    def likelihood_and_backward(
        self, batch: Batch, reference: Reference | None, needs: frozenset[str], grads: Mapping[str, Tensor]
    ) -> Likelihood:
        """`likelihood` and `backward` in one, which saves two products with the head."""
        heads = self._linear_heads(reference, needs)
        if heads is None:
            likelihood = self.likelihood(batch, reference, needs)
            self.backward(batch, reference, likelihood, grads)
            return likelihood.detach()
        states, mask = self._states(batch, reference, needs), batch.action.mask
        if states is None:
            return self._nothing(batch, needs)
        return token_head.measure_and_pull_back(states, heads, mask, grads, needs=needs, dtype=self.mixed_precision)

    def step_log_probs(self, rows: Rows) -> Float[Tensor, " M"]:
        """log pi of the M real steps of all rows, row by row."""
        states = (self.hidden_at_steps(rows), None, rows.steps[rows.mask])
        return self._through_head(states, None, frozenset({"log_prob"}))["log_prob"]

    def _states(self, batch: Batch, reference: Reference | None, needs: frozenset[str]) -> token_head.States | None:
        """What the head works on; None where no action has a step."""
        asked = referenced(needs, reference)
        rows = present_rows(batch.context, batch.action)
        if not len(rows.steps):
            return None
        hidden, ref_hidden = self.hidden_at_steps(rows), None
        if asked and reference is not None:
            measure = self._measured_by(reference, LanguagePolicy.hidden_at_steps)
            stored = isinstance(reference, HiddenCache)
            ref_hidden = reference.recall_hidden(rows, measure) if stored else measure(rows)
        return hidden, ref_hidden, rows.steps[rows.mask]

    def _measured_by(
        self, reference: Reference, read: Callable[[LanguagePolicy, GivenT], Tensor]
    ) -> Callable[[GivenT], Tensor]:
        """`read` under the reference's weights, each time it is called; constant, on this policy's device."""

        def measure(given: GivenT) -> Tensor:
            with torch.no_grad(), reference.active() as other:
                return read(other, given.to(other.device)).to(self.device)

        return measure

    def _nothing(self, batch: Batch, needs: frozenset[str]) -> Likelihood:
        """The likelihood of a batch without steps: zeros without a graph."""
        empty = torch.zeros(batch.action.mask.shape, device=self.device)
        return Likelihood(log_prob=empty, mask=batch.action.mask, **dict.fromkeys(needs & REFERENCED, empty))

    def head(self, hidden: Float[Tensor, "M H"]) -> Float[Tensor, "M V"]:
        """Hidden states to logits, float32, divided by the temperature."""
        with self.precision():
            return token_head.model_logits(self.core, hidden, temperature=self.temperature)

    def _linear_heads(
        self, reference: Reference | None, needs: frozenset[str]
    ) -> tuple[LinearHead, LinearHead | None] | None:
        """The policy's head and the reference's; None where they are more than a matrix or lie on two devices."""
        mine = linear_head(self.core, temperature=self.temperature) if self.fused else None
        if mine is None or reference is None or not needs & REFERENCED:
            return None if mine is None else (mine, None)
        with reference.active() as other:
            theirs = linear_head(other.core, temperature=other.temperature) if other.device == self.device else None
        return None if theirs is None else (mine, theirs.detach())

    def _through_head(
        self, states: token_head.States, reference: Reference | None, needs: frozenset[str]
    ) -> dict[str, Float[Tensor, " M"]]:
        """The quantities in `needs` of M steps, through the fused head where both models have one."""
        heads = self._linear_heads(reference, needs)
        if heads is not None:
            return fused_likelihoods(*states, *heads, needs=needs, dtype=self.mixed_precision)
        ref_head = None if reference is None else self._measured_by(reference, LanguagePolicy.head)
        return token_head.token_likelihoods(*states, self.head, ref_head, vocabulary=self.vocabulary, needs=needs)

    @torch.no_grad()
    def sample(self, context: TokenContext, num_samples: int, generator: torch.Generator) -> Action:
        """Draw completions by the model's own `generate`, plain sampling at `temperature`.

        A completion that did not end within `max_new_tokens` has no end-of-sequence token.

        Raises:
            ValueError: the prompts are padded on the right.
        """
        check_padding(context)
        seed = int(torch.randint(0, 2**31, (), generator=generator))
        ids, mask = context.ids, context.mask
        if self.encoder_decoder:
            ids, mask = pad_right(ids, mask)
        with self.precision():
            tokens = generate(
                self.core, ids, mask, seed=seed, num_return_sequences=num_samples, temperature=self.temperature,
                max_new_tokens=self.max_new_tokens, eos_token_id=list(self.end_token_ids),
                pad_token_id=self.pad_token_id, bos_token_id=self.tokenizer.bos_token_id,
                decoder_start_token_id=getattr(self.core.config, "decoder_start_token_id", None),
            )  # fmt: skip
        mask = until_end(tokens, self.end_token_ids)
        texts = [self.decode(row[real]) for row, real in zip(tokens, mask, strict=True)]
        output = [texts[first : first + num_samples] for first in range(0, len(texts), num_samples)]
        shape = (len(context.ids), num_samples)
        return Action(tokens.unflatten(0, shape), mask.unflatten(0, shape), output=output)

    def decode(self, ids: Tensor) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: part for name, part in self.model.named_parameters() if part.requires_grad}

    def frozen_copy(self, *, dtype: torch.dtype | None = None, device: str | None = None) -> LanguagePolicy:
        other = copy.deepcopy(self).requires_grad_(False).eval().to(device=device)
        if dtype is not None:
            # Buffers keep their precision: a rotary frequency in bfloat16 is radians off after some thousand positions.
            for part in other.parameters():
                part.data = part.data.to(dtype)
        return other

    @contextlib.contextmanager
    def adapters_off(self) -> Iterator[LanguagePolicy]:
        """Inside, this policy is its base model: LoRA's reference, without a second copy."""
        with self.model.disable_adapter():
            yield self

    def save(self, folder: Path) -> None:
        """Write weights (safetensors), tokenizer and temperature so that transformers or peft loads them."""
        if self.temperature != 1 and getattr(self.core, "generation_config", None) is not None:
            self.core.generation_config.update(do_sample=True, temperature=self.temperature)
        with dropout_restored(self.model):
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class CausalLM(LanguagePolicy):
    """A decoder-only model: prompt and completion are one sequence."""

    def action_hidden(self, rows: Rows) -> Float[Tensor, "R T H"]:
        """Prompt and steps side by side, padded on the right: real tokens then see no padding, without a mask."""
        ids, mask = rows.joined()
        # The last step predicts nothing that is needed.
        out = self._run(ids[:, : int(mask.sum(-1).max()) - 1])
        steps = torch.arange(rows.steps.shape[1], device=ids.device)
        place = (rows.context_mask.sum(-1, keepdim=True) - 1 + steps).clamp(0, out.shape[1] - 1)
        return out.gather(1, place[..., None].expand(-1, -1, out.shape[2]))

    def tree_hidden(self, trees: Trees) -> Float[Tensor, "M H"]:
        visible = trees.visible[:, None]
        if self.core.config._attn_implementation != "sdpa":
            # sdpa takes a boolean mask; the others add it to the scores.
            low = torch.finfo(self.core.dtype).min
            visible = torch.zeros_like(visible, dtype=self.core.dtype).masked_fill_(~visible, low)
        out = self._run(trees.ids, attention_mask=visible, position_ids=trees.positions)
        return out[trees.sequence, trees.place]

    def packed_hidden(self, rows: Rows) -> Float[Tensor, "M H"]:
        """Only positions tell the rows apart: kernels for sequences of varying length (flash attention) read them."""
        ids, positions, before = rows.packed()
        return self._run(ids, position_ids=positions)[0, before]

    def padded_size(self, prompts: list[int], steps: list[int]) -> int:
        lengths = [prompt + step for prompt, step in zip(prompts, steps, strict=True)]
        return sum(lengths) if self.packs else len(lengths) * max(lengths)

    def _run(self, ids: Tensor, **more: Tensor) -> Tensor:
        return self.core.base_model(input_ids=ids, use_cache=False, **more).last_hidden_state


class Seq2SeqLM(LanguagePolicy):
    """An encoder-decoder model (T5, BART): the prompt is encoded, the completion decoded."""

    encoder_decoder = True

    def action_hidden(self, rows: Rows) -> Float[Tensor, "R T H"]:
        start = torch.full_like(rows.steps[:, :1], self.core.config.decoder_start_token_id)
        inputs = torch.cat([start, rows.steps[:, :-1]], 1)
        parts = self.core.base_model if hasattr(self.core.base_model, "get_encoder") else self.core
        # BART's encoder counts positions from the left and would count the padding.
        prompt, prompt_mask = pad_right(rows.context, rows.context_mask)
        encoded = parts.get_encoder()(input_ids=prompt, attention_mask=prompt_mask.long())
        return parts.get_decoder()(
            input_ids=inputs, use_cache=False,
            attention_mask=torch.cat([torch.ones_like(rows.mask[:, :1]), rows.mask[:, :-1]], 1).long(),
            encoder_hidden_states=encoded.last_hidden_state, encoder_attention_mask=prompt_mask.long(),
        ).last_hidden_state  # fmt: skip


def end_token_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a completion: the tokenizer's first, then those of the model's generation settings.

    Chat models end a turn with a token that only the generation settings name.
    """
    more = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    more = [more] if isinstance(more, int) else list(more or ())
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *more]))


def generate(model: Any, ids: Int[Tensor, "R S"], mask: Bool[Tensor, "R S"], *, seed: int, **settings: Any) -> Tensor:
    """Plain sampling of new tokens, `[R * num_return_sequences, T]`, by a model without adapters around it.

    The model's mode and the global random state are left as they were. `settings` are of `GenerationConfig`.
    """
    from transformers import GenerationConfig

    config = GenerationConfig(do_sample=True, top_k=0, top_p=1.0, renormalize_logits=False, **settings)
    devices = [ids.device] if ids.device.type == "cuda" else []
    was_training, own = model.training, model.generation_config
    # `generate` takes what `config` leaves open (repetition penalty, forced tokens, …) from the model's own settings.
    model.generation_config = GenerationConfig()
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            out = model.generate(input_ids=ids, attention_mask=mask.long(), generation_config=config)
    finally:
        model.generation_config = own
        model.train(was_training)
    return out[:, 1:] if model.config.is_encoder_decoder else out[:, ids.shape[1] :]


def until_end(tokens: Int[Tensor, "R T"], ends: Sequence[int]) -> Bool[Tensor, "R T"]:
    """Which tokens belong to the completion: those up to and including the first end token."""
    ending = torch.isin(tokens, torch.tensor(list(ends), device=tokens.device))
    return ending.cumsum(-1) - ending.int() == 0
