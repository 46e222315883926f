"""Streams: through ESPnet's driver and through ours, equal to the whole recording."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
import yaml

from espnet2_sepx.coders.conv_chunk import ChunkConvDecoder, ChunkConvEncoder
from espnet2_sepx.infer.streaming import StreamingSeparator
from espnet2_sepx.profiling.latency import algorithmic_latency
from espnet2_sepx.profiling.model import build_model, separate

ROOT = Path(__file__).resolve().parents[1]
CHUNK = 15
TINY = {
    "chunk_size": CHUNK,
    "intra_layers": 2,
    "intra_ffn_dim": 48,
    "memory_layers": 2,
    "memory_ffn_dim": 48,
    "num_heads": 4,
    "nonlinear": "sigmoid",  # no mask is zero by chance
}


def config(causal: str, step: int, **options) -> dict:
    filterbank = {"channel": 32, "kernel_size": 16, "stride": 8, "chunk_size": step}
    return {
        "encoder": "conv_chunk",
        "encoder_conf": filterbank,
        "decoder": "conv_chunk",
        "decoder_conf": filterbank,
        "separator": "re_sepformer",
        "separator_conf": {**TINY, "causal": causal, **options},
    }


def scrambled(causal: str, step: int = CHUNK, **options) -> torch.nn.Module:
    model = build_model(config(causal, step, **options))
    for parameter in model.separator.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def streamed(model, mixture: torch.Tensor, longest: int) -> list[torch.Tensor]:
    """In pieces of random lengths."""
    stream, parts, at = StreamingSeparator(model), [], 0
    while at < mixture.shape[1]:
        samples = int(torch.randint(1, longest + 1, ()))
        parts.append(stream.push(mixture[:, at : at + samples]))
        at += samples
    parts.append(stream.flush())
    return [torch.cat(voice, 1) for voice in zip(*parts, strict=True)]


@pytest.mark.parametrize("causal", ["chunk", "strict"])
@pytest.mark.parametrize("samples", [3, 16, 1207, 1208, 5003])
def test_our_driver_equals_the_whole_recording(causal, samples) -> None:
    model, mixture = scrambled(causal, memory_context=4), 0.1 * torch.randn(1, samples)
    voices = streamed(model, mixture, 700)
    assert all(voice.shape == mixture.shape for voice in voices)
    if samples >= 16:
        for voice, whole in zip(voices, separate(model, mixture, 8000), strict=True):
            assert (voice - whole).abs().max() <= 1e-5
    else:
        assert all(voice.abs().max() == 0 for voice in voices)


@pytest.mark.parametrize(("causal", "step"), [("chunk", CHUNK), ("strict", 1), ("strict", 7)])
@pytest.mark.parametrize("samples", [1208, 2500])
def test_espnets_driver_equals_the_whole_recording(causal, step, samples, tmp_path) -> None:
    from espnet2.bin.enh_inference_streaming import SeparateSpeechStreaming

    model, files = scrambled(causal, step), experiment(tmp_path, config(causal, step))
    torch.save(model.state_dict(), files[1])
    driver = SeparateSpeechStreaming(*map(str, files))
    mixture = 0.1 * torch.randn(1, samples)
    for _ in range(2):  # the second recording after a reset
        outputs = [driver(piece) for piece in driver.frame(mixture)]
        driver.reset()
        lengths = torch.tensor([samples])
        for voice, whole in zip(
            zip(*outputs, strict=True), separate(model, mixture, 8000), strict=True
        ):
            assert (driver.merge(list(voice), lengths) - whole).abs().max() <= 1e-5


def experiment(folder: Path, model_config: dict) -> tuple[Path, Path]:
    from espnet2.tasks.enh import EnhancementTask

    (folder / "in.yaml").write_text(yaml.safe_dump(model_config))
    arguments = ["--config", str(folder / "in.yaml"), "--output_dir", "unused"]
    args = EnhancementTask.get_parser().parse_args(arguments)
    (folder / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    return folder / "config.yaml", folder / "model.pth"


@pytest.mark.slow
def test_espnets_command_runs(tmp_path) -> None:
    model, files = scrambled("chunk"), experiment(tmp_path, config("chunk", CHUNK))
    torch.save(model.state_dict(), files[1])
    mixture = 0.1 * torch.randn(1, 3001)
    soundfile.write(tmp_path / "mix.wav", mixture[0].numpy(), 8000, subtype="FLOAT")
    (tmp_path / "mix.scp").write_text(f"mix {tmp_path}/mix.wav\n")
    command = f"-m espnet2.bin.enh_inference_streaming --train_config {files[0]} --fs 8000 "
    command += f"--model_file {files[1]} --output_dir {tmp_path}/out "
    command += f"--data_path_and_name_and_type {tmp_path}/mix.scp,speech_mix,sound"
    command = [sys.executable, *command.split()]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for n, whole in enumerate(separate(model, mixture, 8000), 1):
        voice = torch.from_numpy(
            soundfile.read(tmp_path / f"out/wavs/{n}/mix.wav", dtype="float32")[0]
        )
        whole = 0.9 * whole[0] / whole.abs().max()  # ESPnet's driver scales to this peak
        assert (voice - whole).abs().max() < 1e-4  # 16 bits


@pytest.mark.parametrize(("causal", "latency"), [("chunk", (CHUNK - 1) * 8 + 16), ("strict", 16)])
def test_latency_is_what_an_impulse_shows(causal, latency) -> None:
    model, mixture = scrambled(causal), torch.randn(1, 1600)
    assert StreamingSeparator(model).latency == latency
    # the profiler counts the samples behind, the property the sample itself as well
    assert algorithmic_latency(lambda x: separate(model, x, 8000), mixture) == latency - 1
    stream, impulse = StreamingSeparator(model), torch.zeros(1, 1600)
    impulse[0, 600] = 1.0
    returned = waited = 0
    for at in range(1600):  # sample by sample: how long until one comes out
        returned += stream.push(impulse[:, at : at + 1])[0].shape[1]
        waited = max(waited, at + 1 - returned)
    assert waited == latency - 1


def test_what_comes_out_is_final_and_state_stays_small() -> None:
    model = scrambled("strict", memory_context=3)
    stream, sizes = StreamingSeparator(model), []
    for _ in range(60):
        voices = stream.push(0.1 * torch.randn(1, CHUNK * 8))
        assert voices[0].shape[1] in (CHUNK * 8, (CHUNK - 1) * 8)
        sizes.append(stream.nbytes)
    assert len(set(sizes[10:])) == 1


@pytest.mark.slow
@pytest.mark.parametrize("causal", ["chunk", "strict"])
def test_half_a_minute_of_speech_with_the_papers_network(causal, shared_data) -> None:
    """Real recordings, the published size, random pieces of up to 0.5 s."""
    name = {"chunk": "causal", "strict": "strict"}[causal]
    path = ROOT / f"egs2/wsj0_2mix/re_sepformer/conf/train_re_sepformer_{name}.yaml"
    model = build_model(yaml.safe_load(path.read_text()))
    speech = [soundfile.read(p, dtype="float32")[0] for p in sorted(shared_data.rglob("*.flac"))]
    mixture = torch.from_numpy(
        torch.cat([torch.from_numpy(s) for s in speech])[: 30 * 8000].numpy()
    )[None]
    with torch.no_grad():
        whole = separate(model, mixture, 8000)
    for voice, expected in zip(streamed(model, mixture, 4000), whole, strict=True):
        assert (voice - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


def test_a_model_that_cannot_stream_says_so() -> None:
    with pytest.raises(ValueError, match="causal"):
        StreamingSeparator(scrambled(False))
    stft = {"separator": "re_sepformer", "separator_conf": {**TINY, "num_heads": 1}}
    with pytest.raises(ValueError, match="conv"):
        StreamingSeparator(build_model({**stft, "encoder": "stft", "decoder": "stft"}))


def test_coders_are_espnets_but_for_the_pieces() -> None:
    encoder, decoder = ChunkConvEncoder(4, 8, 4, 3), ChunkConvDecoder(4, 8, 4, 3)
    for samples in (8, 16, 17, 50):
        audio = torch.randn(2, samples)
        pieces = encoder.streaming_frame(audio)
        features = [encoder.forward_streaming(piece) for piece in pieces]
        whole, _ = encoder(audio, torch.tensor([samples] * 2))
        together = torch.cat(features, 1)
        assert torch.equal(
            together[:, whole.shape[1] :], torch.zeros_like(together)[:, whole.shape[1] :]
        )
        torch.testing.assert_close(together[:, : whole.shape[1]], whole)
        lengths = torch.tensor([samples] * 2)
        merged = decoder.streaming_merge([decoder.forward_streaming(f) for f in features], lengths)
        torch.testing.assert_close(merged, decoder(whole, lengths)[0])
        free = decoder.streaming_merge([decoder.forward_streaming(f) for f in features])
        assert free.shape[1] == (3 * len(pieces) - 1) * 4 + 8
    with pytest.raises(ValueError, match="at least the 8 samples"):
        encoder.streaming_frame(torch.zeros(1, 7))
    with pytest.raises(ValueError, match="chunk_size"):
        ChunkConvEncoder(4, 8, 4, 0)
