"""English sentences from a small grammar, written for this project, with wide phonetic coverage.

The word lists hold every English phoneme in several positions, many consonant clusters and words
of one to five syllables. A few thousand nouns, verbs and places combine to far more sentences
than any corpus made here needs, so a repeated sentence is rare.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def _words(text: str) -> list[str]:
    """Blanks part the entries, underscores stand for blanks within one."""
    return [word.replace("_", " ") for word in text.split()]


_NAMES = _words(
    "Agnes Boris Celia Duncan Edith Felix Gwen Hugo Iris Jasper Keith Lydia Morgan Naomi Oscar "
    "Phoebe Quentin Ruth Stuart Theo Ursula Victor Wanda Xavier Yvonne Zachary Beatrix Cyril"
)
_ADJECTIVES = _words(
    "rusty gentle curious bright hollow enormous vague thirsty frozen clever purple narrow joyful "
    "ancient wooden sharp quiet yellow crooked fresh polished strange velvet humble swift muddy "
    "loyal azure tangled cheerful brave dusty genuine loud smooth"
)
_THINGS = _words(
    "lantern bicycle treasure orchestra mirror giraffe blanket kettle umbrella pigeon engine "
    "cupboard magazine oyster bridge violin raincoat thermometer squirrel envelope hedgehog "
    "satellite parachute cabbage whistle jigsaw chimney feather notebook telescope mushroom "
    "ladder walnut cushion garage shovel dolphin vase boiler compass zebra youth wheelbarrow"
)
_PEOPLE = _words(
    "baker engineer grandmother sailor judge farmer physicist musician neighbour teacher guard "
    "child surgeon poet butcher cyclist gardener journalist thief queen shepherd pilot"
)
_VERBS_PAST = _words(
    "carried measured borrowed polished noticed repaired painted dropped followed described "
    "exchanged buried photographed weighed wrapped pushed judged vanished_with chose threw washed "
    "squeezed enjoyed unearthed bought watched adjusted forgot misplaced tied rescued"
)
_VERBS_BASE = _words(
    "carry measure borrow polish fetch repair paint drop follow describe exchange choose throw "
    "wash squeeze judge watch adjust forget rescue sketch cover leave trust visit"
)
_PLACES = _words(
    "behind_the_theatre under_the_oak_tree beside_the_river across_the_village_square "
    "near_the_airport on_the_third_floor inside_the_old_museum above_the_valley "
    "through_the_foggy_harbour between_the_two_houses at_the_edge_of_the_forest "
    "along_the_northern_shore outside_the_bakery over_the_garden_wall in_the_engine_room "
    "beyond_the_railway_junction by_the_fountain around_the_volcano in_a_shallow_cave"
)
_TIMES = _words(
    "yesterday_evening every_other_Thursday before_sunrise in_the_middle_of_July "
    "shortly_after_lunch during_the_storm for_eight_years at_half_past_five once_again "
    "on_a_rough_autumn_day this_morning in_nineteen_eighty_four without_any_warning "
    "as_usual towards_midnight twice_a_week"
)
_ADVERBS = _words(
    "quietly usually thoughtfully suddenly rarely patiently probably eagerly barely finally "
    "graciously roughly always cheerfully"
)
_NUMBERS = _words(
    "two three seven eleven twelve sixteen thirty-four forty-nine seventy ninety-eight "
    "a_hundred_and_six five_thousand"
)

_TEMPLATES = (
    "The {adjective} {thing} {place} {adverb} reminded {name} of a {adjective2} {thing2}.",
    "{name} {past} the {adjective} {thing} {time}, and the {person} {past2} a {thing2}.",
    "{time}, {number} {adjective} {thing}s were waiting {place}.",
    "Did the {person} really {base} that {adjective} {thing} {place}?",
    "If you {base} the {thing}, {name} will {adverb} {base2} the {adjective2} {thing2} {time}.",
    "Nobody {place} {past} the {thing} that {name} had {adverb} hidden {time}.",
    "Please {base} {number} {thing}s and {base2} the {adjective} {thing2} {place}.",
    "The {person} and the {person2} {adverb} {past} each {adjective} {thing} {time}.",
    "Why should {name} {base} a {thing}, when the {person} could {base2} the {adjective} {thing2}?",
    "{name} said that {number} of the {thing}s {place} were {adjective} and {adjective2}.",
    "Although the {thing} was {adjective}, the {person} {past} it {time} {place}.",
    "There is a {adjective} {thing} {place}, which {name} {adverb} {past} {time}.",
)


def draw_sentence(rng: np.random.Generator) -> str:
    """One sentence of about eight to twenty words."""

    def pick(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    sentence = pick(_TEMPLATES).format(
        name=pick(_NAMES),
        adjective=pick(_ADJECTIVES),
        adjective2=pick(_ADJECTIVES),
        thing=pick(_THINGS),
        thing2=pick(_THINGS),
        person=pick(_PEOPLE),
        person2=pick(_PEOPLE),
        past=pick(_VERBS_PAST),
        past2=pick(_VERBS_PAST),
        base=pick(_VERBS_BASE),
        base2=pick(_VERBS_BASE),
        place=pick(_PLACES),
        time=pick(_TIMES),
        adverb=pick(_ADVERBS),
        number=pick(_NUMBERS),
    )
    return sentence[0].upper() + sentence[1:]
