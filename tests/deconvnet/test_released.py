"""Released Caffe models: files written by protobuf itself, and nets computed here as Caffe has them."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image

from deconvnet import Predictor
from deconvnet.errors import InputError
from deconvnet.images import VOC_CLASSES
from deconvnet.nets import files
from deconvnet.nets.caffemodel import read_caffemodel
from deconvnet.nets.released import DECONVNET, convert
from deconvnet.settings import WindowInference
from experiment import convert as command

MEAN = torch.tensor([104.00698793, 116.66876762, 122.67891434])[:, None, None]  # B, G, R
BLOCKS = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}  # convolutions and deconvolutions of each block


def messages():
    """NetParameter of caffe.proto, as far as weights need it; V1's has other field numbers."""
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    types = {"float": 2, "double": 1, "int64": 3, "int32": 5, "string": 9}
    layouts = {
        "BlobShape": [("dim", 1, "int64", True, True)],
        "BlobProto": [("num", 1, "int32"), ("channels", 2, "int32"), ("height", 3, "int32"), ("width", 4, "int32"),
                      ("data", 5, "float", True, True), ("shape", 7, "BlobShape"),
                      ("double_data", 8, "double", True, True)],
        "LooseBlob": [("data", 5, "float", True, False), ("shape", 7, "BlobShape")],
        "V1LayerParameter": [("name", 4, "string"), ("type", 5, "int32"), ("blobs", 6, "BlobProto", True)],
        "LayerParameter": [("name", 1, "string"), ("type", 2, "string"), ("blobs", 7, "BlobProto", True),
                           ("loose", 8, "LooseBlob", True)],
        "NetParameter": [("name", 1, "string"), ("layers", 2, "V1LayerParameter", True),
                         ("layer", 100, "LayerParameter", True)],
    }  # fmt: skip
    for name, fields in layouts.items():
        message = file.message_type.add(name=name)
        for field, number, kind, *repeated in fields:
            entry = message.field.add(name=field, number=number, label=3 if repeated and repeated[0] else 1)
            entry.type = types.get(kind, 11)
            if entry.type == 11:
                entry.type_name = f".caffe.{kind}"
            if len(repeated) > 1:
                entry.options.packed = repeated[1]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}")) for name in layouts}


CAFFE = messages()


def write(path, layers, old=True):
    """A caffemodel of layers {name: [blobs]}: V1 with blobs of four sides, or the new format."""
    net = CAFFE["NetParameter"](name="net")
    (net.layers if old else net.layer).add(name="data")  # a layer without weights
    for name, blobs in layers.items():
        layer = (net.layers if old else net.layer).add(name=name)
        for blob in blobs:
            entry = layer.blobs.add()
            entry.data.extend(blob.ravel().tolist())
            if old:
                shape = (1,) * (4 - blob.ndim) + blob.shape
                entry.num, entry.channels, entry.height, entry.width = shape
            else:
                entry.shape.dim.extend(blob.shape)
    path.write_bytes(net.SerializeToString())
    return path


def convolution(random, inputs, outputs, side, transposed=False):
    """Weight and bias, of about unit gain."""
    shape = (inputs, outputs, side, side) if transposed else (outputs, inputs, side, side)
    fan_in = inputs if transposed and side > 3 else inputs * side**2  # fc6-deconv sees one pixel
    return [random.normal(0, math.sqrt(2 / fan_in), shape), random.normal(0, 0.3, outputs)]


def encoder(random, width, fc, kernel):
    layers, channels = {}, 3
    for block, number in BLOCKS.items():
        for index in range(1, number + 1):
            outputs = width * min(2 ** (block - 1), 8)
            layers[f"conv{block}_{index}"] = convolution(random, channels, outputs, 3)
            channels = outputs
    layers["conv1_1"][0] /= 60  # pixels have a std of about that
    return layers | {
        "fc6": convolution(random, channels, fc, kernel),
        "fc7": convolution(random, fc, fc, 1),
    }


def deconvnet_layers(width=4, fc=9, kernel=3):
    """The layers of DeconvNet_inference_deploy.prototxt, random, at another size."""
    random = np.random.default_rng(0)
    layers = encoder(random, width, fc, kernel)
    layers["fc6-deconv"] = convolution(random, fc, 8 * width, kernel, transposed=True)
    channels = 8 * width
    for block, number in reversed(BLOCKS.items()):
        for index in range(1, number + 1):
            outputs = channels if index < number else width * max(min(2 ** (block - 2), 8), 1)
            layers[f"deconv{block}_{index}"] = convolution(random, channels, outputs, 3, transposed=True)
            channels = outputs
    layers["seg-score-voc"] = convolution(random, channels, 21, 1)
    norms = {
        name.replace("conv", "bn") if "_" in name else f"bn{name}": name for name in layers if name != "fc6-deconv"
    }
    norms = {norm: name for norm, name in norms.items() if "score" not in norm} | {"fc6-deconv-bn": "fc6-deconv"}
    for norm, name in norms.items():
        outputs = layers[name][1].size
        layers[norm] = [random.uniform(0.5, 1.5, (outputs, 1, 1)), random.normal(0, 0.3, (outputs, 1, 1))]
    return layers


def fcn_layers(width=4, fc=9, bias=True):
    """The layers of fcn-8s-pascal, random, at another width; kernels and strides as they are."""
    random = np.random.default_rng(1)
    layers = encoder(random, width, fc, 7)
    layers["score-fr"] = convolution(random, fc, 21, 1)
    for name, channels in (("score-pool4", 8 * width), ("score-pool3", 4 * width)):
        layers[name] = convolution(random, channels, 21, 1)
    layers["score2"] = [random.normal(0, 0.2, (21, 21, 4, 4)), random.normal(0, 1, 21)][: 2 if bias else 1]
    layers["score4"] = [random.normal(0, 0.2, (21, 21, 4, 4))]
    ramp = 1 - abs(np.arange(16) - 7.5) / 8
    layers["upsample"] = [np.eye(21)[:, :, None, None] * np.outer(ramp, ramp)]
    return layers


def tensors(layers):
    return {name: [torch.from_numpy(blob) for blob in blobs] for name, blobs in layers.items()}


def bgr(image):
    """uint8 (H, W, 3) RGB -> (1, 3, H, W) float64 as the release feeds it."""
    return (torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1).double() - MEAN)[None]


def released_deconvnet(layers, image):
    """The network description, layer by layer: convolution, scale, shift, ReLU."""
    layers = tensors(layers)

    def layer(x, name, norm, convolve, **options):
        x = convolve(x, *layers[name], **options)
        scale, shift = layers[norm]
        return F.relu(x * scale + shift)

    x, masks = bgr(image), {}
    for block, number in BLOCKS.items():
        for index in range(1, number + 1):
            x = layer(x, f"conv{block}_{index}", f"bn{block}_{index}", F.conv2d, padding=1)
        x, masks[block] = F.max_pool2d(x, 2, 2, return_indices=True)
    x = layer(x, "fc6", "bnfc6", F.conv2d)
    x = layer(x, "fc7", "bnfc7", F.conv2d)
    x = layer(x, "fc6-deconv", "fc6-deconv-bn", F.conv_transpose2d)
    for block, number in reversed(BLOCKS.items()):
        x = F.max_unpool2d(x, masks[block], 2, 2)
        for index in range(1, number + 1):
            x = layer(x, f"deconv{block}_{index}", f"debn{block}_{index}", F.conv_transpose2d, padding=1)
    return F.conv2d(x, *layers["seg-score-voc"])


def released_fcn(layers, image):
    """The network description: padding of 100, crops by 5, 9 and 31."""
    layers = tensors(layers)

    def crop(x, offset, like):
        return x[:, :, offset : offset + like.shape[2], offset : offset + like.shape[3]]

    x = image = bgr(image)
    pools = {}
    for block, number in BLOCKS.items():
        for index in range(1, number + 1):
            padding = 100 if (block, index) == (1, 1) else 1
            x = F.relu(F.conv2d(x, *layers[f"conv{block}_{index}"], padding=padding))
        x = pools[block] = F.max_pool2d(x, 2, 2, ceil_mode=True)
    for name in ("fc6", "fc7"):
        x = F.relu(F.conv2d(x, *layers[name]))
    x = F.conv_transpose2d(F.conv2d(x, *layers["score-fr"]), *layers["score2"], stride=2)
    x = x + crop(F.conv2d(pools[4], *layers["score-pool4"]), 5, x)
    x = F.conv_transpose2d(x, *layers["score4"], stride=2)
    x = x + crop(F.conv2d(pools[3], *layers["score-pool3"]), 9, x)
    return crop(F.conv_transpose2d(x, *layers["upsample"], stride=8), 31, image)


def picture(height, width):
    return np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8)


def converted(path, out):
    files.save(out, *convert(path))
    return files.load(out)


def scores(net, image):
    with torch.no_grad():
        return net(torch.from_numpy(image).permute(2, 0, 1)[None])


@pytest.mark.parametrize("old", [True, False])
def test_a_converted_deconvnet_computes_what_the_release_computes(tmp_path, old):
    layers, image = deconvnet_layers(), picture(96, 96)
    net, about = converted(write(tmp_path / "d.caffemodel", layers, old), tmp_path / "d.pt")
    wanted = released_deconvnet(layers, image)
    assert wanted.std((2, 3)).mean() > 0.1  # not a constant
    torch.testing.assert_close(scores(net, image).double(), wanted, rtol=1e-4, atol=1e-4)
    assert about["classes"] == list(VOC_CLASSES) and about["windows"] == {"context": 1.2, "square": True}
    assert about["converted"]["file"] == "d.caffemodel"


@pytest.mark.parametrize("bias", [True, False])
def test_a_converted_fcn_computes_what_the_release_computes(tmp_path, bias):
    layers, image = fcn_layers(bias=bias), picture(70, 45)
    net, about = converted(write(tmp_path / "f.caffemodel", layers), tmp_path / "f.pt")
    wanted = released_fcn(layers, image)
    assert wanted.shape == (1, 21, 70, 45) and wanted.std((2, 3)).mean() > 0.1
    torch.testing.assert_close(scores(net, image).double(), wanted, rtol=1e-4, atol=1e-4)
    assert about["canvas"] == [500, 500] and about["scale"] == 1.0


def test_berkeleys_later_names(tmp_path):
    layers, image = fcn_layers(), picture(40, 50)
    names = {"score-fr": "score_fr", "score2": "upscore2", "score-pool4": "score_pool4", "score4": "upscore_pool4",
             "score-pool3": "score_pool3", "upsample": "upscore8"}  # fmt: skip
    renamed = {names.get(name, name): blobs for name, blobs in layers.items()}
    net, _ = converted(write(tmp_path / "f.caffemodel", renamed, old=False), tmp_path / "f.pt")
    torch.testing.assert_close(scores(net, image).double(), released_fcn(layers, image), rtol=1e-4, atol=1e-4)


def test_both_files_in_the_predictor(tmp_path):
    paths = []
    for name, layers in (("deconvnet", deconvnet_layers()), ("fcn", fcn_layers())):
        file = write(tmp_path / f"{name}.caffemodel", layers)
        command.main([str(file), "--out", str(tmp_path / f"{name}.pt")])
        paths.append(tmp_path / f"{name}.pt")
    Image.fromarray(picture(60, 80)).save(tmp_path / "photo.png")
    predictor = Predictor(paths[0], fcn=paths[1], longest=80)
    predictor.canvas = (96, 96)  # 500x500 takes seconds
    result = predictor(tmp_path / "photo.png")
    assert result.labels.shape == (60, 80) and predictor.classes == VOC_CLASSES


def test_the_released_shapes():
    """At the release's size: 64 to 512 channels, fc 4,096, 7x7."""
    layers = deconvnet_layers_of_the_release()
    assert sum(math.prod(shape) for shape in layers.values()) == 251_805_653  # as deconvnet.py counts
    assert set(DECONVNET.values()) == {
        (name, norm_of(name)) for name in layers if not name.endswith((":bias", ":scale", ":shift"))
    }


def deconvnet_layers_of_the_release():
    """Shapes by hand, from the network description."""
    widths = {"conv1_1": (3, 64), "conv1_2": (64, 64), "conv2_1": (64, 128), "conv2_2": (128, 128),
              "conv3_1": (128, 256), "conv3_2": (256, 256), "conv3_3": (256, 256), "conv4_1": (256, 512),
              "conv4_2": (512, 512), "conv4_3": (512, 512), "conv5_1": (512, 512), "conv5_2": (512, 512),
              "conv5_3": (512, 512), "deconv5_1": (512, 512), "deconv5_2": (512, 512), "deconv5_3": (512, 512),
              "deconv4_1": (512, 512), "deconv4_2": (512, 512), "deconv4_3": (512, 256), "deconv3_1": (256, 256),
              "deconv3_2": (256, 256), "deconv3_3": (256, 128), "deconv2_1": (128, 128), "deconv2_2": (128, 64),
              "deconv1_1": (64, 64), "deconv1_2": (64, 64)}  # fmt: skip
    shapes = {name: (*pair, 3, 3) for name, pair in widths.items()}
    shapes |= {"fc6": (512, 4096, 7, 7), "fc7": (4096, 4096, 1, 1), "fc6-deconv": (4096, 512, 7, 7)}
    shapes |= {"seg-score-voc": (64, 21, 1, 1)}
    for name, shape in list(shapes.items()):
        shapes[f"{name}:bias"] = (shape[1],)
        if name != "seg-score-voc":
            shapes |= {f"{name}:scale": (shape[1],), f"{name}:shift": (shape[1],)}
    return shapes


def norm_of(name):
    special = {"fc6": "bnfc6", "fc7": "bnfc7", "fc6-deconv": "fc6-deconv-bn", "seg-score-voc": None}
    return special.get(name, name.replace("conv", "bn"))


def test_what_the_reader_reads(tmp_path):
    """Packed and single numbers, float64, a blob without numbers; layers without blobs are left out."""
    net = CAFFE["NetParameter"]()
    layer = net.layer.add(name="a", type="Convolution")
    packed = layer.blobs.add(data=[1.5, -2, 3, 4, 5, 6])
    packed.shape.dim.extend([2, 3])
    double = layer.blobs.add(double_data=[0.1, 0.2])
    double.shape.dim.extend([2])
    single = CAFFE["LooseBlob"](data=[7, 8, 9])
    single.shape.dim.extend([3, 1])
    net.layer.add(name="relu")
    path = tmp_path / "x.caffemodel"
    path.write_bytes(net.SerializeToString())
    (found,) = read_caffemodel(path).values()
    np.testing.assert_array_equal(found[0], np.array([[1.5, -2, 3], [4, 5, 6]], np.float32))
    np.testing.assert_array_equal(found[1], np.array([0.1, 0.2]))
    # a layer by hand: name "b" (field 1), blobs (field 7) of one field per number
    blob = single.SerializeToString()
    layer = b"\x0a\x01b" + bytes([7 << 3 | 2, len(blob)]) + blob
    path.write_bytes(b"\xa2\x06" + bytes([len(layer)]) + layer)
    np.testing.assert_array_equal(read_caffemodel(path)["b"][0], [[7], [8], [9]])


def damaged(layers, name, blobs):
    return {key: values for key, values in (layers | {name: blobs}).items() if values is not None}


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("deconv4_2", lambda blobs: None, "deconv4_2 is missing"),
        ("debn1_1", lambda blobs: None, "debn1_1 is missing"),
        ("fc6", lambda blobs: None, "fc6 is missing"),
        ("conv3_1", lambda blobs: blobs[:1], "conv3_1 lacks its blob 2"),
        ("seg-score-voc", lambda blobs: [blobs[0][:20], blobs[1][:20]], "seg-score-voc is 20x4x1x1, not 21x4x1x1"),
        ("deconv5_1", lambda blobs: [blobs[0][..., :2], blobs[1]], "deconv5_1 is 32x32x3x2, not 32x32x3x3"),
        ("bn2_1", lambda blobs: [blobs[0] * np.nan, blobs[1]], "bn2_1 has values that are not finite"),
        ("bn2_1", lambda blobs: [*blobs, blobs[0]], "bn2_1 has too many blobs"),
        ("conv6_1", lambda blobs: [np.zeros(3)], "conv6_1 is no layer of it"),
        ("conv2_1", lambda blobs: [blobs[0] * 0 + 3e38, blobs[1]], "exceeds float32"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line_and_nothing_is_written(tmp_path, name, change, message):
    layers = deconvnet_layers()
    file = write(tmp_path / "d.caffemodel", damaged(layers, name, change(layers.get(name))))
    with pytest.raises(InputError) as raised:
        command.main([str(file), "--out", str(tmp_path / "new" / "d.pt")])
    said = str(raised.value)
    assert message in said and "\n" not in said and said.startswith(str(file)) and len(said) < 600
    assert not (tmp_path / "new").exists()


def test_fcn_with_a_last_upsampling_that_was_learned(tmp_path):
    layers = fcn_layers()
    layers["upsample"][0] = layers["upsample"][0] + 0.01
    with pytest.raises(InputError, match="not bilinear"):
        convert(write(tmp_path / "f.caffemodel", layers))


def test_another_network(tmp_path):
    vgg = {name: blobs for name, blobs in fcn_layers().items() if name.startswith(("conv", "fc"))}
    with pytest.raises(InputError, match="neither the released DeconvNet nor FCN-8s.*conv1_1, conv1_2"):
        convert(write(tmp_path / "vgg.caffemodel", vgg))


@pytest.mark.parametrize(
    "content",
    [b"", b"name: 'DeconvNet'\nlayers {}\n", b"\xff" * 100, b"\x12\xff\xff\xff\xff\x0f", b"PK\x03\x04" + bytes(60)],
)
def test_what_is_no_caffemodel(tmp_path, content):
    path = tmp_path / "x.caffemodel"
    path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        convert(path)
    assert "\n" not in str(raised.value) and "x.caffemodel: " in str(raised.value)


def test_every_cut_of_a_file_is_refused(tmp_path):
    whole = write(tmp_path / "d.caffemodel", deconvnet_layers()).read_bytes()
    for length in np.random.default_rng(0).integers(1, len(whole) - 1, 60):
        (tmp_path / "cut.caffemodel").write_bytes(whole[:length])
        with pytest.raises(InputError):
            convert(tmp_path / "cut.caffemodel")


def test_places_that_cannot_be(tmp_path):
    file = write(tmp_path / "d.caffemodel", deconvnet_layers())
    for arguments in ([tmp_path, "--out", "x.pt"], [tmp_path / "none", "--out", "x.pt"], [file, "--out", file],
                      [file, "--out", tmp_path]):  # fmt: skip
        with pytest.raises(InputError):
            command.main(list(map(str, arguments)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.caffemodel"]


def test_the_release_clips_and_passes_over_small_windows():
    """docs/released.md names these settings; they must exist."""
    WindowInference(clip=True, min_side=112)
