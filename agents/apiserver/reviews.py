"""Reviews: questions about oneself that are answered and not stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.apimachinery.objects import sub

if TYPE_CHECKING:
    from agents.apiserver.config import UserInfo
    from emulator.apimachinery.objects import Obj


def answer(kind: str, obj: Obj, user: UserInfo) -> Obj:
    """The review with its status filled in; every authenticated user may do everything."""
    sub(obj, "metadata")["creationTimestamp"] = None
    match kind:
        case "SelfSubjectReview":
            obj["status"] = {"userInfo": {"username": user.name, "groups": list(user.groups)}}
        case "SelfSubjectAccessReview":
            sub(obj, "spec")
            obj["status"] = {"allowed": True}
        case _:
            sub(obj, "spec")
            obj["status"] = {
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
                "incomplete": False,
            }
    return obj
