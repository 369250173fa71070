"""Auth.Authenticate: the one call of Auth that is answered later, when its password is compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etcd.core.errors import Code, EtcdError
from etcd.core.pb import rpc_pb2 as pb
from etcd.server.services import decode

if TYPE_CHECKING:
    from etcd.server.member import Member
    from etcd.server.streams import Reply


class AuthenticateCall:
    """See the module (``streams.StreamCall``)."""

    def __init__(self, member: Member, reply: Reply) -> None:
        self._member = member
        self._reply = reply
        self._asked = False
        self._gone = False

    def on_message(self, data: bytes) -> None:
        request = decode(pb.AuthenticateRequest, data)
        assert isinstance(request, pb.AuthenticateRequest)
        if not self._asked:
            self._asked = True
            self._member.auth.authenticate(request, self._answer)

    def _answer(self, outcome: pb.AuthenticateResponse | EtcdError) -> None:
        if self._gone:
            return
        if isinstance(outcome, EtcdError):
            self._reply.finish(outcome)
        else:
            self._reply.answer(outcome.SerializeToString())

    def on_half_close(self) -> None:
        if not self._asked:
            text = "grpc: 0 request messages where one belongs"
            self._reply.finish(EtcdError(Code.INTERNAL, text))

    def on_gone(self) -> None:
        self._gone = True
