"""What an evaluation may not see, taken away."""

from collections.abc import Iterator

import torch

from jepa_fast.data.batches import Batch
from jepa_fast.data.host import evaluation_batches
from jepa_fast.data.shards import Split


def batches_of_noise_after_frame_zero(split: Split, batch_size: int) -> Iterator[Batch]:
    """`evaluation_batches` of windows, with the agents of every frame but the first replaced by noise somewhere."""
    for batch in evaluation_batches(split, batch_size):
        agent, *others = batch.groups
        assert agent.corners is not None
        pixels, corners = agent.pixels.clone(), agent.corners.clone()
        pixels[:, 1:] = torch.randint_like(pixels[:, 1:], 256)
        corners[:, 1:] = torch.randint_like(corners[:, 1:], 55)
        yield batch._replace(groups=(agent._replace(pixels=pixels, corners=corners), *others))
