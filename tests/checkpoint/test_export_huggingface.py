"""Directories for transformers: read back, true to plain transformers' limits, with a card that says so."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from checkpoint.material import assert_same_bits, tiny_config, tiny_state
from epilogue.checkpoint import CardFacts, export_hf, load_checkpoint, save_checkpoint
from epilogue.checkpoint.plain_transformers import misread_by_transformers
from epilogue.errors import CheckpointError
from epilogue.model import AttentionConfig, MPTConfig
from epilogue.text import Tokenizer, train_tokenizer

transformers = pytest.importorskip("transformers")

TOKENIZER = train_tokenizer(["The sea, the sea!   The “old” sea — élan. " * 5], vocab_size=290)
TEXT = "The old   sea — élan <|endoftext|>, “the sea”\n\n!"
PLAIN = tiny_config(expansion_ratio=4, vocab_size=290)
IDS = torch.arange(17)[None] * 11 % 290


def alibi(**switches: Any) -> AttentionConfig:
    return AttentionConfig(alibi=True, **switches)


@pytest.fixture(autouse=True)
def no_progress_bars() -> None:
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved(tmp_path / "source", PLAIN)


def saved(directory: Path, config: MPTConfig, card: str | None = None) -> Path:
    directory.mkdir()
    TOKENIZER.save(directory)
    save_checkpoint(directory, tiny_state(config), config, card=card)
    return directory


@torch.no_grad()
def test_plain_transformers_gives_the_same_logits_and_ids(source: Path, tmp_path: Path) -> None:
    done = export_hf(source, tmp_path / "out")
    assert (done.misread, done.url) == ([], None)
    theirs = transformers.MptForCausalLM.from_pretrained(done.directory).eval()
    ours = load_checkpoint(source)
    torch.testing.assert_close(theirs(IDS).logits, ours.model(IDS), rtol=1e-5, atol=1e-5)
    assert_same_bits(load_checkpoint(done.directory).model.state_dict(), ours.model.state_dict())

    tokenizer = transformers.AutoTokenizer.from_pretrained(done.directory)
    plain_text = TEXT.replace("<|endoftext|>", "")
    assert tokenizer(plain_text)["input_ids"] == TOKENIZER.encode(plain_text)
    assert tokenizer.decode(TOKENIZER.encode(plain_text)) == plain_text
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.padding_side) == (0, 1, "left")

    batch = tokenizer(["The sea", "The old sea, the old sea"], return_tensors="pt", padding=True)
    assert theirs.generate(**batch, max_new_tokens=2, do_sample=False).shape[0] == 2


def test_a_directory_is_whole(source: Path, tmp_path: Path) -> None:
    directory = export_hf(source, tmp_path / "out", dtype=torch.bfloat16).directory
    assert {path.name for path in directory.iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    generation = json.loads((directory / "generation_config.json").read_text())
    assert generation == {"use_cache": True, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    config = json.loads((directory / "config.json").read_text())
    assert (config["torch_dtype"], config["model_type"]) == ("bfloat16", "mpt")
    assert "auto_map" not in config, "no code comes along"
    assert Tokenizer.from_file(directory).fingerprint == TOKENIZER.fingerprint
    assert not list(tmp_path.glob("*.partial"))


SWITCHES = {
    "bias max": {"attn_config": alibi(alibi_bias_max=16)},
    "norms of all heads": {"attn_config": alibi(qk_ln=True)},
    "norms a head": {"attn_config": alibi(qk_gn=True)},
    "no ALiBi": {"attn_config": AttentionConfig(alibi=False)},
    "no ALiBi, no positions": {"attn_config": AttentionConfig(alibi=False), "learned_pos_emb": False},
    "multi-query": {"attn_config": alibi(attn_type="multiquery_attention")},
    "grouped": {"attn_config": alibi(attn_type="grouped_query_attention", kv_n_heads=2)},
    "narrow": {"expansion_ratio": 2},
    "biases": {"no_bias": False},
    "biases of the projection": {"attention_bias": True},
    "scaled logits": {"logit_scale": 0.5},
    "RMSNorm": {"norm_type": "rmsnorm"},
    "clamp": {"attn_config": alibi(clip_qkv=0.5)},
    "scale": {"attn_config": alibi(softmax_scale=0.7)},
    "epsilon": {"norm_eps": 0.5},
    "untied": {"tie_word_embeddings": False},
    "three heads": {"n_heads": 3, "d_model": 24},
    "plain LayerNorm": {"norm_type": "layernorm"},
    "embedding fraction": {"embedding_fraction": 0.1},
}


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_the_warning_is_given_exactly_where_plain_transformers_errs(tmp_path: Path, name: str) -> None:
    config = replace(PLAIN, **SWITCHES[name])
    state = {key: tensor + 0.3 if tensor.ndim == 1 else tensor for key, tensor in tiny_state(config).items()}
    save_checkpoint(tmp_path, state, config)
    exact = load_checkpoint(tmp_path, dtype=torch.float64).model(IDS)
    transformers.utils.logging.set_verbosity_error()
    try:
        theirs = transformers.MptForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(IDS).logits.double()
        is_right = bool((theirs - exact).abs().max() < 1e-4 * exact.abs().max())
    except (RuntimeError, StrictDataclassError):  # it says that tensors do not fit, or a word of the config
        is_right = False
    assert is_right == (not misread_by_transformers(config))


def test_the_card_warns(tmp_path: Path) -> None:
    config = replace(PLAIN, attn_config=alibi(alibi_bias_max=16, clip_qkv=6.0, qk_ln=True))
    done = export_hf(saved(tmp_path / "source", config), tmp_path / "out")
    assert len(done.misread) == 2
    card = (done.directory / "README.md").read_text()
    assert "Do not load it without `epilogue`" in card
    for clause in done.misread:
        assert clause in card


def test_the_card_tells_what_it_is_told(source: Path, tmp_path: Path) -> None:
    facts = CardFacts(name="Nautilus", licence="cc-by-4.0", data="Forty novels of the sea.")
    directory = export_hf(source, tmp_path / "out", facts=facts).directory
    card = (directory / "README.md").read_text()
    for wanted in ("# Nautilus", "license: cc-by-4.0", "Forty novels of the sea.", "alibi_bias_max 8", "Limitations"):
        assert wanted in card
    assert card.startswith("---\nlibrary_name: transformers\n")


@pytest.mark.parametrize(
    ("source_card", "expected"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n", "license: apache-2.0\n"),
        ("---\nlanguage: en\n---\nlicense: mit\n", None),
        (None, None),
    ],
)
def test_the_card_of_the_source_comes_along(tmp_path: Path, source_card: str | None, expected: str | None) -> None:
    directory = export_hf(saved(tmp_path / "source", PLAIN, card=source_card), tmp_path / "out").directory
    head = (directory / "README.md").read_text().split("---\n")[1]
    assert (expected in head) if expected else ("license" not in head)
    if source_card is None:
        assert not (directory / "README-source.md").exists()
    else:
        assert (directory / "README-source.md").read_text() == source_card
        assert "README-source.md" in (directory / "README.md").read_text()


def test_a_place_that_is_taken(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is there already"):
        export_hf(source, tmp_path / "out")
    assert (tmp_path / "out" / "diary.txt").read_text() == "mine"


def test_what_reads_back_differently_is_not_reported_as_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_bit_off(directory: Path, state: dict[str, torch.Tensor], config: MPTConfig, **settings: Any) -> None:
        state["transformer.norm_f.weight"][0] += 1e-6
        save_checkpoint(directory, state, config, **settings)
        state["transformer.norm_f.weight"][0] -= 1e-6

    monkeypatch.setattr("epilogue.checkpoint.export_huggingface.save_checkpoint", one_bit_off)
    with pytest.raises(CheckpointError, match=r"transformer\.norm_f\.weight was read back"):
        export_hf(source, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_pushing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(huggingface_hub, "create_repo", lambda hub_id, **said: calls.append((hub_id, said)))

    def upload(*, repo_id: str, folder_path: Path, commit_message: str) -> None:
        calls.append((repo_id, {"files": sorted(path.name for path in Path(folder_path).iterdir())}))

    monkeypatch.setattr(huggingface_hub, "upload_folder", upload)
    done = export_hf(source, tmp_path / "out", push_to="ann/nautilus")
    assert done.url == "https://huggingface.co/ann/nautilus"
    assert calls[0] == ("ann/nautilus", {"private": True, "exist_ok": True})
    assert calls[1][0] == "ann/nautilus"
    assert "model.safetensors" in calls[1][1]["files"]


def test_a_hub_that_refuses(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("401 who are you")

    monkeypatch.setattr(huggingface_hub, "create_repo", refuse)
    with pytest.raises(CheckpointError, match=r"is written, and the hub did not take it .*401 who are you"):
        export_hf(source, tmp_path / "out", push_to="ann/nautilus")
    assert load_checkpoint(tmp_path / "out").config.d_model == 16
