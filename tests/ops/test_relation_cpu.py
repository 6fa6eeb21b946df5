"""The compiled CPU path against the float64 reference: outputs, gradients, selection, rules for odd inputs, memory.

Queries and keys lie on a grid, so that logits are exact in float32 too: both precisions then select the same entries,
ties included, and every difference is arithmetic.
"""

import functools
import itertools
import math

import pytest
import torch

from mrmfast import native
from mrmfast.ops.relation_masking import cpu, operators, reference, relation_attention, stacked_relation_attention

pytestmark = pytest.mark.skipif(not cpu.available(), reason="no C++ compiler here")

LENGTHS = [(n, n) for n in (1, 2, 17, 48, 50, 63, 64, 65, 196, 197, 577)] + [(197, 48), (48, 197), (1, 65), (65, 1)]
RATIOS, WIDTHS = (0.0, 0.25, 0.5, 0.75, 1.0), (16, 32, 64, 80, 128)
FORMS = ((True, True), (True, False), (False, True))
# Relative to the norm of the whole tensor. bfloat16: one rounding to 8 bits on the way out, no more.
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@functools.cache
def pairwise():
    """Cases that hold every pair of length, ratio, width, form and dtype (greedily, the lengths in turn)."""
    axes = (LENGTHS, RATIOS, WIDTHS, FORMS, tuple(BOUNDS))
    left = {
        (i, a, j, b) for i, j in itertools.combinations(range(5), 2) for a, b in itertools.product(axes[i], axes[j])
    }
    cases = []
    pairs = lambda case: {(i, case[i], j, case[j]) for i, j in itertools.combinations(range(5), 2)}  # noqa: E731
    while left:
        best = max(itertools.product(*axes), key=lambda case: len(pairs(case) & left))
        left -= pairs(best)
        cases.append(best)
    return cases


def grid(generator, *shape):
    """Multiples of 1/8 in [-2, 2): exact in bfloat16, their products' sums exact in float32."""
    return torch.randint(-16, 16, shape, generator=generator) / 8


def draw(n, m, d, dtype, seed=0):
    """q, k, v as views of one projection (or of two, for a cross relation), and gradients of both outputs."""
    generator, batch = torch.Generator().manual_seed(seed), 2 if n < 100 else 1
    q = grid(generator, batch, n, 2 * d).to(dtype).unflatten(-1, (2, d)).transpose(1, 2)
    k, v = grid(generator, batch, m, 4 * d).to(dtype).chunk(2, -1)
    k, v = (x.unflatten(-1, (2, d)).transpose(1, 2) for x in (k, v))
    v = torch.randn(v.shape, generator=generator).to(dtype)
    return [q, k, v], [torch.randn(q.shape, generator=generator).to(dtype) for _ in range(2)]


def outputs_and_gradients(function, inputs, gradients, *arguments, **options):
    inputs = [x.detach().requires_grad_() for x in inputs]
    outputs = [out for out in function(*inputs, *arguments, **options) if out is not None]
    torch.autograd.backward(outputs, [g.to(outputs[0].dtype) for g in gradients][: len(outputs)])
    return [*outputs, *(x.grad for x in inputs)]


def difference(got, expected):
    norm = expected.detach().norm()
    return float((got.detach().double() - expected.detach()).norm() / (norm if norm else 1.0))


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_outputs_and_gradients_equal_the_float64_reference(dtype):
    for (n, m), ratio, d, (intact, masked), _ in (case for case in pairwise() if case[-1] == dtype):
        inputs, gradients = draw(n, m, d, dtype)
        options = {"intact": intact, "masked": masked}
        expected = outputs_and_gradients(
            reference.relation_attention, [x.double() for x in inputs], gradients, ratio, **options
        )
        got = outputs_and_gradients(relation_attention, inputs, gradients, ratio, **options)
        for place, (a, b) in enumerate(zip(got, expected, strict=True)):
            assert a.dtype == dtype
            assert difference(a, b) <= BOUNDS[dtype], (n, m, ratio, d, options, place)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_float32_rounded_once(dtype):
    inputs, gradients = draw(50, 65, 32, dtype)
    got = outputs_and_gradients(relation_attention, inputs, gradients, 0.5)
    wide = outputs_and_gradients(relation_attention, [x.float() for x in inputs], gradients, 0.5)
    for a, b in zip(got, wide, strict=True):
        assert torch.equal(a, b.to(dtype))


def test_the_same_entries_are_masked_in_a_million_rows():
    generator = torch.Generator().manual_seed(1)
    rows = ties = 0
    for ratio, m in itertools.product((0.1, 0.25, 0.5, 0.75), (17, 33)):
        q, k = (torch.randint(-128, 128, (50, 10, n, 16), generator=generator) / 128 for n in (250, m))
        identity = torch.eye(m).expand(50, 10, m, m)  # V = 1 makes the output R^M itself
        kept = relation_attention(q, k, identity, ratio, intact=False)[1] != 0
        logits = q.double() @ k.double().transpose(-2, -1)
        count = reference.masked_count(ratio, m)
        expected = logits < logits.topk(count).values[..., -1:]
        assert torch.equal(kept, expected)
        rows += expected[..., 0].numel()
        ties += int((expected.sum(-1) != m - count).sum())
    assert rows == 1_000_000
    assert ties > 100  # the rule for them was needed


@pytest.mark.parametrize("n", [2, 3, 8, 17, 64, 197, 1000])
def test_thresholds_are_exact_for_any_scores(n):
    """One feature and q = 1: the keys are the logits."""
    generator = torch.Generator().manual_seed(n)
    normal = torch.randn(40, n, generator=generator)
    scores = {
        "normal": normal,
        "far from zero": normal * 1e-3 + 1e4,
        "heavy tails": normal**9,
        "over all exponents": normal.sign() * 10 ** (30 * normal).clamp(-37, 37),
        "two clusters": (normal > 0) * 100.0 + normal * 1e-4,
        "few values": normal.round(),
        "constant": torch.full_like(normal, -3.0),
        "one outlier": torch.cat([normal[:, 1:] * 1e-6, torch.full((40, 1), 1e6)], 1),
        "zeros of both signs": torch.where(normal > 0, 0.0, -0.0),
        "zeros and the least number": torch.where(normal > 0, 1e-45, -0.0),
        "mostly -inf": normal.masked_fill(normal < 0.5, -math.inf),
        "some infinite": normal.masked_fill(normal < -1, -math.inf).masked_fill(normal > 1, math.inf),
    }
    for name, values in scores.items():
        k = values[:, None, :, None]
        for count in {1, 2, n // 4, n // 2, n * 3 // 4, n - 1} - {0, n}:
            got = operators.forward([torch.ones(40, 1, 1, 1), k, k], count, "both")[1][:, 0, 0, 2]
            assert torch.equal(got, values.topk(count).values[:, -1]), (name, count)


def test_ties_at_the_threshold_are_all_masked():
    k = torch.tensor([3.0, 2.0, 2.0, 1.0]).view(1, 1, 4, 1)
    _, masked = relation_attention(torch.ones(1, 1, 1, 1), k, torch.eye(4).view(1, 1, 4, 4), 0.5)
    assert (masked[0, 0, 0] != 0).tolist() == [False, False, False, True]
    for ratio, left in ((0.0, [False] * 9), (0.1, [True] * 9)):
        _, masked = relation_attention(
            torch.ones(1, 1, 5, 16), torch.ones(1, 1, 9, 16), torch.eye(9)[None, None], ratio
        )
        assert (masked[0, 0, 2] == 0).tolist() == left


def test_nothing_and_everything_masked_are_exact():
    inputs, gradients = draw(50, 65, 32, torch.float32)
    intact, masked = relation_attention(*inputs, 0.0)
    assert torch.equal(intact, masked)
    assert (relation_attention(*inputs, 1.0)[1] == 0).all()
    alone = outputs_and_gradients(relation_attention, inputs, gradients, 1.0, intact=False)
    assert all((x == 0).all() for x in alone)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_nan_and_infinities_are_as_in_the_reference(ratio, form):
    """Row by row: one feature and q = 1, so that keys are logits, a batch for each kind of row."""
    odd = [
        [math.nan],
        [math.inf],
        [-math.inf],
        [math.nan, math.inf],
        [math.nan] * 3,
        [math.inf, -math.inf],
        [-math.inf] * 9,
    ]
    k = torch.linspace(-1, 1, 9).repeat(len(odd), 1)
    for row, values in zip(k, odd, strict=True):
        row[3 : 3 + len(values)] = torch.tensor(values[:6])
        row[: len(values) - 6 if len(values) > 6 else 0] = torch.tensor(-math.inf)
    inputs = [torch.ones(len(odd), 1, 2, 1), k[:, None, :, None], torch.randn(len(odd), 1, 9, 4)]
    gradients = [torch.randn(len(odd), 1, 2, 4) for _ in range(2)]
    options = dict(zip(("intact", "masked"), form, strict=True))
    got = outputs_and_gradients(relation_attention, inputs, gradients, ratio, **options)
    expected = outputs_and_gradients(reference.relation_attention, inputs, gradients, ratio, **options)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_any_strides_of_inputs_and_gradients():
    (q, k, v), gradients = draw(17, 23, 16, torch.float32)
    plain = outputs_and_gradients(relation_attention, [x.contiguous() for x in (q, k, v)], gradients, 0.5)
    assert all(x.transpose(1, 2).is_contiguous() for x in plain[:2])  # so that heads join without a copy
    scattered = [x.mT.contiguous().mT for x in (q, k, v)]
    spread = [torch.stack([g, g], -1)[..., 0] for g in gradients]
    for a, b in zip(outputs_and_gradients(relation_attention, scattered, spread, 0.5), plain, strict=True):
        assert torch.equal(a, b)
    expanded = [x[:1, :1].expand_as(x) for x in (q, k, v)]
    ones = [torch.ones(()).expand_as(g) for g in gradients]
    expected = outputs_and_gradients(reference.relation_attention, [x.double() for x in expanded], ones, 0.5)
    for a, b in zip(outputs_and_gradients(relation_attention, expanded, ones, 0.5), expected, strict=True):
        assert difference(a, b) <= 2e-6


def test_an_output_that_nobody_uses_has_no_gradient_to_add():
    inputs, gradients = draw(50, 50, 16, torch.float32)
    for used in (0, 1):
        leaves = [x.detach().requires_grad_() for x in inputs]
        relation_attention(*leaves, 0.5)[used].backward(gradients[used])
        alone = {"intact": used == 0, "masked": used == 1}
        expected = outputs_and_gradients(relation_attention, inputs, [gradients[used]], 0.5, **alone)
        for leaf, b in zip(leaves, expected[1:], strict=True):
            assert torch.equal(leaf.grad, b)


def test_values_may_be_wider_or_narrower_than_keys():
    (q, k, v), _ = draw(17, 23, 16, torch.float32)
    for width in (3, 40):
        inputs = [q, k, torch.randn(*v.shape[:3], width)]
        gradients = [torch.randn(*q.shape[:3], width) for _ in range(2)]
        expected = outputs_and_gradients(reference.relation_attention, [x.double() for x in inputs], gradients, 0.5)
        for a, b in zip(outputs_and_gradients(relation_attention, inputs, gradients, 0.5), expected, strict=True):
            assert difference(a, b) <= 2e-6


@pytest.mark.parametrize("form", FORMS)
def test_every_element_is_written_and_no_padding_is_read(form):
    options = dict(zip(("intact", "masked"), form, strict=True))
    torch.use_deterministic_algorithms(True)  # torch.empty is then full of NaN, the workspace too
    try:
        for n, m, d in ((1, 1, 16), (49, 50, 80), (65, 63, 20), (50, 197, 64)):
            inputs, gradients = draw(n, m, d, torch.float32)
            for result in outputs_and_gradients(relation_attention, inputs, gradients, 0.5, **options):
                assert result.isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_results_do_not_depend_on_the_number_of_threads():
    inputs, gradients = ([x.repeat(3, 2, 1, 1) for x in group] for group in draw(97, 97, 64, torch.float32))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(outputs_and_gradients(relation_attention, inputs, gradients, 0.75))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.filterwarnings("ignore:Input #. requires gradient and is not a double")
def test_gradients_pass_gradcheck_away_from_ties():
    generator = torch.Generator().manual_seed(2)
    q = torch.rand(1, 1, 4, 3, generator=generator) + 0.5
    k = torch.linspace(-1, 1, 6).view(1, 1, 6, 1) * torch.ones(3) + 0.01 * torch.rand(1, 1, 6, 3, generator=generator)
    leaves = [x.requires_grad_() for x in (q, k, torch.randn(1, 1, 6, 3, generator=generator))]
    check = torch.autograd.gradcheck
    assert check(lambda *qkv: relation_attention(*qkv, 0.5), leaves, eps=2e-3, atol=2e-3, rtol=1e-2, nondet_tol=0.0)


def test_nothing_of_n_by_n_is_saved():
    n, saved = 256, []
    inputs = [torch.randn(1, 1, n, 16, requires_grad=True) for _ in range(3)]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        relation_attention(*inputs, 0.5)
    assert sorted(saved) == [n * operators.DEVICES["cpu"].statistics, n * 16, n * 16, n * 16]


@pytest.mark.parametrize("form", ["intact", "masked", "both", "halves"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_operators_are_declared_as_torch_wants_them(form, packed):
    inputs, _ = draw(9, 9, 8, torch.float32)
    projections = [torch.stack(inputs)] if packed else inputs
    out, rows = operators.forward(projections, 3, form)
    names = ("test_schema", "test_faketensor")
    every = (*names, "test_autograd_registration", "test_aot_dispatch_dynamic")
    # Rows of which nothing is masked have the threshold NaN, which the last check holds to be unequal to itself.
    chosen = every if form in ("masked", "both") else every[:3]
    leaves = [x.detach().requires_grad_() for x in projections]
    torch.library.opcheck(operators.forward, (leaves, 3, form), test_utils=chosen)
    torch.library.opcheck(operators.backward, (projections, rows, out, 3, form), test_utils=names, rtol=0, atol=0)


@pytest.mark.parametrize("form", ["intact", "masked", "both", "halves"])
@pytest.mark.parametrize(("packed", "width"), [(False, 16), (True, 16), (True, 20)])
def test_stacked_branches_are_the_reference_ones_to_the_bit_of_single_calls(form, packed, width):
    """One call for both branches, from three projections or a packed one, gives what a call for each branch gives."""
    generator = torch.Generator().manual_seed(3)
    joint = grid(generator, 4, 33, 3 * 2 * width)
    qkv = joint.unflatten(-1, (3, 2, width)).permute(2, 0, 3, 1, 4)
    leaves = [x.detach().requires_grad_() for x in ([qkv] if packed else qkv)]
    out = stacked_relation_attention(leaves, 0.5, form)
    assert out.transpose(1, 2).is_contiguous()  # heads join without a copy
    upstream = torch.randn(out.shape, generator=generator)
    grads = torch.autograd.grad(out, leaves, upstream)
    if packed:
        assert grads[0].permute(1, 3, 0, 2, 4).is_contiguous()  # so does the gradient of one projection
        grads = grads[0].unbind()
    plain = [x.detach().requires_grad_() for x in qkv]
    parts = {"intact": [(slice(0, 4), 0)], "masked": [(slice(0, 4), 1)], "both": [(slice(0, 4), 0), (slice(0, 4), 1)]}
    parts["halves"] = [(slice(0, 2), 0), (slice(2, 4), 1)]
    alone = torch.cat([relation_attention(*(x[where] for x in plain), 0.5)[which] for where, which in parts[form]])
    assert torch.equal(out, alone)
    for a, b in zip(grads, torch.autograd.grad(alone, plain, upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-6)
    wide = [x.detach().double().requires_grad_() for x in qkv]
    expected = stacked_relation_attention(wide, 0.5, form)
    assert difference(out, expected) <= 2e-6
    for a, b in zip(grads, torch.autograd.grad(expected, wide, upstream.double()), strict=True):
        assert difference(a, b) <= 2e-6


def test_it_compiles_to_one_graph():
    inputs, gradients = draw(17, 17, 16, torch.float32)
    compiled = torch.compile(relation_attention, fullgraph=True, backend="aot_eager")
    plain = outputs_and_gradients(relation_attention, inputs, gradients, 0.5)
    for a, b in zip(outputs_and_gradients(compiled, inputs, gradients, 0.5), plain, strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()


def test_without_a_compiler_the_reference_answers_after_a_warning(monkeypatch, tmp_path):
    inputs, _ = draw(9, 9, 8, torch.float32)
    monkeypatch.setattr(native, "cache_folder", lambda: tmp_path)
    monkeypatch.setenv("CXX", str(tmp_path / "absent"))
    cpu.library.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="relation_masking: no compiled CPU path"):
            got = relation_attention(*inputs, 0.5)
    finally:
        cpu.library.cache_clear()
    for a, b in zip(got, reference.relation_attention(*inputs, 0.5), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("change", [lambda x: x.double(), lambda x: x[:, :, :0], lambda x: x[:, :1].expand_as(x)[:0]])
def test_what_the_kernel_does_not_take_goes_to_the_reference(change):
    inputs, _ = draw(9, 9, 8, torch.float32)
    q = change(inputs[0])
    k, v = (x.to(q.dtype)[: len(q)] for x in inputs[1:])
    for a, b in zip(relation_attention(q, k, v, 0.5), reference.relation_attention(q, k, v, 0.5), strict=True):
        assert torch.equal(a, b)
