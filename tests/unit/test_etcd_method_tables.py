"""The tables of methods agree with the .proto files, the modules loaded late, and each other."""

from __future__ import annotations

from etcd.server.gateway import METHODS, ROUTES
from etcd.server.long_calls import LONG_CALLS
from etcd.server.recipe_calls import RECIPE_CALLS
from etcd.server.streams import STREAMS
from tests.etcd_servers import memory_etcd


async def test_every_method_of_every_service_is_served_once() -> None:
    async with memory_etcd() as server:
        unary = set(server.services.unary)
    assert set(METHODS) <= unary | set(STREAMS)
    assert not unary & set(STREAMS)


def test_every_call_of_a_module_that_is_loaded_late_is_named() -> None:
    assert {*LONG_CALLS, *RECIPE_CALLS} <= set(STREAMS)


def test_the_gateway_leads_to_all_but_what_the_real_one_leaves_out() -> None:
    assert set(METHODS) - set(ROUTES.values()) == {"/etcdserverpb.Maintenance/HashKV"}
