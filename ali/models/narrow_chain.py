"""Layers one after the other on one CPU thread, with the gradients of all of them at once.

In narrow networks, much of a training step's time goes into what PyTorch does around its
operations: autograd's nodes, views, casts of weights. Here a chain of layers is a list of steps
that each know their way back, and autograd sees one node for the weights and one for the inputs. It
runs only those whose gradients are asked for: L_d needs none of x̃, and L_g none of D's weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ali import distributed
from ali.models import layers, narrow

WIDEST = narrow.WIDEST  # most maps of a layer with batch norm
LARGEST = 1 << 18  # weights of a linear layer that is faster here
ALL = slice(None)

Gradients = Sequence[Tensor | None]


def serves(h: Tensor) -> bool:
    """Whether this module trains a chain of layers on inputs like h."""
    return narrow.is_used(h.device, h.dtype) and distributed.world_size() == 1


class Recorder:
    """A forward pass; its methods append the operations of the same name in ali.models.layers."""

    def __init__(
        self, parts: Sequence[Tensor], p: float, generator: distributed.RandomSource | None
    ) -> None:
        """The input is the parts (B, C, …), concatenated, with dropout p; no generator: without."""
        self.generator, self.parts = generator, parts
        self.steps: list[_Step] = []
        self.kept: tuple[int, Tensor] | None = None  # how many steps had been taken; the output
        self.begun: tuple[Gradients, Tensor | None] = (), None
        packed = [narrow.packed(part.detach()) for part in parts]
        self.drops = [self._activation(part, 1.0, p) for part in packed]
        if p == 0 or generator is None:
            self.h = torch.cat(packed) if len(packed) > 1 else packed[0]
        else:
            rows = [part.shape[0] for part in packed]
            self.h = narrow.empty((sum(rows), *packed[0].shape[1:]), packed[0].dtype)
            for part, how, out in zip(packed, self.drops, self.h.split(rows), strict=True):
                narrow.activate(part, part, how, out)

    def conv(self, weight: Tensor, bias: Tensor | None, stride: int) -> None:
        biased = [] if bias is None else [bias]
        product = weight.shape[2] == 1 or self.h.shape[2:] == weight.shape[2:]
        product = product and stride == 1
        if product and weight.numel() <= LARGEST:
            self._append(_Linear(self.h, weight, bias))
        elif not product and narrow.serves(self.h, weight):
            self._append(_Convolution(self.h, weight, bias, stride))
        else:
            self.by_autograd(lambda h: layers.conv(h, weight, bias, stride), [weight, *biased])

    def tconv(self, weight: Tensor, stride: int) -> None:
        product = self.h.dim() == 2
        if product and weight.numel() <= LARGEST:
            self._append(_LinearTransposed(self.h, weight))
        elif not product and narrow.serves(self.h, weight):
            self._append(_TransposedConvolution(self.h, weight, stride))
        else:
            self.by_autograd(lambda h: layers.tconv(h, weight, stride), [weight])

    def leaky_relu_dropout(self, slope: float, p: float) -> None:
        self._append(_LeakyReLU(self.h, self._activation(self.h, slope, p)))

    def batch_norm_leaky_relu_dropout(
        self, running: tuple[Tensor, Tensor], gamma: Tensor, beta: Tensor, slope: float, p: float
    ) -> None:
        self._append(_BatchNorm(self.h, running, gamma, beta, self._activation(self.h, slope, p)))

    def pixel_bias(self, bias: Tensor, wide: bool) -> None:
        """Adds a bias (C, H, W); the output is fp32 if it should be wide."""
        self._append(_PixelBias(self.h, bias, wide))

    def by_autograd(self, function: Callable[[Tensor], Tensor], weights: list[Tensor]) -> None:
        """Any other operation, with its weights."""
        self._append(_ByAutograd(self.h, function, weights))

    def keep(self) -> None:
        """The output so far is one of `outputs`."""
        self.kept = len(self.steps), self.h

    def outputs(self) -> tuple[Tensor | None, Tensor]:
        """What was kept (None: nothing), and the output, with their place in autograd's graph."""
        inputs = [part for part in self.parts if part.requires_grad]
        # the node created last runs first: the other continues from what it has found
        of_inputs = _OfInputs.apply(self, *inputs) if inputs else ()
        found = _OfWeights.apply(self, *[weight for step in self.steps for weight in step.weights])
        if inputs:
            found = _Both.apply(*found, *of_inputs)
        return (None, *found) if self.kept is None else found

    # Gradients ------------------------------------------------------------------------------

    def values(self) -> tuple[Tensor, ...]:
        kept = () if self.kept is None else (self.kept[1],)
        return tuple(h.view_as(h) for h in (*kept, self.h))

    def weight_gradients(self, g: Gradients) -> Gradients:
        """Of all weights, from the gradients of the outputs."""
        after_first, found = self._to_first(g, of_weights=True)
        self.begun = g, after_first
        return [*self.steps[0].weight_gradients(after_first), *found]

    def input_gradients(self, g: Gradients) -> Gradients:
        """Of the parts that need one, from the gradients of the outputs."""
        (seen, after_first), self.begun = self.begun, ((), None)
        if len(seen) != len(g) or any(a is not b for a, b in zip(seen, g, strict=True)):
            after_first, _ = self._to_first(g, of_weights=False)
        assert after_first is not None
        found, row = [], 0
        for part, how in zip(self.parts, self.drops, strict=True):
            rows, row = slice(row, row + part.shape[0]), row + part.shape[0]
            if part.requires_grad:
                of_part = self.steps[0].input_gradient(after_first, rows)
                if how.words is not None:
                    of_part = narrow.activate(narrow.packed(of_part), of_part, how)
                found.append(of_part)
        return found

    def _to_first(self, g: Gradients, of_weights: bool) -> tuple[Tensor, Gradients]:
        """The gradient of the first step's output; those of the later steps' weights."""
        flow = g[-1]
        found: list[Tensor | None] = []
        for done in range(len(self.steps), 0, -1):
            if self.kept is not None and self.kept[0] == done and g[0] is not None:
                flow = g[0] if flow is None else flow + g[0]
            step = self.steps[done - 1]
            if done > 1 and flow is not None:
                flow, of_step = step.backward(narrow.packed(flow), of_weights)
                found = [*of_step, *found]
            elif done > 1:  # only what was kept has a gradient
                found = [*[None] * len(step.weights), *found]
        assert flow is not None
        return narrow.packed(flow), found

    def _append(self, step: _Step) -> None:
        self.steps.append(step)
        self.h = step.out

    def _activation(self, h: Tensor, slope: float, p: float) -> narrow.Activation:
        if self.generator is None or p == 0:
            return narrow.activation(slope)
        words = layers.dropout_words(h, self.generator)
        return narrow.activation(slope, words, layers.least_kept(p), _scale(p, h.dtype))


class _OfWeights(torch.autograd.Function):
    """A chain's outputs with the gradients of its weights."""

    @staticmethod
    def forward(ctx: Any, chain: Recorder, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.chain = chain
        return chain.values()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *g: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *ctx.chain.weight_gradients(g)


class _OfInputs(_OfWeights):
    """The same with the gradients of its inputs."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *g: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *ctx.chain.input_gradients(g)


class _Both(torch.autograd.Function):
    """Merges the outputs of the two nodes above; both get the gradients."""

    @staticmethod
    def forward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(out.view_as(out) for out in outputs[: len(outputs) // 2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *g: Tensor | None) -> tuple[Tensor | None, ...]:
        return *g, *g


# Steps --------------------------------------------------------------------------------------


class _Step:
    """An operation whose forward pass is done: `out`. Gradients come and go in packed memory."""

    out: Tensor

    def __init__(self, h: Tensor, weights: list[Tensor]) -> None:
        self.h, self.weights = h, weights

    def weight_gradients(self, g: Tensor) -> Gradients:
        """Of `weights`, from the gradient of `out`."""
        return []

    def input_gradient(self, g: Tensor, rows: slice = ALL) -> Tensor:
        """Of these rows of h, from the gradient of `out`."""
        raise NotImplementedError

    def backward(self, g: Tensor, of_weights: bool) -> tuple[Tensor, Gradients]:
        """Both; no gradients of weights unless asked for."""
        found = self.weight_gradients(g) if of_weights else []
        return self.input_gradient(g), found


class _Convolution(_Step):
    def __init__(self, h: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> None:
        super().__init__(h, [weight] if bias is None else [weight, bias])
        self.sizes = narrow.conv_sizes(h, weight, stride)
        self.out = narrow.conv(h, weight, bias, self.sizes)

    def weight_gradients(self, g: Tensor) -> Gradients:
        return narrow.conv_weights(self.h, g, self.sizes, len(self.weights) > 1)

    def input_gradient(self, g: Tensor, rows: slice = ALL) -> Tensor:
        return narrow.tconv(g[rows], self.weights[0], self.sizes)


class _TransposedConvolution(_Step):
    def __init__(self, h: Tensor, weight: Tensor, stride: int) -> None:
        super().__init__(h, [weight])
        self.sizes = narrow.tconv_sizes(h, weight, stride)
        self.out = narrow.tconv(h, weight, self.sizes)

    def weight_gradients(self, g: Tensor) -> Gradients:
        return narrow.conv_weights(g, self.h, self.sizes, False)

    def input_gradient(self, g: Tensor, rows: slice = ALL) -> Tensor:
        return narrow.conv(g[rows], self.weights[0], None, self.sizes)


class _Linear(_Step):
    """A convolution of vectors, of one pixel at a time, or with one output pixel."""

    def __init__(self, h: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(h, [weight] if bias is None else [weight, bias])
        out = narrow.linear(_rows(h, weight.shape[2]), weight, bias)
        single = h.dim() == 2 or h.shape[2:] == weight.shape[2:]
        self.out = out if single else _maps(out, (weight.shape[0], *h.shape[2:]))

    def weight_gradients(self, g: Tensor) -> Gradients:
        weight = self.weights[0]
        return narrow.linear_weights(
            _rows(g, 1), _rows(self.h, weight.shape[2]), weight, len(self.weights) > 1
        )

    def input_gradient(self, g: Tensor, rows: slice = ALL) -> Tensor:
        found = narrow.linear_transposed(_rows(g[rows], 1), self.weights[0])
        return _maps(found, self.h.shape[1:])


class _LinearTransposed(_Step):
    """A transposed convolution of one pixel."""

    def __init__(self, h: Tensor, weight: Tensor) -> None:
        super().__init__(h, [weight])
        self.out = _maps(narrow.linear_transposed(h, weight), weight.shape[1:])

    def weight_gradients(self, g: Tensor) -> Gradients:
        g = _rows(g, self.weights[0].shape[2])
        return narrow.linear_weights(self.h, g, self.weights[0], False)

    def input_gradient(self, g: Tensor, rows: slice = ALL) -> Tensor:
        return narrow.linear(_rows(g[rows], self.weights[0].shape[2]), self.weights[0])


class _LeakyReLU(_Step):
    def __init__(self, h: Tensor, how: narrow.Activation) -> None:
        super().__init__(h, [])
        self.how, self.out = how, narrow.activate(h, h, how)

    def input_gradient(self, g: Tensor, rows: slice = ALL) -> Tensor:
        return narrow.activate(g, self.h, self.how)


class _BatchNorm(_Step):
    """In training mode, with leaky ReLU and dropout."""

    def __init__(
        self,
        h: Tensor,
        running: tuple[Tensor, Tensor],
        gamma: Tensor,
        beta: Tensor,
        how: narrow.Activation,
    ) -> None:
        super().__init__(h, [gamma, beta])
        self.how = how
        self.out, self.statistics = narrow.normalise(
            h, running, gamma, beta, layers.BN_MOMENTUM, layers.BN_EPS, how
        )

    def backward(self, g: Tensor, of_weights: bool) -> tuple[Tensor, Gradients]:
        gamma, beta = self.weights
        of_input, *found = narrow.normalise_backward(
            g, self.h, gamma, beta, self.statistics, self.how
        )
        return of_input, found if of_weights else []


class _PixelBias(_Step):
    def __init__(self, h: Tensor, bias: Tensor, wide: bool) -> None:
        super().__init__(h, [bias])
        biased = h + bias.detach().view(h.shape[1:])  # fp32
        self.out = biased if wide else biased.to(h.dtype)

    def weight_gradients(self, g: Tensor) -> Gradients:
        return [g.sum(dim=0, dtype=torch.float32).view(self.weights[0].shape)]

    def input_gradient(self, g: Tensor, rows: slice = ALL) -> Tensor:
        return g[rows].to(self.h.dtype)


class _ByAutograd(_Step):
    """Any operation, in a graph of its own."""

    def __init__(
        self, h: Tensor, function: Callable[[Tensor], Tensor], weights: list[Tensor]
    ) -> None:
        with torch.enable_grad():
            super().__init__(h.detach().requires_grad_(), weights)
            self.computed = function(self.h)
        self.out = self.computed.detach()

    def weight_gradients(self, g: Tensor) -> Gradients:
        return self._gradients(self.weights, g) if self.weights else []

    def input_gradient(self, g: Tensor, rows: slice = ALL) -> Tensor:
        return self._gradients([self.h], g)[0][rows]

    def backward(self, g: Tensor, of_weights: bool) -> tuple[Tensor, Gradients]:
        of_input, *found = self._gradients([self.h, *(self.weights if of_weights else [])], g)
        return of_input, found

    def _gradients(self, of: list[Tensor], g: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            given = _Given.apply(self.computed, g)
        return list(torch.autograd.grad(given, of, retain_graph=True))


class _Given(torch.autograd.Function):
    """A scalar whose gradient with respect to `out` is g: given g, torch.autograd.grad imports
    sympy, for a second or two."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, g: Tensor) -> Tensor:
        ctx.g = g
        return torch.zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.g, None


@functools.cache
def _scale(p: float, dtype: torch.dtype) -> float:
    """1/(1−p), to the precision of the type."""
    return float(torch.tensor(1 / (1 - p), dtype=dtype))


def _rows(h: Tensor, k: int) -> Tensor:
    """(B, C, H, W) → the k × k pixels below each other one, (·, k·k·C), for k = 1 or k = H = W.

    The same memory; (B, C) is a single pixel.
    """
    return h.permute(0, 2, 3, 1).reshape(-1, k * k * h.shape[1]) if h.dim() == 4 else h


def _maps(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """(·, C) or (B, H·W·C) → (B, C, H, W) for a shape (C, H, W); as it is for a shape (C)."""
    if len(shape) == 1:
        return rows
    c, height, width = shape
    return rows.view(-1, height, width, c).permute(0, 3, 1, 2)
