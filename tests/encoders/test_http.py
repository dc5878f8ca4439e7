"""A served model gives the vectors that it serves, or says why not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders.served import MODEL, WIDTH, Served, serving, vectors

from mmkd import EncoderCard, load_card
from mmkd.errors import EncoderError

TEXTS = [f"text number {n}, of a length that grows{'.' * n}" for n in range(23)]


@pytest.fixture
def server() -> Iterator[Served]:
    with serving() as state:
        yield state


def card(url: str, model: str = MODEL, **options: Any) -> EncoderCard:
    fields = {name: options.pop(name) for name in ("prompt", "normalize") if name in options}
    return EncoderCard(
        name="served",
        modality="text",
        kind="http",
        model=model,
        options={"url": url} | options,
        **fields,
    )


def test_vectors_are_the_servers_in_the_order_of_the_texts(server: Served) -> None:
    encoder = card(server.url, connections=3).build()
    assert encoder.dim == WIDTH
    np.testing.assert_array_equal(encoder.encode(TEXTS, batch_size=5), vectors(TEXTS))
    assert sorted(len(body["input"]) for body in server.asked[1:]) == [3, 5, 5, 5, 5]
    assert {body["model"] for body in server.asked} == {MODEL}


def test_prompt_length_and_scale_are_applied(server: Served) -> None:
    found = card(server.url, prompt="query: ", normalize=True, max_length_characters=9)
    expected = vectors([f"query: {text[:9]}" for text in TEXTS])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found.build().encode(TEXTS), expected, rtol=1e-6)


def test_a_busy_server_is_asked_again(server: Served) -> None:
    encoder = card(server.url, connections=1).build()
    server.failing = [429, 429]
    np.testing.assert_array_equal(encoder.encode(TEXTS[:2]), vectors(TEXTS[:2]))
    assert len(server.asked) == 1 + 3


def test_a_server_that_stays_busy_is_told(server: Served) -> None:
    encoder = card(server.url, retries=1).build()
    server.failing = [429] * 9
    with pytest.raises(EncoderError, match=r"answers 429: not now; look into the server's log"):
        encoder.encode(TEXTS[:2])


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "token_env"), (404, "options.url"), (413, "batch_size"), (302, "log")],
)
def test_a_refusal_is_told_at_once_with_its_remedy(
    server: Served, status: int, remedy: str
) -> None:
    server.failing = [status]
    with pytest.raises(EncoderError, match=rf"answers {status}: .*{remedy}"):
        card(server.url).build()
    assert len(server.asked) == 1


def test_a_token_is_read_from_the_environment_and_sent(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = card(server.url, token_env="A_TOKEN")
    with pytest.raises(EncoderError, match="A_TOKEN is not set"):
        named.build()
    monkeypatch.setenv("A_TOKEN", "secret")
    named.build()
    assert server.tokens == ["Bearer secret"]


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"<html>", "not that of /v1/embeddings"),
        (b"[]", "not that of /v1/embeddings"),
        (b'{"data": []}', "not that of /v1/embeddings"),
        (b'{"data": [{"index": 0, "embedding": []}]}', "empty or not finite"),
        (b'{"data": [{"index": 0, "embedding": [NaN]}]}', "empty or not finite"),
        (b'{"data": [{"index": 0, "embedding": ["a"]}]}', "not that of /v1/embeddings"),
        (b'{"model": "other", "data": [{"index": 0, "embedding": [1]}]}', "serves 'other'"),
        (b" " * (1 << 20) + b"{}", "a reply of over 1,048,576 bytes"),
        (b"[" * 100_000, "not that of /v1/embeddings"),
    ],
)
def test_a_wrong_reply_is_refused(server: Served, raw: bytes, told: str) -> None:
    server.raw = raw
    with pytest.raises(EncoderError, match=told):
        card(server.url).build()


def test_another_width_is_refused(server: Served) -> None:
    encoder = card(server.url).build()
    server.raw = b'{"data": [{"index": 0, "embedding": [1.0, 2.0]}]}'
    with pytest.raises(EncoderError, match=f"2 features, and of {WIDTH} before"):
        encoder.encode(["a"])


def test_no_server_is_told_after_the_retries() -> None:
    with serving() as state:
        url = state.url
    with pytest.raises(EncoderError, match=r"gives no answer .*start the server"):
        card(url, retries=0).build()


@pytest.mark.parametrize(
    "url",
    [
        *(
            "ftp://127.0.0.1/x",
            "127.0.0.1:80",
            "http://",
            "http://[",
            "http://a:99999/",
            "file:///a",
        ),
        # of which one reader takes the one host, and another the other
        *("http://evil.example\\[::1]/v1", "http://[::1]evil.example/v1", "http://a b/"),
        *("http://127.0.0.1\\.evil.example/", "http://evil.example#@127.0.0.1/", "http://a\tb/"),
    ],
)
def test_an_address_that_is_none_is_refused_in_the_card(url: str) -> None:
    with pytest.raises(EncoderError, match=r"wanted (an address such as|one without user)"):
        card(url)


def test_a_secret_has_no_place_in_a_card() -> None:
    with pytest.raises(EncoderError, match="without user and password"):
        card("http://me:secret@127.0.0.1/v1/embeddings")


def test_where_a_model_is_served_is_not_what_its_vectors_are() -> None:
    here = card("http://127.0.0.1:80/v1/embeddings", timeout_s=3, retries=0)
    assert here.fingerprint() == card("https://there.example/v1/embeddings").fingerprint()
    assert here.fingerprint() != card("http://127.0.0.1:80/v1/embeddings", "other").fingerprint()
    shorter = card("http://127.0.0.1:80/v1/embeddings", max_length_characters=9)
    assert here.fingerprint() != shorter.fingerprint()


def test_a_file_sends_no_texts_to_another_machine_unless_it_is_trusted(
    tmp_path: Path, server: Served
) -> None:
    path = tmp_path / "there.yaml"
    text = "modality: text\nkind: http\nmodel: letters-afar\noptions: {{url: '{}', retries: 0}}\n"
    path.write_text(text.format("http://127.0.0.2:9/v1/embeddings"))
    with pytest.raises(EncoderError, match=r"texts would go to 127\.0\.0\.2; .*host:127\.0\.0\.2"):
        load_card(str(path)).build()
    with pytest.raises(EncoderError, match="gives no answer"):  # it was asked
        load_card(str(path), trust_code="host:127.0.0.2").build()
    path.write_text(text.format(server.url).replace("letters-afar", MODEL))
    assert load_card(str(path)).build().dim == WIDTH
