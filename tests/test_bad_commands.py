"""Bad commands in bulk: whatever a user types ends in one line, or starts what was asked for."""

import json
import shutil

import nonsense
import pytest
from nonsense import GOOD_RUN, INF, K1, RECIPE, assert_none

from gated_resnext import files
from gated_resnext.connectivity import Connectivity

HARNESS = """
import contextlib, importlib, io, json, os, sys, traceback
from absl import flags
from gated_resnext import errors, loop
from gated_resnext.training import Training

class Started(BaseException):
    pass

def started(*args, **kwargs):
    raise Started

shallow = Training.run_phases
loop.Loop.train = started
own, mains = {}, {}
commands = "train", "draw", "publish", "evaluate"
for module in (*(f"gated_resnext.{command}" for command in commands), "export.prune_and_save"):
    mains[module] = importlib.import_module(module).main
    own[module] = {flag.name: flag for flag in flags.FLAGS.flags_by_module_dict()[module]}
    for name in own[module]:
        delattr(flags.FLAGS, name)
report = {}
for name, (module, arguments, deep, environment) in json.load(open(sys.argv[1])).items():
    Training.run_phases = shallow if deep else started
    for flag in own[module].values():
        flag.unparse()
        flags.FLAGS[flag.name] = flag
    flags.FLAGS.unparse_flags()
    out, err = io.StringIO(), io.StringIO()
    argv, before, sys.argv = sys.argv, dict(os.environ), [module, *arguments]
    os.environ.update(environment)
    status, raised = None, ""
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            errors.run(mains[module])
        except SystemExit as exit:
            status = exit.code
        except Started:
            raised = "a training started"
        except BaseException:
            raised = traceback.format_exc()
    sys.argv = argv
    os.environ.clear()
    os.environ.update(before)
    for flag in own[module]:
        delattr(flags.FLAGS, flag)
    report[name] = [status, raised, out.getvalue(), err.getvalue()]
json.dump(report, open(sys.argv[2], "w"))
"""
TRAIN, DRAW, PUBLISH = "gated_resnext.train", "gated_resnext.draw", "gated_resnext.publish"
EXPORT, EVALUATE = "export.prune_and_save", "gated_resnext.evaluate"
# Where the harness runs: photos/ is a folder of images, quick.json a recipe for it, run/ the workdir of another run.
PHOTOS = ["--image_folder=photos", "--recipe=quick.json"]
SINGLE = {
    "entry": ["digits", " ", "x" * 10_000, "../zoo", "digits_11_4_4_k1 ", "größe", "None", "*", "\n", K1.upper()],
    "recipe": [
        "adam",
        "missing.json",
        "folder.json",
        "loop.json",
        "quick",
        "cifar,digits",
        "file",
        " ",
        "~/nowhere.json",
    ],
    "epochs_scale": ["0", "-1", "nan", "inf", "-inf", "abc", "", "1e308", "1e999", "0,5", "½", "1e-400"],
    "seed": ["-1", "abc", "1.5", "", "1e3", "nan"],
    "strategy": ["gpu", "", "Auto", "tpu", "multi_worker", "mirrored,tpu"],
    "on_nan": ["go", "", "STOP"],
    "checkpoint_seconds": ["-1", "abc", "", "nan"],
    "batch_size": ["0", "-1", "abc", "1.5", "", "1441"],
    "sync_batch_norm": ["maybe", "2", ""],
    "precision": ["half", "", "float64", "FLOAT32"],
    "remat": ["maybe"],
    "jit_compile": ["maybe"],
    "workdir": ["file", "file/run", "run", "photos", "broken", "quick.json"],
    "data_dir": ["file", "file/data"],
    "architecture": ['{"depth": 28}', '{"classes": 3}', "{", "missing.json"],
    "nonsense": ["1"],
}
OWN = {
    "architecture": [
        "{", "[]", "5", "null", "true", '"depth"', "[1, 2]", "{'depth': 20}", '{"depth": 20,}', "depth=20", "NaN",
        " ",
        "missing.json", "folder.json", "loop.json", "binary.json", "deep.json", "digits.json", "quick.json",
        "[" * 100_000,
        '{"width": ' + "9" * 5_000 + "}", '{"width": 1e3}', '{"width": NaN}', '{"width": Infinity}', '{"width": -4}',
        '{"classes": 2}', '{"depth": 21}', '{"fan_in": 9}', '{"stages": [1.0, 5.0]}', '{"widht": 4}', "\ud800",
        '{"input_shape": [32, 32, 2]}',
    ],
    "entry": ["digits", "../zoo"],
    "recipe": ["cifar", "photos", "adam", "broken.json", "folder.json", "plain.json"],
    "epochs_scale": ["0", "nan", "1e308"],
    "dataset": ["optical_digits", "nope"],
    "strategy": ["gpu"],
}  # fmt: skip
FOLDERS = ["missing", "file", "run", "one", "none", "untested", "missing/\udcff", " ", "x" * 300, "broken_images"]
DATASETS = ["nope", " ", "../x", "two words", "nope/config", "nope:1.0.0", "folder:", "folder:missing", "folder:file"]
DATASETS += ["optical_digits:9.9.9", "optical_digits/config", "x" * 300, "größe", "FOLDER:photos"]
TF_CONFIGS = ["{", "[]", "null", "5", '"x"', '{"cluster": 5}', '{"cluster": []}', '{"cluster": {"worker": 5}}']
TF_CONFIGS += ['{"cluster": null}', "\x00x"[1:], '{"cluster": {"chief": true}}']
RESULTS = {
    "no connectivity": {"entry": K1},
    "a list": [],
    "null": None,
    "a number": 5,
    "another wiring": {"entry": K1, "connectivity": {"first": 2, "sources": []}},
    "no wiring": {"entry": K1, "connectivity": {"first": 2}},
    "endless wiring": {"entry": K1, "connectivity": {"first": INF, "sources": []}},
    "text for a wiring": {"entry": K1, "connectivity": "full"},
}
# In the network, where the numbers are good ones but no machine has the memory or no library the type.
DEEP = {
    "width of 10**13": [*PHOTOS, '--architecture={"width": 10000000000000}'],
    "width of 10**30": [*PHOTOS, f'--architecture={{"width": 1{"0" * 30}}}'],
    "padding of 10**30": [f"--entry={K1}", "--recipe=padded.json"],
    "test images of 10**30": ["--image_folder=photos", "--recipe=resized.json"],
    "seed of 2**63": [*PHOTOS, f"--seed={2**63}"],
    "seed of 10**30": [f"--entry={K1}", f"--seed={10**30}"],
    "broken images": ["--image_folder=broken_images", "--recipe=quick.json"],
}


def cases():
    """By name: module, arguments, whether to build the network, environment."""
    result = {}

    def add(module, name, *arguments, deep=False, **environment):
        result[f"{module.split('.')[1]} {name}"[:80]] = (module, list(arguments), deep, environment)

    for flag, values in SINGLE.items():
        for number, value in enumerate(values):
            recipe = [] if flag == "recipe" else ["--recipe=digits"]
            add(TRAIN, f"--{flag} {number}: {value[:30]!r}", f"--{flag}={value}", *recipe)
    for flag, values in OWN.items():
        for number, value in enumerate(values):
            add(TRAIN, f"own --{flag} {number}: {value[:30]!r}", *PHOTOS, f"--{flag}={value}")
    for folder in FOLDERS:
        deep = folder == "broken_images"
        add(TRAIN, f"folder {folder[:30]!r}", f"--image_folder={folder}", "--recipe=quick.json", deep=deep)
    for name in DATASETS:
        add(TRAIN, f"dataset {name[:30]!r}", f"--dataset={name}", "--recipe=quick.json")
    for number, text in enumerate(TF_CONFIGS):
        add(TRAIN, f"TF_CONFIG {number}", "--strategy=multi_worker", TF_CONFIG=text)
    for stray in ("x", "--", "-x", "--entr=x", "--seed", "---", "=", "--=", "--entry", "run"):
        add(TRAIN, f"stray {stray}", stray, *(["x"] if stray == "--" else []))
    for name, arguments in DEEP.items():
        add(TRAIN, name, *arguments, deep=True)
    add(TRAIN, "a batch larger than the folder", "--image_folder=photos")
    for module in (DRAW, EXPORT, EVALUATE):
        add(module, "nothing")
        add(module, "both", f"--entry={K1}", "--workdir=run")
        add(module, "unknown", "--entry=digits")
        add(module, "unpublished", "--entry=cifar100_29_64_8_k1")
        for folder in ("missing", "file", "photos", "run", "broken"):
            add(module, f"workdir {folder}", f"--workdir={folder}")
        for run in BAD_WORKDIRS:
            add(module, run, f"--workdir=workdirs/{run}", "--output=out.svg")
    for flags in (["--entry="], ["--workdir="], [f"--entry={K1}", "--output="]):
        add(EXPORT, f"empty {flags[-1]}", *flags)
    add(DRAW, "output elsewhere", f"--entry={K1}", "--output=gs://bucket/wiring.svg")
    add(DRAW, "workdirs one by one", "--workdir=run", "--workdir=photos")
    add(EXPORT, "formats one by one", f"--entry={K1}", "--formats=tflite", "--formats=saved_model")
    add(EXPORT, "output elsewhere", f"--entry={K1}", "--output=gs://bucket/models")
    add(EVALUATE, "output elsewhere", f"--entry={K1}", "--output=gs://bucket/evaluation")
    add(TRAIN, "workdir elsewhere", f"--entry={K1}", "--workdir=gs://bucket/run")
    for result_ in RESULTS:
        add(DRAW, f"result {result_}", f"--workdir=results/{result_}")
    add(DRAW, "output folder", f"--entry={K1}", "--output=photos")
    add(DRAW, "output a folder of a good name", f"--entry={K1}", "--output=pictures.svg")
    add(DRAW, "output below a file", f"--entry={K1}", "--output=file/x.svg")
    for what in ("", "Wiring", "wiring,gates", "all"):
        add(DRAW, f"what {what}", f"--entry={K1}", f"--what={what}")
    for what in ("wiring", "active", "gates", "curves"):
        for name in ("x.pdf", "x", ".svg", "", "x.svgz", "x.html.txt"):
            add(DRAW, f"{what} as {name}", f"--entry={K1}", f"--what={what}", f"--output={name}")
        for name in (RESULTS if what == "active" else ["no connectivity"]) if what != "wiring" else []:
            add(DRAW, f"{what} of result {name}", f"--what={what}", f"--workdir=results/{name}")
        add(DRAW, f"{what} of nothing", f"--what={what}")
        add(DRAW, f"{what} of what is not there", f"--what={what}", f"--workdir=missing,{K1}", f"--entry={K1},nope")
    add(DRAW, "wiring as gif", f"--entry={K1}", "--output=x.gif")
    add(DRAW, "gates of the zoo", f"--entry={K1}", "--what=gates")
    add(DRAW, "gates of two", "--workdir=run,run", "--what=gates")
    add(DRAW, "active of two cardinalities", f"--entry={K1},cifar10_20_4_8_k1", "--what=active")
    for number, value in enumerate(["", "onnx", "tflite,onnx", " ", ",", "SAVED_MODEL"]):
        add(EXPORT, f"formats {number}: {value}", f"--entry={K1}", f"--formats={value}")
    add(EXPORT, "images", f"--entry={K1}", "--images=-1")
    add(EXPORT, "drop", f"--entry={K1}", "--max_top1_drop=abc")
    add(EXPORT, "output below a file", f"--entry={K1}", "--output=file", "--noise")
    for number, name in enumerate(DATASETS):
        add(EVALUATE, f"dataset {number}", f"--entry={K1}", f"--dataset={name}")
    for number, folder in enumerate(FOLDERS):
        add(EVALUATE, f"folder {number}", f"--entry={K1}", f"--image_folder={folder}")
    for flag in ("--split=val", "--images=0", "--bins=0", "--white=x", "--output=file/x", "--output= ", "--dataset="):
        add(EVALUATE, flag, f"--entry={K1}", flag)
    for folder in ("missing", "file", "photos", "run", "quick.json", ""):
        add(EVALUATE, f"saved_model {folder}", f"--saved_model={folder}")
    add(PUBLISH, "nothing")
    add(PUBLISH, "a run that has not ended", "--workdir=run")
    for folder in ("missing", "file", "run", "broken", "photos"):
        add(PUBLISH, f"workdir {folder}", f"--workdir={folder}", "--hardware=x", "--zoo=photos")
    return result


BAD_WORKDIRS = ["run a number for a name", "run no wiring", "run seed", "run no dataset"]
BROKEN = dict(
    zip(
        BAD_WORKDIRS,
        ({"entry": 5}, {"wiring": "some"}, {"seed": INF}, {"dataset": None}),
        strict=True,
    )
)
COMMANDS = cases()


@pytest.fixture(scope="module")
def reported(run_python, tmp_path_factory):
    """What every command said. All run in one process, each up to the first step of its training."""
    folder = nonsense.place(tmp_path_factory.mktemp("place"))
    (folder / "binary.json").write_bytes(bytes(range(256)))
    (folder / "deep.json").write_bytes(b"[" * 100_000)
    (folder / "digits.json").write_bytes(b'{"width": ' + b"9" * 5_000 + b"}")
    (folder / "broken.json").write_text(json.dumps({**RECIPE, "batch_size": "8"}))
    (folder / "plain.json").write_text(json.dumps({**RECIPE, "crop": "pad"}))
    (folder / "padded.json").write_text(json.dumps({**RECIPE, "crop": "pad", "pad": 10**30}))
    (folder / "resized.json").write_text(json.dumps({**RECIPE, "test_resize": 10**30}))
    files.write_json(folder / "run" / "run.json", {**GOOD_RUN, "entry": "another"})
    (folder / "run" / "metrics.jsonl").touch()
    (folder / "pictures.svg").mkdir()
    (folder / "pictures.svg" / "kept").touch()
    (folder / "broken").mkdir()
    (folder / "broken" / "run.json").write_text("{")
    shutil.copytree(folder / "photos", folder / "broken_images")
    (folder / "broken_images" / "a" / "3.png").write_bytes(b"")
    for name, labels in {"one": "a", "none": "", "untested": "ab"}.items():
        for label in labels:
            (folder / name / label).mkdir(parents=True)
            shutil.copy(folder / "photos" / "a" / "0.png", folder / name / label)
        (folder / name).mkdir(exist_ok=True)
    for name, result in RESULTS.items():
        files.write_json(folder / "results" / name / "run.json", GOOD_RUN)
        (folder / "results" / name / "result.json").write_text(json.dumps(result))
    for name, changes in BROKEN.items():
        (folder / "workdirs" / name).mkdir(parents=True)
        (folder / "workdirs" / name / "run.json").write_text(json.dumps({**GOOD_RUN, **changes}))
        wiring = Connectivity.full(3, 4).to_dict()
        files.write_json(folder / "workdirs" / name / "result.json", {"entry": K1, "connectivity": wiring})
    (folder / "harness.py").write_text(HARNESS)
    (folder / "cases.json").write_text(json.dumps(COMMANDS))
    done = run_python("harness.py", "cases.json", "report.json", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return files.read_json(folder / "report.json")


def test_every_command_ends_in_one_line(reported):
    wrong = {}
    for name, (status, raised, out, err) in reported.items():
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        if raised or (status, len(lines)) != (1, 1) or "Traceback" in out + err or len(lines[0]) < 20:
            wrong[name] = raised.strip().splitlines()[-1][:200] if raised else f"status {status}: {err[-200:]}"
    assert_none(wrong)


def test_there_are_200_cases():
    assert len(COMMANDS) >= 200
