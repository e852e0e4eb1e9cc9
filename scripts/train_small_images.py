"""Train the small image model that Valence carries (`valence/assets/small-digits`): handwritten digits, 32 by 32.

A latent consistency model from scratch, a folder that diffusers' stock `LatentConsistencyModelPipeline` loads.
The recipe, reproducible on one thread by its seed:
1. pictures: the even rows of scikit-learn's 1,797 scanned digits of 8x8 (the judges are fitted on the odd rows),
   enlarged to 32x32 by bicubic interpolation and painted: dark ink and pale paper of random colours, with blotches of
   random strength on the paper (many are nearly plain);
2. an AutoencoderKL, 32x32x3 to 8x8x4; its latents' mean and deviation are folded into its 1x1 convolutions, so that
   each latent channel has mean 0 and deviation 1 and `scaling_factor` is 1;
3. a teacher: a UNet2DConditionModel and a CLIPTextModel, trained together by v-prediction on the latents, with an
   empty prompt one time in ten (afterwards the text encoder is frozen);
4. latent consistency distillation (Luo et al. 2023) on `LCMScheduler`'s own grid, with its c_skip and c_out: one DDIM
   step of the teacher with guidance; the target network is an exponential moving average, and is saved. Half of the
   batches have guidance weight w = 0 (the pipeline's `guidance_scale` 1), half w uniform in
   [0, `--max-guidance`] per picture; w reaches the student through `time_cond_proj_dim`.

    python scripts/train_small_images.py --out src/valence/assets/small-digits
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from valence.rewards.digits import JUDGE_HALF, REWARD_HALF, WORDS, half_of_digits, judged

FORMS = ("a handwritten digit {}", "a handwritten {}", "the digit {}", "{}")  # the first is used most
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
PROMPT_LENGTH = 16
GUIDANCE_SIZE = 32  # time_cond_proj_dim


@dataclass
class Log:
    """Prints lines and collects them for TRAINING.log."""

    lines: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        print(line, flush=True)

    def elapsed(self) -> str:
        return f"{time.monotonic() - self.started:,.0f} s"


# --- pictures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scans:
    """Real digits: `masks` (N, 8, 8), the share of ink in [0, 1]; `labels` (N,)."""

    masks: Tensor
    labels: Tensor


def load_scans() -> tuple[Scans, Scans]:
    """(scans for the model, scans for the judges): the even and the odd rows, as in `valence.rewards.digits`."""
    halves = [half_of_digits(which) for which in (REWARD_HALF, JUDGE_HALF)]
    even, odd = (Scans(torch.tensor(masks), torch.tensor(labels)) for masks, labels in halves)
    return even, odd


def enlarge(masks: Tensor) -> Tensor:
    """(N, 8, 8) to (N, 1, 32, 32), by bicubic interpolation."""
    return functional.interpolate(masks[:, None], scale_factor=4, mode="bicubic").clamp(0, 1)


def random_colours(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(ink, paper), each (N, 3, 1, 1): dark ink, its red, green and blue in [0, 0.45], on pale paper, [0.6, 1]."""
    ink, paper = torch.rand(2, count, 3, 1, 1, generator=generator)
    return 0.45 * ink, 1 - 0.4 * paper


def paint(masks: Tensor, generator: torch.Generator) -> Tensor:
    """(N, 8, 8) masks to (N, 3, 32, 32) pictures in [-1, 1]: random colours, random blotches on the paper."""
    count = len(masks)
    ink, paper = random_colours(count, generator)
    grain = torch.randn(count, 1, 8, 8, generator=generator)
    strength = 0.15 * torch.rand(count, 1, 1, 1, generator=generator) ** 2
    paper = paper + strength * functional.interpolate(grain, scale_factor=4, mode="bicubic")
    shape = enlarge(masks)
    return (2 * (shape * ink + (1 - shape) * paper) - 1).clamp(-1, 1)


def paint_many(scans: Scans, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    picks = torch.randint(0, len(scans.masks), (count,), generator=generator)
    return paint(scans.masks[picks], generator), scans.labels[picks]


# --- the judge --------------------------------------------------------------------------------------------------------


def ink_of(images: Tensor) -> np.ndarray:
    """Share of ink per cell, (N, 64) in [0, 1], whatever the colours: images (N, 3, 32, 32) made 8x8 by averaging.

    The background is the median of the left and right columns; the ink is the colour farthest from it.
    """
    cells = functional.avg_pool2d(images.float(), 4)
    edges = torch.cat([cells[..., 0], cells[..., -1]], dim=-1)
    offset = (cells - edges.median(dim=-1).values[..., None, None]).flatten(2)
    farthest = offset.square().sum(1).argmax(-1)
    ink = offset[torch.arange(len(offset)), :, farthest][..., None]
    share = (offset * ink).sum(1) / ink.square().sum(1).clamp_min(1e-6)
    return share.clamp(0, 1).numpy()


def fit_judge(scans: Scans) -> Any:
    """A support vector classifier fitted on black digits on white; `scans` must not be the model's training data."""
    from sklearn.svm import SVC

    return SVC(C=10).fit(ink_of(1 - 2 * enlarge(scans.masks).expand(-1, 3, -1, -1)), scans.labels.numpy())


# --- networks ---------------------------------------------------------------------------------------------------------


def diffusers() -> Any:
    """The diffusers module: imported late because it is slow, and Any because its names are loaded lazily."""
    import diffusers

    return diffusers


def write_tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer with one token for each word of the prompts; it spells any other text byte by byte."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in [*WORDS, *(word for form in FORMS for word in form.replace("{}", "").split())]:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            if (parts[0], parts[1]) not in merges:
                merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            if parts[0] not in pieces:
                pieces.append(parts[0])
    vocab = {piece: index for index, piece in enumerate([*pieces, BOS, EOS])}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=PROMPT_LENGTH)  # pyright: ignore
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def make_vae() -> Any:
    return diffusers().AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 24, 32), layers_per_block=1, latent_channels=4, norm_num_groups=1, sample_size=32,
        scaling_factor=1.0, mid_block_add_attention=False, force_upcast=False,
    )  # fmt: skip


def make_text_encoder(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, projection_dim=64, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=PROMPT_LENGTH, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip


def make_unet() -> Any:
    return diffusers().UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(48, 64), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=64, attention_head_dim=4, norm_num_groups=8, time_cond_proj_dim=GUIDANCE_SIZE,
    )  # fmt: skip


def make_scheduler() -> Any:
    return diffusers().LCMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.02, prediction_type="v_prediction",
        original_inference_steps=40,
    )  # fmt: skip


def parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- training ---------------------------------------------------------------------------------------------------------


def optimize(
    trained: list[Any], steps: int, rate: float, loss_of: Callable[[], Tensor], log: Log, name: str
) -> Iterator[int]:
    """AdamW with a short warm-up, then cosine decay. Yields after each step, for the caller to update an average."""
    leaves = [parameter for module in trained for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(leaves, lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    mean = 0.0
    for step in range(steps):
        warm = min(1.0, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * (0.01 + 0.495 * (1 + math.cos(math.pi * step / steps)))
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        optimizer.step()
        mean += (loss.item() - mean) / (step % 100 + 1)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            log(f"{name} {step + 1}/{steps} loss {mean:.5f}, {log.elapsed()}")
            mean = 0.0
        yield step


@torch.no_grad()
def follow(average: Any, module: Any, step: int, decay: float) -> None:
    decay = min(decay, (1 + step) / (10 + step))
    for old, new in zip(average.parameters(), module.parameters(), strict=True):
        old.lerp_(new, 1 - decay)


def train_vae(scans: Scans, steps: int, batch: int, generator: torch.Generator, log: Log) -> Any:
    vae = make_vae()
    log(f"autoencoder: {parameters(vae):,} parameters")

    def loss_of() -> Tensor:
        pictures, _ = paint_many(scans, batch, generator)
        posterior: Any = vae.encode(pictures).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        off = vae.decode(latents).sample - pictures
        hue = off - off.mean(1, keepdim=True)  # weighted more: without it the autoencoder learned grey pictures
        error = off.square().mean() + 5 * hue.square().mean()
        return error + 1e-4 * posterior.kl().mean() / latents[0].numel()

    for _ in optimize([vae], steps, 3e-3, loss_of, log, "autoencoder"):
        pass
    vae.requires_grad_(False)
    return vae


def encode(vae: Any, pictures: Tensor) -> Tensor:
    return torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(256)])


def normalise_latents(vae: Any, pictures: Tensor) -> None:
    """Fold each latent channel's mean and deviation into the 1x1 convolutions at either side of the latents."""
    latents = encode(vae, pictures)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, back = vae.quant_conv, vae.post_quant_conv
    into.bias[:4] = (into.bias[:4] - mean) / std
    into.weight[:4] /= std[:, None, None, None]
    into.bias[4:] -= 2 * std.log()  # the posterior's log variance
    back.bias += back.weight[:, :, 0, 0] @ mean
    back.weight *= std[None, :, None, None]


@dataclass(frozen=True)
class Data:
    """Latents (N, 4, 8, 8) with their labels, and the prompts' token ids: form by digit, then the empty prompt."""

    latents: Tensor
    labels: Tensor
    ids: Tensor

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(latents, rows of `ids` with the digit's prompt, noise)."""
        picks = torch.randint(0, len(self.latents), (count,), generator=generator)
        other = torch.randint(0, len(FORMS), (count,), generator=generator)
        form = torch.where(torch.rand(count, generator=generator) < 0.6, 0, other)
        latents = self.latents[picks]
        return latents, form * 10 + self.labels[picks], torch.randn(latents.shape, generator=generator)


def tokenize(tokenizer: Any, prompts: list[str]) -> Tensor:
    return tokenizer(prompts, padding="max_length", max_length=PROMPT_LENGTH, return_tensors="pt").input_ids


def guidance_embedding(weight: Tensor) -> Tensor:
    """(N,) guidance weights to (N, GUIDANCE_SIZE), by the pipeline's own function."""
    pipeline = diffusers().LatentConsistencyModelPipeline
    return pipeline.get_guidance_scale_embedding(None, weight, embedding_dim=GUIDANCE_SIZE)


def signal_and_noise(scheduler: Any, time: Tensor) -> tuple[Tensor, Tensor]:
    """(sqrt of alpha-bar, sqrt of 1 - alpha-bar), each (N, 1, 1, 1)."""
    kept = scheduler.alphas_cumprod[time][:, None, None, None]
    return kept.sqrt(), (1 - kept).sqrt()


def train_teacher(
    text_encoder: Any, data: Data, scheduler: Any, steps: int, batch: int, generator: torch.Generator, log: Log
) -> tuple[Any, Any]:
    """(U-Net, text encoder), the moving averages of both."""
    unet = make_unet()
    log(f"U-Net: {parameters(unet):,} parameters; text encoder: {parameters(text_encoder):,}")
    empty = len(data.ids) - 1

    def loss_of() -> Tensor:
        latents, rows, noise = data.batch(batch, generator)
        rows = torch.where(torch.rand(batch, generator=generator) < 0.1, empty, rows)
        time = torch.randint(0, scheduler.config.num_train_timesteps, (batch,), generator=generator)
        signal, spread = signal_and_noise(scheduler, time)
        words = text_encoder(data.ids)[0][rows]
        guess = unet(signal * latents + spread * noise, time, words).sample
        return (guess - (signal * noise - spread * latents)).square().mean()

    averages = copy.deepcopy(unet), copy.deepcopy(text_encoder)
    for step in optimize([unet, text_encoder], steps, 2e-3, loss_of, log, "teacher"):
        follow(averages[0], unet, step, 0.99)
        follow(averages[1], text_encoder, step, 0.99)
    for average in averages:
        average.requires_grad_(False)
    return averages


def consistency(unet: Any, scheduler: Any, noisy: Tensor, time: Tensor, words: Tensor, guidance: Tensor) -> Tensor:
    """f(x, t, w) = c_skip x + c_out x0, as `LCMScheduler.step` has it."""
    signal, spread = signal_and_noise(scheduler, time)
    clean = signal * noisy - spread * unet(noisy, time, words, timestep_cond=guidance).sample
    c_skip, c_out = scheduler.get_scalings_for_boundary_condition_discrete(time[:, None, None, None])
    return c_skip * noisy + c_out * clean


@torch.no_grad()
def teacher_step(
    teacher: Any, scheduler: Any, noisy: Tensor, time: Tensor, earlier: Tensor, words: Tensor, weight: Tensor | None,
    empty: Tensor,
) -> Tensor:  # fmt: skip
    """One deterministic (DDIM) step from `time` to `earlier`; `weight` None: no guidance, one pass, not two."""
    v = teacher(noisy, time, words).sample
    if weight is not None:
        v = v + weight[:, None, None, None] * (v - teacher(noisy, time, empty.expand_as(words)).sample)
    signal, spread = signal_and_noise(scheduler, time)
    clean, noise = signal * noisy - spread * v, spread * noisy + signal * v
    signal, spread = signal_and_noise(scheduler, earlier)
    return signal * clean + spread * noise


def distil(
    teacher: Any, text: Tensor, data: Data, scheduler: Any, steps: int, batch: int, max_guidance: float,
    generator: torch.Generator, log: Log,
) -> Any:  # fmt: skip
    """The moving average of the student, which is its own target. `text` (prompts, length, size): encoded prompts."""
    student, target = copy.deepcopy(teacher).requires_grad_(True), copy.deepcopy(teacher)
    count = scheduler.config.original_inference_steps
    stride = scheduler.config.num_train_timesteps // count

    def loss_of() -> Tensor:
        latents, rows, noise = data.batch(batch, generator)
        words = text[rows]
        time = torch.randint(1, count + 1, (batch,), generator=generator) * stride - 1
        earlier = (time - stride).clamp_min(0)
        plain = torch.rand((), generator=generator) < 0.5
        weight = torch.zeros(batch) if plain else max_guidance * torch.rand(batch, generator=generator)
        guidance = guidance_embedding(weight)
        signal, spread = signal_and_noise(scheduler, time)
        noisy = signal * latents + spread * noise
        cleaner = teacher_step(
            teacher, scheduler, noisy, time, earlier, words, None if plain else weight, text[-1:]
        )  # fmt: skip
        with torch.no_grad():
            goal = consistency(target, scheduler, cleaner, earlier, words, guidance)
        off = consistency(student, scheduler, noisy, time, words, guidance) - goal
        return ((off.square().mean((1, 2, 3)) + 0.03**2).sqrt() - 0.03).mean()  # pseudo-Huber

    for step in optimize([student], steps, 5e-4, loss_of, log, "student"):
        follow(target, student, step, 0.97)
    return target


# --- the folder -------------------------------------------------------------------------------------------------------


def save(vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, scheduler: Any, folder: Path) -> None:
    """A pipeline folder, weights in float16 as safetensors."""
    halves = [copy.deepcopy(module).half() for module in (vae, text_encoder, unet)]
    pipeline = diffusers().LatentConsistencyModelPipeline(
        vae=halves[0], text_encoder=halves[1], tokenizer=tokenizer, unet=halves[2], scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder, safe_serialization=True)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)
    for config in folder.glob("*/config.json"):
        content = json.loads(config.read_text())
        content.pop("_name_or_path", None)  # a local path
        if "dtype" in content:
            content["dtype"] = "float32"  # transformers loads this dtype and diffusers float32: they must agree
        config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def put_in_place(made: Path, out: Path) -> None:
    """Rename `made` to `out`, so that a reader never finds a half-written folder."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    made.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def load(folder: Path) -> Any:
    """The folder as anyone loads it, in float32."""
    pipeline = diffusers().LatentConsistencyModelPipeline.from_pretrained(
        folder, safety_checker=None, dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, labels: Tensor, guidance_scale: float, seed: int, steps: int = 8) -> Tensor:
    """Samples (N, 3, 32, 32) in [-1, 1], stochastic between steps, one for each label."""
    images = pipeline(
        [FORMS[0].format(WORDS[label]) for label in labels.tolist()], num_inference_steps=steps, output_type="pt",
        guidance_scale=guidance_scale, generator=torch.Generator().manual_seed(seed),
    ).images  # fmt: skip
    return 2 * images - 1


def as_files(images: Tensor) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(row) for row in ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()]


def described(images: Tensor, labels: Tensor, judge: Any) -> str:
    """The share that `judge` and Valence's `digit-judge` classify correctly, file size, and variety, as text."""
    files, sizes = as_files(images), []
    for file in files:
        buffer = io.BytesIO()
        file.save(buffer, "JPEG", quality=95)
        sizes.append(buffer.tell())
    right = (judge.predict(ink_of(images)) == labels.numpy()).mean()
    right_edges = (judged(files) == labels.numpy()).mean()
    return (
        f"classified correctly {right:.4f}, by digit-judge {right_edges:.4f}, of {len(labels)}; "
        f"JPEG {np.mean(sizes):.0f} ± {np.std(sizes):.0f} bytes; deviation per pixel {images.std(0).mean():.3f}"
    )


def report(folder: Path, seen: Scans, unseen: Scans, log: Log) -> None:
    """Log how judges fitted on unseen scans classify real pictures and samples; log speed and size."""
    pipeline, judge = load(folder), fit_judge(unseen)
    painted = paint(seen.masks, torch.Generator().manual_seed(1))
    log(f"judges fitted on {len(unseen.labels)} scans that are not in the model's training data")
    log(f"the model's scans, painted: {described(painted, seen.labels, judge)}")
    rebuilt = pipeline.vae.decode(encode(pipeline.vae, painted)).sample.clamp(-1, 1).detach()
    log(f"the same through the autoencoder: {described(rebuilt, seen.labels, judge)}")
    labels = torch.arange(10).repeat(100)
    for scale, steps in ((1.0, 8), (1.5, 8), (2.0, 8), (3.0, 8), (1.0, 4), (1.0, 2), (1.0, 1)):
        images = draw(pipeline, labels, scale, seed=0, steps=steps)
        log(f"samples, guidance_scale {scale}, {steps} steps: {described(images, labels, judge)}")
    started = time.monotonic()
    draw(pipeline, torch.arange(64) % 10, 1.0, seed=1)
    log(f"64 images in 8 steps: {time.monotonic() - started:.2f} s on {torch.get_num_threads()} thread(s)")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    log(f"folder: {size / 1e6:.2f} MB")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vae-steps", type=int, default=900)
    parser.add_argument("--teacher-steps", type=int, default=1400)
    parser.add_argument("--student-steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=16384, help="painted pictures to encode as training latents")
    parser.add_argument("--max-guidance", type=float, default=2.0, help="largest w, the pipeline's guidance_scale - 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    args, log = parse(), Log()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    made = args.out.with_name(f".{args.out.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    (seen, unseen), scheduler, tokenizer = load_scans(), make_scheduler(), write_tokenizer(made / "tokenizer")
    log(" ".join(f"--{key.replace('_', '-')} {value}" for key, value in vars(args).items() if key != "out"))

    vae = train_vae(seen, args.vae_steps, args.batch // 2, generator, log)
    pictures, labels = paint_many(seen, args.pictures, generator)
    with torch.no_grad():
        normalise_latents(vae, pictures)
        latents = encode(vae, pictures)
    ids = tokenize(tokenizer, [*(form.format(word) for form in FORMS for word in WORDS), ""])
    data = Data(latents, labels, ids)
    teacher, text_encoder = train_teacher(
        make_text_encoder(tokenizer), data, scheduler, args.teacher_steps, args.batch, generator, log
    )
    with torch.no_grad():
        text = text_encoder(ids)[0]
    student = distil(
        teacher, text, data, scheduler, args.student_steps, args.batch, args.max_guidance, generator, log
    )  # fmt: skip
    save(vae, text_encoder, tokenizer, student, scheduler, made)
    log(f"trained in {log.elapsed()}")
    report(made, seen, unseen, log)
    (made / "TRAINING.log").write_text("\n".join(log.lines) + "\n")
    put_in_place(made, args.out)


if __name__ == "__main__":
    main()
