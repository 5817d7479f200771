"""The grammars of requests: compiled, and gone on with where a request asks for it (``grammar_retain_state``)."""

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from epilogue.engine import Grammar
from epilogue.errors import RequestError
from epilogue.server.protocol import Generation
from epilogue.server.samplers import MOST_GRAMMAR
from epilogue.text import Tokenizer

_MOST_REMEMBERED = 64


class Grammars:
    """Puts grammars into generations; from any thread.

    A request that keeps a grammar's state goes on in it from where its last text in the same grammar began: what the
    prompt has since then must be what the grammar allows, whoever wrote it. Else the grammar begins anew. KoboldCpp
    keeps the state itself; so an edit, a retry or another client in between cannot spoil it here.
    """

    def __init__(self) -> None:
        self._starts: OrderedDict[str, tuple[int, bytes]] = OrderedDict()
        """By grammar, how long its last prompt was and what it was, when a text began."""
        self._lock = threading.Lock()

    def add(self, generation: Generation, gbnf: str, tokenizer: Tokenizer, *, retains: bool = False) -> Generation:
        """A generation that follows a grammar, if there is one.

        Raises:
            RequestError: it is no grammar, or llguidance is not installed.
        """
        if not gbnf.strip():
            return generation
        grammar, prompt = Grammar(gbnf, tokenizer), generation.prompt
        written = self._written(gbnf, prompt, retains=retains) if isinstance(prompt, str) else ""
        try:
            grammar.begin(0, written=written)
        except RequestError:
            written = ""
        if isinstance(prompt, str):
            self._remember(gbnf, prompt[: len(prompt) - len(written)])
        return replace(generation, grammar=grammar, grammar_written=written)

    @staticmethod
    def add_schema(generation: Generation, schema: Mapping[str, Any], tokenizer: Tokenizer) -> Generation:
        """A generation that writes JSON of a schema.

        Raises:
            RequestError: the schema cannot be held to or is too long, or llguidance is not installed.
        """
        if (length := len(json.dumps(schema))) > MOST_GRAMMAR:
            raise RequestError(f"the JSON schema has {length} characters; make it {MOST_GRAMMAR} or shorter")
        return replace(generation, grammar=Grammar.of_json_schema(schema, tokenizer))

    def _written(self, gbnf: str, prompt: str, *, retains: bool) -> str:
        with self._lock:
            length, name = self._starts.get(gbnf, (0, b""))
        return prompt[length:] if retains and name == _name(prompt[:length]) else ""

    def _remember(self, gbnf: str, prompt: str) -> None:
        with self._lock:
            self._starts[gbnf] = len(prompt), _name(prompt)
            self._starts.move_to_end(gbnf)
            while len(self._starts) > _MOST_REMEMBERED:
                self._starts.popitem(last=False)


def _name(text: str) -> bytes:
    return blake2b(text.encode(errors="surrogatepass")).digest()
