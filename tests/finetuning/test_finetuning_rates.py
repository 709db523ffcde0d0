"""Tests of finetuning/layer_rates.py and phases.py: rates by layer and by step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headctssl.errors import UsageError
from headctssl.finetuning.layer_rates import encoder_groups
from headctssl.finetuning.phases import Phases, head_steps
from headctssl.finetuning.settings import TaskSettings
from headctssl.networks import build_encoder
from headctssl.networks.encoder import Encoder
from headctssl.planning.run_settings import TrainingSettings
from headctssl.training.optimizer import build_optimizer, check_groups, set_rates

TESTED = ("vit_test", "primus_test", "resenc_test", "unet3d_test", "swin_unetr_test", "segresnet_test")


@pytest.mark.parametrize("preset", TESTED)
def test_every_parameter_is_in_one_group_with_the_rate_of_its_layer(preset):
    encoder = build_encoder(preset)
    encoder.add_mask_token()
    groups = encoder_groups(encoder, 0.5)
    check_groups(encoder, groups)
    names = {id(p): name for name, p in encoder.named_parameters()}
    layers = encoder.layers()
    for group in groups:
        number = int(group.name.split(".")[1])
        assert group.lr_scale == pytest.approx(0.5 ** (len(layers) - 1 - number))
        for parameter in group.parameters:
            assert names[id(parameter)].startswith(layers[number])
            if group.weight_decay:
                assert parameter.ndim > 1
            if parameter.ndim <= 1:
                assert not group.weight_decay
    assert {len(layers) - 1, 0} <= {int(group.name.split(".")[1]) for group in groups}
    plain = {id(p) for group in encoder_groups(encoder, 1.0) if not group.weight_decay for p in group.parameters}
    assert plain == {id(p) for group in groups if not group.weight_decay for p in group.parameters}


def test_a_plain_transformer_has_the_published_layers():
    """BEiT and MAE: embedding 0, block i i + 1, final norm with the head."""
    encoder = build_encoder("vit_test", registers=2, position="trainable")  # two blocks
    rates = {id(p): group.lr_scale for group in encoder_groups(encoder, 0.75) for p in group.parameters}
    expected = {"patch_embed.weight": 3, "cls_token": 3, "registers": 3, "pos_embed": 3, "norm.weight": 0}
    expected |= {"blocks.0.attn.qkv.weight": 2, "blocks.1.mlp.fc2.bias": 1}
    for name, parameter in encoder.named_parameters():
        if name in expected:
            assert rates[id(parameter)] == pytest.approx(0.75 ** expected[name]), name
    undecayed = [g for g in encoder_groups(encoder, 0.75) if g.name == "encoder.00.no_decay"]
    names = {name for name, p in encoder.named_parameters() if any(p is q for q in undecayed[0].parameters)}
    assert names == {"patch_embed.bias", "cls_token", "registers", "pos_embed"}


def test_frozen_parameters_are_in_no_group_and_a_family_without_layers_is_refused():
    encoder = build_encoder("vit_test")
    encoder.blocks[0].requires_grad_(False)
    check_groups(encoder, encoder_groups(encoder, 0.5))

    class Bare(Encoder):
        def forward(self, x, mask=None, keep=None):
            raise NotImplementedError

    with pytest.raises(UsageError, match="nearer to the input"):
        encoder_groups(Bare(encoder.settings), 0.5)
    assert encoder_groups(Bare(encoder.settings), 1.0) == []


def training(num_steps=100, warmup=10):
    return TrainingSettings(
        num_steps=num_steps, samples_per_epoch=8, batch_size=8, lr=1.0, min_lr=0.01, warmup_steps=warmup
    )


def phases(schedule, **more):
    task = TaskSettings(schedule=schedule)
    settings = training(**more)
    return Phases(schedule, head_steps(task, settings.num_steps), settings)


@pytest.mark.parametrize("schedule", ["default", "warmup"])
def test_without_a_head_phase_everything_learns_from_the_first_step(schedule):
    found = phases(schedule)
    assert not found.has_frozen
    assert not any(found.frozen(step) for step in range(100))
    assert [found.rate(0), found.rate(9), found.rate(99)] == pytest.approx([0.1, 1.0, 0.01])


def test_sawtooth_first_switch_and_last_values():
    """Ten steps of the head, ten of warm-up, eighty of the cosine."""
    found = phases("sawtooth")
    assert found.has_frozen
    assert [found.frozen(step) for step in (0, 9, 10, 99)] == [True, True, False, False]
    rising, falling = [found.rate(s) for s in range(5)], [found.rate(s) for s in range(5, 10)]
    assert rising == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert falling == pytest.approx([1 - 0.99 * k / 5 for k in (1, 2, 3, 4, 5)])
    assert [found.rate(s) for s in (10, 19, 99)] == pytest.approx([0.1, 1.0, 0.01])
    assert found.rate(19 + 40) == pytest.approx((1.0 + 0.01) / 2)  # the middle of the cosine


def test_valley_first_switch_and_last_values():
    found = phases("valley")
    assert [found.frozen(step) for step in (0, 9, 10)] == [True, True, False]
    assert [found.rate(s) for s in (0, 3, 9)] == pytest.approx([1.0, 1 - 0.99 * 3 / 9, 0.01])
    assert [found.rate(s) for s in (10, 19, 99)] == pytest.approx([0.1, 1.0, 0.01])


def test_phases_are_shares_of_the_run_and_never_empty():
    assert head_steps(TaskSettings(schedule="sawtooth"), 1000) == 100
    assert head_steps(TaskSettings(schedule="valley", head_share=0.3), 200) == 60
    assert head_steps(TaskSettings(schedule="warmup", head_share=0.3), 200) == 0
    short = phases("sawtooth", num_steps=6, warmup=1)
    assert short.head_steps == 2
    assert [short.rate(s) for s in (0, 1, 2, 5)] == pytest.approx([1.0, 0.01, 1.0, 0.01])


def test_a_given_rate_takes_the_place_of_the_schedule():
    layer = nn.Linear(2, 2)
    optimizer = build_optimizer(encoder_groups_of(layer), training())
    assert set_rates(optimizer, training(), 50, 0.25) == 0.25
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}
    assert set_rates(optimizer, training(), 9) == pytest.approx(1.0)


def encoder_groups_of(module):
    from headctssl.methods.method import split_decay

    return split_decay(module)


def test_a_step_at_rest_leaves_a_parameter_without_gradient_alone():
    """What freezing by absent gradients rests on: AdamW neither decays nor counts a step."""
    layer = nn.Linear(2, 2)
    optimizer = build_optimizer(encoder_groups_of(layer), training())
    before = [p.detach().clone() for p in layer.parameters()]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    assert not optimizer.state
