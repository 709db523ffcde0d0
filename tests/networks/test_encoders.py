"""Encoders: parameter counts, the contract, mask and keep, independence of batch mates."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn

from headctssl.errors import UsageError
from headctssl.families import FAMILIES
from headctssl.methods.method import no_decay_names
from headctssl.networks import ENCODERS, build_encoder, build_from_settings, encoder_class, list_encoders
from headctssl.networks.decoders import TokenDecoder, voxel_decoder
from headctssl.networks.encoder import Encoder
from headctssl.networks.resenc import ResEncEncoder
from headctssl.networks.tokens import patchify, unpatchify
from headctssl.networks.transformer import DropPath
from headctssl.networks.vit import ViTEncoder
from headctssl.presets import ENCODER_PRESETS, ViTSettings

TEST_ENCODERS = ("vit_test", "resenc_test")


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def vit(**overrides: object) -> ViTEncoder:
    torch.manual_seed(0)
    defaults: dict[str, object] = {"width": 48, "depth": 2, "heads": 3, "input_shape": (24, 24, 24), "patch": (6, 6, 6)}
    encoder = build_from_settings(ViTSettings.model_validate(defaults | overrides))
    assert isinstance(encoder, ViTEncoder)
    return encoder.eval()


def test_headct_foundation_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        assert count(build_encoder("headct_foundation")) == 89_404_416
        assert count(build_encoder("headct_foundation", qkv_bias=True, registers=4)) == 89_435_136


def test_published_mae_has_151_1_million_parameters() -> None:
    with torch.device("meta"):
        encoder = build_encoder("headct_foundation")
        decoder = TokenDecoder(
            768, 3 * 12**3, (8, 8, 8), width=768, depth=8, heads=16, qkv_bias=False, trainable_position=True
        )
    assert round((count(encoder) + count(decoder)) / 1e6, 1) == 151.1


def test_resenc_l_has_the_published_number_of_parameters() -> None:
    preset = ENCODER_PRESETS["resenc_l"].settings
    with torch.device("meta"):
        encoder = build_encoder("resenc_l", in_channels=1)
        assert isinstance(encoder, ResEncEncoder)
        ours = voxel_decoder(encoder, 1)
        whole = ResidualEncoderUNet(
            1, 6, preset.features, nn.Conv3d, preset.kernels, preset.strides, preset.blocks, 1, 1, conv_bias=True,
            norm_op=nn.InstanceNorm3d, norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU,
        )  # fmt: skip
    assert round(count(encoder) / 1e6, 2) == 90.30
    assert round(count(whole) / 1e6, 2) == 102.35
    unused = sum(count(layer) for layer in whole.decoder.seg_layers[:-1])
    assert count(encoder) + count(ours) == count(whole) - unused


@pytest.mark.parametrize("name", sorted(ENCODER_PRESETS))
def test_every_preset_can_be_built(name: str) -> None:
    with torch.device("meta"):
        encoder = build_encoder(name)
    preset = ENCODER_PRESETS[name]
    assert encoder.kind == preset.kind
    assert encoder.token_size == preset.token_size
    assert all(side % token == 0 for side, token in zip(preset.settings.input_shape, encoder.token_size, strict=True))


@pytest.mark.parametrize("name", TEST_ENCODERS)
@pytest.mark.parametrize("shape", [(24, 24, 24), (24, 36, 48), (12, 24, 36)])
def test_contract_on_any_grid(name: str, shape: tuple[int, int, int]) -> None:
    encoder = build_encoder(name).eval()
    out = encoder(torch.rand(2, 3, *shape))
    grid = tuple(side // token for side, token in zip(shape, encoder.token_size, strict=True))
    assert out.grid == grid
    assert out.tokens.shape == (2, grid[0] * grid[1] * grid[2], encoder.embed_dim)
    assert out.features.shape == (2, encoder.embed_dim)
    if encoder.kind == "transformer":
        assert out.cls is not None
        assert torch.equal(out.features, out.cls)
        assert out.pyramid is None
    else:
        assert out.cls is None
        assert out.pyramid is not None
        assert tuple(out.pyramid[0].shape[2:]) == shape
        assert torch.equal(out.tokens, out.pyramid[-1].flatten(2).transpose(1, 2))
        torch.testing.assert_close(out.features, out.tokens.mean(1))
    with pytest.raises(ValueError, match="multiple of the token size"):
        encoder(torch.rand(1, 3, 24, 24, 25))


@pytest.mark.parametrize("name", TEST_ENCODERS)
def test_output_does_not_depend_on_batch_mates(name: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name).eval()
    x = torch.rand(3, 3, 24, 24, 24)
    together = encoder(x).features
    for i in range(3):
        torch.testing.assert_close(encoder(x[i : i + 1]).features[0], together[i], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", TEST_ENCODERS)
def test_bf16_autocast_stays_near_float32(name: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name).eval()
    x = torch.rand(2, 3, 24, 24, 24)
    exact = encoder(x).features
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = encoder(x).features
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()


def test_patch_embedding_is_the_strided_convolution() -> None:
    encoder = vit(patch=(6, 4, 8))
    x = torch.rand(2, 3, 12, 8, 24)
    embed = encoder.patch_embed
    conv = nn.functional.conv3d(x, embed.weight, embed.bias, stride=(6, 4, 8))
    torch.testing.assert_close(embed(x, None), conv.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_keep_encodes_only_what_is_kept() -> None:
    encoder = vit()
    x = torch.rand(2, 3, 12, 18, 24)
    everything = torch.arange(2 * 3 * 4).expand(2, -1)
    torch.testing.assert_close(encoder(x, keep=everything).tokens, encoder(x).tokens)
    shuffled = torch.stack([torch.randperm(24), torch.randperm(24)])
    whole = encoder(x).tokens
    torch.testing.assert_close(
        encoder(x, keep=shuffled).tokens, torch.stack([whole[b, shuffled[b]] for b in range(2)]), atol=1e-5, rtol=1e-4
    )
    keep = torch.tensor([[0, 5, 7], [3, 9, 23]])
    out = encoder(x, keep=keep)
    assert out.tokens.shape == (2, 3, 48)
    assert out.grid == (2, 3, 4)
    changed = patchify(x, (6, 6, 6))
    dropped = torch.ones(2, 24, dtype=torch.bool).scatter_(1, keep, False)
    changed = torch.where(dropped[..., None], torch.rand_like(changed), changed)
    assert torch.equal(encoder(unpatchify(changed, (2, 3, 4), (6, 6, 6)), keep=keep).tokens, out.tokens)


def test_mask_hides_exactly_the_masked_voxels() -> None:
    encoder = vit()
    x = torch.rand(1, 3, 12, 18, 24, requires_grad=True)
    mask = torch.rand(1, 2, 3, 4) < 0.5
    with pytest.raises(ValueError, match="add_mask_token"):
        encoder(x, mask=mask)
    encoder.add_mask_token()
    encoder(x, mask=mask).tokens.square().sum().backward()
    assert x.grad is not None
    reached = patchify(x.grad.abs(), (6, 6, 6)).amax(-1) > 0
    assert torch.equal(reached, ~mask.flatten(1))
    with pytest.raises(ValueError, match="mask has shape"):
        encoder(x, mask=mask[:, :1])


def test_resenc_mask_zeroes_blocks_and_refuses_keep() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("resenc_test").eval()
    x = torch.rand(1, 3, 24, 24, 48)
    mask = torch.zeros(1, 2, 3, 4, dtype=torch.bool)
    mask[0, 1, 0, 3] = True
    zeroed = x.clone()
    zeroed[:, :, 12:24, 0:8, 36:48] = 0
    assert torch.equal(encoder(x, mask=mask).tokens, encoder(zeroed).tokens)
    with pytest.raises(ValueError, match="cannot drop tokens"):
        encoder(x, keep=torch.zeros(1, 2, dtype=torch.int64))


def test_registers_differ_and_stay_out_of_the_tokens() -> None:
    encoder = vit(registers=4)
    assert encoder.registers is not None
    rows = encoder.registers[0]
    assert min((rows[i] - rows[j]).abs().max().item() for i in range(4) for j in range(i)) > 1e-3
    assert 0.01 < rows.std().item() < 0.03
    assert encoder(torch.rand(1, 3, 24, 24, 24)).tokens.shape == (1, 64, 48)


def test_trainable_position_starts_as_the_fixed_one() -> None:
    x = torch.rand(1, 3, 24, 24, 24)
    fixed, trainable = vit(), vit(position="trainable")
    assert torch.equal(fixed(x).tokens, trainable(x).tokens)
    assert trainable.pos_embed is not None
    assert trainable.pos_embed.shape == (64, 48)
    assert trainable.pos_embed.requires_grad
    other = trainable.positions((4, 4, 2))
    assert other.shape == (32, 48)
    halves = trainable.pos_embed.reshape(4, 4, 2, 2, 48).mean(3).flatten(0, 2)
    torch.testing.assert_close(other, halves, atol=1e-6, rtol=1e-5)


def test_only_patches_have_a_position() -> None:
    encoder = vit(registers=2, position="trainable", depth=1)
    assert encoder.pos_embed is not None
    x = torch.rand(1, 3, 24, 24, 24)
    seen: list[torch.Tensor] = []
    encoder.blocks[0].register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
    encoder(x)
    with torch.no_grad():
        encoder.pos_embed += 1.0
    encoder(x)
    moved = (seen[1] - seen[0])[0]
    assert not moved[:3].any(), "class token and registers have no position"
    torch.testing.assert_close(moved[3:], torch.ones_like(moved[3:]), atol=1e-5, rtol=0)


def test_norm_constants() -> None:
    encoder = vit()
    assert encoder.norm.eps == 1e-6
    assert {block.norm1.eps for block in encoder.blocks} | {block.norm2.eps for block in encoder.blocks} == {1e-5}
    norms = [m for m in build_encoder("resenc_test").modules() if isinstance(m, nn.InstanceNorm3d)]
    assert norms
    assert all(m.affine and m.eps == 1e-5 for m in norms)


def test_weight_decay_exemptions_by_name() -> None:
    encoder = vit(registers=2, position="trainable", layer_scale=0.1)
    encoder.add_mask_token()
    exempt = no_decay_names(encoder)
    assert {"cls_token", "registers", "pos_embed", "mask_token", "norm.weight", "blocks.0.scale1.gamma"} <= exempt
    decayed = {name for name, _ in encoder.named_parameters()} - exempt
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert decayed == {"patch_embed.weight"} | {f"blocks.{i}.{layer}.weight" for i in range(2) for layer in layers}


def test_drop_path_drops_whole_samples_only_while_training() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    out = drop.train()(x)
    per_sample = out.flatten(1)
    assert torch.equal(per_sample.amin(1), per_sample.amax(1))
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert out.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(drop.eval()(x), x)
    rates = [block.drop_path.probability for block in vit(depth=5, drop_path=0.2).blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    encoder = vit(drop_path=0.5)
    x = torch.rand(1, 3, 24, 24, 24)
    assert torch.equal(encoder(x).features, encoder(x).features)
    encoder.train()
    assert not torch.equal(encoder(x.repeat(8, 1, 1, 1, 1)).features, encoder(x.repeat(8, 1, 1, 1, 1)).features)


def test_mask_token_travels_with_the_weights() -> None:
    trained, fresh = vit(), vit()
    assert "mask_token" not in trained.state_dict()
    trained.add_mask_token()
    fresh.load_state_dict(trained.state_dict(), strict=True)
    assert torch.equal(fresh.state_dict()["mask_token"], trained.state_dict()["mask_token"])


def test_wrong_names_and_values_are_errors() -> None:
    with pytest.raises(UsageError, match="vit_s"):
        build_encoder("vit_sx")
    with pytest.raises(UsageError, match=r"encoder\.registers"):
        build_encoder("vit_test", register=4)
    with pytest.raises(UsageError, match="attention heads"):
        build_encoder("vit_test", heads=5)
    with pytest.raises(UsageError, match="Unknown encoder family"):
        encoder_class("swin")


def test_table_and_lists() -> None:
    assert {p.settings.family for p in ENCODER_PRESETS.values()} == set(ENCODERS)
    assert set(FAMILIES) == set(ENCODERS)
    for family in ENCODERS:
        assert issubclass(encoder_class(family), Encoder)
    assert {"vit_s", "resenc_l", "headct_foundation"} <= {name for name, _ in list_encoders()}


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys; from headctssl.networks import list_encoders; from headctssl.methods import list_methods;"
        "assert list_encoders() and list_methods(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
