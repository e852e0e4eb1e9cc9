"""Language policies: T Categoricals over a vocabulary, by any transformers model.

`LanguagePolicy` holds what causal and encoder-decoder models share; each of them only says where the hidden state
that predicts an action's token is. The context is a `TokenContext`, the action's steps are token ids `[N, K, T]`.
The end-of-sequence token counts in log pi; a truncated completion has none. A sampling temperature other than 1 is
part of the policy, in `likelihood` too.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributions import Categorical

from valence.policies.base import pull_back
from valence.policies.fused import (
    LinearHead,
    accumulation,
    fused_likelihoods,
    likelihoods_and_gradients,
    linear_head,
)
from valence.policies.rows import Rows, pad_right, present_rows
from valence.policies.shared_prompt import Trees, make_trees, pack, siblings
from valence.policies.token_head import HeadFn, LogitHead, token_likelihoods
from valence.protocols import Reference
from valence.types import Action, Batch, Likelihood, TokenContext

REFERENCED = frozenset({"ref_log_prob", "ref_kl", "policy_kl"})
TOKENS_TOGETHER = {False: 1024, True: 32768}
"""Tokens run through the model at a time, with padding: on a CPU, and on a GPU."""


def end_token_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a completion: the tokenizer's, then those that the model's generation settings add (chat
    models end a turn with a token of its own)."""
    more = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    more = [more] if isinstance(more, int) else list(more or ())
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *more]))


@dataclass(frozen=True)
class _Measured:
    """What the head works on: M real steps, row by row, and where they lie in the batch's `[N, K, T]`."""

    hidden: Float[Tensor, "M H"]
    ref_hidden: Float[Tensor, "M G"] | None
    targets: Int[Tensor, " M"]
    place: Bool[Tensor, "N K T"]

    def scatter(self, parts: Mapping[str, Tensor], mask: Tensor) -> Likelihood:
        empty = torch.zeros(self.place.shape, device=self.hidden.device)
        scattered = {name: empty.masked_scatter(self.place, part.float()) for name, part in parts.items()}
        return Likelihood(mask=mask, **scattered)


class LanguagePolicy(nn.Module):
    """A language model as a policy.

    Args:
        model: a transformers (or peft) model.
        tokenizer: its tokenizer; must have an end-of-sequence token.
        temperature: divides the logits, in sampling and in likelihood.
        max_new_tokens: length at which a sample is truncated.
        mixed_precision: where given, matrix products run in this precision (autocast); weights keep their own.
        fused: measure through the fused head, where the model's is one matrix; else through the plain one, which
            holds tiles of logits (see `valence.policies.token_head`).

    `shares_prompts` reads the completions of one prompt as one sequence (`valence.policies.shared_prompt`), `packs` all
    rows of a batch, without padding: each set by the loader where the model can.
    """

    encoder_decoder = False

    def __init__(
        self, model: Any, tokenizer: Any, *, temperature: float = 1.0, max_new_tokens: int = 128,
        mixed_precision: torch.dtype | None = None, fused: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}, and must be above 0")
        self.model: Any = model
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.mixed_precision = mixed_precision
        self.fused = fused
        self.shares_prompts = self.packs = False
        self.end_token_ids = end_token_ids(model, tokenizer)

    @property
    def core(self) -> Any:
        """The transformers model, also where peft wraps it (its adapters stay in place)."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def precision(self) -> torch.autocast:
        """Inside, matrix products run in the policy's mixed precision, if it has one."""
        return torch.autocast(self.device.type, self.mixed_precision, enabled=self.mixed_precision is not None)

    def head(self, hidden: Float[Tensor, "M H"]) -> Float[Tensor, "M V"]:
        """Hidden states to logits, float32, divided by the temperature."""
        with self.precision():
            return LogitHead(self.core, temperature=self.temperature)(hidden)

    @property
    def vocabulary(self) -> int:
        return self.core.get_output_embeddings().weight.shape[0]

    def action_hidden(self, rows: Rows) -> Float[Tensor, "R T H"]:
        """The backbone's last hidden state at the position that predicts each step of each row."""
        raise TypeError("use CausalLM or Seq2SeqLM")

    def model_prompt(
        self, ids: Int[Tensor, "R S"], mask: Bool[Tensor, "R S"]
    ) -> tuple[Int[Tensor, "R S"], Bool[Tensor, "R S"]]:
        """Left-padded prompts and their mask, padded on the side that the model wants."""
        return ids, mask

    def hidden_at_steps(self, rows: Rows) -> Float[Tensor, "M H"]:
        """`action_hidden` at the M real steps of all rows, row by row; rows of like length are run together, so that
        little of the work is padding."""
        number = torch.zeros_like(rows.steps)
        number[rows.mask] = torch.arange(int(rows.mask.sum()), device=number.device)
        hidden, places, budget = [], [], TOKENS_TOGETHER[self.device.type == "cuda"]
        shared, alone = self._siblings(rows, budget) if self.shares_prompts else ([], None)
        for trees in self._trees(rows, shared, budget):
            with self.precision():
                hidden.append(self.tree_hidden(trees))
            steps = [number[row, :length] for row, length in zip(trees.rows.tolist(), trees.lengths, strict=True)]
            places.append(torch.cat(steps))
        mine = None if alone is None else torch.tensor(alone, dtype=torch.long, device=number.device)
        rest = rows if mine is None else rows.pick(mine) if len(mine) else None
        if rest is not None:
            for which in rest.by_length(budget, self.padded_size):
                part = rest.pick(which)
                with self.precision():
                    hidden.append(self.packed_hidden(part) if self.packs else self.action_hidden(part)[part.mask])
                places.append(number[which if mine is None else mine[which]][:, : part.mask.shape[1]][part.mask])
        return torch.cat(hidden)[torch.cat(places).argsort()]

    def _siblings(self, rows: Rows, budget: int) -> tuple[list[list[int]], list[int]]:
        positions = getattr(self.core.config.get_text_config(), "max_position_embeddings", None) or budget
        return siblings(rows.owner, *rows.lengths, longest=min(positions, budget))

    def _trees(self, rows: Rows, groups: list[list[int]], budget: int) -> Iterator[Trees]:
        prompts, steps = rows.lengths
        sizes = [prompts[group[0]] + sum(steps[row] - 1 for row in group) for group in groups]
        for piece in pack(sizes, budget):
            yield make_trees(rows, [groups[place] for place in piece])

    def tree_hidden(self, trees: Trees) -> Float[Tensor, "M H"]:
        """`action_hidden` of rows that share their prompts, step by step, row by row."""
        raise TypeError(f"{type(self).__name__} reads each row by itself")

    def packed_hidden(self, rows: Rows) -> Float[Tensor, "M H"]:
        """`action_hidden` at the real steps, row by row, by one sequence of all rows."""
        raise TypeError(f"{type(self).__name__} reads each row by itself")

    def padded_size(self, prompts: list[int], steps: list[int]) -> int:
        """Tokens that rows take when they are run together, padding counted: prompts and steps padded apart."""
        return len(steps) * (max(prompts) + max(steps))

    def likelihood(self, batch: Batch, reference: Reference | None, needs: frozenset[str]) -> Likelihood:
        """Measure. See `valence.protocols.Policy`; per-step, exact KLs over the full vocabulary.

        Raises:
            ValueError: a reference quantity is asked for and `reference` is None.
        """
        if needs & REFERENCED == {"ref_log_prob"} and getattr(reference, "keeps", "") == "log_prob":
            return self._with_known_reference(batch, reference, needs)
        measured = self._measure(batch, reference, needs)
        if measured is None:
            return self._nothing(batch, needs)
        parts = self._through_head(measured.hidden, measured.ref_hidden, measured.targets, reference, needs)
        return measured.scatter(parts, batch.action.mask)

    def likelihood_and_backward(
        self, batch: Batch, reference: Reference | None, needs: frozenset[str], grads: Mapping[str, Tensor]
    ) -> Likelihood:
        """`likelihood` and `backward` in one, for gradients that are known before anything is measured.

        Returns the likelihood without its graph. Two products with the head fewer than one after the other.
        """
        heads = self._linear_heads(reference if needs & REFERENCED else None)
        if heads is None or grads.keys() - {"log_prob", "ref_kl"}:
            likelihood = self.likelihood(batch, reference, needs)
            self.backward(batch, reference, likelihood, grads)
            return likelihood.detach()
        measured = self._measure(batch, reference, needs)
        if measured is None:
            return self._nothing(batch, needs)
        head, learns = heads[0], heads[0].weight.requires_grad
        # Added where it belongs: a head's second gradient may be the largest tensor of all.
        into = head.weight.grad if learns and head.weight.is_leaf else None
        if into is not None and into.dtype != accumulation(self.mixed_precision or measured.hidden.dtype):
            into = None
        parts, hidden, weight, bias = likelihoods_and_gradients(
            measured.hidden.detach(), measured.ref_hidden, measured.targets, *heads,
            {name: grad[measured.place] for name, grad in grads.items()}, needs=needs, dtype=self.mixed_precision,
            learn_weight=learns, learn_bias=head.bias is not None and head.bias.requires_grad, into=into,
        )  # fmt: skip
        if learns and head.weight.is_leaf and head.weight.grad is None and weight is not None:
            head.weight.grad = into = weight.to(head.weight.dtype)
        pulled = [(measured.hidden, hidden), (head.weight, None if into is not None else weight), (head.bias, bias)]
        live = [(part, grad.to(part.dtype)) for part, grad in pulled if part is not None and grad is not None]
        live = [(part, grad) for part, grad in live if part.requires_grad]
        if live:
            torch.autograd.backward([part for part, _ in live], [grad for _, grad in live])
        return measured.scatter(parts, batch.action.mask)

    def _with_known_reference(self, batch: Batch, reference: Any, needs: frozenset[str]) -> Likelihood:
        """log pi as always, log pi_ref from what the reference remembers (see `training.reference_cache`)."""
        mine = self.likelihood(batch, None, needs - REFERENCED)
        rows, present = present_rows(batch.context, batch.action)
        if not len(rows.steps):
            return self._nothing(batch, needs)

        def measure(new: Rows) -> Tensor:
            with torch.no_grad(), reference.active() as other:
                return other.step_log_probs(new.to(other.device)).to(self.device)

        place = torch.zeros_like(batch.action.mask)
        place[..., : rows.mask.shape[1]][present] = rows.mask
        known = reference.recall(rows, measure).float()
        empty = torch.zeros(place.shape, device=self.device)
        return replace(mine, ref_log_prob=empty.masked_scatter(place, known))

    def step_log_probs(self, rows: Rows) -> Float[Tensor, " M"]:
        """log pi of the M real steps of all rows, row by row."""
        needs = frozenset({"log_prob"})
        return self._through_head(self.hidden_at_steps(rows), None, rows.steps[rows.mask], None, needs)["log_prob"]

    def _through_head(
        self, hidden: Float[Tensor, "M H"], ref_hidden: Float[Tensor, "M G"] | None, targets: Int[Tensor, " M"],
        reference: Reference | None, needs: frozenset[str],
    ) -> dict[str, Float[Tensor, " M"]]:  # fmt: skip
        """What is asked for of M steps, through the fused head where there is one for both models."""
        heads = self._linear_heads(reference if needs & REFERENCED else None)
        if heads is not None:
            return fused_likelihoods(hidden, ref_hidden, targets, *heads, needs=needs, dtype=self.mixed_precision)
        ref_head = None if reference is None else _reference_head(reference)
        return token_likelihoods(
            hidden, ref_hidden, targets, self.head, ref_head, vocabulary=self.vocabulary, needs=needs
        )

    def _measure(self, batch: Batch, reference: Reference | None, needs: frozenset[str]) -> _Measured | None:
        """What the head works on; None where no action has a step."""
        asked = needs & REFERENCED
        if asked and reference is None:
            raise ValueError(f"{sorted(asked)} need a reference policy, and none was given")
        rows, present = present_rows(batch.context, batch.action)
        if not len(rows.steps):
            return None
        hidden, ref_hidden = self.hidden_at_steps(rows), None
        if asked and reference is not None:

            def measure(new: Rows) -> Tensor:
                with torch.no_grad(), reference.active() as other:
                    return other.hidden_at_steps(new.to(other.device)).to(hidden.device)

            known = getattr(reference, "keeps", "") == "hidden"
            ref_hidden = reference.recall(rows, measure) if known else measure(rows)  # pyright: ignore[reportAttributeAccessIssue]
        place = torch.zeros_like(batch.action.mask)
        place[..., : rows.mask.shape[1]][present] = rows.mask
        return _Measured(hidden, ref_hidden, rows.steps[rows.mask], place)

    def _nothing(self, batch: Batch, needs: frozenset[str]) -> Likelihood:
        empty = torch.zeros(batch.action.mask.shape, device=self.device)
        return Likelihood(log_prob=empty, mask=batch.action.mask, **dict.fromkeys(needs & REFERENCED, empty))

    def _linear_heads(self, reference: Reference | None) -> tuple[LinearHead, LinearHead | None] | None:
        """The policy's head and the reference's; None where they are more than a matrix or lie on two devices."""
        mine = linear_head(self.core, temperature=self.temperature) if self.fused else None
        if mine is None or reference is None:
            return None if mine is None else (mine, None)
        with reference.active() as other:
            theirs = linear_head(other.core, temperature=other.temperature) if other.device == self.device else None
        return None if theirs is None else (mine, theirs.detach())

    def backward(
        self, batch: Batch, reference: Reference | None, likelihood: Likelihood, grads: Mapping[str, Tensor]
    ) -> None:
        """Pull back through the graph kept by `likelihood`."""
        pull_back(likelihood, grads)

    def distribution(self, context: TokenContext, action: Action) -> Categorical:
        """Each step's Categorical, batch shape `[N, K, T]`. Holds all logits: for small models and tests."""
        rows, present = present_rows(context, action)
        logits = torch.zeros(*action.mask.shape, self.vocabulary, device=self.device)
        with self.precision():
            hidden = self.action_hidden(rows)
        shape = hidden.shape[:2]
        part = self.head(hidden.flatten(0, 1)).unflatten(0, shape)
        part = nn.functional.pad(part, (0, 0, 0, action.mask.shape[2] - shape[1]))
        return Categorical(logits=logits.masked_scatter(present[..., None, None].expand_as(logits), part))

    @torch.no_grad()
    def sample(self, context: TokenContext, num_samples: int, generator: torch.Generator) -> Action:
        """Draw completions by the model's own `generate`, plain sampling at `temperature`.

        Returns steps `[N, num_samples, T]`; a completion that did not end within `max_new_tokens` has no
        end-of-sequence token. The global random state is left as it was.
        """
        from transformers import GenerationConfig

        ends, pad = list(self.end_token_ids), self.pad_token_id
        config = GenerationConfig(
            do_sample=True, temperature=self.temperature, top_k=0, top_p=1.0, max_new_tokens=self.max_new_tokens,
            eos_token_id=ends, pad_token_id=pad, bos_token_id=self.tokenizer.bos_token_id,
            decoder_start_token_id=getattr(self.core.config, "decoder_start_token_id", None),
            num_return_sequences=num_samples, renormalize_logits=False,
        )  # fmt: skip
        seed = int(torch.randint(0, 2**31, (), generator=generator))
        devices = [self.device] if self.device.type == "cuda" else []
        was_training, core = self.model.training, self.core
        # `generate` takes what `config` leaves open (repetition penalty, forced tokens, …) from the model's own.
        own, core.generation_config = core.generation_config, GenerationConfig()
        self.model.eval()
        try:
            with torch.random.fork_rng(devices=devices), self.precision():
                torch.manual_seed(seed)
                ids, attended = self.model_prompt(context.ids, context.mask)
                out = core.generate(input_ids=ids, attention_mask=attended.long(), generation_config=config)
        finally:
            core.generation_config = own
            self.model.train(was_training)
        new = out[:, 1:] if self.encoder_decoder else out[:, context.ids.shape[1] :]
        ending = torch.isin(new, torch.tensor(ends, device=new.device))
        ended = ending.int().cumsum(-1)
        mask = (ended == 0) | (ending & (ended == 1))
        texts = [self.decode(row[keep]) for row, keep in zip(new, mask, strict=True)]
        rows = [texts[start : start + num_samples] for start in range(0, len(texts), num_samples)]
        shape = (len(context.ids), num_samples)
        return Action(new.unflatten(0, shape), mask.unflatten(0, shape), output=rows)

    @property
    def pad_token_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def decode(self, ids: Tensor) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter, of those that learn (the adapters', under LoRA)."""
        return {name: part for name, part in self.model.named_parameters() if part.requires_grad}

    def frozen_copy(self, *, dtype: torch.dtype | None = None, device: str | None = None) -> LanguagePolicy:
        """A copy that does not learn, optionally in another precision or on another device."""
        other = copy.deepcopy(self).requires_grad_(False).eval().to(device=device)
        if dtype is not None:
            # Buffers keep their precision: a rotary frequency in bfloat16 is radians off after some thousand positions.
            for part in other.parameters():
                part.data = part.data.to(dtype)
        return other

    @contextlib.contextmanager
    def adapters_off(self) -> Iterator[LanguagePolicy]:
        """Inside, this policy is its base model: LoRA's reference, no second copy."""
        with self.model.disable_adapter():
            yield self

    def save(self, folder: Path) -> None:
        """Write weights (safetensors), tokenizer and temperature so that transformers or peft loads them."""
        if self.temperature != 1 and getattr(self.core, "generation_config", None) is not None:
            self.core.generation_config.update(do_sample=True, temperature=self.temperature)
        # Here, not above: loading builds policies, and so imports this file.
        from valence.policies.loading import dropout_restored

        with dropout_restored(self.model):
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def _reference_head(reference: Reference) -> HeadFn:
    """A head that works under the reference's weights each time it is called (also when a tile is made again)."""

    def head(hidden: Tensor) -> Tensor:
        with reference.active() as other:
            return other.head(hidden.to(other.device)).to(hidden.device)

    return head


class CausalLM(LanguagePolicy):
    """A decoder-only model: prompt and completion are one sequence."""

    def action_hidden(self, rows: Rows) -> Float[Tensor, "R T H"]:
        """Prompt and steps side by side, padding behind: what is real then sees nothing of it, without a mask."""
        ids, mask = rows.joined()
        # The last step predicts nothing that is asked for.
        out = self._run(ids[:, : int(mask.sum(-1).max()) - 1])
        steps = torch.arange(rows.steps.shape[1], device=ids.device)
        place = (rows.context_mask.sum(-1, keepdim=True) - 1 + steps).clamp(0, out.shape[1] - 1)
        return out.gather(1, place[..., None].expand(-1, -1, out.shape[2]))

    def tree_hidden(self, trees: Trees) -> Float[Tensor, "M H"]:
        visible = trees.visible[:, None]
        if self.core.config._attn_implementation != "sdpa":
            # Added to the scores, where sdpa takes what is seen as it is.
            low = torch.finfo(self.core.dtype).min
            visible = torch.zeros_like(visible, dtype=self.core.dtype).masked_fill_(~visible, low)
        out = self._run(trees.ids, attention_mask=visible, position_ids=trees.positions)
        return out[trees.sequence, trees.place]

    def packed_hidden(self, rows: Rows) -> Float[Tensor, "M H"]:
        """Positions alone tell the rows apart: kernels for sequences of varying length (flash attention) read them."""
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

    def model_prompt(
        self, ids: Int[Tensor, "R S"], mask: Bool[Tensor, "R S"]
    ) -> tuple[Int[Tensor, "R S"], Bool[Tensor, "R S"]]:
        """On the right: BART's encoder counts positions from the left and would count the padding."""
        return pad_right(ids, mask)

    def action_hidden(self, rows: Rows) -> Float[Tensor, "R T H"]:
        start = torch.full_like(rows.steps[:, :1], self.core.config.decoder_start_token_id)
        inputs = torch.cat([start, rows.steps[:, :-1]], 1)
        backbone = self.core.base_model
        parts = backbone if hasattr(backbone, "get_encoder") else self.core
        prompt, prompt_mask = self.model_prompt(rows.context, rows.context_mask)
        encoded = parts.get_encoder()(input_ids=prompt, attention_mask=prompt_mask.long())
        decoded = parts.get_decoder()(
            input_ids=inputs,
            attention_mask=torch.cat([torch.ones_like(rows.mask[:, :1]), rows.mask[:, :-1]], 1).long(),
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=prompt_mask.long(),
            use_cache=False,
        )
        return decoded.last_hidden_state
