"""How much a file may ask for. One that asks for more is likelier damaged than meant so: a wrong bit in a header
makes gigabytes of a picture, or a week of a second."""

from dataclasses import dataclass
from math import inf


@dataclass
class Limits:
    """Pixels on a side of a picture; seconds between two pictures; seconds of the sound after the picture; seconds
    of a dub, as its files say."""

    side: float = 8192
    gap_s: float = 60
    delay_s: float = 3600
    length_s: float = 12 * 3600

    def lift(self) -> None:
        """Let files ask for anything, in this process from now on."""
        self.side = self.gap_s = self.delay_s = self.length_s = inf


limits = Limits()
HOW_TO_LIFT = "inference.py --no-limits takes it"
