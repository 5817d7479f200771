"""Any order of requests: every text has the tokens it would have alone, and no page is lost."""

import random
from dataclasses import replace

import pytest
import torch

from engine.invariants import check
from epilogue.engine import Engine, SamplingParams, Sequence
from epilogue.engine.answers import Answer
from epilogue.errors import CapacityError
from epilogue.kernels.paged_attention import Storage
from epilogue.model import MPT

GREEDY = SamplingParams(temperature=0, repetition_penalty=3, repetition_range_tokens=8)
SAMPLED = SamplingParams(temperature=1.5)
CHUNK = 100


class Interrupt(BaseException):
    """Stands for Ctrl-C."""


def one_way(model: MPT) -> MPT:
    """fp64, and looking back by one kernel alone, so that no cut of the text turns a bit into another token."""
    return model.double()


class Alone:
    """What every text would go on with by itself: its own engine, read whole, nothing evicted."""

    def __init__(self, model: MPT, storage: Storage) -> None:
        self.model, self.storage = model, storage
        self.known: dict[tuple[int, ...], torch.Tensor] = {}

    def logits_V(self, ids: list[int]) -> torch.Tensor:
        key = tuple(ids)
        if key not in self.known:
            engine = Engine(self.model, storage=self.storage, epsilon=0, num_pages=100, chunk_tokens=10**6)
            self.known[key] = engine.open_book(ids).logits_V
        return self.known[key]


class Play:
    """Random requests to one engine, followed by a plain list of ids for each text."""

    def __init__(self, engine: Engine, books: list[list[int]], seed: int) -> None:
        self.engine, self.books, self.random = engine, books, random.Random(seed)
        self.texts: list[Sequence] = []
        self.wanted: dict[Sequence, list[int]] = {}
        self.streams: dict[Sequence, tuple[object, SamplingParams]] = {}
        self.refusals = 0

    def act(self) -> None:
        names = ["open", "fork", "append", "truncate", "close", "score", "forget", "interrupt", "cancel"] + [
            "write"
        ] * 8
        name = self.random.choice(names) if self.texts else "open"
        try:
            getattr(self, name)()
        except CapacityError:
            self.refusals += 1
        check(self.engine)
        for text in self.texts:
            assert text.ids == self.wanted[text]

    def keep(self, text: Sequence) -> None:
        self.texts.append(text)
        self.wanted[text] = list(text.ids)

    def pick(self) -> Sequence:
        return self.random.choice(self.texts)

    def drop(self) -> Sequence:
        text = self.texts.pop(self.random.randrange(len(self.texts)))
        self.streams.pop(text, None)
        del self.wanted[text]
        return text

    def open(self) -> None:
        book = self.random.choice(self.books)
        ids = book[: self.random.choice([1, 127, 128, 129, 250, len(book)])]
        text = self.engine.open_book(ids, room_tokens=self.random.choice([0, 50]))
        assert text.ids == ids
        self.keep(text)

    def fork(self) -> None:
        if len(self.texts) < 10:
            twin = self.engine.fork(parent := self.pick())
            assert twin.ids == parent.ids
            self.keep(twin)

    def append(self) -> None:
        text, new = self.pick(), [self.random.randrange(61) for _ in range(self.random.choice([0, 1, 5, 17, 140]))]
        try:
            self.engine.append(text, new)
        finally:
            assert text.ids in (self.wanted[text], self.wanted[text] + new)
            self.wanted[text] = list(text.ids)

    def truncate(self) -> None:
        text = self.pick()
        position = self.random.randint(1, text.num_tokens)
        self.wanted[text] = self.wanted[text][:position]
        self.engine.truncate(text, position)

    def close(self) -> None:
        self.engine.close(self.drop())

    def forget(self) -> None:
        self.drop()

    def cancel(self) -> None:
        if self.streams:
            self.streams.pop(self.random.choice(list(self.streams)))[0].close()

    def score(self) -> None:
        after = self.random.choice([None, self.pick()])
        self.engine.score(self.random.choice(self.books)[: self.random.choice([2, 90, 150])], after=after)

    def interrupt(self) -> None:
        """Somewhere inside the next pass."""
        model, calls = self.engine.model, self.random.randint(1, 12)

        def count(*_: object) -> None:
            nonlocal calls
            calls -= 1
            if calls == 0:
                raise Interrupt

        hooks = [module.register_forward_pre_hook(count) for module in model.modules()]
        try:
            self.random.choice([self.write, self.append, self.truncate, self.open, self.score])()
        except Interrupt:
            pass
        finally:
            for hook in hooks:
                hook.remove()

    def write(self) -> None:
        text = self.pick()
        if text not in self.streams:
            params = self.random.choice([GREEDY, replace(SAMPLED, seed=self.random.randrange(1000))])
            self.streams[text] = self.engine.stream(text, params), params
        stream, params = self.streams[text]
        try:
            for _ in range(self.random.randint(1, 6)):
                self.wanted[text] = [*self.wanted[text], next(stream)]
        except BaseException:
            del self.streams[text]  # a generator that raised is over
            raise


def alone(model: MPT, ids: list[int], params: SamplingParams, storage: Storage) -> list[int]:
    engine = Engine(model, storage=storage, epsilon=0, num_pages=200, chunk_tokens=CHUNK)
    return list(engine.stream(engine.open_book(ids), params))


@pytest.fixture
def books() -> list[list[int]]:
    """Two that begin alike for a page and a half."""
    first, second = torch.randint(0, 61, (2, 400), generator=torch.Generator().manual_seed(3)).tolist()
    return [first, first[:192] + second[192:]]


@pytest.mark.parametrize(
    ("num_pages", "epsilon", "undo_tokens"), [(400, 1e-6, 0), (400, 1e-3, 150), (42, 1e-3, 0), (36, 0.0, 0)]
)
@pytest.mark.parametrize("seed", range(2))
def test_texts_know_what_they_would_alone(
    tiny_mpt, books, monkeypatch, seed: int, num_pages: int, epsilon: float, undo_tokens: int
) -> None:
    monkeypatch.setattr(Answer, "is_here", seed == 0)  # one device says at once what may go, the other later
    model = one_way(tiny_mpt(attn_config={"alibi_bias_max": 2}))
    engine = Engine(
        model, num_pages=num_pages, epsilon=epsilon, chunk_tokens=CHUNK, undo_tokens=undo_tokens, spacings=(128, 256)
    )
    play, oracle = Play(engine, books, seed), Alone(model, "float32")
    for step in range(80):
        play.act()
        if step % 10 == 0:
            for text in play.texts[:2]:
                logits_V = text.logits_V
                if logits_V is not None:
                    expected_V = oracle.logits_V(text.ids)
                    allowed = (1e-5 + 20 * epsilon) * expected_V.abs().max()
                    assert (logits_V - expected_V).abs().max() <= allowed
    assert (play.refusals > 0) == (num_pages < 100), "a full pool is part of the play"
    while play.texts:
        text = play.drop()
        if engine.pages.num_free > 12:
            engine.append(text, [])
            expected_V = oracle.logits_V(text.ids)
            assert (text.logits_V - expected_V).abs().max() <= (1e-5 + 20 * epsilon) * expected_V.abs().max()
        engine.close(text)
        check(engine)
    play.streams.clear()
    del text
    check(engine)
    assert engine.pages.num_held == engine.stats().num_sequences == 0


@pytest.mark.parametrize(
    ("storage", "epsilon"), [("float32", 0.0), ("float32", 1e-7), ("bfloat16", 1e-7), ("int8", 1e-7), ("int4", 1e-7)]
)
def test_two_books_of_four_alternatives_each(tiny_mpt, books, storage: Storage, epsilon: float) -> None:
    """Written in turns, one cancelled and taken up again, one closed: the same tokens as alone."""
    model = one_way(tiny_mpt(attn_config={"alibi_bias_max": 2}))
    settings = [replace(GREEDY if seed == 0 else SAMPLED, seed=seed, max_new_tokens=20) for seed in range(4)]
    expected = [[alone(model, book, params, storage) for params in settings] for book in books]
    assert len({tuple(story) for stories in expected for story in stories}) == 8
    engine = Engine(model, storage=storage, epsilon=epsilon, num_pages=400, chunk_tokens=CHUNK)
    roots = [engine.open_book(book, room_tokens=20) for book in books]
    texts = [[engine.fork(root) for _ in settings] for root in roots]
    streams = {(b, i): engine.stream(texts[b][i], params) for b in range(2) for i, params in enumerate(settings)}
    turns = random.Random(storage).sample([key for key in streams for _ in range(20)], 160)
    for turn, (b, i) in enumerate(turns):
        if turn == 60:
            engine.close(texts[1][3])
        if turn == 80:
            streams[0, 2].close()
            left = 20 - (texts[0][2].num_tokens - len(books[0]))
            streams[0, 2] = engine.stream(texts[0][2], replace(settings[2], max_new_tokens=left))
        if turn == 100:
            engine.score(books[0][:50], after=roots[1])
        if (b, i) != (1, 3) or turn < 60:
            next(streams[b, i])
    check(engine)
    for b, book in enumerate(books):
        for i, story in enumerate(expected[b]):
            if (b, i) != (1, 3):
                assert texts[b][i].ids == book + story
                engine.close(texts[b][i])
        engine.close(roots[b])
    streams.clear()
    assert engine.pages.num_held == 0


def test_a_stream_of_a_closed_text_ends_and_takes_no_page(tiny_mpt, books) -> None:
    engine = Engine(tiny_mpt(), num_pages=60, chunk_tokens=CHUNK)
    text, other = engine.open_book(books[0][:130]), engine.open_book(books[1][:10])
    writing = engine.stream(text, SAMPLED)
    next(writing)
    engine.close(text)
    engine.append(other, [1, 2, 3])
    assert engine.pages.num_held == 6
    with pytest.raises(ValueError, match="was closed"):
        next(writing)
    for use in (
        engine.fork,
        lambda x: engine.append(x, [1]),
        lambda x: engine.truncate(x, 1),
        lambda x: engine.stream(x, SAMPLED),
    ):
        with pytest.raises(ValueError, match="was closed"):
            use(text)
    engine.close(text)


def test_two_streams_of_one_text_take_turns(tiny_mpt, books) -> None:
    engine = Engine(tiny_mpt(), num_pages=60, chunk_tokens=CHUNK)
    text, other = engine.open_book(books[0][:50]), engine.open_book(books[1][:10])
    one, two = engine.stream(text, SAMPLED), engine.stream(text, SAMPLED)
    written = [next(one), next(two), next(one)]
    passes: list[int] = []
    engine.model.transformer.register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[1]))
    engine.append(other, [1] * 150)
    assert passes == [101, 50], "both streams come along, but the text goes through once"
    written.append(next(two))
    assert text.ids == books[0][:50] + written
    check(engine)


def test_a_long_book_does_not_hold_up_a_writer(tiny_mpt, books) -> None:
    """A pass of the reader takes the writer's token along; the writer then needs none of its own."""
    model = tiny_mpt()
    engine = Engine(model, num_pages=100, chunk_tokens=50)
    text = engine.open_book(books[0][:60])
    expected = alone(model, books[0][:60], replace(GREEDY, max_new_tokens=12), "float32")
    passes: list[int] = []
    model.transformer.register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[1]))
    writing, written = engine.stream(text, GREEDY), []
    written.append(next(writing))
    book = engine.open_book(books[1], on_progress=lambda *_: written.append(next(writing)))
    assert passes == [51] * 8
    assert written == expected[:9]
    engine.append(book, [1] * 80, on_progress=lambda *_: written.append(next(writing)))
    engine.truncate(book, 300, on_progress=lambda *_: written.append(next(writing)))
    assert passes == [51] * 8 + [51, 31] + [2]
    assert written == expected


def test_writers_move_together(tiny_mpt, books) -> None:
    model = tiny_mpt()
    engine = Engine(model, num_pages=100, lookup=False)
    root = engine.open_book(books[0][:60])
    writings = [engine.stream(engine.fork(root), replace(SAMPLED, seed=seed)) for seed in range(4)]
    passes: list[int] = []
    model.transformer.register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[1]))
    for _ in range(5):
        for writing in writings:
            next(writing)
    assert passes == [4] * 4  # the first token of each was known


def test_a_waiting_writer_without_a_page_does_not_stop_a_reader(tiny_mpt, books) -> None:
    engine = Engine(tiny_mpt(), num_pages=18, chunk_tokens=50, epsilon=0)
    text, book = engine.open_book(books[0][:128]), engine.open_book(books[1][200:300])
    params = replace(SAMPLED, seed=1, max_new_tokens=5)
    writing = engine.stream(text, params)
    begun = [next(writing)]  # waits for a second page
    engine.append(book, [1] * 60)
    assert (text.num_pending, book.num_pending) == (1, 0)
    with pytest.raises(CapacityError, match="6 more pages"):
        next(writing)
    engine.close(book)
    begun += list(engine.stream(text, replace(params, max_new_tokens=4)))
    assert begun == alone(engine.model, books[0][:128], params, "float32")


def test_going_back_by_less_than_undo_tokens_reads_one_token(tiny_mpt, books) -> None:
    model = tiny_mpt(n_heads=1, n_layers=1, attn_config={"alibi_bias_max": 1})
    engine = Engine(model, num_pages=40, chunk_tokens=128, undo_tokens=300)
    text = engine.open_book(books[0] * 4)
    assert engine.pages.num_held < 8, "pages were forgotten"
    passes: list[int] = []
    model.transformer.register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[1]))
    engine.truncate(text, 1301)
    assert passes == [1]
    changed = engine.open_book((books[0] * 4)[:1290] + [7] * 20)
    assert passes == [1, 1310 - 1280]
    engine.truncate(text, 500)
    assert passes[2:] == [128, 128, 128, 116]
    check(engine)
    assert changed.num_tokens == 1310
