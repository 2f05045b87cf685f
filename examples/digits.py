"""Trains a small convolutional network on 1,797 real handwritten digits of 8 x 8 pixels.

The digits are those that scikit-learn ships (UCI "Optical Recognition of Handwritten Digits", test part).
A fifth of each class is held out for testing. The whole training step (forward, backward and optimizer) is
compiled; `--eager` runs it operation by operation instead and gives the same weights to the bit.

    python examples/digits.py
    python examples/digits.py --optimizer adam --epochs 20 --output weights.safetensors
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import graphc as gc
import numpy as np

STARTED = time.time()
BATCH = 64
RATES = {"sgd": 0.1, "adam": 0.01}


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """(images float32[1797, 1, 8, 8] in [0, 1], labels int64[1797]), read without importing scikit-learn."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        sys.exit("this example reads the digits that scikit-learn ships: pip install scikit-learn")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not path.exists():
        sys.exit(f"scikit-learn is installed, but has no {path}; install scikit-learn 0.18 or later")
    with gzip.open(path, "rt") as file:
        table = np.array([line.split(",") for line in file.read().split()]).astype(np.float32)
    return table[:, :64].reshape(-1, 1, 8, 8) / 16, table[:, 64].astype(np.int64)


def split(labels: np.ndarray, seed: int, held_out: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Positions for training and for testing: the same fraction of each class is held out."""
    rng = np.random.default_rng(seed)
    parts = [rng.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]
    cuts = [round(len(part) * held_out) for part in parts]
    test = np.concatenate([part[:cut] for part, cut in zip(parts, cuts, strict=True)])
    train = np.concatenate([part[cut:] for part, cut in zip(parts, cuts, strict=True)])
    return np.sort(train), np.sort(test)


def make_model() -> gc.nn.Module:
    """conv 16 - pool - conv 32 - pool - linear."""
    return gc.nn.Sequential(
        gc.nn.Conv2d(1, 16, 3, padding=1),
        gc.nn.ReLU(),
        gc.nn.MaxPool2d(2),
        gc.nn.Conv2d(16, 32, 3, padding=1),
        gc.nn.ReLU(),
        gc.nn.MaxPool2d(2),
        gc.nn.Flatten(),
        gc.nn.Linear(32 * 2 * 2, 10),
    )


def make_optimizer(name: str, model: gc.nn.Module, lr: float) -> gc.optim.Optimizer:
    if name == "sgd":
        return gc.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    return gc.optim.Adam(model.parameters(), lr=lr)


def make_step(model: gc.nn.Module, optimizer: gc.optim.Optimizer) -> Callable[[gc.Tensor, gc.Tensor], gc.Tensor]:
    """One training step: images and labels -> loss."""

    def step(images: gc.Tensor, labels: gc.Tensor) -> gc.Tensor:
        loss = gc.nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def predict(model: gc.nn.Module, images: gc.Tensor) -> np.ndarray:
    """The most likely digit for each image."""
    model.eval()
    with gc.no_grad():
        scores = model(images)
    model.train()
    found: np.ndarray = scores.cpu().numpy().argmax(axis=1)
    return found


def fingerprint(model: gc.nn.Module) -> str:
    """sha256 over the names and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def seconds_since_start() -> float:
    """Seconds since the process started, the interpreter's start included where the system tells it."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks
    except (OSError, AttributeError):
        return time.time() - STARTED


def train(
    model: gc.nn.Module,
    step: Callable[[gc.Tensor, gc.Tensor], gc.Tensor],
    schedule: gc.optim.LRScheduler,
    loader: gc.data.DataLoader,
    test: tuple[gc.Tensor, np.ndarray],
    epochs: int,
    time_first_step: bool,
) -> None:
    """Run all epochs behind a progress bar, with the mean loss and the test accuracy of each."""
    device = test[0].device
    with contextlib.ExitStack() as stack:
        bar: Any = None
        for epoch in range(1, epochs + 1):
            losses = []
            for images, labels in loader:
                losses.append(step(images.to(device), labels.to(device)))
                if bar is None:
                    if time_first_step:
                        losses[0].item()
                        print(f"first step finished {seconds_since_start():.2f} s after start")
                    bar = stack.enter_context(progress_bar(epochs * len(loader)))
                bar.advance(bar.task_ids[0])
            schedule.step()
            loss = sum(value.item() for value in losses) / len(losses)
            accuracy = gc.metrics.accuracy(predict(model, test[0]), test[1])
            bar.console.print(f"epoch {epoch:3d}  loss {loss:.4f}  test accuracy {accuracy:.2%}", highlight=False)


def progress_bar(steps: int) -> Any:
    """A bar over all steps. Importing rich takes longer than a step, so it happens after the first one."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), transient=True)
    bar.add_task("training", total=steps)
    return bar


def report(predicted: np.ndarray, labels: np.ndarray) -> None:
    """Precision and recall of each digit, as a table."""
    from rich.console import Console
    from rich.table import Table

    precision = gc.metrics.precision(predicted, labels, average="none", num_classes=10).tolist()
    recall = gc.metrics.recall(predicted, labels, average="none", num_classes=10).tolist()
    table = Table(title="test set")
    for heading in ("digit", "precision", "recall", "samples"):
        table.add_column(heading, justify="right")
    for digit in range(10):
        count = int(np.sum(labels == digit))
        table.add_row(str(digit), f"{precision[digit]:.2%}", f"{recall[digit]:.2%}", str(count))
    Console().print(table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--optimizer", choices=sorted(RATES), default="sgd")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--lr", type=float, help="learning rate at the start, annealed to 0 (default: 0.1 for sgd, 0.01 for adam)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the order of batches")
    parser.add_argument("--eager", action="store_true", help="run operation by operation, without compiling the step")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output", type=Path, default=Path("weights.safetensors"), help="where the weights go")
    parser.add_argument("--time-first-step", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        gc.device(options.device)
    except (RuntimeError, ValueError) as error:
        parser.error(str(error))
    if options.epochs < 1:
        parser.error(f"--epochs must be at least 1, not {options.epochs}")
    return options


def main() -> None:
    options = arguments()
    if options.threads is not None:
        gc.set_num_threads(options.threads)
    gc.manual_seed(options.seed)
    images, labels = read_digits()
    train_at, test_at = split(labels, options.seed)
    model = make_model().to(options.device)
    optimizer = make_optimizer(options.optimizer, model, options.lr or RATES[options.optimizer])
    schedule = gc.optim.CosineAnnealingLR(optimizer, options.epochs)
    step: Any = make_step(model, optimizer)
    if not options.eager:
        step = gc.compile(step)
    data = gc.data.TensorDataset(images[train_at], labels[train_at])
    # A shorter last batch is left out: every epoch shuffles anew, so every digit is seen over the epochs.
    loader = gc.data.DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True, seed=options.seed)
    test = (gc.asarray(images[test_at], device=options.device), labels[test_at])
    train(model, step, schedule, loader, test, options.epochs, options.time_first_step)

    predicted = predict(model, test[0])
    report(predicted, test[1])
    accuracy = gc.metrics.accuracy(predicted, test[1])
    print(f"test accuracy {accuracy:.2%} on {len(test_at)} digits")
    print(f"weights sha256 {fingerprint(model)}")

    gc.save(model, options.output, metadata={"model": "digits", "seed": str(options.seed)})
    loaded = make_model().to(options.device)
    loaded.load_state_dict(gc.load(options.output))
    again = gc.metrics.accuracy(predict(loaded, test[0]), test[1])
    print(f"saved to {options.output}; loaded back, test accuracy {again:.2%}")
    if again != accuracy:
        sys.exit("the loaded weights do not give the same accuracy")


if __name__ == "__main__":
    main()
