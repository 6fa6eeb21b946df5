"""Stand-ins for a GPU: what is asked of it is checked or written down."""

import itertools

import torch

from mrmfast.batch import Batch


def python_half_of_build(pipeline):
    """What ``Pipeline.build`` of DALI does before it needs a driver: collect the operators, check their arguments."""
    pipeline._build_graph()
    for operator in pipeline._ops:
        operator.check_args()


def record_streams(monkeypatch):
    """CUDA streams and events that write down what is asked of them; copies to the GPU stay here."""
    seen = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_event(self, event):
            seen.append(("wait", self.name, event.number))

    class Event:
        number = None
        counter = itertools.count(1)

        def record(self, stream):
            self.number = next(Event.counter)
            seen.append(("record", stream.name, self.number))

    class Current:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            seen.append(("enter", self.stream.name))

        def __exit__(self, *_):
            seen.append(("leave", self.stream.name))

    def to(self, device):
        assert device.type == "cuda"
        seen.append(("copy", self.end))
        return self

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", Current)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: seen.append(("use", stream.name)))
    monkeypatch.setattr(Batch, "to", to)
    return seen
