"""The reader of compiled programs on a program written by hand, each figure counted by hand."""

import pytest

from benchmarks import hlo

PROGRAM = """HloModule jit_step, is_scheduled=true

%slice_one (p0: f32[12,64,32], p1: s32[]) -> bf16[64,32] {
  %p0 = f32[12,64,32]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %sliced = f32[1,64,32]{2,1,0} dynamic-slice(%p0, %p1, %zero, /*index=3*/%zero), dynamic_slice_sizes={1,64,32}
  %joined = f32[64,32]{1,0} bitcast(%sliced)
  ROOT %rounded = bf16[64,32]{1,0} convert(%joined)
}

%keep_one (p0: bf16[12,8,32], p1: bf16[8,32], p2: s32[]) -> bf16[12,8,32] {
  %p0 = bf16[12,8,32]{2,1,0} parameter(0)
  %p1 = bf16[8,32]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %joined = bf16[1,8,32]{2,1,0} bitcast(%p1)
  ROOT %kept = bf16[12,8,32]{2,1,0} dynamic-update-slice(%p0, %joined, %p2, %zero, %zero)
}

%body (state: (s32[], bf16[8,64], f32[12,64,32], bf16[12,8,32])) -> (s32[], bf16[8,64], f32[12,64,32], bf16[12,8,32]) {
  %state = (s32[], bf16[8,64]{1,0}, f32[12,64,32]{2,1,0}, bf16[12,8,32]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = bf16[8,64]{1,0} get-tuple-element(%state), index=1
  %weights = f32[12,64,32]{2,1,0} get-tuple-element(%state), index=2
  %kept = bf16[12,8,32]{2,1,0} get-tuple-element(%state), index=3
  %one = bf16[64,32]{1,0} fusion(%weights, %i), kind=kLoop, calls=%slice_one, metadata={op_name="jit(f)/while"}
  %mm = (bf16[8,32]{1,0}, s8[4194304]{0}) custom-call(%x, %one), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}
  %y = bf16[8,32]{1,0} get-tuple-element(%mm), index=0
  %all = bf16[12,8,32]{2,1,0} fusion(%kept, %y, %i), kind=kLoop, calls=%keep_one
  ROOT %next = (s32[], bf16[8,64]{1,0}, f32[12,64,32]{2,1,0}, bf16[12,8,32]{2,1,0}) tuple(%i, %x, %weights, %all)
}

%condition (state: (s32[], bf16[8,64], f32[12,64,32], bf16[12,8,32])) -> pred[] {
  %state = (s32[], bf16[8,64]{1,0}, f32[12,64,32]{2,1,0}, bf16[12,8,32]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %most = s32[] constant(12)
  ROOT %less = pred[] compare(%i, %most), direction=LT
}

ENTRY %main (a: f32[4,5], b: f32[5,6], c: f32[4,6]) -> f32[4,6] {
  %a = f32[4,5]{1,0} parameter(0)
  %b = f32[5,6]{1,0} parameter(1)
  %c = f32[4,6]{1,0} parameter(2)
  %start = (s32[], bf16[8,64]{1,0}, f32[12,64,32]{2,1,0}, bf16[12,8,32]{2,1,0}) tuple()
  %loop = (s32[], bf16[8,64]{1,0}, f32[12,64,32]{2,1,0}, bf16[12,8,32]{2,1,0}) while(%start), \
condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"12"},"known_init_step":{"init":"0"}}
  %sum-start = f32[4,6]{1,0} all-reduce-start(%c), channel_id=1, to_apply=%add
  %sum = f32[4,6]{1,0} all-reduce-done(%sum-start)
  ROOT %copied = f32[4,6]{1,0} copy(%sum)
}
"""


def by_name(text: str = PROGRAM) -> dict[str, hlo.Kernel]:
    return {kernel.name: kernel for kernel in hlo.kernels(text)}


def test_kernels_are_what_runs_on_the_device_as_often_as_it_runs() -> None:
    found = {name: kernel.runs for name, kernel in by_name().items()}
    assert found == {"one": 12, "mm": 12, "all": 12, "less": 12, "sum-start": 1, "copied": 1}


def test_bytes_are_those_that_are_read_and_written() -> None:
    found = {name: kernel.bytes for name, kernel in by_name().items()}
    assert found["one"] == 64 * 32 * 4 + 4 + 64 * 32 * 2  # one slice of twelve, its index, the result
    assert found["mm"] == 2 * (8 * 64 + 64 * 32 + 8 * 32)  # without the room that the library works in
    assert found["all"] == 2 * 2 * 8 * 32 + 4  # the update read and written, the rest left where it is
    assert found["copied"] == 2 * 4 * 4 * 6


def test_products_are_named_by_type_and_shape() -> None:
    (product,) = by_name()["mm"].products
    assert product == ("bf16[8,64] x bf16[64,32] -> bf16[8,32]", "bf16", 2 * 8 * 64 * 32)


def test_collectives_and_what_only_moves_numbers_are_told() -> None:
    found = by_name()
    assert [name for name, kernel in found.items() if kernel.is_collective] == ["sum-start"]
    assert found["sum-start"].arrays == [hlo.Array("f32", (4, 6))]
    assert found["copied"].moves == {"copy"}
    assert not found["mm"].moves


def library(target: str, operands: list[str], result: str, rest: str = "") -> hlo.Kernel:
    lines = [f"  %p{i} = {text} parameter({i})" for i, text in enumerate(operands)]
    names = ", ".join(f"%p{i}" for i in range(len(operands)))
    call = f'  ROOT %call = {result} custom-call({names}), custom_call_target="{target}"{rest}'
    (kernel,) = hlo.kernels("\n".join(["ENTRY %main (p: f32[]) -> f32[] {", *lines, call, "}"]))
    return kernel


@pytest.mark.parametrize(
    ("target", "operands", "result"),
    [
        ("__cudnn$convForward", ["bf16[2,9,9,3]{3,2,1,0}", "bf16[7,5,5,3]{3,2,1,0}"], "bf16[2,5,5,7]{3,2,1,0}"),
        ("__cudnn$convBiasActivationForward", ["bf16[2,9,9,3]{3,2,1,0}", "bf16[7,5,5,3]{3,2,1,0}"], "bf16[2,5,5,7]{}"),
        ("__cudnn$convBackwardInput", ["bf16[2,5,5,7]{3,2,1,0}", "bf16[7,5,5,3]{3,2,1,0}"], "bf16[2,9,9,3]{3,2,1,0}"),
        ("__cudnn$convBackwardFilter", ["bf16[2,9,9,3]{3,2,1,0}", "bf16[2,5,5,7]{3,2,1,0}"], "bf16[7,5,5,3]{3,2,1,0}"),
    ],
)
def test_a_convolution_and_its_derivatives_take_the_same_operations(target, operands, result) -> None:
    result = f"({result}, u8[1024]{{0}})"
    kernel = library(target, operands, result, ", window={size=5x5}, dim_labels=b01f_o01i->b01f, feature_group_count=1")
    assert kernel.products[0].flops == 2 * (2 * 5 * 5 * 7) * (5 * 5 * 3)
    assert kernel.bytes == 2 * (2 * 9 * 9 * 3 + 7 * 5 * 5 * 3 + 2 * 5 * 5 * 7)


def test_attention_takes_two_products_forward_and_five_backward() -> None:
    tokens = "bf16[2,10,3,8]{3,2,1,0}"
    one = 2 * 2 * 3 * 10 * 10 * 8
    forward = library("__cudnn$fmhaSoftmax", [tokens] * 3, "(bf16[2,3,10,8]{3,1,2,0}, u8[0]{0})")
    assert forward.products[0].flops == 2 * one
    assert forward.bytes == 4 * 2 * 2 * 10 * 3 * 8
    backward = library("__cudnn$fmhaSoftmaxBackward", [tokens] * 6, "(bf16[2,3,10,8]{3,1,2,0}, u8[0]{0})")
    assert backward.products[0].flops == 5 * one


def test_a_loop_of_unknown_length_is_refused() -> None:
    with pytest.raises(ValueError, match="how often loop runs"):
        by_name(PROGRAM.replace('"known_trip_count":{"n":"12"},', ""))
