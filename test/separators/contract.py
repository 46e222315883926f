"""What every separator promises (DESIGN 3). A test module subclasses ``SeparatorContract``.

class TestMine(SeparatorContract):
    def build(self, **options): return MySeparator(33, num_spk=2, **options)
"""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor

TOLERANCE = 1e-10  # float64


class SeparatorContract:
    """Laws; the subclass says how to build a tiny separator and what its input looks like."""

    num_spk = 2
    input_dim = 33
    padding_invariant = True

    def build(self, **options: object) -> torch.nn.Module:
        raise NotImplementedError

    def mixture(self, batch: int, frames: int) -> Tensor:
        """Encoder output; here a complex spectrum."""
        return torch.randn(batch, frames, self.input_dim, dtype=torch.complex128)

    def model(self, **options: object) -> torch.nn.Module:
        torch.manual_seed(0)
        return self.build(**options).double().eval()

    def run(self, model: torch.nn.Module, x: Tensor, lengths: list[int] | None = None):
        ilens = torch.tensor(lengths or [x.shape[1]] * x.shape[0])
        return model(x, ilens)

    @pytest.mark.parametrize("frames", [1, 2, 17, 70])
    def test_outputs_look_like_the_input(self, frames: int) -> None:
        model, x = self.model(), self.mixture(2, frames)
        outputs, ilens, others = self.run(model, x)
        assert len(outputs) == model.num_spk == self.num_spk
        assert all(y.shape == x.shape and y.dtype == x.dtype for y in outputs)
        assert ilens.tolist() == [frames] * 2
        assert all(f"mask_spk{n + 1}" in others for n in range(self.num_spk))
        assert all(y.isfinite().all() for y in outputs)

    def test_padded_batch_equals_single_items(self) -> None:
        if not self.padding_invariant:
            pytest.skip("its norms run over time and padding")
        model, x = self.model(), self.mixture(3, 19)
        lengths = [19, 11, 4]
        outputs, _, _ = self.run(model, x, lengths)
        for item, length in enumerate(lengths):
            single, _, _ = self.run(model, x[item : item + 1, :length])
            for together, alone in zip(outputs, single, strict=True):
                assert (together[item, :length] - alone[0]).abs().max() < TOLERANCE
                assert together[item, length:].abs().sum() == 0

    def test_order_of_the_batch_does_not_matter(self) -> None:
        model, x = self.model(), self.mixture(3, 9)
        order = [2, 0, 1]
        for y, z in zip(self.run(model, x)[0], self.run(model, x[order])[0], strict=True):
            assert (y[order] - z).abs().max() < TOLERANCE

    def test_every_parameter_gets_a_finite_gradient(self) -> None:
        model = self.model().train()
        outputs, _, others = self.run(model, self.mixture(2, 13), [13, 9])
        loss = sum(y.abs().square().sum() for y in outputs)
        loss = loss + sum(v.sum() for v in others.values() if v.requires_grad)
        loss.backward()
        missing = [
            name
            for name, p in model.named_parameters()
            if p.grad is None or not p.grad.isfinite().all()
        ]
        assert missing == []

    def test_state_dict_round_trip_and_repeatable(self) -> None:
        model, x = self.model(), self.mixture(1, 12)
        with torch.no_grad():
            first, again = self.run(model, x)[0], self.run(model, x)[0]
            stream = io.BytesIO()
            torch.save(model.state_dict(), stream)
            other = self.build().double().eval()
            self.run(other, x)  # whatever it caches must go when new weights come
            stream.seek(0)
            other.load_state_dict(torch.load(stream, weights_only=True))
            loaded = self.run(other, x)[0]
        for a, b, c in zip(first, again, loaded, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)

    def test_inference_equals_the_graph_path(self) -> None:
        model, x = self.model(), self.mixture(2, 15)
        with torch.no_grad():
            fast = self.run(model, x, [15, 8])[0]
        for y, z in zip(fast, self.run(model, x, [15, 8])[0], strict=True):
            assert (y - z).abs().max() < TOLERANCE

    def test_input_is_left_alone(self) -> None:
        model, x = self.model(), self.mixture(2, 10)
        before = x.clone()
        with torch.no_grad():
            self.run(model, x, [10, 6])
        assert torch.equal(x, before)

    def test_can_be_copied_after_a_forward_in_training(self) -> None:
        model, x = self.model().train(), self.mixture(1, 10)
        self.run(model, x)
        copied = copy.deepcopy(model).eval()
        with torch.no_grad():
            for y, z in zip(self.run(copied, x)[0], self.run(model.eval(), x)[0], strict=True):
                assert torch.equal(y, z)

    def test_bfloat16_autocast(self) -> None:
        model = self.model().float().train()
        x = self.mixture(1, 10)
        x = x.to(torch.complex64 if x.is_complex() else torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            outputs, _, _ = self.run(model, x)
        exact = self.run(model, x)[0]
        for y, z in zip(outputs, exact, strict=True):
            assert (y - z).abs().mean() < 0.05 * z.abs().mean()
