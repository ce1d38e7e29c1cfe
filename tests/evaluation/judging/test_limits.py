"""A pace that is kept, and a budget that is never passed."""

import asyncio
import threading

import pytest

from empathax.data.records import Message
from empathax.errors import DataError
from empathax.evaluation.judging.chat_requests import ChatRequest
from empathax.evaluation.judging.chat_server import BudgetReached, ChatServer, ServerOptions
from empathax.evaluation.judging.limits import Budget, Pace, Prices, most_tokens
from tests.evaluation.judging.loopback_server import FakeTime, client, fails, says, serving


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def ask(number: int, max_tokens: int = 20) -> ChatRequest:
    return ChatRequest((Message("user", f"question {number}"),), max_tokens=max_tokens)


QUESTIONS = [ask(number) for number in range(10)]


@pytest.mark.parametrize(
    ("per_minute", "tokens_per_minute", "seconds"),
    [(30, 0, 2.0), (0, 600, (10 // 4 + 8 + 20) / 10), (30, 600, 3.0), (0, 0, 0.0)],
)
def test_starts_are_so_many_seconds_apart(per_minute, tokens_per_minute, seconds):
    time = FakeTime()
    pace = Pace(per_minute, tokens_per_minute, time.clock, time.sleep)
    starts = []

    async def run():
        for request in QUESTIONS[:4]:
            await pace.wait(request)
            starts.append(time.now)

    asyncio.run(run())
    assert starts == pytest.approx([seconds * number for number in range(4)])


def test_a_server_is_asked_at_its_pace_retries_too():
    time = FakeTime()
    with serving(lambda body, number: fails(500) if number == 2 else says("x")) as server:
        chat = client(server, time=time, requests_per_minute=6, concurrency=1)
        chat.complete(QUESTIONS[:3])
        assert len(server.bodies) == 4
    assert time.now == pytest.approx(30.0)  # the wait before the retry is part of its ten seconds


def budgeted(server, most, cache=None, prices=Prices(), **options) -> ChatServer:  # noqa: B008
    return ChatServer(ServerOptions(server.url, "m", **options), cache, budget=Budget(prices, most))


@pytest.mark.parametrize("concurrency", [1, 4])
def test_nothing_is_sent_that_could_pass_the_budget_and_answers_stay(tmp_path, concurrency):
    bound = sum(most_tokens(QUESTIONS[0]))  # 10 + 8 + 20 = 38; an answer costs 10 + 5 = 15
    assert bound == 38
    most = 4 * 15 + bound  # the fifth fits as long as four were paid for; of the sixth that cannot be said
    with serving(lambda body, number: says("fine")) as server:
        chat = budgeted(server, most, tmp_path, concurrency=concurrency)
        with pytest.raises(BudgetReached, match=r"75 tokens of 98 tokens spent; of 10 .* 5 were not sent") as error:
            chat.complete(QUESTIONS)
        assert isinstance(error.value, DataError)
        assert len(server.bodies) == 5
        again = budgeted(server, most, tmp_path)
        with pytest.raises(BudgetReached, match="75 tokens of 98"):
            again.complete(QUESTIONS)
        assert len(server.bodies) == 5  # what was paid for counts: running again starts no new budget
        richer = budgeted(server, 10 * 38, tmp_path)
        assert [outcome.text for outcome in richer.complete(QUESTIONS)] == ["fine"] * 10
        assert len(server.bodies) == 10
        assert richer.budget.spent == 150


def test_prices_and_servers_that_do_not_count():
    prices = Prices(prompt=1e6, answer=2e6)
    with serving(lambda body, number: says("fine")) as server:
        chat = budgeted(server, 0, prices=prices)
        chat.complete(QUESTIONS[:2] * 2)
    assert chat.budget.spent == pytest.approx(2 * (10 + 2 * 5))
    assert chat.budget.facts() == {"requests": 2, "prompt_tokens": 20, "answer_tokens": 10, "cost": 40.0}
    uncounted = says("fine")
    uncounted.body = uncounted.body.replace(b'"usage"', b'"other"')
    with serving(lambda body, number: uncounted) as server:
        chat = budgeted(server, 0)
        chat.complete(QUESTIONS[:1])
    assert chat.budget.spent == 38


def test_what_is_under_way_is_set_aside():
    here = threading.Barrier(2)

    def answer(body, number):
        if number <= 2:
            here.wait(20)
        return says("fine")

    with serving(answer) as server:
        chat = budgeted(server, 2 * 38, concurrency=8)
        with pytest.raises(BudgetReached):
            chat.complete(QUESTIONS)
    assert server.most_at_once == 2
    assert chat.budget.spent <= 76
