"""The demo's world as plain folders: pictures, masks, object masks. An example of data of one's own, docs/own-data.md.

python -m demo.world.folders FOLDER
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from deconvnet.errors import InputError
from deconvnet.files import whole
from deconvnet.images import encode_mask
from deconvnet.progress import progress
from demo.world.scenes import scene
from demo.world.shapes import CLASSES
from experiment.cli import run
from experiment.machine import cores


def draw(folder: Path, number: int, seed: int) -> None:
    """Write images/NAME.jpg, masks/NAME.png and objects/NAME.png of one scene."""
    drawn, name = scene(seed, f"2012_{number:06d}"), f"scene {number}"
    Image.fromarray(drawn.image).save(folder / f"images/{name}.jpg", quality=95, subsampling=0)
    (folder / f"masks/{name}.png").write_bytes(encode_mask(drawn.class_mask))
    (folder / f"objects/{name}.png").write_bytes(encode_mask(drawn.instance_mask))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.world.folders", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the new folder")
    parser.add_argument("--images", type=int, default=60, help="how many; 60")
    parser.add_argument("--seed", type=int, default=2015, help="of the world; 2015")
    options = parser.parse_args(arguments)
    if options.folder.exists():
        raise InputError(f"{options.folder}: is there already; name a new folder, or remove that one")
    with whole(options.folder) as new, ThreadPoolExecutor(cores()) as pool:
        for name in ("images", "masks", "objects"):
            (new / name).mkdir(parents=True)
        done = pool.map(lambda number: draw(new, number, options.seed), range(1, options.images + 1))
        for _ in progress(done, total=options.images, unit="image", desc="drawing"):
            pass
    print(f"{options.folder}: {options.images:,} images, their masks and object masks; classes: {' '.join(CLASSES)}")


if __name__ == "__main__":
    run(main)
