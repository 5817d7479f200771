"""The options of the verbs, with their help. Defaults stand in commands.py, where each verb takes what it needs.

Those of `serve` alone are in serve_options.py.
"""

from pathlib import Path
from typing import Annotated

import typer

_BOOKS = ".jsonl, .jsonl.zst and book files, or folders of them."

# Of several verbs.
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="DIR|OWNER/NAME", help="A checkpoint's folder or hub id; the bundled model if left out."
    ),
]
Device = Annotated[
    str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps; auto is the fastest there is.")
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="auto, float32, bfloat16 or float16; auto is bfloat16 on CUDA, float32 elsewhere.",
    ),
]

States = Annotated[
    Path | None,
    typer.Option(
        "--states",
        metavar="DIR",
        envvar="EPILOGUE_STATES",
        help="Where books that were read are kept; the user's cache folder if left out.",
    ),
]
StatesGib = Annotated[
    float | None,
    typer.Option(
        "--states-gib",
        metavar="X",
        min=0,
        envvar="EPILOGUE_STATES_GIB",
        help="How much they may take together, in GiB, before the least lately used go; a tenth of the disk's free room"
        " if left out.",
    ),
]

# Of `write`.
Book = Annotated[
    str | None,
    typer.Argument(
        metavar="BOOK",
        help="A .txt, .md, .html or .epub file, gutenberg:ID, or - for standard input; the bundled story if left out.",
    ),
]
Prompt = Annotated[
    str,
    typer.Option(
        "--prompt",
        metavar="TEXT",
        help="What stands below the book before the model writes: a heading if it has no small letter, else the first"
        " words of the next paragraph; '' for nothing.",
    ),
]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Write so many tokens at most.")
]
Temperature = Annotated[
    float,
    typer.Option(
        "--temperature", metavar="X", help="Higher is bolder, lower is safer; 0 always takes the likeliest token."
    ),
]
TopK = Annotated[int, typer.Option("--top-k", metavar="N", help="Choose among the N likeliest tokens; 0 turns it off.")]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p",
        metavar="X",
        help="Choose among the likeliest tokens that together have this probability; 1 turns it off.",
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        "--min-p",
        metavar="X",
        help="Leave out tokens less likely than this share of the likeliest one's probability; 0 turns it off.",
    ),
]
RepetitionPenalty = Annotated[
    float,
    typer.Option(
        "--repetition-penalty", metavar="X", help="Above 1 makes tokens used lately less likely; 1 turns it off."
    ),
]
RepetitionRange = Annotated[
    int,
    typer.Option("--repetition-range", metavar="N", help="How many of the last tokens count as lately; 0 for all."),
]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="End before this text; may be given again.")
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", help="The same seed writes the same text; drawn and told if left out."),
]
KvStorage = Annotated[
    str,
    typer.Option(
        "--kv-storage",
        metavar="NAME",
        help="How what was read is kept: auto, float32, bfloat16, int8 or int4; auto loses nothing.",
    ),
]
Epsilon = Annotated[
    float,
    typer.Option(
        "--epsilon",
        metavar="X",
        help="Leave out what provably holds less than this share of any attention; 0 looks at everything.",
    ),
]
MaxSeqLen = Annotated[
    int | None,
    typer.Option(
        "--max-seq-len",
        metavar="N",
        min=1,
        help="In place of the checkpoint's own; a model with ALiBi reads past it anyway.",
    ),
]

NoKeep = Annotated[bool, typer.Option("--no-keep", help="Do not keep the book for the next time.")]

# Of `states remove`.
Ids = Annotated[list[str], typer.Argument(metavar="ID", help="As `epilogue states list` shows it, or its beginning.")]

# Of `info`.
ModelOrSize = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A checkpoint's folder, its hub id, or a named size such as mpt-7b; the bundled model if left out.",
    ),
]

# Of `bench`.
SpeedText = Annotated[
    str | None,
    typer.Option(
        "--book",
        metavar="BOOK",
        help="Read this, again from its beginning where it is too short; the bundled story if left out.",
    ),
]
Lengths = Annotated[
    str,
    typer.Option("--lengths", metavar="N,N,...", help="Measure at so many tokens; 8k is 8,192."),
]
NewTokens = Annotated[
    int, typer.Option("--new-tokens", metavar="N", min=1, help="Write so many tokens at each length to time them.")
]

# Of `prepare`.
Sources = Annotated[list[Path], typer.Argument(metavar="SOURCE", help=_BOOKS)]
Out = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="The folder of shards to make; it must not be there yet.")
]
GivenTokenizer = Annotated[
    Path | None,
    typer.Option("--tokenizer", metavar="PATH", help="A tokenizer.json or a folder with one; learned if left out."),
]
VocabSize = Annotated[
    int, typer.Option("--vocab-size", metavar="N", min=258, help="How many tokens a learned vocabulary has.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        min=1,
        help="So many processes cut books into tokens (one if not said) and filter them (all cores).",
        show_default=False,
    ),
]

# Of `shards`.
ShardFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="What `epilogue prepare` made.")]

# Of `prepare --filter`.
_FILTER = "With --filter"
Filter = Annotated[
    bool,
    typer.Option(
        "--filter",
        help="Keep whole, sound, distinct books of fiction only; why each other one was dropped stands in"
        " DIR.books/report.html. Reads archives, TEI, .parquet and hf:OWNER/NAME too. Needs epilogue[data].",
    ),
]
Language = Annotated[
    str | None,
    typer.Option("--language", metavar="CODE", help="en (the default), fr, ..., or any.", rich_help_panel=_FILTER),
]
Genre = Annotated[
    str | None,
    typer.Option("--genre", metavar="NAME", help="fiction (the default) or any.", rich_help_panel=_FILTER),
]
LeastWords = Annotated[
    int | None,
    typer.Option(
        "--least-words", metavar="N", min=1, help="Words of the shortest book; 2000.", rich_help_panel=_FILTER
    ),
]
Catalogue = Annotated[
    list[Path] | None,
    typer.Option(
        "--catalogue",
        metavar="PATH",
        help="Project Gutenberg's pg_catalog.csv or RDF files; found without this beside the books.",
        rich_help_panel=_FILTER,
    ),
]
HeldOut = Annotated[
    list[str] | None,
    typer.Option(
        "--held-out",
        metavar="SOURCE",
        help="Books to judge models on: they, their editions and excerpts are kept out.",
        rich_help_panel=_FILTER,
    ),
]
HeldOutNames = Annotated[
    Path | None,
    typer.Option(
        "--held-out-names",
        metavar="FILE",
        help='More of them, a line each: an id, gutenberg:NUMBER, or "TITLE by AUTHOR".',
        rich_help_panel=_FILTER,
    ),
]
Executor = Annotated[
    str | None,
    typer.Option("--executor", metavar="NAME", help="local (the default), slurm or ray.", rich_help_panel=_FILTER),
]
SlurmPartition = Annotated[
    str | None,
    typer.Option("--slurm-partition", metavar="NAME", help="Where --executor slurm runs.", rich_help_panel=_FILTER),
]

# Of `train`.
Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file; recipes/ has some.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="In place of the recipe's, as optimizer.name=adamw; may be given again."
    ),
]

# Of `evaluate`.
Texts = Annotated[list[Path], typer.Argument(metavar="BOOK", help=f"Books the model has not seen: {_BOOKS}")]
Context = Annotated[
    int, typer.Option("--context", metavar="N", min=2, help="Read so many tokens of each book at most.")
]
Contexts = Annotated[
    str | None,
    typer.Option(
        "--contexts",
        metavar="N,N,...",
        help="Score the same tokens of each book with windows of so many tokens instead; 8k is 8,192.",
    ),
]
Targets = Annotated[
    int, typer.Option("--targets", metavar="N", min=1, help="How many tokens of each book --contexts scores.")
]
NumBooks = Annotated[int | None, typer.Option("--books", metavar="N", min=1, help="Stop after so many books.")]

# Of `plot`.
PlotSources = Annotated[
    list[Path],
    typer.Argument(metavar="RUN... [OUT.png]", help="Folders of runs, and files of `epilogue evaluate --json`."),
]

# Of `quantize`.
DenseModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A dense checkpoint's folder or hub id, or bundled for the model that comes along."
    ),
]
QuantizedOut = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make; it must not be there yet.")]
Bits = Annotated[int, typer.Option("--bits", metavar="N", help="4 or 8 bits a weight.")]
GroupSize = Annotated[
    int,
    typer.Option("--group-size", metavar="N", help="So many weights share a scale; -1 for all that make one output."),
]
ActOrder = Annotated[
    bool,
    typer.Option("--act-order", help="Round the columns with the largest inputs first; better, not for all readers."),
]
Symmetric = Annotated[
    bool, typer.Option("--sym/--asym", help="Zero in the middle of every group's range, or wherever it fits best.")
]
Method = Annotated[
    str,
    typer.Option(
        "--method", metavar="NAME", help="gptq, or rtn: round every weight to nearest, calibrating on nothing."
    ),
]
Calibration = Annotated[
    list[Path] | None,
    typer.Option(
        "--calibration",
        metavar="BOOK",
        help=f"What to read meanwhile: {_BOOKS} May be given again; the bundled story if left out.",
    ),
]
HeldOutBooks = Annotated[
    list[Path] | None,
    typer.Option(
        "--held-out",
        metavar="BOOK",
        help="What to measure on, not read in calibration; may be given again; of the bundled story if left out.",
    ),
]
Samples = Annotated[int, typer.Option("--samples", metavar="N", min=1, help="Read so many samples at most.")]
SequenceLength = Annotated[
    int,
    typer.Option("--sequence-length", metavar="N", min=2, max=65536, help="Tokens of a sample, from a book's start."),
]

# Of `export`.
ExportModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A checkpoint's folder, a .gguf, a hub id, or bundled for the model that comes along."
    ),
]
ExportOut = Annotated[Path, typer.Argument(metavar="OUT", help="What to write; replaced if it is there.")]
ExportFormat = Annotated[
    str | None, typer.Option("--format", metavar="NAME", help="gguf, hf, gptq, gptq_v2 or kobold; gguf told by OUT.")
]
ExportType = Annotated[
    str | None,
    typer.Option("--type", metavar="NAME", help="Weights as f32, f16 or bf16 (gguf, hf), q8_0 or q4_0 (gguf)."),
]

# Of `merge`.
Adapter = Annotated[Path, typer.Argument(metavar="ADAPTER", help="A folder of low-rank adapters, ours or PEFT's.")]
MergedOut = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make; it must not be there yet.")]
Base = Annotated[
    str | None, typer.Option("--base", metavar="MODEL", help="What they stand beside; what they say if left out.")
]
MergedDtype = Annotated[
    str, typer.Option("--dtype", metavar="NAME", help="auto (the base's), float32, bfloat16 or float16.")
]
PushTo = Annotated[
    str | None, typer.Option("--push-to", metavar="OWNER/NAME", help="Upload to the hub afterwards; of hf alone.")
]
