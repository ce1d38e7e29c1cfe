"""The client of a chat server against a server that behaves well, badly and not at all (fault matrix, row 29)."""

import socket
import threading
import time

import pytest

from empathax.data.records import Message
from empathax.errors import ConfigError, DataError
from empathax.evaluation.judging import openai_client
from empathax.evaluation.judging.chat_requests import ChatRequest
from empathax.evaluation.judging.chat_server import ChatServer, ServerOptions
from tests.evaluation.judging.loopback_server import FakeTime, Response, client, fails, says, serving


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")


def ask(text: str, **settings) -> ChatRequest:
    return ChatRequest((Message("system", "Be brief."), Message("user", text)), max_tokens=20, **settings)


def echo(body: dict, number: int) -> Response:
    return says(f"you said {body['messages'][-1]['content']}")


QUESTIONS = [ask(f"question {number}") for number in range(12)]
ANSWERS = [f"you said question {number}" for number in range(12)]


def texts(outcomes):
    return [outcome.text for outcome in outcomes]


def in_turn(*responses: Response):
    """The responses one after another, then echoes."""
    return lambda body, number: responses[number - 1] if number <= len(responses) else echo(body, number)


def test_answers_come_in_the_order_of_the_requests_whatever_order_they_arrive_in():
    two_at_once = threading.Barrier(2)

    def later_first(body, number):
        if number <= 2:
            two_at_once.wait(20)
        time.sleep(0.05 if number <= 4 else 0.0)
        return echo(body, number)

    seen = []
    with serving(later_first) as server:
        chat = client(server, concurrency=5)
        assert texts(chat.complete(QUESTIONS, seen.append)) == ANSWERS
    assert 2 <= server.most_at_once <= 5
    assert seen == list(range(1, 13))


def test_what_is_sent():
    with serving(echo) as server:
        client(server).complete([ask("hello", temperature=0.5, top_p=0.9, seed=7, stop=("###",)), ask("hi")])
    full, plain = sorted(server.bodies, key=len, reverse=True)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    sampling = {"temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["###"]}
    assert full == {"model": "judge-1", "messages": messages, "max_tokens": 20, **sampling}
    assert set(plain) == {"model", "messages", "max_tokens", "temperature"}
    assert set(server.paths) == {"/v1/chat/completions"}
    assert set(server.keys) == {"Bearer sk-secret"}


def test_tokens_are_counted():
    with serving(echo) as server:
        chat = client(server)
        chat.complete(QUESTIONS)
    assert (chat.tally.prompt_tokens, chat.tally.completion_tokens) == (120, 60)
    assert "12 requests: 12 answered" in chat.tally.in_words()
    assert "120 + 60 new tokens" in chat.tally.in_words()


def test_a_second_run_costs_nothing(tmp_path):
    with serving(echo) as server:
        client(server, tmp_path).complete(QUESTIONS[:7])
        again = client(server, tmp_path)
        assert texts(again.complete(QUESTIONS)) == ANSWERS
        assert len(server.bodies) == 12
    assert again.tally.num_cached == 7
    assert again.tally.prompt_tokens == 50


def test_equal_requests_are_asked_once_and_samples_are_not_equal():
    with serving(lambda body, number: says(f"answer {number}")) as server:
        chat = client(server)
        same, same_again, other = chat.complete([ask("a"), ask("a"), ask("a", sample=1)])
        assert same == same_again
        assert same.text != other.text
        assert len(server.bodies) == 2
    assert chat.tally.num_shared == 1


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_errors_that_may_pass_are_retried_with_growing_waits(status):
    waits = FakeTime()
    with serving(in_turn(*[fails(status, "overloaded")] * 3)) as server:
        chat = client(server, time=waits)
        (outcome,) = chat.complete(QUESTIONS[:1])
    assert (outcome.text, outcome.attempts) == (ANSWERS[0], 4)
    assert waits.waits == [0.75, 1.5, 3.0]  # 1, 2, 4 less a quarter: half of the random half
    assert chat.tally.retries == {f"HTTP {status}": 3}


def test_waits_are_bounded_and_random():
    waits = FakeTime()
    with serving(lambda *_: fails(500)) as server:
        options = ServerOptions(server.url, "m", max_attempts=9, longest_wait_seconds=10.0)
        shares = iter([0.0, 0.9] * 4)
        with pytest.raises(DataError):
            ChatServer(options, sleep=waits.sleep, random_share=lambda: next(shares)).complete(QUESTIONS[:1])
    assert waits.waits == pytest.approx([1.0, 1.1, 4.0, 4.4, 10.0, 5.5, 10.0, 5.5])
    assert len(server.bodies) == 9


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry_After": "17"},
        {"Retry_After": "Wed, 21 Oct 2015 07:28:17 GMT", "Date": "Wed, 21 Oct 2015 07:28:00 GMT"},
    ],
)
def test_retry_after_is_kept_to(headers):
    waits, response = FakeTime(), fails(429, "slow down", **headers)
    with serving(in_turn(response)) as server:
        assert texts(client(server, time=waits).complete(QUESTIONS[:1])) == ANSWERS[:1]
    assert waits.now == pytest.approx(17.25)


def test_retry_after_holds_for_every_request():
    arrivals = []

    def limited(body, number):
        arrivals.append(time.monotonic())
        if number == 1:
            return fails(429, Retry_After="0.5")
        time.sleep(0.1)  # long enough for the other worker to hear of the limit
        return echo(body, number)

    with serving(limited) as server:
        chat = ChatServer(ServerOptions(server.url, "m", concurrency=2, first_wait_seconds=0.01))
        assert texts(chat.complete(QUESTIONS[:4])) == ANSWERS[:4]
    assert min(arrivals[2:]) - arrivals[0] >= 0.5


def test_a_server_that_asks_for_hours_is_not_waited_for():
    with serving(lambda *_: fails(429, "daily limit", Retry_After="7200")) as server:
        with pytest.raises(DataError, match=r"1 x HTTP 429: daily limit; it asks to wait 7,200 s \(after 1 attempts\)"):
            client(server).complete(QUESTIONS[:1])
        assert len(server.bodies) == 1


@pytest.mark.parametrize("seconds_a_byte", [0.05, 10.0])
def test_slow_answers_are_cut_off_even_if_they_trickle(seconds_a_byte):
    response = says("very slow")
    response.seconds_a_byte = seconds_a_byte
    with serving(in_turn(response)) as server:
        chat = client(server, timeout_seconds=0.3)
        assert texts(chat.complete(QUESTIONS[:1])) == ANSWERS[:1]
    assert chat.tally.retries == {"no answer within 0.3 s": 1}


WHOLE = says("hello").body


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (Response(WHOLE[:40]), "the answer is not JSON, or cut off"),
        (Response(WHOLE[:40], stated_length=len(WHOLE)), "no connection"),
        (Response(b"<html>Bad gateway</html>", headers={"Content-Type": "text/html"}), "the answer is not JSON"),
        (Response(b"\xff\xfe\x00garbage"), "the answer is not JSON"),
        (Response(b""), "the answer is not JSON"),
        (Response(b"[" * 100_000), "the answer is not JSON"),
        (Response(b"[]"), "the answer holds no message"),
        (Response(b'{"choices": []}'), "the answer holds no message"),
        (Response(b'{"choices": [{"message": null}]}'), "the answer holds no message"),
        (Response(b'{"choices": [{"message": {"content": 5}}]}'), "the answer's content is int"),
        (Response(b'{"error": {"message": "upstream died"}}'), "the answer holds no message"),
    ],
)
def test_garbage_is_asked_again(response, reason):
    with serving(in_turn(response)) as server:
        chat = client(server)
        assert texts(chat.complete(QUESTIONS[:1])) == ANSWERS[:1]
    ((found, number),) = chat.tally.retries.items()
    assert found.startswith(reason)
    assert number == 1


@pytest.mark.parametrize(
    ("response", "status", "reason"),
    [
        (says(None, refusal="I will not."), "refused", "I will not."),
        (says("half an ans", "content_filter"), "refused", "content_filter"),
        (fails(400, "flagged", "content_filter"), "refused", "flagged"),
        (says(" \n"), "empty", "nothing but white space (finish_reason stop)"),
        (says(None, "length"), "empty", "nothing but white space (finish_reason length)"),
    ],
)
def test_refusals_and_empty_answers_are_outcomes_and_kept(response, status, reason, tmp_path):
    with serving(lambda *_: response) as server:
        (outcome,) = client(server, tmp_path).complete(QUESTIONS[:1])
        assert (outcome.status, outcome.text, outcome.reason) == (status, "", reason)
        (again,) = client(server, tmp_path).complete(QUESTIONS[:1])
        assert (again.status, again.reason, again.is_cached) == (status, reason, True)
        assert len(server.bodies) == 1


def test_answers_cut_at_the_limit_are_counted():
    with serving(lambda *_: says("and then", "length")) as server:
        chat = client(server)
        assert texts(chat.complete(QUESTIONS[:2])) == ["and then"] * 2
    assert "2 cut at the token limit" in chat.tally.in_words()


def test_a_request_that_is_turned_down_is_not_repeated_and_all_are_reported(tmp_path):
    def choosy(body, number):
        is_long = "question 1" in body["messages"][-1]["content"]
        return fails(400, "the context is too long") if is_long else echo(body, number)

    with serving(choosy) as server:
        with pytest.raises(DataError) as caught:
            client(server, tmp_path, give_up_after=1).complete(QUESTIONS)
        assert len(server.bodies) == 12  # questions 1, 10 and 11 once each
        lenient = client(server, tmp_path, max_failed_share=0.25)
        outcomes = lenient.complete(QUESTIONS)
    assert "of 12 different requests 9 answered, 3 failed" in str(caught.value)
    assert "3 x HTTP 400: the context is too long (after 1 attempts)" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert [number for number, outcome in enumerate(outcomes) if outcome.status == "failed"] == [1, 10, 11]
    assert lenient.tally.num_cached == 9


def test_a_server_that_is_down_ends_with_counts_and_the_next_run_goes_on(tmp_path):
    def dies(body, number):
        return echo(body, number) if number <= 4 else fails(503, "going down")

    with serving(dies) as server:
        with pytest.raises(DataError) as caught:
            client(server, tmp_path, concurrency=1, max_attempts=3, give_up_after=2).complete(QUESTIONS)
        assert len(server.bodies) == 4 + 2 * 3
        assert caught.value.exit_code == 3
        assert "of 12 different requests 4 answered, 2 failed, 6 given up" in str(caught.value)
        assert "2 x HTTP 503: going down (after 3 attempts)" in str(caught.value)
        server.answer, server.bodies[:] = echo, []
        assert texts(client(server, tmp_path).complete(QUESTIONS)) == ANSWERS
        assert len(server.bodies) == 8


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(DataError, match="no connection") as caught:
            client(url, max_attempts=2).complete(QUESTIONS)
    assert "nothing is kept" in str(caught.value)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (fails(401, "bad key sk-secret"), r"HTTP 401, the key is missing or not accepted: bad key \[key\]"),
        (fails(404, "no model judge-1"), "HTTP 404, no such model or address"),
        (fails(429, "pay first", "insufficient_quota"), "HTTP 429, the account is used up: pay first"),
    ],
)
def test_what_can_never_work_ends_at_once_and_never_shows_the_key(response, reason):
    with serving(lambda *_: response) as server:
        with pytest.raises(ConfigError, match=reason) as caught:
            client(server, concurrency=1).complete(QUESTIONS)
        assert len(server.bodies) == 1
    assert caught.value.exit_code == 2
    assert "sk-secret" not in str(caught.value)


def test_servers_that_know_the_token_limit_by_its_newer_name_only():
    def newer(body, number):
        if "max_tokens" in body:
            said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return fails(400, said, "unsupported_parameter")
        return says(str(body["max_completion_tokens"]))

    with serving(newer) as server:
        outcomes = client(server, concurrency=1).complete(QUESTIONS)
        assert texts(outcomes) == ["20"] * 12
        assert len(server.bodies) == 13
    assert {outcome.attempts for outcome in outcomes} == {1}


def test_servers_of_ones_own_need_no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving(echo) as server:
        client(server).complete(QUESTIONS[:1])
    assert server.keys == ["Bearer none"]


def test_text_that_is_no_unicode():
    answer = Response(WHOLE.replace(b"hello", b"\\ud83d and \\ud83d\\ude42"))
    with serving(lambda *_: answer) as server:
        good, bad = client(server, max_failed_share=0.5).complete([ask("a"), ask("half \ud83d")])
    assert good.text == "\N{REPLACEMENT CHARACTER} and \N{SLIGHTLY SMILING FACE}"
    assert bad.status == "failed"
    assert "surrogate" in bad.reason


def test_settings_that_cannot_work_are_listed_together():
    with pytest.raises(ConfigError) as caught:
        ServerOptions("127.0.0.1:8000", "", concurrency=0)
    assert all(name in str(caught.value) for name in ("url", "model", "concurrency"))
    with pytest.raises(ConfigError, match="user name or password") as caught:
        ServerOptions("https://me:hunter2@example.org/v1", "m")
    assert "hunter2" not in str(caught.value)


def test_the_package_is_asked_for_before_anything_is_sent(monkeypatch):
    monkeypatch.setattr(openai_client.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'empathax\[prefer\]'"):
        ChatServer(ServerOptions("http://127.0.0.1:1/v1", "m"))


def test_nothing_to_ask_asks_nothing():
    assert client("http://127.0.0.1:1/v1").complete([]) == []
