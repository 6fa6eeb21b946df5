"""The GPU path of relation masking against the float64 reference: on a GPU where there is one, else interpreted.

Interpretation is decided when a kernel is defined, so ``test_triton_builds.py`` runs this file again in a process that
interprets.
"""

import math
import os

import pytest
import torch

triton = pytest.importorskip("triton")

from benchmarks.relation.check import mismatches  # noqa: E402
from mrmfast.ops.relation_masking import masked_count, reference, relation_attention  # noqa: E402
from mrmfast.ops.relation_masking import triton as path  # noqa: E402
from mrmfast.ops.relation_masking.operators import LARGEST_KEYS, LARGEST_WIDTH  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="no GPU; test_triton_builds.py runs these interpreted"
)
if INTERPRETED:
    from tests.helpers.triton_interpreter import correct_bfloat16

    correct_bfloat16()

# Relative to the float64 reference on the same inputs. Half types round P, dS and the results to 8 or 11 bits.
BOUNDS = {torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}
RATIOS = [0.0, 0.25, 0.5, 0.75, 1.0]
# (queries, keys, head size): every length, every size, self and cross; a GPU takes them all at all ratios.
SELF = [
    (n, n, d) for n, d in zip([1, 2, 17, 48, 50, 63, 64, 65, 196, 197, 577], [16, 32, 80, 128, 64] * 3, strict=False)
]
CROSS = [(197, 48, 64), (48, 197, 64), (577, 48, 32), (17, 577, 80), (1, 64, 16), (65, 2, 128), (50, 1, 64)]
SHAPES = SELF + CROSS


def draw(queries, keys, width, ratio, dtype=torch.float32, seed=0):
    """Random q, k, v whose rows have no near tie at the threshold: there float32 and float64 may rightly differ."""
    generator = torch.Generator().manual_seed(seed)
    batch, heads = (1, 1) if INTERPRETED and max(queries, keys) > 100 else (2, 3) if queries < 20 else (1, 2)
    new = lambda n: torch.randn(batch, heads, n, width, generator=generator).to(dtype)  # noqa: E731
    q, k, v = new(queries), new(keys), new(keys)
    m = masked_count(ratio, keys)
    while 0 < m < keys:
        logits = (q.double() @ k.double().mT).sort(-1, descending=True).values
        near = (logits[..., m - 1] - logits[..., m]) < 1e-5 * logits.abs().amax(-1)
        if not near.any():
            break
        q[near] = new(queries)[near]
    return q, k, v


def layouts(q, k, v):
    """The same numbers lying as a model leaves them: slices of one product, a transposed matrix."""
    joint = torch.stack([k, v]).permute(1, 3, 0, 2, 4).contiguous()  # B, N, 2, H, d
    k, v = joint.permute(2, 0, 3, 1, 4)
    q = q.mT.contiguous().mT if q.shape[-2] % 2 else torch.cat([q, q], -1)[..., : q.shape[-1]]
    return q, k, v


def run(function, inputs, ratio, gradients, dtype=None, **options):
    """Return outputs and gradients, in float64."""
    leaves = [(x if dtype is None else x.to(dtype)).detach().requires_grad_() for x in inputs]
    outputs = function(*leaves, ratio, **options)
    pairs = [(o, g.to(o)) for o, g in zip(outputs, gradients, strict=True) if o is not None and g is not None]
    torch.autograd.backward(*zip(*pairs, strict=True))
    results = [x.detach().double().cpu() for x in outputs if x is not None]
    return results + [x.grad.double().cpu() for x in leaves]


def poisoned(*size, **options):
    """Stand in for torch.empty: an element that a kernel leaves unwritten becomes visible."""
    return torch.full(size, math.nan, **options)


def new_poisoned(like, *size, dtype=None, device=None):
    """The same for Tensor.new_empty."""
    return poisoned(*size, dtype=dtype or like.dtype, device=device or like.device)


def sizes_of_terms(inputs, gradients, intact=True, masked=True):
    """Norms of dQ and dK when every product dP of a logit counts by its magnitude: what float rounding is relative to.

    With one key the softmax is constant and the true gradients are 0, while their terms are not.
    """
    q, k, v = (x.double() for x in inputs)
    relation = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    used = [g.double() for g, wanted in zip(gradients, (intact, masked), strict=True) if wanted and g is not None]
    terms = relation * sum((g @ v.mT).abs() for g in used) / math.sqrt(q.shape[-1])
    return (terms @ k.abs()).norm(), (terms.mT @ q.abs()).norm()


def check(monkeypatch, shape, ratio, dtype, seed=0, grads=(True, True), **options):
    inputs = draw(*shape, ratio, dtype, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    gradients = [torch.randn(inputs[0].shape, generator=generator).to(dtype) if wanted else None for wanted in grads]
    expected = run(reference.relation_attention, inputs, ratio, gradients, torch.float64, **options)
    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(torch.Tensor, "new_empty", new_poisoned)
    moved = [x.to(DEVICE) for x in inputs]
    got = run(
        relation_attention,
        layouts(*moved),
        ratio,
        [g if g is None else g.to(DEVICE) for g in gradients],
        **options,
    )
    assert len(got) == len(expected)
    scales = [x.norm() for x in expected]
    # A sum of terms that cancel keeps the rounding of the terms; a twentieth, because roundings cancel too.
    for place, size in zip((-3, -2), sizes_of_terms(inputs, gradients, **options), strict=True):
        scales[place] = max(scales[place], 0.05 * size)
    for result, wanted, scale in zip(got, expected, scales, strict=True):
        assert result.shape == wanted.shape
        assert (result - wanted).norm() <= BOUNDS[dtype] * scale


def sampled():
    """Every shape at all ratios on a GPU; at one or two where it is interpreted, a second for 200 x 200."""
    for number, shape in enumerate(SHAPES):
        few = [RATIOS[number % 5], RATIOS[(number + 3) % 5]][: 1 if max(shape) > 100 else 2]
        for ratio in few if INTERPRETED else RATIOS:
            yield shape, ratio


def enlarge(monkeypatch):
    """Give the interpreter blocks of many rows: its time goes by the number of blocks."""
    row_tiles, key_tiles = path.row_tiles, path.key_tiles
    large = lambda tiles, **sizes: tiles._replace(constants={**tiles.constants, **sizes})  # noqa: E731
    monkeypatch.setattr(path, "row_tiles", lambda *size, backward: large(row_tiles(*size, backward=backward), ROWS=256))
    monkeypatch.setattr(path, "key_tiles", lambda *size: large(key_tiles(*size), ROWS=256, KEYS=256))


@pytest.mark.parametrize(("shape", "ratio"), list(sampled()))
def test_float32_is_the_reference(monkeypatch, shape, ratio):
    if INTERPRETED and max(shape[:2]) > 100:
        enlarge(monkeypatch)
    check(monkeypatch, shape, ratio, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(50, 50, 64), (65, 17, 32)])
def test_a_program_for_all_rows_of_a_head(monkeypatch, shape, dtype):
    """What training launches: with so many samples x heads, one program goes through every block of rows."""
    monkeypatch.setattr(path, "MANY_HEADS", 1)
    seen = []
    rows = path.row_blocks
    monkeypatch.setattr(path, "row_blocks", lambda *sizes: seen.append(rows(*sizes)) or seen[-1])
    check(monkeypatch, shape, 0.75, dtype)
    assert all(blocks > 1 and programs == 1 for blocks, programs in seen)
    assert len(seen) == 2


def test_one_program_a_head_gives_what_many_give(monkeypatch):
    inputs = [x.to(DEVICE) for x in draw(65, 50, 64, 0.5)]
    gradients = [torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)] * 2
    many = run(relation_attention, inputs, 0.5, gradients)
    monkeypatch.setattr(path, "MANY_HEADS", 1)
    one = run(relation_attention, inputs, 0.5, gradients)
    assert all(torch.equal(a, b) for a, b in zip(many, one, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(100, 100, 64), (48, 48, 80), (17, 65, 32)])
def test_half_types_are_within_their_bounds(monkeypatch, shape, dtype):
    check(monkeypatch, shape, 0.75, dtype)


@pytest.mark.parametrize("shape", [(50, 50, 64), (17, 65, 80)])
def test_one_output_alone(monkeypatch, shape):
    check(monkeypatch, shape, 0.5, torch.float32, intact=False, grads=(False, True))
    check(monkeypatch, shape, 0.5, torch.float32, masked=False, grads=(True, False))


@pytest.mark.parametrize("grads", [(True, False), (False, True)])
def test_an_unused_output_has_no_gradient(monkeypatch, grads):
    check(monkeypatch, (50, 48, 64), 0.5, torch.float32, grads=grads)


def test_one_pass_gives_what_two_give():
    q, k, v = (x.to(DEVICE) for x in draw(65, 50, 64, 0.5))
    intact, masked = relation_attention(q, k, v, 0.5)
    only, none = relation_attention(q, k, v, 0.5, masked=False)
    assert torch.equal(only, intact)
    assert none is None
    none, only = relation_attention(q, k, v, 0.5, intact=False)
    assert torch.equal(only, masked)
    assert none is None
    assert relation_attention(q, k, v, 0.5, intact=False, masked=False) == (None, None)


def test_no_queries_give_nothing():
    q, k, v = (x.to(DEVICE) for x in draw(4, 5, 16, 0.5))
    results = run(relation_attention, (q[:, :, :0], k, v), 0.5, [q[:, :, :0]] * 2)
    assert [tuple(x.shape) for x in results] == [(2, 3, 0, 16)] * 3 + [(2, 3, 5, 16)] * 2
    assert all((x == 0).all() for x in results)


def whole_numbers(queries, keys, width, largest, seed=0):
    """q and k whose products are exact in float32, whatever the order of the sum."""
    generator = torch.Generator().manual_seed(seed)
    new = lambda n: torch.randint(-largest, largest + 1, (1, 1, n, width), generator=generator).float()  # noqa: E731
    return new(queries), new(keys)


def relations(q, k, ratio):
    """R^M itself, (1, 1, queries, keys), from outputs with V = 1, and the same as dV sees it, from gradients of 1."""
    queries, keys, width = q.shape[2], k.shape[2], q.shape[3]
    forward, backward = [], []
    for start in range(0, keys, width):
        v = torch.eye(width, device=DEVICE)[None, None]
        v = torch.nn.functional.pad(v, (0, 0, start, max(0, keys - start - width)))[:, :, :keys].contiguous()
        forward.append(relation_attention(q, k, v, ratio)[1][..., : keys - start])
    v = torch.zeros(1, 1, keys, width, device=DEVICE, requires_grad=True)
    for start in range(0, queries, width):
        one = torch.eye(width, device=DEVICE)[None, None]
        one = torch.nn.functional.pad(one, (0, 0, start, max(0, queries - start - width)))[:, :, :queries].contiguous()
        masked = relation_attention(q, k, v, ratio, intact=False)[1]
        backward.append(torch.autograd.grad(masked, v, one)[0].mT[:, :, : queries - start])
    return torch.cat(forward, -1), torch.cat(backward, -2)


@pytest.mark.parametrize("largest", [1, 200])
@pytest.mark.parametrize(("queries", "keys"), [(64, 50), (40, 100)])
def test_forward_and_backward_remove_exactly_what_the_reference_removes(largest, queries, keys):
    """With entries of -1, 0 and 1 every row has ties; with 200 hardly any has."""
    q, k = whole_numbers(queries, keys, 64, largest)
    q /= 16 * largest  # a power of two times 1 / largest: P stays above 0, and all products are rounded alike
    q = (q * 2**12).round() / 2**12
    logits = q.double() @ k.double().mT
    forward, backward = relations(q.to(DEVICE), k.to(DEVICE), 0.5)
    removed = logits >= logits.topk(masked_count(0.5, keys), -1).values[..., -1:]
    assert largest > 1 or (removed.sum(-1) > masked_count(0.5, keys)).any(), "no ties drawn"
    assert torch.equal(forward.cpu() == 0, removed)
    assert torch.equal(backward.cpu() == 0, removed)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 1.0])
def test_values_that_are_no_numbers(ratio):
    q, k, v = draw(6, 9, 16, 0.5)
    q[0, 0, 2, 1] = math.nan
    k[0, 1, 3, :] = 0
    k[0, 1, 3, 0] = math.inf  # +inf, -inf by the sign of q
    expected = reference.relation_attention(q, k, v, ratio)
    got = relation_attention(*(x.to(DEVICE) for x in (q, k, v)), ratio)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, equal_nan=True, rtol=1e-5, atol=1e-6)
    assert got[0][0, 0, 2].isnan().all()
    assert got[1][0, 0, 2].isnan().all()


@pytest.mark.parametrize(("keys", "count"), [(197, 148), (48, 24), (577, 144), (2, 1)])
def test_thresholds_are_exact(keys, count):
    rows = 20_000 if INTERPRETED else 1_000_000
    generator = torch.Generator(DEVICE).manual_seed(0)
    s = torch.randn(rows, keys, generator=generator, device=DEVICE)
    assert mismatches(s, count) == 0
    # Rows of a few ulps, of huge and of tiny numbers, with ties, with zeros of both signs.
    for odd in (
        1 + s[:500] * 1e-7,
        s[:500] * 1e38,
        s[:500] * 1e-44,
        (s[:500] * 2).round(),
        s[:500].sign() * 0.0,
        s[:500].exp() ** 9,
    ):
        assert mismatches(odd, count) == 0


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_thresholds_of_infinities(count):
    inf = math.inf
    s = torch.tensor(
        [[1, inf, 2, inf, 0], [-inf, -inf, 3, -inf, -inf], [-inf] * 5, [inf] * 5, [-0.0, 0.0, -1, 0.0, -inf]],
        device=DEVICE,
    )
    assert mismatches(s, count) == 0


def test_what_the_kernels_do_not_take_goes_to_the_reference(monkeypatch):
    monkeypatch.setattr(path, "forward", None)
    q = torch.randn(1, 1, 2, 16, device=DEVICE)
    long = torch.randn(1, 1, LARGEST_KEYS + 1, 16, device=DEVICE)
    wide = torch.randn(1, 1, 2, LARGEST_WIDTH + 1, device=DEVICE)
    for inputs in ((q, long, long), (wide, wide, wide), (q.double(),) * 3):
        for got, wanted in zip(
            relation_attention(*inputs, 0.5), reference.relation_attention(*inputs, 0.5), strict=True
        ):
            assert torch.equal(got, wanted)
    with pytest.raises(TypeError, match="NoneType"):  # that the kernels are what would have been called
        relation_attention(q, q, q, 0.5)
    with pytest.raises(ValueError, match="outside"):
        relation_attention(q, q, q, 1.5)
