"""Text that follows a grammar: which tokens may come next. By llguidance (the extra ``grammar``)."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from epilogue.engine.gbnf import lark_of_gbnf
from epilogue.errors import RequestError
from epilogue.text import Tokenizer

# That an Earley parser may make for one token; of a grammar as ambiguous as can be they take about a second.
_MOST_ITEMS = 100_000


class Grammar:
    """A grammar for one tokenizer's tokens. Immutable; texts begin in it by ``begin``.

    Args:
        gbnf: as llama.cpp and KoboldCpp take it; the text is one of ``root``.
        tokenizer: whose tokens are chosen from.

    Raises:
        RequestError: it is no grammar, it is too large, or llguidance is not installed.
    """

    def __init__(self, gbnf: str, tokenizer: Tokenizer) -> None:
        self._compile(lark_of_gbnf(gbnf), tokenizer)

    @classmethod
    def of_json_schema(cls, schema: Mapping[str, Any], tokenizer: Tokenizer) -> "Grammar":
        """Of all JSON texts that a schema allows; of an empty one, of all JSON texts.

        Raises:
            RequestError: the schema asks for what cannot be held to, or llguidance is not installed.
        """
        grammar, style = cls.__new__(cls), {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        try:
            source = _library().LLMatcher.grammar_from_json_schema(dict(schema), overrides=style)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the JSON schema cannot be used: {error}; make it simpler") from error
        grammar._compile(source, tokenizer)
        return grammar

    def _compile(self, source: str, tokenizer: Tokenizer) -> None:
        library = _library()
        self.tokenizer = tokenizer
        limits = library.LLParserLimits(step_max_items=_MOST_ITEMS, verbose_errors=False)
        self._matcher = library.LLMatcher(_vocabulary(tokenizer), source, log_level=0, limits=limits)
        _check(self._matcher)
        # What takes too many steps does so from the start, as a rule; better here than where others wait.
        self.begin(0).allowed([])

    def begin(self, position: int, *, written: str = "") -> "GrammarText":
        """A text of this grammar whose tokens from there on are the sampler's.

        Args:
            position: how many tokens stand before them, what is written of it already among them.
            written: how it begins.

        Raises:
            RequestError: it may not begin so.
        """
        text = GrammarText(self._matcher.deep_copy(), position, self.tokenizer)
        text.start_with(written)
        return text


class GrammarText:
    """A growing text and its grammar: a function of the text, which may go back and on, that remembers where it was.

    Made by ``Grammar.begin``, for ``SamplingParams.grammar``.
    """

    def __init__(self, matcher: Any, position: int, tokenizer: Tokenizer) -> None:
        self._matcher, self.position, self._tokenizer = matcher, position, tokenizer
        self._taken: list[int] = []

    def start_with(self, written: str) -> None:
        """Take in what stands before the tokens that will be asked about.

        Raises:
            RequestError: the grammar does not allow it.
        """
        self._take(self._tokenizer.encode(written))
        self._taken.clear()

    def allowed(self, history: Sequence[int]) -> Tensor:
        """allowed_V, bool on the CPU: which of the tokenizer's tokens may follow a whole text.

        The end of text is allowed where the grammar's text may end, and alone where it must.

        Raises:
            RequestError: the text is none of the grammar's, or takes too many steps to follow.
        """
        self._follow(list(history[self.position :]))
        mask = self._matcher.compute_bitmask()
        _check(self._matcher)
        bits_V = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")
        return torch.from_numpy(bits_V[: self._tokenizer.vocab_size].astype(np.bool_))

    def _follow(self, written: list[int]) -> None:
        common = len(self._taken)
        if written[:common] != self._taken:
            pairs = enumerate(zip(self._taken, written, strict=False))
            common = next((i for i, (a, b) in pairs if a != b), min(common, len(written)))
            self._matcher.rollback(len(self._taken) - common)
            del self._taken[common:]
        self._take(written[common:])

    def _take(self, token_ids: list[int]) -> None:
        num_taken = self._matcher.try_consume_tokens(token_ids)
        _check(self._matcher)
        self._taken += token_ids[:num_taken]
        if num_taken < len(token_ids):
            raise RequestError("the text so far is none that its grammar allows; leave the grammar out, or begin anew")


def _check(matcher: Any) -> None:
    if matcher.is_error():
        reason = matcher.get_error().strip().partition("\n")[0]
        raise RequestError(f"the grammar cannot be used: {reason}; make it simpler")


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise RequestError(
            f"a grammar needs {error.name}, which is not installed; run pip install 'epilogue[grammar]'"
        ) from error
    return llguidance


class _Vocabulary:
    """What llguidance wants to know of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.eos_token_id = tokenizer, tokenizer.eos_id
        texts = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = [i for i, text in enumerate(texts) if not text]
        # A byte that no text has tells tokens without one.
        self.tokens = [text or b"\xff[%d]" % i for i, text in enumerate(texts)]

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode(errors="replace"))


@lru_cache(maxsize=2)
def _vocabulary(tokenizer: Tokenizer) -> Any:
    library = _library()
    return library.LLTokenizer(library.TokenizerWrapper(_Vocabulary(tokenizer)), slices=[])
