"""A sweep: its grammar, its trials against runs by hand, stopping and going on, failures."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from commands import ID_ONLY, invoke, printed
from filelock import FileLock
from synthetic_runs import recipe_of

from mmkd import SeedRuns, load_recipe
from mmkd.config.plan import Plan, plan
from mmkd.errors import RecipeError, RunError
from mmkd.pipeline.study import Dimension, Trial, begin_study, parted, read_sweep
from mmkd.pipeline.sweep import _check_tuned, sweep
from mmkd.pipeline.sweeps import _check_comparable, find_sweeps
from mmkd.pipeline.train import train
from mmkd.runs.folder import RunFolder

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("text", "kind", "values"),
    [
        ("a.b=log(1e-4,1e-2)", "log", (1e-4, 1e-2)),
        ("a.b=uniform(0, 0.5)", "uniform", (0.0, 0.5)),
        ("a.b=int(1,4)", "int", (1, 4)),
        ("a.b=gate,sum", "choice", ("gate", "sum")),
        ("a.b=1,2.5,null", "choice", ("1", "2.5", "null")),
        ("a.b={kind: x, y: [1, 2]},z", "choice", ("{kind: x, y: [1, 2]}", "z")),
        ("a.b={kind: x, y: 1}", None, ()),
        ("a.b=[1, 2]", None, ()),
        ("a.b=3", None, ()),
        ("a.b=", None, ()),
        ('a.b="x, y",z', "choice", ('"x, y"', "z")),
        ('a.b="[",]', None, ()),
        ("a.b='it''s (', \"],\"", "choice", ("'it''s ('", '"],"')),
        ("a.b={kind: 'x, }', y: 1},z", "choice", ("{kind: 'x, }', y: 1}", "z")),
        ("a.b=don't,won't", "choice", ("don't", "won't")),
        ("a.b=x],y", None, ()),  # no YAML: the recipe says so
    ],
)
def test_grammar(text: str, kind: str | None, values: tuple[object, ...]) -> None:
    found = Dimension.parse(text)
    assert (found and (found.kind, found.values)) == (kind and (kind, values))


def test_a_full_disk_is_one_message(synthetic: list[str], tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(RunError, match=r"sweep\.db: can't be used \(.*\); free some space"):
            sweep("quickstart", [*synthetic, "training.lr=1e-3,1e-2"], folder=tmp_path / "sweep")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    "text", ["a=log(0,1)", "a=uniform(2,1)", "a=int(1.5,3)", "a=log(x,1)", "a=log(1,2,3)"]
)
def test_ends_that_make_no_range_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="wanted"):
        Dimension.parse(text)


@pytest.mark.parametrize("key", ["seed=0,1", "evaluation.exclude_seen=all,history"])
def test_what_a_trial_is_measured_by_is_not_searched(
    synthetic: list[str], tmp_path: Path, key: str
) -> None:
    with pytest.raises(RecipeError, match="it changes what a trial is measured by"):
        sweep("quickstart", [*synthetic, key], folder=tmp_path / "sweep", trials=1)
    assert not (tmp_path / "sweep").exists()


def test_both_ends_must_be_possible(synthetic: list[str], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"student\.embedding\.dropout"):
        sweep("quickstart", [*synthetic, "student.embedding.dropout=uniform(0,2)"], folder=tmp_path)
    with pytest.raises(RecipeError, match="no option to search"):
        sweep("quickstart", synthetic, folder=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_best_on_validation_is_written_and_trains_to_the_same(
    synthetic: list[str], tmp_path: Path
) -> None:
    short = [*synthetic, "training.epochs=1", "training.threads=1"]
    found = sweep(
        "quickstart",
        [*short, "training.lr=1e-5,1e-2"],
        folder=tmp_path / "sweep",
        trials=3,
        jobs=2,
    )
    assert [trial.number for trial in found] == [0, 1, 2]
    values = {}
    for trial in found:
        result = RunFolder(tmp_path / "sweep" / "trials" / f"{trial.number:04d}").result()
        assert trial.value == result["valid"]["NDCG@10"]
        assert result["test"] is None and "test" not in result["breakdown"]
        assert "baselines" not in result
        values[trial.overrides] = trial.value
    best = load_recipe(str(tmp_path / "sweep" / "best.yaml"))
    chosen = max(values, key=lambda key: values[key] or 0.0)
    assert best == recipe_of(short, *chosen)
    assert train(best, folder=tmp_path / "again")["valid"]["NDCG@10"] == max(
        value for value in values.values() if value is not None
    )
    # all are there already: nothing runs again, one more does, another space is refused
    again = sweep(
        "quickstart", [*short, "training.lr=1e-5,1e-2"], folder=tmp_path / "sweep", trials=3
    )
    assert again == found
    with pytest.raises(RunError, match="another space"):
        sweep("quickstart", [*short, "training.lr=1e-5,1e-3"], folder=tmp_path / "sweep")


def test_one_that_fails_costs_no_other_and_all_that_fail_are_told(
    synthetic: list[str], tmp_path: Path
) -> None:
    broken = tmp_path / "interactions.csv"
    broken.write_text("user_id,item_id,timestamp\n")
    options = [*synthetic, f"data.interactions.path={broken}", "training.lr=log(1e-4,1e-2)"]
    with pytest.raises(RunError, match="every trial failed; the first said: "):
        sweep("quickstart", options, folder=tmp_path / "sweep", trials=1)


# trials that are no trainings, but quick

STAND_IN = """#!{python} -SE
import json, os, signal, subprocess, sys, time
run = sys.argv[sys.argv.index("--out") + 1]
os.makedirs(run, exist_ok=True)
if "train" in sys.argv:
    with open(run + "/recipe.yaml", "w") as file:
        file.write(open(sys.argv[sys.argv.index("train") + 1]).read())
if "STUBBORN" in os.environ:
    def told(number, frame):
        print("told", number, flush=True)
        if os.environ["STUBBORN"] == "no":
            time.sleep(0.5)
            open(run + "/saved", "w").close()
            sys.exit(2)
    signal.signal(signal.SIGTERM, told)
    signal.signal(signal.SIGINT, told)
    other = subprocess.Popen([sys.executable, "-SEc", "import time; time.sleep(60)"])
    with open(run + "/begun.part", "w") as file:
        file.write(f"{{os.getpid()}} {{other.pid}}")
    os.rename(run + "/begun.part", run + "/begun")
    while True:
        time.sleep(60)
if "HELD" in os.environ:
    import fcntl
    lock = open(run + "/.lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print("another process is training here")
        sys.exit(2)
    open(run + "/held", "a").write("held ")
    while run.endswith(os.environ["HELD"]) and not os.path.exists(run + "/go"):
        time.sleep(0.01)
value = float(dict(a.split("=", 1) for a in sys.argv if "=" in a)["training.lr"])
for epoch in range(int(os.environ.get("EPOCHS", 0))):
    figures = [(e + 1) * value / 100 for e in range(epoch + 1)]
    history = [{{"epoch": e, "valid": {{"NDCG@10": figure}}}} for e, figure in enumerate(figures)]
    os.makedirs(f"{{run}}/checkpoints/step-{{epoch}}.part")
    with open(f"{{run}}/checkpoints/step-{{epoch}}.part/progress.json", "w") as file:
        json.dump({{"report": {{"history": history}}}}, file)
    os.rename(f"{{run}}/checkpoints/step-{{epoch}}.part", f"{{run}}/checkpoints/step-{{epoch}}")
    time.sleep(0.04)
if "EPOCHS" in os.environ and value == 1 and int(run[-4:]) >= 5:
    time.sleep(float(os.environ["LINGER"]))  # so that a busy machine comes to stop it
result = dict.fromkeys(("best_epoch", "epochs", "peak_memory_bytes", "processes"), 1)
result |= {{"test": None, "seconds": {{}}, "valid": {{"NDCG@10": 1 / (1 + abs(value - 0.01))}}}}
marker = dict.fromkeys(("mmkd", "recipe", "tables")) | {{"data": {{}}}}
for name, content in (("run", marker), ("result", result)):
    with open(f"{{run}}/{{name}}.json", "w") as file:
        json.dump(content, file)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial's value is the nearness of its rate to 0.01."""
    path = tmp_path / "trial"
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


@pytest.mark.usefixtures("stand_in")
def test_the_command_says_what_was_guessed_and_how_to_test_the_best(
    synthetic: list[str], tmp_path: Path
) -> None:
    old = "objective.recommendation={kind: next_item, loss: softmax}"
    options = [*synthetic, "distiller=null", "encoders=null", old, "training.lr=0.5,0.01"]
    done = invoke("sweep", "quickstart", *options, "--trials", "6", "--out", tmp_path / "sweep")
    assert done.exit_code == 0, done.output
    notes = invoke("validate", "quickstart", *options[:-1]).stderr
    assert "is called task.kind now" in notes and "only ids are learned" in notes
    assert done.stderr.startswith(notes) and done.stderr.count(notes) == 1
    again = printed("sweep", "quickstart", *options, "--trials", "6", "--out", tmp_path / "sweep")
    best = next(one["number"] for one in again["trials"] if one["value"] == 1)
    folder = tmp_path / "sweep" / "trials" / f"{best:04d}"
    assert f"Next: mmkd evaluate {folder}, the test of the best" in done.stdout.replace("\n", "")


@pytest.mark.usefixtures("stand_in")
def test_a_recipe_that_is_changed_meanwhile_changes_no_trial(
    synthetic: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    base = load_recipe("quickstart", [*synthetic, "training.epochs=1"])
    base.save(path)

    def change(trial: Trial) -> None:
        load_recipe("quickstart", [*synthetic, "training.epochs=7"]).save(path)

    options = ["training.lr=0.5,0.01", "student.embedding.width=48"]
    found = sweep(str(path), options, folder=tmp_path / "sweep", trials=3, announce=change)
    for trial in found:
        read = tmp_path / "sweep" / "trials" / f"{trial.number:04d}" / "recipe.yaml"
        given = load_recipe(str(read))
        assert given.training["epochs"] == 1 and given.student.embedding["width"] == 48
    best = load_recipe(str(tmp_path / "sweep" / "best.yaml"))
    assert best.training["epochs"] == 1 and best.training["lr"] == 0.01
    with pytest.raises(RunError, match="holds a sweep of another recipe"):
        sweep(str(path), options, folder=tmp_path / "sweep", trials=4)


@pytest.mark.usefixtures("stand_in")
def test_a_sweep_in_parts_tries_what_a_whole_one_does(
    synthetic: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmkd.pipeline.sweep._POLL_S", 0.01)
    options = [*synthetic, "training.lr=log(1e-5,1)", "training.patience=int(1,9)"]

    def chosen(folder: str, *, trials: int, seed: int = 0) -> list[tuple[str, ...]]:
        found = sweep("quickstart", options, folder=tmp_path / folder, trials=trials, seed=seed)
        return [trial.overrides for trial in found]

    whole = chosen("whole", trials=13)  # the first ten are drawn at random, the others by them
    assert len(set(whole)) == 13
    for trials in (2, 5, 12):
        assert chosen("parts", trials=trials) == whole[:trials]
    assert chosen("parts", trials=13) == whole
    assert chosen("other", trials=2, seed=100) != whole[:2]


def alive(process: int) -> bool:
    """Whether a process runs, or waits for nobody but who began it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def ends(process: int) -> bool:
    """Whether a process that was killed is gone, which takes the system a moment."""
    for _ in range(500):
        if not alive(process):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("stubborn", ["no", "yes"])
def test_a_signal_is_told_to_each_trial_once_and_a_second_ends_them(
    synthetic: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stubborn: str,
    number: signal.Signals,
) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("ignored by whoever began this, as by nohup, and so by a sweep too")
    monkeypatch.setenv("STUBBORN", stubborn)
    runs = [tmp_path / "sweep" / "trials" / name for name in ("0000", "0001")]

    def tell() -> None:
        while not all((run / "begun").exists() for run in runs):
            time.sleep(0.01)
        os.kill(os.getpid(), number)
        if stubborn == "yes":
            while not all("told" in run.with_suffix(".log").read_text() for run in runs):
                time.sleep(0.01)
            os.kill(os.getpid(), number)

    teller = threading.Thread(target=tell)
    teller.start()
    before = signal.getsignal(number)
    options = [*synthetic, "training.lr=log(1e-4,1)"]
    with pytest.raises(RunError, match="stopped after 0 of 5 trials; the same command goes on"):
        sweep("quickstart", options, folder=tmp_path / "sweep", trials=5, jobs=2)
    teller.join()
    assert signal.getsignal(number) is before
    for run in runs:
        assert run.with_suffix(".log").read_text() == f"told {int(signal.SIGTERM)}\n"
        assert (run / "saved").exists() == (stubborn == "no")
        trial, other = map(int, (run / "begun").read_text().split())
        assert not alive(trial)
        assert stubborn == "no" or ends(other)
    # both go on as they were begun
    begun = [path.read_text() for path in sorted(tmp_path.glob("sweep/trials/*.log"))]
    assert len(begun) == 2
    monkeypatch.delenv("STUBBORN")
    ended = sweep("quickstart", options, folder=tmp_path / "sweep", trials=2, jobs=2)
    assert [trial.number for trial in ended] == [0, 1]


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_with_its_trial(synthetic: list[str], tmp_path: Path) -> None:
    long = ["training.epochs=4", "training.batch_size=8"]  # of which the first saves
    options = [*synthetic, *long, "training.threads=1", "training.lr=1e-3,1e-2"]
    command = [sys.executable, "-m", "mmkd", "sweep", "quickstart", *options]
    command += ["--trials", "1", "--out", str(tmp_path / "sweep"), "--json"]
    process = subprocess.Popen(command, env=ENVIRONMENT, start_new_session=True)
    run = tmp_path / "sweep" / "trials" / "0000"
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoints/step-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 2
    assert not RunFolder(run).finished
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    [trial] = json.loads(done.stdout)["trials"]
    assert trial["value"] == RunFolder(run).result()["valid"]["NDCG@10"]
    assert "continuing" in run.with_suffix(".log").read_text()


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("prune", [True, False])
def test_a_trial_behind_the_median_is_stopped(
    synthetic: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prune: bool
) -> None:
    monkeypatch.setattr("mmkd.pipeline.sweep._POLL_S", 0.01)
    monkeypatch.setenv("EPOCHS", "9")
    monkeypatch.setenv("LINGER", "4" if prune else "0")
    options = [*synthetic, "training.epochs=9", "training.lr=1,2,3"]
    found = sweep("quickstart", options, folder=tmp_path / "s", trials=12, prune=prune)
    behind = [trial for trial in found if trial.state == "pruned"]
    assert bool(behind) == prune
    for trial in behind:
        assert trial.number >= 5 and trial.value is None and trial.overrides != ("training.lr=3",)
        assert 3 < trial.epochs < 9  # none is stopped in the first third
        rate = float(trial.overrides[0].partition("=")[2])
        assert trial.so_far == pytest.approx(trial.epochs * rate / 100)
        assert not (tmp_path / "s" / "trials" / f"{trial.number:04d}" / "checkpoints").exists()
    read = read_sweep(tmp_path / "s")
    assert read.trials == tuple(found) and read.metric == "NDCG@10" and read.name == "quickstart"
    assert read.importance is not None and read.importance["training.lr"] == pytest.approx(1.0)


@pytest.mark.usefixtures("stand_in")
def test_a_trial_that_outlived_its_sweep_is_waited_for(
    synthetic: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after kill -9: the study knows of a running trial, whose process holds its folder."""
    monkeypatch.setattr("mmkd.pipeline.sweep._POLL_S", 0.02)
    monkeypatch.setenv("HELD", "0000")
    options, folder = [*synthetic, "training.lr=0.01,0.02"], tmp_path / "sweep"
    space, fixed = parted(options)
    base = load_recipe("quickstart", fixed)
    folder.mkdir()
    begin_study(folder, base, space, metric="NDCG@10").ask()
    run = folder / "trials" / "0000"
    left = subprocess.Popen([sys.executable, "training.lr=0.01", "--out", str(run)])
    while not (run / "held").exists():
        assert left.poll() is None
        time.sleep(0.01)
    told: list[str] = []

    def note(line: str) -> None:
        told.append(line)
        (run / "go").touch()

    found = sweep("quickstart", options, folder=folder, trials=2, note=note)
    assert left.wait(10) == 0
    assert told == ["trial 1 is still training since the sweep was killed; waiting for it"]
    assert [trial.state for trial in found] == ["complete", "complete"]
    assert (run / "held").read_text() == "held held "  # what it left is taken up, not a failure


@pytest.mark.usefixtures("stand_in")
def test_one_sweep_at_a_time_has_a_folder(synthetic: list[str], tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(RunError, match="another sweep is running"):
        sweep("quickstart", [*synthetic, "training.lr=1,2"], folder=tmp_path, trials=1)


@pytest.mark.usefixtures("stand_in")
def test_encoders_are_tuned_once_for_all_trials(
    synthetic: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned: list[Plan] = []

    def fake(planned: Plan, **_: object) -> Plan:
        tuned.append(planned)
        return plan(recipe_of(synthetic, "encoders.text=minilm-packaged"))

    monkeypatch.setattr("mmkd.pipeline.sweep.tune_first", fake)
    options = [*synthetic, "tune.text.epochs=1"]
    found = sweep("quickstart", [*options, "training.lr=1,2"], folder=tmp_path / "s", trials=3)
    assert len(tuned) == 1 and len(found) == 3 and "text" in tuned[0].recipe.tune
    best = load_recipe(str(tmp_path / "s" / "best.yaml"))
    assert best.encoders["text"] == "minilm-packaged" and best.tune == {}
    for key in ("tune.text.lr=log(1e-4,1e-3)", "encoders.text=minilm,e5-base", "data.split=a,b"):
        with pytest.raises(RecipeError, match="can't be searched, as encoders are tuned once"):
            _check_tuned(load_recipe("quickstart", options), parted([key])[0])


def write_recipe(path: Path, name: str, options: list[str], *more: str) -> str:
    recipe = load_recipe("quickstart", [*options, f"name={name}", *more])
    recipe.save(path / f"{name}.yaml")
    return str(path / f"{name}.yaml")


@pytest.mark.usefixtures("stand_in")
def test_several_recipes_get_as_many_trials_each_and_the_best_are_tested(
    synthetic: list[str], tmp_path: Path
) -> None:
    short = [*synthetic, "training.epochs=1", "evaluation.baselines=false", *ID_ONLY[1:]]
    first = write_recipe(tmp_path, "narrow", short, "student.embedding.width=8")
    second = write_recipe(tmp_path, "wide", short)
    out = tmp_path / "both"
    given = [first, second, "training.lr=0.01,0.02", "wide:training.patience=3,4"]
    given += ["--trials", "3", "--seeds", "0,7", "--out", str(out)]
    told = printed("sweep", *given)
    assert {name: len(one["trials"]) for name, one in told["recipes"].items()} == {
        "narrow": 3,
        "wide": 3,
    }
    chosen = told["recipes"]["wide"]["trials"][0]["overrides"]
    assert [text.partition("=")[0] for text in chosen] == ["training.lr", "training.patience"]
    assert len(told["recipes"]["narrow"]["trials"][0]["overrides"]) == 1
    [row] = told["compared"]
    assert row["run"] == "wide"
    found = [SeedRuns(out / name / f"{name}-seeds") for name in ("narrow", "wide")]
    assert found[0].recipe.training["lr"] == 0.01  # the nearest to the best
    assert row["this"] == pytest.approx(found[0].result["test"]["metrics"]["NDCG@10"])
    again = invoke("sweep", *given)
    assert "best validation NDCG@10" in again.stdout and "p (Holm)" in again.stdout
    assert printed("show", out) == {"recipes": told["recipes"]}
    assert [path.name for path in find_sweeps(out, tmp_path)] == ["narrow", "wide"]
    with pytest.raises(RunError, match="holds sweeps of narrow, wide; give the same recipes"):
        invoke("sweep", second, first, "training.lr=1,2", "--out", out)


def test_recipes_that_can_not_be_compared_are_refused(synthetic: list[str], tmp_path: Path) -> None:
    first = write_recipe(tmp_path, "a", synthetic)
    other = write_recipe(tmp_path, "b", synthetic, "data.split=ratio")
    metric = write_recipe(tmp_path, "c", synthetic, "training.select_metric=HR@10")
    spelled = write_recipe(tmp_path, "d", synthetic, "data.interactions.min_user_events=1")
    search, out = "training.lr=1,2", ("--out", str(tmp_path / "out"))
    with pytest.raises(RecipeError, match=r"b and a differ in data \(split\), so"):
        invoke("sweep", first, other, search, *out)
    with pytest.raises(RecipeError, match=r"c and a differ in training\.select_metric"):
        invoke("sweep", first, metric, search, *out)
    with pytest.raises(RecipeError, match="both are named a; give each a name of its own"):
        invoke("sweep", first, first, search, *out)
    with pytest.raises(RecipeError, match="e: is no recipe of this sweep; they are a, b"):
        invoke("sweep", first, other, search, "e:training.lr=3,4", *out)
    with pytest.raises(RecipeError, match="seeds: got 1, wanted two or more"):
        invoke("sweep", first, search, "--seeds", "1", *out)
    plans = {name: plan(load_recipe(path)) for name, path in (("a", first), ("d", spelled))}
    _check_comparable(plans)  # the same data, said in other words
    assert not (tmp_path / "out").exists()
