"""Candidates to annotators and back; Fleiss' kappa against published tables."""

import csv

import pytest

from empathax.data.records import Message
from empathax.errors import ConfigError, DataError
from empathax.evaluation.metrics.levels import LEVELS
from empathax.preferences.pairs import Candidate, Context, Pair
from empathax.preferences.ranking import RankingTask, choose
from empathax.preferences.review import agreement, fleiss_kappa, letters, read_reviews, write_review


def tasks(count: int = 6) -> list[RankingTask]:
    found = []
    for number in range(count):
        context = Context("dialogue", number, 8, (Message("user", '=HYPERLINK("x")\nso, "quoted"'),), "", "")
        found.append(
            RankingTask(context, tuple(Candidate(f"-{level} {number}", {"variant": level}) for level in LEVELS))
        )
    return found


def fill(path, annotator: str, order, out, blank=()):
    """A copy of the review file in which `annotator` ranks the levels in `order`."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        level = row["reply"].lstrip("'-").split()[0]
        row["rank"] = "" if number // 4 in blank else str(order.index(level) + 1)
    copy = out / f"{annotator}.csv"
    with copy.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return copy


FORWARD, BACKWARD = list(LEVELS), list(LEVELS)[::-1]


def test_ranks_of_three_people_come_back_as_three_votes(tmp_path):
    shown = tasks()
    write_review(tmp_path / "review.csv", shown)
    copies = [fill(tmp_path / "review.csv", name, order, tmp_path) for name, order in
              (("ann", FORWARD), ("bob", FORWARD), ("eve", BACKWARD))]  # fmt: skip
    rankings = read_reviews(copies).rank(shown)
    for task, found in zip(shown, rankings, strict=True):
        assert [one.ranker for one in found] == ["human:ann", "human:bob", "human:eve"]
        assert found[0].scores == pytest.approx((1.0, 2 / 3, 1 / 3, 0.0))
        pair = choose(task, found, "levels")
        assert isinstance(pair, Pair)
        assert pair.chosen.source["variant"] == "listening"
        assert pair.rejected.source["variant"] == "genuineness"
    # each context has two votes for one level and one for another: mean P = 1/3, p = (2/3, 1/3), Pe = 5/9
    found = agreement(shown, rankings)
    assert (found.num_contexts, found.num_annotators) == (6, 3)
    assert found.most == pytest.approx((1 / 3 - 5 / 9) / (1 - 5 / 9)) == found.least


def test_contexts_that_somebody_left_out_do_not_count_for_agreement(tmp_path):
    shown = tasks()
    write_review(tmp_path / "review.csv", shown)
    copies = [fill(tmp_path / "review.csv", "ann", FORWARD, tmp_path),
              fill(tmp_path / "review.csv", "bob", FORWARD, tmp_path, blank=(1, 2))]  # fmt: skip
    rankings = read_reviews(copies).rank(shown)
    assert list(map(len, rankings)) == [2, 1, 1, 2, 2, 2]
    assert agreement(shown, rankings).num_contexts == 4


def test_letters_do_not_give_away_how_a_reply_was_made(tmp_path):
    orders = {tuple(letters(task).values()) for task in tasks(40)}
    assert len(orders) > 10
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)


def test_no_cell_is_a_formula(tmp_path):
    write_review(tmp_path / "review.csv", tasks(1))
    with (tmp_path / "review.csv").open(encoding="utf-8-sig", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "-", "+", "@"))]
    assert any(cell.startswith("user: =HYPERLINK") for cell in cells)


def test_ranks_of_other_replies_are_refused(tmp_path):
    shown = tasks(1)
    write_review(tmp_path / "review.csv", shown)
    copy = fill(tmp_path / "review.csv", "ann", FORWARD, tmp_path)
    changed = RankingTask(shown[0].context, tuple(Candidate(one.text + "!", one.source) for one in shown[0].candidates))
    with pytest.raises(DataError, match=r"ann.csv:\d+: candidate . of context dialogue/0 is another reply"):
        read_reviews([copy]).rank([changed])


@pytest.mark.parametrize(
    ("rank", "said"),
    [("", r"context dialogue/0 has 3 ranks for 4 replies: rank all, or none"), ("5", "rank 5, but .* has 4 replies")],
)
def test_ranks_of_some_replies_only_and_ranks_beyond_their_number_are_refused(tmp_path, rank, said):
    shown = tasks(1)
    write_review(tmp_path / "review.csv", shown)
    copy = fill(tmp_path / "review.csv", "ann", FORWARD, tmp_path)
    copy.write_text(copy.read_text().replace(",4\n", f",{rank}\n"))
    with pytest.raises(DataError, match=said):
        read_reviews([copy]).rank(shown)


def test_a_spreadsheet_with_semicolons_is_read(tmp_path):
    shown = tasks(2)
    write_review(tmp_path / "review.csv", shown)
    copy = fill(tmp_path / "review.csv", "ann", FORWARD, tmp_path)
    with copy.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    with copy.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    assert [found[0].scores[0] for found in read_reviews([copy]).rank(shown)] == [1.0, 1.0]


def test_a_file_with_ranks_is_never_written_over(tmp_path):
    path = tmp_path / "review.csv"
    write_review(path, tasks(2))
    fill(path, "review", FORWARD, tmp_path)
    before = path.read_bytes()
    write_review(path, tasks(2))
    assert path.read_bytes() == before
    with pytest.raises(ConfigError, match="holds ranks of other replies"):
        write_review(path, tasks(3))
    assert path.read_bytes() == before


def test_what_cannot_be_read_is_named_with_its_line(tmp_path):
    (tmp_path / "bad.csv").write_text("context_id,candidate,rank\nd/0,A,first\nd/0,B,0\nd/0,C,1\nd/0,C,2\n")
    with pytest.raises(DataError, match=r"3 problems(.|\n)*csv:2: rank 'first'(.|\n)*csv:5: bad ranks candidate C"):
        read_reviews([tmp_path / "bad.csv"])
    (tmp_path / "none.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no column candidate, context_id, rank; its columns are 'a', 'b'"):
        read_reviews([tmp_path / "none.csv"])
    with pytest.raises(DataError, match="cannot be read"):
        read_reviews([tmp_path / "absent.csv"])
    (tmp_path / "odd.csv").write_text("rank,context_id,candidate\n²,d/0,A\n1\n")
    with pytest.raises(DataError, match=r"csv:2: rank '²'"):
        read_reviews([tmp_path / "odd.csv"])


def test_contexts_in_which_somebody_ties_are_counted_apart(tmp_path):
    shown = tasks(5)
    write_review(tmp_path / "review.csv", shown)
    copies = [fill(tmp_path / "review.csv", name, FORWARD, tmp_path) for name in ("ann", "bob")]
    copies[1].write_text(copies[1].read_text().replace(",2\n", ",1\n", 2))  # two replies in the first place, twice
    found = agreement(shown, read_reviews(copies).rank(shown))
    assert (found.num_contexts, found.num_most, found.num_least) == (5, 3, 5)


# Fleiss (1971), table 1: 30 patients, each given one of 5 diagnoses by 6 psychiatrists.
PATIENTS = """444444 222555 233335 555555 222444 113333 333355 113334 114444 555555 144444 124444 222333 144444 224445
333335 111455 111112 224444 133555 555555 244444 224555 114444 144445 222224 111155 224444 133333 555555""".split()  # noqa: SIM905
# 14 raters, 10 subjects, 5 categories: the worked example of the article on Fleiss' kappa in Wikipedia.
COUNTS = (
    (0, 0, 0, 0, 14),
    (0, 2, 6, 4, 2),
    (0, 0, 3, 5, 6),
    (0, 3, 9, 2, 0),
    (2, 2, 8, 1, 1),
    (7, 7, 0, 0, 0),
    (3, 2, 6, 3, 0),
    (2, 5, 3, 2, 2),
    (6, 5, 2, 1, 0),
    (0, 2, 2, 3, 7),
)


def test_the_table_of_fleiss():
    assert round(fleiss_kappa(PATIENTS), 3) == 0.430  # as published


def test_a_worked_example():
    subjects = ["".join(str(number) * count for number, count in enumerate(row)) for row in COUNTS]
    # By hand: mean P = (1 + .253 + .308 + .440 + .330 + .462 + .242 + .176 + .286 + .286) / 10 = .378, Pe = .213
    assert fleiss_kappa(subjects) == pytest.approx(0.2099, abs=5e-5)


def test_four_labels_by_hand():
    # p = (3/4, 1/4): Pe = 10/16; P = 1 and 0, mean 1/2: kappa = (1/2 - 5/8) / (3/8)
    assert fleiss_kappa(["aa", "ab"]) == pytest.approx(-1 / 3)


def test_where_kappa_is_undefined():
    assert fleiss_kappa([]) is None
    assert fleiss_kappa(["aa", "aa"]) is None
    with pytest.raises(DataError, match="subjects with 2, 3 raters"):
        fleiss_kappa(["aa", "aab"])
