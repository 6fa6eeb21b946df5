"""The keys under which Inductor would keep the code of a graph with our operators; no code is generated."""

import torch
from torch._inductor import codecache, compile_fx

from mrmfast.ops.genome_unpack import unpack_genome
from mrmfast.ops.relation_masking import stacked_relation_attention
from mrmfast.training.compile import OPTIONS, keep_code
from tests.helpers.objectives import SPEC, batch


def graph_keys():
    """Trace a graph, run it forward and backward, and return the key of either half."""
    keep_code()
    keys = []

    def record(graph, inputs, **options):
        keys.append(codecache.compiled_fx_graph_hash(graph, inputs, options, [])[0])

        def run(arguments):
            values = list(arguments)
            arguments.clear()
            return graph.forward(*values)

        run._boxed_call = True
        return run

    def backend(graph, inputs):
        return compile_fx.compile_fx(graph, inputs, inner_compile=record, config_patches=OPTIONS)

    @torch.compile(fullgraph=True, dynamic=False, backend=backend)
    def loss(joint, packed, present, fill):
        x_BF, observed_BF = unpack_genome(packed, present, SPEC.modalities, fill)
        related = stacked_relation_attention([joint], 0.5, "both")
        return related.square().sum() + (x_BF * observed_BF).sum()

    _, packed, present = batch()
    joint = torch.randn(3, 6, 2, 5, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss(joint, packed, present, SPEC.fill).backward()
    assert joint.grad.isfinite().all()
    return keys
