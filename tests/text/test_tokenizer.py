import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epilogue.errors import CheckpointError
from epilogue.text import Tokenizer, train_tokenizer

TRAINED = train_tokenizer(["It was a dark and stormy night; the rain fell in torrents. " * 4], vocab_size=290)


@given(st.text())
def test_decode_undoes_encode(text: str) -> None:
    assert TRAINED.decode(TRAINED.encode(text)) == text


@given(st.text())
def test_token_bytes_are_the_text_s_bytes(text: str) -> None:
    assert b"".join(map(TRAINED.token_bytes, TRAINED.encode(text))) == text.encode()


def test_layout_of_a_trained_vocabulary() -> None:
    assert TRAINED.eos_id == 0
    assert TRAINED.vocab_size == 290
    assert {TRAINED.token_bytes(i) for i in range(2, 258)} == {bytes([b]) for b in range(256)}
    assert TRAINED.token_bytes(0) == TRAINED.token_bytes(1) == b""


def test_special_names_in_a_book_stay_text() -> None:
    text = "He typed <|endoftext|> and <|padding|>."
    ids = TRAINED.encode(text)
    assert not {0, 1} & set(ids)
    assert TRAINED.decode(ids) == text


def test_ids_past_the_vocabulary_decode_to_nothing() -> None:
    assert TRAINED.decode([*TRAINED.encode("ab"), 290, 50431, 0]) == "ab"


def test_negative_id_is_a_wrong_call() -> None:
    with pytest.raises(ValueError, match="-1"):
        TRAINED.decode([-1])


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    lead = next(i for i in range(2, 258) if TRAINED.token_bytes(i) == b"\xe2")
    assert TRAINED.decode([lead, *TRAINED.encode("a")]) == "\ufffda"


def test_save_and_reopen(tmp_path: Path) -> None:
    TRAINED.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]
    for path in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        again = Tokenizer.from_file(path)
        assert again.fingerprint == TRAINED.fingerprint
        assert again.encode("stormy <|endoftext|>") == TRAINED.encode("stormy <|endoftext|>")


def test_pickled_tokenizer_keeps_special_names_as_text() -> None:
    again = pickle.loads(pickle.dumps(TRAINED))
    assert again.encode("<|endoftext|>") == TRAINED.encode("<|endoftext|>")


def test_fingerprint_ignores_layout_but_not_content(tmp_path: Path) -> None:
    TRAINED.save(tmp_path / "a.json")
    definition = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert Tokenizer(json.dumps(definition)).fingerprint == TRAINED.fingerprint
    assert train_tokenizer(["other words"], vocab_size=270).fingerprint != TRAINED.fingerprint


def test_training_repeats_itself() -> None:
    texts = ["one fish two fish", "red fish blue fish"]
    assert len({train_tokenizer(iter(texts), vocab_size=280).fingerprint for _ in range(2)}) == 1


def test_vocabulary_too_small_for_the_bytes() -> None:
    with pytest.raises(ValueError, match="258"):
        train_tokenizer(["a"], vocab_size=257)


def test_truncation_written_in_the_file_is_not_applied(tmp_path: Path) -> None:
    TRAINED.save(tmp_path)
    definition = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    definition["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    assert len(Tokenizer(json.dumps(definition)).encode("stormy night, stormy night")) > 2


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]", b"\xff\xfe\x00", b"not json"])
def test_missing_or_broken_file(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "tokenizer.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.from_file(file)


@pytest.mark.parametrize(
    ("key", "value", "reason"), [("decoder", {"type": "WordPiece"}, "ByteLevel"), ("eos", None, "end")]
)
def test_tokenizers_that_cannot_be_run(tmp_path: Path, key: str, value: object, reason: str) -> None:
    TRAINED.save(tmp_path)
    definition = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    if key == "eos":
        definition["added_tokens"] = []
        del definition["model"]["vocab"]["<|endoftext|>"]
    else:
        definition[key] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    with pytest.raises(CheckpointError, match=reason):
        Tokenizer(json.dumps(definition))


def test_neox(neox: Tokenizer) -> None:
    assert (neox.vocab_size, neox.eos_id) == (50277, 0)
    assert neox.decode([50277, 50431]) == ""
    assert neox.decode(neox.encode("a   b\n\n“é”…")) == "a   b\n\n“é”…"
    assert neox.token_bytes(50276) == b"  "  # an added token, written as it is


def test_neox_counts_gatsby_as_published(neox: Tokenizer, corpus: Path) -> None:
    text = (corpus / "gatsby.txt").read_text(encoding="utf-8")
    ids = neox.encode(text)
    assert len(ids) == 67831
    assert neox.decode(ids) == text
