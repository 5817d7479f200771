"""One forward pass over several texts: a chunk of the one that is being read, a token of each that is being written."""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Several

import torch
from torch import Tensor

from epilogue.engine.answers import Answer
from epilogue.engine.capacity import check_fits
from epilogue.engine.decoder import Decoder
from epilogue.engine.pages import Pages
from epilogue.engine.sequence import Sequence
from epilogue.errors import CapacityError
from epilogue.kernels.paged_attention import MOST_QUERIES, PAGE_TOKENS
from epilogue.model import (
    MPT,
    EvictionBounds,
    KVCache,
    NativeStep,
    PageTable,
    Segment,
    bookmarks,
    evictable_from,
    upload,
)


class Stepper:
    """Moves texts through a model. Holds what never changes; the texts are arguments.

    Args:
        model: which reads.
        pages: of all texts.
        bounds: None evicts nothing.
        epsilon: what may be left out of a probability.
        chunk_tokens: of the text that a step is for.
        undo_tokens: nothing is evicted that matters so many tokens back.
        spacings: nor what matters at bookmarks so far apart (``model.bookmarks``).
    """

    def __init__(
        self,
        model: MPT,
        pages: Pages,
        bounds: EvictionBounds | None,
        *,
        epsilon: float,
        chunk_tokens: int,
        undo_tokens: int,
        spacings: Several[int],
    ) -> None:
        self.model, self.pages, self.bounds = model, pages, bounds
        self.epsilon, self.chunk_tokens = epsilon, chunk_tokens
        self.undo_tokens, self.spacings = undo_tokens, tuple(spacings)
        on_gpu = model.device.type == "cuda"
        self.decoder = Decoder(model, pages.pool, bounds, epsilon=epsilon) if on_gpu else None
        """Takes the steps of one token each, if there is one."""
        self.native = NativeStep(model, pages.pool, bounds, epsilon=epsilon) if model.device.type == "cpu" else None
        """Takes the steps of few tokens, if there is one."""

    def step(self, first: Sequence, others: Iterable[Sequence], *, wants_all: bool = False) -> Tensor:
        """Run up to ``chunk_tokens`` pending tokens of one text and a few of each other through the model.

        A text whose last token was among them knows its ``logits_V``. Another text that finds no free page is left
        out of this step. After an interruption every text is as it was, or through.

        Args:
            first: the text this step is for.
            others: texts that wait for their next token.
            wants_all: whether somebody asks what comes behind each token of ``first``, and not behind its last one
                alone. The last layer does for those that nobody asks about only what later tokens need.

        Returns:
            x_TC of ``first``'s tokens that were wanted, for ``MPT.head``.

        Raises:
            CapacityError: there is no free page for ``first``.
        """
        self._make_ready(first, self.chunk_tokens)
        texts = [first, *(text for text in dict.fromkeys(others) if text is not first and self._can_come(text))]
        drafts = [self._draft(text) for text in texts]
        segments = [
            self._segment(text, self._share(text, first) + len(draft), wants_all=wants_all and text is first)
            for text, draft in zip(texts, drafts, strict=True)
        ]
        ids = [
            i
            for text, draft, segment in zip(texts, drafts, segments, strict=True)
            for i in (text.ids[segment.table.num_tokens : segment.stop] + draft)
        ]
        if self.decoder is not None and len(ids) == len(texts) and self.decoder.can_take(segments):
            return self._decode(self.decoder, texts, segments, ids)
        # Tables change outside: what inference_mode makes cannot be changed later.
        with torch.inference_mode():
            x_RC, logits_RV = self._run(segments, ids)
            parts: tuple[Tensor, ...] = x_RC.split([segment.num_results for segment in segments])
            self._expect(texts, drafts, segments, parts, logits_RV)
        # Of earlier steps: known as soon as the device begins this one, and seen to while it is busy.
        self.pages.catch_up()
        for text, draft, segment in zip(texts, drafts, segments, strict=True):
            self._advance(text, segment.stop - len(draft))
        return parts[0]

    def _run(self, segments: list[Segment], ids: list[int]) -> tuple[Tensor, Tensor | None]:
        """x_RC of what the segments want, and logits_RV where they come along."""
        if self.native is not None and self.native.can_take(segments):
            return self.native.step(segments, ids)
        cache = KVCache(self.pages.pool, segments, epsilon=self.epsilon, bounds=self.bounds)
        return self.model.transformer(upload(torch.tensor([ids]), self.model.device), cache)[0], None

    def _decode(self, decoder: Decoder, texts: list[Sequence], segments: list[Segment], ids: list[int]) -> Tensor:
        """A step of one token each."""
        with torch.inference_mode():
            x_BC, logits_BV = decoder.step(segments, ids)
        for text, segment, logits_V in zip(texts, segments, logits_BV, strict=True):
            if segment.stop == text.num_tokens:
                text.logits_V = logits_V
        for text, segment in zip(texts, segments, strict=True):
            self._advance(text, segment.stop)
        return x_BC[:1]

    def _segment(self, text: Sequence, num_tokens: int, *, wants_all: bool) -> Segment:
        """A text's next tokens. Of many, its last one is wanted if it is among them; a few cost less than to choose."""
        if wants_all or num_tokens <= MOST_QUERIES:
            return Segment(text.table, num_tokens, text.reads)
        return Segment(text.table, num_tokens, text.reads, num_wanted=int(num_tokens == text.num_pending))

    def _share(self, text: Sequence, first: Sequence) -> int:
        return min(text.num_pending, self.chunk_tokens if text is first else MOST_QUERIES)

    def _make_ready(self, text: Sequence, most_tokens: int) -> None:
        """Pending tokens, and pages for them."""
        if text.num_pending <= 0:
            # An interruption fell between a text and its table, or between its last token and what comes next.
            self.pages.truncate(text.table, text.num_tokens - 1)
        self.pages.grow(text.table, min(text.num_pending, most_tokens))

    def _can_come(self, text: Sequence) -> bool:
        try:
            self._make_ready(text, MOST_QUERIES)
        except CapacityError:
            return False
        return True

    def _draft(self, text: Sequence) -> list[int]:
        """What of a text's draft comes along: on the page that the text needs anyway, so a draft takes none."""
        if text.num_pending != 1:
            return []
        most, config = min(MOST_QUERIES - 1, -text.num_tokens % PAGE_TOKENS), self.model.config
        if config.has_position_embedding:
            most = min(most, config.max_seq_len - text.num_tokens)
        return text.draft[:most]

    def _expect(
        self,
        texts: list[Sequence],
        drafts: list[list[int]],
        segments: list[Segment],
        parts: tuple[Tensor, ...],
        logits_RV: Tensor | None,
    ) -> None:
        """Tell every text that is through what comes next, and what behind each token of its draft."""
        ready = [i for i, segment in enumerate(segments) if segment.stop == texts[i].num_tokens + len(drafts[i])]
        if not ready:
            return
        if logits_RV is None:
            rows = [parts[i][len(parts[i]) - len(drafts[i]) - 1 :] for i in ready]
            logits = self.model.head(torch.cat(rows)).split([len(x_TC) for x_TC in rows])
        else:
            of_parts = logits_RV.split([len(x_TC) for x_TC in parts])
            logits = [of_parts[i][len(parts[i]) - len(drafts[i]) - 1 :] for i in ready]
        for i, logits_TV in zip(ready, logits, strict=True):
            text, draft = texts[i], drafts[i]
            text.num_drafted += len(draft)
            text.ahead = list(zip(draft, logits_TV[1:], strict=True))
            text.logits_V = logits_TV[0]

    def run_ahead(self, text: Sequence, guess: Callable[[Tensor, list[int]], Tensor | None]) -> Tensor:
        """Let the device go on with a guess of a text's next token; the text's logits, wherever they are.

        It does where a decoder takes its steps, the token needs no new page, and another can come behind it.

        Args:
            text: with ``logits_V``.
            guess: makes of logits_V and the text a token_1 on the device, or nothing.
        """
        logits_V, table = text.logits_V, text.table
        assert logits_V is not None
        is_room = table.num_tokens % PAGE_TOKENS and text.num_pending == 0 and self.pages.has_room(table, 1)
        if self.decoder is None or not is_room or text.num_tokens + 1 == self.most_positions:
            return logits_V
        with torch.inference_mode():
            token_1 = guess(logits_V, text.ids)
            return logits_V if token_1 is None else self.decoder.run_ahead(table, logits_V, token_1)

    def take(self, text: Sequence, token_id: int) -> None:
        """Put the token that was chosen behind a text; if it was drafted or guessed, what comes next is known already.

        After an interruption the text has the token or has it not.
        """
        ahead = text.ahead if text.num_pending == 0 else []
        before_V = text.logits_V
        text.extend([token_id])
        if self.decoder is not None and before_V is not None:
            with torch.inference_mode():
                logits_V = self.decoder.confirm(Segment(text.table, 1, text.reads), before_V, token_id)
            if logits_V is not None:
                self._advance(text, text.num_tokens)
                text.logits_V = logits_V
                return
        if ahead and ahead[0][0] == token_id:
            text.num_accepted += 1
            self._advance(text, text.num_tokens)
            text.ahead = ahead[1:]
            text.logits_V = ahead[0][1]

    def _advance(self, text: Sequence, num_tokens: int) -> None:
        """Count new tokens of a text. Last of all: only now what the table holds of them is whole."""
        old_page = text.table.num_tokens // PAGE_TOKENS
        text.table.num_tokens = num_tokens
        if num_tokens // PAGE_TOKENS > old_page:
            goes_LKP = Answer(self._unwanted(text.table, max(0, num_tokens - self.undo_tokens)))
            # A text that goes on at once does so first: the device would wait for the host that waits for it.
            if text.num_pending > 0 and not goes_LKP.is_here:
                self.pages.evict_later(text.table, goes_LKP)
            else:
                self.pages.evict(text.table, goes_LKP.read())

    def _evictable_from(self, table: PageTable) -> Tensor:
        """from_LKP: how long a text must be for its first pages to be given back."""
        if self.bounds is None:
            return torch.full(table.ids_LKP.shape, torch.inf, dtype=torch.float64)
        return evictable_from(table, self.bounds, self.model.slopes_H, epsilon=self.epsilon)

    def _unwanted(self, table: PageTable, num_tokens: int) -> Tensor:
        """goes_LKP, where scores are: pages that no query wants behind a table's first tokens or their bookmarks."""
        from_LKP = self._evictable_from(table)
        place_P = torch.arange(table.ids_LKP.shape[2], device=from_LKP.device)
        goes_LKP = from_LKP <= num_tokens
        for position in bookmarks(num_tokens, self.spacings):
            goes_LKP &= (from_LKP <= position) | (place_P >= position // PAGE_TOKENS)
        return goes_LKP

    def can_cut(self, table: PageTable, num_tokens: int) -> bool:
        """Whether no page is missing that matters behind a table's first tokens."""
        stop = -(-num_tokens // PAGE_TOKENS)
        is_missing_LKP = (table.ids_LKP < 0)[..., :stop]
        is_wanted_LKP = (self._evictable_from(table) > num_tokens)[..., :stop].cpu()
        return not bool((is_wanted_LKP & is_missing_LKP).any())

    def latest_cut(self, table: PageTable, num_tokens: int) -> int:
        """The latest place up to there at which a table can be cut: there, at a bookmark, or at the start."""
        if self.can_cut(table, num_tokens):
            return num_tokens
        step = self.spacings[0] if self.spacings else max(1, num_tokens)
        before = range((num_tokens - 1) // step * step, 0, -step)
        return next((position for position in before if self.can_cut(table, position)), 0)

    def most_pages(self, num_tokens: int) -> Tensor:
        """count_LK: pages that a text can hold at most until it is so long."""
        config, chunk_tokens = self.model.config, max(self.chunk_tokens, MOST_QUERIES) + self.undo_tokens
        if self.bounds is None:
            return torch.full((config.n_layers, config.kv_n_heads), -(-num_tokens // PAGE_TOKENS))
        return self.bounds.most_pages(
            self.model.slopes_H,
            num_tokens,
            epsilon=self.epsilon,
            kv_heads=config.kv_n_heads,
            chunk_tokens=chunk_tokens,
            spacings=self.spacings,
        )

    @property
    def most_positions(self) -> int | None:
        """Positions that the model has learned, if it has."""
        config = self.model.config
        return config.max_seq_len if config.has_position_embedding else None

    def check_fits(self, text: Sequence, num_tokens: int) -> None:
        """Refuse to let a text become so long if its pages may not suffice.

        Raises:
            CapacityError: they may not.
        """

        def pages_needed(tokens: int) -> int:
            return self.pages.needed(text.table, tokens, self.most_pages(tokens))

        check_fits(num_tokens, pages_needed, num_free=self.pages.num_free, most_positions=self.most_positions)
