"""A language policy from a local folder, a hub id, or the small model that Valence carries."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from valence.errors import UserError
from valence.policies.fused import linear_head
from valence.policies.language import CausalLM, LanguagePolicy, Seq2SeqLM
from valence.policies.rows import Rows
from valence.policies.shared_prompt import attends_everywhere, make_trees
from valence.policies.token_head import LogitHead

SMALL_LM = "small-lm"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def small_lm_path() -> Path:
    """Where the carried small model lies."""
    return Path(str(files("valence") / "assets" / "small-lm"))


def load_language_policy(
    model: str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    lora_rank: int = 0,
    lora_alpha: int | None = None,
    lora_targets: str = "all-linear",
    gradient_checkpointing: bool = False,
    trust_remote_code: bool = False,
    temperature: float = 1.0,
    max_new_tokens: int = 128,
    head: str = "fused",
    attention: str = "",
    batching: str = "auto",
) -> LanguagePolicy:
    """Load a causal or encoder-decoder language model as a policy, dropout off.

    Args:
        model: a folder, a hub id, or "small-lm" for the model that Valence carries. A folder with a LoRA adapter is
            merged into its base.
        dtype: "float32" or "bfloat16". In bfloat16, full fine-tuning keeps float32 weights and runs its matrix
            products in bfloat16 (an update of 1e-4 is lost in a bfloat16 weight); under LoRA the base is bfloat16.
        lora_rank: 0 fine-tunes every weight; above 0, LoRA adapters of that rank are trained.
        lora_alpha: LoRA's scale; twice the rank by default.
        head: "fused", or "plain" for the one that holds tiles of logits; they give the same up to rounding.
        lora_targets: "all-linear", or module names with commas between.
        attention: transformers' name of an implementation, such as sdpa, eager or flash_attention_2; its choice where
            not given.
        batching: "auto" reads the completions of one prompt as one sequence where the model can, and with flash
            attention packs rows without padding; "rows" reads each row by itself.
    Raises:
        UserError: there is no model at `model`, it is no language model, its tokenizer does not fit it or has no end
            token, there is no such device or it is too small.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}, and must be one of {', '.join(DTYPES)}")
    check_device(device)
    path = str(small_lm_path()) if model == SMALL_LM else model
    if lora_rank > 0 and (Path(path) / "adapter_config.json").is_file():
        raise UserError(
            f"{path} is a LoRA adapter, and a second one on top would be saved without it: leave out --lora-rank, or "
            "align a merged copy (in Python: load_language_policy(FOLDER).save(Path(MERGED)))"
        )
    mixed = DTYPES[dtype] if lora_rank == 0 and dtype != "float32" else None
    try:
        network, tokenizer = _load(
            path, dtype=torch.float32 if mixed else DTYPES[dtype], trust_remote_code=trust_remote_code,
            attention=attention,
        )  # fmt: skip
        check_tokenizer(network, tokenizer, path)
        disable_dropout(network)
        if lora_rank > 0:
            network = _add_lora(network, lora_rank, lora_alpha, lora_targets)
        if gradient_checkpointing:
            _checkpoint_gradients(network, lora=lora_rank > 0)
        kind = Seq2SeqLM if network.config.is_encoder_decoder else CausalLM
        policy = kind(
            network, tokenizer, temperature=temperature, max_new_tokens=max_new_tokens, mixed_precision=mixed,
            fused=head == "fused",
        ).to(device)  # fmt: skip
        policy.train()  # dropout is off; transformers checkpoints gradients only in training mode
        check_head(policy)
        if batching == "auto":
            policy.shares_prompts, policy.packs = can_share_prompts(policy), flash(policy) and can_pack(policy)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{path} does not fit into the memory of {device}: try --dtype bfloat16 with --lora-rank 16"
        ) from error
    return policy


def check_device(device: str) -> None:
    """Raises UserError where this machine has no such device."""
    try:
        place = torch.device(device)
        if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
            raise RuntimeError(f"torch {torch.__version__} sees {torch.cuda.device_count()} GPUs")
        torch.zeros(1, device=place).item()
    except torch.OutOfMemoryError as error:
        raise UserError(f"--device {device} has no free memory: end what fills it, or take another device") from error
    except (RuntimeError, AssertionError) as error:
        reason = _reason(error, most=120)
        raise UserError(f"--device is {device!r}, which is not here ({reason}): give cpu, cuda or auto") from error


def _reason(error: BaseException, *, most: int = 200) -> str:
    """What an error says, in one line of bounded length."""
    said = " ".join(str(error).split())
    return (f"{type(error).__name__} {said}" if isinstance(error, KeyError) or not said else said)[:most]


def _load(path: str, *, dtype: torch.dtype, trust_remote_code: bool, attention: str = "") -> tuple[Any, Any]:
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    transformers.utils.logging.disable_progress_bar()
    folder = Path(path)
    looks_local = folder.exists() or path.startswith((".", "/", "~"))
    if looks_local and not folder.is_dir():
        raise UserError(f"no model at {path}: no such folder; give a folder that transformers can load, or a hub id")
    adapter, base = folder / "adapter_config.json", path
    options = {"trust_remote_code": trust_remote_code}
    try:
        if adapter.is_file():
            base = json.loads(adapter.read_text())["base_model_name_or_path"]
        config = transformers.AutoConfig.from_pretrained(base, **options)
        kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
        more = options | ({"attn_implementation": attention} if attention else {})
        network = kind.from_pretrained(base, dtype=dtype, use_safetensors=True, **more)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **options)
        if adapter.is_file():
            from peft import PeftModel

            if not (folder / "adapter_model.safetensors").is_file():
                raise OSError(f"{path} has no adapter_model.safetensors")
            merged = PeftModel.from_pretrained(network, path).merge_and_unload()
            network = merged.requires_grad_(True)  # peft froze the base
        if config.is_encoder_decoder:
            _set_start_token(network, tokenizer)
    except torch.OutOfMemoryError:
        raise
    # The last three: values in config.json that no check of transformers has foreseen.
    except (
        OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError, StrictDataclassError,
        TypeError, AttributeError, ArithmeticError,
    ) as error:  # fmt: skip
        asked = f" with --attention {attention}" if attention else ""
        raise UserError(f"no language model could be loaded from {base}{asked}: {_reason(error)}") from error
    return network, tokenizer


def _set_start_token(network: Any, tokenizer: Any) -> None:
    """An encoder-decoder's first decoder token, put into its config where a folder says it elsewhere or not at all
    (a plain T5 starts with padding).

    Raises:
        ValueError: nothing says it.
    """
    config = network.config
    places = (
        (config, "decoder_start_token_id"), (network.generation_config, "decoder_start_token_id"),
        (config, "pad_token_id"), (tokenizer, "pad_token_id"),
    )  # fmt: skip
    found = [getattr(place, name, None) for place, name in places]
    start = next((token for token in found if token is not None), None)
    if start is None:
        raise ValueError("nothing says what its decoder starts with: set decoder_start_token_id in config.json")
    config.decoder_start_token_id = start


def check_tokenizer(network: Any, tokenizer: Any, path: str) -> None:
    """Raises UserError where the tokenizer has no end token, or gives ids that the model has no embedding for."""
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {path} has no end-of-sequence token, which log pi needs: set eos_token")
    largest = max(tokenizer.get_vocab().values(), default=-1)
    tables = (network.get_input_embeddings(), network.get_output_embeddings())
    rows = min(table.weight.shape[0] for table in tables if table is not None)
    if largest >= rows:
        raise UserError(
            f"the tokenizer of {path} gives ids up to {largest}, and the model has {rows} embeddings: it is another "
            "model's tokenizer, or the embeddings must be resized"
        )


def disable_dropout(network: nn.Module) -> None:
    """Dropout to zero everywhere: log pi / pi_ref must be 0 at the start, and equal calls must agree.

    What a config said before is kept as `network.original_dropout`, a list of (config, name, value), for
    `dropout_restored`.
    """
    kept: list[tuple[Any, str, float]] = list(getattr(network, "original_dropout", ()))
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # What is no module is a number of the module's own (BART, also for whole layers) or of its config's (Falcon).
        for owner in (module, getattr(module, "config", None)):
            for name in [name for name in vars(owner) if "drop" in name] if owner is not None else []:
                value = getattr(owner, name)
                if isinstance(value, float) and value:
                    if owner is not module:
                        kept.append((owner, name, value))
                    setattr(owner, name, 0.0)
    network.original_dropout = kept  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


@contextlib.contextmanager
def dropout_restored(network: nn.Module) -> Iterator[None]:
    """Inside, the configs of `network` (or of what peft wraps) say the dropout that they came with, so that saving
    does not write our zeros into a user's config.json; the network's modules stay without dropout."""
    original = getattr(network, "original_dropout", ())
    try:
        for config, name, value in original:
            setattr(config, name, value)
        yield
    finally:
        for config, name, _ in original:
            setattr(config, name, 0.0)


def _checkpoint_gradients(network: Any, *, lora: bool) -> None:
    # transformers 5 gave it a new name on the way.
    enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(f"--gradient-checkpointing does not fit this model: {_reason(error)}") from error
    if lora:
        network.enable_input_require_grads()


def _add_lora(network: Any, rank: int, alpha: int | None, targets: str) -> Any:
    from peft import LoraConfig, get_peft_model

    modules: str | list[str] = targets if targets == "all-linear" else [name.strip() for name in targets.split(",")]
    kind = "SEQ_2_SEQ_LM" if network.config.is_encoder_decoder else "CAUSAL_LM"
    transposed = any(type(module).__name__ == "Conv1D" for module in network.modules())  # GPT-2
    config = LoraConfig(
        r=rank, lora_alpha=alpha or 2 * rank, target_modules=modules, lora_dropout=0.0, task_type=kind,
        fan_in_fan_out=transposed,
    )  # fmt: skip
    try:
        return get_peft_model(network, config)
    except ValueError as error:
        raise UserError(f"LoRA targets {targets!r} do not fit this model: {_reason(error)}") from error


def check_head(policy: LanguagePolicy) -> None:
    """Our path to the logits must give the model's own, or every log-prob would be silently wrong.

    Raises:
        UserError: it does not, or cannot be run at all; the model is of a kind that we do not know.
    """
    name = type(policy.core).__name__
    try:
        with _plain_precision(policy):
            ours, theirs = _both_logits(policy)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model's own code may fail in any way
        raise UserError(f"{name} cannot be run as a language policy: {_reason(error)}") from error
    if not theirs.isfinite().all():
        raise UserError(
            f"{name} gives logits that are not finite: its weights are damaged, or overflow in this --dtype"
        )
    theirs = torch.log_softmax(theirs, -1)
    tolerance = 1e-3 if policy.model.dtype == torch.float32 and not flash(policy) else 0.1
    for logits in ours:
        log_p = torch.log_softmax(logits, -1)
        if not torch.allclose(log_p, theirs, atol=tolerance):
            raise UserError(
                f"{name} turns hidden states into logits in a way Valence does not know "
                f"(largest difference {(log_p - theirs).abs().max().item():.3g}); please report this model"
            )


def flash(policy: LanguagePolicy) -> bool:
    """Whether attention is by kernels for sequences of varying length."""
    return "flash" in (policy.core.config._attn_implementation or "")


def can_share_prompts(policy: LanguagePolicy) -> bool:
    """Whether several completions of a prompt may be read as one sequence (see `valence.policies.shared_prompt`): tried
    on a few tokens, beside the rows one by one."""
    if not attends_everywhere(policy.core.config):
        return False
    return _reads_alike(policy, lambda rows: policy.tree_hidden(make_trees(rows, [[0, 1], [2, 3]])))


def can_pack(policy: LanguagePolicy) -> bool:
    """Whether rows may be read one after another as one sequence; tried as in `can_share_prompts`."""
    return _reads_alike(policy, policy.packed_hidden)


@torch.no_grad()
def _reads_alike(policy: LanguagePolicy, read: Callable[[Rows], Tensor]) -> bool:
    """Whether `read` gives the hidden states of four rows, two and two of one prompt, as they are one by one."""
    numbered = "position_ids" in inspect.signature(policy.core.base_model.forward).parameters
    if policy.encoder_decoder or not numbered:
        return False
    device, size = policy.device, policy.vocabulary
    generator = torch.Generator().manual_seed(0)
    context, steps = (torch.randint(size, (4, width), generator=generator) for width in (4, 24))
    # A long first completion: who numbers or sees wrongly is then far off on the second.
    context[1], context[3] = context[0], context[2]
    seen = torch.tensor([[False, True, True, True]] * 2 + [[True] * 4] * 2)
    mask = torch.arange(24)[None] < torch.tensor([[24], [9], [20], [1]])
    rows = Rows(context, seen, steps, mask, torch.tensor([0, 0, 1, 1])).to(device)
    mask = rows.mask
    try:
        with _plain_precision(policy):
            ours, theirs = read(rows), policy.action_hidden(rows)[mask]
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a model's own code may fail in any way: it then reads row by row
        return False
    exact = next(policy.model.parameters()).dtype == torch.float32 and not flash(policy)
    far = (ours - theirs).float().square().mean().sqrt() / theirs.float().square().mean().sqrt()
    return bool(ours.isfinite().all()) and float(far) <= (1e-4 if exact else 1e-2)


def _plain_precision(policy: LanguagePolicy) -> torch.autocast:
    """Not the mixed one, whose rounding would hide what is off; but flash attention knows no other."""
    return policy.precision() if flash(policy) else torch.autocast(policy.device.type, enabled=False)


@torch.no_grad()
def _both_logits(policy: LanguagePolicy) -> tuple[list[Tensor], Tensor]:
    """(by our paths, the model's own), float32, of a few tokens."""
    device = policy.device
    ids = torch.tensor([[3, 5, 4]], device=device) % policy.vocabulary
    mask = torch.ones_like(ids, dtype=torch.bool)
    steps = torch.tensor([[2, 6, 3]], device=device) % policy.vocabulary
    hidden = policy.action_hidden(Rows(ids, mask, steps, mask, torch.zeros_like(ids[:, 0])))[0]
    ours = [LogitHead(policy.core)(hidden)]
    if policy.fused and (head := linear_head(policy.core)) is not None:
        ours.append(head.logits(hidden, slice(0, policy.vocabulary), hidden.dtype))
    if policy.encoder_decoder:
        start = torch.full_like(steps[:, :1], policy.core.config.decoder_start_token_id)
        theirs = policy.model(input_ids=ids, decoder_input_ids=torch.cat([start, steps[:, :-1]], 1)).logits[0]
    else:
        theirs = policy.model(input_ids=torch.cat([ids, steps], 1)).logits[0, 2:-1]
    return ours, theirs.float()
