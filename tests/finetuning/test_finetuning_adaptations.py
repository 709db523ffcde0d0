"""Tests of every adaptation: what stays frozen, what predictions depend on, resuming, schedules, mirrored views."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from small_heads import INPUT, make_dataset, make_encoder

from headctssl.contract import HeadSettings, LabelSpec
from headctssl.errors import StoppedError, UsageError
from headctssl.finetuning.adapt import Best
from headctssl.finetuning.finetune import finetune
from headctssl.finetuning.label_loss import LabelLoss
from headctssl.finetuning.mirror import mirror_of
from headctssl.finetuning.phases import Phases, head_steps
from headctssl.finetuning.settings import FinetuneSettings, TaskSettings
from headctssl.finetuning.tasks import Classifier, ClassifyTask, classifier_from
from headctssl.finetuning.whole_head import encode
from headctssl.inference.embed import embed
from headctssl.inference.predict import predict
from headctssl.loading.views import make_views
from headctssl.metrics.metrics_file import Metrics
from headctssl.networks import build_encoder
from headctssl.networks.heads import build_head
from headctssl.networks.lora import LoraLinear, add_lora
from headctssl.paths import ROOT_KINDS
from headctssl.planning.run_settings import TrainingSettings, ViewSettings
from headctssl.settings import read_json
from headctssl.training.checkpoint import load_weights
from headctssl.training.optimizer import build_optimizer, check_groups
from headctssl.training.run_state import CHECKPOINT_FILE
from headctssl.types import Clock, PretrainBatch, Views

CPU = torch.device("cpu")
FAST = {"num_workers": 0, "quiet": True, "device": "cpu"}
LOOP = ("training.num_epochs=3", "training.precision=float32", "training.lr=0.001")
SETS = {
    "linear": ("training.num_epochs=3",),
    "attentive": ("training.num_epochs=20",),
    "lora": (*LOOP, "lora.rank=2"),
    "full": LOOP,
}
ENCODERS = {"vit": ("vit_test", "dino"), "cnn": ("unet3d_test", "mae")}
PAIRS = [("linear", "vit"), ("linear", "cnn"), ("attentive", "vit"), ("attentive", "cnn"), ("lora", "vit"),
         ("full", "cnn")]  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("adaptations")
    with pytest.MonkeyPatch.context() as patch:
        for kind in ROOT_KINDS:
            patch.setenv(f"headctssl_{kind}", str(root / kind))
            (root / kind).mkdir()
        make_dataset(2, 24, unknown=2)
        for name, (preset, method) in ENCODERS.items():
            make_encoder(root / name, preset, method)
        yield root


@pytest.fixture(scope="module")
def runs(small):
    """Runs by adaptation and encoder, each made once."""
    made = {}

    def run(adapt, encoder):
        if (adapt, encoder) not in made:
            made[adapt, encoder] = finetune(2, small / encoder, adapt=adapt, overrides=SETS[adapt], **FAST)
        return made[adapt, encoder]

    return run


@pytest.mark.parametrize(("adapt", "encoder"), PAIRS)
def test_a_frozen_encoder_is_saved_as_it_came_and_others_learn(adapt, encoder, small, runs):
    folder = runs(adapt, encoder)
    before, after = load_weights(small / encoder), load_weights(folder)
    one, two = before.part("encoder"), after.part("encoder")
    assert set(one) == set(two)
    changed = {name for name in one if not torch.equal(one[name], two[name])}
    if adapt == "lora":  # merged: the weights of the adapted layers alone
        assert changed == {f"blocks.{k}.attn.{part}.weight" for k in (0, 1) for part in ("qkv", "proj")}
    elif adapt == "full":
        assert changed >= {name for name in one if name.endswith("weight")}
    else:
        assert changed == set()  # running statistics of BatchNorm too
    assert read_json(folder / "metrics.json", Metrics).label("bleed").n_positive > 0
    assert after.contract.head.kind == ("attentive" if adapt == "attentive" else "linear")
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["validation_auroc"] >= 0


@pytest.mark.parametrize(("adapt", "encoder"), PAIRS)
def test_predictions_do_not_depend_on_batch_size_order_or_neighbours(adapt, encoder, runs):
    weights = load_weights(runs(adapt, encoder))
    classifier = classifier_from(weights.contract, weights.tensors)
    views = torch.rand(6, 3, *INPUT.shape, generator=torch.Generator().manual_seed(0))
    whole = encode(classifier, [views], CPU)
    others = torch.cat([views[:2], 1 - views[2:]])
    for again in (
        encode(classifier, list(views.split(1)), CPU),
        encode(classifier, list(views.split(4)), CPU),
        encode(classifier, [views.flip(0)], CPU).flip(0),
        torch.cat([encode(classifier, [others], CPU)[:2], whole[2:]]),
    ):
        torch.testing.assert_close(whole, again, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(whole[0], whole[1], atol=1e-6)


@pytest.mark.parametrize("adapt", ["attentive", "lora"])
def test_a_saved_classifier_predicts_evaluates_and_embeds_like_any_other(adapt, small, runs, tmp_path):
    from headctssl.evaluation.evaluate import evaluate

    folder = runs(adapt, "vit")
    images = next((small / "raw").glob("*/images"))
    found = predict(images / "case2_00.nii.gz", folder, tmp_path / "p.csv", num_workers=0, quiet=True, device="cpu")
    assert found.exit_code == 0
    metrics = evaluate(2, folder, num_workers=0, quiet=True, device="cpu")
    assert metrics.label("bleed").auroc == read_json(folder / "metrics.json", Metrics).label("bleed").auroc
    vectors = embed(images / "case2_00.nii.gz", folder, tmp_path / "e.csv", num_workers=0, quiet=True, device="cpu")
    assert vectors.vectors.shape == (1, 48)


def test_attentive_pooling_learns_a_visible_bleed(runs):
    assert read_json(runs("attentive", "vit") / "metrics.json", Metrics).label("bleed").auroc == 1.0


def test_tokens_computed_again_give_the_classifier_of_kept_ones(small):
    sets = ("training.num_epochs=2", "training.batch_size=5")
    kept = load_weights(finetune(2, small / "cnn", adapt="attentive", overrides=sets, tag="kept", **FAST)).part("head")
    sets = (*sets, "task.cache_gb=0", "task.eval_batch_size=3")
    folder = finetune(2, small / "cnn", adapt="attentive", overrides=sets, tag="again", **FAST)
    assert "mean and variance of tokens" in (folder / "train.log").read_text()
    for name, tensor in load_weights(folder).part("head").items():
        torch.testing.assert_close(tensor, kept[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_the_exported_lora_is_the_best_epoch_merged(small, monkeypatch):
    """The state that was kept, with its adapters, gives the same outputs as what was saved."""
    kept = []
    offer = Best.offer

    def watch(self, module, epoch, score, loss):
        taken = offer(self, module, epoch, score, loss)
        kept[:] = [self.state]
        return taken

    monkeypatch.setattr(Best, "offer", watch)
    folder = finetune(2, small / "vit", adapt="lora", overrides=SETS["lora"], tag="watched", **FAST)
    saved = load_weights(folder)
    (state,) = kept
    torch.manual_seed(0)
    encoder = build_encoder("vit_test")
    add_lora(encoder, ("qkv", "proj"), rank=2, alpha=16)
    encoder.load_state_dict({n.removeprefix("encoder."): t for n, t in state.items() if n.startswith("encoder.")})
    base = load_weights(small / "vit").part("encoder")
    assert all(torch.equal(tensor, state[f"encoder.{name}"]) for name, tensor in base.items())
    assert all(bool(m.up.abs().sum() > 0) for m in encoder.modules() if isinstance(m, LoraLinear))
    merged = classifier_from(saved.contract, saved.tensors).encoder
    views = torch.rand(2, 3, *INPUT.shape)
    one, two = encode_features(encoder, views), encode_features(merged, views)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one, encode_features(build_base(base), views), atol=1e-4)


def build_base(tensors):
    encoder = build_encoder("vit_test")
    encoder.load_state_dict(tensors)
    return encoder


@torch.no_grad()
def encode_features(encoder, views):
    return encoder.eval().features_only(views)


@pytest.mark.parametrize(
    ("adapt", "encoder", "more"),
    [("lora", "vit", ("lora.dropout=0.2",)), ("full", "cnn", ("task.schedule=sawtooth", "task.head_share=0.4"))],
)
def test_continued_runs_end_in_the_same_bits(adapt, encoder, more, small, monkeypatch):
    overrides = (*SETS[adapt], *more, "training.checkpoint_every=1", "task.balance=sampling")
    whole = finetune(2, small / encoder, adapt=adapt, overrides=overrides, tag=f"whole-{adapt}", **FAST)
    offer = Best.offer

    def stop(self, module, epoch, score, loss):
        if epoch == 2:
            raise StoppedError("stopped here by the test")
        return offer(self, module, epoch, score, loss)

    monkeypatch.setattr(Best, "offer", stop)
    with pytest.raises(StoppedError):
        finetune(2, small / encoder, adapt=adapt, overrides=overrides, tag=f"cut-{adapt}", **FAST)
    monkeypatch.undo()
    cut = finetune(2, small / encoder, adapt=adapt, overrides=overrides, tag=f"cut-{adapt}", resume=True, **FAST)
    assert load_weights(cut).contract.weights_hash == load_weights(whole).contract.weights_hash
    lines = [(f / "metrics.jsonl").read_text().splitlines() for f in (whole, cut)]
    losses = [[json.loads(line)["loss"] for line in some] for some in lines]
    assert losses[0] == losses[1]
    assert (whole / CHECKPOINT_FILE).exists()


def task_of(preset, schedule="default", *, adapt="full", labels=2, views=None, mirror=None, steps=20, **more):
    torch.manual_seed(0)
    encoder = build_encoder(preset)
    head = build_head(HeadSettings(), encoder.embed_dim, labels)
    if adapt == "lora":
        add_lora(encoder, ("qkv", "proj"), rank=2, alpha=4)
    task = TaskSettings(schedule=schedule, head_share=0.3, **more)
    training = TrainingSettings(num_steps=steps, samples_per_epoch=4, batch_size=4, lr=0.01, warmup_steps=2)
    specs = tuple(LabelSpec(name=f"l{k}") for k in range(labels))
    truth = np.array([[0, 1], [1, 0], [1, 1], [0, 0]], np.float32)[:, :labels]
    loss = LabelLoss(specs, truth, task)
    phases = Phases(schedule, head_steps(task, steps), training)
    return ClassifyTask(
        Classifier(encoder, head), loss, task, views or ViewSettings(), INPUT, phases=phases, mirror=mirror
    ), training


@pytest.mark.parametrize("schedule", ["sawtooth", "valley"])
@pytest.mark.parametrize("preset", ["vit_test", "unet3d_test"])
def test_in_the_first_phase_no_tensor_of_the_encoder_changes_and_after_it_all_do(schedule, preset):
    task, training = task_of(preset, schedule)
    groups = task.param_groups()
    check_groups(task, groups)
    optimizer = build_optimizer(groups, training)
    x = torch.rand(4, 3, 24, 24, 24, generator=torch.Generator().manual_seed(1))
    views = Views({"global": (x,)}, {}, torch.arange(4), 0, 0, torch.tensor([[0.0, 1], [1, 0], [1, 1], [0, 0]]))
    before = {n: t.clone() for n, t in task.classifier.state_dict().items()}

    def step(number):
        task.train()
        optimizer.zero_grad(set_to_none=True)
        task.training_step(views, Clock(number, training.num_steps, 0, 1)).loss.backward()
        task.before_optimizer_step(Clock(number, training.num_steps, 0, 1))
        optimizer.step()
        now = task.classifier.state_dict()
        return {name for name in before if not torch.equal(before[name], now[name])}

    for number in range(6):
        changed = step(number)
    assert changed
    assert all(name.startswith("head.") for name in changed)
    changed = step(6)
    still = {name for name in before if name.startswith("encoder.")} - changed
    assert all("bias" in name for name in still)  # before a norm they get next to no gradient
    if preset == "unet3d_test":
        assert any("running_mean" in name for name in changed)


def test_an_adapter_that_the_encoder_does_not_call_is_an_error():
    task, _ = task_of("vit_test", adapt="lora")
    attention = task.classifier.encoder.blocks[1].attn
    plain = torch.nn.Linear(48, 48)
    attention.unused = LoraLinear(plain, rank=2, alpha=4, dropout=0)
    x = torch.rand(4, 3, 24, 24, 24)
    views = Views({"global": (x,)}, {}, torch.arange(4), 0, 0, torch.zeros(4, 2))
    clock = Clock(0, 20, 0, 1)
    task.training_step(views, clock).loss.backward()
    with pytest.raises(Exception, match="no part in the result"):
        task.before_optimizer_step(clock)
    del attention.unused
    task.before_optimizer_step(clock)


def lateral_batch(n=16):
    """Scans with a bright block on the patient's left, x growing to the left; every third on the right."""
    volume = torch.full((n, 1, 24, 24, 24), -1000, dtype=torch.int16)
    labels = torch.zeros(n, 3)
    for k in range(n):
        left = k % 3 > 0
        volume[k, 0, 4:20, 4:20, 4:20] = 0
        where = slice(15, 19) if left else slice(5, 9)
        volume[k, 0, 8:16, 8:16, where] = 80
        labels[k] = torch.tensor([float(left), float(not left), float(k % 2)])
    labels[0, 1] = float("nan")
    box = torch.tensor([[[0, 24]] * 3] * n)
    head = torch.tensor([[[4.0, 20.0]] * 3] * n)
    return PretrainBatch(volume, box, head, torch.arange(n), torch.arange(n), torch.full((n, 3), 8.0), 5, 2,
                         labels=labels)  # fmt: skip


SIDED = (
    LabelSpec(name="left", mirror="right"),
    LabelSpec(name="right", mirror="left"),
    LabelSpec(name="midline", mirror="self"),
)


def test_mirrored_views_carry_mirrored_labels_in_the_same_step():
    """The side that the voxels show is the side that the labels say, in every view of every sample."""
    views = ViewSettings(
        global_count=2, global_scale=(1.0, 1.0), local_count=0, flip_lr=True, flip_probability=0.5,
        shift_probability=0.0, blur_probability=(0.0, 0.0), gamma_probability=(0.0, 0.0),
    )  # fmt: skip
    task, _ = task_of("vit_test", views=views, mirror=mirror_of(SIDED))
    batch = lateral_batch()
    plan = task.views()
    assert plan.groups[0].flip_probability == (0.0, 0.0, 0.5)  # never upside down, never back to front
    seen = make_views(batch, plan, INPUT)
    flips = seen.flipped["global"]
    assert flips.shape == (2, 16)
    assert 4 <= int(flips.sum()) <= 28
    assert not torch.equal(flips[0], flips[1])
    for number, view in enumerate(seen.groups["global"]):
        labels = task.labels_of(seen, number)
        shown_left = view[:, 0, ..., 12:].sum((1, 2, 3)) > view[:, 0, ..., :12].sum((1, 2, 3))
        for k in range(16):
            original = batch.labels[k]
            expected = original[[1, 0, 2]] if flips[number, k] else original
            torch.testing.assert_close(labels[k], expected, equal_nan=True)
            if k:
                assert bool(labels[k, 0] == 1) == bool(shown_left[k]), (number, k)
    # Without flips nothing is swapped.
    plain, _ = task_of("vit_test")
    assert plain.labels_of(make_views(batch, plain.views(), INPUT), 0) is batch.labels


def test_flips_need_the_mirror_of_every_label():
    assert mirror_of(SIDED) == (1, 0, 2)
    unsaid = (*SIDED, LabelSpec(name="odd"))
    with pytest.raises(UsageError, match="nothing says what a label becomes") as caught:
        mirror_of(unsaid)
    assert "odd" in str(caught.value.got)
    with pytest.raises(UsageError, match="mirror of 'left' is not learnt") as caught:
        mirror_of(SIDED[:1])
    assert "Add right" in caught.value.do
    grade = LabelSpec(name="right", type="ordinal", classes=("a", "b"), mirror="left")
    with pytest.raises(UsageError, match="not each other's mirror"):
        mirror_of((SIDED[0], grade))
    lone = LabelSpec(name="right", mirror="self")
    with pytest.raises(UsageError, match="not each other's mirror"):
        mirror_of((SIDED[0], lone))


def test_a_whole_network_learns_under_attentive_pooling_too(small):
    overrides = ("training.num_steps=2", "training.precision=bf16", "head.kind=attentive", "head.heads=3")
    folder = finetune(2, small / "vit", overrides=overrides, tag="pooled", **FAST)
    weights = load_weights(folder)
    assert (weights.contract.head.kind, weights.contract.head.heads) == ("attentive", 3)
    assert weights.tensors["head.query"].shape == (3, 16)
    moved = weights.part("encoder")["blocks.0.attn.qkv.weight"]
    assert not torch.equal(moved, load_weights(small / "vit").part("encoder")["blocks.0.attn.qkv.weight"])


def test_a_run_says_what_it_decided(runs):
    settings = read_json(runs("lora", "vit") / "config.json", FinetuneSettings)
    assert (settings.lora.rank, settings.lora.targets) == (2, ("qkv", "proj"))
    log = (runs("lora", "vit") / "train.log").read_text()
    assert "4 layers adapted" in log
    assert "--adapt" not in log
