from epilogue.text.html import read_html


def texts(body: str) -> list[tuple[int, str]]:
    return [(block.level, block.text) for block in read_html(f"<html><body>{body}</body></html>").blocks]


def test_blocks_become_paragraphs_and_headings() -> None:
    body = "<h1>A\n Novel</h1><div>bare <i>it</i>alics<p>One\n line</p>tail</div><h2>II</h2><h4>small</h4><li>x<li>y"
    assert texts(body) == [
        (1, "A Novel"),
        (0, "bare italics"),
        (0, "One line"),
        (0, "tail"),
        (2, "II"),
        (0, "small"),
        (0, "x"),
        (0, "y"),
    ]


def test_line_breaks_are_kept_and_doubled_ones_divide() -> None:
    assert texts("<p>the sea<br/>\n is wide<br>and deep</p>one<br><br>two") == [
        (0, "the sea\nis wide\nand deep"),
        (0, "one"),
        (0, "two"),
    ]


def test_lines_of_verse_and_preformatted_text() -> None:
    body = '<div class="stanza"><div class="verse">the sea</div><div class="verse">is wide</div></div><pre>a\nb</pre>'
    assert texts(body) == [(0, "the sea\nis wide"), (0, "a\nb")]


def test_what_is_not_the_text_goes() -> None:
    body = (
        "<script>x()</script><style>p{}</style><nav>home</nav><figure><img alt='y'/>caption</figure>"
        "<span class='pagenum'>7</span><section id='pg-header'>licence</section>"
        "<p>It was<a class='fnanchor'>[1]</a>.</p><p>&nbsp;</p>"
        "<section id='pg-footer'>licence</section>"
    )
    assert texts(body) == [(0, "It was.")]


def test_rules_and_stars_are_scene_breaks() -> None:
    assert texts("<p>a</p><hr/><p>b</p><p>* * *</p><p>c_d_</p>") == [
        (0, "a"),
        (0, "* * *"),
        (0, "b"),
        (0, "* * *"),
        (0, "c_d_"),
    ]


def test_empty_xhtml_elements_do_not_swallow_the_text() -> None:
    page = read_html("<html><head><title/><script src='x'/></head><body><a id='p1'/><p/><p>It was.</p></body></html>")
    assert [block.text for block in page.blocks] == ["It was."]


def test_description_and_kinds() -> None:
    page = read_html(
        "<html><head><title>Pier</title><meta name='DC.Creator' content='A. Sea'></head>"
        "<body epub:type='frontmatter'><section epub:type='titlepage'>Pier</section></body></html>"
    )
    assert (page.title, page.author) == ("Pier", "A. Sea")
    assert page.kinds == frozenset({"frontmatter", "titlepage"})


def test_deep_nesting_is_no_danger() -> None:
    assert texts("<div>" * 5000 + "x") == [(0, "x")]
