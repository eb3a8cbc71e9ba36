"""The parts of training: loss, solver, schedule, statistics, skip scales, origin; and claim (d)."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deconvnet.errors import InputError
from deconvnet.images import VOID
from deconvnet.kernels import softmax_loss
from deconvnet.nets.deconvnet import DeconvNet
from deconvnet.nets.fcn import FCN
from deconvnet.nets.layers import BatchNormReLU, batch_norms
from deconvnet.pixels import ImageStore
from deconvnet.settings import Run, Size
from deconvnet.training import origin
from deconvnet.training.backgrounds import with_backgrounds
from deconvnet.training.devices import Worker, join
from deconvnet.training.lanes import Lanes
from deconvnet.training.loop import COLUMNS, Trainer
from deconvnet.training.metrics import confusion_matrix, loss_sum, summary
from deconvnet.training.optimiser import Optimiser, Schedule
from deconvnet.training.skip_scales import CAFFE_RMS, PUBLISHED, derive, skip_rms
from deconvnet.training.statistics import reestimate
from tests.world import CPU, RUN, SIZE, crop_batches, crop_table, write_dataset

WORKER = Worker(CPU)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tests' nets are too small for two, and others may be busy
    yield
    torch.set_num_threads(threads)


def run(**changes):
    return Run(**RUN | changes)


def estimate(net, batches, passes, crops, worker=WORKER):
    reestimate(Lanes(net, "float32", CPU, 1), batches, passes, crops, worker)


# Loss and metrics


def test_the_loss_is_the_mean_of_the_groups_means():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 3, 4, 4), torch.randint(0, 3, (6, 4, 4), dtype=torch.uint8)
    labels[0] = VOID
    labels[2:4, :3] = VOID
    groups = [F.cross_entropy(logits[i : i + 2], labels[i : i + 2].long(), ignore_index=VOID) for i in (0, 2, 4)]
    torch.testing.assert_close(softmax_loss(logits, labels, 2), sum(groups) / 3)
    torch.testing.assert_close(softmax_loss(logits, labels), F.cross_entropy(logits, labels.long(), ignore_index=VOID))
    total, count = loss_sum(logits, labels)
    assert int(count) == int((labels != VOID).sum())
    torch.testing.assert_close(total / count, F.cross_entropy(logits.double(), labels.long(), ignore_index=VOID),
                               rtol=1e-5, atol=0)  # fmt: skip
    assert softmax_loss(logits, torch.full_like(labels, VOID), 2) == 0


def test_one_step_is_the_same_for_every_micro_batch(tmp_path):
    """micro_batch 8, 16, 32 with batch_norm_crops 8: crops with very different numbers of void pixels."""
    steps = []
    for micro_batch in (8, 16, 32):
        torch.manual_seed(0)
        net = DeconvNet(Size(**SIZE), 4, 1e-5)
        settings = run(batch=32, micro_batch=micro_batch, batch_norm_crops=8, steps=1, warmup_steps=0, held_out=0.0)
        batches = crop_batches(tmp_path, fraction=0)
        train = batches.train

        def uneven(*arguments, train=train):
            images, labels = train(*arguments)
            for number in range(arguments[2].start, arguments[2].stop):
                if number % 8 < number // 8:  # more of it in every group
                    labels[number - arguments[2].start] = VOID
            return images, labels

        batches.train = uneven
        trainer = Trainer(net, batches, settings, WORKER, {}, tmp_path / str(micro_batch))
        trainer._train_step()
        steps.append((float(trainer.pending[0]), {name: p.detach().clone() for name, p in net.named_parameters()}))
    for loss, parameters in steps[1:]:
        assert loss == pytest.approx(steps[0][0], rel=1e-5)
        for name, parameter in parameters.items():
            torch.testing.assert_close(parameter, steps[0][1][name], rtol=1e-4, atol=1e-6)


def test_summary_counts_classes_that_occur():
    matrix = confusion_matrix(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 1, VOID]), 4)
    assert matrix[:2, :2].tolist() == [[1, 0], [1, 2]] and matrix.sum() == 4
    assert summary(matrix) == pytest.approx({"accuracy": 3 / 4, "mean_iou": (1 / 2 + 2 / 3) / 2})


# Solver


def test_learning_rate_schedules():
    schedule = Schedule(run(drop_at=[4, 6], warmup_steps=1))
    rates = [schedule.rate(step) for step in range(8)]
    assert rates == pytest.approx([0.025, 0.05, 0.05, 0.05, 0.005, 0.005, 0.0005, 0.0005])
    with pytest.raises(ValueError, match="no multiple of batch_norm_crops"):
        replace(schedule.run, batch_norm_crops=3)


def test_plateau_drops_where_accuracy_stops_rising():
    schedule = Schedule(run(drop_at="plateau", patience=2, warmup_steps=0))
    rates = []
    for accuracy in (0.5, 0.6, 0.6, 0.55, 0.7, 0.6):
        schedule.validated(accuracy)
        rates.append(schedule.rate(0))
    assert rates == pytest.approx([0.05, 0.05, 0.05, 0.005, 0.005, 0.005])
    resumed = Schedule(schedule.run)
    resumed.load_state(schedule.state())
    resumed.validated(0.6)
    assert resumed.rate(0) == pytest.approx(0.0005)


def test_biases_learn_twice_as_fast_but_not_batch_norms():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), BatchNormReLU(3))
    groups = Optimiser(net, run(), WORKER).sgd.param_groups
    sizes = [(group["lr_scale"], group["weight_decay"], group["params"][0].numel()) for group in groups]
    assert sizes == [(1, 5e-4, 9 + 3 + 3), (2, 0, 3)]
    assert torch.equal(groups[1]["params"][0], net[0].bias)  # a view of it


@pytest.mark.parametrize("threads", [1, 2])
def test_a_frozen_encoder_stays_and_the_rest_learns(tmp_path, threads):
    torch.manual_seed(0)
    net = DeconvNet(Size(**SIZE), 4, 1e-5)
    before = copy.deepcopy(net.state_dict())
    names = {name for name, _ in net.named_parameters() if name.startswith("encoder.")}
    settings = run(steps=2, encoder_lr=0.0, precision="bf16", held_out=0.0)
    torch.set_num_threads(threads)
    batches = crop_batches(tmp_path, fraction=0)
    trainer = Trainer(net, batches, settings, WORKER, {}, tmp_path / "checkpoints", pretrained=names)
    trainer.train()
    for name, value in net.named_parameters():
        assert torch.equal(value, before[name]) == (name in names), name
    assert trainer.optimiser.used == sum(p.numel() for name, p in net.named_parameters() if name not in names)


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_a_step_of_the_optimiser_is_that_of_sgd(share):
    """Against torch's SGD on the parameters themselves, over three steps, with momentum that was saved and loaded.

    The first layer is pre-trained and learns at a share of the rate.
    """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), BatchNormReLU(5), nn.Conv2d(5, 2, 1))
    twin = copy.deepcopy(net)
    settings, first = run(weight_decay=0.1, encoder_lr=share), {"0.weight", "0.bias"}
    groups = [
        {"params": [twin[0].weight], "lr": 0.1 * share}, {"params": [*twin[1].parameters(), twin[2].weight]},
        {"params": [twin[0].bias], "lr": 0.2 * share, "weight_decay": 0.0},
        {"params": [twin[2].bias], "lr": 0.2, "weight_decay": 0.0},
    ]  # fmt: skip
    theirs = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.1)
    ours = Optimiser(net.to(memory_format=torch.channels_last), settings, WORKER, first)
    for _ in range(3):
        gradients = [torch.randn_like(parameter) for parameter in net.parameters()]
        ours.take([gradient / 4 for gradient in gradients], first=True)
        ours.take([gradient * 3 / 4 for gradient in gradients], first=False)
        ours.step(0.1)
        for parameter, gradient in zip(twin.parameters(), gradients, strict=True):
            parameter.grad = gradient
        theirs.step()
        for one, other in zip(net.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(one, other)
        momentum, ours = ours.momentum(), Optimiser(net, settings, WORKER, first)
        ours.load_momentum(momentum)


def test_cosine_schedule():
    schedule = Schedule(run(drop_at="cosine", steps=8, warmup_steps=1, lr=0.1))
    rates = [schedule.rate(step) for step in (0, 2, 4, 8)]
    assert rates == pytest.approx([0.05, 0.1 * (1 + math.sqrt(0.5)) / 2, 0.05, 0])


@pytest.mark.parametrize("batch, micro_batch, groups, available, used, wanted", [
    (64, 32, 8, 1, 1, 32), (64, 32, 8, 2, 2, 32), (64, 32, 8, 4, 4, 16), (64, 32, 8, 8, 8, 8), (64, 32, 8, 16, 8, 8),
    (20, 10, None, 4, 4, 5), (20, 10, None, 3, 2, 10), (20, 10, None, 6, 5, 4), (20, 10, None, 7, 5, 4),
    (20, 10, None, 8, 5, 4), (64, 32, 8, 7, 4, 16),
])  # fmt: skip
def test_a_batch_is_spread_over_as_many_devices_as_divide_it(batch, micro_batch, groups, available, used, wanted):
    settings = run(batch=batch, micro_batch=micro_batch, batch_norm_crops=groups)
    assert settings.devices(available) == used
    assert settings.micro_batch_for(used) == wanted


@pytest.mark.parametrize("precision, allowed", [("float32", False), ("bf16", True)])
def test_float32_is_not_tf32(precision, allowed):
    lanes = Lanes(FCN(Size(**SIZE), 4, 1e-5), precision, CPU, 1)
    assert torch.backends.cuda.matmul.allow_tf32 is allowed and torch.backends.cudnn.allow_tf32 is allowed
    net = lanes.lanes[0].net
    assert net(torch.zeros(2, 3, 64, 64)).dtype == (torch.bfloat16 if allowed else torch.float32)
    assert net.encoder.conv1_1.norm.weight.dtype == torch.float32


# Statistics


def test_reestimated_statistics_are_plain_averages(tmp_path):
    batches = crop_batches(tmp_path)
    net = DeconvNet(Size(**SIZE), 4, 1e-5)
    for layer in batch_norms(net).values():
        layer.crops = 2
    estimate(net, batches, 5, 6)
    first = net.encoder.conv1_1
    with torch.no_grad():
        maps = [first.conv(net.encoder.normalise(batches.train(step, 6, slice(None))[0])) for step in range(5)]
    torch.testing.assert_close(first.norm.running_mean, torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0))
    # the release divides by m: its m / (m - 1) is a division of integers
    variances = torch.stack([m.var((0, 2, 3), correction=0) for m in maps])
    torch.testing.assert_close(first.norm.running_var, variances.mean(0))
    # at fc6, of a 1x1 map, m is 6: 6 / 5 would show
    seen = []
    lanes = Lanes(net, "float32", CPU, 1)
    mine = lanes.lanes[0].net
    hook = mine.encoder.fc6.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    reestimate(lanes, batches, 5, 6, WORKER)
    hook.remove()
    assert not mine.training and all(layer.crops == 2 for layer in batch_norms(mine).values())
    expected = torch.stack([x.detach().var((0, 2, 3), correction=0) for x in seen]).mean(0)
    torch.testing.assert_close(net.encoder.fc6.norm.running_var, expected)


@pytest.mark.parametrize("count", [2, 3])
def test_lanes_change_nothing(tmp_path, count):
    """Statistics, a step's loss and values in as many lanes as there are groups, and in one."""
    batches, found = crop_batches(tmp_path, fraction=0), []
    for threads in (1, count):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        net = DeconvNet(Size(**SIZE), 4, 1e-5)
        settings = run(batch=24, micro_batch=4 * count, batch_norm_crops=4, steps=1, warmup_steps=0, held_out=0.0)
        trainer = Trainer(net, batches, settings, WORKER, {}, tmp_path / str(threads))
        assert len(trainer.lanes.lanes) == threads and torch.get_num_threads() == 1
        trainer._train_step()
        reestimate(trainer.lanes, batches, 5, 6, WORKER)
        found.append({name: tensor.clone() for name, tensor in net.state_dict().items()} | {"loss": trainer.pending[0]})
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=2e-4, atol=2e-5, msg=lambda m, at=name: f"{at}: {m}")


def test_an_error_in_a_lane_is_raised():
    torch.set_num_threads(2)
    lanes = Lanes(DeconvNet(Size(**SIZE), 4, 1e-5), "bf16", CPU, 2)

    def work(lane, item):
        if item == 3:
            raise ValueError("item 3")
        return item, torch.is_grad_enabled()

    with torch.no_grad():
        assert lanes.map(work, range(3)) == [(0, False), (1, False), (2, False)]
    with pytest.raises(ValueError, match="item 3"):
        lanes.map(work, range(4))


def test_statistics_are_estimated_without_dropout(tmp_path):
    batches = crop_batches(tmp_path)
    net = FCN(Size(**SIZE), 4, 1e-5)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        estimate(net, batches, 2, 4, WORKER)
        found.append(net.encoder.fc7.norm.running_mean.clone())
    assert torch.equal(*found) and found[0].abs().max() > 0


def test_processes_share_the_passes(tmp_path):
    """The sums of three processes, added up by hand, are those of one."""
    batches = crop_batches(tmp_path)
    torch.manual_seed(0)
    net = DeconvNet(Size(**SIZE), 4, 1e-5)
    layer = net.deconv3_1.norm
    estimate(net, batches, 5, 6, WORKER)
    expected = layer.running_mean.clone()

    class Part(Worker):
        def sum(self, tensor):
            return tensor

    total = 0
    for rank in range(3):
        estimate(net, batches, 5, 6, Part(CPU, rank, 3))
        total = total + layer.running_mean
    torch.testing.assert_close(total, expected)


def test_validation_sees_fresh_statistics_and_the_model_has_them(tmp_path):
    batches = crop_batches(tmp_path)
    torch.manual_seed(0)
    net = DeconvNet(Size(**SIZE), 4, 1e-5)
    result = Trainer(net, batches, run(steps=4, validate_every=4), WORKER, {}, tmp_path / "checkpoints").train()
    again = DeconvNet(Size(**SIZE), 4, 1e-5)
    again.load_state_dict(result.best)
    estimate(again, batches, RUN["statistics_passes"], 28, WORKER)
    torch.testing.assert_close(again.deconv1_2.norm.running_var, result.best["deconv1_2.norm.running_var"])
    with torch.no_grad():
        images, labels = batches.validation(0, 100)
        matrix = confusion_matrix(again.eval()(images).argmax(1), labels, 4)
    assert result.metrics["mean_iou"] == pytest.approx(summary(matrix)["mean_iou"])


def test_of_equal_mean_ious_the_lower_loss_is_the_best(tmp_path, monkeypatch):
    found = iter([(0.1, 2.0), (0.1, 1.0), (0.1, 1.5), (0.05, 0.5)])

    def validate(trainer):
        mean_iou, loss = next(found)
        return {"loss": loss, "accuracy": 0.0, "mean_iou": mean_iou}

    monkeypatch.setattr(Trainer, "_validate", validate)
    net = DeconvNet(Size(**SIZE), 4, 1e-5)
    result = Trainer(net, crop_batches(tmp_path), run(steps=4, validate_every=1), WORKER, {}, tmp_path / "c").train()
    assert result.metrics == {"mean_iou": 0.1, "loss": 1.0, "accuracy": 0.0, "step": 2}


def test_without_held_out_images_the_last_model_is_kept(tmp_path):
    batches = crop_batches(tmp_path, fraction=0)
    settings = run(steps=4, validate_every=2, held_out=0.0)
    net = DeconvNet(Size(**SIZE), 4, 1e-5)
    result = Trainer(net, batches, settings, WORKER, {}, tmp_path / "checkpoints").train()
    assert result.metrics == {"step": 4}
    assert result.curves["step"].tolist() == [2, 4] and result.curves["loss"].notna().all()
    assert list(result.curves) == COLUMNS and result.curves["held_out_loss"].isna().all()
    assert all(torch.equal(result.best[name], tensor) for name, tensor in net.state_dict().items())
    assert result.best["deconv1_2.norm.running_mean"].abs().max() > 0  # estimated all the same
    with pytest.raises(ValueError, match="plateau needs validation, but held_out is 0"):
        run(held_out=0.0, drop_at="plateau")


# Origin


def test_what_may_change_in_mid_run():
    def made(**changes):
        return origin.complete({"code": "a", "settings": {"canvas": (4, 5)}}, run(**changes), {"kind": "fcn"})

    assert origin.differences(made(), made(memory_gb=2.0, checkpoint_minutes=9, compile=True)) == []
    assert origin.differences(made(), made(micro_batch=2)) == ["run.micro_batch"]
    assert origin.differences(made(batch_norm_crops=2), made(batch_norm_crops=2, micro_batch=2)) == []
    assert origin.differences(made(), made(lr=1.0, precision="bf16")) == ["run.lr", "run.precision"]
    assert origin.differences(made() | {"code": "b"}, made()) == ["code"]
    assert "settings.canvas" in origin.differences({"parameters": {}}, made())


# Processes


@pytest.mark.parametrize("rank, takes_part", [(0, True), (1, False), (2, False)])
def test_processes_without_work_end(monkeypatch, capsys, rank, takes_part):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", str(rank))
    worker = join(lambda processes: min(processes, 1))
    assert (worker is not None) == takes_part
    assert ("1 of 3 processes have work" in capsys.readouterr().out) == takes_part


# Windows of background


def test_background_windows_hold_no_object(tmp_path):
    rows = write_dataset(tmp_path, images=12)
    table = crop_table(rows)
    store = ImageStore(tmp_path, set(table["image_id"]), 4, 1.0, CPU)
    more = with_backgrounds(table, store, 0.25, seed=1)
    added = more[len(table) :]
    assert more["copies"].sum() == pytest.approx(table["copies"].sum() / 0.75, abs=1)
    assert len(added) > 1 and (added["class_id"] == 0).all()
    classes = {row["image_id"]: row["classes"] for row in rows}
    for name, x, y, width, height in added[["image_id", "x", "y", "side_x", "side_y"]].itertuples(index=False):
        window = classes[name][y : y + height, x : x + width]
        assert window.shape == (height, width) and width == height >= 15 and not window.any()


# Skip scales


def test_derived_scales_give_caffes_sizes():
    assert derive(CAFFE_RMS) == PUBLISHED
    assert derive((CAFFE_RMS[0] / 58, CAFFE_RMS[1] / 58)) == (0.58, 0.0058)


def shrunk(net, factor):
    """The net with activations `factor` times smaller, as V1's are: ReLU passes a factor on to all later layers."""
    with torch.no_grad():
        net.encoder.conv1_1.conv.weight /= factor
        for name, parameter in net.encoder.named_parameters():
            if name.endswith("bias"):
                parameter /= factor
    return net


def test_rms_is_of_whole_training_images(tmp_path):
    batches = crop_batches(tmp_path)
    net = FCN(Size(8, 16, 64), 4, None).eval()
    kept = sorted(set(batches.table[batches.train_rows, 0].tolist()))
    pool4, pool3 = skip_rms(net, batches, WORKER)
    maps = [net.pools(net.encoder.normalise(batches.store.scene(i)[None, ..., :3].permute(0, 3, 1, 2))) for i in kept]
    for found, level in ((pool4, 3), (pool3, 2)):
        values = torch.cat([pools[level].detach().flatten() for pools in maps])
        assert found == pytest.approx(float(values.square().mean().sqrt()), rel=1e-5)
    smaller = skip_rms(shrunk(net, 58), batches, WORKER)
    assert smaller == pytest.approx((pool4 / 58, pool3 / 58), rel=1e-4)


def part_of_pool3(tmp_path, scales_of):
    """Relative rms of what pool3 adds to the scores, after 30 steps of the score layers from encoders of V1's size."""
    batches = crop_batches(tmp_path, fraction=0, flip=False)
    torch.manual_seed(0)
    net = FCN(Size(8, 16, 64), 4, None, dropout=0.0)
    rms = skip_rms(net, batches, WORKER)
    shrunk(net, rms[1] / CAFFE_RMS[1] * 58)  # pool3 as large as V1's
    net.set_skip_scales(scales_of(skip_rms(net, batches, WORKER)))
    net.encoder.requires_grad_(False)
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1e-2, momentum=0.9)
    for step in range(30):
        images, labels = batches.train(step, 8, slice(None))
        optimiser.zero_grad()
        softmax_loss(net.train()(images), labels).backward()
        optimiser.step()
    images, _ = batches.train(31, 8, slice(None))
    with torch.no_grad():
        scores = net.eval()(images)
        net.score_pools[1].weight.zero_()
        without = net(images)
    return float((scores - without).square().mean().sqrt() / scores.square().mean().sqrt())


def test_pool3_contributes_at_derived_scales_and_not_at_the_published_ones(tmp_path):
    derived, published = part_of_pool3(tmp_path, derive), part_of_pool3(tmp_path, lambda _: PUBLISHED)
    print(f"what pool3 adds to the scores, relative rms: {derived:.2g} derived, {published:.2g} published")
    assert math.isfinite(derived) and derived > 100 * published


# Claim (d)


def overfit(folder, eps):
    """Pixel accuracy on 8 crops after 120 steps of nothing else."""
    batches = crop_batches(folder, flip=False, resized=64, limit=8)
    batches.train_rows = batches.train_rows[:8]
    settings = run(
        steps=120, lr=0.2, micro_batch=8, drop_at=(100,), validate_every=120,
        statistics_passes=1,
    )  # fmt: skip
    torch.manual_seed(0)
    net = DeconvNet(Size(8, 64, 64), 4, eps)
    Trainer(net, batches, settings, WORKER, {}, folder / f"checkpoints-{eps}").train()
    images, labels = batches.train(0, 8, slice(None))
    with torch.no_grad():
        return summary(confusion_matrix(net.train()(images).argmax(1), labels, 4))["accuracy"]


def test_overfits_eight_crops_and_needs_batch_norm_for_it(tmp_path):
    """Claim (d) of the paper: without batch normalisation training ends in a poor optimum."""
    with_norm, without = overfit(tmp_path, 1e-5), overfit(tmp_path, None)
    print(f"pixel accuracy on 8 crops: {with_norm:.4f} with batch norm, {without:.4f} without")
    assert with_norm > 0.98
    assert without < with_norm - 0.2


def test_a_batch_that_does_not_divide(tmp_path):
    with pytest.raises(InputError, match="batch: 8 on 3 devices does not divide"):
        Trainer(DeconvNet(Size(**SIZE), 4, None), None, run(), Worker(CPU, 0, 3), {}, tmp_path)
