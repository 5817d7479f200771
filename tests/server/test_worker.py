"""What the worker promises whoever shares it: nobody waits for ever, nobody hears of another, no page is lost."""

import gc
from collections.abc import Callable

import pytest
import torch

from epilogue.engine import Engine
from epilogue.engine.suffix_automaton import SuffixAutomaton
from epilogue.errors import CapacityError
from epilogue.server import QueueFullError, Worker
from epilogue.server.protocol import Begun, Done, Ended, Failed, Piece, Reading
from epilogue.text import Tokenizer
from server.material import PROMPT, Heard, asked


def test_many_at_once_get_what_they_would_get_alone(work: Callable[..., Worker]) -> None:
    alone = work(most_active=1)
    together = work(most_active=8)
    wanted, heard = [Heard() for _ in range(8)], [Heard() for _ in range(8)]
    for worker, listeners in ((alone, wanted), (together, heard)):
        for seed, listener in enumerate(listeners):
            worker.submit(asked(PROMPT * (1 + seed % 3), seed=seed, tokens=12), listener)
        for listener in listeners:
            listener.wait(Done)
    assert [listener.text for listener in heard] == [listener.text for listener in wanted]


def test_a_long_book_does_not_silence_another_text(work: Callable[..., Worker]) -> None:
    """The short text writes on between the chunks of the long one, which began first."""
    worker = work(engine={"chunk_tokens": 32, "num_pages": 2000})
    long, short = Heard(), Heard()
    job = worker.submit(asked(PROMPT * 300, tokens=1), long)
    long.wait(Reading)
    worker.submit(asked(tokens=5), short)
    short.wait(Done)
    assert not any(isinstance(event, Done) for event in long.events)
    job.cancel()
    long.wait(Done)


def test_a_cancelled_request_ends_with_what_it_has(work: Callable[..., Worker]) -> None:
    worker, heard = work(), Heard()
    job = worker.submit(asked(tokens=10_000), heard)
    heard.wait(Piece)
    job.cancel()
    heard.wait(Done)
    ended = heard.wait(Ended)
    assert isinstance(ended, Ended)
    assert ended.reason == "cancelled"
    assert 0 < ended.num_tokens < 10_000
    assert worker.num_active == 0


def test_a_request_that_waits_can_be_cancelled_too(work: Callable[..., Worker]) -> None:
    worker, first, second = work(most_active=1), Heard(), Heard()
    busy = worker.submit(asked(tokens=10_000), first)
    first.wait(Piece)
    waiting = worker.submit(asked(), second)
    waiting.cancel()
    busy.cancel()
    second.wait(Done)
    assert not any(isinstance(event, Begun | Piece) for event in second.events)


def test_one_that_waits_is_cancelled_before_there_is_a_place_for_it(work: Callable[..., Worker]) -> None:
    worker, first, second = work(most_active=1, most_turn_s=1e9), Heard(), Heard()
    busy = worker.submit(asked(tokens=10_000), first)
    first.wait(Piece)
    worker.submit(asked(num_texts=2), second).cancel()
    second.wait(Done)
    assert [event for event in second.events if isinstance(event, Ended)] == [
        Ended(index, "cancelled", num_tokens=0, seed=0) for index in range(2)
    ]
    assert not any(isinstance(event, Done) for event in first.events)
    assert worker.num_waiting == 0
    busy.cancel()


def test_nobody_waits_for_the_end_of_a_novel(work: Callable[..., Worker]) -> None:
    """With one place, a long text lets short ones go first, and is the same for it."""
    alone, worker = work(), work(most_active=1, most_turn_s=0.0)
    wanted, long, short = Heard(), Heard(), [Heard() for _ in range(3)]
    alone.submit(asked(tokens=400), wanted)
    worker.submit(asked(tokens=400), long)
    long.wait(Piece)
    for seed, listener in enumerate(short):
        worker.submit(asked(PROMPT * 20, tokens=5, seed=seed), listener)
    for listener in short:
        listener.wait(Done)
    assert not any(isinstance(event, Done) for event in long.events)
    for listener in (wanted, long):
        listener.wait(Done)
    assert long.text == wanted.text


def test_a_long_reading_gives_way_too(work: Callable[..., Worker]) -> None:
    worker, long, short = work(most_active=1, most_turn_s=0.0, engine={"num_pages": 2000}), Heard(), Heard()
    job = worker.submit(asked(PROMPT * 300, tokens=1), long)
    long.wait(Reading)
    worker.submit(asked(tokens=5), short)
    short.wait(Done)
    assert not any(isinstance(event, Done) for event in long.events)
    job.cancel()
    long.wait(Done)


def test_nobody_gives_way_where_memory_is_short(work: Callable[..., Worker]) -> None:
    """The first holds more than half of it, so the second begins behind its end."""
    worker = work(most_active=1, most_turn_s=0.0, engine={"num_pages": 60, "epsilon": 0.0})
    first, second = Heard(), Heard()
    worker.submit(asked(PROMPT * 100, tokens=100), first)
    first.wait(Piece)
    worker.submit(asked("Nobody", tokens=5), second)
    second.wait(Begun)
    assert any(isinstance(event, Done) for event in first.events)
    second.wait(Done)


def test_memory_that_others_need_is_to_be_waited_for(work: Callable[..., Worker]) -> None:
    """Alone it would fit, so it is no refusal for good."""
    worker, refused, served = work(engine={"num_pages": 60, "epsilon": 0.0}), Heard(), Heard()
    others = worker.ask(lambda: worker.engine.open_book(worker.tokenizer.encode(PROMPT * 100))).result()
    worker.submit(asked("Nobody. " + PROMPT * 100), refused)
    failed = refused.wait(Failed)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, QueueFullError)
    worker.ask(lambda: worker.engine.close(others)).result()
    worker.submit(asked("Nobody. " + PROMPT * 100), served)
    served.wait(Done)


def test_what_is_done_keeps_no_book(work: Callable[..., Worker]) -> None:
    worker, heard = work(), Heard()
    job = worker.submit(asked(PROMPT * 20, tokens=5), heard)
    heard.wait(Done)
    num_read = job.num_read_tokens
    worker.stop()
    assert (job.sequence, job.writings, job.ids) == (None, [], [])
    assert job.num_read_tokens == num_read == job.num_prompt_tokens > 0


def test_held_pages_are_those_of_now(work: Callable[..., Worker]) -> None:
    worker, heard = work(), Heard()
    job = worker.submit(asked(PROMPT * 20, tokens=5), heard)
    heard.wait(Done)
    assert worker.num_held_pages > 0
    book_id = job.book_id
    assert book_id is not None
    worker.ask(lambda: worker.shelf.forget(book_id)).result()
    assert worker.num_held_pages == 0


def test_a_full_queue_is_said_at_once(work: Callable[..., Worker]) -> None:
    worker, first = work(most_active=1, most_waiting=2), Heard()
    busy = worker.submit(asked(tokens=10_000), first)
    first.wait(Piece)
    waiting = [worker.submit(asked(), Heard()) for _ in range(2)]
    with pytest.raises(QueueFullError, match="2 requests are waiting already"):
        worker.submit(asked(), Heard())
    for job in (busy, *waiting):
        job.cancel()


def test_one_that_fails_is_no_other_ones_affair(work: Callable[..., Worker]) -> None:
    worker, good, bad = work(engine={"num_pages": 40, "epsilon": 0.0}), Heard(), Heard()
    worker.submit(asked(tokens=200), good)
    worker.submit(asked(PROMPT * 500), bad)
    failed = bad.wait(Failed)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, CapacityError)
    good.wait(Done)
    assert isinstance(good.wait(Ended), Ended)


def test_unused_books_make_room(work: Callable[..., Worker]) -> None:
    """Each takes more than half of all pages, so the one before it must go."""
    worker = work(engine={"num_pages": 60, "epsilon": 0.0})
    for seed in range(4):
        heard = Heard()
        worker.submit(asked(f"{seed} " + PROMPT * 55, seed=seed, tokens=2), heard)
        heard.wait(Done, Failed)
        assert heard.text


def test_the_next_request_goes_on_where_a_cancelled_reading_stopped(work: Callable[..., Worker]) -> None:
    worker, first, second = work(engine={"chunk_tokens": 128}), Heard(), Heard()
    job = worker.submit(asked(PROMPT * 200, tokens=1), first)
    while not any(isinstance(event, Reading) and event.num_read >= 512 for event in first.events):
        first.wait(Reading)
    job.cancel()
    first.wait(Done)
    worker.submit(asked(PROMPT * 200, tokens=1), second)
    begun = second.wait(Begun)
    assert isinstance(begun, Begun)
    assert begun.num_cached_tokens >= 384


def test_stopping_ends_every_request(make_engine: Callable[..., Engine], tokenizer: Tokenizer) -> None:
    worker = Worker(make_engine(), tokenizer, most_active=1)
    worker.start()
    heard = [Heard(), Heard()]
    for listener in heard:
        worker.submit(asked(tokens=10_000), listener)
    heard[0].wait(Piece)
    worker.stop()
    for listener in heard:
        listener.wait(Done)
    with pytest.raises(QueueFullError):
        worker.submit(asked(), Heard())
    assert worker.engine.pages.num_held == 0


def test_texts_that_rest_keep_no_drafts(work: Callable[..., Worker]) -> None:
    """Drafts take some 450 bytes a token, and no later request uses those of a text on the shelf."""
    worker = work(engine={"num_pages": 20_000}, most_books=2)

    def num_drafted() -> int:
        gc.collect()
        return sum(len(x.ids) for x in gc.get_objects() if type(x) is SuffixAutomaton)

    before = num_drafted()
    for _ in range(2):
        listeners = [Heard() for _ in range(32)]
        for seed, listener in enumerate(listeners):
            worker.submit(asked(f"{seed % 4} " + PROMPT * 5, seed=seed, tokens=30), listener)
        for listener in listeners:
            listener.wait(Done)
        assert worker.num_books > 0
        assert worker.ask(num_drafted).result() == before


def test_a_text_that_rests_keeps_its_own_logits_and_no_other_texts(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    text = engine.open_book([1, 2, 3])
    assert text.logits_V is not None
    wide_TV = torch.stack([text.logits_V] * 16)
    text.logits_V = wide_TV[3]
    text.set_aside()
    assert torch.equal(text.logits_V, wide_TV[3])
    assert text.logits_V.untyped_storage().nbytes() == text.logits_V.nbytes
    engine.close(text)
