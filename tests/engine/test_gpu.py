"""The engine on an accelerator: graphs replay what the same steps would do one by one, and wait for nothing."""

from typing import Any

import pytest
import torch

from engine.conftest import ARCHITECTURES, MakeMPT
from engine.invariants import check
from engine.test_guesses import SETTINGS
from epilogue.engine import Engine, SamplingParams, Storage
from epilogue.engine.decoder import Decoder
from epilogue.engine.sampling import Sampler
from epilogue.model import MPT, Quantization, Segment
from epilogue.model.linear import QuantLinear
from gpu_waits import no_waiting

pytestmark = pytest.mark.gpu
GREEDY = SamplingParams(max_new_tokens=300, temperature=0)
STORAGES: list[Storage] = ["float32", "bfloat16", "int8", "int4"]


@pytest.fixture
def wide_mpt(tiny_mpt: MakeMPT) -> MPT:
    """Of a head width that is met in the world."""
    return tiny_mpt(d_model=256, n_heads=4, attn_config={"clip_qkv": 2.0}, seed=1).cuda()


def make(model: MPT, *, capture: Any = None, **options: Any) -> Engine:
    """An engine whose decoder captures graphs, or does what ``capture`` says."""
    engine = Engine(model, **{"num_pages": 2000, "chunk_tokens": 200, "undo_tokens": 0} | options)
    assert engine._stepper.decoder is not None
    if capture is not None:
        engine._stepper.decoder.capture = capture
    return engine


def write(engine: Engine, book: list[int], params: SamplingParams = GREEDY) -> list[int]:
    return list(engine.stream(engine.open_book(book), params))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_writes_what_its_step_writes(
    wide_mpt: MPT, book: list[int], storage: Storage, dtype: torch.dtype
) -> None:
    model = wide_mpt.to(dtype)
    graphs = make(model, storage=storage)
    steps = make(model, storage=storage, capture=lambda step: step)
    assert write(graphs, book * 9) == write(steps, book * 9)
    check(graphs)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_graph_of_a_quantised_model_writes_what_its_step_writes(
    tiny_mpt: MakeMPT, book: list[int], bits: int
) -> None:
    model = tiny_mpt(d_model=256, n_heads=4, quantization=Quantization(bits=bits, group_size=128)).cuda().bfloat16()
    generator = torch.Generator("cuda").manual_seed(0)
    for module in model.modules():
        if isinstance(module, QuantLinear):
            module.codes_OI.random_(0, 256, generator=generator)
            module.scales_OG.fill_(0.05 if bits == 4 else 0.003)
            module.zeros_OG.fill_(2 ** (bits - 1))
    graphs, steps = make(model, storage="int8"), make(model, storage="int8", capture=lambda step: step)
    assert write(graphs, book * 9) == write(steps, book * 9)
    check(graphs)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_writes_in_fp32_what_the_cpu_writes(
    tiny_mpt: MakeMPT, book: list[int], architecture: str
) -> None:
    """Until two logits are as near as rounding."""
    sizes = {"d_model": 48 if "three" in architecture else 128, "n_heads": 4} | ARCHITECTURES[architecture]
    cpu, gpu = (Engine(tiny_mpt(**sizes).to(device), num_pages=2000) for device in ("cpu", "cuda"))
    params = SamplingParams(max_new_tokens=40, temperature=0)
    texts = [engine.open_book(book * 2) for engine in (cpu, gpu)]
    for one, other in zip(
        *(engine.stream(t, params) for engine, t in zip((cpu, gpu), texts, strict=True)), strict=True
    ):
        assert one == other


def test_several_texts_come_and_go(wide_mpt: MPT, book: list[int]) -> None:
    def story(engine: Engine) -> list[list[int]]:
        first = engine.open_book(book * 4)
        streams = [engine.stream(first, GREEDY), engine.stream(engine.fork(first), GREEDY)]
        written: list[list[int]] = [[], [], []]
        for turn in range(150):
            for text, stream in zip(written, streams, strict=False):
                text.append(next(stream))
            if turn == 30:
                streams.append(engine.stream(engine.open_book(book[::-1] * 5), GREEDY))
            if turn == 100:
                streams.pop(1).close()
                engine.truncate(first, 140)
                streams[0] = engine.stream(first, GREEDY)
        return written

    assert story(make(wide_mpt)) == story(make(wide_mpt, capture=lambda step: step))


def test_a_replay_waits_for_nothing(wide_mpt: MPT, book: list[int]) -> None:
    engine = make(wide_mpt)
    decoder = engine._stepper.decoder
    assert isinstance(decoder, Decoder)
    sequence = engine.open_book(book)
    list(engine.stream(sequence, SamplingParams(max_new_tokens=3, temperature=0)))
    engine.append(sequence, [1])
    replays = 0
    for slots in decoder._slots.values():
        replay = slots.replay
        assert replay is not None
        with no_waiting():
            replay()
            replays += 1
    assert replays == 1


@pytest.mark.parametrize("storage", STORAGES)
def test_a_chunk_is_read_without_waiting(wide_mpt: MPT, storage: Storage) -> None:
    book = torch.randint(0, 61, (900,), generator=torch.Generator().manual_seed(3)).tolist()
    engine = make(wide_mpt.bfloat16(), storage=storage, chunk_tokens=300)
    engine.open_book(book)  # compiles
    sequence = engine.enter(book[::-1])
    engine.advance(sequence)
    for start in (300, 600):
        engine.pages.grow(sequence.table, 300)
        segments = [Segment(sequence.table, 300, sequence.reads, num_wanted=0)]
        with no_waiting(), torch.inference_mode():
            engine._stepper._run(segments, sequence.ids[start : start + 300])
        sequence.table.num_tokens += 300


def test_a_chunk_runs_while_the_next_one_is_prepared(wide_mpt: MPT) -> None:
    """No chunk but the last is waited for, and what each lets go is given back behind the next."""
    book = torch.randint(0, 61, (1500,), generator=torch.Generator().manual_seed(3)).tolist()
    engine = make(wide_mpt.bfloat16(), storage="int8", chunk_tokens=300, spacings=())
    engine.open_book(book)  # compiles
    sequence = engine.enter(book[::-1])
    engine.model.transformer.blocks[-1].norm_1.register_forward_pre_hook(lambda *_: torch.cuda._sleep(200_000_000))
    for _ in range(4):
        with no_waiting():
            engine.advance(sequence)
        assert not torch.cuda.current_stream().query()
        assert list(engine.pages._leaving) == [sequence.table]
    engine.advance(sequence)
    check(engine)


@pytest.mark.parametrize("settings", SETTINGS)
def test_what_runs_ahead_changes_no_token(
    wide_mpt: MPT, book: list[int], settings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(**SETTINGS[settings], max_new_tokens=300, seed=4)
    model = wide_mpt.bfloat16()
    ahead = make(model, storage="int8")
    steps: list[int] = []
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, segments, ids: (steps.append(1), step(self, segments, ids))[1])
    written = write(ahead, book * 9, params)
    check(ahead)
    assert len(steps) < 20, "all but those that need a new page were run ahead"
    monkeypatch.setattr(Sampler, "guess", lambda *_: None)
    assert write(make(model, storage="int8"), book * 9, params) == written


def test_a_pass_ahead_is_not_waited_for(wide_mpt: MPT, book: list[int]) -> None:
    """The logits come before the pass that was started behind them is through."""
    engine = make(wide_mpt)
    stream = engine.stream(sequence := engine.open_book(book), GREEDY)
    for _ in range(5):
        next(stream)
    decoder = engine._stepper.decoder
    assert decoder is not None
    replays = [(slots, slots.replay) for slots in decoder._slots.values()]
    assert sequence.logits_V is not None
    torch.cuda.synchronize()
    for slots, replay in replays:

        def slow(replay: Any = replay) -> Any:
            torch.cuda._sleep(2_000_000_000)  # about a second
            return replay()

        slots.replay = slow
    engine._stepper.run_ahead(sequence, Sampler(GREEDY).guess)
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()


def test_a_step_but_for_its_logits_waits_for_nothing(wide_mpt: MPT, book: list[int]) -> None:
    engine = make(wide_mpt)
    sequence = engine.open_book(book)
    list(engine.stream(sequence, SamplingParams(max_new_tokens=3, temperature=0)))
    engine.append(sequence, [1])
    sequence.extend([2])
    with no_waiting():
        engine.advance(sequence)
    assert sequence.logits_V is not None


def test_a_long_text_is_read_with_plans(wide_mpt: MPT) -> None:
    """Prefill by FlexAttention, decode by graphs, against the CPU."""
    book = torch.randint(0, 61, (3000,), generator=torch.Generator().manual_seed(3)).tolist()
    gpu, cpu = make(wide_mpt, chunk_tokens=512), Engine(MPT(wide_mpt.config).eval(), num_pages=2000)
    cpu.model.load_state_dict({name: x.cpu() for name, x in wide_mpt.state_dict().items()})
    text, same = gpu.open_book(book), cpu.open_book(book)
    assert text.logits_V is not None
    assert same.logits_V is not None
    torch.testing.assert_close(text.logits_V.cpu(), same.logits_V, rtol=1e-3, atol=1e-3)
    assert gpu.stats().share_visited < 1
