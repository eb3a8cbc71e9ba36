"""Run by test_kernels.py with TRITON_INTERPRET=1: the Triton kernels against the C++ ones, on a CPU."""

import itertools

import torch

from deconvnet.kernels import cpu, gpu


def maps(*shape, dtype):
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


def same(found, wanted, dtype, case):
    close = 1e-5 if dtype == torch.float32 else 2e-2
    pairs = zip(found, wanted, strict=True) if isinstance(found, tuple) else [(found, wanted)]
    for one, other in pairs:
        assert one.dtype == other.dtype and one.stride() == other.stride(), case
        torch.testing.assert_close(
            one.float(), other.float(), rtol=close, atol=close, msg=lambda text: f"{case}: {text}"
        )


torch.manual_seed(0)
torch.set_num_threads(1)
for dtype, (shape, crops) in itertools.product(
    (torch.float32, torch.bfloat16), [((4, 16, 6, 6), 2), ((2, 5, 4, 2), 1), ((4, 70, 2, 2), 4), ((2, 3, 60, 60), 2)]
):
    case = f"{dtype} {shape} {crops}"
    x, gradient = maps(*shape, dtype=dtype) + 3, maps(*shape, dtype=dtype)
    weight, bias = torch.rand(shape[1]) + 0.5, torch.randn(shape[1])
    y, statistics = cpu.batch_norm_relu(x, weight, bias, 1e-9, crops)
    same(gpu.batch_norm_relu(x, weight, bias, 1e-9, crops), (y, statistics), dtype, f"forward {case}")
    arguments = gradient, x, weight, bias, statistics
    scale = gradient.abs().sum() / 100  # sums over many values
    found, wanted = gpu.batch_norm_relu_backward(*arguments), cpu.batch_norm_relu_backward(*arguments)
    same(found[0], wanted[0], dtype, f"backward {case}")
    for one, other in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(scale), msg=f"weight, bias {case}")
    x = x.round()  # with ties
    pooled, switches = cpu.pool(x)
    same(gpu.pool(x), (pooled, switches), dtype, f"pool {case}")
    placed = cpu.place(pooled, switches)
    same(gpu.place(pooled, switches), placed, dtype, f"place {case}")
    same(gpu.pick(placed, switches), cpu.pick(placed, switches), dtype, f"pick {case}")
    labels = torch.randint(0, shape[1], (shape[0], *shape[2:]), dtype=torch.uint8)
    labels[labels == 1] = 255
    losses = cpu.crop_losses(x, labels)
    torch.testing.assert_close(gpu.crop_losses(x, labels), losses, rtol=1e-4, atol=1e-4, msg=f"losses {case}")
    same(
        gpu.crop_losses_backward(x, labels, losses), cpu.crop_losses_backward(x, labels, losses), dtype, f"loss {case}"
    )
print("equal")
