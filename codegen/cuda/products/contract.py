"""Device schedules of a group with one `dot` or `conv`: layout operations in front, an epilogue behind.

Which arithmetic a product gets (its engine) follows from the element type, the attribute `precision` and the target alone,
so that a product has the same bits whatever its sizes and wherever it is fused; sizes choose among tiles of one engine.

| form | file | |
| --- | --- | --- |
| direct | direct.py | fma, one thread an element: depthwise convolution, outer products |
| fma | fma.py | fma in tiles; blocks of k over the grid where tiles are few |
| tensor | tensor.py | mma.sync: 16-bit floats, and float32 where `precision` allows |
| wgmma | hopper.py, wgmma.py | the same on sm_90a: wgmma on tiles that the bulk copy engine brings |

Convolutions of groups with fewer than 16 output channels are done by fma: a group would leave most of a tensor core idle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphc.codegen.cuda.choice import Choice, divisors, is_narrow
from graphc.codegen.cuda.products import hopper, tuned
from graphc.codegen.cuda.products.channels import is_pointwise, packs
from graphc.codegen.cuda.products.direct import lower_direct
from graphc.codegen.cuda.products.fma import IN_REGISTERS, lower_fma
from graphc.codegen.cuda.products.product import contraction_of, dim_value
from graphc.codegen.cuda.products.rounding import operand_type
from graphc.codegen.cuda.products.sums import BLOCK
from graphc.codegen.cuda.products.tensor import lower_tensor
from graphc.codegen.cuda.target import Target
from graphc.codegen.lower.contraction import Contraction
from graphc.codegen.lower.lowered import Lowered
from graphc.ir.function import Function
from graphc.ir.types import size_of

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Tile:
    """A tile of the table. slab: k at a time; tall x wide: elements a thread; speed: of products, relative to the best."""

    rows: int
    columns: int
    slab: int
    tall: int
    wide: int
    stages: int
    speed: float

    @property
    def threads(self) -> int:
        return self.rows // self.tall * (self.columns // self.wide)

    @property
    def splits(self) -> bool:
        """Whether blocks of k may go over the grid: their bounds take registers that the largest tile has not."""
        return self.tall * self.wide * self.slab < 1024

    def shared(self, itemsize: int) -> int:
        """Bytes of shared memory at most: slabs of both operands with their padding, and the totals."""
        parts = self.tall * self.wide
        totals = self.threads * parts if parts > IN_REGISTERS else 0
        return itemsize * (self.stages * self.slab * (self.rows + self.columns + 8) + totals)

    def resident(self, itemsize: int, target: Target) -> int:
        """Blocks that a multiprocessor holds at a time; 0 where not even one fits."""
        if self.shared(itemsize) > target.shared:
            return 0
        room = (target.shared + RESERVED) // (self.shared(itemsize) + RESERVED)
        return max(1, min(room, THREADS // self.threads * (4 // itemsize or 1)))


FMA_TILES = (
    Tile(128, 128, 16, 8, 8, 2, 1.0),
    Tile(128, 128, 8, 8, 8, 2, 0.95),
    Tile(128, 64, 16, 8, 4, 2, 0.85),
    Tile(64, 128, 16, 4, 8, 2, 0.85),
    Tile(64, 64, 16, 4, 4, 3, 0.7),
    Tile(32, 64, 16, 4, 4, 3, 0.55),
    Tile(64, 32, 16, 4, 4, 3, 0.55),
    Tile(32, 32, 16, 2, 4, 3, 0.4),
    Tile(16, 128, 16, 4, 4, 3, 0.4),
    Tile(128, 16, 16, 4, 4, 3, 0.4),
    Tile(4, 128, 32, 1, 4, 3, 0.15),
    Tile(128, 4, 32, 4, 1, 3, 0.15),
    Tile(1, 128, 32, 1, 1, 3, 0.05),
    Tile(128, 1, 32, 1, 1, 3, 0.05),
)


@dataclass(frozen=True)
class TensorTile:
    """A tile of the table of tensor-core products; tall x wide: of a warp."""

    rows: int
    columns: int
    tall: int
    wide: int
    stages: int
    speed: float

    @property
    def threads(self) -> int:
        return 32 * (self.rows // self.tall) * (self.columns // self.wide)


TENSOR_TILES = (
    TensorTile(128, 128, 64, 32, 4, 1.0),
    TensorTile(128, 64, 32, 32, 4, 0.85),
    TensorTile(64, 128, 32, 32, 4, 0.85),
    TensorTile(64, 64, 32, 32, 4, 0.7),
    TensorTile(32, 64, 16, 32, 4, 0.5),
    TensorTile(64, 32, 32, 16, 4, 0.5),
    TensorTile(32, 32, 16, 16, 4, 0.35),
    TensorTile(16, 128, 16, 32, 4, 0.3),
    TensorTile(128, 16, 32, 16, 4, 0.3),
    TensorTile(16, 64, 16, 16, 4, 0.25),
)
MIN_ROWS = 16  # output channels of a group that tensor cores are worth
FEW = 16  # elements of a product, to which tiles have nothing to give
THREADS = 512  # of a multiprocessor, with the registers that these kernels take
RESERVED = 1 << 10  # bytes of shared memory that a block has besides its own
# What split sums cost besides, in products of one multiprocessor: another launch, and 8 bytes each way for each sum.
SPLIT_LAUNCH, SPLIT_ELEMENT = 400_000, 0.5
MOST_SCRATCH = 1 << 29  # bytes
MIN_DEPTH = 4  # shallower sums have nothing to gain from shared memory


def choose(group: Function, sizes: Sizes, target: Target) -> Choice:
    """The schedule for a launch of these sizes: the one that was measured to be best, else the one estimated so."""
    return tuned.lookup(group, sizes, target) or candidates(group, sizes, target)[0]


def candidates(group: Function, sizes: Sizes, target: Target) -> list[Choice]:
    """All schedules for a launch of these sizes, by estimated time; they give the same bits."""
    c = contraction_of(group, True)
    example = 1
    if c.root.name == "conv":
        positions = dim_value(size_of(c.right.free), sizes)
        example = int(positions >= 512)
        c = contraction_of(group, bool(example), engine(c, target) == "tensor")
    divides = divisors(group, sizes)
    narrow = is_narrow(group, sizes)
    rows, columns = dim_value(c.left.size, sizes), dim_value(c.right.size, sizes)
    depth, batches = dim_value(size_of(c.depth), sizes), dim_value(size_of(c.batch), sizes)
    if engine(c, target) == "tensor":
        if target.tensor_cores == "wgmma":
            return hopper.candidates(group, c, sizes, target, divides, narrow, example)
        packed = packs(c, dict(divides))
        tiles = _tensor_tiles(rows, columns, batches, target)
        return [tensor_choice(t, packed, example, divides, narrow) for t in tiles]
    few = rows * columns <= FEW or (c.root.name == "conv" and rows <= 2)
    if depth < MIN_DEPTH or few:
        return [Choice("contract direct", (("split", int(depth > BLOCK)), ("example", example)), divides, narrow)]
    found = []
    padded = c.root.name == "conv" and not is_pointwise(c)
    for tile, split in _fma_tiles(c, rows, columns, depth, batches, target):
        small = narrow and not (split and -(-depth // BLOCK) * batches * rows * columns >= 1 << 31)
        if padded:
            assert c.patches is not None
            small = small and dim_value(size_of(c.patches.shape), sizes) < 1 << 30
        found.append(fma_choice(tile, split, example, divides, small, padded))
    return found


def engine(c: Contraction, target: Target) -> str:
    """ "fma" or "tensor": which arithmetic a product gets. A function of the operation and the target, never of sizes."""
    root = c.root
    if not target.tensor_cores or operand_type(root.operands[0].type.dtype, root.attrs.get("precision", "")) is None:
        return "fma"
    if root.name == "conv" and max(root.attrs["groups"], root.attrs["batch_groups"]) > 1:
        rows = c.left.size
        return "tensor" if isinstance(rows, int) and rows >= MIN_ROWS else "fma"
    return "tensor"


def tensor_choice(
    tile: TensorTile, packed: bool, example: int, divides: tuple[tuple[str, int], ...], narrow: bool
) -> Choice:
    """packed: a conv's operands are copied with channels last."""
    numbers = {
        "packed": int(packed),
        "rows": tile.rows,
        "columns": tile.columns,
        "tall": tile.tall,
        "wide": tile.wide,
        "stages": tile.stages,
        "example": example,
    }
    return Choice("contract tensor", tuple(numbers.items()), divides, narrow)


def _tensor_tiles(rows: int, columns: int, batches: int, target: Target) -> list[TensorTile]:
    """The tiles of the table by estimated time."""

    def cost(tile: TensorTile) -> float:
        blocks = batches * -(-rows // tile.rows) * -(-columns // tile.columns)
        resident = max(1, min(4, THREADS // tile.threads))
        waves = -(-blocks // (target.multiprocessors * resident))
        return waves * tile.rows * tile.columns * resident / tile.speed

    return sorted(TENSOR_TILES, key=cost)


def fma_choice(
    tile: Tile, split: bool, example: int, divides: tuple[tuple[str, int], ...], narrow: bool,
    padded: bool = False,
) -> Choice:  # fmt: skip
    """split: blocks of k go over the grid. padded: a conv's image is copied first."""
    numbers = {
        "rows": tile.rows,
        "columns": tile.columns,
        "slab": tile.slab,
        "tall": tile.tall,
        "wide": tile.wide,
        "stages": tile.stages,
        "split": int(split),
        "padded": int(padded),
        "example": example,
    }
    return Choice("contract fma", tuple(numbers.items()), divides, narrow)


def _fma_tiles(
    c: Contraction, rows: int, columns: int, depth: int, batches: int, target: Target
) -> list[tuple[Tile, bool]]:
    """The tiles of the table by estimated time, each with whether blocks of k go over the grid."""
    found: list[tuple[float, int, Tile, bool]] = []
    itemsize, parts = c.accumulator.itemsize, -(-depth // BLOCK)
    sums = rows * columns * batches * parts
    for i, tile in enumerate(FMA_TILES):
        resident = tile.resident(itemsize, target)
        if not resident:
            continue
        tiles = batches * -(-rows // tile.rows) * -(-columns // tile.columns)
        for split in (False, True) if parts > 1 and tile.splits else (False,):
            if split and sums * itemsize > MOST_SCRATCH:
                continue
            waves = -(-tiles * (parts if split else 1) // (target.multiprocessors * resident))
            each = tile.rows * tile.columns * resident * (min(depth, BLOCK) if split else depth) / tile.speed
            cost = waves * each + (SPLIT_LAUNCH + sums * SPLIT_ELEMENT if split else 0)
            found.append((cost, i, tile, split))
    return [(tile, split) for _, _, tile, split in sorted(found, key=lambda f: f[:2])]


def lower(group: Function, choice: Choice, target: Target) -> Lowered:
    """The kernels of a group under a choice."""
    if choice.form == hopper.FORM:
        return hopper.lower(group, choice, target)
    if choice.form == "contract direct":
        return lower_direct(group, choice)
    return lower_tensor(group, choice) if choice.form == "contract tensor" else lower_fma(group, choice)
