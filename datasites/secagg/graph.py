"""Who masks with whom, and who holds whose shares: everybody, or neighbours on a ring in a large cohort.

Places are 0 .. n-1 in the sorted list of the enrolled. Hospital i masks with its neighbours, and its shares are held
by its neighbours and itself (h holders). The neighbour graph is the circulant that joins i to i±1 .. i±k/2 (Harary
1962: vertex connectivity k). SecAgg+ (Bell et al. 2020) draws a random graph and argues with probabilities over
dropouts that the aggregator can't choose; here the aggregator is malicious and may choose who drops out, so k is
chosen to hold for *any* n - t dropouts and *any* c colluders, and the graph needs no randomness that somebody could
grind. With D = n - t dropouts tolerated:

* recovery: h - D holders are always left, so the share threshold is s = h - D;
* never both secrets: 2s > h + c, so h > 2D + c;
* the survivors' honest part stays connected (else each part could be summed alone): k > D + c, which follows.

With h = n this is the complete graph with s = t. The ring needs lists on which all agree: `EpochTerms` requires the
consistency wave with it, because many different lists could cut one hospital out of a sparse graph.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Cohorts above this size use the ring when its terms allow, as the study says.
RING_ABOVE = 64


@dataclass(frozen=True)
class Neighbourhood:
    """The graph of one epoch: n places, k neighbours each (k = n - 1: complete), share threshold s of k + 1."""

    size: int
    degree: int
    share_threshold: int

    @classmethod
    def complete(cls, size: int, threshold: int) -> Neighbourhood:
        """Return everybody with everybody."""
        return cls(size, size - 1, threshold)

    @classmethod
    def ring(cls, size: int, threshold: int, colluders: int) -> Neighbourhood:
        """Return the smallest ring that is safe for any n - t dropouts and c colluders; complete if that is no ring."""
        dropouts = size - threshold
        degree = 2 * dropouts + colluders
        degree += degree % 2
        degree = max(degree, 2 * ((dropouts + colluders) // 2 + 1))
        if degree >= size - 1:
            return cls.complete(size, threshold)
        return cls(size, degree, degree + 1 - dropouts)

    def are_neighbours(self, one: int, other: int) -> bool:
        """Return whether two different places mask with each other."""
        distance = abs(one - other)
        return one != other and min(distance, self.size - distance) <= (self.degree + 1) // 2

    def neighbours(self, place: int) -> tuple[int, ...]:
        """Return the places that mask with `place`, ascending."""
        return tuple(other for other in range(self.size) if self.are_neighbours(place, other))

    def holders(self, place: int) -> tuple[int, ...]:
        """Return the places that hold shares of `place`: its neighbours and itself, ascending."""
        return tuple(sorted((*self.neighbours(place), place)))
