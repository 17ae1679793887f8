"""A training that begins with the weights and the wiring of a trained network, instead of fresh ones."""

import dataclasses

import keras
import numpy as np
import pytest
from runs import assert_same_end, contents, rows, weights

import gated_resnext
from gated_resnext import files, own_data, pruning, publication, start, trainer, zoo
from gated_resnext.branches import GatedBranches
from gated_resnext.datasets.table import of_folder
from gated_resnext.errors import UserError
from gated_resnext.recipes import RECIPES, Phase
from gated_resnext.workdir import Run

NAME = "digits_11_4_4_k1"
DIGITS = "optical_digits"


def recipe_of(*phases):
    return lambda name: dataclasses.replace(RECIPES[name], name="short", phases=tuple(Phase(*one) for one in phases))


SLOW = recipe_of((0.1, 0.001))
AT_REST = recipe_of((0.1, 0.0))  # two steps at a rate of 0: the running statistics of batch norm alone move


@pytest.fixture(scope="module")
def published():
    return start.read(NAME)


@pytest.fixture(scope="module")
def parity(tmp_path_factory, digits_dir):
    """The first digits in two folders, of the odd ones and of the even ones."""
    import tensorflow as tf

    from gated_resnext.data import Images

    folder = tmp_path_factory.mktemp("start") / "parity"
    images, labels = Images(DIGITS, RECIPES["digits"], digits_dir, (8, 8, 1)).arrays("train")
    for number, (image, label) in enumerate(zip(images[:200], labels[:200], strict=True)):
        path = folder / ("odd" if label % 2 else "even") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(image).numpy())
    return folder


def trained_on(folder, begin, data_dir, recipe=AT_REST, dataset=DIGITS, **options):
    run = own_data.run_of(dataset, recipe=recipe, data_dir=data_dir, start=begin)
    return run, trainer.train(run, folder, data_dir=data_dir, start=begin, **options)


def is_running(name):
    return name.endswith(("moving_mean", "moving_variance"))


def test_its_first_weights_are_those_of_the_network(published, digits_dir, tmp_path):
    run, result = trained_on(tmp_path / "run", published, digits_dir)
    found, card = weights(tmp_path / "run"), zoo.card(NAME)
    assert found.keys() == published.weights.keys()
    same = {name for name, value in found.items() if np.array_equal(value, published.weights[name])}
    moved = found.keys() - same
    assert moved and all(is_running(name) for name in moved)
    assert "classifier/kernel" in same and "standardize/mean_image" in same
    assert result["connectivity"] == card["connectivity"] and result["weights"] == published.name == run.weights
    assert abs(result["top1"] - card["top1"]) < 0.05
    assert Run.read(tmp_path / "run") == run


def test_other_classes_get_a_classifier_of_their_own(published, parity, tmp_path, capsys):
    _, result = trained_on(tmp_path / "run", published, None, dataset=of_folder(parity))
    found = weights(tmp_path / "run")
    assert found["classifier/kernel"].shape == (256, 2) and result["labels"] == ["even", "odd"]
    trunk = [name for name in found if not is_running(name) and not name.startswith("classifier/")]
    assert len(trunk) > 10
    for name in trunk:
        np.testing.assert_array_equal(found[name], published.weights[name])
    assert f"Beginning with the weights of {published.name}, its classifier anew" in capsys.readouterr().out


def test_names_decide_whether_the_classes_are_the_same(published):
    assert published.tells_apart(list("0123456789"))
    assert not published.tells_apart(list("abcdefghij"))
    unnamed = published._replace(labels=None)
    assert unnamed.tells_apart(list("abcdefghij")) and not unnamed.tells_apart(["even", "odd"])
    features = {name: value for name, value in published.weights.items() if not name.startswith("classifier/")}
    assert not published._replace(weights=features).tells_apart(list("0123456789"))


@pytest.mark.slow
def test_stopped_and_resumed_it_ends_as_uninterrupted(published, digits_dir, tmp_path, capsys):
    class Stop(Exception):
        pass

    def stop(row):
        raise Stop

    schedule = recipe_of((0.2, 0.01), (0.2, 0.001))
    trained_on(tmp_path / "whole", published, digits_dir, schedule)
    with pytest.raises(Stop):
        trained_on(tmp_path / "parts", published, digits_dir, schedule, checkpoint_s=0, on_round=stop)
    capsys.readouterr()
    trained_on(tmp_path / "parts", published, digits_dir, schedule)
    assert "Resuming optical_digits_11_4_4_k1 after step " in capsys.readouterr().out
    assert_same_end(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
def test_it_goes_back_to_these_weights_where_there_is_no_checkpoint(published, digits_dir, tmp_path, monkeypatch):
    """At half the rate, which shows in how far two steps go from there."""
    from gated_resnext import training

    diverges = [True]
    some_steps = training.Training._some_steps

    def once(self, loop, *rest):
        some_steps(self, loop, *rest)
        if diverges:
            loop.model.get_layer("classifier").kernel.assign(np.full((256, 10), np.nan, np.float32))
            raise training.Diverged("made up", 0 * diverges.pop())

    monkeypatch.setattr(training.Training, "_some_steps", once)
    _, result = trained_on(tmp_path / "run", published, digits_dir, SLOW, on_nan="rollback", checkpoint_s=1e9)
    assert result["rollbacks"] == 1 and not diverges
    assert [row["learning_rate"] for row in rows(tmp_path / "run")] == [SLOW("digits").phases[0].learning_rate / 2]
    trained_on(tmp_path / "half", published, digits_dir, recipe_of((0.1, 0.0005)))
    found, expected = weights(tmp_path / "run"), weights(tmp_path / "half")
    assert all(np.array_equal(found[name], value) for name, value in expected.items())


def test_gates_that_are_still_learned_are_fixed(digits_dir, tmp_path):
    model = gated_resnext.zoo.load(NAME, weights=None, seed=4)
    gates = next(v for v in model.variables if v.path.endswith("real_gates"))
    gates.assign(np.eye(4, dtype=np.float32)[[2, 2, 1, 2]])
    model.save(tmp_path / "learned.keras")
    begin = start.read(tmp_path / "learned.keras")
    assert begin.connectivity == model.wiring() and begin.connectivity.sources[0] == ((2,), (2,), (1,), (2,))
    assert begin.name.startswith("learned ") and begin.labels is begin.dataset is None
    _, result = trained_on(tmp_path / "run", begin, digits_dir)
    assert result["connectivity"] == model.wiring().to_dict()
    assert result["active_blocks"] == [1, 1, 4]
    name = "stage1_module1/conv/kernel"  # of all four, three of which were not trained
    np.testing.assert_array_equal(weights(tmp_path / "run")[name], begin.weights[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"aggregation": "shared", "fan_in": 4}, {}),
        ({"gates": "real"}, {}),
        ({"aggregation": "weighted", "fan_in": 2}, {}),
        ({"fan_in": 2}, {"precision": "mixed_bfloat16"}),
        ({"fan_in": 2}, {"include_top": False, "pooling": "avg"}),
    ],
    ids=["Fixed-Full", "real gates", "weighted", "mixed_bfloat16", "features"],
)
def test_networks_of_every_kind_go_on_as_they_are(changes, options, digits_dir, tmp_path):
    shape = zoo.architecture(NAME).replace(**changes)
    gated_resnext.GatedResNeXt(shape, None, seed=2, **options).save(tmp_path / "one.keras")
    begin = start.read(tmp_path / "one.keras")
    run, _ = trained_on(tmp_path / "run", begin, digits_dir)
    assert run.architecture == shape and run.connectivity == begin.connectivity
    assert (run.connectivity is None) == (not shape.has_binary_gates)
    found = weights(tmp_path / "run")
    new = {"classifier/kernel", "classifier/bias"} if options.get("pooling") else set()
    assert set(found) - set(begin.weights) == new
    for name, value in begin.weights.items():
        assert is_running(name) or np.array_equal(found[name], value), name


def test_a_workdir_is_gone_on_from(trained, digits_dir, tmp_path):
    begin = start.read(trained)
    assert start.read(trained / "model.keras").name == begin.name
    assert begin.dataset == DIGITS and begin.labels == list("0123456789")
    trained_on(tmp_path / "run", begin, digits_dir)
    kernel = weights(tmp_path / "run")["stem_conv/kernel"]
    np.testing.assert_array_equal(kernel, begin.weights["stem_conv/kernel"])


def test_its_name_tells_weights_apart(published, tmp_path):
    model, names = zoo.load(NAME), [published.name]
    model.save(tmp_path / f"{NAME}.keras")
    names.append(start.read(tmp_path / f"{NAME}.keras").name)  # which has no names of classes
    model.save(tmp_path / "another.keras")
    assert start.read(tmp_path / "another.keras").name.split() == ["another", names[-1].split()[1]]
    kernel = model.get_layer("classifier").kernel
    kernel.assign(np.nextafter(np.asarray(kernel), np.inf))
    model.save(tmp_path / f"{NAME}.keras")
    names.append(start.read(tmp_path / f"{NAME}.keras").name)
    assert len(set(names)) == 3 and {name.split()[0] for name in names} == {NAME}


def test_its_workdir_is_its_own(published, digits_dir, tmp_path):
    run, _ = trained_on(tmp_path / "run", published, digits_dir)
    before = contents(tmp_path / "run")
    with pytest.raises(UserError, match=r"belongs to another run \(weights is digits_11_4_4_k1 .* there and None here"):
        trainer.train(dataclasses.replace(run, weights=None), tmp_path / "run", data_dir=digits_dir)
    with pytest.raises(UserError, match=r"there is no checkpoint, and the weights digits_11_4_4_k1 .* were not given"):
        trainer.train(run, tmp_path / "new", data_dir=digits_dir)
    fresh = dataclasses.replace(run, weights=None)
    with pytest.raises(UserError, match=r"the run begins with fresh weights\. Received: start='digits"):
        trainer.train(fresh, tmp_path / "run", data_dir=digits_dir, start=published)
    assert contents(tmp_path / "run") == before
    assert trainer.train(run, tmp_path / "run", data_dir=digits_dir)["weights"] == published.name
    fields = dataclasses.replace(Run.of(NAME, RECIPES["digits"].scaled(0.01), seed=0), weights=published.name)
    files.write_json(tmp_path / "run" / "run.json", fields.to_dict())
    with pytest.raises(UserError, match=r"trained from fresh weights\. Received: one from digits_11_4_4_k1"):
        publication.publish(tmp_path / "run", tmp_path, data_dir=None, hardware="")
    files.write_json(tmp_path / "run" / "run.json", {**run.to_dict(), "weights": 3})
    with pytest.raises(UserError, match="weights must be a name"):
        Run.read(tmp_path / "run")


def test_what_is_no_network_to_begin_with_is_refused(tmp_path):
    pruning.prune(zoo.load(NAME)).save(tmp_path / "pruned.keras")
    images = keras.Input((8, 8, 1))
    y = GatedBranches([keras.layers.Conv2D(2, 1), keras.layers.Conv2D(2, 1)])(images)
    keras.Model(images, keras.layers.Average()(y)).save(tmp_path / "branches.keras")
    (tmp_path / "empty").mkdir()
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "saved_model.pb").write_bytes(b"")
    for where, message in {
        tmp_path / "exported": "exported was exported, to be run and not to be trained",
        tmp_path / "pruned.keras": r"was pruned, to \d .* blocks: begin with the network before that",
        tmp_path / "branches.keras": "begins with a GatedResNeXt. Received: .*branches.keras, a Functional",
        tmp_path / "empty": "has no trained network",
        tmp_path / "none.keras": "none.keras",
        "digits_11_4_4_k3": "is no folder, no file and none of digits_11_4_4_k1, ",
        "cifar100_29_64_8_k1": "there are no published weights of cifar100_29_64_8_k1; train them",
    }.items():
        with pytest.raises(UserError, match=message):
            start.read(where)


def test_data_and_fields_that_do_not_fit_are_refused(published, digits_dir):
    with pytest.raises(UserError, match="has weights for images of 1 channels, not of 3, as the run on cifar10 would"):
        own_data.run_of("cifar10", start=published)
    with pytest.raises(UserError, match="leave all but input_shape out"):
        own_data.run_of(DIGITS, start=published, fields={"width": 8}, data_dir=digits_dir)
    larger = own_data.run_of(DIGITS, start=published, fields={"input_shape": (16, 16, 1)}, data_dir=digits_dir)
    assert larger.architecture.input_shape == (16, 16, 1) and larger.weights == published.name


@pytest.mark.slow
def test_command(parity, tmp_path, run_python):
    flags = [f"--image_folder={parity}", f"--weights={NAME}", "--epochs_scale=0.02", f"--workdir={tmp_path / 'run'}"]
    done = run_python("-m", "gated_resnext.train", *flags)
    assert done.returncode == 0, done.stderr
    assert "Phase 1 of 2: 1 epochs at rate 0.01, wiring fixed" in done.stdout
    run = Run.read(tmp_path / "run")
    assert run.recipe == RECIPES["photos"].fine_tuning().scaled(0.02) and run.architecture.classes == 2
    assert run.entry == "parity_11_4_4_k1" and run.weights == start.read(NAME).name
    again = run_python("-m", "gated_resnext.train", f"--weights={tmp_path / 'run'}", "--wiring=some.json")
    assert again.returncode == 1 and "--weights says what the network and its wiring are" in again.stderr
    (tmp_path / "run" / "model.keras").rename(tmp_path / "mine.keras")
    unsaid = run_python("-m", "gated_resnext.train", f"--weights={tmp_path / 'mine.keras'}")
    assert unsaid.returncode == 1 and "does not say on what to train: give --image_folder or --dataset" in unsaid.stderr
