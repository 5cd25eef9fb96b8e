import dataclasses
import math

import pytest

from adg.base.errors import InputError
from adg.base.keys import allowed, check, key


@dataclasses.dataclass
class Inner:
    share: float = key(0.5, "a share", above=0, most=1)
    engine: str = key("vllm", "an engine", choices=("vllm", "hf", "none"))
    size: int | None = key(None, "a size", least=1)
    dtype: str | None = key("a", "a type", choices=("a", "b"))
    names: list[str] = key(["x"], "names", choices=("x", "y"))
    renamed: dict[str, str] = key({}, "names by name", choices=("x", "y"))


@dataclasses.dataclass
class Outer:
    ratio: float = key(0.1, "a ratio", least=0, below=1)
    count: int = key(2, "a count", least=2)
    free: str = key("", "anything")
    inner: Inner = dataclasses.field(default_factory=Inner)


@pytest.mark.parametrize(("inner", "outer", "message"), [
    ({"share": 0.0}, {}, "inner.share is 0.0; it must be above 0 and at most 1"),
    ({"share": 1.5}, {}, "inner.share is 1.5; it must be above 0 and at most 1"),
    ({"share": math.nan}, {}, "inner.share is nan; it must be finite"),
    ({"engine": "v"}, {}, "inner.engine is 'v'; it must be vllm, hf or none"),
    ({"size": 0}, {}, "inner.size is 0; it must be null or 1 or more"),
    ({"dtype": "c"}, {}, "inner.dtype is 'c'; it must be null, a or b"),
    ({"names": ["x", "z"]}, {}, "inner.names is 'z'; it must be x or y"),
    ({"renamed": {"z": "x"}}, {}, "inner.renamed is 'z'; it must be x or y"),
    ({}, {"ratio": 1.0}, "ratio is 1.0; it must be from 0 to below 1"),
    ({}, {"count": 1}, "count is 1; it must be 2 or more"),
])
def test_a_value_outside_its_limits_is_named_with_them(inner: dict, outer: dict, message: str):
    with pytest.raises(InputError) as error:
        check(Outer(inner=Inner(**inner), **outer))
    assert str(error.value) == message


def test_values_at_their_limits_pass():
    check(Outer(0.0, 2, "x", Inner(1.0, "none", 1, None, ["y", "x"], {"x": "z"})))
    check(Outer(inner=Inner(names=[])))


def test_limits_are_shown_as_they_are_checked():
    shown = {item.name: allowed(item) for item in dataclasses.fields(Inner)}
    assert shown["size"] == "null or 1 or more" and shown["dtype"] == "null, a or b"
    assert allowed(dataclasses.fields(Outer)[2]) == ""
