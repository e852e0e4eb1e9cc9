"""A language policy from a local folder, a hub id, or the small model that Valence carries."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from valence.errors import UserError, one_line
from valence.policies.checks import can_pack, can_share_prompts, check_head, flash, reason
from valence.policies.dropout import disable_dropout
from valence.policies.language import CausalLM, LanguagePolicy, Seq2SeqLM
from valence.policies.sampler_settings import SMALL

SMALL_LM = "small-lm"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def carried(name: str) -> str:
    """The folder of a small model that Valence carries; any other name as it is."""
    return str(files("valence") / "assets" / name) if name in (SMALL_LM, SMALL) else name


def load_language_policy(
    model: str, *, dtype: str = "float32", device: str = "cpu", lora_rank: int = 0, lora_alpha: int | None = None,
    lora_targets: str = "all-linear", gradient_checkpointing: bool = False, trust_remote_code: bool = False,
    temperature: float = 1.0, max_new_tokens: int = 128, head: str = "fused", attention: str = "",
    batching: str = "auto",
) -> LanguagePolicy:  # fmt: skip
    """Load a causal or encoder-decoder language model as a policy, dropout off.

    Args:
        model: a folder, a hub id, or "small-lm" for the model that Valence carries. A folder with a LoRA adapter is
            merged into its base.
        dtype: "float32" or "bfloat16". In bfloat16, full fine-tuning keeps float32 weights and runs its matrix
            products in bfloat16 (an update of 1e-4 is lost in a bfloat16 weight); under LoRA the base is bfloat16.
        lora_rank: 0 fine-tunes every weight; above 0, LoRA adapters of that rank are trained.
        lora_alpha: LoRA's scale; twice the rank by default.
        lora_targets: "all-linear", or module names separated by commas.
        head: "fused", or "plain" for the one that holds tiles of logits; they agree up to rounding.
        attention: an implementation by transformers' name, such as sdpa, eager or flash_attention_2; by default
            transformers chooses.
        batching: "auto" reads the completions of one prompt as one sequence where the model can, and with flash
            attention packs rows without padding; "rows" reads each row by itself.
    Raises:
        UserError: there is no model at `model`, it is no language model, its tokenizer does not fit it or has no end
            token, there is no such device, or the device is too small.
    """
    if dtype not in DTYPES:
        raise UserError(f"`dtype` is {dtype!r}, and must be one of {', '.join(DTYPES)}")
    check_device(device)
    path = carried(model)
    if lora_rank > 0 and (Path(path) / "adapter_config.json").is_file():
        raise UserError(
            f"{path} is a LoRA adapter, and a second one on top would be saved without it: leave out `lora_rank`, or "
            "align a merged copy (in Python: load_language_policy(FOLDER).save(Path(MERGED)))"
        )
    mixed = DTYPES[dtype] if lora_rank == 0 and dtype != "float32" else None
    weights = torch.float32 if mixed else DTYPES[dtype]
    try:
        network, tokenizer = _load(path, dtype=weights, trust_remote_code=trust_remote_code, attention=attention)
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
        advice = 'try `dtype="bfloat16"`, `lora_rank=16`'
        raise UserError(f"{path} does not fit into the memory of {device}: {advice}") from error
    return policy


def check_device(device: str) -> None:
    """Raises UserError where this machine has no such device."""
    try:
        place = torch.device(device)
        if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
            raise RuntimeError(f"torch {torch.__version__} sees {torch.cuda.device_count()} GPUs")
        torch.zeros(1, device=place).item()
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"`device` {device} has no free memory: end the program that fills it, or choose another device"
        ) from error
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"`device` is {device!r}, which this machine does not have ({one_line(error, 120)}): give cpu, cuda or auto"
        ) from error


def _load(path: str, *, dtype: torch.dtype, trust_remote_code: bool, attention: str) -> tuple[Any, Any]:
    """(the network, its tokenizer), an adapter merged into its base."""
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    transformers.utils.logging.disable_progress_bar()
    folder = Path(path)
    local = folder.exists() or path.startswith((".", "/", "~"))
    if local and not folder.is_dir():
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
            network = PeftModel.from_pretrained(network, path).merge_and_unload()
            network.requires_grad_(True)  # peft froze the base
        if config.is_encoder_decoder:
            _set_start_token(network, tokenizer)
    except torch.OutOfMemoryError:
        raise
    # The last three: values in config.json that transformers does not check.
    except (
        OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError, StrictDataclassError,
        TypeError, AttributeError, ArithmeticError,
    ) as error:  # fmt: skip
        asked = f' with `attention="{attention}"`' if attention else ""
        raise UserError(f"no language model could be loaded from {base}{asked}: {reason(error)}") from error
    return network, tokenizer


def _set_start_token(network: Any, tokenizer: Any) -> None:
    """Put an encoder-decoder's first decoder token into its config, where only another file of the folder names it.

    A plain T5 starts with its padding token. ValueError if no file names one.
    """
    config = network.config
    places = (
        (config, "decoder_start_token_id"), (network.generation_config, "decoder_start_token_id"),
        (config, "pad_token_id"), (tokenizer, "pad_token_id"),
    )  # fmt: skip
    tokens = [getattr(place, name, None) for place, name in places]
    config.decoder_start_token_id = next((token for token in tokens if token is not None), None)
    if config.decoder_start_token_id is None:
        raise ValueError("no file says what its decoder starts with: set decoder_start_token_id in config.json")


def check_tokenizer(network: Any, tokenizer: Any, path: str) -> None:
    """Raises UserError where the tokenizer has no end token, or gives ids that the model has no embedding for."""
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {path} has no end-of-sequence token, which log pi needs: set eos_token")
    largest = max(tokenizer.get_vocab().values(), default=-1)
    tables = (network.get_input_embeddings(), network.get_output_embeddings())
    if largest >= (rows := min(table.weight.shape[0] for table in tables if table is not None)):
        raise UserError(
            f"the tokenizer of {path} gives ids up to {largest}, and the model has {rows} embeddings: it is another "
            "model's tokenizer, or the embeddings must be resized"
        )


def _checkpoint_gradients(network: Any, *, lora: bool) -> None:
    # transformers 5 renamed it.
    enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(f"`gradient_checkpointing` does not fit this model: {reason(error)}") from error
    if lora:
        network.enable_input_require_grads()


def _add_lora(network: Any, rank: int, alpha: int | None, targets: str) -> Any:
    from peft import LoraConfig, get_peft_model

    modules: str | list[str] = targets if targets == "all-linear" else [name.strip() for name in targets.split(",")]
    kind = "SEQ_2_SEQ_LM" if network.config.is_encoder_decoder else "CAUSAL_LM"
    transposed = any(type(module).__name__ == "Conv1D" for module in network.modules())  # GPT-2
    config = LoraConfig(
        r=rank, lora_alpha=alpha or 2 * rank, target_modules=modules, task_type=kind, fan_in_fan_out=transposed
    )
    try:
        return get_peft_model(network, config)
    except ValueError as error:
        raise UserError(f"`lora_targets` {targets!r} do not fit this model: {reason(error)}") from error
