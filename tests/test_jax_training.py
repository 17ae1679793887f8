"""Training under JAX from packed arrays, in processes where TensorFlow cannot be imported."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest

from gated_resnext import arrays, files, gate_history
from gated_resnext.data import Images
from gated_resnext.errors import UserError
from gated_resnext.recipes import RECIPES

pytest.importorskip("jax", reason="jax is not installed")

NO_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None
"""
TRAIN = """
import runpy
sys.argv = ["train", *sys.argv[1:]]
runpy.run_module("gated_resnext.train", run_name="__main__", alter_sys=True)
"""


def in_jax(code, *args, fails=False):
    """Runs code where Keras is on JAX and there is no TensorFlow."""
    result = subprocess.run(
        [sys.executable, "-c", NO_TENSORFLOW + textwrap.dedent(code), *map(str, args)],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert (result.returncode != 0) == fails, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def packed(tmp_path_factory, digits_dir):
    folder = tmp_path_factory.mktemp("arrays")
    arrays.write(Images("optical_digits", RECIPES["digits"], digits_dir), folder, part_bytes=20_000)
    return folder


def trained(folder, packed, *flags, fails=False):
    return in_jax(
        TRAIN,
        "--entry=digits_11_4_4_k2",
        "--epochs_scale=0.04",
        f"--data_dir={packed}",
        f"--workdir={folder}",
        *flags,
        fails=fails,
    )


def test_arrays_hold_the_images_in_parts(packed, digits_dir):
    there = Images("optical_digits", RECIPES["digits"], digits_dir)
    here = arrays.ArrayImages("optical_digits", RECIPES["digits"], packed, (8, 8, 1))
    assert len(list((packed / "optical_digits").glob("train-*.npz"))) > 3
    for split in ("train", "test"):
        for found, expected in zip(here.arrays(split), there.arrays(split), strict=True):
            np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(here.mean_image(), there.mean_image(), rtol=1e-6)
    assert (len(here), here.steps_per_epoch, here.labels) == (len(there), there.steps_per_epoch, there.labels)


def test_the_command_packs_the_same(packed, tmp_path, digits_dir, run_python):
    flags = "--dataset=optical_digits", f"--data_dir={digits_dir}", f"--output={tmp_path}"
    done = run_python("-m", "gated_resnext.pack", *flags)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "optical_digits"
    (size,) = {file.stat().st_size for file in folder.glob("train-*.npz")}
    size += sum(file.stat().st_size for file in folder.glob("test-*.npz"))
    assert done.stdout == f"Packed 1,797 images into 2 files, {size:,} bytes, in {folder}\n"
    here, there = (
        arrays.ArrayImages("optical_digits", RECIPES["digits"], place, (8, 8, 1)) for place in (tmp_path, packed)
    )
    for split in ("train", "test"):
        for one, other in zip(here.arrays(split), there.arrays(split), strict=True):
            np.testing.assert_array_equal(one, other)
    again = run_python("-m", "gated_resnext.pack", *flags)
    assert again.returncode == 1 and "exists; remove it or choose another --output" in again.stderr


@pytest.mark.parametrize("split", ["train", "test", "all"])
@pytest.mark.parametrize("count", [None, 1, 1440])
def test_packed_images_come_in_the_order_of_the_others(packed, digits_dir, split, count):
    there = Images("optical_digits", RECIPES["digits"], digits_dir)
    here = arrays.ArrayImages("optical_digits", RECIPES["digits"], packed, (8, None, 1))
    assert here.count(split) == there.count(split) and here.input_shape == (8, 8, 1)
    found, expected = (list(zip(*images.batches(split, count, 100), strict=True)) for images in (here, there))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.concatenate(ours), np.concatenate(theirs))
    assert max(map(len, found[1])) == min(100, count or 100)


def test_a_limit_leaves_the_first_training_images(packed, digits_dir):
    there = Images("optical_digits", RECIPES["digits"], digits_dir, limit=200)
    here = arrays.ArrayImages("optical_digits", RECIPES["digits"], packed, (8, 8, 1), 200)
    for split in ("train", "test"):
        for found, expected in zip(here.arrays(split), there.arrays(split), strict=True):
            np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(here.mean_image(), there.mean_image(), rtol=1e-6)
    whole = arrays.ArrayImages("optical_digits", RECIPES["digits"], packed, (8, 8, 1))
    assert here.steps_per_epoch == 3 and here.digest() != whole.digest()
    with pytest.raises(UserError, match="limit must be between 1 and the 1,437 training images"):
        arrays.ArrayImages("optical_digits", RECIPES["digits"], packed, (8, 8, 1), 1438)


def test_a_damaged_part_and_a_missing_data_set_are_said(packed, tmp_path, digits_dir):
    arrays.write(Images("optical_digits", RECIPES["digits"], digits_dir), tmp_path)
    part = next((tmp_path / "optical_digits").glob("train-*.npz"))
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        arrays.ArrayImages("optical_digits", RECIPES["digits"], tmp_path, (8, 8, 1))
    with pytest.raises(UserError, match="images of imagenet2012 are read by TensorFlow alone"):
        arrays.ArrayImages("imagenet2012", RECIPES["imagenet"], tmp_path, (224, 224, 3))
    (tmp_path / "cifar10").mkdir()  # as a folder of tensorflow-datasets has it
    with pytest.raises(UserError, match=r"gated_resnext\.pack --dataset=cifar10 --output=arrays writes one, for"):
        arrays.ArrayImages("cifar10", RECIPES["cifar"], tmp_path, (32, 32, 3))
    with pytest.raises(UserError, match="a network of"):
        arrays.ArrayImages("optical_digits", RECIPES["digits"], packed, (16, 16, 1))
    images = Images("optical_digits", RECIPES["digits"], digits_dir)
    with pytest.raises(UserError, match="exists; remove it or choose another --output"):
        arrays.write(images, tmp_path)
    (tmp_path / "tfds" / "optical_digits" / "1.0.0").mkdir(parents=True)
    with pytest.raises(UserError, match="exists, and is not what this command wrote: choose another --output"):
        arrays.write(images, tmp_path / "tfds")


@pytest.mark.slow
def test_a_table_is_reproduced(packed, tmp_path):
    flags = "--table=3", "--dataset=optical_digits", "--rows=digits_11_4_4_full", "--seeds=1", "--epochs_scale=0.001"
    code = TRAIN.replace("train", "reproduce")
    done = in_jax(code, *flags, "--precision=mixed_bfloat16", f"--data_dir={packed}", f"--output={tmp_path}")
    assert "1 runs ended, 0 of them diverged" in done.stdout
    text = (tmp_path / "table3_optical_digits.md").read_text()
    assert "- command: `KERAS_BACKEND=jax python -m gated_resnext.reproduce --table=3 " in text
    assert "--precision=mixed_bfloat16" in text and "jax 0." in text and ", mixed_bfloat16\n" in text
    done = in_jax(code, *flags, "--strategy=mirrored", f"--data_dir={packed}", f"--output={tmp_path / '2'}", fails=True)
    assert "error: under JAX one device trains: leave --strategy and --sync_batch_norm out" in done.stderr


@pytest.fixture(scope="module")
def whole(packed, tmp_path_factory):
    """The workdir of a training, and what it printed. Read only."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, trained(folder, packed).stdout


@pytest.mark.slow
def test_four_phases_resumed_equal_uninterrupted(packed, whole, tmp_path):
    """The network learns, its wiring is frozen, and what was stopped ends in the same bytes."""
    uninterrupted, printed = whole
    assert "Phase 4 of 4" in printed and "Next: python -m export.prune_and_save" in printed
    rows = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    interrupted = textwrap.dedent(
        """
        from gated_resnext.training import Training
        some_steps = Training._some_steps
        def stopping(self, *args):
            some_steps(self, *args)
            if self.place.step >= 40:
                raise KeyboardInterrupt
        Training._some_steps = stopping
        """
    )
    flags = "--entry=digits_11_4_4_k2", "--epochs_scale=0.04", f"--data_dir={packed}", f"--workdir={tmp_path / 'cut'}"
    in_jax(interrupted + TRAIN, *flags, "--checkpoint_seconds=0", fails=True)
    assert not (tmp_path / "cut" / "model.keras").exists()
    again = trained(tmp_path / "cut", packed)
    assert "Resuming" in again.stdout
    folders = uninterrupted, tmp_path / "cut"
    newest = [max((folder / "checkpoints").glob("*.npz")) for folder in folders]
    first, second = map(files.read_arrays, newest)
    assert first.keys() == second.keys()
    for name in first:
        if name != "place":
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    steps, histories = zip(*map(gate_history.read, folders), strict=True)
    np.testing.assert_array_equal(steps[0], range(22))  # a step each: 0.96 epochs of 22 steps
    np.testing.assert_array_equal(*steps)
    np.testing.assert_array_equal(*histories)


@pytest.mark.slow
def test_what_jax_trained_is_evaluated_and_published_without_tensorflow(packed, whole, tmp_path):
    (workdir, _), zoo = whole, tmp_path / "zoo"
    result = json.loads((workdir / "result.json").read_text())
    evaluate, publish = (TRAIN.replace("train", name) for name in ("evaluate", "publish"))
    done = in_jax(evaluate, f"--workdir={workdir}", f"--data_dir={packed}")
    assert f"top-1              {100 * result['top1']:.2f} %" in done.stdout
    assert "Running digits_11_4_4_k2" in done.stdout and "360 test images of optical_digits" in done.stdout
    zoo.mkdir()
    (zoo / "entries.py").touch()
    flags = f"--workdir={workdir}", f"--data_dir={packed}", f"--zoo={zoo}", "--hardware=a test's"
    done = in_jax(publish, *flags)
    assert f"Published digits_11_4_4_k2: top-1 {100 * result['top1']:.2f} %" in done.stdout
    card = json.loads((zoo / "cards" / "digits_11_4_4_k2.json").read_text())
    assert card["top1"] == result["top1"] and result["backend"] == "jax"
    assert card["command"].startswith("KERAS_BACKEND=jax python -m gated_resnext.train --entry=digits_11_4_4_k2 ")
    missing = in_jax(evaluate, f"--workdir={workdir}", f"--data_dir={tmp_path}", fails=True)
    assert missing.stderr.strip().splitlines()[-1].startswith(f"error: there is no {tmp_path}/optical_digits/arrays")


@pytest.mark.slow
def test_what_jax_trained_is_exported_by_tensorflow(packed, tmp_path, digits_dir, run_python):
    trained(tmp_path, packed, "--precision=mixed_bfloat16", "--remat")
    result = json.loads((tmp_path / "result.json").read_text())
    model = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    images = arrays.ArrayImages("optical_digits", RECIPES["digits"], packed, (8, 8, 1))
    pixels, labels = images.arrays("test")
    top1 = float(np.mean(np.argmax(model(pixels), -1) == labels))
    assert top1 == pytest.approx(result["top1"], abs=0.003)
    assert (model.precision, result["precision"]) == ("float32", "mixed_bfloat16")
    flags = f"--workdir={tmp_path}", f"--data_dir={digits_dir}", f"--output={tmp_path / 'models'}"
    done = run_python("-m", "export.prune_and_save", *flags, "--formats=saved_model,tflite")
    assert done.returncode == 0, done.stderr
    (receipt,) = (tmp_path / "models").rglob("receipt.json")
    checks = {check["form"]: check for check in files.read_json(receipt)["checks"]}
    assert {"saved_model", "tflite"} <= set(checks) and max(c["max_difference"] for c in checks.values()) < 1e-4


@pytest.mark.slow
def test_what_replicas_trained_together_opens_under_jax(tmp_path):
    from gated_resnext import GatedResNeXt, zoo

    model = GatedResNeXt(zoo.architecture("digits_11_4_4_k2"), synchronized=True, seed=0)
    model.save(tmp_path / "model.keras")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    code = """
        import sys
        import numpy as np
        import gated_resnext
        model = gated_resnext.load(sys.argv[1])
        assert model.synchronized and model.get_config()["synchronized"]
        np.save(sys.argv[3], np.asarray(model(np.load(sys.argv[2]), training=True)))
    """
    in_jax(code, tmp_path / "model.keras", tmp_path / "pixels.npy", tmp_path / "found.npy")
    assert np.load(tmp_path / "found.npy").shape == (3, 10)
    in_jax(code.replace(", training=True", ""), *(tmp_path / name for name in ("model.keras", "pixels.npy", "f.npy")))
    np.testing.assert_allclose(np.load(tmp_path / "f.npy"), model(pixels), atol=1e-5)


@pytest.mark.slow
def test_weights_of_the_sums_learn_under_jax(packed, tmp_path):
    code = """
        import sys
        from gated_resnext import recipes, trainer, zoo
        arch = zoo.architecture("digits_11_4_4_k2").replace(aggregation="weighted")
        run = trainer.Run("weighted", arch, "learned", "optical_digits", recipes.read("digits", 0.04), 0)
        trainer.train(run, sys.argv[1], data_dir=sys.argv[2])
    """
    in_jax(code, tmp_path, packed)
    model = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    for number, gate in enumerate(model.gates, start=2):
        weights, wired = np.asarray(gate.branch_weights), model.wiring().binary_gates(number) > 0
        assert weights.shape == (4, 4) and np.abs(weights[wired] - 0.5).max() > 1e-2
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]


def test_residuals_of_a_mean_learn_as_those_of_a_sum_under_jax():
    """A step of gradients of one, as the compiled loop takes it: what each weight moved, in rates."""
    code = """
        import json
        import numpy as np
        from gated_resnext import GatedResNeXt, zoo
        from gated_resnext.optimizer import GateConnectSGD
        model = GatedResNeXt(zoo.architecture("digits_11_4_4_k2"), None, None, seed=0)
        optimizer = GateConnectSGD(0.1, l2=0.0)
        optimizer.build(model.trainable_variables)
        before = [variable.value for variable in model.trainable_variables]
        state = [variable.value for variable in optimizer.variables]
        after, _ = optimizer.stateless_apply(state, [np.ones(value.shape, "float32") for value in before], before)
        moved = {
            variable.path: float(np.mean(np.asarray(old) - np.asarray(new))) / 0.1
            for variable, old, new in zip(model.trainable_variables, before, after)
        }
        print(json.dumps({path: moved for path, moved in moved.items() if "real_gates" not in path}))
    """
    found = json.loads(in_jax(code).stdout.splitlines()[-1])
    last = {"gamma", "beta"}
    for path, rates in found.items():
        *_, layer, _, kind = ("", "", *path.split("/"))
        factor = 1
        if layer == "expand" and kind in last:  # the mean of K = 2; the head's, of C = 4, after the last module
            factor = 16 if path.startswith("stage3_module1") else 4
        assert rates == pytest.approx(factor, rel=1e-4), path
    assert sum(rates > 2 for rates in found.values()) == 2 * 3


def test_the_gates_gradient_is_not_rounded_to_16_bits_under_jax():
    """What all gates of a row share is a hundred times what tells them apart, and goes when the row is scaled."""
    code = """
        import jax, json
        import numpy as np
        from jax import numpy as jnp
        from gated_resnext import gates
        rng = np.random.default_rng(0)
        common, own = rng.normal(size=(1, 64, 4, 4, 2)), rng.normal(size=(4, 64, 4, 4, 2))
        y = jnp.asarray(common + 0.1 * own, jnp.bfloat16)
        of_x = jnp.asarray(common + 0.1 * rng.normal(size=y.shape), jnp.bfloat16)
        real = jnp.asarray(np.full((4, 4), 0.25), jnp.float32)

        def inner(real, y, remat):
            if remat:
                x, _ = gates.inputs_and_narrowed(real, y.reshape(4, -1, 2), jnp.zeros((4, 2, 1), jnp.bfloat16))
                x = x.reshape(y.shape)
            else:
                x = gates.aggregate(real, y)
            return jnp.sum(x.astype("float32") * of_x.astype("float32"))

        for remat, y in ((False, y), (True, jnp.abs(y))):  # of positive numbers the ReLU changes nothing
            found = np.asarray(jax.grad(inner)(real, y, remat), np.float64)
            exact = np.einsum("jbhwc,kbhwc->jk", np.asarray(of_x, np.float64), np.asarray(y, np.float64))
            apart = [rows - rows.mean(1, keepdims=True) for rows in (found, exact)]
            print(json.dumps([float(np.abs(apart[0] - apart[1]).max() / np.abs(apart[1]).max()),
                              float(np.abs(exact.mean(1)).mean() / np.abs(apart[1]).mean())]))
    """
    for line in in_jax(code).stdout.splitlines()[-2:]:
        error, shared = json.loads(line)
        assert shared > 5 and error < 1e-3, line


@pytest.mark.slow
def test_the_gates_gradient_is_not_rounded_to_16_bits_in_a_network_under_jax():
    """Of a network whose widest tensors are computed again: as that of one which keeps them, to what they round."""
    code = """
        import jax, json
        import numpy as np
        from jax import numpy as jnp
        from gated_resnext import Architecture, GatedResNeXt
        arch = Architecture(11, 2, 4, 2, 3, (8, 8, 1), stem_filters=8, filters=16)

        def gradients(remat):
            model = GatedResNeXt(arch, None, None, precision="mixed_bfloat16", remat=remat, seed=0)
            shared = [variable.value for variable in model.trainable_variables]
            images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1)).astype("uint8")

            def loss(values):
                logits, _ = model.stateless_call(
                    values, [variable.value for variable in model.non_trainable_variables], images, training=True
                )
                return jnp.sum(jnp.square(logits))

            found = jax.jit(jax.grad(loss))(shared)
            return {variable.path: np.asarray(value) for variable, value in zip(model.trainable_variables, found)
                    if "real_gates" in variable.path}

        def bits(value):
            return int(np.sum(value != value.astype(jnp.bfloat16).astype(np.float32)))

        for remat in (False, True):
            print(json.dumps({path: [bits(value), value.size] for path, value in gradients(remat).items()}))
    """
    for line in in_jax(code).stdout.splitlines()[-2:]:
        found = json.loads(line)
        assert len(found) == 2
        for path, (finer, all_of_them) in found.items():  # of 32 bits hardly one number is one of 16
            assert finer > all_of_them / 2, path


def test_real_gates_of_zero_have_their_whole_gradient_under_jax():
    code = """
        import jax
        import numpy as np
        from gated_resnext.aggregation import GatedAggregation
        layer = GatedAggregation(2, gates="real", seed=0)
        layer.build((4, 1, 2, 2, 3))
        layer.real_gates.assign(np.float32([[0, 0.5, 0.25, 0.25]] * 4))
        y = np.random.default_rng(0).normal(size=(4, 1, 2, 2, 3)).astype("float32") + 9

        def total(real):
            out, _ = layer.stateless_call([real], [v.value for v in layer.non_trainable_variables], y)
            return out.sum()

        found = np.asarray(jax.grad(total)(layer.real_gates.value))
        sums = y.sum((1, 2, 3, 4))
        expected = np.tile(sums - np.float32([0, 0.5, 0.25, 0.25]) @ sums, (4, 1))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    """
    in_jax(code)


def test_a_strategy_under_jax_is_said(packed, tmp_path):
    result = trained(tmp_path, packed, "--strategy=mirrored", fails=True)
    assert result.stderr.strip().splitlines()[-1].startswith("error: under JAX one device trains")
    assert not pathlib.Path(tmp_path / "run.json").exists()


def test_data_of_ones_own_is_refused_in_a_line(packed, tmp_path):
    for flag in ("--dataset=tf_flowers", f"--image_folder={tmp_path}"):
        done = in_jax(TRAIN, flag, f"--data_dir={packed}", f"--workdir={tmp_path / 'run'}", fails=True)
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("error: under JAX a network is trained on what gated_resnext.pack wrote of ")
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_network_that_the_zoo_has_not_is_trained_on_its_data(packed, tmp_path):
    trained(tmp_path / "run", packed, '--architecture={"fan_in": 3}', "--epochs_scale=0.01")
    result = files.read_json(tmp_path / "run" / "result.json")
    assert (result["entry"], result["backend"]) == ("optical_digits_11_4_4_k3", "jax")
    assert {len(block) for module in result["connectivity"]["sources"] for block in module} == {3}


@pytest.mark.slow
def test_a_trained_network_is_trained_on_under_jax(packed, whole, tmp_path):
    workdir, _ = whole
    flags = f"--weights={workdir}", "--epochs_scale=0.05", f"--data_dir={packed}", f"--workdir={tmp_path}"
    done = in_jax(TRAIN, *flags)
    assert "Beginning with the weights of digits_11_4_4_k2 " in done.stdout and "anew" not in done.stdout
    before, result = (json.loads((folder / "result.json").read_text()) for folder in (workdir, tmp_path))
    assert result["connectivity"] == before["connectivity"] and result["backend"] == "jax"
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["phase"] for line in lines] == [1, 2]
    assert result["top1"] > before["top1"] - 0.03
