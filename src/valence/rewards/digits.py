"""Two classifiers of drawn digits that share no training image: `digit` is a reward, `digit-judge` checks it.

Both are fitted in memory, at their first call, on scikit-learn's 1797 scans of handwritten digits (8 x 8), drawn
32 x 32 in many colours. The reward is a small neural network on a map of the ink, fitted on the even rows. The judge
is a support vector machine on the directions of the edges, fitted on the odd rows, so that an image that fools the
reward need not fool the judge. Both have an eleventh class, no digit, for flat, noisy and scrambled images. A digit
that fades away falls into it; a classifier with ten classes would still choose one of them.

Legend: M images, S = `SIDE` pixels.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from valence.errors import UserError

Images = Sequence[Any]
"""PIL images."""
SIDE = 32
"""Side of every image, in pixels, after it is resized for judging."""
NO_DIGIT = 10
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FLOOR = 1e-6
"""The smallest probability that the reward gives: its logarithm is -13.8."""
REWARD_HALF, JUDGE_HALF = 0, 1
"""The first row of each half of the scans: the reward has the even rows, the judge the odd ones."""
FAINT = 0.35
"""Distance between the colours of ink and background, at most the root of 3, below which the ink map is paler."""
CELLS = 8
BINS = 9
"""The judge reads 9 directions in each of 8 x 8 cells."""
_NAMED = re.compile(rf"\b(?:(digit|number|numeral)\s+)?(?<!\d\.)({'|'.join(WORDS)}|\d)\b(?!\.\d)", re.IGNORECASE)


def digit_named(prompt: str) -> int | None:
    """The digit that a prompt names: a word from zero to nine or a single numeral.

    If one stands right after "digit", "number" or "numeral", the others do not count ("one picture of the digit seven"
    is 7). None if there is no digit, or several different ones.
    """
    words = [(bool(lead), word.casefold()) for lead, word in _NAMED.findall(prompt)]
    named = [word for lead, word in words if lead] or [word for _, word in words]
    values = {WORDS.index(word) if word in WORDS else int(word) for word in named}
    return values.pop() if len(values) == 1 else None


def pixels(images: Images) -> np.ndarray:
    """RGB images of any size as numbers in [0, 1], [M,S,S,3]."""
    from PIL import Image

    resized = [image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC) for image in images]
    return np.stack([np.asarray(image, dtype=np.float32) for image in resized]) / 255


def ink_map(image: np.ndarray) -> np.ndarray:
    """The share of ink at each place, whatever the colours: [M,S,S,3] -> [M,(S/2)^2], about 0 (background) to 1.

    The colour of the background is the median of the border. The colour of the ink is the mean of the tenth of the
    pixels that are farthest from the background. The share of a pixel says where its colour lies between the two. If
    they are closer than `FAINT`, the map is pale: faint noise then makes no strokes, and fading digits vanish.
    """
    size = len(image)
    border = np.concatenate([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], axis=1)
    off = (image - np.median(border, axis=1)[:, None, None]).reshape(size, -1, 3)
    distance = np.linalg.norm(off, axis=2)
    far = np.argsort(distance, axis=1)[:, -SIDE * SIDE // 10 :]
    ink = np.take_along_axis(off, far[:, :, None], axis=1).mean(1)
    length = np.linalg.norm(ink, axis=1)
    along = np.einsum("mpc,mc->mp", off, ink) / np.maximum(length, 1e-6)[:, None]
    share = np.clip(along / np.maximum(length, FAINT)[:, None], -0.2, 1.2)
    half = SIDE // 2
    return share.reshape(size, half, 2, half, 2).mean((2, 4)).reshape(size, -1)


def edge_histograms(image: np.ndarray) -> np.ndarray:
    """The strength of the edges of each direction in each cell: [M,S,S,3] -> [M,CELLS^2 * BINS].

    At each pixel the largest gradient of the three colours counts, by its direction without its sign, so that dark on
    light equals light on dark. The values are square roots of shares of the total strength, which counts as at least 6
    in images with faint edges.
    Source: Dalal and Triggs 2005, "Histograms of oriented gradients", with one normalisation over the image.
    """
    size = len(image)
    smooth = (np.roll(image, 1, 1) + 2 * image + np.roll(image, -1, 1)) / 4
    smooth = (np.roll(smooth, 1, 2) + 2 * smooth + np.roll(smooth, -1, 2)) / 4
    down, across = np.gradient(smooth, axis=(1, 2))
    strength = np.hypot(down, across)
    best = strength.argmax(3)[..., None]
    down, across, strength = (np.take_along_axis(part, best, 3)[..., 0] for part in (down, across, strength))
    place = np.mod(np.arctan2(down, across), np.pi) / np.pi * BINS
    low = np.floor(place)
    edge = SIDE // CELLS
    histogram = np.zeros((size, CELLS, CELLS, BINS), dtype=np.float32)
    for number in range(BINS):
        share = np.where(low % BINS == number, 1 - (place - low), 0) + np.where(
            (low + 1) % BINS == number, place - low, 0
        )
        histogram[..., number] = (share * strength).reshape(size, CELLS, edge, CELLS, edge).sum((2, 4))
    flat = histogram.reshape(size, -1)
    return np.sqrt(flat / np.maximum(flat.sum(1, keepdims=True), 6.0))


@functools.cache
def half_of_digits(which: int) -> tuple[np.ndarray, np.ndarray]:
    """(scans [M,8,8] in [0, 1], digits [M]) of the even (0: the reward's) or the odd (1: the judge's) rows.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("digit and digit-judge need scikit-learn: pip install 'valence-learn[images]'") from error
    data: Any = load_digits()
    scans, digits = (data.images[which::2] / 16).astype(np.float32), data.target[which::2]
    for part in (scans, digits):
        part.setflags(write=False)
    return scans, digits


def draw(scans: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Scans [M,8,8] as images [M,S,S,3] in [0, 1]: slightly turned, moved and scaled, in two clearly different colours,
    with shading and noise."""
    alpha = np.stack([_warped(scan, generator) for scan in scans])[..., None]
    size = len(scans)
    ground, ink = generator.random((2, size, 3), dtype=np.float32)
    while len(near := np.flatnonzero(np.linalg.norm(ink - ground, axis=1) < 0.4)):
        ink[near] = generator.random((len(near), 3), dtype=np.float32)
    image = ground[:, None, None] * (1 - alpha) + ink[:, None, None] * alpha
    return _textured(image, generator)


def no_digits(scans: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Images [M,S,S,3] in [0, 1] without a digit: a third each flat (some with an invisibly pale digit, at most three
    hundredths of a drawing), noise of a coarse or fine grain, and scrambled digits."""
    size = len(scans)
    drawn = draw(scans, generator)
    pale = generator.uniform(0, 0.03, (size, 1, 1, 1)) * (drawn - 0.5)
    flat = _textured(generator.random((size, 1, 1, 3)) + pale, generator)
    grain = np.asarray([2, 4, 8])[generator.integers(0, 3, size)]
    noise = np.stack([
        generator.random((SIDE // step, SIDE // step, 3)).repeat(step, 0).repeat(step, 1) for step in grain
    ])  # fmt: skip
    quarter = SIDE // 4
    tiles = drawn.reshape(size, 4, quarter, 4, quarter, 3).swapaxes(2, 3).reshape(size, 16, quarter, quarter, 3)
    order = generator.permuted(np.tile(np.arange(16), (size, 1)), axis=1)
    tiles = np.take_along_axis(tiles, order[:, :, None, None, None], axis=1)
    scrambled = tiles.reshape(size, 4, 4, quarter, quarter, 3).swapaxes(2, 3).reshape(drawn.shape)
    kind = (np.arange(size) % 3)[:, None, None, None]
    return np.where(kind == 0, flat, np.where(kind == 1, noise, scrambled)).astype(np.float32)


def _warped(scan: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    from PIL import Image

    turn, grow = generator.uniform(-0.15, 0.15), generator.uniform(0.9, 1.15)
    cos, sin = np.cos(turn) * grow, np.sin(turn) * grow
    middle = SIDE / 2
    move = generator.uniform(-2, 2, 2)
    matrix = (cos, sin, middle - (cos + sin) * middle + move[0], -sin, cos, middle - (cos - sin) * middle + move[1])
    large = Image.fromarray(scan).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    turned = large.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.clip(np.asarray(turned) * generator.uniform(0.8, 1.3), 0, 1)


def _textured(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Adds soft shading and pixel noise to each image, each of a random strength, which is often 0."""
    size = len(image)
    amount = np.maximum(generator.uniform(-0.03, 0.06, (2, size, 1, 1, 1)), 0).astype(np.float32)
    knots = generator.standard_normal((size, 4, 4, 3), dtype=np.float32)
    places = np.linspace(0, 3, SIDE)[:, None]
    hat = np.clip(1 - np.abs(places - np.arange(4)), 0, 1).astype(np.float32)
    shading = np.einsum("ia,jb,mabc->mijc", hat, hat, knots, optimize=True)
    noise = generator.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image + 2 * amount[0] * shading + amount[1] * noise, 0, 1)


def _examples(
    which: int, features: Callable[[np.ndarray], np.ndarray], drawings: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(features, classes) of each scan of a half, drawn `drawings` times, and of a third as many images without a
    digit."""
    scans, digits = half_of_digits(which)
    generator = np.random.default_rng(seed)
    inputs, classes = [], []
    for _ in range(drawings):
        others = generator.permutation(len(scans))[: len(scans) // 3]
        inputs += [features(draw(scans, generator)), features(no_digits(scans[others], generator))]
        classes += [digits, np.full(len(others), NO_DIGIT)]
    return np.concatenate(inputs), np.concatenate(classes)


@functools.cache
def _network() -> Any:
    """The reward's classifier: one hidden layer of 128 units on the ink map, fitted on the even rows."""
    inputs, classes = _examples(REWARD_HALF, ink_map, 12, seed=0)
    from sklearn.neural_network import MLPClassifier

    fitted: Any = MLPClassifier((128,), alpha=0.01, learning_rate_init=0.002, batch_size=64, random_state=0)  # pyright: ignore
    for _ in range(12):
        fitted.partial_fit(inputs, classes, classes=np.arange(NO_DIGIT + 1))
    return fitted


@functools.cache
def _machine() -> Any:
    """The judge's classifier: a support vector machine on edge histograms, fitted on the odd rows."""
    inputs, classes = _examples(JUDGE_HALF, edge_histograms, 3, seed=1)
    from sklearn.svm import SVC

    return SVC(C=3.0, gamma="scale").fit(inputs, classes)


def log_probs(images: Images) -> np.ndarray:
    """The reward's log-probabilities of each digit and of `NO_DIGIT`: [M,11] in nats, at least log `FLOOR`."""
    return np.log(np.maximum(_network().predict_proba(ink_map(pixels(images))), FLOOR))


def judged(images: Images) -> np.ndarray:
    """The digit, or `NO_DIGIT`, that the independent judge sees in each image: [M]."""
    return _machine().predict(edge_histograms(pixels(images)))


def digit(images: Images, prompts: Sequence[str], metadata: Sequence[object]) -> list[float | None]:
    """log P(the digit that the prompt names), nats; None if it names none."""
    rows = zip(log_probs(images), map(digit_named, prompts), strict=True)
    return [None if named is None else float(row[named]) for row, named in rows]


def digit_judge(images: Images, prompts: Sequence[str], metadata: Sequence[object]) -> list[float | None]:
    """1 if the independent judge sees the digit that the prompt names, else 0; None if it names none."""
    rows = zip(judged(images), map(digit_named, prompts), strict=True)
    return [None if named is None else float(seen == named) for seen, named in rows]
