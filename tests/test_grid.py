"""The grid of the paper, from a table of figures that one can see."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from karmafunnel.errors import KarmafunnelError
from karmafunnel.simulator.ablation.grid import grid, main

HEAD = "row,seeds,column,value,low,high,difference,d_low,d_high,better,holm,detectable,n\n"
TABLE = HEAD + (
    "none,3,HR@10,0.5,0.45,0.55,,,,,,,100\n"
    "none,3,HR@50,0.75,0.7,0.8,,,,,,,100\n"
    'none,3,"ms a request, total",1.25,,,,,,,,,\n'
    "KARMA at recall,3,HR@10,0.54,0.5,0.6,0.04,0.01,0.07,B,True,0.03,100\n"
    "KARMA at recall,3,HR@50,,,,,,,,False,,0\n"
    'KARMA at recall,3,"ms a request, total",2.5,,,,,,,,,\n'
    "KARMA at every stage,2,HR@10,0.49,0.4,0.5,-0.01,-0.03,-0.002,A,False,0.03,100\n"
    "KARMA at every stage,2,HR@50,0.75,0.7,0.8,0.0,0.0,0.0,,False,0.0,100\n"
    "other at ranking,3,HR@10,0.5,0.45,0.55,0.0,-0.01,0.01,,False,0.03,100\n"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "table.csv").write_text(TABLE)
    return tmp_path / "table.csv"


def test_points_intervals_marks_seeds_and_cost(path: Path) -> None:
    lines = grid([("a log", path), ("again", path)], ["KARMA"], ["HR@10", "HR@50"]).splitlines()
    assert lines[0] == "|  |  | seeds | HR@10 | HR@50 | ms |"
    assert lines[2:5] == [
        "| a log | none | 3 | 50.0 | 75.0 | 1.2 |",
        r"|  | KARMA at recall | 3 | +4.0 \[+1.0, +7.0\]\*\* | n/a | 2.5 |",
        r"|  | KARMA at every stage | 2 | −1.0 \[−3.0, −0.2\]\* | = | n/a |",
    ]
    assert [line.replace("| again |", "| a log |") for line in lines[5:]] == lines[2:5]
    (other,) = grid([("", path)], ["other"], ["HR@10"]).splitlines()[3:]
    assert other == r"|  | other at ranking | 3 | 0.0 \[−1.0, +1.0\] | n/a |"


def test_what_is_no_table(path: Path, tmp_path: Path) -> None:
    with pytest.raises(KarmafunnelError) as raised:
        grid([("", path)], ["KARMA", "nobody"])
    assert raised.value.needs.startswith("a row 'nobody' at recall")
    assert raised.value.found == f"none in {path}"
    (tmp_path / "empty.csv").write_text(HEAD)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    for name in ("nowhere.csv", "empty.csv", "other.csv"):
        with pytest.raises(
            KarmafunnelError, match=f"needs the table.csv of `karmafunnel table`, found .*{name}"
        ):
            grid([("", tmp_path / name)], ["KARMA"])
    said = CliRunner().invoke(main, [f"x={tmp_path / 'other.csv'}"])
    assert said.exit_code == 1
    assert "needs the table.csv" in said.output
    assert "Traceback" not in said.output
    shown = CliRunner().invoke(main, [f"a=b={path}", "--column", "HR@10"])
    assert shown.exit_code == 0 and "| a=b | none | 3 | 50.0 | 1.2 |" in shown.output
