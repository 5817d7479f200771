"""`epilogue export`: a file another program reads, or one sentence."""

from pathlib import Path

import pytest

from cli.material import Run
from epilogue.checkpoint import load_checkpoint


@pytest.mark.parametrize("options", [(), ("--type", "q8_0"), ("--format", "gguf", "--type", "f32")])
def test_the_file_is_written_and_named(run: Run, tiny: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    out = tmp_path / "tiny.gguf"
    done = run("export", tiny, out, *options)
    assert (done.code, done.out) == (0, f"{out}\n")
    assert "read back and found the same" in done.err
    assert load_checkpoint(out).config.d_model == 64


def test_what_was_exported_can_be_used_like_any_model(run: Run, tiny: Path, book: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.gguf"
    assert run("export", tiny, out, "--type", "f32").code == 0
    options = ("--max-new-tokens", 20, "--seed", 3)
    assert run("write", book, "--model", out, *options).out == run("write", book, "--model", tiny, *options).out
    assert "64" in run("info", out).out


def test_a_folder_for_transformers(run: Run, tiny: Path, book: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny-hf"
    done = run("export", tiny, out, "--format", "hf", "--type", "f32")
    assert (done.code, done.out) == (0, f"{out}\n")
    assert (out / "README.md").is_file()
    options = ("--max-new-tokens", 20, "--seed", 3)
    assert run("write", book, "--model", out, *options).out == run("write", book, "--model", tiny, *options).out


@pytest.mark.parametrize("format_name", ["gptq", "gptq_v2", "kobold"])
def test_a_folder_for_programs_of_four_bits(run: Run, tiny: Path, book: Path, tmp_path: Path, format_name: str) -> None:
    quantised, out = tmp_path / "quantised", tmp_path / format_name
    assert run("quantize", tiny, quantised, "--method", "rtn", "--group-size", 32, "--held-out", book).code == 0
    done = run("export", quantised, out, "--format", format_name)
    assert (done.code, done.out) == (0, f"{out}\n")
    assert load_checkpoint(out).config.quantization.bits == 4
    assert bool(list(out.glob("4bit-*.safetensors"))) == (format_name == "kobold")


def test_the_bundled_model_has_a_name(run: Run, tmp_path: Path) -> None:
    assert run("export", "bundled", tmp_path / "e.gguf").code == 0
    assert load_checkpoint(tmp_path / "e.gguf").config.n_layers == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tiny", "tiny.bin"), "does not tell a format"),
        (("tiny", "x.gguf", "--format", "onnx"), "--format must be one of"),
        (("tiny", "x.gguf", "--type", "q3_k"), "--type of gguf must be one of f32, f16, bf16, q8_0, q4_0"),
        (("tiny", "x.gguf", "--push-to", "me/mine"), "--push-to is of hf, and this is gguf"),
        (("mpt-7b", "x.gguf"), "name of an architecture"),
        (("nowhere/", "x.gguf"), "neither an existing directory"),
    ],
)
def test_refusals(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: object, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(arguments, tuple)
    if arguments[0] == "tiny":
        arguments = (tmp_path, *arguments[1:])
    assert words in run("export", *arguments).complaint


def test_a_dense_model_has_no_four_bits_to_write(run: Run, tiny: Path, tmp_path: Path) -> None:
    assert "is not quantised; quantise it first" in run("export", tiny, tmp_path / "x", "--format", "kobold").complaint


def test_a_place_that_cannot_be_written(run: Run, tiny: Path, tmp_path: Path) -> None:
    assert "cannot be written" in run("export", tiny, tmp_path / "no" / "such" / "x.gguf").complaint
