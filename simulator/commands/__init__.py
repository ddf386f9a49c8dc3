"""The commands of the command line."""

# By section of the help, in the order in which they are used: the module of a command in this
# folder, and its line in the help. The module is imported only when the command is asked for.
SECTIONS = {
    "Start": {
        "demo": ("start", "Everything once on generated data: World, KARMA, report, load test."),
        "doctor": ("start", "Versions, threads, and what is slow on this machine."),
    },
    "Data": {
        "import": (
            "imports",
            "Import your own tables: CSV, JSON lines, Parquet, RecBole files, ...",
        ),
        "download": ("data", "Download the files of a public data set."),
        "convert": ("data", "Convert a public data set into a log."),
        "fetch-model": ("data", "Fetch a pre-trained language model or sentence encoder."),
        "import-run": ("imports", "Make a Run of a funnel that runs elsewhere."),
        "world": ("data", "Generate a marketplace with known relevance and write its log."),
        "validate": ("data", "Check a log: PASS, FAIL or N/A for each check, with example ids."),
        "describe": ("data", "Sizes, prices, popularity, eligibility and the ceiling of a log."),
        "sample": ("data", "Write the log of a share of the users; the task stays the same."),
    },
    "Replay": {
        "replay": ("runs", "Fit the funnel of a recipe on a log and replay the last window."),
        "explain": ("runs", "Why items are where they are in one request, stage by stage."),
        "table": ("runs", "Fit and replay every row of a recipe with several seeds; compare them."),
        "tune": ("tuning", "Search the funnel that earns most within a budget of milliseconds."),
        "fit-embedder": ("runs", "Fit one embedder of a recipe and save it."),
    },
    "Measure": {
        "measure": ("figures", "Measures of a Run, stage by stage, with 95% intervals."),
        "compare": ("figures", "Compare two Runs of one log, paired on the same requests."),
        "ope": ("estimates", "Estimate off-policy what a Run's funnel would have earned."),
        "likeness": ("cards", "How true a simulated log is to a real one: a report card."),
        "gate": ("gates", "A funnel change as a CI check: is the new Run not worse than the old?"),
        "export": ("exports", "Write for other tools: TREC, RecBole, CSV, MLflow."),
        "report": ("figures", "Write one self-contained HTML file about one or more Runs."),
    },
    "Experiment": {
        "abtest": ("experiments", "A/B test of two funnels on the users of a simulated shop."),
        "interleave": ("experiments", "The better of two funnels, by interleaving their lists."),
    },
    "Choose": {
        "recipes": ("lists", "Recipes that ship."),
        "stages": ("lists", "Stages of a funnel with their arguments."),
        "features": ("lists", "Features that a learned stage reads."),
        "embedders": ("lists", "Embedders of users and items."),
        "measures": ("lists", "Measures that a Run can be asked for."),
        "sources": ("data", "Public data sets that `convert` reads, and what each holds."),
    },
    "Load": {
        "profile": (
            "deployment",
            "Time each stage over batch sizes and cutoffs; fit service times.",
        ),
        "queue": ("deployment", "Simulate a deployment: latency, utilisation, what was shown."),
        "timeline": ("deployment", "The events of one request of a simulation."),
        "plan": ("deployment", "Find the cheapest servers that meet a target of p99 latency."),
    },
}
MODULES: dict[str, str] = {}
for _commands in SECTIONS.values():
    for _name, (_module, _) in _commands.items():
        MODULES[_name] = _module
