"""Tests of acceleration: blocks computed again or compiled give the same gradients, and a fallback says why."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from headctssl.errors import UsageError
from headctssl.networks import acceleration, build_encoder
from headctssl.networks.acceleration import compile_blocks, recompute_blocks, why_not_compiled
from headctssl.networks.encoder import Encoder

CPU = torch.device("cpu")


def twins(name: str) -> tuple[Encoder, Encoder]:
    """An encoder in training mode, and its copy."""
    first, second = build_encoder(name, drop_path=0.5).train(), build_encoder(name, drop_path=0.5).train()
    second.load_state_dict(first.state_dict())
    return first, second


def gradients(encoder: Encoder) -> list[Tensor]:
    torch.manual_seed(3)
    volume = torch.rand(2, encoder.settings.in_channels, *encoder.settings.input_shape)
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder.features_only(volume)
    return list(torch.autograd.grad(features.float().square().sum(), list(encoder.parameters()), allow_unused=True))


@pytest.mark.parametrize("name", ["vit_test", "primus_test"])
def test_computing_blocks_again_keeps_less_and_changes_no_bit(name: str) -> None:
    plain, again = twins(name)
    assert recompute_blocks(again) == len(plain.blocks)
    assert list(plain.state_dict()) == list(again.state_dict())
    kept: dict[str, int] = {}
    found = {}
    for label, encoder in (("plain", plain), ("again", again)):
        sizes: dict[int, int] = {}

        def note(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            found[label] = gradients(encoder)
        kept[label] = sum(sizes.values())
    for one, other in zip(found["plain"], found["again"], strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)  # also where branches are dropped at random
    assert kept["again"] < 0.8 * kept["plain"]


def test_a_cnn_has_no_blocks_to_compute_again() -> None:
    with pytest.raises(UsageError, match="Only transformers"):
        recompute_blocks(build_encoder("resenc_test"))


def test_compiled_blocks_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    # Tracing and differentiating without code generation: the same operations, and no compiler is needed.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    plain, compiled = twins("vit_test")
    assert "compiled on first use" in compile_blocks(compiled, CPU)
    assert list(plain.state_dict()) == list(compiled.state_dict())
    for one, other in zip(gradients(plain), gradients(compiled), strict=True):
        assert one is None or torch.allclose(one, other, rtol=1e-5, atol=1e-6)
    recompute_blocks(compiled)
    for one, other in zip(gradients(plain), gradients(compiled), strict=True):
        assert one is None or torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_machine_that_cannot_compile_trains_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: object, dynamic: bool) -> None:
        raise RuntimeError("No working C++ compiler found\nmore lines")

    monkeypatch.setattr(torch, "compile", broken)
    plain, other = twins("vit_test")
    assert compile_blocks(other, CPU) == "not compiled: RuntimeError: No working C++ compiler found"
    assert all(
        one is None or torch.equal(one, two) for one, two in zip(gradients(plain), gradients(other), strict=True)
    )
    assert compile_blocks(nn.Linear(2, 2), CPU) == "not compiled: no block of the family vit"


@pytest.mark.evidence
def test_a_missing_compiler_is_found_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not_compiled(CPU) is None
    torch._dynamo.reset()
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/no/such/compiler",))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    # Another function, so that nothing compiled before is found.
    monkeypatch.setattr(acceleration, "_probe", lambda x: (x.tanh() * 3.25).sum())
    assert "compiler" in (why_not_compiled(CPU) or "")


@pytest.mark.evidence
def test_compiled_code_is_as_exact_as_bfloat16_allows() -> None:
    plain, compiled = twins("vit_test")
    assert "compiled on first use" in compile_blocks(compiled, CPU)
    for encoder in (plain, compiled):
        encoder.eval()  # compiled code draws other random numbers
    for one, other in zip(gradients(plain), gradients(compiled), strict=True):
        assert one is None or (one - other).norm() < 0.03 * one.norm()
