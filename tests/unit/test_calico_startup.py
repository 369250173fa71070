"""What a node writes of itself when it starts."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from agents.calico.client import ResourceClient
from agents.calico.datastore import list_prefix
from agents.calico.ipam.ipam import Ipam
from agents.calico.kubecontrollers.mirroring import Cluster, plan
from agents.calico.startup import NodeFacts, start_node
from agents.kubelet.node import node_labels
from emulator.runtime.clock import Clock
from tests.calico_memory import MemoryDatastore

if TYPE_CHECKING:
    from pathlib import Path


async def test_kube_controllers_have_nothing_to_add_to_a_new_node(tmp_path: Path) -> None:
    store, clock = MemoryDatastore(), Clock(lambda: 0.0, 1_525_874_322.0)
    labels = node_labels("kube-0", {"rack": "1"})
    resources = ResourceClient(store, clock, random.Random(1))
    facts = NodeFacts("kube-0", "10.10.68.222/20", labels=labels)
    await start_node(facts, resources, Ipam(store, clock), random.Random(1), tmp_path)
    theirs = dict(labels)
    node = {"metadata": {"name": "kube-0", "labels": theirs}}
    items = {kvp.key: kvp for kvp in await list_prefix(store, "/calico/resources/")}
    assert not plan(Cluster(nodes=(node,)), items)
    # What is taken away from the Kubernetes Node goes here, too: the note says where it came from.
    del theirs["rack"]
    (changed,) = plan(Cluster(nodes=(node,)), items).update
    assert "rack" not in changed["metadata"]["labels"]
