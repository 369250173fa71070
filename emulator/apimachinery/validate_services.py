"""Validation of Services (pkg/apis/core/validation/validation.go, ValidateService)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.apimachinery import fielderrors as fe
from emulator.apimachinery.gotext import quote, string_list
from emulator.apimachinery.names import (
    check_labels,
    dns1123_label,
    dns1123_subdomain,
    port_name,
    port_number,
)
from emulator.apimachinery.objects import dig, items
from emulator.apimachinery.validate_pods import PROTOCOLS

if TYPE_CHECKING:
    from emulator.apimachinery.fielderrors import FieldError
    from emulator.apimachinery.objects import Obj

TYPES: Final = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
# Upper end of ClientIP affinity: one day (MaxClientIPServiceAffinitySeconds).
MAX_AFFINITY_S: Final = 86400


def _is_ipv4(text: str) -> bool:
    parts = text.split(".")
    return len(parts) == 4 and all(
        p.isascii() and p.isdigit() and int(p) < 256 and (p == "0" or p[0] != "0") for p in parts
    )


def _go_port(port: Obj) -> str:
    target = port.get("targetPort", 0)
    if isinstance(target, str):
        shown = f"intstr.IntOrString{{Type:1, IntVal:0, StrVal:{quote(target)}}}"
    else:
        shown = f'intstr.IntOrString{{Type:0, IntVal:{target}, StrVal:""}}'
    return (
        f"core.ServicePort{{Name:{quote(port.get('name') or '')}, "
        f"Protocol:{quote(port.get('protocol') or '')}, AppProtocol:(*string)(nil), "
        f"Port:{port.get('port', 0)}, TargetPort:{shown}, NodePort:{port.get('nodePort') or 0}}}"
    )


def _port(port: Obj, where: str, *, named: bool, headless: bool) -> list[FieldError]:
    out: list[FieldError] = []
    name = port.get("name") or ""
    if named and not name:
        out.append(fe.required(f"{where}.name"))
    elif name:
        out += [fe.invalid(f"{where}.name", name, text) for text in dns1123_label(name)]
    number = port.get("port") or 0
    out += [fe.invalid(f"{where}.port", number, text) for text in port_number(number)]
    if port.get("protocol") not in PROTOCOLS:
        out.append(fe.not_supported(f"{where}.protocol", port.get("protocol") or "", PROTOCOLS))
    target = port.get("targetPort")
    if isinstance(target, str):
        out += [fe.invalid(f"{where}.targetPort", target, text) for text in port_name(target)]
    elif target is not None and not headless:
        out += [fe.invalid(f"{where}.targetPort", target, text) for text in port_number(target)]
    return out


def service(obj: Obj) -> list[FieldError]:
    """A Service after defaulting, before its address and ports are allocated."""
    spec = obj.get("spec") or {}
    kind = spec.get("type")
    ips = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
    headless = ips[:1] == ["None"]
    ports = items(spec, "ports")
    out: list[FieldError] = []
    if not ports and not headless and kind != "ExternalName":
        out.append(fe.required("spec.ports"))
    names: list[str] = []
    for i, port in enumerate(ports):
        where = f"spec.ports[{i}]"
        out += _port(port, where, named=len(ports) > 1, headless=headless)
        name = port.get("name") or ""
        if name and name in names:
            out.append(fe.duplicate(f"{where}.name", name))
        names.append(name)
    out += check_labels(spec.get("selector"), "spec.selector")
    if spec.get("sessionAffinity") not in ("ClientIP", "None"):
        out.append(
            fe.not_supported(
                "spec.sessionAffinity", spec.get("sessionAffinity"), ("ClientIP", "None")
            )
        )
    seconds = dig(spec, "sessionAffinityConfig", "clientIP", "timeoutSeconds")
    if seconds is not None and not 0 < seconds <= MAX_AFFINITY_S:
        out.append(
            fe.invalid(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                seconds,
                f"must be greater than 0 and less than {MAX_AFFINITY_S}",
            )
        )
    for i, ip in enumerate(items(spec, "externalIPs")):
        if not _is_ipv4(str(ip)):
            out.append(
                fe.invalid(
                    f"spec.externalIPs[{i}]",
                    ip,
                    "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                )
            )
    if kind not in TYPES:
        out.append(fe.not_supported("spec.type", kind or "", TYPES))
    out += _addresses(spec, kind, ips)
    if kind == "ExternalName":
        if not spec.get("externalName"):
            out.append(fe.required("spec.externalName"))
        else:
            name = str(spec["externalName"]).removesuffix(".")
            out += [
                fe.invalid("spec.externalName", spec["externalName"], t)
                for t in dns1123_subdomain(name)
            ]
    out += _port_sets(ports, str(kind))
    return out


def _addresses(spec: Obj, kind: object, ips: list[str]) -> list[FieldError]:
    out: list[FieldError] = []
    if kind == "ExternalName":
        if ips and ips[0]:
            out.append(fe.forbidden("spec.clusterIPs", "may not be set for ExternalName services"))
        return out
    for i, ip in enumerate(ips):
        if ip in ("", "None"):
            continue
        if not _is_ipv4(str(ip)):
            out.append(
                fe.invalid(
                    f"spec.clusterIPs[{i}]",
                    fe.Text(string_list(ips)),
                    "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                )
            )
    if ips[:1] == ["None"] and kind in ("NodePort", "LoadBalancer"):
        out.append(
            fe.invalid(
                "spec.clusterIPs[0]",
                fe.Text(string_list(ips)),
                f"may not be set to 'None' for {kind} services",
            )
        )
    own, first = spec.get("clusterIP"), (spec.get("clusterIPs") or [None])[0]
    if own and first and own != first:
        out.append(
            fe.invalid(
                "spec.clusterIPs", fe.Text(string_list(ips)), "first value must match `clusterIP`"
            )
        )
    return out


def _port_sets(ports: list[Obj], kind: str) -> list[FieldError]:
    out: list[FieldError] = []
    node_ports: list[tuple[str, int]] = []
    numbers: list[tuple[str, int]] = []
    for i, port in enumerate(ports):
        where = f"spec.ports[{i}]"
        protocol = str(port.get("protocol"))
        wanted = port.get("nodePort") or 0
        if wanted:
            if kind in ("ClusterIP", "ExternalName"):
                out.append(
                    fe.forbidden(f"{where}.nodePort", f"may not be used when `type` is '{kind}'")
                )
            if (protocol, wanted) in node_ports:
                out.append(fe.duplicate(f"{where}.nodePort", wanted))
            node_ports.append((protocol, wanted))
        pair = (protocol, port.get("port") or 0)
        if pair in numbers:
            out.append(fe.duplicate(where, fe.Text(_go_port(port))))
        numbers.append(pair)
    return out


def service_update(new: Obj, old: Obj) -> list[FieldError]:
    """A change: the cluster address of a service that keeps one stays."""
    after, before = new.get("spec") or {}, old.get("spec") or {}
    if "ExternalName" in (after.get("type"), before.get("type")):
        return []
    ips, had = after.get("clusterIPs") or [], before.get("clusterIPs") or []
    if had and had[0] and ips and ips[0] != had[0]:
        return [
            fe.invalid("spec.clusterIPs[0]", fe.Text(string_list(ips)), "may not change once set")
        ]
    return []
