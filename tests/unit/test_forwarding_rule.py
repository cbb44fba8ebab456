from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedsim.state_machines.forwarding import MIN_BYTES, TRY_AGAIN, ForwardingNode, UplinkMeter, chain_of, is_quicker

SIZE = 100_000_000
LINK = 12_500_000.0
NODES = [ForwardingNode(f"node-{number}", accept=True, pass_on=True) for number in range(16)]
NAMES = tuple(node.name for node in NODES)


def measured(together: float, chained: float | None = None, count: int = 16) -> UplinkMeter:
    meter = UplinkMeter()
    meter.direct_ended([(SIZE, count * SIZE / together)] * count)
    if chained is not None:
        meter.chain_ended(SIZE, SIZE / chained, ())
    return meter


def test_the_first_model_goes_directly_and_the_next_tries_the_chain() -> None:
    meter = UplinkMeter()
    assert meter.choose(SIZE, NODES) == ()
    meter.direct_ended([(SIZE, 16 * SIZE / LINK)] * 16)
    assert meter.together == LINK
    assert meter.choose(SIZE, NODES) == NAMES


def test_where_the_uplink_is_the_bottleneck_a_chain_is_used() -> None:
    assert measured(LINK, LINK / 1.3).choose(SIZE, NODES) == NAMES


def test_where_the_nodes_links_are_the_bottleneck_models_go_directly() -> None:
    assert measured(16 * LINK, LINK / 1.3).choose(SIZE, NODES) == ()


def test_nodes_that_the_server_sends_to_anyway_share_its_uplink() -> None:
    assert is_quicker(LINK, LINK, nodes=16, from_server=4)
    assert not is_quicker(LINK, LINK, nodes=16, from_server=15)


def test_a_chain_that_was_slower_is_tried_again_after_a_while() -> None:
    meter = measured(16 * LINK, LINK)
    chosen = [meter.choose(SIZE, NODES) for _ in range(TRY_AGAIN + 2)]
    assert chosen == [()] * TRY_AGAIN + [NAMES, ()]


def test_small_models_and_short_chains_go_directly() -> None:
    meter = measured(LINK, LINK)
    assert meter.choose(MIN_BYTES - 1, NODES) == ()
    assert meter.choose(SIZE, NODES[:2]) == ()
    assert meter.choose(MIN_BYTES, NODES[:3]) == NAMES[:3]


def test_only_large_models_to_several_nodes_are_a_measurement() -> None:
    meter = UplinkMeter()
    meter.direct_ended([(MIN_BYTES - 1, 1.0)] * 16)
    meter.direct_ended([(SIZE, 1.0)] * 2)
    meter.direct_ended([(SIZE, 1.0)] * 2 + [(200, 0.1)])  # one node had it already
    assert meter.together is None


def test_a_node_that_was_left_behind_is_not_in_the_chain_for_a_while() -> None:
    meter = measured(LINK, LINK)
    meter.chain_ended(SIZE, 99.0, ["node-3"])
    assert meter.chained == LINK, "what a broken chain took says nothing of a chain"
    chosen = [meter.choose(SIZE, NODES) for _ in range(TRY_AGAIN)]
    assert all("node-3" not in chain and len(chain) == 15 for chain in chosen[:-1])
    assert chosen[-1] == NAMES


def test_a_node_waits_as_long_as_sending_to_all_directly_would_take() -> None:
    assert 16 * SIZE / LINK <= measured(LINK).wait_seconds(SIZE, 16) <= 16 * SIZE / LINK + 5


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=20))
def test_in_a_chain_each_node_passes_on_to_one_that_accepts(allowed: list[tuple[bool, bool]]) -> None:
    nodes = {str(number): ForwardingNode(str(number), *rules) for number, rules in enumerate(allowed)}
    chain = chain_of(list(nodes.values()))
    assert len(set(chain)) == len(chain) != 1
    assert all(nodes[name].pass_on for name in chain[:-1])
    assert all(nodes[name].accept for name in chain[1:])
    both = sum(node.accept and node.pass_on for node in nodes.values())
    assert len(chain) >= (both if both > 1 else 0)
