"""From tokens to pieces of text, with the real tokenizer and stream."""

from collections.abc import Iterator

import pytest

from epilogue.engine import stream_text
from epilogue.text import TextStream, Tokenizer, train_tokenizer

STORY = "The man saw a café. \U0001f40b She said: “No.” THE END and more"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([], vocab_size=258)  # a token a byte


def counted(ids: list[int], asked: list[int]) -> Iterator[int]:
    for token_id in ids:
        asked.append(token_id)
        yield token_id


def test_the_pieces_are_the_text_and_none_is_empty(tokenizer: Tokenizer) -> None:
    pieces = list(stream_text(tokenizer.encode(STORY), TextStream(tokenizer)))
    assert "".join(pieces) == STORY
    assert all(pieces)


def test_no_token_is_asked_for_after_a_stop_string(tokenizer: Tokenizer) -> None:
    asked: list[int] = []
    stream = TextStream(tokenizer, stop=["THE END"])
    pieces = list(stream_text(counted(tokenizer.encode(STORY), asked), stream))
    assert stream.stopped
    assert "".join(pieces) == STORY.partition("THE END")[0]
    assert tokenizer.decode(asked) == STORY.partition(" and more")[0]


def test_what_is_held_back_comes_when_the_tokens_end(tokenizer: Tokenizer) -> None:
    assert "".join(stream_text(tokenizer.encode("a THE E"), TextStream(tokenizer, stop=["THE END"]))) == "a THE E"


@pytest.mark.parametrize("how", ["close", "interrupt"])
def test_nothing_half_is_flushed(tokenizer: Tokenizer, how: str) -> None:
    def interrupted() -> Iterator[int]:
        yield from tokenizer.encode("ab THE")
        raise KeyboardInterrupt

    pieces = stream_text(interrupted(), TextStream(tokenizer, stop=["THE END"]))
    assert [next(pieces), next(pieces), next(pieces)] == ["a", "b", " "]
    if how == "close":
        pieces.close()
        assert list(pieces) == []
    else:
        with pytest.raises(KeyboardInterrupt):
            next(pieces)
