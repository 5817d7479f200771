"""What must hold of an engine's pages and texts between any two calls."""

import torch

from epilogue.engine import Engine
from epilogue.kernels.paged_attention import PAGE_TOKENS


def check(engine: Engine) -> None:
    """Counts are the number of tables that list a page, every other page is free, and texts hold together."""
    pages, num_pages = engine.pages, engine.pages.pool.num_pages
    num_free = pages.num_free  # settles
    counts_P = torch.zeros(max(1, num_pages), dtype=torch.int32)
    tables = {id(text.table): text.table for text in engine._sequences}
    known = [table for known in pages._tables if (table := known()) is not None]
    assert {id(table) for table in known if (table.ids_LKP >= 0).any()} <= set(tables), "nobody's pages"
    for table in tables.values():
        ids = table.ids_LKP[table.ids_LKP >= 0]
        assert len(ids.unique()) == len(ids), "a page listed twice"
        counts_P[ids] += 1
    assert torch.equal(pages._counts_P, counts_P)
    free = pages._returned.tolist() + list(range(pages._num_touched, num_pages))
    assert len(set(free)) == len(free) == num_free == num_pages - int((counts_P > 0).sum())
    assert not counts_P[torch.tensor(free, dtype=torch.int64)].any()
    for text in engine._sequences:
        if not text.is_closed:  # an interruption may leave one half closed, to be closed again
            check_text(engine, text)


def check_text(engine: Engine, text) -> None:
    table = text.table
    assert table.num_tokens >= 0
    place_P = torch.arange(table.ids_LKP.shape[2])
    is_gone_LKP = (place_P < table.first_live_LK[..., None]) | (place_P >= table.num_pages)
    assert ((table.ids_LKP >= 0) | is_gone_LKP).all(), "a hole"
    assert engine._stepper.can_cut(table, table.num_tokens), "a page is gone that matters"
    assert table.norms_LKP.shape[2] >= table.ids_LKP.shape[2] <= table.scores_LHP.shape[2]
    # Where the next token will be written nobody else reads.
    if table.num_tokens % PAGE_TOKENS == 0:
        behind = table.ids_LKP[..., table.num_pages :]
        assert (engine.pages._counts_P[behind[behind >= 0]] <= 1).all()
