"""Families: published sizes, and what every family of encoders does with grids, masks, kept tokens and batches."""

from __future__ import annotations

import builtins
import copy
from itertools import pairwise

import pytest
import torch
from dynamic_network_architectures.architectures import primus as published_primus
from torch import nn

from headctssl.errors import UsageError
from headctssl.families import FAMILIES, patch_decoder_stages
from headctssl.methods.ema import make_teacher, update_teacher
from headctssl.methods.method import no_decay_names
from headctssl.networks import build_encoder, build_from_settings
from headctssl.networks.decoders import voxel_decoder
from headctssl.networks.encoder import Encoder
from headctssl.networks.primus import PrimusEncoder
from headctssl.networks.tokens import patchify, resized_table, unpatchify, voxels_of_mask
from headctssl.networks.unet3d import UNet3DEncoder
from headctssl.presets import ENCODER_PRESETS

TESTED = [name for name in ENCODER_PRESETS if name.endswith("_test")]
PLAIN = [name for name in TESTED if ENCODER_PRESETS[name].settings.drops_tokens]
STAGED = [name for name in TESTED if name not in PLAIN]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def encoder_of(name: str, seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return build_encoder(name).eval()


def input_of(encoder: Encoder, batch: int = 1, grid: tuple[int, int, int] = (1, 2, 3), seed: int = 0) -> torch.Tensor:
    """A random volume of a grid that is not cubic."""
    shape = [n * side for n, side in zip(grid, encoder.token_size, strict=True)]
    return torch.rand(batch, 3, *shape, generator=torch.Generator().manual_seed(seed))


def test_every_family_has_a_test_size() -> None:
    assert {ENCODER_PRESETS[name].settings.family for name in TESTED} == set(FAMILIES)


@pytest.mark.parametrize(
    ("name", "outputs", "encoder_m", "whole_m"),
    [
        ("resenc_l", 1, 90.30, None),  # the published decoder has a prediction layer per stage; see test_encoders
        ("unet3d", 32, 7.03, 19.08),  # SuPreM, arXiv 2501.11253: 32 classes
        ("swin_unetr", 32, 8.06, 62.19),
        ("segresnet", 32, 4.40, 4.70),
        ("primus_s", 2, 23.58, 23.87),
        ("primus_b", 2, 92.32, 93.21),
        ("primus_m", 2, 145.58, 146.6),  # the published table: 146.6 M
        ("primus_l", 2, 324.10, 325.55),
    ],
)
def test_published_sizes(name: str, outputs: int, encoder_m: float, whole_m: float | None) -> None:
    with torch.device("meta"):
        encoder = build_encoder(name, in_channels=1)
        decoder = voxel_decoder(encoder, outputs)
    assert {p.device.type for p in (*encoder.parameters(), *decoder.parameters())} == {"meta"}
    assert round(count(encoder) / 1e6, 2) == encoder_m
    if whole_m is not None:
        digits = len(str(whole_m).partition(".")[2])
        assert round((count(encoder) + count(decoder)) / 1e6, digits) == whole_m


@pytest.mark.parametrize("letter", ["S", "B", "M", "L"])
def test_primus_is_the_published_class_in_size(letter: str) -> None:
    with torch.device("meta"):
        theirs = getattr(published_primus, f"Primus{letter}")(1, 2, (8, 8, 8), (96, 96, 96))
        ours = build_encoder(f"primus_{letter.lower()}", in_channels=1)
        decoder = voxel_decoder(ours, 2)
    assert count(ours) + count(decoder) == count(theirs)
    assert count(decoder) == count(theirs.up_projection)


def test_primus_gives_what_the_published_class_gives() -> None:
    # The same weights in both, a grid that is not cubic, no position left out: tokens and voxels must agree.
    shape = (12, 24, 18)
    torch.manual_seed(0)
    ours = build_encoder("primus_test", in_channels=2, input_shape=list(shape), drop_path=0.0, patch=[6, 6, 6]).eval()
    assert isinstance(ours, PrimusEncoder)
    theirs = published_primus.Primus(
        2, 48, (6, 6, 6), 2, eva_depth=2, eva_numheads=4, input_shape=shape, init_values=0.1, scale_attn_inner=True
    ).eval()
    theirs.down_projection.proj.load_state_dict(ours.patch_embed.state_dict())
    theirs.eva.blocks.load_state_dict(ours.blocks.state_dict())
    theirs.eva.norm.load_state_dict(ours.norm.state_dict())
    theirs.eva.pos_embed.data.copy_(ours.pos_embed[None])
    theirs.up_projection = nn.Identity()
    x = torch.rand(2, 2, *shape)
    with torch.no_grad():
        torch.testing.assert_close(ours(x).tokens, theirs(x).flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", TESTED)
@pytest.mark.parametrize("grid", [(1, 2, 3), (2, 1, 1)])
def test_contract_on_a_grid_that_is_not_cubic(name: str, grid: tuple[int, int, int]) -> None:
    encoder = encoder_of(name)
    x = input_of(encoder, 2, grid)
    decoder = voxel_decoder(encoder, 5)
    with torch.no_grad():
        out = encoder(x)
        predicted = decoder.eval()(out, x)
    assert out.grid == grid
    assert out.tokens.shape == (2, grid[0] * grid[1] * grid[2], encoder.embed_dim)
    assert out.features.shape == (2, encoder.embed_dim)
    assert predicted.shape == (2, 5, *x.shape[2:])
    if encoder.drops_tokens:
        assert out.pyramid is None
    else:
        assert out.pyramid is not None
        sides = [level.shape[2] for level in out.pyramid]
        assert sides == sorted(sides, reverse=True)
        assert out.pyramid[0].shape[2:] == x.shape[2:]
        assert torch.equal(out.tokens, out.pyramid[-1].flatten(2).transpose(1, 2))
    if out.cls is None:
        torch.testing.assert_close(out.features, out.tokens.mean(1))
    with pytest.raises(ValueError, match="multiple of the token size"):
        encoder(torch.rand(1, 3, *(side + 1 for side in x.shape[2:])))


@pytest.mark.parametrize("name", TESTED)
def test_no_sample_depends_on_its_batch_mates(name: str) -> None:
    encoder = encoder_of(name)
    decoder = voxel_decoder(encoder, 1).eval()
    x = input_of(encoder, 3, (1, 1, 2))
    with torch.no_grad():
        together, voxels = encoder(x), decoder(encoder(x), x)
        for order in ([0], [2, 1]):
            out = encoder(x[order])
            torch.testing.assert_close(out.features, together.features[order], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(decoder(out, x[order]), voxels[order], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", TESTED)
def test_every_parameter_learns(name: str) -> None:
    encoder = encoder_of(name).train()
    decoder = voxel_decoder(encoder, 2)
    x = input_of(encoder, 2, (1, 1, 2))
    decoder(encoder(x), x).square().mean().backward()
    left = [n for n, p in (*encoder.named_parameters(), *decoder.named_parameters()) if p.grad is None]
    assert not left
    used = [p for p in encoder.parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)]
    assert len(used) == len(list(encoder.parameters()))


@pytest.mark.parametrize("name", PLAIN)
def test_a_masked_token_hides_exactly_its_voxels(name: str) -> None:
    encoder = encoder_of(name)
    x = input_of(encoder, grid=(2, 3, 4)).requires_grad_()
    mask = torch.rand(1, 2, 3, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    with pytest.raises(ValueError, match="add_mask_token"):
        encoder(x, mask=mask)
    encoder.add_mask_token()
    encoder(x, mask=mask).tokens.square().sum().backward()
    assert x.grad is not None
    reached = patchify(x.grad.abs(), encoder.token_size).amax(-1) > 0
    assert torch.equal(reached, ~mask.flatten(1))
    with pytest.raises(ValueError, match="mask has shape"):
        encoder(x, mask=mask[:, :1])


@pytest.mark.parametrize("name", PLAIN)
def test_kept_tokens_are_those_of_the_whole_without_the_others(name: str) -> None:
    encoder = encoder_of(name)
    size = encoder.token_size
    x = input_of(encoder, 2, (2, 3, 4))
    with torch.no_grad():
        whole = encoder(x).tokens
        shuffled = torch.stack([torch.randperm(24), torch.randperm(24)])
        moved = torch.stack([whole[b, shuffled[b]] for b in range(2)])
        torch.testing.assert_close(encoder(x, keep=shuffled).tokens, moved, atol=1e-5, rtol=1e-4)
        keep = torch.tensor([[0, 5, 7], [3, 9, 23]])
        out = encoder(x, keep=keep)
        assert out.tokens.shape == (2, 3, encoder.embed_dim)
        assert out.grid == (2, 3, 4)
        dropped = torch.ones(2, 24, dtype=torch.bool).scatter_(1, keep, False)
        patches = patchify(x, size)
        changed = torch.where(dropped[..., None], torch.rand_like(patches), patches)
        assert torch.equal(encoder(unpatchify(changed, (2, 3, 4), size), keep=keep).tokens, out.tokens)
        # Where a token stands matters: the same patches at other places give other tokens.
        same = patches[:, :1].expand(-1, 24, -1)
        flat = unpatchify(same, (2, 3, 4), size)
        places = torch.tensor([[0, 23], [1, 2]])
        tokens = encoder(flat, keep=places).tokens
        assert (tokens[0] - tokens[1]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="needs them all"):
        voxel_decoder(encoder, 1)(out, x)


def test_another_grid_covers_the_same_field_of_view() -> None:
    """Of 4 x 4 x 4 places a grid of 2 x 4 x 8, as many, has every second along z and places in between along x."""
    encoder = encoder_of("primus_test")
    assert isinstance(encoder, PrimusEncoder)
    assert encoder.reference_grid == (4, 4, 4)
    own, other = encoder.rotations((4, 4, 4)).view(4, 4, 4, -1), encoder.rotations((2, 4, 8)).view(2, 4, 8, -1)
    torch.testing.assert_close(other[:, :, ::2], own[::2])
    encoder.blocks, encoder.norm = nn.ModuleList(), nn.Identity()
    nn.init.zeros_(encoder.patch_embed.weight)
    with torch.no_grad():
        tokens = encoder(input_of(encoder, grid=(2, 4, 8))).tokens[0]
    table = encoder.pos_embed.detach()
    torch.testing.assert_close(tokens, resized_table(table, (4, 4, 4), (2, 4, 8)))
    assert not torch.allclose(tokens, table)


def test_rotations_are_those_of_the_kept_places() -> None:
    # With no absolute position only the rotations say where a token stands: attention sees differences of places, so
    # a pair of tokens moved together along any axis keeps its output, and one moved alone does not.
    encoder = encoder_of("primus_test")
    assert isinstance(encoder, PrimusEncoder)
    nn.init.zeros_(encoder.pos_embed)
    for block in encoder.blocks:
        block.gamma_1.data.fill_(1.0)
        nn.init.normal_(block.attn.q_proj.weight)
        nn.init.normal_(block.attn.k_proj.weight)
    grid = (4, 4, 4)
    patches = torch.rand(1, 64, 3 * 6**3)

    def pair(first: tuple[int, int, int], second: tuple[int, int, int]) -> torch.Tensor:
        places = [(z * 4 + y) * 4 + x for z, y, x in (first, second)]
        volume = torch.zeros(1, 64, patches.shape[2])
        volume[0, places] = patches[0, :2]
        return encoder(unpatchify(volume, grid, (6, 6, 6)), keep=torch.tensor([places])).tokens

    with torch.no_grad():
        base = pair((0, 0, 0), (1, 2, 0))
        for step in ((1, 0, 0), (0, 1, 0), (0, 0, 3), (2, 1, 1)):
            moved = pair(step, (1 + step[0], 2 + step[1], step[2]))
            torch.testing.assert_close(moved, base, atol=1e-4, rtol=1e-3)
        for other in ((2, 2, 0), (1, 3, 0), (1, 2, 1)):
            assert (pair((0, 0, 0), other) - base).abs().max() > 1e-2


@pytest.mark.parametrize("name", STAGED)
def test_a_mask_zeroes_its_blocks_and_keep_is_refused(name: str) -> None:
    encoder = encoder_of(name)
    x = input_of(encoder, grid=(1, 2, 2))
    mask = torch.zeros(1, 2, 2, 4, dtype=torch.bool)
    mask[0, 1, 0, 3] = mask[0, 0, 1, 2] = True
    block = tuple(side // n for side, n in zip(x.shape[2:], (2, 2, 4), strict=True))
    zeroed = x.masked_fill(voxels_of_mask(mask, (block[0], block[1], block[2])), 0.0)
    with torch.no_grad():
        masked = encoder(x, mask=mask)
        assert torch.equal(masked.tokens, encoder(zeroed).tokens)
        # The decoder sees nothing of what is hidden, though it is given the volume.
        decoder = voxel_decoder(encoder, 1).eval()
        assert torch.equal(decoder(masked, x), decoder(encoder(zeroed), zeroed))
    with pytest.raises(ValueError, match="cannot drop tokens"):
        encoder(x, keep=torch.zeros(1, 2, dtype=torch.int64))


@pytest.mark.parametrize("name", TESTED)
def test_bf16_stays_near_float32(name: str) -> None:
    encoder = encoder_of(name)
    x = input_of(encoder, 2)
    with torch.no_grad():
        exact = encoder(x).features
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = encoder(x).features
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("name", TESTED)
def test_state_goes_round_with_buffers_and_mask_token(name: str) -> None:
    trained, fresh = encoder_of(name), encoder_of(name, seed=1)
    trained.add_mask_token()
    assert (trained.mask_token is not None) == trained.drops_tokens
    trained.train()(input_of(trained, 2))
    fresh.load_state_dict(trained.state_dict(), strict=True)
    x = input_of(trained, seed=2)
    with torch.no_grad():
        assert torch.equal(fresh.eval()(x).features, trained.eval()(x).features)


@pytest.mark.parametrize("name", TESTED)
def test_weight_decay_is_on_matrices_and_kernels_only(name: str) -> None:
    encoder = encoder_of(name)
    encoder.add_mask_token()
    exempt = no_decay_names(encoder)
    tables = {"mask_token", "cls_token", "pos_embed", "relative_position_bias_table"}
    for parameter_name, parameter in encoder.named_parameters():
        assert (parameter_name in exempt) == (parameter.ndim <= 1 or parameter_name.rpartition(".")[2] in tables), (
            parameter_name
        )


@pytest.mark.parametrize("name", ["vit_test", "primus_test"])
def test_drop_path_rises_with_depth_and_rests_in_eval(name: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name, drop_path=0.4, depth=5)
    rates = [_rate(block) for block in encoder.get_submodule("blocks").children()]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    x = input_of(encoder).repeat(8, 1, 1, 1, 1)
    with torch.no_grad():
        rows = encoder.train()(x).features
        assert (rows - rows[0]).abs().max() > 1e-4, "each sample drops its own branches"
        still = encoder.eval()(x).features
        torch.testing.assert_close(still, still[:1].expand_as(still), atol=1e-5, rtol=1e-4)


def _rate(block: nn.Module) -> float:
    """The chance that a block drops a branch; ours is one module for both branches, the library's one for each."""
    names = ("drop_path", "drop_path1")
    drop = next(getattr(block, name) for name in names if hasattr(block, name))
    return float(getattr(drop, "probability", getattr(drop, "drop_prob", 0.0)))


def test_thin_tokens_are_made_where_a_family_can() -> None:
    for name, token in (
        ("unet3d", (2, 8, 8)),
        ("resenc_s", (1, 8, 8)),
        ("primus_s", (3, 8, 8)),
        ("vit_tiny", (5, 12, 12)),
    ):
        settings = ENCODER_PRESETS[name].settings.fitted(in_channels=3, input_shape=(24, 48, 48), token_size=token)
        assert settings.token_size == token
    fitted = ENCODER_PRESETS["unet3d_test"].settings.fitted(
        in_channels=2, input_shape=(4, 16, 16), token_size=(2, 4, 4)
    )
    encoder = build_from_settings(fitted).eval()
    x = torch.rand(1, 2, 4, 16, 16)
    with torch.no_grad():
        out = encoder(x)
        assert out.grid == (2, 4, 4)
        assert voxel_decoder(encoder, 1).eval()(out, x).shape == (1, 1, 4, 16, 16)


def test_patch_decoder_stages() -> None:
    assert [s.stride for s in patch_decoder_stages(864, (8, 8, 8), 1)] == [(2, 2, 2)] * 3
    assert [s.stride for s in patch_decoder_stages(192, (5, 12, 12), 3)] == [(1, 2, 2), (1, 2, 2), (5, 3, 3)]
    assert [s.stride for s in patch_decoder_stages(192, (1, 1, 1), 3)] == [(1, 1, 1)]
    stages = patch_decoder_stages(768, (12, 12, 12), 3)
    assert stages[0].inputs == 768
    assert stages[-1].outputs == 3
    assert all(a.outputs == b.inputs for a, b in pairwise(stages))


def test_a_primus_whose_heads_do_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="attention heads"):
        build_encoder("primus_test", heads=3, width=48)


@pytest.mark.parametrize("name", ["swin_unetr_test", "segresnet_test"])
def test_without_monai_the_way_to_get_it_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(module: str, *args: object, **kwargs: object) -> object:
        if module.startswith("monai"):
            raise ImportError("No module named 'monai'")
        return real(module, *args, **kwargs)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install headctssl\[monai\]"):
        build_encoder(name)


def test_batch_norm_learns_its_statistics_and_uses_them() -> None:
    encoder = encoder_of("unet3d_test")
    assert isinstance(encoder, UNet3DEncoder)
    x = input_of(encoder, 4, (2, 2, 2))
    untrained = copy.deepcopy(encoder)
    with torch.no_grad():
        for _ in range(80):  # the running mean forgets a tenth per step
            encoder.train()(x)
        at_work = encoder(x).features
        torch.testing.assert_close(encoder.eval()(x).features, at_work, atol=0.05, rtol=0.1)
        assert (untrained(x).features - at_work).abs().max() > 0.2


def test_a_teacher_carries_the_buffers_of_its_student() -> None:
    student = encoder_of("unet3d_test").train()
    teacher = make_teacher(student)
    x = input_of(student, 2)
    buffers = dict(student.named_buffers())
    assert {name.rpartition(".")[2] for name in buffers} == {"running_mean", "running_var", "num_batches_tracked"}
    with torch.no_grad():
        student(x)
        before = copy.deepcopy(teacher.state_dict())
        teacher(x)  # in eval mode: looks do not change it
        assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
        update_teacher(teacher, student, 0.9)
    for name, value in teacher.named_buffers():
        assert torch.equal(value, buffers[name]), name
        assert value.data_ptr() != buffers[name].data_ptr()
    assert not teacher.training
