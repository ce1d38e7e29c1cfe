"""Collectives read out of a program: against counts made by hand, and against a program that jax compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from empathax.errors import ConfigError
from empathax.planning.collectives import _groups, by_kind, collectives_of, moved_logits
from empathax.planning.hlo import parse_instruction, parse_program

# A loop of 5 rounds without a stated trip count (0, 2, .. < 10), in it a loop that states 3 and one that states none.
LOOPS = """
HloModule loops, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner_condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]{0}) parameter(0)
  ROOT %never = pred[] custom-call(%p), custom_call_target="depends_on_data"
}

%inner_body (p.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.1 = (s32[], f32[8]{0:T(256)}) parameter(0)
  %x = f32[8]{0:T(256)} get-tuple-element(%p.1), index=1
  %i = s32[] get-tuple-element(%p.1), index=0
  %all-reduce.1 = f32[8]{0:T(256)} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %all-reduce.1)
}

%outer_condition (q: (s32[], f32[8])) -> pred[] {
  %ten = s32[]{:T(128)} constant(10)
  %q = (s32[], f32[8]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%q), index=0
  ROOT %less = pred[] compare(%i.1, %ten), direction=LT
}

%outer_body (q.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %q.1 = (s32[], f32[8]{0}) parameter(0)
  %two = s32[] constant(2)
  %i.2 = s32[] get-tuple-element(%q.1), index=0
  %next = s32[] add(%i.2, %two)
  %while.1 = (s32[], f32[8]{0}) while(%q.1), condition=%inner_condition, body=%inner_body, backend_config={"known_trip_count":{"n":"3"}}
  %while.2 = (s32[], f32[8]{0}) while(%while.1), condition=%inner_condition, body=%unknown_body
  %y = f32[8]{0} get-tuple-element(%while.2), index=1
  %gather-start = (f32[8]{0}, f32[32]{0}) all-gather-start(%y), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %gathered = f32[32]{0} all-gather-done(%gather-start)
  ROOT %t.1 = (s32[], f32[8]{0}) tuple(%next, %y)
}

%unknown_body (p.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.2 = (s32[], f32[8]{0}) parameter(0)
  %z = f32[8]{0} get-tuple-element(%p.2), index=1
  %i.3 = s32[] get-tuple-element(%p.2), index=0
  %moved = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%z), channel_id=3, source_target_pairs={{0,1},{1,0}}
  %done = f32[8]{0} collective-permute-done(%moved)
  ROOT %t.2 = (s32[], f32[8]{0}) tuple(%i.3, %done)
}

ENTRY %main (arg: f32[8]) -> f32[8] {
  %arg = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8]{0}) tuple(%zero, %arg)
  %while.3 = (s32[], f32[8]{0}) while(%start), condition=%outer_condition, body=%outer_body
  ROOT %out = f32[8]{0} get-tuple-element(%while.3), index=1
}
"""  # noqa: E501


def test_loops_count_as_often_as_they_go_round():
    totals = by_kind(collectives_of(parse_program(LOOPS), unknown_trips=7))
    assert totals == {
        "all-gather": {"count": 5, "bytes": 5 * 32 * 4 * 3 // 4},  # of 32 floats on 4 devices each sends three parts
        "all-reduce": {"count": 15, "bytes": 15 * 2 * 8 * 4 * 3 // 4},
        "collective-permute": {"count": 35, "bytes": 35 * 8 * 4},
    }


def test_a_collective_spread_over_several_fusions_is_one():
    part = '%part{n} = f32[32]{{0}} all-gather(%p{n}), channel_id=9, replica_groups=[1,4]<=[4], frontend_attributes={{chain_id="1"}}'  # noqa: E501
    fusions = "".join(
        f"%fused.{n} (p{n}: f32[8]) -> f32[32] {{\n  %p{n} = f32[8] parameter(0)\n  ROOT {part.format(n=n)}\n}}\n"
        for n in range(3)
    )
    calls = "".join(f"  %f{n} = f32[32] fusion(%x), kind=kCustom, calls=%fused.{n}\n" for n in range(3))
    entry = (
        f"ENTRY %main (x: f32[8]) -> f32[32] {{\n  %x = f32[8] parameter(0)\n{calls}  ROOT %r = f32[32] copy(%f0)\n}}\n"
    )
    assert by_kind(collectives_of(parse_program(fusions + entry))) == {"all-gather": {"count": 1, "bytes": 96}}


def test_shapes_with_layouts_and_tuples_are_parsed():
    line = '  ROOT %w.1 = ((bf16[2,3]{1,0:T(8,128)(2,1)}), f32[]{:T(128)}) async-start(%a, %b.c), calls=%x, m={y="("}'
    instruction = parse_instruction(line)
    assert instruction.shape == "((bf16[2,3]{1,0:T(8,128)(2,1)}), f32[]{:T(128)})"
    assert (instruction.opcode, instruction.operand_names) == ("async-start", ["a", "b.c"])


@pytest.fixture
def mesh() -> Mesh:
    return Mesh(np.asarray(jax.devices()[:4]), ("x",), axis_types=(AxisType.Auto,))


def _compiled(mesh: Mesh, function, *specs) -> str:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec)) for shape, spec in specs]
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_a_real_program(mesh):
    """A scan over 6 layers whose weights are split over 4 devices: each round gathers one layer."""

    def run(weights_LDD, x_BD):
        def layer(x_BD, weight_DD):
            return jnp.tanh(x_BD @ weight_DD), None

        return jax.lax.scan(layer, x_BD, weights_LDD)[0]

    text = _compiled(mesh, run, ((6, 64, 64), PartitionSpec(None, "x")), ((256, 64), PartitionSpec("x")))
    totals = by_kind(collectives_of(parse_program(text)))
    assert totals == {"all-gather": {"count": 6, "bytes": 6 * 64 * 64 * 4 * 3 // 4}}


def test_moved_logits_are_found(mesh):
    """Logits [2, 96, 512] gathered whole are found; hidden states [2, 96, 64] gathered are not."""
    whole = NamedSharding(mesh, PartitionSpec())

    def gather(x_BMD):
        return jax.lax.with_sharding_constraint(x_BMD * 2.0, whole)

    found = {}
    for width in (512, 64):
        text = _compiled(mesh, gather, ((2, 96, width), PartitionSpec(None, None, "x")))
        collectives = collectives_of(parse_program(text))
        assert collectives
        found[width] = len(moved_logits(collectives, trained_slots=96, model_dim=64))
    assert found == {512: 1, 64: 0}


# What libtpu makes of a sum and of a gather over two and three slices (attributes shortened).
SLICES = """
ENTRY %main (arg: f32[48,8,128]) -> f32[8] {
  %arg = f32[48,8,128]{2,1,0:T(8,128)} parameter(0)
  %token = token[] after-all()
  %send = (f32[48,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%arg, %token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2,3}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %send.1 = (f32[96,256]{1,0:T(8,128)}, u32[], token[]) send(%param.1, %token), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_GATHER"}
  %recv.1 = (f32[192,256]{1,0:T(8,128)}, u32[], token[]) recv(%token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_GATHER"}
  ROOT %out = f32[8]{0} custom-call(%sent)
}
"""  # noqa: E501


def test_what_goes_between_slices_counts_apart():
    assert by_kind(collectives_of(parse_program(SLICES))) == {
        "all-gather between slices": {"count": 1, "bytes": 96 * 256 * 4},  # its part to the other slice
        "all-reduce between slices": {"count": 1, "bytes": 48 * 8 * 128 * 4 * 4 // 3},  # a ring of three: 2 x 2 / 3
    }


# The forms in which XLA's compilers name the devices of a collective, with the groups they mean.
FORMS = {
    "replica_groups={{0,2},{1,3}}, dimensions={0}": [[0, 2], [1, 3]],
    "replica_groups=[2,4]<=[8], to_apply=%add": [[0, 1, 2, 3], [4, 5, 6, 7]],
    "replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}": [[0, 2, 4, 6], [1, 3, 5, 7]],
    "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={1}": [[0, 2, 4, 6], [1, 3, 5, 7]],
    "replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}": [[0, 1, 2, 3], [4, 5, 6, 7]],
    "replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=4] {'axis_0','axis_2'}": [[0, 1, 2, 3, 4, 5, 6, 7]],
    "replica_groups=mesh['data'=1,'fsdp'=2,'tensor'=4] {'tensor':(2)2}, dimensions={1}": [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
    ],
    "replica_groups=mesh['data'=1,'fsdp'=2,'tensor'=4] {'tensor':(1)2}, dimensions={1}": [
        [0, 2],
        [1, 3],
        [4, 6],
        [5, 7],
    ],
    "replica_groups=mesh['a'=2,'b'=4] {'a','b':(1)2}": [[0, 2, 4, 6], [1, 3, 5, 7]],
    "replica_groups={}, to_apply=%add": [[0, 1, 2, 3, 4, 5, 6, 7]],
    "source_target_pairs={{0,4},{4,0}}": [[0, 4], [4, 0]],
}


@pytest.mark.parametrize("attributes", FORMS)
def test_every_form_of_groups(attributes):
    assert _groups(attributes, 8).tolist() == FORMS[attributes]


def test_a_form_that_is_not_known_is_an_error():
    with pytest.raises(ConfigError, match="not known here"):
        _groups("replica_groups=V3<=[8]", 8)


NODES = [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("kind", "groups", "wanted"),
    [
        ("all-gather", "{{0,1,2,3},{4,5,6,7}}", {"all-gather": 800 * 3 // 4}),  # nothing leaves a node
        ("all-reduce", "{{0,4},{1,5},{2,6},{3,7}}", {"all-reduce between nodes": 800}),  # 2 x 1 / 2
        ("all-reduce", "{{0,1,2,3,4,5,6,7}}", {"all-reduce": 2 * 600, "all-reduce between nodes": 2 * 200 // 2}),
        ("all-to-all", "{{0,1,2,3,4,5,6,7}}", {"all-to-all": 300, "all-to-all between nodes": 400}),
    ],
)
def test_gpu_nodes_pass_on_what_leaves_them(kind, groups, wanted):
    """Of an array of 800 bytes: within a node at the links' rate, a quarter of it through each GPU's own card."""
    entry = (
        "ENTRY %main (x: f32[200]) -> f32[200] {\n  %x = f32[200] parameter(0)\n"
        f"  ROOT %r = f32[200] {kind}(%x), replica_groups={groups}\n}}\n"
    )
    found = by_kind(collectives_of(parse_program(entry), nodes=NODES))
    assert {name: one["bytes"] for name, one in found.items()} == wanted
