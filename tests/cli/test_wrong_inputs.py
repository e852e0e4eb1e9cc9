"""Wrong inputs to every command: one line that names what is wrong, exit status 2, and no traceback."""

from __future__ import annotations

import gzip
import json
import shlex
from pathlib import Path

import pytest

from valence.cli.main import COMMANDS, main

LABELS = [{"prompt": f"p{n}", "completion": f"answer {n}", "label": n % 2 == 0} for n in range(12)]
REWARDS = """
def raises(completions, **_): raise RuntimeError("no way")
def few(completions, **_): return [0.5]
def one(completions, **_): return 0.5
def nans(completions, **_): return [float("nan")] * len(completions)
def drops(row): return None
def number_of(row): return 3
number = 3
"""
ALIGN, IMPROVE = (
    "align labels.jsonl --model tiny --out o",
    "improve prompts.jsonl --model tiny --out o --eval-samples 4",
)
IMAGES = "improve-images --pipeline small-digits --out o"
REWARD_MODEL, COMPARE = "reward-model pairs.jsonl --model tiny --out o", "compare tiny tiny --prompts prompts.jsonl"
SEARCH, CONTROL, OFFLINE = "search sphere --dim 2", "control worlds:Point-v0 --out o", "offline-control"

BAD = [
    ("frob", "there is no command 'frob'"),
    # inspect: files and how they are read
    ("inspect", "no file given"),
    ("inspect nowhere.jsonl", "nowhere.jsonl: no such file"),
    ("inspect labels.jsonl --bogus", "--bogus"),
    ("inspect empty.jsonl", "empty.jsonl: the file is empty"),
    ("inspect binary.jsonl", "binary.jsonl: a binary file"),
    ("inspect bad.jsonl", "bad.jsonl: not JSON"),
    ("inspect half.json", "half.json: not JSON"),
    ("inspect damaged.jsonl.gz", "damaged.jsonl.gz: a damaged or incomplete gzip file"),
    ("inspect damaged.parquet", "damaged.parquet: a damaged Parquet file"),
    ("inspect twice.csv", "twice.csv: the header names a column twice"),
    ("inspect latin.csv", "latin.csv:2: not UTF-8"),
    ("inspect folder", "folder"),
    ("inspect unknown.jsonl", "unknown.jsonl: none of its 2 rows can be used"),
    ("inspect labels.jsonl --columns promt=prompt", "promt"),
    ("inspect labels.jsonl --columns prompt=question", "no row has a column question"),
    ("inspect labels.jsonl --columns prompt", "--columns"),
    ("inspect labels.jsonl --labels accept", "--labels"),
    ("inspect labels.jsonl --labels accept=yes,accepted=no", "--labels"),
    ("inspect classes.jsonl", "maybe"),
    ("inspect stars.jsonl", "label"),
    ("inspect labels.jsonl --join nowhere.jsonl on=id", "nowhere.jsonl"),
    ("inspect labels.jsonl --join labels.jsonl", "--join"),
    ("inspect labels.jsonl --join labels.jsonl on=nokey", "nokey"),
    ("inspect labels.jsonl --map nowhere.py:f", "--map: nowhere.py does not exist"),
    ("inspect labels.jsonl --map rewards.py", "--map"),
    ("inspect labels.jsonl --map rewards.py:number", "rewards.py:number is a int, and must be a function"),
    ("inspect labels.jsonl --map rewards.py:drops", "dropped by --map"),
    ("inspect labels.jsonl --map rewards.py:number_of", "--map gave int"),
    ("inspect labels.jsonl --prompt-template nowhere.txt", "nowhere.txt"),
    ("inspect labels.jsonl --split train", "--split"),
    ("inspect one-bad.jsonl --strict", "one-bad.jsonl:2"),
    # align: options, model, feedback, folder
    ("align", "feedback, model, out missing"),
    ("align nowhere.jsonl --model tiny --out o", "nowhere.jsonl: no such file"),
    (f"{ALIGN} --method foo", "--method is 'foo', and must be one of auto, pmpo"),
    (f"{ALIGN} --method", "--method needs a value"),
    (f"{ALIGN} --method kto --tau 2", "--tau belongs to the method dro"),
    (f"{ALIGN} --method dpo", "labels cannot become pairs here"),
    (f"{ALIGN} --preset best", "--preset is 'best', and must be one of ar, a, r"),
    (f"{ALIGN} --lr x", "--lr"),
    (f"{ALIGN} --lr -1", "--lr is -1.0, and must be above 0"),
    (f"{ALIGN} --max-steps 0", "--max-steps is 0, and must be at least 1"),
    (f"{ALIGN} --batch-size many", "--batch-size"),
    (f"{ALIGN} --dtype float8", "--dtype"),
    (f"{ALIGN} --device gpu7", "gpu7"),
    (f"{ALIGN} --eval-fraction 1", "--eval-fraction is 1.0, and must be below 1"),
    (f"{ALIGN} --eval-feedback nowhere.jsonl", "nowhere.jsonl: no such file"),
    (f"{ALIGN} --max-length 2", "no row fits --max-length 2: raise it"),
    (f"{ALIGN} --lora-rank 2 --lora-targets nothing", "nothing"),
    (f"{ALIGN} --attention quick", "quick"),
    (f"{ALIGN} --reference-cache c --method supervised", "--reference-cache must be left out"),
    ("align labels.jsonl --model nowhere --out o", "nowhere"),
    ("align labels.jsonl --model folder --out o", "folder"),
    ("align labels.jsonl --model empty.jsonl --out o", "empty.jsonl"),
    ("align labels.jsonl --model nobody/no-such-model --out o", "nobody/no-such-model"),
    ("align prompts.jsonl --model tiny --out o", "improve"),
    ("align empty.jsonl --model tiny --out o", "empty.jsonl: the file is empty"),
    ("align labels.jsonl --model tiny --out empty.jsonl", "--out empty.jsonl cannot be written to"),
    ("align labels.jsonl --model tiny --out empty.jsonl/deep", "--out empty.jsonl/deep cannot be written to"),
    ("align labels.jsonl --model tiny --out ran", "ran already holds a run"),
    ("align labels.jsonl --model tiny --out ran --resume --lr 0.5", "--resume needs the run's own settings"),
    ("align labels.jsonl --model tiny --out broken --resume", "broken/config.yaml cannot be read"),
    ("align --config nowhere.yaml", "nowhere.yaml cannot be read"),
    ("align --config", "--config needs a value"),
    ("align --config binary.jsonl", "binary.jsonl cannot be read"),
    ("align --config list.yaml", "list.yaml must hold fields"),
    ("align --config folder", "folder cannot be read"),
    (f"{ALIGN} --config unknown.yaml", "learning-rate"),
    # improve: the reward and the prompts
    (IMPROVE, "reward missing"),
    (f"{IMPROVE} --reward nothing", "--reward: 'nothing' is none of number"),
    (f"{IMPROVE} --reward nowhere.py:f", "--reward: nowhere.py does not exist"),
    (f"{IMPROVE} --reward rewards.py:nothing", "rewards.py:nothing cannot be loaded"),
    (f"{IMPROVE} --reward broken.py:f", "broken.py:f cannot be loaded: SyntaxError"),
    (f"{IMPROVE} --reward rewards.py:number", "rewards.py:number is a int, and must be a function"),
    (f"{IMPROVE} --reward rewards.py:raises", "judged none of the first 4 completions: RuntimeError: no way"),
    (f"{IMPROVE} --reward rewards.py:few", "gave 1 number for 4 completions: [0.5]; it must give a list"),
    (f"{IMPROVE} --reward rewards.py:one", "gave a float for 4 completions: 0.5; it must give a list"),
    (f"{IMPROVE} --reward rewards.py:nans", "none of its numbers is finite"),
    (f"{IMPROVE} --reward number", "answer"),
    (f"{IMPROVE} --reward folder", "folder"),
    (f"{IMPROVE} --reward 'regex:('", "regex:( is no regular expression"),
    (f"{IMPROVE} --reward mean:length", "mean:length needs two rewards or more"),
    (f"{IMPROVE} --reward judge:somebody", "judge:somebody must have the form judge:MODEL@URL"),
    (f"{IMPROVE} --reward length --gold nothing", "--gold: 'nothing' is none of number"),
    (f"{IMPROVE} --reward length --num-samples 1", "--num-samples is 1, and must be at least 2"),
    (f"{IMPROVE} --reward length --method dro", "--method is 'dro', and must be one of rebel"),
    (f"{IMPROVE} --reward length --reward-timeout 0", "--reward-timeout is 0.0, and must be above 0"),
    ("improve nowhere.jsonl --model tiny --out o --reward length", "nowhere.jsonl: no such file"),
    ("improve prompts.jsonl --model tiny --out empty.jsonl --reward length", "--out empty.jsonl cannot be written to"),
    # improve-images
    ("improve-images --pipeline nowhere --out o", "--prompts is missing"),
    ("improve-images --pipeline nowhere --out o --prompts prompts.jsonl", "--reward is missing"),
    ("improve-images --pipeline nowhere --out o --reward jpeg-small --prompts prompts.jsonl", "nowhere"),
    ("improve-images --pipeline folder --out o --reward jpeg-small --prompts prompts.jsonl", "folder"),
    (f"{IMAGES} --reward nothing", "--reward: 'nothing' is none of jpeg-small"),
    (f"{IMAGES} --prompts nowhere.txt", "nowhere.txt cannot be read"),
    (f"{IMAGES} --prompts empty.txt", "empty.txt holds no prompt"),
    (f"{IMAGES} --log-prob-scale 2/D", "--log-prob-scale is '2/D', and must be a number above 0, or 1/D"),
    (f"{IMAGES} --device gpu7", "gpu7"),
    ("improve-images --pipeline small-digits --out empty.jsonl", "--out empty.jsonl cannot be written to"),
    # reward-model
    ("reward-model pairs.jsonl", "model, out missing"),
    ("reward-model rejected.jsonl --model tiny --out o", "all 11 labels to train on are rejected: a reward"),
    ("reward-model equal.jsonl --model tiny --out o", "all 11 scores to train on are 3"),
    ("reward-model same.jsonl --model tiny --out o", "line 1: chosen and rejected are the same"),
    ("reward-model prompts.jsonl --model tiny --out o", "too few to learn from"),
    (f"{REWARD_MODEL} --kind cycles", "--kind"),
    (f"{REWARD_MODEL} --kind preference --embedding 3", "--embedding is 3, and must be even"),
    ("reward-model pairs.jsonl --model nowhere --out o", "nowhere"),
    ("reward-model pairs.jsonl --model folder --out o", "folder"),
    ("reward-model pairs.jsonl --model tiny --out empty.jsonl", "--out empty.jsonl cannot be written to"),
    # compare
    ("compare tiny --prompts prompts.jsonl --judge length --out o", "1 models given"),
    (f"{COMPARE} --out o", "judge missing"),
    (f"{COMPARE} --judge nothing --out o", "--judge: 'nothing' is none of number"),
    ("compare tiny nowhere --prompts prompts.jsonl --judge length --out o", "nowhere"),
    ("compare tiny tiny --prompts nowhere.jsonl --judge length --out o", "nowhere.jsonl: no such file"),
    (f"{COMPARE} --judge length --out o --max-new-tokens 5000", "--max-new-tokens 5000 leaves tiny no room"),
    (f"{COMPARE} --judge length --out empty.jsonl", "--out empty.jsonl cannot be written to"),
    (f"{COMPARE} --judge length --out ran", "ran already holds a run: give another --out"),
    # control
    ("control", "environment missing"),
    ("control Nowhere-v0 --out o", "Nowhere-v0"),
    (f"{CONTROL} --steps many", "--steps"),
    (f"{CONTROL} --steps 10", "--steps is 10, and must be more than --warmup-steps"),
    ("control worlds:Point-v0 --out empty.jsonl", "--out empty.jsonl cannot be written to"),
    # offline-control
    (OFFLINE, "episodes missing"),
    (f"{OFFLINE} nowhere --out o", "nowhere"),
    (f"{OFFLINE} folder --out o", "folder"),
    (f"{OFFLINE} empty.jsonl --out o", "empty.jsonl"),
    (f"{OFFLINE} folder --out o --use both", "--use"),
    (f"{OFFLINE} folder --out o --discount 1", "--discount is 1.0, and must be below 1"),
    # search
    ("search", "function missing"),
    ("search nothing --dim 2", "there is no function 'nothing'"),
    ("search rewards.py:number --dim 2", "rewards.py:number is a int, and must be a function"),
    (f"{SEARCH} --low 3 --high 1", "--low must be below --high"),
    (f"{SEARCH} --resume --out nowhere", "no saved search in nowhere"),
    (f"{SEARCH} --out empty.jsonl", "--out empty.jsonl cannot be written to"),
    # demo
    ("demo --out empty.jsonl", "--out empty.jsonl cannot be written to"),
    ("demo --out empty.jsonl/deep", "--out empty.jsonl/deep cannot be written to"),
    ("demo --out ran", "ran already holds a run: give another --out"),
    ("demo --max-steps 0", "--max-steps is 0, and must be at least 1"),
    ("demo --samples none", "--samples"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """The folder that the commands are given in."""
    folder = tmp_path_factory.mktemp("wrong")

    def rows(name: str, *found: object) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in found))

    def labelled(*values: object) -> list[dict[str, object]]:
        return [{"prompt": f"p{n}", "completion": f"answer {n}", "label": value} for n, value in enumerate(values)]

    rows("labels.jsonl", *LABELS)
    rows("rejected.jsonl", *labelled(*[False] * 12))
    rows("classes.jsonl", *labelled("yes", "no", "maybe", "yes"))
    rows("stars.jsonl", *labelled(5, 1, 3, 4, 2))
    rows("one-bad.jsonl", LABELS[0], {"prompt": "p", "completion": ""})
    rows("equal.jsonl", *({"prompt": f"p{n}", "completion": f"a{n}", "score": 3} for n in range(12)))
    rows("pairs.jsonl", *({"prompt": f"p{n}", "chosen": f"aaa{n}", "rejected": f"zzz{n}"} for n in range(12)))
    rows("same.jsonl", *({"prompt": f"p{n}", "chosen": f"a{n}", "rejected": f"a{n}"} for n in range(12)))
    rows("prompts.jsonl", *({"prompt": f"{n}: "} for n in range(4)))
    rows("unknown.jsonl", {"colour": "red", "size": 3}, {"colour": "blue", "size": 4})
    for name in ("empty.jsonl", "empty.txt"):
        (folder / name).write_text("")
    (folder / "binary.jsonl").write_bytes(b"\x00\xff\xfe\x01binary")
    (folder / "bad.jsonl").write_text("not json\n")
    (folder / "half.json").write_text("[1, 2")
    (folder / "damaged.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "p"}\n' * 99)[:-20])
    (folder / "damaged.parquet").write_bytes(b"PAR1 and nothing more")
    (folder / "twice.csv").write_text("prompt,prompt,label\na,b,1\n")
    (folder / "latin.csv").write_bytes(b"prompt,completion,label\np,caf\xe9,1\n")
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "broken.py").write_text("def f(x:\n")
    (folder / "list.yaml").write_text("- a\n- b\n")
    (folder / "unknown.yaml").write_text("learning-rate: 1\n")
    (folder / "folder").mkdir()
    (folder / "folder" / "notes.txt").write_text("nothing here")
    (folder / "ran").mkdir()
    (folder / "ran" / "results.json").write_text("{}")
    (folder / "ran" / "config.yaml").write_text("lr: 0.1\n")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.yaml").write_text("a: [")
    (folder / "tiny").symlink_to(tiny_llama)
    return folder


@pytest.mark.parametrize(("words", "said"), BAD, ids=[words for words, _ in BAD])
def test_one_line_that_names_what_is_wrong(
    words: str, said: str, files: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    # On a slow machine lines of progress would stand before it.
    monkeypatch.setattr("valence.training.progress.EVERY", 3600.0)
    with pytest.raises(SystemExit) as stop:
        main(shlex.split(words))
    line, *notes = capfd.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert line.startswith("valence: ") and said in line and "Traceback" not in line and "`" not in line, line
    # A file whose columns are unknown is followed by what they may be, and by nothing else.
    assert not notes or notes[0].startswith("its columns"), notes


def test_the_table_has_every_command_and_sixty_rows_or_more() -> None:
    assert {words.split()[0] for words, _ in BAD} >= set(COMMANDS)
    assert len({words for words, _ in BAD}) == len(BAD) >= 60
