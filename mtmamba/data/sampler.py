"""The order in which a run sees a dataset's items: endless, seeded, the same for any number of processes."""

from collections.abc import Iterator

import numpy as np
import torch.utils.data

from mtmamba.errors import MtmError

MOST_SHUFFLED = 1 << 24


class EndlessSampler(torch.utils.data.Sampler[tuple[int, int]]):
    """(epoch, index) pairs for `DenseDataset`, without end: epoch after epoch, each in an order of its own drawn from
    (seed, epoch).

    length: of the dataset. start: how many items the run has already taken, over all processes, so that a resumed run
    goes on exactly where it stopped. rank, world: of `world` processes, this one takes every world-th item, so that
    one step of them all sees what one process with the joint batch would. Sets of more than 2^24 items (endless
    `synthetic`) come in their own order. Raises MtmError for an empty dataset or an impossible rank.
    """

    def __init__(self, length: int, seed: int, *, start: int = 0, rank: int = 0, world: int = 1) -> None:
        if length < 1 or start < 0 or not 0 <= rank < world:
            raise MtmError(
                f"expected a dataset with items, a start of 0 or more and a rank below {world}, "
                f"found {length} items, start {start}, rank {rank}"
            )
        self.length, self.seed, self.start, self.rank, self.world = length, seed, start, rank, world

    def __iter__(self) -> Iterator[tuple[int, int]]:
        position, order_of, order = self.start + self.rank, -1, np.empty(0, dtype=np.int64)
        while True:
            epoch, place = divmod(position, self.length)
            if self.length > MOST_SHUFFLED:
                yield epoch, place
            else:
                if epoch != order_of:
                    order_of, order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.length)
                yield epoch, int(order[place])
            position += self.world
