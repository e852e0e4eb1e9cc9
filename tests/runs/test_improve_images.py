"""`improve-images` from prompts to a folder: every method, resume, judges, and input that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from image_helpers import tiny_pipeline
from valence.cli.main import main
from valence.errors import UserError
from valence.evaluation.pictures import image_grid
from valence.policies.image_pipelines import load_denoiser
from valence.policies.sampler_settings import SamplerSettings
from valence.rewards.functions import RewardFunction
from valence.rewards.images import DEFAULT_REWARD, JUDGE
from valence.rewards.judge import PairFunction, SelfPlay
from valence.runs.improve_images import DIGIT_PROMPTS, ImagesConfig, improve_images, judge_names
from valence.runs.methods import METHODS
from valence.runs.settings import configure, settings_of, to_words
from valence.sources.images import image_prompt
from valence.training.learner import Learner
from valence.training.tracking import read_metrics
from valence.types import Labels, Rewards

pytest.importorskip("diffusers")
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

QUICK: dict[str, Any] = {
    "quiet": True, "max_steps": 2, "batch_size": 2, "num_samples": 2, "eval_every": 0, "eval_samples": 4, "lr": 1e-2,
    "num_steps": 2, "lora_rank": 2, "tracker": "none", "save_every": 0, "gold": "none",
}  # fmt: skip
PROMPTS = ["a", "b", "c"]
LORA = "pytorch_lora_weights.safetensors"


def mean_of(image: Any) -> float:
    return float(np.asarray(image.convert("L"), dtype=np.float64).mean())


def bright(images: list[Any], prompts: list[str], metadata: list[Any]) -> list[float | None]:
    return [mean_of(image) for image in images]


def dark(images: list[Any], prompts: list[str], metadata: list[Any]) -> list[float | None]:
    return [255 - mean_of(image) for image in images]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline as a user has it."""
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline().save_pretrained(folder)
    return folder


def run(tiny: Path, out: Path, reward: Any = bright, **options: Any) -> Any:
    options = {"pipeline": tiny, "prompts": PROMPTS, "reward": reward} | QUICK | options
    return improve_images(out=out, **options)


def configured(**options: Any) -> Any:
    words, positional = to_words(ImagesConfig, options)
    return configure(ImagesConfig, words, positional)


def grid_of(result: Any, step: int) -> Any:
    """A grid's pixels, [height,width,3]."""
    from PIL import Image

    with Image.open(result.out / "grids" / f"step-{step:06d}.png") as kept:
        return np.asarray(kept)


def first_update(tiny: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Any, Learner, Any]:
    """(batch, learner, how it is asked to learn) of a run's first update, at which it ends."""

    class Enough(Exception):
        pass

    seen: list[Any] = []

    def spy(self: Learner, batch: Any, **more: Any) -> None:
        seen.append((batch, self, more))
        raise Enough

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "update", spy)
        with pytest.raises(Enough):
            run(tiny, out, **options)
    return seen[0]


@pytest.mark.parametrize("method", METHODS["improve-images"])
def test_every_method_runs_and_moves_the_pipeline(method: str, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(tiny, out, method=method)
    assert result.steps == 2 and result.model == out / "model"
    assert {"reward", "kl_policy_ref", "kl_ref_policy", "pixel_spread"} <= result.after.keys()
    assert result.before["kl_policy_ref"] == pytest.approx(0, abs=1e-4) and result.after["kl_policy_ref"] > 1e-3
    weights = load_file(out / "model" / LORA)
    assert any(bool(part.any()) for name, part in weights.items() if "lora_B" in name)
    page = (out / "report.html").read_text()
    grids = sorted(path.name for path in (out / "grids").iterdir())
    assert grids == ["step-000000.png", "step-000002.png"]
    assert "before (step 0)" in page and "step 2" in page and page.count("data:image/png") == 2 + len(grids)
    rows = read_metrics(out / "metrics.jsonl")
    assert any("reward" in row and "shaped_reward" in row and "images_per_second" in row for row in rows)
    points = json.loads((out / "evaluations.json").read_text())
    assert [point["step"] for point in points] == [0, 2] and len(points[0]["proxy"]) == 4
    card = (out / "model" / "README.md").read_text()
    assert "library_name: diffusers" in card and f"**method**: {method}" in card and "load_lora_weights" in card
    assert "num_inference_steps=2, guidance_scale=1" in card
    kept = yaml.safe_load((out / "config.yaml").read_text())
    assert kept["method"] == method and kept["reward"] == "bright" and kept["prompts"] == ""
    assert settings_of(configured(**kept)) == kept


def test_the_report_shows_the_grids(tiny: Path, tmp_path: Path, curves: None) -> None:
    result = run(tiny, tmp_path / "out", eval_samples=6, eval_every=1, num_epochs=1)
    page = (result.out / "report.html").read_text()
    assert page.count("data:image/png") == 2 + 3 and "one column for each of: a; b; c." in page
    grids = [grid_of(result, step) for step in (0, 1, 2)]
    # Three prompts in columns, twice; 8 pixels a side shown as 64.
    assert grids[1].shape == (2 * 64 + 2, 3 * 64 + 2 * 2, 3)
    assert not np.array_equal(grids[0], grids[2])


def test_many_prompts_are_not_said_to_be_columns(tiny: Path, tmp_path: Path) -> None:
    letters = [chr(ord("a") + place) for place in range(12)]
    result = run(tiny, tmp_path / "out", prompts=letters, eval_samples=12, max_steps=1)
    page = (result.out / "report.html").read_text()
    assert f"row by row, in turn: {'; '.join(letters)}." in page
    assert grid_of(result, 0).shape == (2 * 66 - 2, 10 * 66 - 2, 3)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "rebel", "pairs": "best-worst", "num_samples": 3, "minibatch_size": 1, "num_epochs": 2},
        {"method": "grpo", "beta": 0.1, "clip": 0.1}, {"method": "ppo", "num_samples": 1, "batch_size": 3},
        {"kl_weight": 0.1, "log_prob_scale": "1/D", "num_steps": 3}, {"lora_rank": 0, "method": "pmpo"},
        {"method": "ppo", "beta": 0.1, "log_prob_scale": 0.5}, {"method": "dpo", "label_smoothing": 0.1},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_change_the_way(options: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    result = run(tiny, tmp_path / "out", **options)
    assert result.steps >= 2 and result.after["kl_policy_ref"] > 0


class Cut(BaseException):
    """A power cut."""


@pytest.mark.parametrize(
    ("more", "last"),
    [({"method": "rebel"}, 5), ({"method": "pmpo", "refresh_every": 2}, 4), ({"method": "ppo"}, 4)],
    ids=["rebel", "pmpo", "ppo"],
)
def test_a_run_goes_on_bit_for_bit(
    more: dict[str, Any], last: int, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut in the last batch, with a checkpoint after the third: PMPO's reference is then the policy after the second,
    and prompts have statistics of their own."""
    each = 1 if more["method"] == "pmpo" else 2
    options = more | {
        "max_steps": last * each, "save_every": 3 * each, "eval_every": 3 * each, "statistics_size": 8,
        "statistics_least": 4, "gold": dark,
    }  # fmt: skip
    whole = run(tiny, tmp_path / "whole", **options)
    update, calls = Learner.update, []

    def cut(self: Learner, batch: Any, **others: Any) -> dict[str, float]:
        calls.append(self.step)
        if len(calls) == last:
            raise Cut
        return update(self, batch, **others)

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "update", cut)
        with pytest.raises(Cut):
            run(tiny, tmp_path / "cut", **options)
    assert calls == [place * each for place in range(last)] and not (tmp_path / "cut" / "model").exists()
    rest = run(tiny, tmp_path / "cut", resume=True, **options)
    ours, theirs = (load_file(result.model / LORA) for result in (rest, whole))
    assert all(torch.equal(ours[name], part) for name, part in theirs.items()) and ours.keys() == theirs.keys()
    points = [json.loads((tmp_path / name / "evaluations.json").read_text()) for name in ("whole", "cut")]
    assert points[0] == points[1] and len(points[0]) == 3
    timed = ("seconds", "seconds_collecting", "images_per_second")
    logged = [
        [{name: value for name, value in row.items() if name not in timed} for row in read_metrics(path)]
        for path in (tmp_path / name / "metrics.jsonl" for name in ("whole", "cut"))
    ]
    assert logged[0] == logged[1]


@pytest.mark.parametrize("method", ["rebel", "ppo"])
def test_the_papers_preset(method: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H.3.3: log-probs as means over the latent, eta 1, rates 3e-4 and 1e-4, PPO's clip 1e-4, gradient norm 5."""
    options: dict[str, Any] = {"method": method, "preset": "paper", "lr": None, "lora_rank": 8}
    _, learner, asked = first_update(tiny, tmp_path / "out", monkeypatch, **options)
    scaled: Any = learner.objective
    assert scaled.log_prob_scale == 1 / (4 * 4 * 4) and learner.max_grad_norm == 5
    assert learner.base_lrs == {"policy": 3e-4 if method == "rebel" else 1e-4}
    assert asked == {"monitor": True, "num_epochs": 1 if method == "rebel" else 2, "minibatch_size": 0}
    objective = scaled.objective
    assert (objective.eta, objective.anchor) == (1, "old") if method == "rebel" else objective.clip == 1e-4
    kept = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert kept["lr"] == learner.base_lrs["policy"] and kept["max_grad_norm"] == 5
    assert kept["log_prob_scale"] == "1/D" and "preset" not in kept
    assert kept.get("clip") == (None if method == "rebel" else 1e-4)
    # What is given stands.
    own = options | {"lr": 1e-3, "max_grad_norm": 2.0, "log_prob_scale": "0.5"}
    own |= {} if method == "rebel" else {"clip": 0.3}
    _, learner, _ = first_update(tiny, tmp_path / "own", monkeypatch, **own)
    scaled = learner.objective
    assert scaled.log_prob_scale == 0.5 and learner.base_lrs == {"policy": 1e-3} and learner.max_grad_norm == 2
    assert method == "rebel" or scaled.objective.clip == 0.3


def test_the_first_update_gets_what_was_asked_for(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(name: str, **options: Any) -> tuple[Any, Any, Any]:
        return first_update(tiny, tmp_path / name, monkeypatch, **options)

    batch, learner, asked = first("rebel", method="rebel", pairs="best-worst", num_samples=3, eta=0.3)
    objective: Any = learner.objective
    assert objective.eta == 0.3 and objective.anchor == "old" and asked["num_epochs"] == 2
    assert isinstance(batch.feedback, Rewards) and batch.present.sum(-1).tolist() == [2, 2]
    assert abs(float(batch.feedback.value.mean())) < 1, "standardised, not of 0 to 255"
    batch, learner, _ = first("pmpo", method="pmpo", preset="a")
    objective = learner.objective
    assert isinstance(batch.feedback, Labels) and objective.alpha == 1.0
    assert batch.feedback.sign.sum(-1).tolist() == [0, 0]
    batch, *_ = first("raw", method="rloo", statistics_size=0)
    assert bool((batch.feedback.value > 20).all())
    batch, learner, _ = first("dpo", method="dpo", beta=0.2)
    objective = learner.objective
    assert objective.beta == 0.2 and objective.anchor == "reference"


def test_the_reward_rises_and_the_best_by_the_judge_is_kept(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Brighter images; the judge likes dark ones, and so the policy as it began."""
    options = {
        "max_steps": 16, "eval_every": 8, "eval_samples": 24, "batch_size": 3, "num_samples": 8, "lora_rank": 0,
        "gold": dark, "quiet": False, "num_epochs": 1,
    }  # fmt: skip
    out = tmp_path / "out"
    result = run(tiny, out, **options)
    before, after = result.before, result.after
    assert after["reward"] - before["reward"] > 2 * (before["reward_95_half_width"] + after["reward_95_half_width"])
    assert after["gold"] < before["gold"] and after["gold_win_rate"] < 0.5 and before["gold_win_rate"] == 0.5
    files = (folder / "unet" / "diffusion_pytorch_model.safetensors" for folder in (tiny, out / "best-by-gold"))
    start, best = map(load_file, files)
    assert start.keys() == best.keys() and all(torch.equal(best[name], part) for name, part in start.items())
    said = capsys.readouterr().out
    assert "reward: bright; gold, only measured: dark" in said
    assert "DIVERGED" in said and "best-by-gold" in said and "DIVERGED" in (out / "report.html").read_text()


def test_without_a_judge_none_is_measured(tiny: Path, tmp_path: Path) -> None:
    result = run(tiny, tmp_path / "out", gold=None)
    assert "gold" not in result.after and not (tmp_path / "out" / "best-by-gold").exists()


def test_the_whole_network_is_saved_as_a_pipeline(tiny: Path, tmp_path: Path) -> None:
    """The last evaluation's images are what the saved pipeline draws."""
    result = run(tiny, tmp_path / "out", lora_rank=0)
    before, after = (DiffusionPipeline.from_pretrained(folder, safety_checker=None) for folder in (tiny, result.model))
    pairs = [(part, after.unet.state_dict()[name]) for name, part in before.unet.state_dict().items()]
    assert any(not torch.equal(old, new) for old, new in pairs)
    assert (result.model / "README.md").is_file()
    policy = load_denoiser(str(result.model), SamplerSettings(num_steps=2, lora_rank=0))
    context = policy.context(["a", "b", "c", "a"])
    action = policy.sample(context, 1, torch.Generator().manual_seed(7919))
    assert action.output is not None
    grid = image_grid([row[0] for row in action.output], 3)
    assert np.array_equal(np.asarray(grid), grid_of(result, 2))


def test_a_pairwise_reward_by_its_file(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two images the brighter one has won: half of a win or of a loss each, whatever the statistics."""
    (tmp_path / "judges.py").write_text(
        "import numpy as np\n"
        "def brighter(prompts, first, second):\n"
        "    assert len(prompts) == len(first) == len(second) and set(prompts) <= {'a', 'b', 'c'}\n"
        "    gaps = [np.asarray(a).mean() - np.asarray(b).mean() for a, b in zip(first, second)]\n"
        "    return [0.5 + 0.5 * np.sign(gap) for gap in gaps]\n"
    )
    options: dict[str, Any] = {"reward": f"pairwise:{tmp_path}/judges.py:brighter"}
    batch, _, _ = first_update(tiny, tmp_path / "first", monkeypatch, **options)
    assert sorted(set(batch.feedback.value.flatten().tolist())) == [-0.5, 0.5]
    light = [[np.asarray(image).mean() for image in row] for row in batch.action.output]
    assert [row.index(max(row)) for row in light] == batch.feedback.value.argmax(1).tolist()
    for method in ("rebel", "spo"):
        result = run(tiny, tmp_path / method, method=method, **options)
        assert result.after["kl_policy_ref"] > 0 and result.before["reward"] == 0.5


def test_prompts_from_files_with_metadata(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def judge(images, prompts, metadata):\n"
        "    assert all(row == {'colour': p * 2} for p, row in zip(prompts, metadata, strict=True)), metadata\n"
        "    return [i.getpixel((0, 0))[0] for i in images]\n"
    )
    rows = [{"prompt": letter, "colour": letter * 2} for letter in "abc"]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine = f"{tmp_path}/mine.py:judge"
    result = run(tiny, tmp_path / "out", reward=mine, prompts=tmp_path / "prompts.jsonl")
    assert result.steps == 2
    (tmp_path / "prompts.txt").write_text("a\n\n  b  \n")
    result = run(tiny, tmp_path / "plain", prompts=tmp_path / "prompts.txt")
    card = (result.model / "README.md").read_text()
    assert "prompts.txt" in card and "row by row" not in (result.out / "report.html").read_text()
    assert "one column for each of: a; b." in (result.out / "report.html").read_text()


def test_rewards_of_every_form_in_python(tiny: Path, tmp_path: Path) -> None:
    def spoils(images: list[Any], prompts: list[str], metadata: list[Any]) -> list[float | None]:
        found: list[float | None] = [mean_of(image) for image in images]
        for image in images:
            image.paste((0, 0, 0), (0, 0, 8, 8))
        return found

    def own(prompts: list[str], completions: list[Any], metadata: list[Any]) -> list[float | None]:
        return [mean_of(image) for image in completions]

    def wins(prompts: list[str], first: list[Any], second: list[Any]) -> list[float | None]:
        return [0.5 + 0.5 * np.sign(mean_of(a) - mean_of(b)) for a, b in zip(first, second, strict=True)]

    # What a reward does to its images stays with it: the judge sees them as they were.
    short = {"max_steps": 1, "eval_samples": 2}
    result = run(tiny, tmp_path / "spoils", reward=spoils, gold=bright, **short)
    assert result.before["gold"] == pytest.approx(result.before["reward"]) and result.before["gold"] > 0
    result = run(tiny, tmp_path / "safe", reward=RewardFunction(own, name="mine", what="images"), **short)
    assert yaml.safe_load((result.out / "config.yaml").read_text())["reward"] == "mine"
    result = run(tiny, tmp_path / "pairs", reward=SelfPlay(PairFunction(wins), name="wins"), **short)
    assert result.before["reward"] == 0.5


def test_images_without_a_number_are_counted(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[int] = []

    def moody(images: list[Any], prompts: list[str], metadata: list[Any]) -> list[float | None]:
        calls.append(len(images))
        return [None if len(calls) > 1 and place == 0 else mean_of(image) for place, image in enumerate(images)]

    run(tiny, tmp_path / "out", reward=moody, quiet=False)
    assert f"the reward gave no number for {len(calls) - 1} images: no finite number" in capsys.readouterr().out


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"pipeline": "/no/such/folder"}, "`pipeline` /no/such/folder cannot be loaded"),
    ({"num_steps": 1}, "`num_steps` is 1, and must be at least 2"),
    ({"prompts": "nowhere.txt"}, "`prompts` nowhere.txt cannot be read"),
    ({"prompts": "nowhere.jsonl"}, "nowhere.jsonl"),
    ({"prompts": ""}, "`prompts` is missing"),
    ({"reward": "default"}, "`reward` is missing: only small-digits has a default one"),
    ({"reward": "beauty"}, "`reward`: 'beauty' is none of jpeg-small"),
    ({"gold": "beauty"}, "`gold`: 'beauty' is none of jpeg-small"),
    ({"method": "kto"}, "`method` is 'kto', and must be one of rebel, pmpo"),
    ({"preset": "ar"}, "`preset` is 'ar', and must be one of paper"),
    ({"preset": "ar", "method": "ppo"}, "`preset` is 'ar', and must be one of paper"),
    ({"preset": "paper", "method": "pmpo"}, "`preset` is 'paper', and must be one of ar, a, r"),
    ({"preset": "best", "method": "rloo"}, "`preset` is 'best', and must be left out: rloo has none"),
    ({"eta": 2, "method": "ppo"}, "`eta` belongs to the method rebel or spo"),
    ({"beta": "auto", "method": "dpo"}, "`beta`: could not convert string to float: 'auto'"),
    ({"beta": 0, "method": "dpo"}, "`beta` must be finite and > 0"),
    ({"num_samples": 1}, "`num_samples` is 1, and must be at least 2: rebel compares"),
    ({"statistics_least": 33}, "`statistics_least` is 33, and must be at most `statistics_size`"),
    ({"log_prob_scale": 0}, "`log_prob_scale` is '0', and must be a number above 0, or 1/D"),
    ({"log_prob_scale": "D"}, "`log_prob_scale` is 'D', and must be a number above 0, or 1/D"),
    ({"clip": 0.1}, "`clip` belongs to the method ppo or grpo"),
    ({"method": "rloo", "num_epochs": 2}, "`num_epochs` belongs to the method rebel or pmpo"),
    ({"method": "reinforce", "minibatch_size": 2}, "`minibatch_size` belongs to the method rebel or pmpo"),
    ({"refresh_every": 2}, "`refresh_every` belongs to the method pmpo"),
    ({"stochasticity": 0}, "`stochasticity` is 0"),
    ({"dtype": "int8"}, "`dtype` is 'int8', and must be one of float32, bfloat16, float16"),
    ({"value_lr": 1e-3}, "`value_lr`"), ({"micro_batch_tokens": 5}, "`micro_batch_tokens`"),
    ({"num_given": 1}, "`num_given`"), ({"eta_schedule": (1.0,)}, "`eta_schedule`"),
    ({"no_such": 1}, "Unrecognized options: `no_such`"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "said"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_input_is_one_clear_line(options: dict[str, Any], said: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        run(tiny, tmp_path / "out", **options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        ("\n  \n", "empty.txt", "holds no prompt: give one a line"),
        ('{"prompt": [{"role": "user", "content": "a cat"}]}\n', "chat.jsonl", "must be plain text, and one is"),
        ("\x00\xff", "bytes.txt", "cannot be read"),
    ],
)
def test_wrong_prompts_are_one_clear_line(content: str, name: str, said: str, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=said) as caught:
        run(tiny, tmp_path / "out", prompts=tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_reward_that_judges_nothing_stops_the_run(tiny: Path, tmp_path: Path) -> None:
    def broken(images: list[Any], prompts: list[str], metadata: list[Any]) -> list[float | None]:
        raise RuntimeError("no\nidea")

    def none(images: list[Any], prompts: list[str], metadata: list[Any]) -> list[float | None]:
        return [None] * len(images)

    said = "the reward broken judged none of the first 4 images: RuntimeError: no idea"
    with pytest.raises(UserError, match=said):
        run(tiny, tmp_path / "out", reward=broken)
    # Nothing was learned: the folder is free.
    with pytest.raises(UserError, match="the reward none judged none of the first 4 images: none of its numbers is"):
        run(tiny, tmp_path / "out", reward=none)


def test_a_folder_holds_one_run(tiny: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_every": 1}
    run(tiny, tmp_path / "out", **options)
    with pytest.raises(UserError, match="already holds a run: continue it with `resume`, or give another `out`"):
        run(tiny, tmp_path / "out", **options)
    with pytest.raises(
        UserError, match=r"`resume` needs the run's own settings, and num_steps changed \(num_steps was 2, is 4\)"
    ):
        run(tiny, tmp_path / "out", resume=True, num_steps=4, **options)
    with pytest.raises(UserError, match="`resume` needs the prompts that the run began with"):
        run(tiny, tmp_path / "out", resume=True, max_steps=4, **(options | {"prompts": ["a", "d"]}))
    assert run(tiny, tmp_path / "out", resume=True, max_steps=4, **options).steps == 4


def test_small_digits_has_a_reward_and_a_judge_where_they_can_judge() -> None:
    def chosen(prompts: Any, **options: Any) -> tuple[str, str]:
        config = configured(pipeline="small-digits", out="o", **options)
        return judge_names(config, [image_prompt(prompt) for prompt in prompts])

    assert chosen(DIGIT_PROMPTS) == (DEFAULT_REWARD, JUDGE)
    assert chosen(["a cat"], reward="jpeg-small") == ("jpeg-small", "")
    assert chosen(DIGIT_PROMPTS, gold="none") == (DEFAULT_REWARD, "")
    assert chosen(DIGIT_PROMPTS, reward="jpeg-large", gold="jpeg-small") == ("jpeg-large", "jpeg-small")


def test_the_command_runs(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    words = ["--prompts", str(tmp_path / "prompts.txt"), "--reward", "jpeg-small", "--out", str(tmp_path / "out")]
    options = {name: value for name, value in QUICK.items() if name not in ("quiet", "gold")}
    words += [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    main(["improve-images", "--pipeline", str(tiny), *words])
    said = capsys.readouterr().out
    assert "2 steps of which 1 draw, D = 64" in said and "reward: jpeg-small; gold, only measured: none" in said
    assert f"written: {tmp_path}/out/model, report.html" in said
    # Its own config.yaml is a config, and what is given beside it wins.
    main(["improve-images", "--config", str(tmp_path / "out" / "config.yaml"), "--out", str(tmp_path / "again")])
    ours, theirs = (load_file(tmp_path / name / "model" / LORA) for name in ("out", "again"))
    assert all(torch.equal(ours[name], part) for name, part in theirs.items())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bogus", "3"], "Unrecognized options: --bogus"),
        (["--num-steps", "x"], "--num-steps"),
        ([], "pipeline, out missing: valence improve-images --pipeline P"),
        (["--pipeline", "small-digits"], "out missing"),
        (["--config", "nope.yaml"], "nope.yaml"),
    ],
)
def test_the_command_says_what_is_wrong(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["improve-images", *words])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and error.count("\n") == 1
