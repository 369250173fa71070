"""Names, labels and annotations: what is allowed, in the words of
apimachinery/pkg/util/validation/validation.go."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from emulator.apimachinery import fielderrors as fe

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from emulator.apimachinery.fielderrors import FieldError
    from emulator.apimachinery.objects import Obj

    NameCheck = Callable[[str], list[str]]

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_LABEL_RE = re.compile(_LABEL)
_SUBDOMAIN = _LABEL + r"(\." + _LABEL + r")*"
_SUBDOMAIN_RE = re.compile(_SUBDOMAIN)
_DNS1035 = r"[a-z]([-a-z0-9]*[a-z0-9])?"
_DNS1035_RE = re.compile(_DNS1035)
_QUALIFIED = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_QUALIFIED_RE = re.compile(_QUALIFIED)
_VALUE = r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?"
_VALUE_RE = re.compile(_VALUE)
_CONFIG_KEY_RE = re.compile(r"[-._a-zA-Z0-9]+")
_PORT_NAME_RE = re.compile(r"[-a-z0-9]+")

# Alphabet without vowels and easily confused characters: apimachinery/pkg/util/rand/rand.go.
NAME_ALPHABET: Final = "bcdfghjklmnpqrstvwxz2456789"
# A generated name is at most 63 characters, five of them random.
MAX_GENERATED_BASE: Final = 58
# Sum over all annotations of an object (TotalAnnotationSizeLimitB).
MAX_ANNOTATION_BYTES: Final = 256 * 1024


def generate_name(base: str, rng: random.Random) -> str:
    """``base``, cut so that the result fits a label, plus five random characters."""
    return base[:MAX_GENERATED_BASE] + "".join(rng.choice(NAME_ALPHABET) for _ in range(5))


def _max_len(limit: int) -> str:
    return f"must be no more than {limit} characters"


def dns1123_label(name: str) -> list[str]:
    """What is wrong with ``name`` as an RFC 1123 label."""
    out = [_max_len(63)] if len(name) > 63 else []
    if not _LABEL_RE.fullmatch(name):
        if _SUBDOMAIN_RE.fullmatch(name):
            out.append("must not contain dots")
        else:
            out.append(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or "
                "'-', and must start and end with an alphanumeric character (e.g. 'my-name',  or "
                f"'123-abc', regex used for validation is '{_LABEL}')"
            )
    return out


def dns1123_subdomain(name: str) -> list[str]:
    """What is wrong with ``name`` as an RFC 1123 subdomain."""
    out = [_max_len(253)] if len(name) > 253 else []
    if not _SUBDOMAIN_RE.fullmatch(name):
        out.append(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, "
            "'-' or '.', and must start and end with an alphanumeric character (e.g. "
            f"'example.com', regex used for validation is '{_SUBDOMAIN}')"
        )
    return out


def dns1035_label(name: str) -> list[str]:
    """What is wrong with ``name`` as an RFC 1035 label (services)."""
    out = [_max_len(63)] if len(name) > 63 else []
    if not _DNS1035_RE.fullmatch(name):
        out.append(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start "
            "with an alphabetic character, and end with an alphanumeric character (e.g. "
            f"'my-name',  or 'abc-123', regex used for validation is '{_DNS1035}')"
        )
    return out


def path_segment(name: str) -> list[str]:
    """What is wrong with ``name`` as one segment of a URL path (roles)."""
    if name in (".", ".."):
        return [f"may not be '{name}'"]
    return [f"may not contain '{c}'" for c in "/%" if c in name]


def qualified_name(name: str) -> list[str]:
    """What is wrong with a label or annotation key."""
    parts = name.split("/")
    out: list[str] = []
    if len(parts) == 2:
        prefix, name = parts
        if not prefix:
            out.append("prefix part must be non-empty")
        else:
            out += [f"prefix part {text}" for text in dns1123_subdomain(prefix)]
    elif len(parts) > 2:
        return [
            "a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must "
            "start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or "
            f"'123-abc', regex used for validation is '{_QUALIFIED}') with an optional DNS "
            "subdomain prefix and '/' (e.g. 'example.com/MyName')"
        ]
    if not name:
        out.append("name part must be non-empty")
    elif len(name) > 63:
        out.append(f"name part {_max_len(63)}")
    if not _QUALIFIED_RE.fullmatch(name):
        out.append(
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start "
            "and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', "
            f"regex used for validation is '{_QUALIFIED}')"
        )
    return out


def label_value(value: str) -> list[str]:
    """What is wrong with a label's value."""
    out = [_max_len(63)] if len(value) > 63 else []
    if not _VALUE_RE.fullmatch(value):
        out.append(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' "
            "or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or "
            f"'my_value',  or '12345', regex used for validation is '{_VALUE}')"
        )
    return out


def config_key(key: str) -> list[str]:
    """What is wrong with a key of a ConfigMap or Secret."""
    out = [_max_len(253)] if len(key) > 253 else []
    if not _CONFIG_KEY_RE.fullmatch(key):
        out.append(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. "
            "'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is "
            "'[-._a-zA-Z0-9]+')"
        )
    if key in (".", ".."):
        out.append(f"must not be '{key}'")
    elif key.startswith(".."):
        out.append("must not start with '..'")
    return out


def descending_path(path: str) -> list[str]:
    """What is wrong with a path that must stay inside its volume."""
    out = ["must be a relative path"] if path.startswith("/") else []
    return out + no_backsteps(path)


def file_path(path: str) -> list[str]:
    """What is wrong with the path of a file the kubelet makes, which keeps ``..data`` to itself."""
    out = descending_path(path)
    if path.startswith("..") and not path.startswith("../") and path != "..":
        out.append("must not start with '..'")
    return out


def no_backsteps(path: str) -> list[str]:
    """What is wrong with a path that must not climb."""
    return ["must not contain '..'"] if ".." in path.split("/") else []


def port_name(name: str) -> list[str]:
    """What is wrong with an IANA service name (container ports, named target ports)."""
    out = [_max_len(15)] if len(name) > 15 else []
    if not _PORT_NAME_RE.fullmatch(name):
        out.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not any(c.isalpha() for c in name):
        out.append("must contain at least one letter (a-z)")
    if "--" in name:
        out.append("must not contain consecutive hyphens")
    if name[:1] == "-" or name[-1:] == "-":
        out.append("must not begin or end with a hyphen")
    return out


def port_number(port: Any) -> list[str]:
    """What is wrong with a port number."""
    if isinstance(port, int) and 1 <= port <= 65535:
        return []
    return ["must be between 1 and 65535, inclusive"]


def check_labels(labels: Any, field: str) -> list[FieldError]:
    """Every key and value of a label map."""
    out: list[FieldError] = []
    for key, value in labels.items() if isinstance(labels, dict) else ():
        out += [fe.invalid(field, key, text) for text in qualified_name(key)]
        out += [fe.invalid(field, value, text) for text in label_value(str(value))]
    return out


def check_metadata(obj: Obj, *, namespaced: bool, name_check: NameCheck) -> list[FieldError]:
    """``metadata`` of a new object (apimachinery/pkg/api/validation/objectmeta.go)."""
    meta = obj.get("metadata") or {}
    out: list[FieldError] = []
    if meta.get("generateName"):
        base = str(meta["generateName"]).rstrip("-.")
        out += [
            fe.invalid("metadata.generateName", meta["generateName"], t) for t in name_check(base)
        ]
    if not meta.get("name"):
        out.append(fe.required("metadata.name", "name or generateName is required"))
    else:
        out += [fe.invalid("metadata.name", meta["name"], t) for t in name_check(meta["name"])]
    if namespaced:
        if not meta.get("namespace"):
            out.append(fe.required("metadata.namespace"))
        else:
            out += [
                fe.invalid("metadata.namespace", meta["namespace"], t)
                for t in dns1123_label(meta["namespace"])
            ]
    out += check_labels(meta.get("labels"), "metadata.labels")
    total = 0
    for key, value in (meta.get("annotations") or {}).items():
        out += [
            fe.invalid("metadata.annotations", key, text) for text in qualified_name(key.lower())
        ]
        total += len(key) + len(str(value))
    if total > MAX_ANNOTATION_BYTES:
        out.append(fe.too_long("metadata.annotations", MAX_ANNOTATION_BYTES))
    for i, owner in enumerate(meta.get("ownerReferences") or []):
        out += [
            fe.required(f"metadata.ownerReferences[{i}].{key}", f"{key} must not be empty")
            for key in ("apiVersion", "kind", "name", "uid")
            if not owner.get(key)
        ]
    for i, finalizer in enumerate(meta.get("finalizers") or []):
        out += [
            fe.invalid(f"metadata.finalizers[{i}]", finalizer, t) for t in qualified_name(finalizer)
        ]
    return out
