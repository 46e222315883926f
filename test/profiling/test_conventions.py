"""Columns of published conventions: the packages themselves say what they count."""

import warnings

import pytest
import torch
from profiling_configs import conv_config, small_tcn, small_tf_moe, stft_config
from test_rules import LAYERS, Function
from torch import nn

from espnet2_sepx.profiling.conventions import figures
from espnet2_sepx.profiling.hooks import hook_figures
from espnet2_sepx.profiling.inputs import noise
from espnet2_sepx.profiling.macs import count_macs, plain_kernels
from espnet2_sepx.profiling.model import build_model, separate

FS = 8000
WHOLE = {
    "skim": conv_config("skim", unit=8, layer=2, segment_size=20),
    "tcn": small_tcn(),
    "dprnn": conv_config("dprnn", unit=8, layer=1, segment_size=20),
    "tfgridnetv2": {
        "encoder": "same",
        "decoder": "same",
        "separator": "tfgridnetv2",
        "separator_conf": {"n_srcs": 2, "n_imics": 1, "n_fft": 64, "stride": 32, "n_layers": 1},
    },
    "transformer": stft_config("transformer", n_fft=128, hop_length=64, adim=16, layers=1),
}


class Called(nn.Module):
    """A module or function with its inputs, as the packages want it."""

    def __init__(self, module, run):
        super().__init__()
        self.module = module
        self.run = run

    def forward(self, mixture):
        return self.run(mixture)


def ptflops_says(module, run, mixture):
    ptflops = pytest.importorskip("ptflops")
    macs, _ = ptflops.get_model_complexity_info(
        Called(module, run),
        (1,),
        input_constructor=lambda _: {"mixture": mixture},
        as_strings=False,
        print_per_layer_stat=False,
    )
    return macs


def thop_says(module, run, mixture):
    thop = pytest.importorskip("thop")
    return thop.profile(Called(module, run), (mixture,), verbose=False)[0]


def torchprofile_says(module, run, mixture):
    torchprofile = pytest.importorskip("torchprofile")
    with torch.no_grad():
        return torchprofile.profile_macs(Called(module, run), (mixture,))


PACKAGES = {"ptflops": ptflops_says, "thop": thop_says, "torchprofile": torchprofile_says}


def flat(outputs):
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [tensor for output in outputs if output is not None for tensor in flat(output)]


def compare(name, module, run, mixture):
    with warnings.catch_warnings(), plain_kernels():
        warnings.simplefilter("ignore")
        theirs = PACKAGES[name](module, run, mixture)
    assert figures(module, run, mixture)[name].total == theirs


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.filterwarnings("ignore")
def test_a_layer_counts_as_the_package_counts_it(layer, package):
    module, inputs, _, _ = LAYERS[layer]
    module.eval()
    compare(package, module, lambda x: flat(module(x, *inputs[1:])), inputs[0])


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("system", WHOLE)
@pytest.mark.filterwarnings("ignore")
def test_a_model_counts_as_the_package_counts_it(system, package):
    model = build_model(WHOLE[system])
    compare(package, model, lambda x: separate(model, x, FS), noise(1600))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Sequential(nn.Conv1d(4, 8, 3), nn.PReLU(), nn.BatchNorm1d(8), nn.ReLU()), (1, 4, 20)),
        (nn.Sequential(nn.LayerNorm(8), nn.Softmax(-1), nn.LeakyReLU(), nn.GELU()), (1, 4, 8)),
        (nn.Sequential(nn.GroupNorm(2, 4, affine=False), nn.AvgPool1d(2)), (1, 4, 20)),
        (nn.Sequential(nn.AdaptiveAvgPool1d(5), nn.MaxPool1d(2)), (1, 4, 20)),
        (nn.InstanceNorm1d(4), (1, 4, 20)),
        (nn.Sequential(nn.Upsample(scale_factor=2, mode="linear")), (1, 4, 20)),
        (nn.RNN(8, 4, 2, batch_first=True, bidirectional=True), (1, 5, 8)),
        (nn.GRU(8, 4, 2, bias=False), (5, 1, 8)),
    ],
    ids=str,
)
@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.filterwarnings("ignore")
def test_elementwise_layers_count_as_the_package_counts_them(layer, shape, package):
    layer.eval()
    compare(package, layer, lambda x: flat(layer(x)), torch.randn(shape))


def test_weights_used_without_their_layer_count_as_if_it_had_been_called():
    layer = nn.Linear(8, 5)
    shortcut = Function(lambda m, x: nn.functional.linear(x, layer.weight))
    shortcut.layer = layer
    x = torch.randn(3, 8)
    owned = {p: w.weights for p, w in count_macs(shortcut, lambda: shortcut(x)).by_module().items()}
    assert hook_figures(shortcut, lambda: shortcut(x), owned)["thop"].total == 3 * 8 * 5
    assert hook_figures(shortcut, lambda: shortcut(x))["thop"].total == 0


def test_a_layer_with_two_parents_counts_twice_as_in_ptflops():
    layer = nn.Linear(8, 8)
    module = nn.ModuleDict({"a": nn.Sequential(layer), "b": nn.Sequential(layer)})

    def run(x):
        return [module["b"](module["a"](x))]

    compare("ptflops", module, run, torch.randn(3, 8))


def test_figures_are_split_by_module():
    model = build_model(small_tcn())
    found = figures(model, lambda x: separate(model, x, FS), noise(800))
    for figure in found.values():
        assert {path.split(".")[0] for path in figure.by_module} == {
            "encoder",
            "separator",
            "decoder",
        }


def test_experts_are_seen_by_the_tracer_only():
    model = build_model(small_tf_moe(num_experts=4))
    found = figures(model, lambda x: separate(model, x, FS), noise(1600))
    experts = "separator.blocks.0.time.ffn1"
    by_module = found["torchprofile"].by_module
    assert any(path.startswith("separator.blocks") for path in by_module)
    assert not any(path.startswith(experts) for path in found["thop"].by_module)


def test_a_model_that_cannot_be_counted_says_why():
    module = Function(lambda _, x: x.nope)
    found = figures(module, module, torch.ones(1))
    assert all(figure.total is None for figure in found.values())
    assert "nope" in found["thop"].problem
    assert found["torchprofile"].problem.startswith("cannot be traced: ")
