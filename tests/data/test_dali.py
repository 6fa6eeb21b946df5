"""The DALI graph, for a GPU too: what can be said of it without one."""

import struct

import cv2
import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline

from mrmfast.data.images.dali import DALIImages
from mrmfast.meters import Meters
from tests.helpers.images import decode, spec_for
from tests.helpers.without_gpu import python_half_of_build

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def open_on(device, **settings):
    return DALIImages(lambda: pytest.fail("nothing is decoded"), spec_for(device=device, **settings), Meters())


def describe(images):
    """Operators with their device and the devices of their inputs, in order."""
    return [
        (type(operator._op).__name__, operator._op.device, [node.device for node in operator.inputs])
        for operator in images._pipeline._ops
    ]


@pytest.mark.parametrize("pixels", ["uint8", "float32"])
@pytest.mark.parametrize("stored", [64, 128])
def test_the_graph_of_a_gpu_keeps_the_rules_of_dali(monkeypatch, stored, pixels):
    """Fails on ``matrix=matrices.gpu()``: "Named arguments must be on CPU"."""
    monkeypatch.setattr(Pipeline, "build", python_half_of_build)
    images = open_on(GPU, stored=stored, pixels=pixels)
    operators = describe(images)
    names = ["Image", *["Resize"] * (stored != 64), "WarpAffine", *["CropMirrorNormalize"] * (pixels == "float32")]
    assert [name for name, _, _ in operators if name != "ExternalSource"] == names
    devices = {name: (device, inputs) for name, device, inputs in operators}
    assert devices["Image"] == ("mixed", ["cpu"])
    assert devices["WarpAffine"] == ("gpu", ["gpu", "cpu"])  # images on the GPU, the named argument on the CPU
    for device, inputs in devices.values():
        assert device != "cpu" or "gpu" not in inputs  # no operator of a CPU reads from a GPU
        assert device != "gpu" or inputs[0] == "gpu"
    assert [output.device for output in images._pipeline._graph_outputs] == ["gpu"]
    assert images._pipeline.device_id == 0


def test_the_graph_of_a_cpu_is_the_same_operators(monkeypatch):
    monkeypatch.setattr(Pipeline, "build", python_half_of_build)
    here, there = (describe(open_on(device, stored=128, pixels="float32")) for device in (CPU, GPU))
    assert [name for name, _, _ in here] == [name for name, _, _ in there]
    assert {device for _, device, _ in here} == {"cpu"}


def with_orientation(jpeg, orientation):
    """Insert an EXIF segment that holds nothing but an orientation."""
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0" + b"MM\0*" + struct.pack(">IH", 8, 1) + entry + struct.pack(">I", 0)
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    return np.frombuffer(bytes(jpeg[:2]) + segment + bytes(jpeg[2:]), np.uint8)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_backends_leave_exif_orientation_alone(orientation):
    small = np.random.default_rng(0).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    image = cv2.resize(small, (64, 64), interpolation=cv2.INTER_CUBIC)
    plain = np.frombuffer(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1], np.uint8)
    jpegs = [plain, with_orientation(plain, orientation)]
    turned = cv2.imdecode(jpegs[1], cv2.IMREAD_COLOR)
    assert np.array_equal(turned, cv2.imdecode(plain, cv2.IMREAD_COLOR)) == (orientation == 1)  # the tag is a tag
    for backend in ("cpu", "dali"):
        decoded, bad = decode(backend, jpegs)
        assert not bad.any()
        assert np.array_equal(decoded[0], decoded[1]), backend
