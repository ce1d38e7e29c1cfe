"""The command: rules from files to files."""

import json

import pytest

from empathax import build_preferences
from empathax.config import DataOptions
from empathax.config.losses import PAIRED_ROWS
from empathax.data.records import PreferenceRow
from empathax.data.sources import load_splits
from empathax.preferences.llm_run import RANKERS
from empathax.preferences.rules import RULES
from tests.preferences.dialogues import dialogue, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def run(*flags) -> int:
    return build_preferences.main([str(flag) for flag in flags])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rules_make_sets_that_training_reads_and_that_are_the_same_again(corpus, tmp_path, capsys):
    out = tmp_path / "sets"
    command = (f"--source={corpus}", "--rules=position,failed_supporter", f"--out={out}")
    assert run(*command) == 0
    assert "words alone order" in capsys.readouterr().out
    first = {path: path.read_bytes() for path in out.rglob("*.*")}
    assert {path.relative_to(out).as_posix() for path in first} >= {
        f"{rule}/{name}"
        for rule in ("position", "failed_supporter")
        for name in ("train.jsonl", "valid.jsonl", "dropped.jsonl", "summary.json", "README.md")
    }
    assert run(*command) == 0
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == first
    splits = load_splits(DataOptions(path=str(corpus), preference_path=str(out / "position")), PAIRED_ROWS)
    summary = json.loads((out / "position" / "summary.json").read_text())
    assert len(splits.train) == summary["splits"]["train"]["pairs"] > 50
    assert len(splits.eval) == summary["splits"]["valid"]["pairs"] > 5
    assert all(isinstance(row, PreferenceRow) for row in splits.train)
    row = lines(out / "position" / "train.jsonl")[0]
    assert row["provenance"]["source"].startswith(str(corpus / "train.jsonl:"))
    assert row["provenance"]["rejected"]["rule"] == "position"
    assert row["dialogue_id"] == splits.train[0].dialogue_id


def test_pairs_that_show_words_of_a_later_split_are_left_out(tmp_path):
    source = write_corpus(tmp_path / "corpus", (30, 6, 6))
    shown = dialogue(36)  # of the test split, in the training split too
    with (source / "train.jsonl").open("a") as file:
        file.write(json.dumps(shown) + "\n")
    assert run(f"--source={source}", "--rules=opposite_emotion", f"--out={tmp_path / 'out'}") == 0
    said = {turn["text"] for turn in shown["dialog"]}
    rows = lines(tmp_path / "out" / "train.jsonl")
    assert len(rows) > 100
    for row in rows:
        turns = [turn["content"] for turn in row["prompt"] if turn["role"] == "user"]
        assert not said & {*turns, row["chosen"][0]["content"], row["rejected"][0]["content"]}
    dropped = [entry for entry in lines(tmp_path / "out" / "dropped.jsonl") if entry["reason"] == "overlap"]
    assert len(dropped) >= 8


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--rules=posision"], 2, "rule 'posision' is unknown: expected some of premature_advice"),
        (["--rules=position", "--splits=dev"], 2, "split 'dev' is unknown: expected some of train, valid, test"),
        (["--rules=position", "--surce=x"], 2, "unknown arguments: --surce=x"),
        (["--rules=failed_supporter", "--failed=nowhere.json"], 3, "nowhere.json: no such file"),
        (["--rules=position", "--max-length-ratio=0.5"], 2, "expected 1 or more"),
        (["--rules=position", "--splits=test,train", "--config.data.eval_path=absent"], 3, "absent"),
    ],
)
def test_what_cannot_work_is_said(corpus, tmp_path, capsys, flags, code, said):
    assert run(f"--source={corpus}", f"--out={tmp_path / 'out'}", *flags) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--rules=position", "--dry-run"], "--dry-run would have no effect"),
        (["--rules=position", "--rank=judge", "--budget=3"], "--rank, --budget would have no effect"),
        (["--candidates=levels", "--model=m", "--reviews=a.csv"], "--reviews would have no effect"),
        (["--candidates=levels", "--model=m", "--levels=dir"], "--levels would have no effect"),
        (["--candidates=levels", "--model=m", "--failed=f"], "--failed would have no effect"),
        (["--candidates=levels", "--model=m", "--budget=9", "--timeout=3"], "--timeout, --budget would have no effect"),
        (["--inspect=x", "--seed=3"], "--seed would have no effect"),
        (["--candidates=levels", "--max-contexts=-2"], "'-2': expected a whole number from 0 on"),
        (["--candidates=levels", "--top-p=7"], "'7': expected a number from 0 to 1"),
        (["--candidates=levels", "--temperature=hot"], "'hot': expected a number from 0 on"),
    ],
)
def test_flags_that_say_nothing_are_refused(corpus, tmp_path, capsys, given, said):
    with pytest.raises(SystemExit, match="2"):
        run(f"--source={corpus}", f"--out={tmp_path / 'out'}", *given)
    assert said in capsys.readouterr().err


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path, capsys):
    source = tmp_path / "one.jsonl"
    source.write_text("".join(json.dumps(dialogue(number)) + "\n" for number in range(40)))
    assert run(f"--source={source}", "--rules=position", f"--out={tmp_path / 'out'}", "--splits=test") == 3
    assert "has nothing in the split 'test'; contexts that it has: train" in capsys.readouterr().err


def test_settings_say_what_the_contexts_are(corpus, tmp_path, capsys):
    out = tmp_path / "all"
    settings = "--config.data.max_train_dialogues=20"
    assert run(f"--source={corpus}", "--rules=all", f"--out={out}", settings) == 0
    assert "train 160 in 20 of 30 dialogues, valid 48 in 6 of 6 dialogues; data.seeker" in capsys.readouterr().out
    found = {rule: json.loads((out / rule / "summary.json").read_text())["settings"] for rule in RULES}
    assert found["position"]["data"]["max_train_dialogues"] == 20
    assert found["failed_supporter"]["failed"] == str(corpus / "failed_esconv.json")
    assert found["position"]["failed"] is None
    for rule in RULES:  # each can be made again by itself
        assert run(f"--source={corpus}", f"--rules={rule}", f"--out={out / rule}", settings) == 0


def test_failed_dialogues_lie_beside_a_source_that_is_a_file(corpus, tmp_path):
    assert run(f"--source={corpus / 'train.jsonl'}", "--rules=failed_supporter", f"--out={tmp_path / 'out'}") == 0


def test_a_rule_that_fails_leaves_no_files(tmp_path, capsys):
    rows = [
        {"messages": [{"role": "user", "content": f"a{n}"}, {"role": "assistant", "content": "b"}]} for n in range(9)
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    assert run(f"--source={tmp_path / 'chat.jsonl'}", "--rules=opposite_emotion", f"--out={out}") == 3
    assert (
        "opposite_emotion: no pair can be made of 9 contexts; it needs dialogues with emotions"
        in capsys.readouterr().err
    )
    assert not out.exists()


def test_a_rule_needs_pairs_in_one_split_only(corpus, tmp_path):
    flags = [f"--source={corpus}", "--rules=failed_supporter", "--splits=train,test", f"--out={tmp_path / 'out'}"]
    failed = json.loads((corpus / "failed_esconv.json").read_text())
    (tmp_path / "few.json").write_text(json.dumps(failed[:1]))
    assert run(*flags, f"--failed={tmp_path / 'few.json'}") == 0
    splits = json.loads((tmp_path / "out" / "summary.json").read_text())["splits"]
    assert sorted(facts["pairs"] > 0 for facts in splits.values()) == [False, True]


def test_the_help_names_every_rule_and_ranker(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit, match="0"):
        run("--help")
    said = capsys.readouterr().out
    assert f"some of {','.join(RULES)} (" in said
    assert f"{', '.join(RANKERS)}: one, or several" in said


def test_a_directory_with_another_set_is_refused(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(f"--source={corpus}", "--rules=position", f"--out={out}") == 0
    before = (out / "train.jsonl").read_bytes()
    assert run(f"--source={corpus}", "--rules=position", f"--out={out}", "--seed=1") == 2
    assert "seed was 0 and is now 1" in capsys.readouterr().err
    assert (out / "train.jsonl").read_bytes() == before
    assert run(f"--source={corpus}", "--rules=position", f"--out={corpus}") == 2
    assert "name an empty directory" in capsys.readouterr().err
