"""Tiny language policies over a handful of words, and batches for them, small enough to enumerate."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from valence.data.collate import pad_actions, pad_left
from valence.policies.base import likelihood_from_distributions, pull_back
from valence.policies.language import CausalLM, LanguagePolicy, Seq2SeqLM
from valence.types import Action, Batch, Feedback, Labels, Likelihood, Preferences, Rewards, TokenContext

PAD, END, START, UNKNOWN = 0, 1, 2, 3
SPECIAL = ("<pad>", "</s>", "<s>", "<unk>")
KINDS = ("llama", "gpt2", "gemma2", "t5", "t5-untied", "bart")
"""Rotary, learned and soft-capped decoders; encoder-decoders with relative and with learned positions."""


def word_tokenizer(vocabulary: int = 16, *, end_appended: bool = False) -> Any:
    """Words a, b, c, … and four special tokens; `end_appended` puts </s> after each text, as T5's tokenizer does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [chr(ord("a") + place) for place in range(vocabulary - len(SPECIAL))]
    ids = {token: place for place, token in enumerate([*SPECIAL, *words][:vocabulary])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if end_appended:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


@cache
def _network_class(kind: str, vocabulary: int) -> tuple[Any, Any]:
    import transformers as hf

    ids: dict[str, Any] = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": PAD, "vocab_size": vocabulary}
    small: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 64,
    }  # fmt: skip
    if kind == "llama":
        return hf.LlamaForCausalLM, hf.LlamaConfig(**ids, **small, attention_dropout=0.3)
    if kind == "gpt2":
        config = hf.GPT2Config(**ids, n_embd=16, n_layer=2, n_head=2, n_positions=64)
        return hf.GPT2LMHeadModel, config
    if kind == "gemma2":
        config = hf.Gemma2Config(**ids, **small, head_dim=8, final_logit_softcapping=0.7, attn_logit_softcapping=5.0)
        return hf.Gemma2ForCausalLM, config
    if kind.startswith("t5"):
        config = hf.T5Config(
            **ids, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=PAD,
            tie_word_embeddings=kind == "t5",
        )  # fmt: skip
        return hf.T5ForConditionalGeneration, config
    assert kind == "bart"
    config = hf.BartConfig(
        **ids, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=64, decoder_start_token_id=END,
        forced_eos_token_id=None,
    )  # fmt: skip
    return hf.BartForConditionalGeneration, config


def network(kind: str, vocabulary: int = 16, *, seed: int = 0, spread: float = 0.3) -> Any:
    """A transformers model with weights far enough from their initial ones that its distributions differ by context."""
    kinds, config = _network_class(kind, vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kinds(copy.deepcopy(config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in model.parameters():
            part.add_(spread * torch.randn(part.shape, generator=generator))
        if kind == "bart":
            model.final_logits_bias.copy_(torch.randn(1, vocabulary, generator=generator))
    return model


def policy(
    kind: str, vocabulary: int = 16, *, seed: int = 0, spread: float = 0.3, temperature: float = 1.0,
    max_new_tokens: int = 6, lora: bool = False,
) -> LanguagePolicy:  # fmt: skip
    """A tiny language policy as the loader would give it: dropout off, in training mode."""
    from valence.policies.dropout import disable_dropout

    model = network(kind, vocabulary, seed=seed, spread=spread)
    disable_dropout(model)
    encoder_decoder = model.config.is_encoder_decoder
    if lora:
        from peft import LoraConfig, get_peft_model

        task = "SEQ_2_SEQ_LM" if encoder_decoder else "CAUSAL_LM"
        fan_in = kind == "gpt2"
        config = LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.0, task_type=task, fan_in_fan_out=fan_in)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = get_peft_model(model, config)
    kinds = Seq2SeqLM if encoder_decoder else CausalLM
    return kinds(
        model, word_tokenizer(vocabulary), temperature=temperature, max_new_tokens=max_new_tokens
    ).train()  # fmt: skip


@torch.no_grad()
def shake(module: Any, *, seed: int = 1, size: float = 0.1) -> None:
    """Move the trainable parameters, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.parameters():
        if part.requires_grad:
            part.add_(size * torch.randn(part.shape, generator=generator))


def tokens(count: int, vocabulary: int, generator: torch.Generator) -> list[int]:
    return torch.randint(0, vocabulary, (count,), generator=generator).tolist()


def prompts_and_completions(
    vocabulary: int = 16, *, contexts: int = 4, actions: int = 3, seed: int = 5
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Prompts and completions of many lengths; context n has `actions - n % actions` completions."""
    generator = torch.Generator().manual_seed(seed)
    prompts = [tokens(1 + 3 * n % 7, vocabulary, generator) for n in range(contexts)]
    completions = [
        [tokens(1 + (2 * n + 3 * k) % 5, vocabulary, generator) for k in range(actions - n % actions)]
        for n in range(contexts)
    ]
    return prompts, completions


def labels_of(present: Tensor) -> Labels:
    sign = torch.tensor([1, -1, 1, -1, -1]).repeat(present.numel())[: present.numel()].reshape(present.shape)
    return Labels(sign * present, present)


def rewards_of(present: Tensor) -> Rewards:
    value = torch.tensor([0.4, -1.2, 1.0, 0.1, -0.7]).repeat(present.numel())[: present.numel()].reshape(present.shape)
    return Rewards(value * present, present)


def preferences_of(present: Tensor) -> Preferences:
    """The first of two actions beats the second with a probability that differs by context."""
    number = present.shape[1]
    strength = torch.linspace(1.0, -1.0, number) + torch.linspace(-0.1, 0.1, len(present))[:, None]
    win = torch.sigmoid((strength[:, :, None] - strength[:, None, :]) * 3)
    observed = present[:, :, None] & present[:, None, :] & ~torch.eye(number, dtype=torch.bool)
    return Preferences(win * observed, observed, present)


def feedback_of(kind: type, present: Tensor) -> Feedback:
    return {Labels: labels_of, Rewards: rewards_of, Preferences: preferences_of}[kind](present)


def make_batch(
    kind: type = Labels, *, vocabulary: int = 16, contexts: int = 4, actions: int = 3, mismatched: bool = False,
    seed: int = 5,
) -> Batch:  # fmt: skip
    """A ragged batch of random tokens with feedback of a kind."""
    prompts, completions = prompts_and_completions(vocabulary, contexts=contexts, actions=actions, seed=seed)
    action = pad_actions(completions, PAD)
    other = pad_actions([[completions[(n + 1) % contexts][0]] for n in range(contexts)], PAD) if mismatched else None
    return Batch(pad_left(prompts, PAD), action, feedback_of(kind, action.mask.any(-1)), mismatched=other)


def every_completion(vocabulary: int, length: int) -> Iterator[list[int]]:
    """All completions of a policy that is truncated at `length`: those that end, and those that are cut."""
    tails: list[list[int]] = [[]]
    for _ in range(length):
        yield from ([*tail, END] for tail in tails)
        tails = [[*tail, token] for tail in tails for token in range(vocabulary) if token != END]
    yield from tails


@torch.no_grad()
def slow_log_probs(subject: LanguagePolicy, prompt: Sequence[int], completion: Sequence[int]) -> list[Tensor]:
    """The obvious way, one sequence alone and without padding: each step's log-distribution, from the model's own
    logits."""
    ids, steps = torch.tensor([list(prompt)]), list(completion)
    if subject.encoder_decoder:
        start = subject.core.config.decoder_start_token_id
        logits = subject.model(input_ids=ids, decoder_input_ids=torch.tensor([[start, *steps[:-1]]])).logits[0]
    else:
        logits = subject.model(input_ids=torch.tensor([[*prompt, *steps]])).logits[0, len(prompt) - 1 : -1]
    return [torch.log_softmax(row.double() / subject.temperature, -1) for row in logits]


def context_of(*prompts: Sequence[int]) -> TokenContext:
    return pad_left(prompts, PAD)


def as_batch(context: TokenContext, action: Action) -> Batch:
    present = action.mask.any(-1)
    return Batch(context, action, Labels(torch.zeros_like(present, dtype=torch.long), present))


def gradients(module: Any) -> dict[str, Tensor]:
    return {name: part.grad.clone() for name, part in module.named_parameters() if part.grad is not None}


def assert_close(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance, check_dtype=False)


def assert_near(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    """Gradients by name agree to `tolerance` of each tensor's largest entry: sums of floats round by the size of what
    is summed, not by that of each entry. A tensor counts as at least a hundredth of the largest one: a gradient that
    is zero but for rounding has no size of its own."""
    assert ours.keys() == theirs.keys() and theirs
    size = {name: float(part.abs().max()) for name, part in theirs.items()}
    least = max(size.values()) / 100
    assert least > 0
    for name, part in theirs.items():
        difference = float((ours[name] - part).abs().max())
        assert difference <= tolerance * max(size[name], least), f"{name}: {difference} off, of {size[name]}"


def chi_square_limit(cells: int) -> float:
    """What a chi-square statistic with `cells - 1` degrees of freedom exceeds one time in some 100 thousand
    (Wilson and Hilferty's approximation)."""
    freedom = cells - 1
    return freedom * (1 - 2 / (9 * freedom) + 4.3 * math.sqrt(2 / (9 * freedom))) ** 3


class Table(torch.nn.Module):
    """The smallest policy: a softmax over V tokens for each context and step, in float64, so that sums are exact.

    Its context is `[N]`, row numbers of the table.
    """

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits.double().clone())

    def _distribution(self, batch: Batch) -> torch.distributions.Categorical:
        shape = batch.action.mask.shape
        logits = self.logits[batch.context][:, None, : shape[2]].expand(*shape, self.logits.shape[-1])
        return torch.distributions.Categorical(logits=logits)

    def likelihood(self, batch: Batch, reference: Any, needs: frozenset[str]) -> Likelihood:
        other = None
        if reference is not None:
            with reference.active() as copied:
                other = copied._distribution(batch)
        return likelihood_from_distributions(
            self._distribution(batch), other, batch.action.steps, batch.action.mask, needs
        )  # fmt: skip

    def backward(self, batch: Batch, reference: Any, likelihood: Likelihood, grads: Any) -> None:
        pull_back(likelihood, grads)

    def sample(self, context: Any, num_samples: int, generator: torch.Generator) -> Action:
        raise NotImplementedError

    def frozen_copy(self, *, dtype: Any = None, device: Any = None) -> Table:
        return copy.deepcopy(self).requires_grad_(False).to(dtype=dtype, device=device)

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        return dict(self.named_parameters())

    def save(self, folder: Any) -> None:
        raise NotImplementedError


def table_batch(feedback: Feedback, actions: Sequence[Sequence[int]]) -> Batch:
    """One-step actions, `[N, K]`, of contexts 0, 1, …."""
    steps = torch.tensor(actions)[..., None]
    context = torch.arange(len(steps))
    return Batch(context, Action(steps, feedback.present[..., None].expand(steps.shape)), feedback)
