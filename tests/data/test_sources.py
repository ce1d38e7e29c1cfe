"""What data.path may name, what is held out, and what becomes a pair."""

import dataclasses
import shutil

import pytest

from empathax.config import DataOptions
from empathax.config.losses import LABELED_ROWS, MISMATCHED_ROWS, PAIRED_ROWS, REPLY_ROWS
from empathax.data.records import CompletionRow, Dialogue, PreferenceRow
from empathax.data.sources import load_all, load_by_split, load_splits
from empathax.errors import DataError


def options(path, **changes):
    return DataOptions(path=str(path), **changes)


def pairs(count, prompt="p{}"):
    return [{"prompt": prompt.format(n), "chosen": f"a{n}", "rejected": f"b{n}"} for n in range(count)]


def esconv(count, first="usr"):
    second = {"usr": "sys", "sys": "usr"}[first]
    return [
        {
            "dialog": [
                {"speaker": first, "text": f"Hi {n}", "strategy": "Question"},
                {"speaker": second, "text": f"Walk {n}", "strategy": "Information"},
                {"speaker": first, "text": f"x {n}", "strategy": "Others"},
                {"speaker": second, "text": f"Sleep {n}", "strategy": "Providing Suggestions"},
            ]
        }
        for n in range(count)
    ]


def test_the_packaged_samples():
    for rows_kind, kind in ((REPLY_ROWS, Dialogue), (PAIRED_ROWS, PreferenceRow)):
        splits = load_splits(options("samples"), rows_kind)
        assert splits.train
        assert splits.eval
        assert all(isinstance(row, kind) for row in splits.train + splits.eval)
        assert not splits.tally.bad
        assert not {row.dialogue_id for row in splits.train} & {row.dialogue_id for row in splits.eval}


def test_a_directory_with_its_own_splits(write_lines, tmp_path):
    write_lines("d/train.jsonl", esconv(5))
    write_lines("d/test.jsonl", esconv(2))
    (tmp_path / "d" / "LICENSE.txt").write_text("free")
    splits = load_splits(options(tmp_path / "d"), REPLY_ROWS)
    assert (len(splits.train), len(splits.eval)) == (5, 2)
    write_lines("d/valid.jsonl", esconv(3))
    assert len(load_splits(options(tmp_path / "d"), REPLY_ROWS).eval) == 3
    assert splits.train[0].origin == f"{tmp_path}/d/train.jsonl:1"


def test_a_test_split_that_is_not_there_is_refused_unless_a_file_is_named(write_lines, tmp_path):
    file = write_lines("rows.jsonl", pairs(6))
    held_out = write_lines("held/held_out.jsonl", pairs(2, "q{}"))
    with pytest.raises(DataError, match=r"found no test split.*data\.eval_path"):
        load_splits(options(file, eval_split="test"), REPLY_ROWS)
    named = load_splits(options(file, eval_split="test", eval_path=str(held_out)), REPLY_ROWS)
    assert (len(named.train), len(named.eval)) == (6, 2)


def test_parts_of_a_split_under_names_of_the_hub(write_lines, tmp_path):
    write_lines("d/data/train-00000-of-00002.jsonl", pairs(2))
    write_lines("d/data/train-00001-of-00002.jsonl", pairs(3, "q{}"))
    write_lines("d/data/test-00000-of-00001.jsonl", pairs(1, "r{}"))
    splits = load_splits(options(tmp_path / "d"), PAIRED_ROWS)
    assert (len(splits.train), len(splits.eval)) == (5, 1)


def test_a_directory_with_one_file_or_with_none_that_fits(write_lines, tmp_path):
    write_lines("d/preferences.jsonl", pairs(20))
    splits = load_splits(options(tmp_path / "d"), PAIRED_ROWS)
    assert len(splits.train) + len(splits.eval) == 20
    write_lines("d/other.jsonl", pairs(1))
    with pytest.raises(DataError, match=r"found other, preferences; expected train.*data.train_split"):
        load_splits(options(tmp_path / "d"), PAIRED_ROWS)


def test_wrong_paths(write_lines, tmp_path):
    write_lines("train.jsonl", pairs(2))
    with pytest.raises(DataError, match=r"no such file.*did you mean .*train.jsonl"):
        load_splits(options(tmp_path / "trian.jsonl"), PAIRED_ROWS)
    with pytest.raises(DataError, match=r"data.path is empty"):
        load_splits(DataOptions(), REPLY_ROWS)
    with pytest.raises(DataError, match=r"'no/such-set' is no file or directory here.*hub"):
        load_splits(options("no/such-set"), REPLY_ROWS)


def test_rows_of_the_hub(monkeypatch):
    import datasets

    rows = [{"text": '{"dialog": [{"speaker": "usr", "text": "Hi"}, {"speaker": "sys", "text": "Hello"}]}'}]
    trl = [{"prompt": None, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"train": rows, "validation": trl})
    splits = load_splits(options("some/esconv"), REPLY_ROWS)
    assert splits.train[0].messages[1].content == "Hello"
    assert splits.eval[0].origin == "some/esconv/validation:1"


def test_the_hash_keeps_equal_prompts_on_one_side(write_lines):
    rows = [row for row in pairs(60) for _ in range(2)]
    path = write_lines("rows.jsonl", rows)
    splits = load_splits(options(path, eval_fraction=0.3), PAIRED_ROWS)
    held, kept = ({row.prompt for row in part} for part in (splits.eval, splits.train))
    assert not held & kept
    assert len(held) + len(kept) == 60
    assert 8 <= len(held) <= 28
    again = load_splits(options(write_lines("again.jsonl", rows[::-1]), eval_fraction=0.3), REPLY_ROWS, seed=5)
    assert {row.prompt for row in again.eval} == held


@pytest.mark.parametrize(("count", "fraction", "held"), [(2, 0.01, 1), (2, 0.9, 1), (1, 0.5, 0), (9, 0.0, 0)])
def test_both_sides_get_something_where_that_is_possible(write_lines, count, fraction, held):
    splits = load_splits(options(write_lines("rows.jsonl", pairs(count)), eval_fraction=fraction), PAIRED_ROWS)
    assert (len(splits.train), len(splits.eval)) == (count - held, held)


def test_another_file_held_out(write_lines):
    train, held = write_lines("a.jsonl", pairs(9)), write_lines("b.jsonl", pairs(4, "q{}"))
    splits = load_splits(options(train, eval_path=str(held)), REPLY_ROWS)
    assert (len(splits.train), len(splits.eval)) == (9, 4)


def test_pairs_have_a_path_and_a_held_out_part_of_their_own(write_lines):
    base = options(write_lines("a.jsonl", esconv(5)), eval_path=str(write_lines("b.jsonl", esconv(2))))
    both = dataclasses.replace(base, preference_path=str(write_lines("c.jsonl", pairs(30))))
    assert len(load_splits(both, REPLY_ROWS).eval) == 2
    splits = load_splits(both, PAIRED_ROWS)
    assert len(splits.train) + len(splits.eval) == 30
    assert all(isinstance(row, PreferenceRow) for row in splits.train + splits.eval)


def test_pairs_made_of_dialogues_stay_within_their_split(write_lines, tmp_path):
    write_lines("d/train.jsonl", esconv(6))
    write_lines("d/valid.jsonl", esconv(4))
    splits = load_splits(options(tmp_path / "d"), PAIRED_ROWS, seed=3)
    assert (len(splits.train), len(splits.eval)) == (12, 8)
    assert {row.rejected.split()[1] for row in splits.eval} <= set("0123")


def test_supporter_first_dialogues(write_lines):
    path = write_lines("rows.jsonl", esconv(4) + esconv(3, first="sys"))
    splits = load_splits(options(path, eval_fraction=0.0), REPLY_ROWS)
    assert len(splits.train) == 4
    assert splits.tally.counts["dialogues left out because the supporter opens them"] == 3
    assert len(load_splits(options(path, eval_fraction=0.0, seeker_first_only=False), REPLY_ROWS).train) == 7


def test_dialogues_can_be_counted_off(write_lines):
    path = write_lines("rows.jsonl", esconv(8))
    splits = load_splits(options(path, eval_fraction=0.5, max_train_dialogues=2, max_eval_dialogues=1), PAIRED_ROWS)
    assert (len({row.dialogue_id for row in splits.train}), len({row.dialogue_id for row in splits.eval})) == (2, 1)
    assert len(splits.train) == 4


@pytest.mark.parametrize("rejected", ["advice", "random"])
def test_rows_without_a_rejected_reply_make_no_pairs(write_lines, rejected):
    path = write_lines("rows.jsonl", [{"prompt": "a", "completion": "b"}] * 3)
    with pytest.raises(DataError, match=r"no rejected reply.*data.preference_path"):
        load_splits(options(path, esconv_rejected=rejected), PAIRED_ROWS)


LABELED = [{"prompt": f"p{n}", "completion": f"a{n}", "label": n % 2 == 0} for n in range(6)]


def test_replies_with_a_label_and_pairs_taken_apart(write_lines):
    path = write_lines("rows.jsonl", LABELED)
    found = load_splits(options(path, eval_fraction=0.0), LABELED_ROWS).train
    assert [row.label for row in found] == [True, False] * 3
    both = write_lines("both.jsonl", [*LABELED, *pairs(2)])
    found = load_splits(options(both, eval_fraction=0.0, unpair=True), LABELED_ROWS).train
    assert [type(row) for row in found] == [CompletionRow] * 6 + [PreferenceRow] * 2


@pytest.mark.parametrize(
    ("rows", "kind", "sentence"),
    [
        (pairs(3), LABELED_ROWS, "the rows are pairs or dialogues.*set data.unpair=true"),
        (pairs(3), MISMATCHED_ROWS, "the rows are pairs or dialogues.*set data.unpair=true"),
        (esconv(3), LABELED_ROWS, "the rows are pairs or dialogues"),
        (LABELED, PAIRED_ROWS, "single replies with a label, and dpo.loss compares pairs: set dpo.loss to 'kto'"),
        ([*LABELED, {"prompt": "a", "completion": "b"}], LABELED_ROWS, "1 of 7 replies have no label.*rows.jsonl:7"),
        ([{"prompt": "a", "completion": "b", "label": "joy"}], LABELED_ROWS, "1 of 1 replies have no label"),
    ],
)
def test_rows_of_another_kind_than_the_loss_reads(rows, kind, sentence, write_lines):
    path = write_lines("rows.jsonl", rows)
    with pytest.raises(DataError, match=sentence):
        load_splits(options(path, eval_fraction=0.0), kind)


def test_a_label_is_of_one_message(write_lines):
    turns = [{"role": role, "content": "x"} for role in ("assistant", "user", "assistant")]
    row = {"prompt": [{"role": "user", "content": "a"}], "completion": turns, "label": True}
    with pytest.raises(DataError, match="completion has 3 messages and a label: expected one assistant message"):
        load_splits(options(write_lines("rows.jsonl", [row])), LABELED_ROWS)


def test_dialogues_without_strategies_make_random_pairs(write_lines):
    path = write_lines(
        "rows.jsonl",
        [
            {"messages": [{"role": "user", "content": f"u{n}"}, {"role": "assistant", "content": f"a{n}"}]}
            for n in range(5)
        ],
    )
    with pytest.raises(DataError, match="esconv_rejected='random'"):
        load_splits(options(path, eval_fraction=0.0), PAIRED_ROWS)
    assert len(load_splits(options(path, eval_fraction=0.0, esconv_rejected="random"), PAIRED_ROWS).train) == 5


def test_bad_rows_end_the_run_with_the_first_reasons(write_lines):
    path = write_lines("rows.jsonl", [*pairs(3), *['{"prompt": '] * 7])
    with pytest.raises(DataError) as error:
        load_splits(options(path), PAIRED_ROWS)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("7 of 10 rows cannot be used (data.max_bad_fraction = 0 allows 0)")
    assert [line.split(": ")[0].strip() for line in lines[1:6]] == [f"- {path}:{n}" for n in range(4, 9)]
    assert lines[6].strip() == "... and 2 more"
    tolerant = load_splits(options(path, max_bad_fraction=0.7, eval_fraction=0.0), PAIRED_ROWS)
    assert (len(tolerant.train), len(tolerant.tally.bad)) == (3, 7)


def test_a_source_of_another_format_than_told(write_lines):
    with pytest.raises(DataError, match='non-empty list "dialog"'):
        load_splits(options(write_lines("rows.jsonl", pairs(1)), source="esconv"), REPLY_ROWS)


def test_every_row_to_score_in_its_own_order(write_lines, tmp_path):
    path = write_lines("rows.jsonl", esconv(2, first="sys") + esconv(1))
    rows, _ = load_all(str(path), DataOptions())
    assert [row.origin for row in rows] == [f"{path}:{n}" for n in (1, 2, 3)]
    shutil.move(path, tmp_path / "empty.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="there is no row in it"):
        load_all(str(tmp_path / "empty.jsonl"), DataOptions())


def test_csv_rows_in_trl_columns(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\nHi,Hello\n")
    assert isinstance(load_all(str(path), DataOptions())[0][0], CompletionRow)


def test_rows_by_split(write_lines, tmp_path):
    write_lines("d/train.jsonl", esconv(5))
    write_lines("d/test.jsonl", esconv(2, "sys"))
    wanted = {"train": 5, "test": 2}  # which is no split for validation here
    assert {split: len(rows) for split, rows in load_by_split(options(tmp_path / "d")).items()} == wanted
    write_lines("d/valid.jsonl", pairs(3))
    for changes in ({}, {"eval_split": "test"}):
        found = load_by_split(options(tmp_path / "d", **changes))
        assert {split: len(rows) for split, rows in found.items()} == {"train": 5, "valid": 3, "test": 2}
    named = write_lines("named.jsonl", pairs(4, "q{}"))
    found = load_by_split(options(tmp_path / "d", eval_path=str(named)))
    assert {split: len(rows) for split, rows in found.items()} == {"train": 5, "valid": 7, "test": 2}
    found = load_by_split(options(tmp_path / "d", eval_path=str(tmp_path / "d" / "test.jsonl")))
    assert {split: len(rows) for split, rows in found.items()} == {"train": 5, "valid": 5}
    with (tmp_path / "d" / "test.jsonl").open("a") as file:
        file.write("{broken\n" * 3)
    with pytest.raises(DataError, match=r"test.jsonl:3"):
        load_by_split(options(tmp_path / "d"))


def test_rows_by_split_of_a_source_without_splits(write_lines):
    file = write_lines("rows.jsonl", pairs(20))
    found = load_by_split(options(file, eval_fraction=0.2))
    assert found.keys() == {"train", "valid"}
    assert found["valid"] == load_splits(options(file, eval_fraction=0.2), REPLY_ROWS).eval
    assert load_by_split(options(file, eval_fraction=0.0)).keys() == {"train"}
    assert load_by_split(options("samples")).keys() == {"train", "valid"}


def test_a_dialogue_is_held_out_in_all_stages_or_in_none(write_lines):
    """Of sources without splits: by its name, or by how it begins where rows have none."""
    names = [f"d{n}" for n in range(40)]
    said = [[{"role": "user", "content": f"I am {name}."}, {"role": "assistant", "content": "Hm."}] for name in names]
    for given in (True, False):
        ids = [{"dialogue_id": name} if given else {} for name in names]
        dialogues = write_lines("d.jsonl", [{"messages": turns, **i} for turns, i in zip(said, ids, strict=True)])
        rows = [{"prompt": turns[:1], "chosen": turns[1:], "rejected": [{"role": "assistant", "content": "No."}], **i}
                for turns, i in zip(said, ids, strict=True)]  # fmt: skip
        both = options(dialogues, preference_path=str(write_lines("p.jsonl", rows)), eval_fraction=0.3)
        held_out = [
            {row.messages[0].content for row in load_splits(both, REPLY_ROWS).eval},
            {row.prompt[0].content for row in load_splits(both, PAIRED_ROWS).eval},
        ]
        assert held_out[0] == held_out[1]
        assert 4 < len(held_out[0]) < 24


def test_windows_of_one_dialogue_are_on_one_side(write_lines):
    rows = [{"prompt": f"window {n}", "chosen": "a", "rejected": "b", "dialogue_id": f"d{n // 5}"} for n in range(100)]
    splits = load_splits(options(write_lines("rows.jsonl", rows), eval_fraction=0.3), PAIRED_ROWS)
    assert splits.eval
    assert not {row.dialogue_id for row in splits.train} & {row.dialogue_id for row in splits.eval}


def test_a_split_in_two_formats_is_refused(write_lines, tmp_path):
    write_lines("d/train.jsonl", pairs(3))
    (tmp_path / "d" / "train.csv").write_text("prompt,chosen,rejected\na,b,c\n")
    with pytest.raises(DataError, match=r"one split in several formats \(train.csv, train.jsonl\)"):
        load_splits(options(tmp_path / "d"), PAIRED_ROWS)


def test_labels_and_names_as_spreadsheets_write_them(write_lines, tmp_path):
    (tmp_path / "rows.csv").write_text(
        "PK_id,prompt,completion,label,dialogue_id\n1,a,b,True,\n2,c,d,FALSE,\n3,e,f,1.0,x\n4,g,h,maybe,x\n"
    )
    rows = load_splits(options(tmp_path / "rows.csv", eval_fraction=0.0), REPLY_ROWS).train
    assert [row.label for row in rows] == [True, False, True, None]
    assert len({row.dialogue_id for row in rows}) == 3
    floats = write_lines(
        "rows.jsonl", [{"prompt": "a", "completion": "b", "label": value} for value in (0.0, 1.0, 0.5)]
    )
    assert [row.label for row in load_splits(options(floats, eval_fraction=0.0), REPLY_ROWS).train] == [
        False,
        True,
        None,
    ]


def replies(count, **columns):
    return [
        {"messages": [{"role": "user", "content": f"u{n}"}, {"role": "assistant", "content": f"a{n}"}], **columns}
        for n in range(count)
    ]


def test_splits_that_are_named_by_what_they_are_for(write_lines, tmp_path):
    for name, count in (("train_prefs", 8), ("train_sft", 5), ("train_gen", 4), ("test_prefs", 3), ("test_sft", 2)):
        write_lines(f"d/data/{name}-00000-of-00001.jsonl", pairs(count, name + "{}"))
    sizes = {}
    for kind in (PAIRED_ROWS, REPLY_ROWS):
        splits = load_splits(options(tmp_path / "d"), kind)
        sizes[kind] = (len(splits.train), len(splits.eval))
    assert sizes == {PAIRED_ROWS: (8, 3), REPLY_ROWS: (5, 2)}
    named = load_splits(options(tmp_path / "d", train_split="train_gen", eval_split="test_sft"), PAIRED_ROWS)
    assert (len(named.train), len(named.eval)) == (4, 2)
    with pytest.raises(DataError, match="'train_x': found the splits test_prefs, test_sft, train_gen"):
        load_splits(options(tmp_path / "d", train_split="train_x"), PAIRED_ROWS)
    file = write_lines("rows.jsonl", pairs(3))
    with pytest.raises(DataError, match="one file without splits"):
        load_splits(options(file, train_split="train_x"), PAIRED_ROWS)


def test_splits_of_the_hub_by_objective(monkeypatch):
    import datasets

    loaded = {name: pairs(n, name + "{}") for n, name in enumerate(("train_gen", "train_prefs", "test_prefs"), start=2)}
    monkeypatch.setattr(datasets, "load_dataset", lambda name: loaded)
    splits = load_splits(options("some/feedback"), PAIRED_ROWS)
    assert (len(splits.train), len(splits.eval)) == (3, 4)


def test_columns_that_are_not_read_are_listed_once(write_lines):
    rows = [{**row, "score": 1, "source": "x"} for row in pairs(3)]
    splits = load_splits(options(write_lines("rows.jsonl", [*rows, *pairs(1)])), PAIRED_ROWS)
    assert splits.tally.counts["rows with columns that are not read (score, source)"] == 3


def test_null_columns_beside_messages(write_lines):
    path = write_lines("rows.jsonl", replies(2, prompt=None, chosen=None, rejected=None))
    assert [type(row) for row in load_splits(options(path, eval_fraction=0.0), REPLY_ROWS).train] == [Dialogue] * 2
    path = write_lines("pairs.jsonl", [{"prompt": None, "chosen": "I'm a", "rejected": "I'm b"}])
    with pytest.raises(DataError, match="prompt is null"):
        load_splits(options(path), PAIRED_ROWS)


@pytest.mark.parametrize("words", [("yes", "no"), (1, -1), ("true", "false"), (True, False), ("1.0", "0.0")])
def test_labels_in_other_words(write_lines, words):
    rows = [{"prompt": f"p{n}", "completion": "x", "label": words[n % 2]} for n in range(12)]
    path = options(write_lines("rows.jsonl", rows), eval_fraction=0.0)
    for kind in (LABELED_ROWS, MISMATCHED_ROWS, REPLY_ROWS):
        assert [row.label for row in load_splits(path, kind).train] == [True, False] * 6


def test_labels_that_say_nothing_of_that(write_lines):
    rows = [{"prompt": f"p{n}", "completion": "x", "label": "joy"} for n in range(3)]
    with pytest.raises(DataError, match=r"3 of 3 replies have no label.*\(label is 'joy'\).*one of true, yes, 1"):
        load_splits(options(write_lines("rows.jsonl", rows), eval_fraction=0.0), LABELED_ROWS)


@pytest.mark.parametrize("kind", [LABELED_ROWS, MISMATCHED_ROWS])
@pytest.mark.parametrize("label", [True, False])
def test_labels_that_are_all_the_same_are_refused(write_lines, kind, label):
    rows = [{"prompt": f"p{n}", "completion": "x", "label": label} for n in range(3)]
    with pytest.raises(DataError, match=f"all 3 replies to train on have the label {str(label).lower()}"):
        load_splits(options(write_lines("rows.jsonl", rows), eval_fraction=0.0), kind)


def test_labels_beside_messages(write_lines):
    rows = [*replies(2, label=True), *replies(1, label=False)]
    path = options(write_lines("rows.jsonl", rows), eval_fraction=0.0)
    found = load_splits(path, LABELED_ROWS).train
    assert [(row.prompt[-1].content, row.completion, row.label) for row in found] == [
        ("u0", "a0", True),
        ("u1", "a1", True),
        ("u0", "a0", False),
    ]
    assert [row.label for row in load_splits(path, REPLY_ROWS).train] == [True, True, False]
    emotions = options(write_lines("emotions.jsonl", [*rows, *replies(1, label=4)]), eval_fraction=0.0)
    assert [row.label for row in load_splits(emotions, REPLY_ROWS).train] == [None] * 4


def test_an_id_that_names_one_dialogue_or_something_else(write_lines):
    named = [{**row, "id": n} for n, row in enumerate(replies(3))]
    found = load_splits(options(write_lines("named.jsonl", named), eval_fraction=0.0), REPLY_ROWS)
    assert [row.dialogue_id for row in found.train] == ["0", "1", "2"]
    found = load_splits(options(write_lines("set.jsonl", replies(20, id="ultrachat")), eval_fraction=0.3), REPLY_ROWS)
    assert len({row.dialogue_id for row in [*found.train, *found.eval]}) == 20
    assert len(found.eval) > 1
    assert found.tally.counts["dialogues with an id that others have too"] == 20


def test_pairs_of_a_held_out_dialogue_with_an_id_are_held_out_too(write_lines):
    dialogues = write_lines("d.jsonl", [{**row, "id": n} for n, row in enumerate(replies(40))])
    rows = [{"prompt": row["messages"][:1], "chosen": "a", "rejected": "b"} for row in replies(40)]
    both = options(dialogues, preference_path=str(write_lines("p.jsonl", rows)), eval_fraction=0.3)
    held_out = {row.messages[0].content for row in load_splits(both, REPLY_ROWS).eval}
    assert held_out == {row.prompt[0].content for row in load_splits(both, PAIRED_ROWS).eval}


def test_context_only_turns_make_no_pairs(write_lines):
    rows = replies(4)
    for row in rows:
        row["messages"] += [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0}]
    path = options(write_lines("rows.jsonl", rows), eval_fraction=0.0, esconv_rejected="random")
    assert [row.chosen for row in load_splits(path, PAIRED_ROWS).train] == ["a0", "a1", "a2", "a3"]


@pytest.mark.filterwarnings("ignore")
def test_folders_that_save_to_disk_wrote(tmp_path):
    import datasets

    def rows(count):
        return datasets.Dataset.from_list(pairs(count))

    datasets.DatasetDict({"train_prefs": rows(4), "train_sft": rows(3), "test_prefs": rows(2)}).save_to_disk(
        tmp_path / "d"
    )
    splits = load_splits(options(tmp_path / "d"), PAIRED_ROWS)
    assert (len(splits.train), len(splits.eval)) == (4, 2)
    assert splits.train[0].origin == f"{tmp_path}/d/train_prefs:1"
    rows(5).save_to_disk(tmp_path / "one")
    assert len(load_splits(options(tmp_path / "one", eval_fraction=0.0), PAIRED_ROWS).train) == 5
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="not a folder that datasets' save_to_disk wrote"):
        load_splits(options(tmp_path / "bad"), PAIRED_ROWS)
