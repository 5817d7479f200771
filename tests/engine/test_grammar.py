"""Grammars against Python's regular expressions, and texts that are written under one."""

import re
import sys
import threading
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from epilogue.engine import Engine, Grammar, Sampler, SamplingParams
from epilogue.engine.gbnf import MOST_CHARACTERS, MOST_RULES
from epilogue.engine.sampling_params import Stage
from epilogue.errors import RequestError
from epilogue.model import MPT, AttentionConfig, MPTConfig
from epilogue.text import Tokenizer, train_tokenizer

pytest.importorskip("llguidance")

LISTS = 'root ::= item+ # at least one\nitem ::= "- " [a-z ]{1,12} "\\n"\n'
IS_LISTS = re.compile(r"(?:- [a-z ]{1,12}\n)*(?:- ?|- [a-z ]{1,12})?")
"""And what may become one."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(['He said: "abba, baab" and é, ü, 你好. ' * 4], vocab_size=300)


@pytest.fixture(scope="module")
def engine(tokenizer: Tokenizer) -> Engine:
    sizes: dict[str, Any] = {"d_model": 24, "n_heads": 3, "n_layers": 2, "max_seq_len": 64}
    config = MPTConfig(
        **sizes, vocab_size=tokenizer.vocab_size + 5, no_bias=True, attn_config=AttentionConfig(alibi=True)
    )
    model = MPT(config)
    model.init_weights(std=0.3, seed=0)
    return Engine(model, num_pages=200, chunk_tokens=32)


def is_allowed(grammar: Grammar, text: str) -> bool:
    """Whether a text is one of the grammar's: it is written by the longest tokens that fit."""
    tokens, at, ids, rest = grammar.tokenizer, grammar.begin(0), list[int](), text.encode()
    while rest:
        allowed = at.allowed(ids).nonzero().flatten().tolist()
        fitting = [i for i in allowed if tokens.token_bytes(i) and rest.startswith(tokens.token_bytes(i))]
        if not fitting:
            return False
        ids.append(max(fitting, key=lambda i: len(tokens.token_bytes(i))))
        rest = rest[len(tokens.token_bytes(ids[-1])) :]
    return bool(at.allowed(ids)[tokens.eos_id])


def literal(text: str) -> tuple[str, str]:
    return '"' + "".join(f"\\U{ord(c):08X}" for c in text) + '"', f"(?:{re.escape(text)})"


def in_sequence(parts: list[tuple[str, str]]) -> tuple[str, str]:
    return " ".join(g for g, _ in parts), "".join(r for _, r in parts)


def as_alternatives(parts: list[tuple[str, str]]) -> tuple[str, str]:
    return f"({' | '.join(g for g, _ in parts)})", f"(?:{'|'.join(r for _, r in parts)})"


def repeated(part: tuple[str, str], times: str) -> tuple[str, str]:
    return f"({part[0]}){times}", f"(?:{part[1]}){times}"


characters = st.sampled_from('ab\n"\\]-é你')
classes = [("[a-b]", "[a-b]"), ("[^b]", "[^b]"), (r"[é\]\\]", r"[é\]\\]"), ("[b-]", r"[b\-]"), (".", "(?s:.)")]
leaves = st.one_of(st.text(characters, max_size=3).map(literal), st.sampled_from([*classes, ("words", "(?:[ab]+)")]))
pairs_of_grammar_and_regex = st.recursive(
    leaves,
    lambda parts: st.one_of(
        st.lists(parts, min_size=1, max_size=3).map(in_sequence),
        st.lists(st.one_of(parts, st.just(("", ""))), min_size=1, max_size=3).map(as_alternatives),
        st.builds(repeated, parts, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{0,1}", "{1,}"])),
    ),
    max_leaves=6,
)


@given(pairs_of_grammar_and_regex, st.lists(st.text(characters, max_size=6), min_size=1, max_size=4), st.data())
def test_a_grammar_allows_what_its_regular_expression_matches(
    tokenizer: Tokenizer, pair: tuple[str, str], texts: list[str], data: st.DataObject
) -> None:
    gbnf, regex = pair
    made = Grammar(
        f'words ::= letter words | letter | letter letter words\nletter ::= "a" | "b"\nroot ::= {gbnf}\n', tokenizer
    )
    for text in [*texts, data.draw(st.from_regex(regex.replace("(?s:.)", "[^~]"), fullmatch=True))[:20]]:
        assert is_allowed(made, text) == bool(re.fullmatch(regex, text)), text


@pytest.mark.parametrize(
    ("gbnf", "texts", "others"),
    [
        ("root ::= word word\nword ::= [a-z]+", ["ab"], ["a"]),  # a lexer would take both for the first
        ('root ::= "a" | # a comment\n  "b"\n  | "c"', ["a", "b", "c"], ["ab"]),
        ('root ::= Foo foo foo-bar foo_bar\nFoo ::= "1"\nfoo ::= "2"\nfoo-bar ::= "3"\nfoo_bar ::= "4"', ["1234"], []),
        ('root ::= root "a" | "b"', ["baa"], ["a"]),
        ('root ::= "(" root ")" | ""', ["", "(())"], ["(()"]),
        ('root ::= "\\x41\\u00e9\\t\\"" [\\]\\-x]', ['Aé\t"]', 'Aé\t"-'], ["A"]),
        ("root ::= [一-龥]+", ["你好"], ["a"]),
    ],
)
def test_what_gbnf_means(tokenizer: Tokenizer, gbnf: str, texts: list[str], others: list[str]) -> None:
    made = Grammar(gbnf, tokenizer)
    assert all(is_allowed(made, text) for text in texts)
    assert not any(is_allowed(made, text) for text in others)


@pytest.mark.parametrize(
    ("gbnf", "words"),
    [
        ("", "must begin with a rule"),
        ("root := x", "':= x' cannot stand in line 1"),
        ('top ::= "a"', "no rule named root"),
        ('root ::= "a"\nroot ::= "b"', "2 rules"),
        ("root ::= chapter", "line 1 names chapter"),
        ('root ::= "a\nb', "cannot stand in line 1"),
        ('root ::= ("a"', "never closed"),
        ('root ::= "a")', "closes nothing"),
        ("root ::= *", r"nothing stands before \* in line 1"),
        ('root ::= "\\q"', "no escape"),
        ('root ::= "\\ud800"', r"U\+D800 in line 1 is no character"),
        ("root ::= [z-a]", "ends before it begins"),
        ("root ::= []", "no character"),
        ("root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "nested"),
        ('root ::= "' + "a" * MOST_CHARACTERS, "characters"),
        ("root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(MOST_RULES)), "rules"),
    ],
)
def test_what_is_no_grammar_is_said_in_one_sentence(tokenizer: Tokenizer, gbnf: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        Grammar(gbnf, tokenizer)
    assert "\n" not in str(caught.value)


def test_rules_may_follow_each_other_as_deep_as_there_may_be_rules(tokenizer: Tokenizer) -> None:
    """In the stack of a thread, which a library that recurses must not overflow."""
    chain = "".join(f'r{i} ::= "(" r{i + 1} ")"\n' for i in range(MOST_RULES - 2))
    made: list[Grammar] = []
    gbnf = f'root ::= r0\n{chain}r{MOST_RULES - 2} ::= "x"'
    thread = threading.Thread(target=lambda: made.append(Grammar(gbnf, tokenizer)))
    thread.start()
    thread.join()
    made[0].begin(0, written="(" * (MOST_RULES - 2) + "x" + ")" * (MOST_RULES - 2))


def test_a_grammar_that_takes_too_many_steps_is_refused_at_once(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epilogue.engine.grammar._MOST_ITEMS", 20)
    with pytest.raises(RequestError, match=r"Too many items.*make it simpler"):
        Grammar('root ::= s\ns ::= s s s | s s | [a-z] | ""', tokenizer)


def written(engine: Engine, tokenizer: Tokenizer, gbnf: str, **settings: Any) -> str:
    with_prompt = engine.open_book(tokenizer.encode("He said: "))
    params = SamplingParams(
        **{"seed": 4, "max_new_tokens": 60, "grammar": Grammar(gbnf, tokenizer).begin(with_prompt.num_tokens)}
        | settings
    )
    ids = list(engine.stream(with_prompt, params, eos_id=tokenizer.eos_id, num_tokens=tokenizer.vocab_size))
    engine.close(with_prompt)
    return tokenizer.decode(ids)


@settings(max_examples=40)
@given(
    st.builds(
        dict,
        temperature=st.sampled_from([0.0, 0.7, 3.0]),
        top_k=st.integers(0, 3),
        top_p=st.floats(0.01, 1),
        tail_free=st.sampled_from([0.1, 1.0]),
        typical=st.sampled_from([0.1, 1.0]),
        smoothing_factor=st.sampled_from([0.0, 0.3]),
        temperature_range=st.sampled_from([0.0, 0.5]),
        repetition_penalty=st.sampled_from([1.0, 1.5]),
        dry_multiplier=st.sampled_from([0.0, 0.8]),
        xtc_probability=st.sampled_from([0.0, 1.0]),
        mirostat=st.integers(0, 2),
        ignore_eos=st.booleans(),
        order=st.permutations(get_args(Stage)).map(tuple),
        seed=st.integers(0, 99),
    )
)
def test_no_sampler_leads_out_of_the_grammar(engine: Engine, tokenizer: Tokenizer, chosen: dict[str, Any]) -> None:
    assert IS_LISTS.fullmatch(written(engine, tokenizer, LISTS, max_new_tokens=12, **chosen))


def test_the_text_ends_where_the_grammar_does(engine: Engine, tokenizer: Tokenizer) -> None:
    for ignores in (False, True):
        assert written(engine, tokenizer, 'root ::= "yes" | "no"', ignore_eos=ignores) in ("yes", "no")


def test_the_same_text_whether_it_was_left_cut_or_written_at_once(engine: Engine, tokenizer: Tokenizer) -> None:
    """The grammar follows a text back to where it was cut, and past what another text had there."""
    whole, text = written(engine, tokenizer, LISTS), engine.open_book(tokenizer.encode("He said: "))
    start = text.num_tokens
    params = SamplingParams(seed=4, max_new_tokens=60, grammar=Grammar(LISTS, tokenizer).begin(start))
    options = {"eos_id": tokenizer.eos_id, "num_tokens": tokenizer.vocab_size}
    for _ in zip(range(30), engine.stream(text, params, **options), strict=False):
        pass
    engine.truncate(text, start + 7)
    list(engine.stream(text, SamplingParams(seed=9, max_new_tokens=5, grammar=params.grammar), **options))
    engine.truncate(text, start + 7)
    list(engine.stream(text, SamplingParams(seed=4, max_new_tokens=53, grammar=params.grammar), **options))
    assert tokenizer.decode(text.ids[start:]) == whole
    engine.close(text)


def test_a_grammar_and_bans_that_leave_nothing_are_said(tokenizer: Tokenizer) -> None:
    at = Grammar('root ::= "a" "b"', tokenizer).begin(0)
    bans = {i: -torch.inf for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i)[:1] == b"a"}
    sampler = Sampler(SamplingParams(grammar=at, logit_bias=bans), eos_id=tokenizer.eos_id)
    with pytest.raises(RequestError, match="tokens are banned"):
        sampler.sample(torch.zeros(tokenizer.vocab_size), [])


def test_what_was_written_before_must_be_the_grammars(tokenizer: Tokenizer) -> None:
    made = Grammar('root ::= "abba"', tokenizer)
    allowed_V = made.begin(10, written="ab").allowed([0] * 10)
    assert {tokenizer.token_bytes(i) for i in allowed_V.nonzero().flatten().tolist()} <= {b"b", b"ba"}
    with pytest.raises(RequestError, match="none that its grammar allows"):
        made.begin(10, written="ba")


def test_json_of_a_schema(engine: Engine, tokenizer: Tokenizer) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    made = Grammar.of_json_schema(schema, tokenizer)
    assert is_allowed(made, '{"a": 1}')
    assert not is_allowed(made, '{"a": 3}')
    with pytest.raises(RequestError, match="grammar cannot be used"):
        Grammar.of_json_schema({"type": "novel"}, tokenizer)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match=r"llguidance, which is not installed.*pip install 'epilogue\[grammar\]'"):
        Grammar('root ::= "a"', tokenizer)
