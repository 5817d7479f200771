import pytest
from hypothesis import given
from hypothesis import strategies as st

from epilogue.text import TextStream, Tokenizer, train_tokenizer

TRAINED = train_tokenizer(["abab abc bca — élan “ab” " * 6], vocab_size=280)
IDS = st.lists(st.integers(0, TRAINED.vocab_size + 3), max_size=30)
TEXTS = st.text(alphabet="abc —é", max_size=25)
STOPS = st.lists(st.text(alphabet="abc —é", min_size=1, max_size=4), min_size=1, max_size=4)


def run(stream: TextStream, ids: list[int]) -> list[str]:
    return [*(stream.push(i) for i in ids), stream.finish()]


def cut(text: str, stops: list[str]) -> str:
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


@given(IDS)
def test_pieces_join_to_the_decoding_of_all_bytes(ids: list[int]) -> None:
    pieces = run(TextStream(TRAINED), ids)
    assert "".join(pieces) == b"".join(map(TRAINED.token_bytes, ids)).decode("utf-8", errors="replace")


@given(TEXTS, STOPS, st.booleans())
def test_text_is_cut_before_the_first_stop(text: str, stops: list[str], by_bytes: bool) -> None:
    single = {TRAINED.token_bytes(i): i for i in range(2, 258)}
    ids = [single[bytes([b])] for b in text.encode()] if by_bytes else TRAINED.encode(text)
    stream = TextStream(TRAINED, stops)
    assert "".join(run(stream, ids)) == cut(text, stops)
    assert stream.stopped == (cut(text, stops) != text)


@given(TEXTS, STOPS)
def test_nothing_emitted_is_ever_taken_back(text: str, stops: list[str]) -> None:
    stream, emitted = TextStream(TRAINED, stops), ""
    for token_id in TRAINED.encode(text):
        emitted += stream.push(token_id)
        assert cut(text, stops).startswith(emitted)


def test_half_a_character_waits(tokenizer: Tokenizer) -> None:
    single = {tokenizer.token_bytes(i): i for i in range(2, 258)}
    stream = TextStream(tokenizer)
    assert [stream.push(single[bytes([b])]) for b in "…".encode()] == ["", "", "…"]


def test_half_a_character_at_the_end_is_replaced(tokenizer: Tokenizer) -> None:
    single = {tokenizer.token_bytes(i): i for i in range(2, 258)}
    stream = TextStream(tokenizer)
    assert stream.push(single[b"\xe2"]) == ""
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


def test_what_may_begin_a_stop_string_waits(tokenizer: Tokenizer) -> None:
    single = {tokenizer.token_bytes(i): i for i in range(2, 258)}
    stream = TextStream(tokenizer, ["\nUser:"])
    pieces = [stream.push(single[bytes([b])]) for b in b"hi\nUs\nUser: no"]
    assert pieces[:6] == ["h", "i", "", "", "", "\nUs"]
    assert "".join(pieces) == "hi\nUs"
    assert stream.stopped
    assert stream.finish() == ""


def test_special_ids_are_silent(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, ["end"])
    assert stream.push(tokenizer.eos_id) == ""
    assert not stream.stopped


@pytest.mark.parametrize("stop", [[""], ["a", ""], "abc"])
def test_wrong_stop_strings(tokenizer: Tokenizer, stop: list[str]) -> None:
    with pytest.raises(ValueError, match="stop"):
        TextStream(tokenizer, stop)


def test_push_after_finish_is_a_wrong_call(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    stream.finish()
    with pytest.raises(ValueError, match="finish"):
        stream.push(5)
