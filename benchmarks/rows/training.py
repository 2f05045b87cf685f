"""Training steps: forward, backward and optimizer."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks import digits, gpt, lenet, mlp
from benchmarks.case import Case, Figure, Size, row

FAMILY = "training steps"


def _steps(makers: dict[str, Any], *inputs: Any) -> dict[str, Callable[[], Callable[[], Any]]]:
    return {name: (lambda make=make: make(*inputs)) for name, make in makers.items()}


@row(
    "digits, batch 64, compiled", FAMILY,
    figure=Figure("faster than PyTorch eager and torch.compile", faster_than=("torch", "torch.compile")),
)  # fmt: skip
def digits_compiled(size: Size) -> Case:
    images, labels = digits.batch(size(64, 4))
    return Case(_steps(digits.STEPS, digits.weights(), images, labels), flops=digits.flops(len(images)), limit="fma", tolerance=1e-4)


@row(
    "digits, batch 64, compiled, one thread", FAMILY, threads=1,
    figure=Figure("faster than PyTorch eager and torch.compile", faster_than=("torch", "torch.compile")),
)  # fmt: skip
def digits_one_thread(size: Size) -> Case:
    return digits_compiled(size)


@row("digits, batch 64, eager", FAMILY)
def digits_eager(size: Size) -> Case:
    images, labels = digits.batch(size(64, 4))
    return Case(_steps(digits.EAGER, digits.weights(), images, labels), tolerance=1e-4)


@row("LeNet, batch 64, Adam", FAMILY, figure=Figure("2.5 of the limit", of_limit=2.5))
def lenet_compiled(size: Size) -> Case:
    count = size(64, 2)
    return Case(_steps(lenet.STEPS, count), flops=lenet.flops(count), limit="fma", tolerance=1e-4)


@row("MLP 784-512-512-10, batch 128, compiled", FAMILY, figure=Figure("1.2 of the limit", of_limit=1.2))
def mlp_compiled(size: Size) -> Case:
    widths, count = size((784, 512, 512, 10), (8, 4, 4, 3)), size(128, 4)
    # Forward, the gradient of the weights, and that of the activations but the first.
    products = [a * b for a, b in itertools.pairwise(widths)]
    flops = 2.0 * count * (3 * sum(products) - products[0])
    return Case(_steps(mlp.STEPS, widths, count), flops=flops, limit="fma", tolerance=1e-4)


@row("GPT, 4 layers of 128, 16 x 128 tokens, AdamW", FAMILY, figure=Figure("1.41 of the limit", of_limit=1.41), rounds=5)
def gpt_compiled(size: Size) -> Case:
    sizes = size(gpt.SMALL, gpt.TOY)
    return Case(_steps(gpt.STEPS, sizes), flops=sizes.flops, limit="fma", tolerance=1e-4)


@row("the same GPT skipping a random layer each step", FAMILY, figure=Figure("1.48 of the limit", of_limit=1.48), rounds=5)
def gpt_skipping(size: Size) -> Case:
    sizes = size(gpt.SMALL, gpt.TOY)
    layers = range(sizes.layers)
    order = np.random.default_rng(0).integers(0, sizes.layers, 64)
    keeps = [tuple(i != skipped for i in layers) for skipped in order]

    def maker(make: Any) -> Callable[[], Callable[[], Any]]:
        def made() -> Callable[[], Any]:
            step, turn = make(sizes), itertools.cycle(keeps)
            return lambda: step(next(turn))

        return made

    flops = replace(sizes, layers=sizes.layers - 1).flops
    return Case({name: maker(make) for name, make in gpt.STEPS.items()}, flops=flops, limit="fma", tolerance=1e-4)
