"""Steps of one token by kernels and by operators, on a GPU or in Triton's interpreter: run by test_token_step.py."""

import math
from typing import Any

import torch
from torch import Tensor

from epilogue.kernels.paged_attention import PAGE_TOKENS, PageTensors
from epilogue.model import (
    MPT,
    AttentionConfig,
    MPTConfig,
    PagePool,
    TokenResults,
    TokenStep,
    TokenTables,
    alibi_slopes,
    run_tokens,
)
from epilogue.model.reach import running_norms

SHAPES = [(3, 3, 16), (4, 2, 24), (2, 1, 7)]
STORAGES = ["float32", "bfloat16", "int8"]
LENGTHS = [1, 128, 129, 900]
LAYERS = 2


def make_step(
    shape: tuple[int, int, int], storage: Any, epsilon: float, backend: Any, clip: float | None, device: str
) -> TokenStep:
    """The same for every backend. What nobody wrote is NaN."""
    heads, kv_heads, head_dim = shape
    torch.manual_seed(heads * head_dim)
    attention = AttentionConfig(alibi=True, attn_type="grouped_query_attention", kv_n_heads=kv_heads)
    config = MPTConfig(d_model=heads * head_dim, n_heads=heads, n_layers=LAYERS, attn_config=attention)
    num_pages = max(LENGTHS) // PAGE_TOKENS + 2
    tables = TokenTables.empty(config, batch=len(LENGTHS), num_pages=num_pages, device=torch.device(device))
    pool = PagePool(config, num_pages=tables.pages_LBKP.numel(), storage=storage, device=device)
    for pages in (pool.keys, pool.values):
        for part in (pages.data_PWD, pages.scale_PW):
            if part is not None:
                part.copy_(torch.randint(-9, 9, part.shape) if part.dtype == torch.int8 else torch.randn(part.shape))
    tables.pages_LBKP.copy_(torch.randperm(pool.num_pages).view_as(tables.pages_LBKP))
    tables.num_keys_B.copy_(torch.tensor(LENGTHS))
    tables.running_LBKP.copy_(running_norms(3 * torch.rand(tables.running_LBKP.shape), head_dim))
    tables.first_live_LBK[1, 3] = 5
    tables.pages_LBKP[1, 3, :, :5] = -1
    return TokenStep(pool, tables, alibi_slopes(heads, 4).to(device), epsilon=epsilon, backend=backend, clip=clip)


def run_step(step: TokenStep, qkv: list[Tensor]) -> tuple[Tensor, TokenResults]:
    if step.clip is not None and not step.clips(qkv[0]):  # as the model does
        qkv = [x.clamp(-step.clip, step.clip) for x in qkv]
    slopes_H = alibi_slopes(qkv[0].shape[2], 4).to(qkv[0].device)
    out = [step.attend(layer, *qkv, slopes_H, scale=qkv[0].shape[3] ** -0.5) for layer in range(LAYERS)]
    return torch.stack(out), step.results(torch.zeros(1), torch.zeros(1), None)


def assert_same_pages(some: PageTensors, others: PageTensors) -> None:
    """A GPU's own division by 127 is not the nearest number, so that there a code in between may go either way."""
    is_exact = some.data_PWD.dtype != torch.int8 or not some.data_PWD.is_cuda
    for one, other in zip(vars(some).values(), vars(others).values(), strict=True):
        if one is None:
            assert other is None
            continue
        tolerance = 0.0 if is_exact else 1.0 if one.dtype == torch.int8 else 1e-6
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance, equal_nan=True)


def compare(
    shape: tuple[int, int, int],
    storage: Any,
    *,
    dtype: torch.dtype,
    epsilon: float,
    bad: float = 0.0,
    clip: float | None = None,
    device: str = "cpu",
) -> None:
    heads, kv_heads, head_dim = shape
    # As a projection gives them: parts of wider rows. The interpreter does not round to bf16, so nothing has to be.
    joint = torch.randn(len(LENGTHS), 1, (heads + 2 * kv_heads) * head_dim).bfloat16().to(dtype)
    if bad:
        joint[3, 0, 3] = joint[2, 0, heads * head_dim + 1] = joint[1, 0, -2] = bad
    widths = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    qkv = [part.unflatten(2, (-1, head_dim)) for part in joint.to(device).split(widths, dim=2)]
    fast, slow = (make_step(shape, storage, epsilon, backend, clip, device) for backend in ("split", "reference"))
    assert (fast.clips(qkv[0]), slow.clips(qkv[0])) == (clip is not None, False)
    (out, results), (slow_out, slow_results) = run_step(fast, qkv), run_step(slow, qkv)
    assert_same_pages(fast.pool.keys, slow.pool.keys)
    assert_same_pages(fast.pool.values, slow.pool.values)
    rtol = 1e-6 if device == "cpu" else 1e-2
    torch.testing.assert_close(results.norms_LBK, slow_results.norms_LBK, rtol=rtol, atol=0, equal_nan=True)
    assert torch.equal(results.visited_BH, slow_results.visited_BH)
    torch.testing.assert_close(results.mass_BH, slow_results.mass_BH, rtol=100 * rtol, atol=0)
    assert results.mass_BH.max() <= epsilon
    assert bool(results.mass_BH[3].max() > 0) == (epsilon > 0)
    if not bad:
        tolerance = 1e-5 if dtype == torch.float32 and device == "cpu" else 2e-2
        torch.testing.assert_close(out, slow_out, rtol=tolerance, atol=tolerance)


def compare_models(*, has_norms: bool, device: str = "cpu") -> None:
    """The clamp comes once, and before the norms of queries and keys."""
    heads, _, head_dim = SHAPES[0]
    attention = AttentionConfig(alibi=True, clip_qkv=0.25, qk_ln=has_norms)
    config = MPTConfig(
        d_model=heads * head_dim, n_heads=heads, n_layers=LAYERS, vocab_size=50, no_bias=True, attn_config=attention
    )
    torch.manual_seed(0)
    model, logits = MPT(config).eval().to(device), []
    for backend in ("split", "reference"):
        step = make_step(SHAPES[0], "float32", 1e-3, backend, None, device)
        with torch.no_grad():
            results = run_tokens(model, step.pool, step.tables, None, epsilon=1e-3, backend=backend)  # type: ignore[arg-type]
        logits.append(results.logits_BV)
    tolerance = 1e-5 if device == "cpu" else 1e-3
    torch.testing.assert_close(*logits, rtol=tolerance, atol=tolerance)


def compare_all(storage: Any, device: str) -> None:
    for shape in SHAPES:
        compare(shape, storage, dtype=torch.float32, epsilon=1e-3, device=device)
    compare(SHAPES[0], storage, dtype=torch.bfloat16, epsilon=1e-3, device=device)
    compare(SHAPES[0], storage, dtype=torch.float32, epsilon=0.0, device=device)
    for bad in (math.nan, -math.inf):
        compare(SHAPES[1], storage, dtype=torch.float32, epsilon=1e-3, bad=bad, device=device)
    # A number of bf16's, since the interpreter does not round to that.
    compare(SHAPES[1], storage, dtype=torch.float32, epsilon=1e-3, clip=0.75, device=device)
    compare(SHAPES[2], storage, dtype=torch.float32, epsilon=1e-3, bad=math.nan, clip=0.75, device=device)


if __name__ == "__main__":
    for has_norms in (False, True):
        compare_models(has_norms=has_norms)
    for each in STORAGES:
        compare_all(each, "cpu")
    print("done")
