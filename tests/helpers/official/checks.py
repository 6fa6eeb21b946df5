"""Compares values with those of a golden case, and remembers which of the case's values were compared."""

import torch

TOLERANCE = 1e-9
FLOOR = 1e-12  # absolute: some values are zero by construction
STAT = ("sum", "l2", "first5", "last3")


def is_stat(entry):
    """A summary of a tensor."""
    return isinstance(entry, dict) and {"sum", "l2"} <= set(entry)


def leaves(entry, path=()):
    """Yield the paths of all values of a nested dict; text and null say nothing that can be compared."""
    if isinstance(entry, dict):
        for key, below in entry.items():
            yield from leaves(below, (*path, key))
    elif isinstance(entry, list) and any(isinstance(item, dict) for item in entry):
        for number, below in enumerate(entry):
            yield from leaves(below, (*path, number))
    elif entry is not None and not isinstance(entry, str):
        yield path


class Checks:
    """What a case expects, against what our code computes.

    Parameters
    ----------
    expected : dict
        The ``expected`` section of a case, or the ``facts`` of a file.

    Attributes
    ----------
    failures : list of str
        One line per value that differs.
    """

    def __init__(self, expected):
        self.expected, self.failures = expected, []
        self._read = set()

    def section(self, *path):
        """Return the expected entry under these keys, or an empty dict: not every case has every value."""
        entry = self.expected
        for key in path:
            present = key < len(entry) if isinstance(entry, list) else key in entry
            if not present:
                return {}
            entry = entry[key]
        return entry

    def at(self, *path):
        """Return the expected entry under these keys, and count all below it as compared."""
        self._read.add(path)
        return self.section(*path)

    def unread(self):
        """Return the values that nothing was compared with."""
        return [
            " / ".join(map(str, path))
            for path in leaves(self.expected)
            if not any(path[: len(prefix)] == prefix for prefix in self._read)
        ]

    def same(self, value, *path, convert=lambda golden: golden):
        """Integers, texts and lists of them are equal; `convert` is applied to the published value first."""
        if isinstance(value, torch.Tensor):
            value = value.tolist()
        golden = self.at(*path)
        if golden not in (None, {}) and value != convert(golden):  # null: too long for the file
            self._fail(path, value, golden)

    def number(self, value, *path, tolerance=TOLERANCE):
        """A number is equal, relative to its size."""
        golden = self.at(*path)
        if golden == {}:
            return
        value = _float(value)
        if not _close(value, golden, abs(golden), tolerance):
            self._fail(path, value, golden)

    def numbers(self, value, *path):
        """A list of numbers, nested or not, is equal, each relative to the norm of all over the root of their count."""
        if self.section(*path) == {}:
            return
        golden = torch.tensor(self.at(*path), dtype=torch.float64)
        value = torch.as_tensor(value, dtype=torch.float64).detach()
        scale = float(golden.norm()) / golden.numel() ** 0.5
        if value.shape != golden.shape or float((value - golden).abs().max()) > TOLERANCE * scale + FLOOR:
            self._fail(path, value.tolist(), golden.tolist())

    def numbers_each(self, rows, *path):
        """Rows of numbers of different sizes are equal, each number relative to its own size."""
        golden = self.at(*path)
        for ours, theirs in zip(rows, golden, strict=True):
            pairs = zip(ours, theirs, strict=True)
            if not all(_close(float(value), other, abs(other), TOLERANCE) for value, other in pairs):
                self._fail(path, ours, theirs)

    def stat(self, tensor, *path):
        """A tensor has the sum, norm, first and last elements (and the shape) of a summary."""
        entry = self.section(*path)
        if not entry:
            return
        self.failures += [f"{_name(path)}: {line}" for line in stat_differences(tensor, entry)]
        self._read |= {(*path, key) for key in (*STAT, "shape")}

    def gradient_norms(self, parameters, *path):
        """Norms of gradients by published name.

        Parameters
        ----------
        parameters : dict of str to Tensor
            By published name. A list of tensors counts as one (parts of a fused one).
        """
        groups = {name: part if isinstance(part, list) else [part] for name, part in parameters.items()}
        gradients = {name: [p.grad for p in part if p.grad is not None] for name, part in groups.items()}
        for name in self.section(*path):
            if self.section(*path)[name] is None:  # e.g. "patch_embed.proj.weight (frozen)"
                if parameters[name.split()[0]].grad is not None:
                    self._fail((*path, name), "a gradient", None)
                continue
            if name.startswith("all"):
                found = [p.grad for part in groups.values() for p in part if isinstance(p, torch.nn.Parameter)]
                found = [gradient for gradient in found if gradient is not None]
            else:
                found = gradients.get(name, [])
            if not found:
                self._fail((*path, name), "no gradient", self.at(*path, name))
            else:
                self.number(torch.stack([g.norm() for g in found]).norm(), *path, name)

    def wrong(self, values, *path):
        """Every value that a common mistake gives differs from ours, so the comparison refuses it.

        Parameters
        ----------
        values : float, or dict of str to float
            Ours; by the beginning of the variant's name where they are not of one quantity.
        """
        for name, mistaken in self.section(*path).items():
            self.at(*path, name)
            ours = values
            if isinstance(values, dict):
                matching = [value for start, value in values.items() if name.startswith(start)]
                if not matching:
                    self._fail((*path, name), "no value of ours", mistaken)
                    continue
                ours = matching[0]
            if _close(_float(ours), mistaken, abs(mistaken), TOLERANCE):
                self._fail((*path, name), "equals the mistake", mistaken)

    def _fail(self, path, value, golden):
        self.failures.append(f"{_name(path)}: {value}, published {golden}")


def stat_differences(tensor, entry):
    """Return what differs between a tensor and its published summary, one line each.

    A sum is compared relative to the norm, an element relative to the root mean square of all.
    """
    flat = tensor.detach().double().flatten()
    norm, lines = entry["l2"], []
    size = norm / flat.numel() ** 0.5
    pairs = [("sum", flat.sum(), entry["sum"], norm), ("l2", flat.norm(), norm, norm)]
    if "first5" in entry:
        pairs += [("first5", value, golden, size) for value, golden in zip(flat[:5], entry["first5"], strict=True)]
    if "last3" in entry:
        pairs += [("last3", value, golden, size) for value, golden in zip(flat[-3:], entry["last3"], strict=True)]
    for name, value, golden, scale in pairs:
        if not _close(float(value), golden, max(scale, abs(golden) if name != "sum" else 0), TOLERANCE):
            lines.append(f"{name} {float(value)!r}, published {golden!r}")
    if "shape" in entry and list(tensor.shape) != entry["shape"]:
        lines.append(f"shape {list(tensor.shape)}, published {entry['shape']}")
    return lines


def _float(value):
    return value.detach().item() if isinstance(value, torch.Tensor) else float(value)


def _close(value, golden, scale, tolerance):
    """Compare relative to a scale; a value that is 0 by construction has none."""
    return abs(value - golden) <= max(tolerance * scale, FLOOR if scale < FLOOR else 0.0)


def _name(path):
    return " / ".join(map(str, path))
