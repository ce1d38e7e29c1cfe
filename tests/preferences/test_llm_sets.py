"""Sets of a language model behind a server that behaves, fails, and is killed (fault matrix, row 29)."""

import csv
import io
import json
import signal
import subprocess
import sys
import time

import pytest

from empathax import build_preferences
from tests.evaluation.judging.loopback_server import Response, fails, says, serving
from tests.preferences.dialogues import write_corpus


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


WORDS = {
    "listening": "What went through you when that happened to you",
    "accurate reflection": "It seems that this week took the ground from under you",
    "validating": "No wonder you are worn out after carrying that for so long",
    "radical genuineness": "You got up again each morning and I find that brave",
    "compare two": "",
}


def write(body: dict, number: int) -> Response:
    """A reply of the kind that is asked for, or a verdict for the longer one."""
    system = body["messages"][0]["content"]
    if system.startswith("You compare"):
        material = json.loads(body["messages"][-1]["content"])
        longer = "first" if len(material["first"]) > len(material["second"]) else "second"
        return says(json.dumps({"reason": "", "winner": longer}))
    kind = next(name for name in WORDS if f"Kind of response: {name}" in system)
    topic = " ".join(body["messages"][-1]["content"].split()[:6])
    return says(f"{WORDS[kind]}, {topic}.")


def run(corpus, server, out, *flags) -> int:
    common = (f"--source={corpus}", "--candidates=levels", "--splits=train", "--max-contexts=40", f"--out={out}")
    url = server if isinstance(server, str) else server.url
    return build_preferences.main([*common, f"--server={url}", "--server-model=m", *map(str, flags)])


def rows(out):
    return [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]


def without_times(out):
    found = rows(out)
    for row in found:
        row["provenance"].pop("time")
        for side in ("chosen", "rejected"):
            row["provenance"][side].pop("time")
            row["provenance"][side].pop("response")
            row["provenance"][side].pop("server")
    return found


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """The rows of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "set"
    with pytest.MonkeyPatch.context() as patch, serving(write) as server:
        patch.setenv("NO_PROXY", "127.0.0.1")
        assert run(corpus, server, out) == 0
        assert len(server.bodies) == 160
    return out


def test_rows_say_where_everything_comes_from(whole):
    found = rows(whole)
    assert len(found) == 40
    for row in found:
        provenance = row["provenance"]
        chosen = provenance["chosen"]
        assert chosen["variant"] == ("listening", "reflection", "validating", "genuineness")[provenance["quartile"]]
        assert (chosen["by"], chosen["model"], chosen["prompt"]) == ("model", "m", f"level_{chosen['variant']}")
        assert len(chosen["prompt_version"]) == 12
        assert time.time() - 600 < chosen["time"] <= time.time()
        assert row["prompt"][-1]["role"] == "user"
        assert (
            0
            < provenance["margin"]
            == pytest.approx(provenance["scores"]["design"][0] - provenance["scores"]["design"][1])
        )
    card = (whole / "README.md").read_text()
    assert "one for each of the four levels" in card
    assert json.loads((whole / "summary.json").read_text())["notes"]["replies_asked_for"] == {"answered": 160}


def test_a_rerun_costs_nothing_and_changes_nothing(corpus, whole):
    before = {path.name: path.read_bytes() for path in whole.iterdir() if path.is_file()}
    url = rows(whole)[0]["provenance"]["chosen"]["server"]
    assert run(corpus, url, whole) == 0  # nobody listens there any more
    assert {path.name: path.read_bytes() for path in whole.iterdir() if path.is_file()} == before


def test_a_killed_run_goes_on_without_a_row_lost_or_asked_for_twice(corpus, whole, tmp_path):
    out = tmp_path / "set"

    def slowly(body, number):
        time.sleep(0.02)
        return write(body, number)

    with serving(slowly) as server:
        flags = [f"--source={corpus}", "--candidates=levels", "--splits=train", "--max-contexts=40", f"--out={out}"]
        flags += [f"--server={server.url}", "--server-model=m", "--concurrency=2"]
        process = subprocess.Popen([sys.executable, "-m", "empathax.build_preferences", *flags])
        deadline = time.monotonic() + 60
        while len(server.bodies) < 70 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
        num_asked = len(server.bodies)
        assert 70 <= num_asked < 160
        num_kept = len((out / "responses" / "responses.jsonl").read_text().splitlines())
        assert build_preferences.main(flags) == 0
        assert len(server.bodies) - num_asked == 160 - num_kept
        assert num_asked - num_kept <= 2  # under way when the process died
    assert without_times(out) == without_times(whole)


FAULTS = {
    3: fails(429, "slow down"),
    30: fails(429, "wait", Retry_After="0.2"),
    31: fails(500),
    50: Response(says("x").body[:40]),  # JSON that is cut off
    51: Response(b"{}", stated_length=5000),  # a connection that is
    90: Response(says("x").body, seconds_a_byte=0.1),  # an answer that would take half a minute
    120: Response(b"<html>502</html>"),
}


def test_faults_that_pass_leave_no_trace_in_the_rows(corpus, whole, tmp_path):
    with serving(lambda body, number: FAULTS.get(number) or write(body, number)) as server:
        assert run(corpus, server, tmp_path / "set", "--timeout=3", "--first-wait=0.01") == 0
        assert len(server.bodies) == 160 + len(FAULTS)
    assert without_times(tmp_path / "set") == without_times(whole)


def test_a_server_that_dies_ends_with_counts_and_the_run_goes_on_later(corpus, whole, tmp_path, capsys):
    out = tmp_path / "set"
    dies_at = 140

    with serving(lambda body, number: fails(503) if number > dies_at else write(body, number)) as server:
        # same address: the answers are kept under it
        assert run(corpus, server, out, "--first-wait=0.01", "--max-attempts=2") == 3
        said = capsys.readouterr().err
        assert "5 requests failed one after another" in said
        assert "Run the same again to go on" in said
        assert len(rows(out)) == 32  # the portion that was finished
        dies_at = 10**9
        assert run(corpus, server, out, "--first-wait=0.01", "--max-attempts=2") == 0
    assert without_times(out) == without_times(whole)


def test_refusals_and_empty_answers_are_counted_and_make_no_candidates(corpus, tmp_path):
    def answer(body, number):
        system = body["messages"][0]["content"]
        if "Kind of response: listening" in system:
            return says(None, refusal="I will not")
        return says(" ") if "Kind of response: validating" in system else write(body, number)

    out = tmp_path / "set"
    with serving(answer) as server:
        assert run(corpus, server, out) == 0
        assert len(server.bodies) == 160
    notes = json.loads((out / "summary.json").read_text())["notes"]
    assert notes["replies_asked_for"] == {"refused": 40, "answered": 80, "empty": 40}
    assert {row["provenance"]["chosen"]["variant"] for row in rows(out)} <= {"reflection", "genuineness"}


def test_refusals_in_plain_words_leave_the_other_replies(corpus, tmp_path, capsys):
    def answer(body, number):
        refuses = "Kind of response: listening" in body["messages"][0]["content"]
        return says("I'm sorry, but as an AI I can't continue this conversation.") if refuses else write(body, number)

    out = tmp_path / "set"
    with serving(answer) as server:
        assert run(corpus, server, out) == 0
    # least fitting: in quartile 1 genuineness, in 4 (and 3, where two were) reflection, in 2 genuineness
    assert {row["provenance"]["quartile"] for row in rows(out)} >= {0, 1, 3}
    assert not [row for row in rows(out) if "as an AI" in json.dumps(row)]
    left_out = [json.loads(line)["left_out"] for line in (out / "candidates.jsonl").read_text().splitlines()]
    assert [[one["reason"] for one in found] for found in left_out] == [["refusal"]] * 40
    assert {one["variant"] for found in left_out for one in found} == {"listening"}
    assert "replies left out: refusal 40" in capsys.readouterr().out


def test_a_budget_stops_a_run_and_a_larger_one_lets_it_go_on(corpus, whole, tmp_path, capsys):
    out = tmp_path / "set"
    with serving(write) as server:
        assert run(corpus, server, out, "--budget=4300") == 3
        said = capsys.readouterr().err
        assert "the budget does not allow for more" in said
        assert "Raise --budget. Run the same again" in said
        warning = json.loads((out / "summary.json").read_text())["warnings"][0]
        assert warning.startswith("Incomplete: 32 of 40 contexts. It was stopped: ")
        assert warning in (out / "README.md").read_text()
        asked = len(server.bodies)
        assert 128 <= asked < 160
        assert asked * 15 <= 4300
        assert len(rows(out)) == 32
        assert run(corpus, server, out, "--budget=100000") == 0
        assert len(server.bodies) == 160
    assert "Incomplete" not in (out / "README.md").read_text()
    assert without_times(out) == without_times(whole)


def test_an_account_that_runs_dry_leaves_what_was_done(corpus, whole, tmp_path, capsys):
    out, dry_at = tmp_path / "set", 140

    def answer(body, number):
        return fails(429, "no money", "insufficient_quota") if number > dry_at else write(body, number)

    with serving(answer) as server:
        assert run(corpus, server, out) == 2
        assert "holds what was done before the error" in capsys.readouterr().out
        assert len(rows(out)) == 32
        dry_at = 10**9
        assert run(corpus, server, out) == 0
    assert without_times(out) == without_times(whole)


def test_a_finished_set_is_not_replaced_by_less(corpus, tmp_path, capsys):
    out = tmp_path / "set"
    with serving(write) as server:
        assert run(corpus, server, out) == 0
        before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
        (out / "responses" / "responses.jsonl").unlink()
        server.answer = lambda body, number: fails(503)
        assert run(corpus, server, out, "--first-wait=0.01", "--max-attempts=1") == 3
    assert "keeps the set of 40 contexts that was made before" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_replies_cut_at_the_limit_are_warned_of(corpus, tmp_path, capsys):
    def answer(body, number):
        return says(json.loads(write(body, number).body)["choices"][0]["message"]["content"], "length")

    with serving(answer) as server:
        assert run(corpus, server, tmp_path / "set", "--max-contexts=4", "--max-new-tokens=7") == 0
    warning = "8 of 8 replies were cut at the limit of 7 tokens and end in the middle: raise --max-new-tokens"
    assert warning in capsys.readouterr().out
    assert warning in (tmp_path / "set" / "README.md").read_text()


def test_ctrl_c_says_that_answers_are_kept(corpus, tmp_path, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, serving(write) as server:
        patch.setattr("empathax.preferences.llm_sets.filter_pairs", interrupt)
        assert run(corpus, server, tmp_path / "set", "--max-contexts=2") == 130
    assert "responses: run the same again to go on" in capsys.readouterr().err


def test_a_judge_and_the_design_must_agree(corpus, tmp_path):
    out = tmp_path / "set"
    with serving(write) as server:
        assert run(corpus, server, out, "--rank=judge", "--max-contexts=8") == 0
        assert len(server.bodies) == 8 * 4 + 8 * 12
        assert run(corpus, server, out, "--rank=judge", "--max-contexts=8", "--judge-max-tokens=64") == 2
        both = tmp_path / "both"
        cache = f"--response-cache={out / 'responses'}"
        assert run(corpus, server, both, "--rank=judge,design", "--max-contexts=8", cache) == 0
        assert len(server.bodies) == 8 * 4 + 8 * 12
    for row in rows(out):
        assert row["provenance"]["chosen"]["variant"] == "validating"  # the longest
        assert row["provenance"]["scores"]["judge"] == [1.0, 0.0]
    judge = json.loads((out / "summary.json").read_text())["settings"]["rankers"]["judge"]
    assert (judge["model"], judge["rubric"], judge["max_tokens"]) == ("m", "better_validation", 512)
    assert len(judge["rubric_version"]) == 12
    notes = json.loads((both / "summary.json").read_text())["notes"]
    assert 0 < len(rows(both)) < len(rows(out))
    assert sum(notes["contexts_without_a_pair"].values()) + len(rows(both)) == 8


def test_verdicts_that_cannot_be_read_are_counted_and_a_set_without_pairs_is_an_error(corpus, tmp_path, capsys):
    def answer(body, number):
        return (
            says("both are fine") if body["messages"][0]["content"].startswith("You compare") else write(body, number)
        )

    with serving(answer) as server:
        assert run(corpus, server, tmp_path / "set", "--rank=judge", "--max-contexts=3") == 3
    said = capsys.readouterr()
    assert "levels: no pair came out (contexts without one: no majority for the most fitting reply 3)" in said.err
    notes = json.loads((tmp_path / "set" / "summary.json").read_text())["notes"]
    assert notes["unreadable_verdicts"] == 3 * 6
    assert "There are no pairs in it." in (tmp_path / "set" / "README.md").read_text()


def test_people_rank_in_two_steps(corpus, tmp_path, capsys):
    out = tmp_path / "set"
    with serving(write) as server:
        assert run(corpus, server, out, "--rank=human") == 0
        assert rows(out) == []
        assert "is for annotators" in capsys.readouterr().out
        lines = (out / "review.csv").read_text(encoding="utf-8-sig").splitlines()
        assert len(lines) >= 161
        filled = (out / "review.csv").read_text(encoding="utf-8-sig")
        for rank, words in enumerate(list(WORDS.values())[:4], start=1):
            filled = "\n".join(
                f"{line}{rank}" if words in line and line.endswith(",") else line for line in filled.splitlines()
            )
        (out / "review.csv").write_text(filled)  # no copy was made: what is in the file stays
        assert run(corpus, server, out, "--rank=human", f"--reviews={out / 'review.csv'}") == 0
        assert (out / "review.csv").read_text() == filled
        kept = (out / "train.jsonl").read_bytes()
        (tmp_path / "other.csv").write_text(filled.replace("worn out", "tired"))
        assert run(corpus, server, out, "--rank=human", f"--reviews={tmp_path / 'other.csv'}") == 3
        (tmp_path / "more.csv").write_text(f"{filled}\nelsewhere/3,,A,,1\n")
        assert run(corpus, server, out, "--rank=human", f"--reviews={tmp_path / 'more.csv'}") == 3
        assert "there is no context elsewhere/3 in this set" in capsys.readouterr().err
        assert run(corpus, server, out, "--rank=human") == 2
        assert "pairs by people's ranks: name these with --reviews again" in capsys.readouterr().err
        assert (out / "train.jsonl").read_bytes() == kept
        assert len(server.bodies) == 160
    assert len(rows(out)) > 20
    assert all(row["provenance"]["chosen"]["variant"] == "listening" for row in rows(out))


def test_replies_wait_for_people_though_other_rankers_have_seen_them(corpus, tmp_path):
    out = tmp_path / "set"
    with serving(write) as server:
        for _ in range(2):  # the same again is no other command
            assert run(corpus, server, out, "--rank=human,design") == 0
            assert rows(out) == []
        text = (out / "review.csv").read_text(encoding="utf-8-sig")
        lines = list(csv.DictReader(io.StringIO(text, newline="")))
        first = lines[0]["context_id"]
        level = {words: rank for rank, words in enumerate(list(WORDS.values())[:4], start=1)}
        for line in lines:
            if line["context_id"] == first:
                line["rank"] = next(rank for words, rank in level.items() if words in line["reply"])
        with (tmp_path / "ann.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, lines[0])
            writer.writeheader()
            writer.writerows(lines)
        assert run(corpus, server, out, "--rank=human,design", f"--reviews={tmp_path / 'ann.csv'}") == 0
    (row,) = rows(out)  # of the context that a person has ranked
    assert row["provenance"]["context_id"] == first
    assert row["provenance"]["scores"].keys() == {"human:ann", "design"}
    unused = json.loads((out / "summary.json").read_text())["notes"]["contexts_without_a_pair"]
    assert unused == {"nobody ranked it": 39}


def test_what_a_killed_start_left_is_no_other_set(corpus, tmp_path):
    out = tmp_path / "set"
    out.mkdir()
    (out / ".started.json.x1y2").write_text("{")
    with serving(write) as server:
        assert run(corpus, server, out, "--max-contexts=2", f"--response-cache={out / 'kept'}") == 0
    assert (out / "kept" / "responses.jsonl").exists()


def test_a_dry_run_asks_nobody_and_writes_nothing(corpus, tmp_path, capsys):
    out = tmp_path / "set"
    prices = ("--prompt-price=1", "--answer-price=2")
    assert run(corpus, "http://127.0.0.1:9/v1", out, "--dry-run", "--rank=judge", *prices) == 0
    said = capsys.readouterr().out
    assert "Kind of response: radical genuineness" in said
    assert "replies: 160 requests" in said
    assert "judge: 480 requests" in said
    assert "in all: about" in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--rank=jury"], 2, "ranker 'jury' is unknown: expected some of design, judge, levels, human"),
        (["--rank=levels"], 2, "--rank=levels needs --levels=DIR"),
        (["--model=random:tiny"], 2, "--server and --model both write"),
        (
            ["--candidates=samples", "--num-samples=27", "--rank=human"],
            2,
            "people rank 26 replies of a context",
        ),
        (["--requests-per-minute=-1"], 2, "requests_per_minute = -1.0: expected 0"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_asked(corpus, tmp_path, capsys, flags, code, said):
    assert run(corpus, "http://127.0.0.1:9/v1", tmp_path / "set", *flags) == code
    assert said in capsys.readouterr().err
