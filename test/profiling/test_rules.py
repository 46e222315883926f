"""Every rule against a closed formula: `all`, and the part of it that multiplies a parameter."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from espnet2_sepx.profiling.macs import count_macs
from espnet2_sepx.profiling.rules import PRODUCT_RULES, fft_macs, is_opaque, rule

L, D = 100, 64  # sequence length, width
X = torch.randn(1, L, D, generator=torch.Generator().manual_seed(0))


class Function(nn.Module):
    """A functional computation with parameters, as a module."""

    def __init__(self, function, **parameters):
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value))

    def forward(self, *inputs):
        return self.function(self, *inputs)


def total(module, *inputs):
    work = count_macs(module, lambda: module(*inputs)).total
    return work.all, work.weights


LSTM = L * 4 * D * (D + D)
QUADRATIC = 2 * L * L * D
PROJECTIONS = 4 * L * D * D
FFT_512 = 512 * 9  # real

LAYERS = {
    "linear": (nn.Linear(D, 32), [X], L * D * 32, None),
    "conv1d": (nn.Conv1d(D, 32, 3, stride=2, padding=1), [X.mT], 50 * D * 32 * 3, None),
    "conv1d grouped": (nn.Conv1d(D, 32, 3, groups=4), [X.mT], 98 * (D // 4) * 32 * 3, None),
    "conv1d depthwise": (nn.Conv1d(D, D, 5, groups=D), [X.mT], 96 * D * 5, None),
    "conv2d": (nn.Conv2d(1, 8, (3, 5)), [X[None]], 98 * 60 * 8 * 15, None),
    "conv1d transposed": (nn.ConvTranspose1d(D, 1, 16, 8), [X.mT], L * D * 16, None),
    "conv2d transposed, grouped": (
        nn.ConvTranspose2d(2, 4, 3, stride=2, groups=2),
        [X.view(1, 2, L // 2, D)],
        L // 2 * D * 2 * (4 // 2) * 9,
        None,
    ),
    "lstm": (nn.LSTM(D, D, batch_first=True), [X], LSTM, None),
    "blstm": (nn.LSTM(D, D, batch_first=True, bidirectional=True), [X], 2 * LSTM, None),
    "lstm, 2 layers, other width": (
        nn.LSTM(D, 32, 2),
        [X],
        L * 4 * 32 * ((D + 32) + (32 + 32)),
        None,
    ),
    "lstm with projection": (
        nn.LSTM(D, 32, proj_size=8),
        [X],
        L * (4 * 32 * (D + 8) + 32 * 8),
        None,
    ),
    "gru": (nn.GRU(D, D, batch_first=True), [X], L * 3 * D * (D + D), None),
    "multi-head attention": (
        nn.MultiheadAttention(D, 4, batch_first=True),
        [X, X, X],
        PROJECTIONS + QUADRATIC,
        PROJECTIONS,
    ),
    "transformer encoder layer": (
        nn.TransformerEncoderLayer(D, 4, 128, batch_first=True),
        [X],
        PROJECTIONS + QUADRATIC + 2 * L * D * 128,
        PROJECTIONS + 2 * L * D * 128,
    ),
    "scaled dot product attention": (
        Function(lambda _, q: F.scaled_dot_product_attention(q, q, q)),
        [X.view(1, L, 4, 16).transpose(1, 2)],
        QUADRATIC,
        0,
    ),
    "masked attention, other value width": (
        Function(lambda _, q: F.scaled_dot_product_attention(q, q, q[..., :8], q[0] @ q[0].mT)),
        [X[None]],
        L * L * (D + D + 8),
        0,
    ),
    "einsum with a parameter": (
        Function(lambda m, x: torch.einsum("btd,de->bte", x, m.w), w=torch.randn(D, 32)),
        [X],
        L * D * 32,
        None,
    ),
    "functional linear": (
        Function(lambda m, x: F.linear(x, m.w), w=torch.randn(32, D)),
        [X],
        L * D * 32,
        None,
    ),
    "accumulated in place": (
        Function(
            lambda m, x: torch.zeros(1, L, 32).baddbmm_(x, m.w[None])[0].addmm_(x[0], m.w),
            w=torch.randn(D, 32),
        ),
        [X],
        2 * L * D * 32,
        None,
    ),
    "matrix and vector, dot": (
        Function(lambda _, x: x[0] @ x[0, 0] @ x[0, :, 0]),
        [X],
        L * D + L,
        0,
    ),
    "complex matrix product": (
        Function(lambda _, z: z @ z.mH),
        [torch.randn(3, 5, 7, dtype=torch.complex64)],
        4 * 3 * 5 * 5 * 7,
        0,
    ),
    "complex product": (
        Function(lambda m, z: z * m.w, w=torch.randn(7, dtype=torch.complex64)),
        [torch.randn(3, 5, 7, dtype=torch.complex64)],
        4 * 3 * 5 * 7,
        None,
    ),
    "stft": (
        Function(lambda _, x: torch.stft(x, 512, 128, window=torch.ones(512), return_complex=True)),
        [torch.randn(2, 1280)],
        2 * 11 * FFT_512,
        0,
    ),
    "istft": (
        Function(lambda _, z: torch.istft(z, 512, 128, window=torch.ones(512))),
        [torch.randn(2, 257, 11, dtype=torch.complex64)],
        2 * 11 * FFT_512,
        0,
    ),
    "complex transform over two axes": (
        Function(lambda _, z: torch.fft.fft2(z)),
        [torch.randn(3, 8, 16, dtype=torch.complex64)],
        3 * 2 * 128 * 7,
        0,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_count_equals_the_closed_formula(name):
    module, inputs, macs, weights = LAYERS[name]
    assert total(module, *inputs) == (macs, macs if weights is None else weights)


def test_inference_mode_hides_nothing():
    layer = nn.TransformerEncoderLayer(D, 4, 128, batch_first=True)
    with torch.inference_mode():
        assert total(layer, X)[0] == LAYERS["transformer encoder layer"][2]


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_recurrent_layer_counts_the_same_without_the_fused_kernel():
    with torch.backends.mkldnn.flags(enabled=False):
        assert total(nn.LSTM(D, D, batch_first=True), X) == (LSTM, LSTM)


def test_attention_counts_the_same_without_the_fused_kernel():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        module, inputs, macs, weights = LAYERS["scaled dot product attention"]
        assert total(module, *inputs) == (macs, weights)


def test_onednn_linear_of_the_compiler():
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if operator is None or not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    weight, bias = torch.randn(32, D), torch.randn(32)
    plain = Function(lambda m, x: operator(x, m.w, bias, "none", [], ""), w=weight)
    assert total(plain, X) == (L * D * 32, L * D * 32)
    added = Function(lambda m, x: operator(x, x[..., :32], m.w, bias, "add"), w=weight)
    assert total(added, X) == (L * D * 32, L * D * 32)


def test_elementwise_work_stays_apart():
    gate = Function(lambda m, x: (x * m.w).div(3.0), w=torch.randn(D))
    work = count_macs(gate, lambda: gate(X)).total
    assert (work.all, work.weights, work.elementwise) == (0, 0, 2 * L * D)


def test_transform_of_any_size():
    assert fft_macs(512, 1, real=False) == 2 * 512 * 9
    assert fft_macs(400, 3, real=True) == 3 * math.ceil(400 * math.log2(400))
    assert fft_macs(1, 5, real=True) == 0


def test_hidden_products_are_named():
    module = Function(lambda _, x: torch.linalg.inv(x))
    count = count_macs(module, lambda: module(torch.eye(3)))
    assert dict(count.uncounted) == {"aten.linalg_inv_ex": 1}
    assert is_opaque("mamba.selective_scan")
    assert is_opaque("aten.some_new_conv")
    for harmless in ("relu", "_prelu_kernel", "mm", "lgamma", "linalg_vector_norm"):
        assert not is_opaque(f"aten.{harmless}")


def test_one_rule_per_operator():
    with pytest.raises(ValueError, match=r"aten\.mm already has a rule"):
        rule("aten.mm")(PRODUCT_RULES["aten.mm"])
