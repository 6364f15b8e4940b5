"""Questions and answers about LLM inference, made of the notes and the phrasings.

An answer is always the definition of the topic, followed by none, one or two of its facts in their order.
So there are many different exchanges, and every sentence of every answer was written, and checked, by a
person.

Read next: `documents.py`, which puts exchanges, stories and prose into documents.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from minivllm.lab.tiny_model.corpus import (
    en_kernels,
    en_memory,
    en_model,
    en_scheduling,
    en_serving,
    phrasings,
    zh_kernels,
    zh_memory,
    zh_model,
    zh_scheduling,
    zh_serving,
)
from minivllm.lab.tiny_model.corpus.notes import Topic, read_notes

CHAPTERS: dict[str, list[list[Topic]]] = {
    "en": [read_notes(m.NOTES) for m in (en_memory, en_scheduling, en_kernels, en_model, en_serving)],
    "zh": [read_notes(m.NOTES) for m in (zh_memory, zh_scheduling, zh_kernels, zh_model, zh_serving)],
}


@dataclass(frozen=True)
class Phrases:
    """What `phrasings.py` holds for one language, and the space between two sentences."""

    ask: list[str]
    ask_short: list[str]
    ask_long: list[str]
    more: list[str]
    bridge: list[str]
    system: list[str]
    courtesy: list[tuple[list[str], str]]
    off_topic: list[tuple[str, list[str]]]
    refusal: str
    space: str


PHRASES = {
    "en": Phrases(
        phrasings.ASK_EN,
        phrasings.ASK_SHORT_EN,
        phrasings.ASK_LONG_EN,
        phrasings.MORE_EN,
        phrasings.BRIDGE_EN,
        phrasings.SYSTEM_EN,
        phrasings.COURTESY_EN,
        phrasings.OFF_TOPIC_EN,
        phrasings.REFUSAL_EN,
        " ",
    ),
    "zh": Phrases(
        phrasings.ASK_ZH,
        phrasings.ASK_SHORT_ZH,
        phrasings.ASK_LONG_ZH,
        phrasings.MORE_ZH,
        phrasings.BRIDGE_ZH,
        phrasings.SYSTEM_ZH,
        phrasings.COURTESY_ZH,
        phrasings.OFF_TOPIC_ZH,
        phrasings.REFUSAL_ZH,
        "",
    ),
}


@dataclass(frozen=True)
class Exchange:
    """One question and its answer."""

    question: str
    answer: str


def exchanges(language: str, rng: random.Random) -> Iterator[Exchange]:
    """Every topic under every name in every phrasing, with answers of several lengths drawn at random."""
    phrases = PHRASES[language]
    for topic in (topic for chapter in CHAPTERS[language] for topic in chapter):
        for index, name in enumerate(topic.names):
            for phrasing in phrases.ask:
                for _ in range(4 if index == 0 else 2):
                    yield Exchange(
                        put_question(phrasing, topic, name, rng), draw_answer(topic, language, rng)
                    )
            for phrasing in phrases.ask_short:
                yield Exchange(put_question(phrasing, topic, name, rng), topic.definition)
        for questions, answer in topic.asked:
            for question in questions:
                for _ in range(8):
                    yield Exchange(hurry(question, rng), answer)


def courtesies(language: str, rng: random.Random) -> Iterator[Exchange]:
    """Greetings, questions about the model itself, and questions it honestly cannot answer."""
    phrases = PHRASES[language]
    for _ in range(3):
        for questions, answer in phrases.courtesy:
            for question in questions:
                yield Exchange(hurry(question, rng), answer)
        for question, blanks in phrases.off_topic:
            for blank in blanks:
                yield Exchange(hurry(question.format(blank), rng), phrases.refusal)


def draw_exchange(topic: Topic, language: str, rng: random.Random) -> Exchange:
    """One exchange about `topic`: mostly the topic itself, sometimes one of its own questions."""
    if topic.asked and rng.random() < 0.4:
        questions, answer = rng.choice(topic.asked)
        return Exchange(hurry(rng.choice(questions), rng), answer)
    phrasing = rng.choice(PHRASES[language].ask)
    return Exchange(
        put_question(phrasing, topic, rng.choice(topic.names), rng), draw_answer(topic, language, rng)
    )


def draw_answer(topic: Topic, language: str, rng: random.Random, most: int = 2) -> str:
    """The definition and up to `most` facts."""
    count = min(rng.randint(0, most), len(topic.facts))
    chosen = sorted(rng.sample(range(len(topic.facts)), count))
    return PHRASES[language].space.join([topic.definition, *(topic.facts[i] for i in chosen)])


def put_question(phrasing: str, topic: Topic, name: str, rng: random.Random) -> str:
    question = fill(phrasing, topic, name)
    return hurry(question[0].upper() + question[1:] if phrasing[0] == "{" else question, rng)


def fill(phrasing: str, topic: Topic, name: str) -> str:
    """Put the name of a topic into a phrasing, with the article and the verb that English wants."""
    first, _, rest = name.partition(" ")
    bare = rest if first in ("a", "an", "the") else name
    verbs = {"is": "are", "does": "do"} if topic.plural else {"is": "is", "does": "does"}
    return phrasing.format(name=name, bare=bare, **verbs)


def hurry(question: str, rng: random.Random) -> str:
    """Now and then type as people do: no capitals, no mark at the end, spaces around foreign words."""
    luck = rng.random()
    if luck < 0.1:
        return question.lower().rstrip("?？.。!！")
    if luck < 0.25:
        return space_out(question).replace("？", "?" if luck < 0.15 else "？")
    return question


def space_out(text: str) -> str:
    """Put a space between Chinese characters and Latin letters, as many writers do."""
    out = ""
    for char in text:
        if out and is_chinese(out[-1]) != is_chinese(char) and (out[-1] + char).replace("-", "").isalnum():
            out += " "
        out += char
    return out


def is_chinese(char: str) -> bool:
    return "\u4e00" <= char <= "\u9fff"
