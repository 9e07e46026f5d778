"""Streams of multiple-choice questions to send: made from word lists, or read from a file.

Made questions make no sense; what they share with real ones is what costs time. Lengths and numbers of choices follow
the dev splits of five public sets (5,903 questions, words split at blanks; quantiles at 1, 10, 25, 50, 75, 90, 99 %):

    kind          of                 share  choices  question              context             a choice
    cause         e-CARE             36 %   2        8 words, always       3 4 5 7 9 11 16     3 4 5 7 9 11 16
    common sense  CommonsenseQA      21 %   5        5 8 9 12 16 20 30     none                1 1 1 1 2 2 4
    explanation   ComVE, B           17 %   3        7 words, always       3 4 5 7 8 10 15     3 4 6 7 9 11 16
    statement     ComVE, A           17 %   2        6 words, always       none                3 4 5 7 8 10 15
    completion    CODAH               9 %   4        5 6 7 9 12 16 23      none                1 2 3 5 7 9 15

Together: 3.0 choices a question; a row (context, question and one choice) 17.7 words, median 17, 99 % up to 33.
Made ones: 17.9, 18, 34; in the tokens of all-MiniLM-L6-v2 23.5 a row, where the sets have 23.8. No word of those
sets is in here.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, count, cycle, islice
from pathlib import Path

import msgspec

WORDS = {
    part: words.split()
    for part, _, words in (
        line.partition(":") for line in Path(__file__).with_name("words.txt").read_text().splitlines()
    )
}
NOUNS = WORDS["nouns"]
SENTENCE = tuple(WORDS[part] for part in WORDS["clause"])
"""One clause; longer sentences go round."""
OPENINGS = WORDS["openings"]

Stream = Iterator[bytes]
Draw = Callable[[], float]


class Question(msgspec.Struct, omit_defaults=True):
    """What a request's body holds."""

    question: str
    choices: list[str]
    context: str | None = None


@dataclass(frozen=True)
class Lengths:
    """Words, drawn between quantiles at 0, 1, 10, 25, 50, 75, 90, 99 and 100 %."""

    words: tuple[int, ...]
    at: tuple[float, ...] = (0.0, 0.01, 0.10, 0.25, 0.50, 0.75, 0.90, 0.99, 1.0)

    def draw(self, uniform: float) -> int:
        """The length below which this share of texts lies."""
        i = bisect_right(self.at, uniform) - 1
        low, high = self.words[i], self.words[i + 1]
        return low + round((high - low) * (uniform - self.at[i]) / (self.at[i + 1] - self.at[i]))


@dataclass(frozen=True)
class Kind:
    """One set's way of asking. `asks` is the fixed question, or None where each has its own."""

    share: int
    n_choices: int
    choice: Lengths
    asks: str | None = None
    end: str = "."
    """What a choice ends with."""
    question: Lengths | None = None
    context: Lengths | None = None


CHOICE = Lengths((2, 3, 4, 5, 7, 9, 11, 16, 22))
KINDS = (
    Kind(2132, 2, CHOICE, "What is the likely cause of all this?", context=CHOICE),
    Kind(1221, 5, Lengths((1, 1, 1, 1, 1, 2, 2, 4, 5)), end="", question=Lengths((4, 5, 8, 9, 12, 16, 20, 30, 50))),
    Kind(997, 3, CHOICE, "Why does this statement make no sense?", context=Lengths((2, 3, 4, 5, 7, 8, 10, 15, 22))),
    Kind(997, 2, Lengths((2, 3, 4, 5, 7, 8, 10, 15, 22)), "Which statement does make no sense?"),
    Kind(556, 4, Lengths((1, 1, 2, 3, 5, 7, 9, 15, 22)), question=Lengths((4, 5, 6, 7, 9, 12, 16, 23, 48))),
)


def made(seed: int = 0) -> Iterator[Question]:
    """Endless questions, no two alike; the same seed gives the same ones on every machine."""
    source = random.Random(seed)
    shares = list(accumulate(kind.share for kind in KINDS))
    seen: set[int] = set()
    while True:
        question = make(KINDS[bisect_right(shares, source.random() * shares[-1])], source.random)
        mark = hash((question.question, question.context, *question.choices))
        if mark not in seen:
            seen.add(mark)
            yield question


def make(kind: Kind, draw: Draw) -> Question:
    """One question of a kind."""
    asks = kind.asks or sentence(kind.question.draw(draw()), draw, OPENINGS, "?")  # type: ignore[union-attr]  # either
    choices: list[str] = []
    while len(choices) < kind.n_choices:
        choice = sentence(kind.choice.draw(draw()), draw, None, kind.end)
        if choice not in choices:
            choices.append(choice)
    context = sentence(kind.context.draw(draw()), draw, None, ".") if kind.context else None
    return Question(asks, choices, context)


def sentence(n_words: int, draw: Draw, opening: Sequence[str] | None, end: str) -> str:
    """Words of the clause's parts in turn; one that would end in the air ends in a noun."""
    words = [] if opening is None else [opening[int(draw() * len(opening))]]
    for part in islice(cycle(SENTENCE), n_words - 1 - len(words)):
        words.append(part[int(draw() * len(part))])
    words.append(NOUNS[int(draw() * len(NOUNS))])
    return " ".join(words) + end


def read(path: Path) -> list[Question]:
    """Questions of a JSONL file; other fields, such as labels, are left out. Raises ValueError naming a bad line."""
    decoder = msgspec.json.Decoder(Question)
    questions = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            if line.strip():
                questions.append(decoder.decode(line))
        except msgspec.DecodeError as err:
            raise ValueError(f"{path}:{number}: {err}; expected {{'question', 'choices', 'context'?}} a line") from err
    if not questions:
        raise ValueError(f"{path}: no questions in the file; expected one JSON object a line")
    return questions


def bodies(seed: int = 0, file: Path | None = None, repeats: float = 0.0, ready: int = 0) -> Stream:
    """Request bodies, endless. `file`: its questions over and over, else made ones. `ready`: so many are encoded now,
    so that they cost the load generator nothing later.

    `repeats`: this share of the requests asks again what was asked before.
    """
    questions = made(seed) if file is None else cycle(read(file))
    encode = msgspec.json.Encoder().encode
    stream: Stream = map(encode, questions)
    if repeats:
        stream = with_repeats(stream, repeats, seed)
    return chain(list(islice(stream, ready)), stream)


def with_repeats(stream: Stream, share: float, seed: int = 0, popular: int = 10_000, exponent: float = 1.0) -> Stream:
    """A request is, with the probability `share`, one of the first `popular` ones again, the k-th in proportion to
    1 / k**exponent (Zipf's law, as queries to search engines follow it); else the stream's next one."""
    source = random.Random(seed + 1)
    weights = list(accumulate(k**-exponent for k in range(1, popular + 1)))
    asked: list[bytes] = []
    for _ in count():
        if asked and source.random() < share:
            yield asked[bisect_right(weights, source.random() * weights[len(asked) - 1], hi=len(asked) - 1)]
            continue
        body = next(stream)
        if len(asked) < popular:
            asked.append(body)
        yield body
