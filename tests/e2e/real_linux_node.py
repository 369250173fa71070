"""Run in a network namespace of its own: a real Linux joins a Podwire cluster as a flannel node.

etcd, control plane and one Podwire node run here; the real node is a second namespace behind a
veth, with the kernel's own vxlan device, set up by hand as flannel would.  It makes itself known as
every node does: by its lease and its underlay entry in etcd.  Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.e2e.harness import Podwire, wait_for
from tests.interop.real_vxlan_peer import OFFLOADS_OFF

NEAR_IP, FAR_IP = "192.168.77.1", "192.168.77.2"
# The real node: its address in the emulated network, its subnet, its VTEP's MAC.
NODE_IP, SUBNET, VTEP_MAC = "172.17.4.250", "10.2.200.0", "02:00:00:00:00:0b"
CLIENT_IP = "10.2.200.1"
ETCD = "http://127.0.0.1:2379"
SUBNETS = "/coreos.com/network/subnets/"

NEAR = f"""
set -e
ip link set lo up
ip link add real0 type veth peer name eth0 netns {{pid}}
ip addr add {NEAR_IP}/24 dev real0
ip link set real0 up
"""
FAR = f"""
set -e
ip link set lo up
ip addr add {FAR_IP}/24 dev eth0
ip link set eth0 up
ip link add flannel.1 address {VTEP_MAC} mtu 1450 type vxlan id 1 local {FAR_IP} dev eth0 \
    dstport 8472 nolearning
ip addr add {SUBNET}/32 dev flannel.1
ip addr add {CLIENT_IP}/32 dev lo
ip link set flannel.1 up
ip route add {{subnet}} via {{gateway}} dev flannel.1 onlink src {CLIENT_IP}
ip neigh add {{gateway}} lladdr {{mac}} dev flannel.1 nud permanent
bridge fdb add {{mac}} dev flannel.1 dst {NEAR_IP}
"""


def main() -> None:
    home = Path(tempfile.mkdtemp(prefix="pw-"))
    podwire = Podwire(home, "real")
    podwire.env["KUBECONFIG"] = str(home / "real" / "kubeconfig")
    processes: list[subprocess.Popen[bytes]] = []

    def start(*argv: str) -> subprocess.Popen[bytes]:
        with (home / "log").open("ab") as log:
            process = subprocess.Popen(
                argv, env=podwire.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        processes.append(process)
        return process

    try:
        far = start("unshare", "-n", "sleep", "60")
        shell(NEAR.format(pid=wait_for("a second namespace", lambda: namespace_of(far))))
        cli = (sys.executable, "-m", "emulator.cli.main")
        shared = ("--cluster", "real", "--etcd-endpoints", ETCD)
        urls = ("--listen-client-urls", ETCD, "--advertise-client-urls", ETCD)
        start(*cli, "etcd", "--data-dir", str(home / "etcd"), *urls)
        start(*cli, "controlplane", *shared)
        start(*cli, "node", "--name", "node-0", "--underlay", NEAR_IP, *shared)
        wait_for("node-0 is ready", lambda: is_ready(podwire))
        print(json.dumps(story(podwire, ("nsenter", "-n", "-t", str(far.pid)))))
    except BaseException:
        sys.stderr.write((home / "log").read_text())
        raise
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(10)
        shell(f"rm -rf {home}")


def story(podwire: Podwire, far: tuple[str, ...]) -> dict[str, object]:
    """What the real node sees of a pod, and the pod of the real node."""
    podwire.kubectl("run", "web", "--image=nginx")
    podwire.kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=20s")
    pod_ip = podwire.get("pod", "web")["status"]["podIP"]
    gateway = pod_ip.rpartition(".")[0] + ".0"
    key = f"{SUBNETS}{gateway}-24"
    lease = json.loads(etcdctl(podwire, "get", "--print-value-only", key))
    mac = lease["BackendData"]["VtepMAC"]
    shell(FAR.format(subnet=f"{gateway}/24", gateway=gateway, mac=mac), far)
    podwire.run([*far, sys.executable, "-c", OFFLOADS_OFF])

    mine = {**lease, "PublicIP": NODE_IP, "BackendData": {"VNI": 1, "VtepMAC": VTEP_MAC}}
    underlay = {
        "name": "linux",
        "ip": NODE_IP,
        "mac": "02:00:00:00:00:0c",
        "underlay": FAR_IP,
        "vxlan_port": 8472,
        "carrier_port": 8473,
    }
    etcdctl(podwire, "put", f"/podwire/underlay/{NODE_IP}", json.dumps(underlay))
    etcdctl(podwire, "put", f"{SUBNETS}{SUBNET}-24", json.dumps(mine))
    wait_for(
        "the Podwire node has a route to the real one",
        lambda: f"{SUBNET}/24 via {SUBNET} dev flannel.1" in podwire.node("node-0", "ip", "r").out,
    )
    ping = podwire.run([*far, "ping", "-c", "2", "-i", "0.2", "-W", "3", pod_ip]).out
    page = podwire.run([*far, "curl", "-sS", "-m", "5", f"http://{pod_ip}/"]).out
    back = podwire.kubectl("exec", "web", "--", "ping", "-c", "1", "-W", "3", CLIENT_IP).out
    trace = podwire.podwire("trace", "web", CLIENT_IP).out
    return {
        "ping": ping,
        "page": page,
        "back": back,
        "trace": trace,
        "log": podwire.kubectl("logs", "web").out,
        "bad": bad_checksums(podwire.run([*far, "cat", "/proc/net/snmp"]).out),
    }


def bad_checksums(snmp: str) -> dict[str, int]:
    """What the real kernel found wrong, by protocol (pairs of lines: names, values)."""
    lines = [line.split() for line in snmp.splitlines()]
    found = {}
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        counters = dict(zip(names[1:], map(int, values[1:]), strict=True))
        found[names[0].rstrip(":")] = counters.get("InCsumErrors", 0) + counters.get("InErrs", 0)
    return found


def namespace_of(process: subprocess.Popen[bytes]) -> int:
    """The process's id as soon as it has a network namespace of its own."""
    theirs, ours = (os.readlink(f"/proc/{pid}/ns/net") for pid in (process.pid, "self"))
    return 0 if theirs == ours else process.pid


def is_ready(podwire: Podwire) -> bool:
    done = podwire.kubectl(
        "get", "node", "node-0", "-o", "jsonpath={.status.conditions[*].status}", check=False
    )
    return done.code == 0 and done.out.split()[-1:] == ["True"]


def shell(script: str, prefix: tuple[str, ...] = ()) -> None:
    subprocess.run([*prefix, "sh", "-c", script], check=True)


def etcdctl(podwire: Podwire, *argv: str) -> str:
    return podwire.run(["env", "ETCDCTL_API=3", "etcdctl", f"--endpoints={ETCD}", *argv]).out


if __name__ == "__main__":
    main()
