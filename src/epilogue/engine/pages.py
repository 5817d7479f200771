"""Who has which page: free pages, reference counts, and what a sequence's table gains and gives back. Host only."""

from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor

from epilogue.engine.answers import Answer
from epilogue.errors import CapacityError
from epilogue.kernels.paged_attention import PAGE_TOKENS
from epilogue.model import PagePool, PageTable


class Pages:
    """The pages of a pool, handed out to tables and shared between them.

    A page is free, or as many tables list it as its count says. The tables are the truth: every change of one is a
    single step, and when a change was interrupted, or a table was forgotten without ``release``, counts and free pages
    are taken from the tables anew before they are next used. So no page is lost, whenever an interruption comes.

    What a device has yet to say may go (``evict_later``) is given back when there is time, or when pages are short.
    """

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self._tables: set[ref[PageTable]] = set()
        self._forgotten: list[ref[PageTable]] = []
        self._counts_P = torch.zeros(max(1, pool.num_pages), dtype=torch.int32)
        self._returned = np.empty(0, dtype=np.int64)
        self._num_touched = 0
        """Pages from there on were never handed out: on the CPU they have no memory yet."""
        self._leaving: WeakKeyDictionary[PageTable, Answer] = WeakKeyDictionary()
        """What is to be given back. A table that is cut is taken out: other pages may come to stand there."""
        self._is_changing = False
        self._num_forks = 0
        """Times that a page may have come to be shared."""
        self._own: WeakKeyDictionary[PageTable, tuple[Tensor, tuple[int, ...]]] = WeakKeyDictionary()
        """How tables were when they had been given what they asked for: as long as they are so, they have it."""

    @property
    def num_free(self) -> int:
        """Pages that nobody has; waits for what may go."""
        self._settle()
        return self._num_unused

    @property
    def num_held(self) -> int:
        """Pages that at least one table lists."""
        return self.pool.num_pages - self.num_free

    def empty_table(self) -> PageTable:
        """A table without pages."""
        table = PageTable.empty(self.pool.config, capacity_tokens=PAGE_TOKENS, device=self.pool.device)
        self._watch(table)
        return table

    def grow(self, table: PageTable, num_tokens: int) -> None:
        """Give a table the pages for so many more tokens, a page of its own to go on writing in among them.

        Raises:
            CapacityError: there are not enough free pages; the table is as it was.
        """
        self._repair()
        if self.has_room(table, num_tokens):
            return
        table.reserve(table.num_tokens + num_tokens)
        self._hand_out(table, num_tokens)
        self._own[table] = table.ids_LKP, self._told_by(table, num_tokens)

    def has_room(self, table: PageTable, num_tokens: int) -> bool:
        """Whether ``grow`` would change nothing, as far as that is known without looking at the pages."""
        if self._is_changing or self._forgotten or table not in self._own:
            return False
        ids_LKP, told = self._own[table]
        return ids_LKP is table.ids_LKP and told == self._told_by(table, num_tokens)

    def _told_by(self, table: PageTable, num_tokens: int) -> tuple[int, ...]:
        """Numbers of which one is another whenever the pages for a table's next tokens may be others or shared."""
        first, stop = table.num_tokens // PAGE_TOKENS, -(-(table.num_tokens + num_tokens) // PAGE_TOKENS)
        return table.ids_LKP._version, self._num_forks, first, stop

    def _hand_out(self, table: PageTable, num_tokens: int) -> None:
        """The pages that ``grow`` is about, in a table that has room for them."""
        first, inside = divmod(table.num_tokens, PAGE_TOKENS)
        stop = -(-(table.num_tokens + num_tokens) // PAGE_TOKENS)
        column_LK = table.ids_LKP[..., first if inside else 0]
        shared_LK = self._is_shared(column_LK) if inside else torch.zeros(column_LK.shape, dtype=torch.bool)
        new_LKP = table.ids_LKP[..., first + (inside > 0) : stop]
        missing_LKP = new_LKP < 0
        num_shared = int(shared_LK.sum())
        if (count := num_shared + int(missing_LKP.sum())) == 0:
            return
        self._check_free(count)
        self._is_changing = True
        taken = self._take(count)
        if num_shared:
            sources = column_LK[shared_LK]
            self.pool.copy_pages(sources, taken[:num_shared])
            column_LK[shared_LK] = taken[:num_shared]
            self._discount(sources)
        if count - num_shared == new_LKP.numel():
            new_LKP.copy_(taken[num_shared:].view(new_LKP.shape))  # a chunk's: in order, without looking for holes
        else:
            new_LKP[missing_LKP] = taken[num_shared:]
        self._is_changing = False

    def adopt(self, is_live_LKP: Tensor, norms_LKP: Tensor, scores_LHP: Tensor, num_tokens: int) -> PageTable:
        """A table of so many tokens, with pages of its own where they are live; whoever asks for it fills them.

        Raises:
            CapacityError: there are not enough free pages.
        """
        self._repair()
        table = self.empty_table()
        table.reserve(num_tokens)
        stop, count = is_live_LKP.shape[2], int(is_live_LKP.sum())
        self._check_free(count)
        table.norms_LKP[..., :stop], table.scores_LHP[..., :stop] = norms_LKP, scores_LHP
        self._is_changing = True
        table.ids_LKP[..., :stop][is_live_LKP] = self._take(count)
        table.num_tokens = num_tokens
        self._is_changing = False
        return table

    def fork(self, table: PageTable, num_tokens: int | None = None) -> PageTable:
        """A second table on the pages of a table's first tokens (all, if None).

        Each of the two gets a page of its own where it writes on.
        """
        self._settle()
        num_tokens = table.num_tokens if num_tokens is None else num_tokens
        twin, stop = table.copy(), -(-num_tokens // PAGE_TOKENS)
        # An interrupted pass may have left pages behind the last token; they are the other table's alone.
        twin.ids_LKP[..., stop:] = -1
        twin.norms_LKP[..., stop:] = 0
        twin.scores_LHP[..., stop:] = 0
        twin.num_tokens = num_tokens
        self._is_changing = True
        self._num_forks += 1
        self._watch(twin)
        self._counts_P[twin.ids_LKP[twin.ids_LKP >= 0]] += 1
        self._is_changing = False
        return twin

    def truncate(self, table: PageTable, num_tokens: int) -> None:
        """Forget all but the first tokens; the pages behind them go back."""
        self._leaving.pop(table, None)
        table.num_tokens = num_tokens
        place_P = torch.arange(table.ids_LKP.shape[2])
        self._give_back(table, place_P >= table.num_pages)

    def evict(self, table: PageTable, goes_LKP: Tensor) -> None:
        """Give back the pages marked, of every layer and head."""
        self._give_back(table, goes_LKP)

    def evict_later(self, table: PageTable, goes_LKP: Answer) -> None:
        """The same once the device has said which; until then, and ``catch_up``, the table has them."""
        self._leaving[table] = goes_LKP

    def catch_up(self) -> None:
        """Give back what is to be evicted later; waits for the device."""
        for table in list(self._leaving):
            # Twice is no harm, if an interruption comes between: what is gone is not given back again.
            self._give_back(table, self._leaving[table].read())
            self._leaving.pop(table, None)

    def release(self, table: PageTable) -> None:
        """Give everything back; the table is empty."""
        self.truncate(table, 0)

    def needed(self, table: PageTable, num_tokens: int, most_LK: Tensor) -> int:
        """Free pages that a table can need at most until it is so long, if it never holds more than ``most_LK``."""
        self._settle()
        ids_LKP, (first, inside) = table.ids_LKP, divmod(table.num_tokens, PAGE_TOKENS)
        own_LK = ((ids_LKP >= 0) & (self._counts_P[ids_LKP.clamp(min=0)] == 1)).sum(dim=2)
        copies_LK = self._is_shared(ids_LKP[..., first]) if inside else torch.zeros_like(own_LK)
        to_come_LK = max(0, -(-num_tokens // PAGE_TOKENS) - table.num_pages) + copies_LK
        return int((torch.minimum(most_LK, own_LK + to_come_LK) - own_LK).clamp(min=0).sum())

    def _give_back(self, table: PageTable, goes: Tensor) -> None:
        self._repair()
        ids_LKP = table.ids_LKP[..., : goes.shape[-1]]  # it may have got room for more since
        goes_LKP = goes & (ids_LKP >= 0)
        ids = ids_LKP[goes_LKP]
        if len(ids) == 0:
            return
        self._is_changing = True
        ids_LKP[goes_LKP] = -1
        self._discount(ids)
        self._is_changing = False

    def _discount(self, ids: Tensor) -> None:
        """A table that listed them does no more."""
        self._counts_P[ids] -= 1
        self._returned = np.concatenate([self._returned, ids[self._counts_P[ids] == 0].numpy()])

    def _is_shared(self, ids_LK: Tensor) -> Tensor:
        return (ids_LK >= 0) & (self._counts_P[ids_LK.clamp(min=0)] > 1)

    @property
    def _num_unused(self) -> int:
        return self.pool.num_pages - self._num_touched + len(self._returned)

    def _check_free(self, count: int) -> None:
        if count > self._num_unused and count > self.num_free:
            raise CapacityError(
                f"{count:,} more pages of keys and values are needed and {self.num_free:,} of "
                f"{self.pool.num_pages:,} are free; close a sequence, or give the engine more memory"
            )

    def _take(self, count: int) -> Tensor:
        """Pages that were used before, the latest first, then new ones."""
        left = max(0, len(self._returned) - count)
        num_new = count - (len(self._returned) - left)
        new = np.arange(self._num_touched, self._num_touched + num_new)
        ids = torch.from_numpy(np.concatenate([self._returned[left:], new]))
        self._returned = self._returned[:left]
        self._num_touched += num_new
        self._counts_P[ids] = 1
        return ids

    def _watch(self, table: PageTable) -> None:
        # Called when the table is forgotten: at any moment, also inside a method of this class. A list's own append
        # changes nothing else, and no interruption can fall into it.
        self._tables.add(ref(table, self._forgotten.append))

    def _settle(self) -> None:
        self._repair()
        self.catch_up()

    def _repair(self) -> None:
        """Take counts and free pages from the tables, if they may be wrong."""
        if not self._is_changing and not self._forgotten:
            return
        self._is_changing = True
        self._num_forks += 1
        num_forgotten = len(self._forgotten)
        counts_P = torch.zeros_like(self._counts_P)
        self._tables = {table for table in self._tables if table() is not None}
        for table in [listed for known in self._tables if (listed := known()) is not None]:
            counts_P[table.ids_LKP[table.ids_LKP >= 0]] += 1
        self._counts_P = counts_P
        self._returned = (counts_P[: self._num_touched] == 0).nonzero()[:, 0].numpy()
        del self._forgotten[:num_forgotten]
        self._is_changing = False
