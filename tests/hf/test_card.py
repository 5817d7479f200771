"""The model card's own lines, on a checkpoint as MosaicML published theirs."""

from pathlib import Path

import pytest
import torch
import transformers

import epilogue.hf
from epilogue.checkpoint import load_checkpoint
from epilogue.errors import CheckpointError

IDS = torch.arange(2 * 70).reshape(2, 70) * 7 % 61  # more than max_seq_len


def exact_logits(directory: Path) -> torch.Tensor:
    """The fp64 reference's."""
    model = load_checkpoint(directory, dtype=torch.float64).model
    model.set_attention_backend("reference")
    with torch.no_grad():
        return model(IDS)


@torch.no_grad()
def test_the_shortest_snippet_gives_the_references_logits(storywriter: Path) -> None:
    name = str(storywriter)
    model = transformers.AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True, dtype=torch.float32)
    assert type(model) is epilogue.hf.MPTForCausalLM
    exact = exact_logits(storywriter)
    torch.testing.assert_close(model(IDS).logits.double(), exact, rtol=1e-5, atol=1e-5 * exact.abs().max().item())


def test_bias_max_and_clamp_are_heard(storywriter: Path, publish) -> None:
    exact = exact_logits(storywriter)
    for name, attention in (("flat", {"alibi_bias_max": 8}), ("free", {"clip_qkv": None})):
        other = exact_logits(publish(name, attention=attention))
        assert (other - exact).abs().max() > 0.1 * exact.abs().max()


@torch.no_grad()
def test_the_snippet_with_a_config(storywriter: Path) -> None:
    name = str(storywriter)

    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=True)
    config.attn_config["attn_impl"] = "triton"
    config.init_device = "cuda:0"

    if torch.cuda.is_available():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            name, config=config, torch_dtype=torch.bfloat16, trust_remote_code=True
        )
        assert model.device == torch.device("cuda:0")
    else:
        with pytest.warns(UserWarning, match="CUDA") as said:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                name, config=config, torch_dtype=torch.bfloat16, trust_remote_code=True
            )
        assert [str(warning.message).split(" and ")[0].split(" runs ")[0] for warning in said] == [
            "the config says init_device = 'cuda:0'",
            "attn_impl = 'triton'",
        ]
        assert model.device == torch.device("cpu")
    assert model.dtype == torch.bfloat16
    exact = exact_logits(storywriter)
    assert (model(IDS.to(model.device)).logits.cpu().double() - exact).abs().max() < 0.1 * exact.abs().max()


@torch.no_grad()
def test_the_snippet_with_a_longer_context(storywriter: Path) -> None:
    name = str(storywriter)

    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=True)
    config.update({"max_seq_len": 83968})

    model = transformers.AutoModelForCausalLM.from_pretrained(
        name, config=config, dtype=torch.float32, trust_remote_code=True
    )
    assert model.config.max_seq_len == 83968
    exact = exact_logits(storywriter)
    torch.testing.assert_close(model(IDS).logits.double(), exact, rtol=1e-5, atol=1e-5 * exact.abs().max().item())


def test_the_snippet_with_the_tokenizer(storywriter: Path, neox_tokenizer: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(neox_tokenizer))
    ids = tokenizer("It was the best of times", return_tensors="pt")
    assert tokenizer.decode(ids["input_ids"][0]) == "It was the best of times"


@pytest.mark.parametrize("attn_impl", ["torch", "flash", "flex", "triton"])
@pytest.mark.filterwarnings("ignore:attn_impl = .* runs on CUDA")
def test_every_name_of_attention_runs(storywriter: Path, attn_impl: str) -> None:
    config = transformers.AutoConfig.from_pretrained(storywriter, trust_remote_code=True)
    config.attn_config["attn_impl"] = attn_impl
    model = transformers.AutoModelForCausalLM.from_pretrained(storywriter, config=config, dtype=torch.float32)
    exact = exact_logits(storywriter)
    torch.testing.assert_close(model(IDS).logits.double(), exact, rtol=1e-5, atol=1e-5 * exact.abs().max().item())


def test_another_name_of_attention_is_refused(storywriter: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(storywriter)
    config.attn_config["attn_impl"] = "xformers"
    with pytest.raises(CheckpointError, match="attn_impl = 'xformers'; known are torch, flash, triton, flex"):
        transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"attn_config": {"rope": True}}, "rope = True"), ({"d_modle": 32}, "unknown key 'd_modle'")],
)
def test_what_is_not_run_is_refused_and_not_ignored(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        transformers.AutoModelForCausalLM.from_config(epilogue.hf.MPTConfig(**changes))


def test_registering_twice_changes_nothing(storywriter: Path) -> None:
    epilogue.hf.register()
    assert type(transformers.AutoConfig.from_pretrained(storywriter)) is epilogue.hf.MPTConfig


@torch.no_grad()
def test_the_model_without_its_head(storywriter: Path) -> None:
    body = transformers.AutoModel.from_pretrained(storywriter, dtype=torch.float32)
    assert type(body) is epilogue.hf.MPTModel
    whole = transformers.AutoModelForCausalLM.from_pretrained(storywriter, dtype=torch.float32)
    torch.testing.assert_close(whole.lm_head(body(IDS).last_hidden_state), whole(IDS).logits)


def test_other_values_of_the_config(storywriter: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(storywriter, init_device="mixed", verbose=1)
    model = transformers.AutoModelForCausalLM.from_pretrained(storywriter, config=config)
    assert model.device == torch.device("cpu")
    assert epilogue.hf.MPTConfig(attn_config=None).attn_config == {}
    assert (config.hidden_size, config.num_hidden_layers, config.layer_norm_epsilon) == (32, 2, 1e-5)
