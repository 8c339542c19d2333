"""Triton's kernels compile, which needs no GPU: for an H100, and for one with less memory."""

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from mmtok.nn import fused_nll, fused_step  # noqa: E402

SIZES = {90: 227, 89: 99}  # compute capability -> KiB of shared memory that a program may have


def shared_kib(kernel, kinds, constants, capability=90, **options):
    """Compile a kernel; KiB of shared memory of a program."""
    names = kernel.arg_names
    signature = dict(zip(names, kinds, strict=False))
    signature |= dict.fromkeys(constants, "constexpr")
    assert list(signature) == names
    source = ASTSource(kernel, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.asm["cubin"]
    return compiled.metadata.shared / 1024


def test_the_kernels_of_the_cross_entropy_compile():
    kinds = ["*bf16", "*i64", "*i1", "*fp32", "*fp32", "i32"]
    assert shared_kib(fused_nll._row_sums_kernel, kinds, {"BLOCK": fused_nll.BLOCK}) < 99
    kinds.pop(4)
    assert shared_kib(fused_nll._d_logits_kernel, kinds, {"BLOCK": fused_nll.BLOCK}) < 99


def test_the_kernel_of_attention_compiles():
    kinds = ["*bf16", "*bf16", "*fp32", "*fp32", "*i64", "*i64", "*bf16", "i32", "i32", "i32"]
    constants = {"HALF": 32, "HALF_BLOCK": 32, "TIME": fused_step.TIME_BLOCK}
    assert shared_kib(fused_step._attend_kernel, [*kinds, "fp32"], constants) < 99


@pytest.mark.parametrize(
    ("capability", "rows", "kind"),
    [(90, 1, "bf16"), (90, 16, "bf16"), (90, 64, "bf16"), (90, 64, "fp32"), (89, 64, "fp32")],
)
def test_the_kernel_of_products_fits(capability, rows, kind):
    out, inner = fused_step._tile(8192, 2048, rows)
    kinds = ["*fp32", f"*{kind}", f"*{kind}", "*fp32", f"*{kind}", "i32", "i32", "i32", "fp32"]
    constants = {"NORM": True, "SWIGLU": True, "ADD": False, "ROWS": rows, "OUT": out, "IN": inner}
    size = {"bf16": 2, "fp32": 4}[kind]
    tile = inner * (4 * rows + 2 * size * out)
    stages = fused_step._n_stages(tile, SIZES[capability] * 1024)
    found = shared_kib(
        fused_step._linear_kernel, kinds, constants, capability, num_warps=4, num_stages=stages
    )
    assert found <= SIZES[capability]
