"""Tokens as they are written to text as it settles: the thread between an engine and a page."""

from collections.abc import Iterable, Iterator

from epilogue.text import TextStream


def stream_text(token_ids: Iterable[int], stream: TextStream) -> Iterator[str]:
    """Yield the text of tokens piece by piece, none of them empty.

    Asks for no token after the one that completes a stop string (``stream.stopped``). When the tokens end, so does
    the text, with whatever was held back; when this iterator is closed or interrupted instead, that is not yielded.

    Args:
        token_ids: such as ``Engine.stream`` yields; not closed here, for it may be gone on with.
        stream: fresh, or with a beginning of the same text in it.
    """
    for token_id in token_ids:
        if piece := stream.push(token_id):
            yield piece
        if stream.stopped:
            return
    if rest := stream.finish():
        yield rest
