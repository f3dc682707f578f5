"""What an evaluation may not see, taken away."""

from collections.abc import Iterator

import torch

from jepa_fast.data.batches import Batch
from jepa_fast.data.host import evaluation_batches
from jepa_fast.data.shards import Split


def batches_of_noise_after_frame_zero(split: Split, batch_size: int) -> Iterator[Batch]:
    """`evaluation_batches` of windows, with the dots of every frame but the first replaced by noise somewhere."""
    for batch in evaluation_batches(split, batch_size):
        assert batch.corners is not None
        dots, corners = batch.dots.clone(), batch.corners.clone()
        dots[:, 1:] = torch.randint_like(dots[:, 1:], 256)
        corners[:, 1:] = torch.randint_like(corners[:, 1:], 55)
        yield batch._replace(dots=dots, corners=corners)
