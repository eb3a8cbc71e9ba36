"""The kernels in Triton for GPUs. Maps lie channels-last: row after row of `channels` values.

Nothing is added up in an order that changes from run to run. TRITON_INTERPRET=1 runs them on a CPU, for tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

VOID = tl.constexpr(255)


def _tiles(rows: int, channels: int) -> tuple[int, int, int, int]:
    """Rows and columns of a tile, how many parts the rows are dealt out in, and rows of a part."""
    columns = min(triton.next_power_of_2(channels), 64)
    height = 4096 // columns
    parts = max(1, min(64, rows // (4 * height)))
    return height, columns, parts, triton.cdiv(rows, parts)


@triton.jit
def _moments(x, partial, rows, channels, part, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums of the values less the first of their channel, and of their squares, over a part of a group's rows."""
    group, number, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < channels
    x += group.to(tl.int64) * rows * channels
    shift = tl.load(x + column, mask=inside, other=0).to(tl.float32)
    first = tl.zeros((COLUMNS,), tl.float32)
    second = tl.zeros((COLUMNS,), tl.float32)
    end = tl.minimum((number + 1) * part, rows)
    for start in range(number * part, end, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < end)[:, None] & inside[None, :]
        value = tl.load(x + row[:, None] * channels + column[None, :], mask=mask, other=0).to(tl.float32)
        value = tl.where(mask, value - shift[None, :], 0.0)
        first += tl.sum(value, 0)
        second += tl.sum(value * value, 0)
    place = partial + (group * parts + number) * 2 * channels + column
    tl.store(place, first, mask=inside)
    tl.store(place + channels, second, mask=inside)


@triton.jit
def _totals(partial, group, parts, channels, column, inside, COLUMNS: tl.constexpr):
    """The two sums of a group over all of its parts."""
    first = tl.zeros((COLUMNS,), tl.float32)
    second = tl.zeros((COLUMNS,), tl.float32)
    for number in range(0, parts):
        place = partial + (group * parts + number) * 2 * channels + column
        first += tl.load(place, mask=inside, other=0)
        second += tl.load(place + channels, mask=inside, other=0)
    return first, second


@triton.jit
def _normalise(
    x, weight, bias, partial, y, statistics, eps, rows, channels, part, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    group, number, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < channels
    offset = group.to(tl.int64) * rows * channels
    x += offset
    y += offset
    first, second = _totals(partial, group, parts, channels, column, inside, COLUMNS)
    first = first / rows
    variance = second / rows - first * first
    variance = tl.where(variance < 0, 0.0, variance)  # a NaN stays one
    mean = tl.load(x + column, mask=inside, other=0).to(tl.float32) + first
    inverse = 1 / tl.sqrt(variance + eps)
    if number == 0:
        place = statistics + group * 2 * channels + column
        tl.store(place, mean, mask=inside)
        tl.store(place + channels, inverse, mask=inside)
    scale = inverse * tl.load(weight + column, mask=inside, other=0)
    shift = tl.load(bias + column, mask=inside, other=0)
    end = tl.minimum((number + 1) * part, rows)
    for start in range(number * part, end, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < end)[:, None] & inside[None, :]
        place = row[:, None] * channels + column[None, :]
        value = tl.load(x + place, mask=mask, other=0).to(tl.float32)
        value = (value - mean[None, :]) * scale[None, :] + shift[None, :]
        value = tl.where(value < 0, 0.0, value)
        tl.store(y + place, value.to(y.dtype.element_ty), mask=mask)


def batch_norm_relu(x: Tensor, weight: Tensor, bias: Tensor, eps: float, crops: int) -> tuple[Tensor, Tensor]:
    images, channels, height, width = x.shape
    groups, rows = images // crops, crops * height * width
    tall, wide, parts, part = _tiles(rows, channels)
    y, statistics = torch.empty_like(x), x.new_empty((groups, 2, channels), dtype=torch.float32)
    partial = x.new_empty((groups, parts, 2, channels), dtype=torch.float32)
    grid = (groups, parts, triton.cdiv(channels, wide))
    _moments[grid](x, partial, rows, channels, part, tall, wide)
    _normalise[grid](x, weight, bias, partial, y, statistics, eps, rows, channels, part, tall, wide)
    return y, statistics


@triton.jit
def _slopes(
    gradient, x, weight, bias, statistics, partial, rows, channels, part, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Sums of the gradient behind ReLU, and of its product with the value less the mean."""
    group, number, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < channels
    offset = group.to(tl.int64) * rows * channels
    mean = tl.load(statistics + group * 2 * channels + column, mask=inside, other=0)
    inverse = tl.load(statistics + (group * 2 + 1) * channels + column, mask=inside, other=0)
    factor = inverse * tl.load(weight + column, mask=inside, other=0)
    shift = tl.load(bias + column, mask=inside, other=0)
    first = tl.zeros((COLUMNS,), tl.float32)
    second = tl.zeros((COLUMNS,), tl.float32)
    end = tl.minimum((number + 1) * part, rows)
    for start in range(number * part, end, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < end)[:, None] & inside[None, :]
        place = offset + row[:, None] * channels + column[None, :]
        value = tl.load(x + place, mask=mask, other=0).to(tl.float32) - mean[None, :]
        slope = tl.load(gradient + place, mask=mask, other=0).to(tl.float32)
        slope = tl.where(value * factor[None, :] + shift[None, :] > 0, slope, 0.0)  # behind ReLU
        first += tl.sum(slope, 0)
        second += tl.sum(slope * value, 0)
    place = partial + (group * parts + number) * 2 * channels + column
    tl.store(place, first, mask=inside)
    tl.store(place + channels, second, mask=inside)


@triton.jit
def _differentiate(
    gradient, x, weight, bias, statistics, partial, out, sums, rows, channels, part, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    group, number, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < channels
    offset = group.to(tl.int64) * rows * channels
    mean = tl.load(statistics + group * 2 * channels + column, mask=inside, other=0)
    inverse = tl.load(statistics + (group * 2 + 1) * channels + column, mask=inside, other=0)
    first, second = _totals(partial, group, parts, channels, column, inside, COLUMNS)
    if number == 0:
        place = sums + group * 2 * channels + column
        tl.store(place, second * inverse, mask=inside)
        tl.store(place + channels, first, mask=inside)
    factor = inverse * tl.load(weight + column, mask=inside, other=0)
    shift = tl.load(bias + column, mask=inside, other=0)
    tilt = -factor * inverse * inverse * second / rows
    constant = -factor * first / rows
    end = tl.minimum((number + 1) * part, rows)
    for start in range(number * part, end, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < end)[:, None] & inside[None, :]
        place = offset + row[:, None] * channels + column[None, :]
        value = tl.load(x + place, mask=mask, other=0).to(tl.float32) - mean[None, :]
        slope = tl.load(gradient + place, mask=mask, other=0).to(tl.float32)
        slope = tl.where(value * factor[None, :] + shift[None, :] > 0, slope, 0.0)  # behind ReLU
        value = factor[None, :] * slope + tilt[None, :] * value + constant[None, :]
        tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)


def batch_norm_relu_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    groups, channels = len(statistics), x.shape[1]
    rows = x.numel() // groups // channels
    tall, wide, parts, part = _tiles(rows, channels)
    out, sums = torch.empty_like(x), torch.empty_like(statistics)
    partial = statistics.new_empty((groups, parts, 2, channels))
    grid = (groups, parts, triton.cdiv(channels, wide))
    _slopes[grid](gradient, x, weight, bias, statistics, partial, rows, channels, part, tall, wide)
    _differentiate[grid](gradient, x, weight, bias, statistics, partial, out, sums, rows, channels, part, tall, wide)
    weight_gradient, bias_gradient = sums.sum(0)
    return out, weight_gradient, bias_gradient


@triton.jit
def _windows(total, width, channels, BLOCK: tl.constexpr):
    """Of a block of the pooled map: places, which of them exist, and where the large map has the first corner."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    window, channel = at // channels, at % channels
    first = (4 * (window // width) * width + 2 * (window % width)) * channels + channel
    return at, at < total, first


@triton.jit
def _pool(x, y, switches, total, width, channels, BLOCK: tl.constexpr):
    at, inside, first = _windows(total, width, channels, BLOCK)
    best = tl.load(x + first, mask=inside, other=0).to(tl.float32)
    place = tl.zeros((BLOCK,), tl.int32)
    for corner in tl.static_range(1, 4):
        value = tl.load(x + first + ((corner // 2) * 2 * width + corner % 2) * channels, mask=inside, other=0).to(
            tl.float32
        )
        more = (value > best) | (value != value)  # a NaN wins, as in torch
        best = tl.where(more, value, best)
        place = tl.where(more, corner, place)
    tl.store(y + at, best.to(y.dtype.element_ty), mask=inside)
    tl.store(switches + at, place.to(tl.uint8), mask=inside)


@triton.jit
def _place(x, switches, y, total, width, channels, BLOCK: tl.constexpr):
    at, inside, first = _windows(total, width, channels, BLOCK)
    value = tl.load(x + at, mask=inside, other=0).to(tl.float32)
    place = tl.load(switches + at, mask=inside, other=0).to(tl.int32)
    for corner in tl.static_range(0, 4):
        here = tl.where(place == corner, value, 0.0).to(y.dtype.element_ty)
        tl.store(y + first + ((corner // 2) * 2 * width + corner % 2) * channels, here, mask=inside)


@triton.jit
def _pick(x, switches, y, total, width, channels, BLOCK: tl.constexpr):
    at, inside, first = _windows(total, width, channels, BLOCK)
    corner = tl.load(switches + at, mask=inside, other=0).to(tl.int32)
    value = tl.load(x + first + ((corner // 2) * 2 * width + corner % 2) * channels, mask=inside, other=0)
    tl.store(y + at, value, mask=inside)


BLOCK = 1024


def pool(x: Tensor) -> tuple[Tensor, Tensor]:
    images, channels, height, width = x.shape
    y = x.new_empty((images, height // 2, width // 2, channels)).permute(0, 3, 1, 2)
    switches = torch.empty_like(y, dtype=torch.uint8)
    _pool[(triton.cdiv(y.numel(), BLOCK),)](x, y, switches, y.numel(), width // 2, channels, BLOCK)
    return y, switches


def place(x: Tensor, switches: Tensor) -> Tensor:
    images, channels, height, width = x.shape
    y = x.new_empty((images, 2 * height, 2 * width, channels)).permute(0, 3, 1, 2)
    _place[(triton.cdiv(x.numel(), BLOCK),)](x, switches, y, x.numel(), width, channels, BLOCK)
    return y


def pick(x: Tensor, switches: Tensor) -> Tensor:
    channels, width = switches.shape[1], switches.shape[3]
    y = torch.empty_like(switches, dtype=x.dtype)
    _pick[(triton.cdiv(y.numel(), BLOCK),)](x, switches, y, y.numel(), width, channels, BLOCK)
    return y


@triton.jit
def _pixels(logits, labels, pixels, classes, PIXELS: tl.constexpr, CLASSES: tl.constexpr):
    """Of a block of a crop's pixels: logits, their places, which exist, labels, and which logit is the label's own."""
    crop = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    number = tl.arange(0, CLASSES)
    here = pixel < pixels
    mask = here[:, None] & (number < classes)[None, :]
    place = (crop * pixels + pixel)[:, None] * classes + number[None, :]
    values = tl.load(logits + place, mask=mask, other=float("-inf")).to(tl.float32)
    values = tl.where(here[:, None], values, 0.0)
    label = tl.load(labels + crop * pixels + pixel, mask=here, other=255).to(tl.int32)
    return values, place, mask, label, number[None, :] == label[:, None]


@triton.jit
def _losses(logits, labels, losses, pixels, classes, PIXELS: tl.constexpr, CLASSES: tl.constexpr):
    values, place, mask, label, own = _pixels(logits, labels, pixels, classes, PIXELS, CLASSES)
    most = tl.max(values, 1)
    total = tl.sum(tl.exp(values - most[:, None]), 1)
    chosen = tl.sum(tl.where(own, values, 0.0), 1)
    loss = tl.where(label == VOID, 0.0, tl.log(total) + (most - chosen))
    tl.store(losses + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), tl.sum(loss, 0))


@triton.jit
def _losses_backward(logits, labels, factors, out, pixels, classes, PIXELS: tl.constexpr, CLASSES: tl.constexpr):
    values, place, mask, label, own = _pixels(logits, labels, pixels, classes, PIXELS, CLASSES)
    values = tl.exp(values - tl.max(values, 1)[:, None])
    values = values / tl.sum(values, 1)[:, None]
    values = values - tl.where(own, 1.0, 0.0)
    values = tl.where((label == VOID)[:, None], 0.0, values * tl.load(factors + tl.program_id(0)))
    tl.store(out + place, values.to(out.dtype.element_ty), mask=mask)


def _blocks(logits: Tensor) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """The grid over crops and blocks of their pixels; pixels and classes, and of a block."""
    images, classes, height, width = logits.shape
    side = triton.next_power_of_2(classes)
    block = max(4096 // side, 1)
    return (images, triton.cdiv(height * width, block)), (height * width, classes, block, side)


def crop_losses(logits: Tensor, labels: Tensor) -> Tensor:
    grid, sizes = _blocks(logits)
    losses = logits.new_empty(grid, dtype=torch.float32)
    _losses[grid](logits, labels, losses, *sizes)
    return losses.sum(1)


def crop_losses_backward(logits: Tensor, labels: Tensor, factors: Tensor) -> Tensor:
    grid, sizes = _blocks(logits)
    out = torch.empty_like(logits)
    _losses_backward[grid](logits, labels, factors, out, *sizes)
    return out
