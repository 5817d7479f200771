"""The books of a server: texts that stay open between requests, what they are called, and their states on disk.

A book is one text in all its forms: as it grows, is written on in several ways, or is edited near its end, it keeps
its id. States are written by a thread of its own, from a second table on the same pages: nobody waits for a disk.

All of it belongs to the engine's thread, but for ``listing``.
"""

import logging
import secrets
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from weakref import WeakKeyDictionary

from epilogue.engine import Engine, Found, Kept, Library, Opened, Sequence, id_of
from epilogue.engine.prefixes import common_tokens
from epilogue.errors import CapacityError, EpilogueError, RequestError
from epilogue.model import page_bytes
from epilogue.server.book import Book, BookRow

_log = logging.getLogger("epilogue.server")
# Of what is known of a book: so much must be new for its state to be written again while the server runs.
_SHARE_OF_BOOK = 8
# Of one book: what was written behind it in other ways, so that going back to one of these reads nothing.
_MOST_FORMS = 4
# Books that are on disk alone and go on by the id they had in memory.
_MOST_ASLEEP = 64


class Shelf:
    """Keeps books open, the longest unused only as long as there is room, and writes long ones to disk.

    Args:
        engine: of all texts.
        library: where states are; None keeps nothing on disk.
        on_news: called in another thread when ``settle`` has something to do.
        model_name: for people who look at the states.
        least_tokens: a text so long is written to disk, and again when it has grown by as many and by an eighth; when
            it is closed, if it has grown by a fourth as many.
        most_books: that are open without a request.
    """

    def __init__(
        self,
        engine: Engine,
        library: Library | None,
        *,
        on_news: Callable[[], None],
        model_name: str = "",
        least_tokens: int = 2048,
        most_books: int = 16,
    ) -> None:
        self.engine, self.library = engine, library
        self.model_name, self.least_tokens, self.most_books = model_name, least_tokens, most_books
        self._rows: tuple[BookRow, ...] = ()
        self._on_news = on_news
        self._books: dict[str, Book] = {}
        self._idle: dict[Sequence, Book] = {}
        """Texts in no request, the longest unused first."""
        self._book_of: WeakKeyDictionary[Sequence, Book] = WeakKeyDictionary()
        self._written: deque[tuple[Book, Sequence, Future[Kept]]] = deque()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="epilogue states")
        if library is not None:
            _ = engine.fingerprint  # takes a while, and no request is to wait for it

    @property
    def num_texts(self) -> int:
        """Texts that are open without a request."""
        return len(self._idle)

    @property
    def is_saving(self) -> bool:
        """Whether states are being written: their pages come free when that is done."""
        return any(book.saving for book in self._books.values())

    @property
    def has_news(self) -> bool:
        """Whether ``settle`` has something to do."""
        return bool(self._written)

    def listing(self) -> list[BookRow]:
        """Every book, in memory or on disk, that this engine can go on with, the latest used first; for any thread."""
        engine, rows = self.engine, self._rows
        states = {kept.id: kept for kept in (self.library.all() if self.library else ())}
        books: list[BookRow] = []
        for row in rows:
            # Its file may have come or gone since.
            known = [states.pop(name, None) for name in (row.saving_id, row.kept.id if row.kept else "")]
            kept = known[0] or known[1]
            if row.is_in_memory or row.saving_id or kept:
                books.append(replace(row, kept=kept))
        ours = (engine.fingerprint, engine.pages.pool.storage, engine.epsilon) if states else ()
        for kept in states.values():
            if kept.header and (kept.header.fingerprint, kept.header.storage, kept.header.epsilon) == ours:
                books.append(BookRow.of_state(kept))
        return sorted(books, key=lambda row: row.used_at, reverse=True)

    def note_read(self, text: Sequence, *, title: str = "") -> None:
        """A request's text has been read: if it was long, it is not to be lost."""
        self._save_if(self._name(text, title), text)
        self._tell()

    def add(self, text: Sequence, *, title: str = "", saves: bool = True) -> Book | None:
        """Take a text over from a request that has ended; None if nothing of it was read."""
        if text.table.num_tokens == 0:
            self.engine.close(text)
            return None
        book = self._name(text, title)
        self._put(book, text)
        if saves:
            self._save_if(book, text)
        self._limit(book)
        return book

    def open(self, found: Found) -> Generator[None, None, Book]:
        """Open a state, a little each step, closing unused texts for as long as it does not fit.

        Raises:
            StateError: it is of no use; its file has been removed.
            CapacityError: it does not fit.
        """
        while True:
            try:
                text = yield from found.open(self.engine)
                break
            except CapacityError:
                if not self.make_room():
                    raise
        book = self._book_of_state(found.kept, text)
        self._books[book.id] = self._book_of[text] = book
        self._put(book, text)
        self._limit(book)
        return book

    def save(self, book_id: str) -> "Future[Kept]":
        """Write a book's latest form to disk now, if that is not being done, or was not done.

        Raises:
            RequestError: there is no disk to write to, or no such book in memory.
        """
        if self.library is None:
            raise RequestError("this server keeps no books on disk; start it without --no-keep")
        book = self._books.get(book_id)
        if book is None or not book.forms:
            raise RequestError(f"no book {book_id} is in memory; open it first")
        if book.saving is not None:
            return book.saving
        if book.kept is not None and book.num_unsaved(book.forms[-1]) == 0:
            done: Future[Kept] = Future()
            done.set_result(book.kept)
            return done
        return self._save(self.library, book, book.forms[-1])

    def forget(self, book_id: str) -> bool:
        """Close a book in memory; whether it was known. What a request is working on stays until that ends."""
        book = self._books.pop(book_id, None)
        if book is not None:
            book.kept, book.kept_ids = None, ()
            for form in list(book.forms):
                self._close(form)
        self._tell()
        return book is not None

    def make_room(self) -> bool:
        """Close the text that is unused for longest; whether there was one. Nothing is written first."""
        if not self._idle:
            return False
        self._close(next(iter(self._idle)))
        self._tell()
        return True

    def keep_free(self, num_pages: int) -> None:
        """Close unused texts until so many pages are free, if that can be."""
        while self.engine.pages.num_free < num_pages and self.make_room():
            pass

    def settle(self) -> None:
        """See to states that have been written, and have that written for which there was no turn meanwhile."""
        while self._written:
            book, snapshot, saving = self._written.popleft()
            self.engine.close(snapshot)
            book.saving, book.saving_id = None, ""
            if (error := saving.exception()) is None:
                book.kept, book.kept_ids = saving.result(), snapshot.ids
                if self._books.get(book.id) is not book:  # removed meanwhile
                    book.kept.path.unlink(missing_ok=True)
                else:
                    self._note_use(book)
                    self._save_what_is_new(book)
            elif isinstance(error, EpilogueError):
                _log.warning("what was read is not kept: %s", error)
            else:
                _log.error("what was read is not kept", exc_info=error)
        self._tell()

    def close(self) -> None:
        """Write what has grown since it was last written, wait until that is done, and close everything."""
        while self.is_saving:
            self._writer.submit(lambda: None).result()  # behind what is being written, and told of
            self.settle()
        for book in sorted(self._books.values(), key=lambda book: book.used_at):  # for which there is room: the latest
            self._note_use(book)
            if book.forms:
                self._save_if(book, book.forms[-1], is_last=True)
        self._writer.shutdown()
        self.settle()
        while self.make_room():
            pass

    def _name(self, text: Sequence, title: str) -> Book:
        """The book that a text is a form of; a new one if there is none."""
        if (book := self._book_of.get(text)) is None:
            common, book = max(
                ((book.is_form(text.ids), book) for book in self._books.values()),
                key=lambda found: found[0],
                default=(0, None),
            )
            if book is None or not common:
                book = Book(secrets.token_hex(8))
            self._book_of[text] = self._books.setdefault(book.id, book)
        # By now it may have been removed.
        self._books[book.id] = book
        book.title, book.ids, book.used_at = title or book.title, text.ids, datetime.now()
        return book

    def _book_of_state(self, kept: Kept, text: Sequence) -> Book:
        """The book that a state is of; it may have been written, or replaced, since ``settle`` was last here."""
        title = kept.header.title if kept.header else ""
        known = [b for b in self._books.values() if kept.id in (b.saving_id, b.kept.id if b.kept else "")]
        if not known and not kept.path.exists():
            return self._name(text, title)
        book = known[0] if known else Book(kept.id, title)
        book.kept, book.kept_ids = kept, text.ids
        return book

    def _put(self, book: Book, text: Sequence) -> None:
        text.set_aside()
        book.ids, book.used_at = text.ids, datetime.now()
        book.forms.append(text)
        self._idle[text] = book

    def _limit(self, book: Book) -> None:
        """Not too many forms of one book, nor too many books."""
        for form in book.forms[:-_MOST_FORMS]:
            self._close(form)
        while len(books := list(dict.fromkeys(self._idle.values()))) > self.most_books:
            # There is memory enough: what has grown is written first.
            oldest = min(books, key=lambda book: book.used_at)
            self._save_if(oldest, oldest.forms[-1], is_last=True)
            for form in list(oldest.forms):
                self._close(form)
        asleep = [book for book in self._books.values() if not (book.forms or book.saving)]
        for book in sorted(asleep, key=lambda book: book.used_at)[:-_MOST_ASLEEP]:
            del self._books[book.id]
        self._tell()

    def _close(self, form: Sequence) -> None:
        book = self._idle.pop(form)
        book.forms.remove(form)
        self.engine.close(form)
        if not (book.forms or book.kept or book.saving):
            self._books.pop(book.id, None)

    def _save_if(self, book: Book, text: Sequence, *, is_last: bool = False) -> None:
        """Write a form to disk if it is long and much of it is new."""
        if self.library is None or book.saving is not None:
            return
        if self._is_worth_it(text, book.num_unsaved(text), is_last=is_last):
            self._save(self.library, book, text)

    def _save_what_is_new(self, book: Book) -> None:
        """Of a book that has just been written. Not if it is gone again: then there is no room for it."""
        if self.library is None or not book.forms:
            return
        if self._is_worth_it(book.forms[-1], book.num_new(book.forms[-1])):
            self._save(self.library, book, book.forms[-1])

    def _is_worth_it(self, text: Sequence, num_unsaved: int, *, is_last: bool = False) -> bool:
        num_tokens, least = text.table.num_tokens, self.least_tokens
        least_unsaved = least // 4 if is_last else max(least, num_tokens // _SHARE_OF_BOOK)
        return num_tokens >= least and num_unsaved >= max(1, least_unsaved)

    def _save(self, library: Library, book: Book, text: Sequence) -> "Future[Kept]":
        snapshot = self.engine.fork(text)
        snapshot.reads.add_all(text.reads)
        common = common_tokens(snapshot.ids, book.kept_ids)
        replaces = None if book.kept is None else Opened(snapshot, book.kept, common)
        title = book.title or (book.kept.header.title if book.kept and book.kept.header else "")
        book.saving_id = id_of(self.engine, snapshot)
        saving = book.saving = self._writer.submit(
            library.keep, self.engine, snapshot, title=title, model=self.model_name, replaces=replaces
        )

        def on_written(saving: "Future[Kept]") -> None:
            self._written.append((book, snapshot, saving))
            self._on_news()

        saving.add_done_callback(on_written)
        return saving

    def _note_use(self, book: Book) -> None:
        """A state is as old as the last use of its book, not as its writing."""
        if self.library is not None and book.kept is not None:
            self.library.note_use(book.kept, book.used_at)

    def _tell(self) -> None:
        size = page_bytes(self.engine.model.config, self.engine.pages.pool.storage)

        def row(book: Book) -> BookRow:
            table = book.forms[-1].table if book.forms else None
            num_bytes = int((table.ids_LKP >= 0).sum()) * size if table else 0
            return BookRow(
                book.id,
                book.title,
                num_tokens=table.num_tokens if table else len(book.kept_ids or book.ids),
                num_bytes=num_bytes,
                is_in_memory=table is not None,
                saving_id=book.saving_id,
                kept=book.kept,
                used_at=book.used_at,
            )

        self._rows = tuple(row(book) for book in self._books.values())
