"""A census of a computation: every operator that it calls, without computing anything.

`census` runs a function on tensors of the meta device, which have no values and stand for those of any device, and
writes down each operator that moves data: floating-point operations, bytes, kernels; and what the host waits for, what
is copied to the device, how much memory is live. It counts what PyTorch asks for. What a library adds inside of an
operator (cuDNN's workspaces, a second kernel) it cannot see; for operators that we know better there are tables.
"""

import dataclasses
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from deconvnet import kernels
from deconvnet.training.flops import clock

# Kernels that a call starts, where it is not one. Operators of namespaces other than aten have theirs before the name.
KERNELS = {f"deconvnet.{name}": number for name, (number, _) in kernels.KERNELS.items()}
KERNELS |= {"convolution_backward": 2}  # for the weights, and for the input
# Tensor arguments, by place, that a call reads once more: statistics before they are applied, two gradients of one.
REREADS: dict[str, tuple[int, ...]] = {
    "native_batch_norm": (0,),
    "_native_batch_norm_legit": (0,),
    "native_batch_norm_backward": (0, 1),
    "convolution_backward": (0,),
} | {f"deconvnet.{name}": places for name, (_, places) in kernels.KERNELS.items()}
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "_reshape_alias",
        "lift_fresh", "resize_", "set_"}  # fmt: skip  # neither read nor write
OVERWRITE = {"copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_"}  # their first argument is not read
PICK = {"index", "index_select"}  # of their first argument they read no more than they return
# What the host waits for, since a shape or a value depends on it; and what stands in for the answer without values.
WAITS: dict[str, Callable] = {
    "_local_scalar_dense": lambda x: torch.zeros((), dtype=x.dtype).item(),
    "nonzero": lambda x: x.new_empty(x.numel(), x.dim(), dtype=torch.int64),  # at most so many
    "masked_select": lambda x, _: x.new_empty(x.numel()),
    "_unique2": lambda x, *_, **__: (x.new_empty(x.numel()), *x.new_empty(2, x.numel(), dtype=torch.int64)),
    "bincount": lambda x, weights=None, minlength=0: x.new_empty(minlength, dtype=torch.int64),
}


@dataclass(frozen=True)
class Call:
    """A call of an operator with arguments of certain shapes."""

    operator: str
    shapes: tuple[tuple[int, ...], ...]  # of the tensors among the arguments
    dtype: torch.dtype | None  # of the first of them
    kernels: int
    flops: float
    bytes: int  # of all tensors read and written, each once
    rereads: int  # bytes read once more (REREADS)


@dataclass(frozen=True)
class Census:
    """What a computation asks of its device. Two in a row add up; their memory is that of the larger."""

    calls: Counter[Call]
    waits: Counter[str]  # of the host for the device, by operator
    copies: int  # from the host's memory to the device
    copied: int  # bytes of them
    peak: int  # bytes live at once

    @property
    def flops(self) -> float:
        return sum(call.flops * number for call, number in self.calls.items())

    @property
    def bytes(self) -> int:
        return sum(call.bytes * number for call, number in self.calls.items())

    @property
    def rereads(self) -> int:
        return sum(call.rereads * number for call, number in self.calls.items())

    @property
    def kernels(self) -> int:
        return sum(call.kernels * number for call, number in self.calls.items())

    def operators(self) -> dict[str, "Census"]:
        """The calls by operator, most bytes first; the rest of each census is empty."""
        parts: dict[str, Counter[Call]] = {}
        for call, number in self.calls.items():
            parts.setdefault(call.operator, Counter())[call] = number
        found = {name: Census(calls, Counter(), 0, 0, 0) for name, calls in parts.items()}
        return dict(sorted(found.items(), key=lambda item: -item[1].bytes))

    def __add__(self, other: "Census") -> "Census":
        return Census(
            self.calls + other.calls, self.waits + other.waits, self.copies + other.copies,
            self.copied + other.copied, max(self.peak, other.peak),
        )  # fmt: skip

    def __mul__(self, times: int) -> "Census":
        calls, waits = (Counter({key: n * times for key, n in part.items()}) for part in (self.calls, self.waits))
        return dataclasses.replace(
            self, calls=calls, waits=waits, copies=self.copies * times, copied=self.copied * times
        )


def census(step: Callable[[], object], device: str = "meta", resident: Iterable[Tensor] = ()) -> Census:
    """Run `step` and count what it calls on tensors of type `device`, "meta", "cuda" or "cpu", forward and backward.

    resident: tensors that are in memory before and after. On the meta device a value that the host asks for is 0, and a
    selection by a mask has all elements.
    """
    with Recorder(device, resident) as recorder:
        step()
    return Census(
        Counter(call for call, _ in recorder.calls), recorder.waits, recorder.copies, recorder.copied, recorder.peak
    )


class Recorder(TorchDispatchMode):
    """Records, while it is entered, every operator that moves data on `device`, and how long each took."""

    def __init__(self, device: str, resident: Iterable[Tensor] = ()):
        super().__init__()
        self.device = device
        self.calls: list[tuple[Call, float]] = []  # seconds; of use where tensors have values
        self.waits: Counter[str] = Counter()
        self.copies = self.copied = self.live = self.peak = 0
        self._storages: dict[int, weakref.ref] = {}
        for tensor in resident:
            self._hold(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        if func._overloadpacket not in flop_registry:
            with self:
                parts = func.decompose(*args, **kwargs)  # in inference mode composite operators come whole
            if parts is not NotImplemented:
                return parts
        name = func._schema.name.removeprefix("aten::").replace("::", ".")
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        asked = any(self._here(tensor) for tensor in inputs)
        begin = clock()
        without = asked and inputs[0].is_meta
        out = self._without_values(name, func, args, kwargs) if without else func(*args, **kwargs)
        seconds = clock() - begin
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if self.device != "cpu":
            self._transfer(name, args, kwargs, inputs, outputs)
        if asked or any(self._here(tensor) for tensor in outputs):
            for tensor in (*inputs, *outputs):
                self._hold(tensor)
            if not (func.is_view or name in FREE or name == "_local_scalar_dense"):
                self.calls.append((_call(name, func, args, kwargs, inputs, outputs, out), seconds))
        return out

    def _here(self, tensor: Tensor) -> bool:
        return tensor.device.type == self.device

    def _without_values(self, name, func, args, kwargs):
        """What the operator returns, also where that would depend on values."""
        if _selects(name, args):
            whole = []  # every mask as the indices of all its elements
            for index in args[1]:
                whole += (
                    [index.new_empty(index.numel(), dtype=torch.int64)] * index.dim() if _is_mask(index) else [index]
                )
            return func(args[0], whole, *args[2:], **kwargs)
        if name in WAITS:
            return WAITS[name](*args, **kwargs)
        if name == "_to_copy" and self.device == "meta" and torch.device(kwargs.get("device") or "meta").type == "cpu":
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if name.startswith("_fused_"):  # optimisers: in place, and unknown to the meta device
            return None
        out = func(*args, **kwargs)
        if name in ("convolution", "convolution_backward"):
            maps = args[0] if name == "convolution" else args[1]
            if maps.is_contiguous(memory_format=torch.channels_last):  # which the meta device forgets, and a GPU keeps
                return tree_map(lambda x: x.contiguous(memory_format=torch.channels_last) if _is_map(x) else x, out)
        return out

    def _transfer(self, name, args, kwargs, inputs, outputs) -> None:
        """Count what the host waits for, and copies from its memory."""
        if (name in WAITS or _selects(name, args)) and self._here(inputs[0]):
            self.waits[name] += 1
        if name not in ("_to_copy", "copy_"):
            return
        source, target = (args[1], args[0]) if name == "copy_" else (args[0], outputs[0])
        if self._here(source) == self._here(target):
            return
        if self._here(target):
            self.copies, self.copied = self.copies + 1, self.copied + _nbytes(target)
        blocking = not (kwargs.get("non_blocking") or args[2:3] == (True,))
        # without CUDA no memory can be pinned, so there the wish not to wait is believed
        if blocking or self._here(target) and torch.cuda.is_available() and not source.is_pinned():
            self.waits["copy to the device" if self._here(target) else "copy to the host"] += 1

    def _hold(self, tensor: Tensor) -> None:
        """Count the tensor's storage as live until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if not self._here(tensor) or key in self._storages:
            return

        def free(_):
            del self._storages[key]
            self.live -= size

        self._storages[key] = weakref.ref(storage, free)
        self.live += size
        self.peak = max(self.peak, self.live)


def _call(name, func, args, kwargs, inputs, outputs, out) -> Call:
    # fused optimisers would write gradients only to undo a scale, which there is not
    written = [
        leaf for argument, value in zip(func._schema.arguments, args, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write and argument.name != "grads"
        for leaf in tree_leaves(value) if isinstance(leaf, Tensor)
    ]  # fmt: skip
    read = inputs[1:] if name in OVERWRITE else inputs
    unique = [*{id(x): x for x in read}.values(), *{id(x): x for x in (*outputs, *written)}.values()]
    moved = sum(map(_nbytes, unique))
    if name in PICK:
        moved -= max(0, _nbytes(args[0]) - _nbytes(out))
    formula = flop_registry.get(func._overloadpacket)
    floating = next((x.dtype for x in inputs if x.is_floating_point()), None)
    return Call(
        operator=name, shapes=tuple(tuple(x.shape) for x in inputs), dtype=floating, kernels=KERNELS.get(name, 1),
        flops=float(formula(*args, **kwargs, out_val=out)) if formula else 0.0,
        bytes=moved, rereads=sum(_nbytes(args[place]) for place in REREADS.get(name, ())),
    )  # fmt: skip


def _nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor's elements; where it repeats its storage, of that."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _selects(name: str, args: tuple) -> bool:
    """Whether the call indexes by a mask, whose elements have to be counted first."""
    return name in ("index", "index_put_") and any(map(_is_mask, args[1]))


def _is_mask(index) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _is_map(value) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4
