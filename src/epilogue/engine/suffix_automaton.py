"""A suffix automaton over token ids: where the end of a text, as much of it as possible, stood before."""

from collections.abc import Iterable


class SuffixAutomaton:
    """All substrings of a text as paths from one state; grows by a token in amortised constant time.

    Blumer et al., The smallest automaton recognizing the subwords of a text, TCS 40 (1985). States are numbers, 0 the
    empty text; a state stands for substrings that end at the same places. At most two states a token: about 400 bytes.
    Not changed for a text that goes on elsewhere: several texts can walk through one automaton.
    """

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self.ids: list[int] = []
        self._edges: list[dict[int, int]] = [{}]
        self._links = [0]
        self._lengths = [0]
        self._places = [0]
        """Behind an occurrence of the state: the latest at which nothing longer had occurred before."""
        self._last = 0
        self.extend(ids)

    @property
    def end(self) -> tuple[int, int]:
        """(state, length) of the whole text, to begin with in ``found``."""
        return self._last, len(self.ids)

    def extend(self, ids: Iterable[int]) -> None:
        """Add tokens behind the text."""
        edges, links, lengths, places = self._edges, self._links, self._lengths, self._places
        last, text = self._last, self.ids
        for token_id in ids:
            # What is about to be followed by something is the best place to look at next time.
            places[links[last]] = len(text)
            text.append(token_id)
            new, state = len(edges), last
            edges.append({})
            links.append(0)
            lengths.append(len(text))
            places.append(len(text))
            while token_id not in edges[state]:
                edges[state][token_id] = new
                if state == 0:
                    break
                state = links[state]
            else:
                links[new] = self._ending_there(state, token_id)
            last = self._last = new

    def _ending_there(self, state: int, token_id: int) -> int:
        """The state of one token more, apart from longer substrings that do not end wherever it does from now on."""
        edges, links, lengths = self._edges, self._links, self._lengths
        target = edges[state][token_id]
        if lengths[target] == lengths[state] + 1:
            return target
        twin = len(edges)
        edges.append(edges[target].copy())
        links.append(links[target])
        lengths.append(lengths[state] + 1)
        self._places.append(self._places[target])
        links[target] = twin
        while edges[state].get(token_id) == target:
            edges[state][token_id] = twin
            if state == 0:
                break
            state = links[state]
        return twin

    def step(self, state: int, length: int, token_id: int) -> tuple[int, int]:
        """From the longest substring that ends a text, to that which ends it when it is a token longer."""
        while token_id not in self._edges[state]:
            if state == 0:
                return 0, 0
            state = self._links[state]
            length = self._lengths[state]
        return self._edges[state][token_id], length + 1

    def found(self, state: int, length: int) -> tuple[int, int]:
        """(length, place): the longest end of a substring that something follows, and where: ``ids[place]``.

        (0, 0) if nothing follows any end of it.
        """
        while state != 0 and not self._edges[state]:
            state = self._links[state]
            length = self._lengths[state]
        return length, self._places[state] if state else 0
