"""Filters run once for a set of attributes give what running them for each route gives."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agents.bird.attributes import Attrs, list_contains, path_prepend
from agents.bird.filter_eval import Facts, Leaf, evaluate, finish, specialise
from agents.bird.filters import (
    Accept,
    AddCommunity,
    All,
    AnyOf,
    Attr,
    Call,
    CommunityKind,
    Compare,
    Condition,
    Const,
    Filter,
    HasCommunity,
    If,
    NetIn,
    NetPattern,
    Not,
    PrependAs,
    Reject,
    Return,
    Set,
    Source,
    SourceIn,
    Statement,
)
from agents.bird.net import Afi, Net

SMALL = [Net(Afi.IPV4, n << 28, 8) for n in range(1, 4)] + [
    Net(Afi.IPV4, n << 28 | m << 12, 24) for n in range(1, 4) for m in range(2)
]
nets = st.sampled_from(SMALL)
conditions: st.SearchStrategy[Condition] = st.recursive(
    st.one_of(
        st.booleans().map(Const),
        nets.map(lambda net: NetIn((NetPattern.inside(net),))),
        nets.map(lambda net: NetIn((NetPattern.exactly(net),))),
        st.builds(
            Compare, st.just(Attr.LOCAL_PREF), st.sampled_from(("=", "<", ">=")), st.integers(0, 3)
        ),
        st.just(HasCommunity(CommunityKind.STANDARD, (1, 2))),
        st.just(SourceIn((Source.STATIC,))),
    ),
    lambda inner: st.one_of(
        inner.map(Not),
        st.lists(inner, max_size=3).map(lambda c: All(tuple(c))),
        st.lists(inner, max_size=3).map(lambda c: AnyOf(tuple(c))),
    ),
    max_leaves=5,
)
statements: st.SearchStrategy[Statement] = st.recursive(
    st.one_of(
        st.sampled_from([Accept(), Reject(), Return()]),
        st.integers(0, 3).map(lambda v: Set(Attr.LOCAL_PREF, v)),
        st.just(AddCommunity(CommunityKind.STANDARD, (1, 2))),
        st.just(PrependAs(65000)),
    ),
    lambda inner: st.one_of(
        st.builds(
            If,
            conditions,
            st.lists(inner, max_size=3).map(tuple),
            st.lists(inner, max_size=2).map(tuple),
        ),
        st.lists(inner, max_size=3).map(lambda body: Call("f", tuple(body))),
    ),
    max_leaves=8,
)
filters = st.lists(statements, max_size=5).map(lambda body: Filter(tuple(body)))


class Plain:
    """The obvious interpreter: one route, statement by statement."""

    def __init__(self, net: Net, attrs: Attrs, source: Source) -> None:
        self.net, self.attrs, self.source = net, attrs, source

    def holds(self, condition: Condition) -> bool:
        match condition:
            case Const(value):
                return value
            case NetIn(patterns):
                return any(p.matches(self.net) for p in patterns)
            case Compare(_, op, value):
                have = self.attrs.local_pref
                assert isinstance(value, int)
                assert have is not None
                return {"=": have == value, "<": have < value, ">=": have >= value}[op]
            case HasCommunity():
                return list_contains(self.attrs.communities, b"\0\1\0\2")
            case SourceIn(sources):
                return self.source in sources
            case Not(inner):
                return not self.holds(inner)
            case All(parts):
                return all(self.holds(part) for part in parts)
            case AnyOf(parts):
                return any(self.holds(part) for part in parts)
        raise AssertionError(condition)

    def run(self, body: tuple[Statement, ...]) -> bool | str:
        for statement in body:
            result: bool | str = ""
            match statement:
                case Accept():
                    return True
                case Reject():
                    return False
                case Return():
                    return "return"
                case If(condition, then, orelse):
                    result = self.run(then if self.holds(condition) else orelse)
                case Call(_, inner):
                    result = self.run(inner)
                    result = "" if result == "return" else result
                case Set(_, value):
                    assert isinstance(value, int)
                    self.attrs = self.attrs._replace(local_pref=value)
                case AddCommunity():
                    if not list_contains(self.attrs.communities, b"\0\1\0\2"):
                        added = self.attrs.communities + b"\0\1\0\2"
                        self.attrs = self.attrs._replace(communities=added)
                case PrependAs(asn, count):
                    path = path_prepend(self.attrs.as_path, asn, count)
                    self.attrs = self.attrs._replace(as_path=path)
            if result != "":
                return result
        return ""


@settings(max_examples=300)
@given(filters, st.integers(0, 3), st.sampled_from((b"", b"\0\1\0\2")), st.booleans())
def test_specialised_filters_mean_what_plain_ones_mean(
    filter_: Filter, local_pref: int, communities: bytes, static: bool
) -> None:
    attrs = Attrs(local_pref=local_pref, communities=communities)
    source = Source.STATIC if static else Source.BGP
    outcome = specialise(filter_, attrs, Facts(source))
    for net in SMALL:
        plain = Plain(net, attrs, source)
        accepted = plain.run(filter_.body) is True
        leaf = finish(outcome, Afi.IPV4, net.key)
        assert leaf.accept is accepted
        if accepted:
            assert leaf.attrs == plain.attrs
        assert evaluate(filter_, net, attrs, Facts(source)) == leaf


def test_a_filter_that_never_asks_about_the_network_runs_once() -> None:
    filter_ = Filter((If(SourceIn((Source.BGP,)), (Set(Attr.MED, 3),)), Accept()))
    outcome = specialise(filter_, Attrs(), Facts(Source.BGP))
    assert isinstance(outcome, Leaf)
    assert outcome.attrs.med == 3
