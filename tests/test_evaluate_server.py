"""The evaluate command with servers on loopback: a row of replies that a server gave, and a judge of replies."""

import dataclasses
import json

import pytest

from empathax import evaluate, report
from empathax.evaluation.report.record import FILE, read_record, write_record
from tests.evaluation.judging.loopback_server import LoopbackServer, says
from tests.evaluation.report import made_up
from tests.test_evaluate import CONFIG

REPLY = "What happened at work, do you think?"


def answer(body, number):
    """A judge's verdict where a rubric is asked for, else a reply."""
    rubric = body["messages"][0]["content"]
    if "trusted" in rubric:
        return says('The reference says so. {"reason": "It follows.", "label": "entailment"}')
    if "JSON" in rubric:
        return says('{"reason": "asks", "score": 4}' if number % 2 else '{"reason": "asks", "score": 2}')
    return says(REPLY)


@pytest.fixture
def server():
    server = LoopbackServer(answer)
    yield server
    server.close()


@pytest.fixture
def config_path(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return path


def test_a_servers_replies_as_a_row(server, config_path, tmp_path, capsys):
    flags = [f"--config={config_path}", "--config.stages=sft", "--config.eval.turns=3", f"--server={server.url}"]
    flags += ["--server-model=other", f"--record={tmp_path / 'record'}", f"--response-cache={tmp_path / 'cache'}"]
    assert evaluate.main(flags) == 0
    record = read_record(tmp_path / "record" / "evaluation.json")
    assert record.label == record.model == "other"
    assert {reply.reply for reply in record.replies} == {REPLY}
    assert record.metrics["questions_per_reply"] == 1.0
    assert "perplexity" not in record.metrics
    assert {body["model"] for body in server.bodies} == {"other"}
    sent = [[(turn["role"], turn["content"]) for turn in body["messages"]] for body in server.bodies]
    assert all([(turn.role, turn.content) for turn in reply.prompt] in sent for reply in record.replies)
    assert "| other " in capsys.readouterr().out
    num_asked = len(server.bodies)
    assert evaluate.main(flags) == 0
    assert len(server.bodies) == num_asked  # every answer was kept


def test_a_judge_of_files(server, tmp_path):
    for name, texts in (("said", ["a b", "c d", "e"]), ("gold", ["a", "c", "f"])):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    flags = [f"--predictions={tmp_path / 'said.jsonl'}", f"--references={tmp_path / 'gold.jsonl'}"]
    flags += [f"--judge={server.url}", "--judge-model=wise", f"--record={tmp_path / 'record'}"]
    assert evaluate.main([*flags, "--judge-criteria=empathy,factuality"]) == 0
    record = read_record(tmp_path / "record" / "evaluation.json")
    assert record.metrics["factuality"] == 100.0
    assert record.metrics["empathy"] == pytest.approx(sum(record.per_example["empathy"].values) / 3)
    assert set(record.per_example["empathy"].values) <= {2.0, 4.0}
    assert "politeness" not in record.metrics
    assert record.decoding["judge"] == "wise"
    assert len(record.decoding["rubric empathy"]) == 12


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--server=ftp://x", "--server-model=m"], "expected http://"),
        (["--server=http://127.0.0.1:1/v1"], "belong together"),
        (["--server=http://127.0.0.1:1/v1", "--server-model=m", "--config.eval.top_k=3"], "top_k"),
        (["--judge=http://127.0.0.1:1/v1", "--judge-model=m", "--judge-criteria=warmth"], "no rubric for warmth"),
    ],
)
def test_servers_that_cannot_work(config_path, capsys, flags, reason):
    assert evaluate.main([f"--config={config_path}", *flags]) == 2
    assert reason in capsys.readouterr().err


def prefers_questions(body, number):
    """A judge of pairs: the reply with a question mark; of two, the one that stands first."""
    shown = json.loads(body["messages"][1]["content"])
    winner = "first" if "?" in shown["first"] else "second" if "?" in shown["second"] else "tie"
    return says(json.dumps({"reason": "asks", "winner": winner}))


def test_a_judge_compares_every_row_with_the_first(tmp_path):
    base, tuned = made_up.record("base"), made_up.record("+SFT")
    asks = [dataclasses.replace(reply, reply="I see.") for reply in base.replies]
    says_all = [dataclasses.replace(reply, reply=f"Why {n}?") for n, reply in enumerate(tuned.replies)]
    for name, record, replies in (("a", base, asks), ("b", tuned, says_all)):
        (tmp_path / name).mkdir()
        write_record(tmp_path / name / FILE, dataclasses.replace(record, replies=tuple(replies)))
    judge = LoopbackServer(prefers_questions)
    try:
        flags = [f"--runs={tmp_path}", f"--out={tmp_path / 'out'}", f"--judge={judge.url}", "--judge-model=m"]
        assert report.main(flags) == 0
    finally:
        judge.close()
    assert len(judge.bodies) == 2 * len(tuned.replies)
    assert "wins against the first row" in (tmp_path / "out" / "table.md").read_text()
    assert "100.0 [100.0, 100.0]" in (tmp_path / "out" / "table.md").read_text()
