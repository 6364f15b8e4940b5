"""The corpus: what the shipped model reads, and the part of it that it never reads.

A document is one of four kinds, in one of two languages:

    qa        a question and its answer, plain ("Question: ... Answer: ...") or as a chat
    dialog    several exchanges about neighbouring topics, plain or as a chat
    passage   connected prose about two to four neighbouring topics, alone or as a reply
    story     a short story, alone or as a reply

Held-out documents are set aside by the same seed before any training. Since all answers are built of the
same sentences, a held-out answer is a new *combination* of phrasing, form and facts; its sentences, one by
one, have been read in training. The held-out numbers measure fluency and recall, not knowledge of anything
new.

Read next: `answers.py` and `stories.py` for what fills the documents; `..train` for what reads them.
"""

import random
from dataclasses import dataclass

from minivllm.lab.tiny_model.corpus.answers import (
    CHAPTERS,
    PHRASES,
    Exchange,
    courtesies,
    draw_answer,
    draw_exchange,
    exchanges,
    fill,
    hurry,
)
from minivllm.lab.tiny_model.corpus.stories import draw_story

LANGUAGES = ("en", "zh")
KINDS = ("qa", "dialog", "passage", "story")
COUNTS = {"dialog": 2_400, "passage": 1_800, "story": 3_600}
HELD_OUT_SHARE = 0.02


@dataclass(frozen=True)
class Document:
    """One text as the tokenizer sees it, without the `<s>` before and the `</s>` after it."""

    language: str
    kind: str
    text: str


@dataclass(frozen=True)
class Corpus:
    train: list[Document]
    held_out: list[Document]


def build_corpus(seed: int) -> Corpus:
    """The same corpus for the same seed, in the same order."""
    rng = random.Random(seed)
    train: list[Document] = []
    held_out: list[Document] = []
    for language in LANGUAGES:
        for kind in KINDS:
            documents = list(dict.fromkeys(make_documents(language, kind, rng)))
            rng.shuffle(documents)
            aside = round(HELD_OUT_SHARE * len(documents))
            held_out += documents[:aside]
            train += documents[aside:]
    rng.shuffle(train)
    return Corpus(train, held_out)


def make_documents(language: str, kind: str, rng: random.Random) -> list[Document]:
    if kind == "qa":
        asked = [*exchanges(language, rng), *courtesies(language, rng)]
        texts = [write_down([exchange], language, rng) for exchange in asked]
    elif kind == "dialog":
        texts = [draw_dialog(language, rng) for _ in range(COUNTS[kind])]
    elif kind == "passage":
        texts = [draw_passage(language, rng) for _ in range(COUNTS[kind])]
    else:
        texts = [draw_tale(language, rng) for _ in range(COUNTS[kind])]
    return [Document(language, kind, text) for text in texts]


def draw_dialog(language: str, rng: random.Random) -> str:
    """Two to five exchanges: sometimes a greeting, then topics of one chapter, sometimes "tell me more"."""
    phrases = PHRASES[language]
    turns: list[Exchange] = []
    if rng.random() < 0.2:
        questions, answer = rng.choice(phrases.courtesy)
        turns.append(Exchange(rng.choice(questions), answer))
    for topic in rng.sample(rng.choice(CHAPTERS[language]), rng.randint(2, 4)):
        turns.append(draw_exchange(topic, language, rng))
        untold = [fact for fact in topic.facts if fact not in turns[-1].answer]
        if untold and topic.definition in turns[-1].answer and rng.random() < 0.3:
            turns.append(Exchange(rng.choice(phrases.more), phrases.space.join(untold[:2])))
    if rng.random() < 0.1:
        story = draw_story(language, rng)
        turns.append(Exchange(story.request, story.text))
    return write_down(turns, language, rng)


def draw_passage(language: str, rng: random.Random) -> str:
    """Prose about a run of neighbouring topics of one chapter."""
    phrases = PHRASES[language]
    chapter = rng.choice(CHAPTERS[language])
    start = rng.randrange(len(chapter))
    topics = chapter[start : start + rng.randint(1, 4)]
    sentences = [draw_answer(topics[0], language, rng, most=4)]
    for topic in topics[1:]:
        sentences.append(fill(rng.choice(phrases.bridge), topic, topic.title))
        sentences.append(draw_answer(topic, language, rng, most=3))
    text = phrases.space.join(sentences)
    if rng.random() < 0.4:
        return text
    question = hurry(fill(rng.choice(phrases.ask_long), topics[0], rng.choice(topics[0].names)), rng)
    return write_down([Exchange(question, text)], language, rng)


def draw_tale(language: str, rng: random.Random) -> str:
    """A story by itself, or as the answer to a request."""
    story = draw_story(language, rng)
    if rng.random() < 0.6:
        return story.text
    return write_down([Exchange(hurry(story.request, rng), story.text)], language, rng)


def write_down(turns: list[Exchange], language: str, rng: random.Random) -> str:
    """Exchanges as plain text or, a little more often, as a chat with or without a system message."""
    if rng.random() < 0.4:
        question, answer = ("Question: ", "Answer: ") if language == "en" else ("问：", "答：")
        return "".join(f"{question}{turn.question}\n{answer}{turn.answer}\n" for turn in turns)
    system = rng.choice(PHRASES[language].system) if rng.random() < 0.2 else None
    return render_chat(turns, system)


def render_chat(turns: list[Exchange], system: str | None = None) -> str:
    """What the chat template writes, less the first `<s>` and what follows the last answer."""
    head = f"<|system|>\n{system}\n" if system else ""
    body = "</s>\n".join(f"<|user|>\n{turn.question}\n<|assistant|>\n{turn.answer}" for turn in turns)
    return head + body
