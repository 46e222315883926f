"""Whole systems against hand counts: TF-Conformer, TF-MoE, its RNN variants and the BSRNN baseline.

Per frame of K bands and W bins in all bands, with N channels, R blocks and S speakers. One second
is 125 frames in the papers' convention; a centred transform makes one frame more.
"""

import pytest
import torch
from profiling_configs import bsrnn_config, small_tf_moe, stft_config

from espnet2_sepx.profiling.inputs import noise
from espnet2_sepx.profiling.macs import count_macs
from espnet2_sepx.profiling.model import build_model, separate
from espnet2_sepx.profiling.tree import part_of

FS = 16000
T = 26
K, W, WIDEST, R, S = 80, 502, 19, 6, 2
INNER = 64  # heads x width
FRAMES_PER_SECOND = 125
FFT_512 = 512 * 9


def parts(config, frames=T):
    """Work of every module, block indices dropped; and the whole."""
    model = build_model(config)
    mixture = noise((frames - 1) * 128)
    count = count_macs(model, lambda: separate(model, mixture, FS))
    merged = {}
    for path, work in count.by_module().items():
        part = part_of(path, depth=9)
        if part in merged:
            merged[part] += work
        else:
            merged[part] = work
    return {part: work for part, work in merged.items() if work.all}, count.total


def functional(found, path):
    """Products without parameters in a module and its children."""
    return sum(work.all - work.weights for part, work in found.items() if part.startswith(path))


def gigamacs_per_second(per_frame):
    return per_frame * FRAMES_PER_SECOND / 1e9


def split(n):
    """Every band at its width, or all computed together at that of the widest."""
    return {2 * W * n, 2 * WIDEST * K * n}


def decoder(n):
    return 2 * (K * 4 * n * n + 4 * n * 4 * S * W)  # mask and residual


FFN = {n: K * 8 * n * n for n in (30, 32)}
ATTENTION = {n: K * 4 * n * INNER for n in (30, 32)}
CONV = {n: K * (6 * n * n + 15 * 2 * n) for n in (30, 32)}


def weights_per_frame(experts, blocks=R, n=32):
    """TF-Conformer, or TF-MoE with routers in front of all feed-forwards."""
    router = 2 * K * experts * n
    modules = 2 * blocks * (2 * FFN[n] + ATTENTION[n] + CONV[n] + router)
    return modules + 2 * W * n + decoder(n)


def test_hand_counts_are_those_of_the_paper():
    assert gigamacs_per_second(weights_per_frame(0)) == pytest.approx(4.016, abs=5e-4)
    assert gigamacs_per_second(weights_per_frame(12)) == pytest.approx(4.108, abs=5e-4)
    for seconds, gigamacs in ((1.0, 6.39), (2.4, 8.41)):
        frames = 1 + round(seconds * FRAMES_PER_SECOND)
        quadratic = R * K * 3 * INNER * (K + frames)
        everything = weights_per_frame(0) + quadratic
        assert gigamacs_per_second(everything) == pytest.approx(gigamacs, abs=0.02)


@pytest.mark.parametrize(("experts", "blocks", "frames"), [(0, R, T), (12, R, T), (3, 1, 151)])
def test_tf_conformer_and_tf_moe(experts, blocks, frames):
    kind = "moe" if experts else "conformer"
    options = {"num_blocks": blocks, "t_module": kind, "f_module": kind}
    found, total = parts(stft_config("tf_moe", num_experts=experts or 1, **options), frames)
    band_split = found["separator.band_split"].weights
    assert band_split // frames in split(32)
    exact = weights_per_frame(experts, blocks) - 2 * W * 32
    assert total.weights == frames * exact + band_split

    f_attention, t_attention = (blocks * frames * K * 3 * INNER * keys for keys in (K, frames))
    assert functional(found, "separator.blocks.frequency.attention") == f_attention
    assert functional(found, "separator.blocks.time.attention") == t_attention
    transforms = frames * (1 + S) * FFT_512
    assert total.all == total.weights + f_attention + t_attention + transforms


def test_router_has_a_row_of_its_own():
    found, _ = parts(stft_config("tf_moe", num_blocks=1, num_experts=12))
    for axis in ("time", "frequency"):
        for ffn in ("ffn1", "ffn2"):
            assert found[f"separator.blocks.{axis}.{ffn}.router"].weights == T * K * 12 * 32


@pytest.mark.parametrize("axis", ["time", "frequency"])
def test_recurrent_variants(axis):
    n = 30
    modules = {"t_module": "conformer", "f_module": "conformer", f"{axis[0]}_module": "rnn"}
    found, total = parts(stft_config("tf_moe", num_channels=n, **modules))
    recurrent = K * 40 * n * n
    exact = R * (2 * FFN[n] + ATTENTION[n] + CONV[n] + recurrent) + 2 * W * n + decoder(n)
    assert gigamacs_per_second(exact) == pytest.approx(4.059, abs=5e-4)
    band_split = found["separator.band_split"].weights
    assert band_split // T in split(n)
    assert total.weights == T * (exact - 2 * W * n) + band_split


def test_bsrnn_baseline():
    n, bands = 44, 27
    _, total = parts(bsrnn_config())
    exact = 12 * bands * 52 * n * n + 2 * 257 * n + 2 * (bands * 4 * n * n + 4 * n * 4 * S * 257)
    assert gigamacs_per_second(exact) == pytest.approx(4.223, abs=5e-4)
    assert total.weights == T * exact
    # beside the transforms, only the complex mask (ESPnet multiplies native complex numbers)
    assert total.all == total.weights + T * (1 + S) * FFT_512 + 4 * T * S * 257


@pytest.mark.parametrize("top_k", [1, 2])
def test_executed_experts_equal_a_brute_force_count(top_k):
    torch.manual_seed(0)
    model = build_model(small_tf_moe(num_experts=4, top_k=top_k))
    mixture = noise(4000)
    model.separator.record_routing = True
    found = count_macs(model, lambda: separate(model, mixture, 8000)).by_module()
    n, hidden = 8, 32
    executed = 0
    for record in model.separator.last_routing:
        for expert in range(4):
            tokens = (record.expert == expert)[record.valid].sum().item()
            executed += tokens * (n * hidden + hidden * n)
    counted = [work.all for path, work in found.items() if path.endswith(("weight1", "weight2"))]
    blocks = [path for path in found if path.endswith(("ffn1.weight1", "ffn2.weight1"))]
    assert len(blocks) == 4
    decoder_weights = found["separator.mask_decoder.weight2"].all
    assert sum(counted) - decoder_weights == executed > 0


def test_rows_that_round_a_kernels_block_up_run_but_do_not_count():
    """With oneDNN each expert's tokens are padded to a multiple of 64 rows; the model has fewer."""
    from espnet2_sepx.layers.kernels import ROW_STEP, onednn_linear
    from espnet2_sepx.profiling.macs import _Counter

    if onednn_linear()[0] is None:
        pytest.skip(onednn_linear()[1])
    model = build_model(small_tf_moe(num_experts=4))
    separator = model.separator
    separator.record_routing = separator.record_cost = True
    counter = _Counter(model)
    with torch.no_grad(), counter:
        separate(model, noise(4000), 8000)
    ran = sum(
        work.all
        for path, work in counter.count.by_module().items()
        if "ffn" in path and path.endswith(("weight1", "weight2"))
    )
    one_expert = 2 * 8 * 32
    chosen = [
        (r.expert == expert).sum().item() for r in separator.last_routing for expert in range(4)
    ]
    assert ran == one_expert * sum(-(-number // ROW_STEP) * ROW_STEP for number in chosen)
    assert separator.last_cost.executed.sum() == one_expert * sum(chosen) < ran
