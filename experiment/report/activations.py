"""What the layers of the decoder answer to one object (paper, figure 4)."""

import cv2
import numpy as np
import torch

from deconvnet.images import cut_window, decode_image
from deconvnet.nets.deconvnet import BLOCKS, DeconvNet
from experiment.report.pictures import Cell, fit, heat, photo

TIMES = "\N{MULTIPLICATION SIGN}"


@torch.inference_mode()
def activations(net: DeconvNet, picture: np.ndarray) -> dict[str, np.ndarray]:
    """Maps float32 (C, H, W) of every layer behind fc7 for a picture uint8 (h, w, 3), in the net's order."""
    kept, modules = {}, dict(net.named_children())

    def keep(name: str):
        def hook(_, inputs, output=None):  # unpooling is no module: it is what comes before a block's first layer
            kept[name] = (inputs[0] if output is None else output)[0].numpy()

        return hook

    hooks = [modules[f"deconv{number}_1"].register_forward_pre_hook(keep(f"unpool{number}")) for number in BLOCKS]
    hooks += [module.register_forward_hook(keep(name)) for name, module in modules.items() if name != "encoder"]
    net(torch.from_numpy(picture).permute(2, 0, 1)[None].float())
    for hook in hooks:
        hook.remove()
    return kept


def largest_object(row: dict, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """The window of an image's largest object as the net sees it, uint8 (*size, 3), and the object's class."""
    largest = int(np.argmax(row["instance_areas"]))
    image = decode_image(row["image"])
    crop, _ = cut_window(image, np.zeros(image.shape[:2], np.uint8), row["object_windows"][largest])
    return cv2.resize(crop, size[::-1]), row["instance_classes"][largest]


def layers(net: DeconvNet, row: dict, classes: list[str], side: int) -> list[Cell]:
    """The window of the largest object, then the channel with the largest mean of every layer; of the scores, the
    object's class."""
    picture, kind = largest_object(row, net.encoder.size.shape)
    name, what = classes[kind], f"{classes[kind]}, {row['image_id']}"
    cells = [Cell("Input", what, f"Window around an object: {what}.", photo(fit(picture, side)))]
    for layer, maps in activations(net, picture).items():
        channel = kind if layer == "score" else int(maps.mean((1, 2)).argmax())
        title = f"{layer}, {maps.shape[2]}{TIMES}{maps.shape[1]}"
        caption = f"of {name}" if layer == "score" else f"channel {channel} of {len(maps)}"
        caption += f", {100 * (maps[channel] > 0).mean():.0f} % above 0"
        cells.append(Cell(title, caption, f"{title}, {caption}.", heat(maps[channel], side)))
    return cells
