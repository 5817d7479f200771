"""Training through transformers: loss, gradients, checkpointing, the Trainer, and LoRA through PEFT."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import epilogue.hf  # noqa: F401 - registers
from epilogue.checkpoint import load_checkpoint

# Two rhymes, over and over: easy to learn, impossible to guess.
LINES = torch.tensor([([5, 9, 2, 44, 17] * 7)[:32], ([8, 8, 30, 1, 59, 12, 3] * 7)[:32]] * 4)


def opened(directory: Path, **settings: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **settings)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def test_the_loss_is_our_own(storywriter: Path) -> None:
    ours = load_checkpoint(storywriter, dtype=torch.float32).model.requires_grad_(True)
    theirs = opened(storywriter).train()
    loss = theirs(LINES, labels=LINES).loss
    own_loss = ours.loss(LINES[:, :-1], LINES[:, 1:])
    torch.testing.assert_close(loss, own_loss)
    loss.backward()
    own_loss.backward()
    found = gradients(theirs)
    assert found.keys() == gradients(ours).keys()
    for name, gradient in gradients(ours).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_adds_nothing_to_loss_or_gradients(storywriter: Path, side: str) -> None:
    model = opened(storywriter)
    model(LINES[:1], labels=LINES[:1]).loss.backward()
    expected = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.zero_grad()
    padding = torch.full((1, 9), 3)
    parts = (padding, LINES[:1]) if side == "left" else (LINES[:1], padding)
    ids = torch.cat(parts, 1)
    is_real = torch.cat([torch.full_like(part, part is not padding) for part in parts], 1)
    # The first real token has nothing before it, so nobody asks for it.
    labels = ids.masked_fill(is_real == 0, -100)
    if side == "left":
        labels[:, 9] = -100
    model(ids, attention_mask=is_real, labels=labels).loss.backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5 * expected[name].abs().max().item())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_changes_no_gradient(storywriter: Path, use_reentrant: bool) -> None:
    model = opened(storywriter).train()
    model(LINES, labels=LINES).loss.backward()
    expected = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.zero_grad()
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    calls = []
    model.transformer.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    model(LINES, labels=LINES, use_cache=True).loss.backward()
    assert len(calls) == 2, "the block runs again on the way back"
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name])


def test_a_cache_under_checkpointing_is_refused(storywriter: Path) -> None:
    model = opened(storywriter).train()
    cache = model(LINES, use_cache=True).past_key_values
    model.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="runs every block twice"):
        model(LINES, past_key_values=cache)


@pytest.mark.parametrize("attention", [{}, {"qk_ln": True}])
def test_under_autocast(publish, attention: dict[str, Any]) -> None:
    model = opened(publish(attention=attention)).train()
    exact = model(LINES, labels=LINES).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(LINES, labels=LINES).loss
    loss.backward()
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.05)
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


def test_fresh_weights(storywriter: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(storywriter)
    model = transformers.AutoModelForCausalLM.from_config(config)
    block = model.transformer.blocks[0]
    assert block.ffn.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert block.ffn.down_proj.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert block.attn.out_proj.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert block.attn.slopes_H.tolist() == [2**-4, 2**-8, 2**-12, 2**-16]


def trained(model: Any, folder: Path, **settings: Any) -> list[float]:
    """The losses of 20 steps of the Trainer."""
    pytest.importorskip("accelerate")
    transformers.utils.logging.set_verbosity_error()
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=20,
        per_device_train_batch_size=4,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=0,
        **settings,
    )
    rows = [{"input_ids": line, "labels": line} for line in LINES]
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_trainer_lowers_the_loss(storywriter: Path, tmp_path: Path, checkpointing: bool) -> None:
    config = transformers.AutoConfig.from_pretrained(storywriter)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    losses = trained(model, tmp_path / "run", learning_rate=1e-2, activation_checkpointing=checkpointing)
    assert len(losses) == 20
    assert losses[-1] < 0.5 * losses[0]
    model.save_pretrained(tmp_path / "finetuned")
    again = opened(tmp_path / "finetuned")
    torch.testing.assert_close(again(LINES).logits, model.eval()(LINES).logits)


# PEFT asks by the old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_lora_lowers_the_loss_saves_loads_and_merges(storywriter: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    targets = ["Wqkv", "out_proj", "up_proj", "down_proj"]
    adapted = peft.get_peft_model(
        opened(storywriter), peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    )
    before = {name: weight.clone() for name, weight in adapted.named_parameters() if "lora" not in name}
    losses = trained(adapted, tmp_path / "run", learning_rate=2e-2)
    assert losses[-1] < 0.8 * losses[0]
    for name, weight in before.items():
        assert torch.equal(adapted.get_parameter(name), weight), "only the adapter learns"

    adapted.save_pretrained(tmp_path / "adapter")
    logits = adapted.eval()(LINES).logits
    loaded = peft.PeftModel.from_pretrained(opened(storywriter), tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(LINES).logits, logits)
    written = loaded.generate(LINES[:1, :6], max_new_tokens=4, do_sample=False, pad_token_id=1)
    assert written.shape == (1, 10)

    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged(LINES).logits, logits, rtol=1e-4, atol=1e-4 * logits.abs().max().item())
    merged.save_pretrained(tmp_path / "merged")
    model = load_checkpoint(tmp_path / "merged").model
    torch.testing.assert_close(model(LINES), merged(LINES).logits, rtol=1e-4, atol=1e-4 * logits.abs().max().item())


def test_dropout_is_heard_in_training_only(publish) -> None:
    model = opened(publish(resid_pdrop=0.5, emb_pdrop=0.1))
    model.train()
    assert not torch.equal(model(LINES).logits, model(LINES).logits)
    model.eval()
    assert torch.equal(model(LINES).logits, model(LINES).logits)


def test_training_is_the_same_twice(storywriter: Path) -> None:
    """Two copies, five steps, the same bits."""
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model = opened(storywriter).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(5):
            loss = model(LINES, labels=LINES).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        runs.append((losses, model(LINES).logits))
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])
