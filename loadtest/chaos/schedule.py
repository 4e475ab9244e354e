"""What comes when, from a seed: a deck of cards that is shuffled anew each time it has run out.

So every kind comes once before one comes again, however short a run is, and the order of a seed
does not depend on how long each took.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Card", "Turn", "turns"]


@dataclass(frozen=True, slots=True)
class Card:
    """A kind of fault or attack.

    Attributes:
        kind: its name.
        targets: services that it may happen to.
        shortest_s: it lasts from this …
        longest_s: … to this; both 0 for what happens in an instant.
    """

    kind: str
    targets: tuple[str, ...]
    shortest_s: float = 0.0
    longest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One card as it is played.

    Attributes:
        kind: of the card.
        target: service that it happens to.
        pause_s: before it.
        lasts_s: how long it lasts.
        dice: numbers that it may draw, from the same seed.
        deck: from 1; the second deck begins when every kind has come once.
    """

    kind: str
    target: str
    pause_s: float
    lasts_s: float
    dice: random.Random
    deck: int


def turns(seed: str, cards: Sequence[Card], *, longest_pause_s: float) -> Iterator[Turn]:
    """Give turns for ever, the same for the same seed and cards.

    Args:
        seed: any text.
        cards: kinds that can happen.
        longest_pause_s: pauses are from 0 to this.
    """
    order = random.Random(seed)
    deck = 0
    while cards:
        deck += 1
        for card in order.sample(cards, len(cards)):
            yield Turn(
                card.kind,
                order.choice(card.targets),
                order.uniform(0, longest_pause_s),
                order.uniform(card.shortest_s, card.longest_s),
                random.Random(order.getrandbits(64)),
                deck,
            )
