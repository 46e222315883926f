"""Any configuration becomes a model that runs as ESPnet's own inference runs it."""

import pytest
import torch
import yaml
from profiling_configs import bsrnn_config, conv_config, small_tcn, small_tf_moe, stft_config

from espnet2_sepx.errors import UserError
from espnet2_sepx.profiling.inputs import noise, recording, recordings
from espnet2_sepx.profiling.macs import count_macs
from espnet2_sepx.profiling.model import (
    build_model,
    check_length,
    load_config,
    load_parameters,
    sample_rate,
    separate,
)

FS = 8000


def waveform_config(separator, **options):
    """Separators that contain their own transform."""
    return {"encoder": "same", "decoder": "same", "separator": separator, "separator_conf": options}


SEPARATORS = {
    "skim": conv_config("skim", unit=8, layer=1, segment_size=20),
    "tcn": small_tcn(),
    "dprnn": conv_config("dprnn", unit=8, layer=1, segment_size=20),
    "dptnet": conv_config("dptnet", unit=8, layer=1, segment_size=20, att_heads=4),
    "svoice": waveform_config(
        "svoice", num_spk=2, enc_dim=8, kernel_size=8, hidden_size=8, num_layers=1
    ),
    "conformer": stft_config("conformer", n_fft=128, hop_length=64, adim=16, layers=1),
    "transformer": stft_config("transformer", n_fft=128, hop_length=64, adim=16, layers=1),
    "rnn": stft_config("rnn", n_fft=128, hop_length=64, unit=8, layer=1),
    "tfgridnet": waveform_config("tfgridnet", n_srcs=2, n_imics=1, n_fft=64, stride=32, n_layers=1),
    "tfgridnetv2": waveform_config(
        "tfgridnetv2", n_srcs=2, n_imics=1, n_fft=64, stride=32, n_layers=1
    ),
    "tfgridnetv3": {
        **stft_config("tfgridnetv3", n_fft=128, hop_length=64),
        "separator_conf": {"n_srcs": 2, "n_imics": 1, "n_layers": 1, "lstm_hidden_units": 8},
    },
    "tf_moe": small_tf_moe(),
}


@pytest.mark.parametrize("name", SEPARATORS)
@pytest.mark.filterwarnings("ignore")
def test_separators_of_every_kind_are_counted(name):
    model = build_model(SEPARATORS[name])
    mixture = noise(2000)
    count = count_macs(model, lambda: separate(model, mixture, FS))
    total = count.total
    assert 0 < total.weights <= total.all
    assert not count.uncounted
    assert all(
        path.split(".")[0] in ("encoder", "separator", "decoder") for path in count.by_module()
    )


@pytest.mark.parametrize("model_conf", [{}, {"normalize_variance": True}])
def test_separation_equals_espnets(model_conf, tmp_path):
    from espnet2.bin.enh_inference import SeparateSpeech

    config = {**small_tcn(), "model_conf": model_conf, "init": None}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    torch.manual_seed(0)
    reference = SeparateSpeech(tmp_path / "config.yaml")
    model = build_model(config)
    model.load_state_dict(reference.enh_model.state_dict())
    mixture = noise(2001)
    for ours, theirs in zip(separate(model, mixture, FS), reference(mixture, FS), strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(theirs))


def test_rate_independent_separator_gets_the_rate():
    model = build_model(bsrnn_config())
    half = separate(model, noise(4000), 8000)  # half the bins, equal frames
    assert half[0].shape == (1, 4000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"separator": None}, "no 'separator:'.*known: .*skim.*tf_moe"),
        ({"separator": "tcm"}, "unknown separator 'tcm'; known: .*tcn"),
        ({"encoder": "fft"}, "unknown encoder 'fft'; known: conv, .*same, stft"),
        ({"separator_conf": {"layers": 2}}, "separator_conf: .*'layers'; known: num_spk, .*layer"),
        ({"separator_conf": [1]}, "separator_conf: expected 'option: value' lines"),
        (
            {"encoder_conf": {"channel": 16}},
            "encoder_conf: missing a required argument: 'kernel_size'",
        ),
        ({"separator_conf": {"nonlinear": "cube"}}, "cannot be built: .*cube"),
    ],
)
def test_wrong_configurations_name_what_is_known(change, message):
    with pytest.raises(UserError, match=message):
        build_model({**small_tcn(), **change}, "x.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1\n- 2\n", "expected 'key: value' lines"),
        (None, "cannot read"),
    ],
)
def test_unreadable_configurations(text, message, tmp_path):
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_config(path)


def test_parameter_file(tmp_path):
    model, other = build_model(small_tcn()), build_model(small_tcn())
    path = tmp_path / "model.pth"
    torch.save(model.state_dict(), path)
    load_parameters(other, path)
    torch.save({"model": model.state_dict(), "epoch": 1}, path)
    load_parameters(other, path)
    ours, theirs = separate(model, noise(800), FS), separate(other, noise(800), FS)
    torch.testing.assert_close(ours, theirs)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not a parameter file of this configuration"):
        load_parameters(model, path)


def test_sampling_rate():
    assert sample_rate(small_tf_moe(), None) == 8000
    assert sample_rate(small_tf_moe(), 16000) == 16000
    with pytest.raises(UserError, match="give --fs"):
        sample_rate({**small_tcn(), "sample_rate": 8000}, None)


def test_an_input_shorter_than_a_frame():
    model = build_model(small_tf_moe())
    check_length(model, 128, FS)
    with pytest.raises(UserError, match=r"127 samples .* shorter than one frame of 128 .*0\.016"):
        check_length(model, 127, FS)


def test_recordings(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    audio = noise(1000)[0].numpy()
    for index, part in enumerate((audio[:600], audio[600:])):
        soundfile.write(tmp_path / f"{index}.wav", part, FS, subtype="FLOAT")
    (tmp_path / "wav.scp").write_text(
        "".join(f"utt{index} {tmp_path}/{index}.wav\n" for index in range(2)), encoding="utf-8"
    )
    torch.testing.assert_close(recording(tmp_path / "0.wav", FS)[0].numpy(), audio[:600])
    torch.testing.assert_close(recordings(tmp_path, FS, 900)[0].numpy(), audio[:900])
    for call, message in (
        (lambda: recording(tmp_path / "0.wav", 16000), "sampled at 8000 Hz"),
        (lambda: recording(tmp_path / "0.wav", FS, 601), "give a smaller --seconds"),
        (lambda: recordings(tmp_path, FS, 1001), "give a smaller --seconds"),
        (lambda: recording(tmp_path / "wav.scp", FS), "cannot read audio"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    soundfile.write(tmp_path / "0.wav", audio * float("nan"), FS, subtype="FLOAT")
    with pytest.raises(UserError, match="not finite"):
        recording(tmp_path / "0.wav", FS)
