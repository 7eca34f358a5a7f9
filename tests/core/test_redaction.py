"""What is told of a URL, and what is not."""

from __future__ import annotations

import json

import pytest

from pipeline.core.errors import InputError, UserError
from pipeline.core.redaction import has_login, redact, redact_all
from pipeline.core.registry import Dataset
from pipeline.core.settings import build

TOKEN = "hf_" + "aB3" * 12


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("https://h/a.jsonl?X-Amz-Signature=5ecret&token=5ecret", "https://h/a.jsonl?…"),
        ("https://h/a?t=5ecret: status 403, or so", "https://h/a?…: status 403, or so"),
        ("['https://h/a?t=5ecret', 'file:///b']", "['https://h/a?…', 'file:///b']"),
        ("(HTTPS://h/a?t=5ecret)", "(HTTPS://h/a?…)"),
        ("https://h/a#5ecret. Try again", "https://h/a?…. Try again"),
        ("https://me:5ecret@h:8080/a", "https://…@h:8080/a"),
        ("https://5ecret@h/a?t=5ecret", "https://…@h/a?…"),
        ("https://me:p@5ecret@h/a", "https://…@h/a"),
        ("https://me:p/5ecret@h/a", "https://…@h/a"),
        ("https://me:p 5ecret@h/a", "https://…@h/a"),
        ("socks5://me:5ecret@h:1080", "socks5://…@h:1080"),
        (f"Bearer {TOKEN}, twice {TOKEN}", "Bearer hf_…, twice hf_…"),
        ('{"urls": ["https://h/a?t=5ecret"]}', '{"urls": ["https://h/a?…"]}'),
    ],
)
def test_secrets_are_cut(text: str, told: str) -> None:
    assert redact(text) == told
    assert redact(told) == told
    assert str(InputError(text, text)) == f"{told}. {told}"
    assert InputError(text).what == InputError("x", text).hint == told
    assert "5ecret" not in repr(InputError(text))


@pytest.mark.parametrize(
    "text",
    [
        "https://h:8080/a@b/c.jsonl",
        "http://127.0.0.1:9/x: refused; me@example.org knows",
        "http://127.0.0.1:9: refused; me@example.org knows",
        "http://[::1]:80/x",
        "hf://owner/name, owner/name@main",
        "file:///a/b@c/hf_hub_cache/hf_home",
        "is this it? no",
        "which? https://h/a?",
    ],
)
def test_the_rest_stays(text: str) -> None:
    assert redact(text) == text
    assert not has_login(text)


@pytest.mark.parametrize("login", ["me:5ecret", "5ecret", "me:p/5ecret", "me:p@5ecret", "me:"])
def test_a_login_in_a_url_is_refused(login: str) -> None:
    with pytest.raises(UserError) as caught:
        build(Dataset, {"id": "x", "urls": ["https://h/a", f"https://{login}@h/a"]}, "dataset x")
    assert str(caught.value) == (
        "dataset x: urls = ['https://h/a', 'https://…@h/a']: https://…@h/a: a name or password in "
        "a URL would be shown; ~/.netrc is the place for it, as: "
        "machine HOST login NAME password PASSWORD"
    )


def test_plain_data_stays_what_it_is_but_for_the_secrets() -> None:
    signed = r'a "https://h/x?a=b\" c'
    data = {"https://h/x?sig=1": [1, None, signed], "t": ("https://u:p@h/x", 2.5)}
    found = redact_all(data)
    assert json.loads(json.dumps(found)) == found
    assert found["https://h/x?…"][:2] == [1, None]
    assert found["t"] == ["https://…@h/x", 2.5]
    assert "a=b" not in json.dumps(found)
