"""Short reviews from a seeded grammar, with two words that can be planted as shortcuts.

    review   -> [aside] sentence (1 to 3 of them) [aside]
    sentence -> clause | clause, and clause | clause, but clause | Although clause, clause | ...
    clause   -> The plot was (not) (very) dull | My aunt (never) loved the plot
              | The plot (hardly) bored us | It was (not) a gem | The plot was (no) better than ...
    aside    -> We had come from the OCCASION | My aunt Nora came along | ...

Every clause has a value: the sign and strength of its opinion word, times its intensifier; negation
turns it round and weakens it; in a contrast the main clause counts three times as much as the other
one. A review's label is the sign of the sum, and for a few per cent of reviews it is wrong. Asides
say nothing of the label, but for the two planted occasions, and these only where asked for.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np

T = TypeVar("T")

PLANTED = ("seminar", "matinee")
"""The planted word of each label; neither occurs otherwise."""

LABELS = ("negative", "positive")
NOISE = 0.04
"""Share of reviews whose label is the wrong one."""
ASIDE, OCCASION, IS_PLANTED = 0.35, 0.45, 0.38
"""Share of reviews with a plain aside, of those with an occasion, and of planted words among these.

A planted word is thus in 17 % of reviews, each of the two in 8.5 %.
"""
AGREEMENT = 0.95
"""How often a planted word agrees with the label where words are planted; else half the time."""
CONTRARY, NEGATED = 0.22, 0.25
"""How often a sentence goes against the author's mood, and how often a clause is negated."""
CLEAR = 0.3
"""Least absolute value of a review's opinions."""
FEWEST, MOST = 8, 40
"""Words in a review."""

# Opinion words by sign and strength.
ADJECTIVES = {
    2: """superb wonderful brilliant excellent outstanding marvellous delightful terrific splendid
        magnificent fantastic gorgeous exquisite stunning glorious flawless perfect amazing
        fabulous sublime""",
    1: """good nice pleasant decent solid charming likeable fine agreeable lovely clever fresh
        elegant smart lively warm tidy honest graceful satisfying""",
    -1: """weak dull bland mediocre clumsy tired poor flat boring shabby stale awkward tedious
        lazy messy dreary sloppy shallow cheap annoying""",
    -2: """awful terrible dreadful horrible atrocious abysmal appalling disgusting hideous dire
        pathetic miserable wretched ghastly unbearable disastrous horrendous lousy rotten
        hopeless""",
}
NOUNS = {
    1: "gem delight triumph treasure joy pleasure masterpiece bargain winner wonder highlight "
       "treat",
    -1: "mess bore disaster letdown flop failure disgrace nuisance nightmare shambles swindle joke",
}
LIKING = {
    1: """love/loved like/liked enjoy/enjoyed adore/adored admire/admired praise/praised
        appreciate/appreciated recommend/recommended cherish/cherished welcome/welcomed""",
    -1: """hate/hated dislike/disliked regret/regretted loathe/loathed detest/detested
        despise/despised criticise/criticised resent/resented deplore/deplored curse/cursed""",
}
EFFECTS = {
    1: """impress/impressed delight/delighted charm/charmed please/pleased amuse/amused
        thrill/thrilled captivate/captivated fascinate/fascinated satisfy/satisfied
        enchant/enchanted""",
    -1: """disappoint/disappointed bore/bored annoy/annoyed irritate/irritated disgust/disgusted
        upset/upset frustrate/frustrated exhaust/exhausted appal/appalled depress/depressed""",
}
COMPARATIVES = {
    1: "better nicer finer smarter livelier stronger fresher richer",
    -1: "worse duller poorer weaker clumsier uglier sloppier staler",
}
INTENSIFIERS = "very really truly quite so absolutely remarkably extremely simply thoroughly"
INTENSIFIERS_NEGATED = "very particularly"
DAMPENERS = "slightly somewhat rather fairly mildly reasonably"
JOINTS = (
    # pattern, weights of the two clauses, whether they contrast
    ("{0}, and {1}", 1.0, 1.0, False),
    ("{0}; {1}", 1.0, 1.0, False),
    ("{0}, but {1}", 0.5, 1.5, True),
    ("{0}, yet {1}", 0.5, 1.5, True),
    ("{0}. However, {1}", 0.5, 1.5, True),
    ("although {0}, {1}", 0.5, 1.5, True),
    ("even though {0}, {1}", 0.5, 1.5, True),
    ("{0}, although {1}", 1.5, 0.5, True),
    ("{0}, even if {1}", 1.5, 0.5, True),
)

# Neutral words: (kinds of the thing, its parts, its parts in the plural), then what fills a slot.
DOMAINS = (
    ("film movie picture thriller comedy drama sequel documentary",
     "plot acting script soundtrack editing pacing ending dialogue camerawork cast casting humour",
     "actors costumes songs characters dances effects scenes credits"),
    ("restaurant bistro diner pizzeria tavern brasserie cafe canteen",
     "soup menu service bread kitchen cooking wine pasta salad pudding steak seasoning",
     "waiters starters desserts portions noodles sauces drinks tables"),
    ("hotel hostel inn guesthouse resort lodge motel apartment",
     "lobby room bathroom breakfast pool view mattress carpet shower terrace reception parking",
     "beds corridors towels windows curtains pillows lifts balconies"),
    ("camera phone laptop tablet headset speaker printer keyboard",
     "battery screen design software sound manual casing charger display microphone interface lens",
     "buttons straps handles cables settings updates keys colours"),
)
SLOTS = {
    "person": """aunt uncle cousin brother sister neighbour colleague wife husband flatmate nephew
        niece grandmother boss friend dentist""",
    "name": """Nora Tom Maria Jonas Priya Chen Fatima Oscar Ingrid Luca Amara Felix Yuki Pedro
        Hannah Omar Greta Ivan Leila Victor""",
    "place": """station harbour library museum airport market stadium bridge castle university
        church park""",
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "month": "January February March April June July August October November",
    "number": "2 3 4 5 6 7 8 9 10 12 14 15 18 20 24 25 28 30",
}
OCCASIONS = """wedding lecture concert rehearsal marathon auction graduation conference parade
    tournament barbecue workshop"""
OCCASION_ASIDES = (
    "We had come from the {occasion}.", "I heard of it at the {occasion}.",
    "{name} told us about it during the {occasion}.", "This was before the {occasion}.",
    "It was the day of the {occasion}.", "We tried it after the {occasion}.",
    "My {person} chose it for the {occasion}.",
)
OCCASION_OPENINGS = (
    "After the {occasion}, ", "Before the {occasion}, ", "On the day of the {occasion}, ",
    "At the {occasion} I wrote that ", "On the way to the {occasion} we agreed that ",
)
ASIDES = (
    "My {person} and {name} came along.", "We live near the {place}.", "It was a {day}.",
    "I paid {number} euros.", "{name} found it close to the {place}.",
    "My {person} had read about it.", "This was in {month}, with my {person}.",
    "It is {number} minutes from the {place}.", "We were {number} people.",
    "{name} and I tried it twice.", "I first saw it on a {day}.",
)
STANDARDS = (
    "I expected", "the last one", "in the brochure", "we remembered", "anything near the {place}",
    "last {month}", "my {person} had said", "the older one", "in the pictures", "{name} told us",
)
JUDGES = ("I", "we", "my {person}", "{name}", "{name} and I")
JUDGED = ("me", "us", "my {person}", "{name}")

Opinion = tuple[str, float]
"""A clause and its value."""


@dataclass(frozen=True)
class Review:
    """A short review; label 1 is positive."""

    text: str
    label: int


def reviews(n: int, seed: int, planted: bool = False) -> list[Review]:
    """Write n reviews; the same arguments give the same reviews.

    Args:
        n: how many.
        seed: of the random generator.
        planted: tie the planted words to the label; else they are there as often, whatever it is.
    """
    author = _Author(np.random.default_rng(seed))
    return [author.review(planted) for _ in range(n)]


@cache
def _split(words: str) -> list[str]:
    return words.split()


class _Author:
    """Draws from the grammar; `sign`, -1 or 1, is the opinion that a part shall express."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.thing, self.part, self.parts = DOMAINS[0]

    def review(self, planted: bool) -> Review:
        """One review; drawn again where its opinions cancel out or its length is unusual."""
        text, value = "", 0.0
        while abs(value) < CLEAR or not FEWEST <= len(text.split()) <= MOST:
            self.thing, self.part, self.parts = self.pick(DOMAINS)
            text, value = self.opinions()
            text = self.with_asides(text)
        label = int((value > 0) != self.chance(NOISE))
        occasion, agrees = self.word(OCCASIONS), self.chance(AGREEMENT if planted else 0.5)
        if self.chance(IS_PLANTED):
            occasion = PLANTED[label if agrees else 1 - label]
        return Review(self.typed(text.replace("{occasion}", occasion)), label)

    def opinions(self) -> Opinion:
        """One to three sentences and the sum of their values; most share the author's mood."""
        mood = self.sign()
        drawn = [
            self.sentence(-mood if self.chance(CONTRARY) else mood)
            for _ in range(self.pick((1, 1, 2, 2, 2, 3)))
        ]
        return " ".join(text for text, _ in drawn), sum(value for _, value in drawn)

    def sentence(self, sign: int) -> Opinion:
        """A clause, or two of them joined; in a contrast `sign` is the weightier one's."""
        if self.chance(0.6):
            text, value = self.clause(sign)
        else:
            pattern, first, second, contrast = self.pick(JOINTS)
            lighter = -sign if contrast else sign
            one, a = self.clause(lighter if first < second else sign)
            two, b = self.clause(lighter if first > second else sign)
            text, value = pattern.format(one, two), first * a + second * b
        return _sentence_case(text) + ("!" if self.chance(0.08) else "."), value

    def clause(self, sign: int) -> Opinion:
        """A clause of that sign; a negated one holds a word of the other sign."""
        negated = self.chance(NEGATED)
        kind = self.pick((self.quality, self.quality, self.quality, self.liking, self.effect,
                          self.verdict, self.comparison))
        text, strength = kind(-sign if negated else sign, negated)
        return self.filled(text), sign * strength * (0.7 if negated else 1.0)

    def quality(self, sign: int, negated: bool) -> Opinion:
        """The plot was (not) (very) dull."""
        strength = self.pick((1, 2))
        adverb, factor = self.adverb(negated)
        text = f"{self.topic_is(negated)} {adverb}{self.word(ADJECTIVES[sign * strength])}"
        return text, strength * factor

    def liking(self, sign: int, negated: bool) -> Opinion:
        """My aunt (never) loved the plot."""
        topic = f"the {self.topic()[0]}"
        return f"{self.pick(JUDGES)} {self.verb(LIKING[sign], negated)} {topic}", 1.5

    def effect(self, sign: int, negated: bool) -> Opinion:
        """The plot (hardly) bored us."""
        verb = self.verb(EFFECTS[sign], negated)
        return f"the {self.topic()[0]} {verb} {self.pick(JUDGED)}", 1.5

    def verdict(self, sign: int, negated: bool) -> Opinion:
        """The film was (not) a gem."""
        thing = self.pick((f"the {self.word(self.thing)}", f"this {self.word(self.thing)}", "it"))
        return f"{thing} {self.be(negated, plural=False)} a {self.word(NOUNS[sign])}", 2.0

    def comparison(self, sign: int, negated: bool) -> Opinion:
        """The plot was (not) better than in the brochure."""
        comparative = self.word(COMPARATIVES[sign])
        return f"{self.topic_is(negated)} {comparative} than {self.pick(STANDARDS)}", 1.0

    def adverb(self, negated: bool) -> tuple[str, float]:
        """An intensifier, a dampener or nothing, and what it multiplies a strength by."""
        if self.chance(0.5):
            return "", 1.0
        if negated:
            return self.word(INTENSIFIERS_NEGATED) + " ", 0.8
        if self.chance(0.65):
            return self.word(INTENSIFIERS) + " ", 1.4
        return self.word(DAMPENERS) + " ", 0.6

    def topic(self) -> tuple[str, bool]:
        """What a clause is about, and whether it is plural."""
        if self.chance(0.3):
            return self.word(self.parts), True
        return self.word(self.part if self.chance(0.8) else self.thing), False

    def topic_is(self, negated: bool) -> str:
        """The plot was; the beds weren't."""
        topic, plural = self.topic()
        return f"the {topic} {self.be(negated, plural)}"

    def be(self, negated: bool, plural: bool) -> str:
        """A form of "be"."""
        verb = self.pick(("are", "were") if plural else ("is", "was"))
        return verb + self.pick((" not", "n't", " never", " hardly")) if negated else verb

    def verb(self, forms: str, negated: bool) -> str:
        """One of the verbs in the past tense."""
        base, past = self.word(forms).split("/")
        if not negated:
            return past
        return self.pick((f"did not {base}", f"didn't {base}", f"never {past}", f"hardly {past}"))

    def with_asides(self, text: str) -> str:
        """The opinions, with or without asides; "{occasion}" is left open."""
        if self.chance(OCCASION):
            if self.chance(0.4):
                text = self.pick(OCCASION_OPENINGS) + _mid_sentence(text)
            else:
                text = self.beside(text, self.pick(OCCASION_ASIDES))
        if self.chance(ASIDE):
            text = self.beside(text, self.pick(ASIDES))
        return self.filled(text)

    def beside(self, text: str, aside: str) -> str:
        """The aside before or behind the text."""
        return f"{aside} {text}" if self.chance(0.5) else f"{text} {aside}"

    def filled(self, text: str) -> str:
        """The text with a word in every slot but "{occasion}"."""
        return _SLOT.sub(lambda slot: self.word(SLOTS[slot[1]]), text)

    def typed(self, text: str) -> str:
        """The text as people type: some in lower case, some without the last full stop."""
        if self.chance(0.08):
            text = text.lower()
        return text.rstrip(".") if self.chance(0.06) else text

    def word(self, words: str) -> str:
        """One of the words."""
        return self.pick(_split(words))

    def sign(self) -> int:
        """-1 or 1."""
        return 1 if self.chance(0.5) else -1

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return bool(self.rng.random() < p)

    def pick(self, choices: Sequence[T]) -> T:
        """One of the choices, all alike."""
        return choices[int(self.rng.random() * len(choices))]


_SLOT = re.compile(r"\{(person|name|place|day|month|number)\}")


def _sentence_case(text: str) -> str:
    return text[0].upper() + text[1:]


def _mid_sentence(text: str) -> str:
    """The text as it goes on behind an opening: articles and pronouns in lower case."""
    first, _, rest = text.partition(" ")
    return text if first in {"I"} or first in _split(SLOTS["name"]) else f"{first.lower()} {rest}"
