"""Draws stories from the two grammars.

Read next: `stories_en.py`, the English grammar.
"""

import random
from dataclasses import dataclass

from minivllm.lab.tiny_model.corpus import stories_en, stories_zh


@dataclass(frozen=True)
class Story:
    """A story and a request it would be a good reply to."""

    request: str
    text: str


def draw_story(language: str, rng: random.Random) -> Story:
    """One story: an opening and a plot, with the same people and things throughout."""
    if language == "en":
        words, opening, plots, requests = (
            english_people(rng),
            stories_en.OPENING,
            stories_en.PLOTS,
            stories_en.REQUESTS,
        )
        where, blanks, space = stories_en.WHERE, stories_en.BLANKS, " "
    else:
        words, opening, plots, requests = (
            chinese_people(rng),
            stories_zh.OPENING,
            stories_zh.PLOTS,
            stories_zh.REQUESTS,
        )
        where, blanks, space = stories_zh.WHERE, stories_zh.BLANKS, ""
    words["where"] = rng.choice(where)
    words |= {blank: rng.choice(choices) for blank, choices in blanks.items()}
    plot = plots[rng.choice(sorted(plots))]
    steps = [rng.choice(opening), *(rng.choice(ways) for ways in plot)]
    return Story(rng.choice(requests).format(**words), space.join(step.format(**words) for step in steps))


def english_people(rng: random.Random) -> dict[str, str]:
    """A hero with pronouns, and a friend of another kind."""
    he = rng.random() < 0.5
    name = rng.choice(stories_en.WHO["he" if he else "she"])
    friend = rng.choice([n for n in stories_en.WHO["he"] + stories_en.WHO["she"] if n != name])
    animal, other = rng.sample(stories_en.WHO["animal"], 2)
    pronouns = {"he": "he", "his": "his", "him": "him"} if he else {"he": "she", "his": "her", "him": "her"}
    capitals = {word.capitalize(): form.capitalize() for word, form in pronouns.items()}
    return {"name": name, "friend": friend, "animal": animal, "other": other, **pronouns, **capitals}


def chinese_people(rng: random.Random) -> dict[str, str]:
    name, friend = rng.sample(stories_zh.WHO["it"], 2)
    animal, other = rng.sample(stories_zh.WHO["animal"], 2)
    return {"name": name, "friend": friend, "animal": animal, "other": other}
