"""Routing records to bars, maps and shares; the input of the figure."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import fake_experiment as fake
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from espnet2_sepx.errors import UserError
from espnet2_sepx.report.plots import expert_palette, index_png, spectrogram_db, spectrogram_png
from espnet2_sepx.report.routing import (
    FIGURE_FRAMES,
    Layer,
    Router,
    active_part,
    expert_shares,
    figure_block,
    median_pitch,
    mode,
    routing_map,
    three_parts,
)
from espnet2_sepx.report.routing_view import routing_section


def record(axis: str, expert_TK: np.ndarray, valid: int | None = None) -> fake.FakeRecord:
    frames = len(expert_TK)
    mask = torch.arange(frames) < (frames if valid is None else valid)
    expert = torch.from_numpy(expert_TK.astype(np.int16))[None, :, :, None]
    return fake.FakeRecord(axis, 1, 1, expert, torch.ones(expert.shape), mask[None])


def pixels(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")


def test_mode_prefers_the_lowest_of_equals() -> None:
    assert mode(np.array([[3, 1, 1], [2, 0, 1], [2, 2, 0]])).tolist() == [1, 0, 2]


def test_bars_run_along_the_axis_of_their_module() -> None:
    expert_TK = np.array([[0, 0, 1], [2, 2, 2], [2, 0, 1], [2, 0, 1]])
    time = routing_map(record("time", expert_TK))
    assert time.bar.tolist() == [0, 2, 0, 0]
    assert time.agreement == pytest.approx((2 + 3 + 1 + 1) / 12)
    frequency = routing_map(record("frequency", expert_TK))
    assert frequency.bar.tolist() == [2, 0, 1]
    assert frequency.agreement == pytest.approx(9 / 12)


def test_padded_frames_count_nowhere() -> None:
    expert_TK = np.array([[0, 1], [0, 1], [3, 3], [3, 3], [3, 3]])
    padded = record("frequency", expert_TK, valid=2)
    assert routing_map(padded).bar.tolist() == [0, 1]
    (share,) = expert_shares([[padded]], {"frequency": 4})
    assert share.share_E.tolist() == [0.5, 0.5, 0, 0]
    assert share.never == share.starved == [2, 3]


def test_shares_add_up_over_mixtures_and_are_sorted() -> None:
    shares = expert_shares(
        [fake.fake_records(50), fake.fake_records(31)], {"time": 4, "frequency": 4}
    )
    assert [str(share.layer) for share in shares[::3]] == [
        "T-module, block 1, FFN 1",
        "T-module, block 2, FFN 2",
        "F-module, block 2, FFN 1",
    ]
    for share in shares:
        assert share.tokens == 81 * 10
        assert share.share_E.sum() == pytest.approx(1)
        assert share.never == (
            [3] if share.layer.axis == "frequency" and share.layer.block == 2 else []
        )


def test_the_paper_shows_block_5_of_6() -> None:
    assert [figure_block(blocks) for blocks in (6, 3, 2, 1)] == [5, 2, 1, 1]


def test_figure_input_is_high_voice_both_low_voice() -> None:
    low, high = fake.voice(110, 3.0, 1), fake.voice(210, 3.0, 2)
    figure = three_parts("u", [low, high], fake.FS, fake.HOP)
    assert figure is not None
    part = FIGURE_FRAMES * fake.HOP
    assert figure.starts == (0, part, 2 * part)
    first, second = (active_part(signal, fake.FS) for signal in (high, low))
    assert np.array_equal(figure.signal[:part], first[:part])
    assert np.array_equal(figure.signal[part : 2 * part], first[part : 2 * part] + second[:part])
    assert np.array_equal(figure.signal[2 * part :], second[part : 2 * part])
    assert figure.pitch_ratio == pytest.approx(210 / 110, rel=0.05)
    assert figure.names[0].startswith("higher voice (2")


def test_figure_input_of_short_speech() -> None:
    low, high = fake.voice(110, 1.0, 1), fake.voice(210, 3.0, 2)
    figure = three_parts("u", [low, high], fake.FS, fake.HOP)
    assert figure is not None
    assert len(figure.signal) % (3 * fake.HOP) == 0
    assert len(figure.signal) < 3 * FIGURE_FRAMES * fake.HOP
    assert three_parts("u", [low[:800], high], fake.FS, fake.HOP) is None
    assert three_parts("u", [0 * low, high], fake.FS, fake.HOP) is None


@pytest.mark.parametrize("pitch", [95, 140, 230])
@pytest.mark.parametrize("fs", [8000, 16000])
def test_pitch_of_harmonics(pitch: int, fs: int) -> None:
    time = np.arange(fs) / fs
    signal = sum(np.sin(2 * np.pi * pitch * k * time + k) / k for k in range(1, 12))
    assert median_pitch(np.asarray(signal), fs) == pytest.approx(pitch, rel=0.03)


def test_noise_and_silence_have_no_pitch() -> None:
    assert median_pitch(np.random.default_rng(0).standard_normal(8000), 8000) == 0
    assert median_pitch(np.zeros(8000), 8000) == 0
    assert median_pitch(np.zeros(10), 8000) == 0


@pytest.mark.parametrize("count", [1, 6, 12, 24])
def test_palette_has_as_many_colours_as_experts(count: int) -> None:
    palette = expert_palette(count)
    assert len(set(palette)) == len(palette) == count
    assert palette == expert_palette(count + 1)[:count]


def test_palette_of_nothing() -> None:
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        expert_palette(0)


def test_map_image_has_one_pixel_per_cell_from_the_bottom() -> None:
    image = pixels(index_png(np.array([[0, 1, 2], [2, 2, 2]]), ["#ff0000", "#00ff00", "#0000ff"]))
    assert image.size == (3, 2)
    assert image.getpixel((0, 1)) == (255, 0, 0)
    assert image.getpixel((0, 0)) == (0, 0, 255)
    with pytest.raises(ValueError, match=r"index must lie in 0\.\.2"):
        index_png(np.array([[3]]), ["#000000"] * 3)


def test_spectrogram_shows_a_tone_at_its_height() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)
    level_FT = spectrogram_db(tone, 256, 64)
    assert level_FT.shape == (129, 126)
    assert (level_FT[:, 5:-5].argmax(axis=0) == 32).all()
    assert spectrogram_db(tone, 256, 64, columns=40).shape == (129, 40)
    image = pixels(spectrogram_png(level_FT, level_FT.max()))
    assert max(range(129), key=lambda row: sum(image.getpixel((60, row)))) == 128 - 32


def test_section_has_a_panel_for_every_layer() -> None:
    figure = three_parts("u", [fake.voice(110, 3.0, 1), fake.voice(210, 3.0, 2)], fake.FS, fake.HOP)
    assert figure is not None
    records = fake.fake_records(1 + len(figure.signal) // fake.HOP)
    experts = {"time": 4, "frequency": 4}
    section = routing_section(
        figure, records, expert_shares([records], experts), experts, fake.WINDOW, fake.HOP, 1
    )
    assert len(section["palette"]) == 4
    assert section["figure"]["default"] == (1, 1)
    panels = section["figure"]["panels"]
    assert [(panel["block"], panel["ffn"]) for panel in panels] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    frames = section["figure"]["frames"]
    assert pixels(panels[0]["time"]["bar"]).size == (frames, 1)
    assert pixels(panels[0]["frequency"]["bar"]).size == (1, 10)
    assert pixels(panels[0]["time"]["map"]).size == (frames, 10)


def test_a_real_separator_tells_its_routing(tmp_path: Path, espnet_task: Any) -> None:
    config = espnet_task.get_default_config() | fake.config()
    config |= {"criterions": [{"name": "si_snr", "conf": {}, "wrapper": "pit", "wrapper_conf": {}}]}
    path, weights = tmp_path / "config.yaml", tmp_path / "model.pth"
    path.write_text(yaml.safe_dump(config))
    model, _ = espnet_task.build_model_from_file(path, None, "cpu")
    torch.save(model.state_dict(), weights)

    router = Router(path, weights)
    assert router.num_experts == {"time": 4, "frequency": 4}
    records = router(fake.voice(110, 0.5, 1), fake.FS)
    layers = {Layer(item.block, item.ffn, item.axis) for item in records}
    assert len(layers) == len(records) == 8
    mapped = routing_map(records[0])
    assert mapped.expert_TK.shape == (1 + 4000 // fake.HOP, 10)
    assert len(router.separator.bands) == 10

    other = {name: tensor.new_zeros(3) for name, tensor in model.state_dict().items()}
    torch.save(other, weights)
    with pytest.raises(UserError, match="does not load with"):
        Router(path, weights)
