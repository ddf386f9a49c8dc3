"""The documentation says what is true: every command exists, every command is documented, every
path and recipe named is there.
"""

import json
import re
from pathlib import Path

import click
import karmafunnel
import pytest
from click.testing import CliRunner
from every_command import COMMANDS
from karmafunnel import replay
from karmafunnel.benchmarks.site import prose, reference
from karmafunnel.cli import main
from karmafunnel.layout import CAPABILITIES, MAY_HAVE, META, OPTIONAL, TABLES
from karmafunnel.simulator.measure.compare import measure
from karmafunnel.simulator.measure.measures.measure import Measure, kinds
from karmafunnel.simulator.measure.run import Run
from karmafunnel.stages.explore import Explore
from karmafunnel.stages.features import Upstream
from karmafunnel.stages.policies import PlackettLuce
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import ItemKNN, Join, Popular
from worked_example import ORDERS, SHOWN, make_worked_example

ROOT = Path(karmafunnel.__file__).parent
CODE = [p for room in ("models", "stages", "simulator") for p in (ROOT / room).rglob("*.py")]
CODE += [*ROOT.glob("*.py")]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "findings" / "LOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}


def blocks(text: str) -> list[str]:
    """Lines of fenced shell blocks, continuation lines joined."""
    fenced = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, flags=re.S)
    return [
        line.strip()
        for block in fenced
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip() and not line.startswith("#")
    ]


def commands() -> list[str]:
    return sorted(
        {
            line
            for text in TEXTS.values()
            for line in blocks(text)
            if line.split()[0].endswith("karmafunnel")
        }
    )


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_documented_and_helps(name):
    by_hand = [text for page, text in TEXTS.items() if "guides/" in page or page == "README.md"]
    assert any(f"karmafunnel {name}" in text for text in by_hand)
    answer = CliRunner().invoke(main, [name, "--help"])
    assert answer.exit_code == 0
    assert COMMANDS[name].help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is(name):
    assert [
        o.opts for o in COMMANDS[name].params if isinstance(o, click.Option) and not o.help
    ] == []


@pytest.mark.parametrize("line", commands())
def test_every_documented_command_parses(line):
    """Parsed, not run: unknown commands and options would fail here."""
    words = re.split(r" [#|>] ", line)[0].split()[1:]
    command = COMMANDS[words[0]]
    parser = command.make_parser(click.Context(command))
    parser.parse_args([w.strip("'\"") for w in words[1:]])


# -- names in the text: LOG.md is dated, so its names may be gone ----------------------------------

SPANS = {
    page: re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```$", "", text, flags=re.S | re.M))
    for page, text in TEXTS.items()
    if not page.endswith("LOG.md")
}


@pytest.mark.parametrize("page", SPANS)
def test_commands_in_the_text_have_these_options(page):
    unknown = []
    for span in SPANS[page]:
        if found := re.match(r"karmafunnel ([a-z][a-z-]*)\b(.*)", span):
            command = COMMANDS.get(found[1])
            known = [name for option in command.params for name in option.opts] if command else []
            options = re.findall(r"(?<![\w-])--[a-z][a-z-]*", found[2])
            if command is None or not {*options} <= {*known, "--help"}:
                unknown.append(span)
    assert unknown == []


@pytest.mark.parametrize("page", SPANS)
def test_options_in_the_text_are_of_some_command(page):
    known = {name for command in COMMANDS.values() for o in command.params for name in o.opts}
    spans = [span.split()[0].split("=")[0] for span in SPANS[page] if span.startswith("--")]
    assert {*spans} - known - {"--help", "--version", "--strict"} == set()


@pytest.mark.parametrize("page", SPANS)
def test_classes_in_the_text_are_in_the_code(page):
    """Names in front of a bracket, such as `ItemKNN(k=200)`."""
    code = "\n".join(p.read_text(encoding="utf-8") for p in CODE)
    names = {name for span in SPANS[page] for name in re.findall(r"\b([A-Z]\w+)\(", span)}
    assert {n for n in names if not re.search(rf"(class|import) .*\b{n}\b|^{n} = ", code, re.M)} == set()


@pytest.mark.parametrize("page", SPANS)
def test_files_in_the_text_are_there(page):
    folders = ("stages/", "models/", "simulator/", "benchmarks/", "docs/", "tests/")
    paths = [span for span in SPANS[page] if span.startswith(folders) and " " not in span]
    assert [path for path in paths if not any(ROOT.glob(path.replace("NAME", "*")))] == []


@pytest.mark.parametrize("page", SPANS)
def test_measures_in_the_text_are_understood(page):
    for span in SPANS[page]:
        if re.fullmatch(r"[A-Za-z-]+(@[1-9]\d*)+(:[\w:]+)?", span):
            Measure.parse(span)


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_leads_somewhere(page):
    broken = [
        link
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", TEXTS[page])
        if not (ROOT / page).parent.joinpath(link).exists()
    ]
    assert broken == []


def test_the_file_tree_is_the_file_tree():
    """Every file that it names is there, and it has every file of code at the top and every folder
    of code.
    """
    tree = re.search(r"```text\n(.*?)```", TEXTS["docs/development/layout.md"], flags=re.S)
    named, folder = set(), ""
    for line in tree.group(1).splitlines():
        for name in re.findall(r"\S+\.py\b|^ *\S+/", line[:24]):
            if not line.startswith(" "):
                folder = name if name.endswith("/") else folder
                named.add(name)
            else:
                named.add(folder + name.strip())
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    code = {p.name for p in ROOT.glob("[!_]*.py")}
    for room in ("models", "stages", "simulator", "benchmarks"):
        code |= {f"{room}/{p.name}/" for p in (ROOT / room).glob("[!_]*") if p.is_dir()}
    assert code <= named


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_generated_page_is_what_the_code_generates(name):
    assert TEXTS[f"docs/reference/{name}"] == reference.PAGES[name](), "run `make reference`"


@pytest.mark.parametrize("page", prose.pages(), ids=lambda page: page.name)
def test_the_prose_is_plain_and_short(page):
    assert [*prose.faults(page)] == []


def test_the_check_of_the_prose_finds_what_it_looks_for(monkeypatch, tmp_path):
    (tmp_path / "docs" / "guides").mkdir(parents=True)
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    page = tmp_path / "docs" / "guides" / "start.md"
    page.write_text("The truth is `interest`.\n\n```text\nforced rows\n```\n\n| in vain |\n")
    assert [fault.partition(" in ")[0] for fault in prose.faults(page)] == [
        "docs/guides/start.md: 'truth'"
    ]
    long = "- " + "word " * 31 + "end.\n- Short. [A link](of/many/words.md) is one.\n"
    page.write_text(long)
    assert [*prose.faults(page)] == [
        f"docs/guides/start.md: a sentence of 32 words: {'word ' * 16!r}"
    ]
    readme = tmp_path / "README.md"
    readme.write_text("One word. " * 349 + "Two.\n\n```sh\nnot counted\n```\n")
    assert [*prose.faults(readme)] == []
    readme.write_text("One word. " * 350)
    assert [*prose.faults(readme)] == ["README.md: 700 words, needs fewer than 700"]


# -- measures --------------------------------------------------------------------------------------

MEASURES = TEXTS["docs/reference/measures.md"]
WORKED = re.findall(r"`([^`]+)` of (\w[\w ]*?) = \*\*(-?[\d.]+)\*\*", MEASURES)


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return Run.open(make_worked_example(tmp_path_factory.mktemp("example")))


def test_every_measure_has_its_heading_and_a_worked_example():
    headings = {h.removesuffix("@k") for h in re.findall(r"^### (\S+)$", MEASURES, flags=re.M)}
    assert headings == {name.removesuffix("@k") for name in kinds()}
    assert {Measure.parse(name).name for name, _, _ in WORKED} == set(kinds())


@pytest.mark.parametrize("name, stage, value", WORKED)
def test_the_worked_number_is_what_the_code_computes(name, stage, value, example):
    found = next(row["value"] for row in measure(example, [name]) if row["stage"] == stage)
    digits = len(value.partition(".")[2])
    assert f"{found:.{digits}f}" == value


def test_the_example_of_the_page_is_that_of_the_code():
    """The table of the three requests: orders, relevant items, lists shown."""
    for request, (by_recall, by_rank, relevant) in ORDERS.items():
        shown = ", ".join(f"{item} {p:.1f}".replace(" 0.", " .") for item, p in SHOWN[request])
        cells = [
            request,
            f"{' '.join(by_recall[:4])}, then {' '.join(by_recall[4:])}",
            f"{' '.join(by_rank[:2])}, then {' '.join(by_rank[2:])}",
            ", ".join(relevant),
            shown,
        ]
        assert f"| {' | '.join(cells)} |" in MEASURES


# -- formats ---------------------------------------------------------------------------------------


def rows(page: str, section: str) -> dict[str, str]:
    """Name and type of the rows of all tables in a section of a page."""
    after = TEXTS[page].split(f"## {section}\n", 1)[1]
    return dict(re.findall(r"^\| `(\S+)` \| ([^|]*) \|", re.split(r"^## ", after, flags=re.M)[0], re.M))


def in_words(dtype) -> str:
    text = str(dtype)
    if text.startswith("Datetime"):
        return "Datetime(ms, UTC)"
    return "Enum" if text.startswith("Enum") else text


@pytest.mark.parametrize("table", TABLES)
def test_the_log_format_is_what_the_code_reads(table):
    columns = TABLES[table] | OPTIONAL.get(table, {})
    assert rows("docs/reference/log.md", f"{table}.parquet") == {
        name: in_words(dtype) for name, dtype in columns.items()
    }


def test_the_keys_of_log_json_are_those_that_the_code_reads():
    after = TEXTS["docs/reference/log.md"].split("## log.json\n", 1)[1]
    keys, capabilities = after.split("### Capabilities", 1)
    assert re.findall(r"^\| `(\w+)` \|", keys, re.M) == [*META, *MAY_HAVE]
    assert re.findall(r"^\| `(\w+)` \|", capabilities, re.M) == [*CAPABILITIES]


@pytest.fixture(scope="module")
def run(shop):
    recall = Join([ItemKNN(k=50), Popular(k=50)], k=60)
    ranked = recall >> LightGBMRank(k=10, features=[Upstream()], trees=5)
    return replay(ranked >> Explore(PlackettLuce(1.0), k=5), shop)


@pytest.mark.parametrize("table", ["slates", "requests", "ledger", "scored", "timing"])
def test_the_run_format_is_what_a_replay_writes(table, run):
    """Every column of a Run with its type; those that depend on the funnel may be missing."""
    told = rows("docs/reference/run.md", f"{table}.parquet")
    depends = {"STAGE.index_recall", "EMBEDDER.reads", "STAGE.p", "logged_stage"}
    found = {}
    for name, dtype in run.lazy[table].collect_schema().items():
        for stage in run.stages:
            name = re.sub(rf"^{stage}\.", "STAGE.", name)
        found[name] = in_words(dtype)
    assert found.items() <= told.items()
    assert set(told) - depends <= set(found)


def test_the_keys_of_run_json_are_those_that_a_replay_writes(run):
    told = rows("docs/reference/run.md", "run.json")
    assert set(told) == set(json.loads((run.path / "run.json").read_text()))
