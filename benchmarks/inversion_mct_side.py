"""One image-making job of Sony's Model Compression Toolkit, by turns (`inversion_speed.py`).

Runs in the toolkit's own environment, without emptyset. What the toolkit does is left as it is;
only its progress bar is replaced, which is where its loop asks for the next iteration.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inversion_paced import Turns

# Its own settings, and those nearest to plain inversion: no smoothing, no crops out of a frame.
PIPELINES = {"defaults": {}, "pixels": {"extra_pixels": 0}}


class PacedBar:
    """Stands in for tqdm: every iteration at its turn."""

    def __init__(self, turns: Turns, planned: Iterable[int]) -> None:
        self._turns = turns
        self._planned = planned

    def __iter__(self) -> Iterator[int]:
        return self._turns.steps(self._planned)

    def set_description(self, text: str) -> None:
        """Nothing is shown."""


def settings_of(pipeline: str) -> dict[str, Any]:
    """Arguments of its config, besides batch size and iterations."""
    from model_compression_toolkit.data_generation import ImagePipelineType

    settings: dict[str, Any] = dict(PIPELINES[pipeline])
    if pipeline == "pixels":
        settings["image_pipeline_type"] = ImagePipelineType.IDENTITY
    return settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("network")
    parser.add_argument("--pipeline", choices=PIPELINES, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    turns = Turns()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    sys.path.insert(0, str(options.weights))
    import model_compression_toolkit as mct
    import networks
    from model_compression_toolkit.data_generation.pytorch import pytorch_data_generation

    module = networks.load(str(options.weights / f"{options.network}.safetensors")).eval()
    config = mct.data_generation.get_pytorch_data_generation_config(
        n_iter=options.steps, data_gen_batch_size=options.batch, **settings_of(options.pipeline)
    )
    pytorch_data_generation.tqdm = lambda planned: PacedBar(turns, planned)
    turns.begin()
    images = mct.data_generation.pytorch_data_generation_experimental(
        model=module,
        n_images=options.images,
        output_image_size=options.size,
        data_generation_config=config,
    )
    # Its images are normalised as torchvision's networks expect, which this one is too.
    np.save(options.out, torch.cat(images).numpy())
    turns.finish(version=mct.__version__, torch=torch.__version__)


if __name__ == "__main__":
    main()
