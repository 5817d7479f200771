"""Print the error figures of docs/numerics.md: `PYTHONPATH=tests python -m kernels.attention.measure_errors`."""

import torch
from transformers import MptConfig, MptForCausalLM

from epilogue.kernels.attention import attention
from epilogue.model import MPT, AttentionConfig, MPTConfig, alibi_slopes
from kernels.attention.exactness import random_inputs, sdpa, with_gradients

CASES = [
    (63, 63, 3, 3, 16, 8),
    (1000, 1000, 8, 8, 64, 8),
    (1000, 1000, 8, 8, 64, 16),
    (300, 1000, 8, 2, 64, 8),
    (257, 513, 12, 1, 64, 8),
    (1, 700, 8, 8, 64, 8),
    (4000, 4000, 4, 4, 64, 8),
]


def relative(x: torch.Tensor, truth: torch.Tensor) -> float:
    """Largest error over the largest element."""
    return ((x.double() - truth).abs().max() / truth.abs().max()).item()


def of_attention(dtype: torch.dtype) -> None:
    print(f"\nattention, {dtype}: largest error over largest element, the op | F.scaled_dot_product_attention")
    for queries, keys, heads, kv_heads, head_dim, bias_max in CASES:
        inputs = random_inputs(queries, keys, heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype)
        slopes, grad_out = alibi_slopes(heads, bias_max), torch.randn_like(inputs[0])
        options = {"scale": head_dim**-0.5}
        wide = [x.double() for x in inputs]
        truths = with_gradients(attention, wide, grad_out.double(), slopes, backend="reference", **options)
        ours = with_gradients(attention, inputs, grad_out, slopes, backend="cpu", **options)
        peers = with_gradients(sdpa, inputs, grad_out, slopes, **options)
        figures = [
            f"{name} {relative(our, truth):.1e} | {relative(peer, truth):.1e}"
            for name, our, peer, truth in zip(("out", "dq", "dk", "dv"), ours, peers, truths, strict=True)
        ]
        print(f"T {queries} S {keys} H {heads} K {kv_heads} D {head_dim} bias_max {bias_max}:", "; ".join(figures))


@torch.no_grad()
def of_logits(dtype: torch.dtype) -> None:
    shape = {"d_model": 256, "n_heads": 8, "n_layers": 4, "vocab_size": 1000, "max_seq_len": 1000, "no_bias": True}
    theirs = MptForCausalLM(MptConfig(**shape, attn_config={"alibi": True})).eval()
    for name, parameter in theirs.named_parameters():
        parameter.normal_(mean=float(parameter.ndim == 1), std=1.0 if "wte" in name else 1 / 16)
    theirs = theirs.to(dtype)
    ours = MPT(MPTConfig(**shape, attn_config=AttentionConfig(alibi=True))).to(dtype)
    ours.load_state_dict({name: x for name, x in theirs.state_dict().items() if name != "lm_head.weight"})
    ids = torch.randint(1000, (1, 1000))
    logits, their_logits = ours(ids), theirs(ids).logits
    ours.double().set_attention_backend("reference")
    truth = ours(ids)
    print(f"logits, {dtype}: ours {relative(logits, truth):.1e} | transformers {relative(their_logits, truth):.1e}")


if __name__ == "__main__":
    torch.manual_seed(0)
    for measured_dtype in (torch.float32, torch.bfloat16):
        of_attention(measured_dtype)
        of_logits(measured_dtype)
