"""The folder that TensorFlow Serving is pointed at: no server runs here, so its own protocol buffers judge."""

import base64
import concurrent.futures
import http.server
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading

import grpc
import numpy as np
import pytest
import tensorflow as tf
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2, prediction_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

from export import serving, shipping, warmup
from gated_resnext import Architecture, Connectivity, GatedResNeXt, files
from gated_resnext.errors import UserError
from gated_resnext.preprocessing import Preprocessing

NAME = "digits_11_4_4_k1"
CONFIGS = ["batching.config", "compose.yaml", "kubernetes.yaml", "models.config", "monitoring.config"]
DOCS = pathlib.Path(__file__).parent.parent / "docs" / "serving.md"


@pytest.fixture(scope="module")
def root(exported):
    return exported[0].parent.parent


@pytest.fixture(scope="module")
def signatures(exported):
    loaded = tf.saved_model.load(exported[0])
    yield dict(loaded.signatures)


@pytest.fixture(scope="module")
def server_protos():
    """BatchingParameters and MonitoringConfig as TensorFlow Serving defines them; its Python package lacks the two."""
    file = descriptor_pb2.FileDescriptorProto(name="server.proto", package="tensorflow.serving", syntax="proto3")
    file.dependency.append("google/protobuf/wrappers.proto")
    fields = descriptor_pb2.FieldDescriptorProto

    def message(name, *rows):
        described = file.message_type.add(name=name)
        for number, (field, kind, type_name, label) in enumerate(rows, start=1):
            described.field.add(name=field, number=number, type=kind, type_name=type_name, label=label)

    integer = (fields.TYPE_MESSAGE, ".google.protobuf.Int64Value", fields.LABEL_OPTIONAL)
    message(
        "BatchingParameters",
        *((name, *integer) for name in ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches")),
        ("num_batch_threads", *integer),
        ("thread_pool_name", fields.TYPE_MESSAGE, ".google.protobuf.StringValue", fields.LABEL_OPTIONAL),
        ("allowed_batch_sizes", fields.TYPE_INT64, None, fields.LABEL_REPEATED),
        ("pad_variable_length_inputs", fields.TYPE_BOOL, None, fields.LABEL_OPTIONAL),
    )
    message(
        "PrometheusConfig",
        ("enable", fields.TYPE_BOOL, None, fields.LABEL_OPTIONAL),
        ("path", fields.TYPE_STRING, None, fields.LABEL_OPTIONAL),
    )
    prometheus = (fields.TYPE_MESSAGE, ".tensorflow.serving.PrometheusConfig", fields.LABEL_OPTIONAL)
    message("MonitoringConfig", ("prometheus_config", *prometheus))
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())

    def parsed(name, text):
        kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))
        return text_format.Parse(text, kind())

    return parsed


def served_models(root):
    config = text_format.Parse((root / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    models = config.model_config_list.config
    assert all(model.base_path == f"/models/{model.name}" for model in models)
    assert {model.model_platform for model in models} == {"tensorflow"}
    return [model.name for model in models]


def tiny():
    """A network that was never trained."""
    arch = Architecture(depth=11, width=2, cardinality=2, fan_in=1, input_shape=(8, 8, 1))
    return GatedResNeXt(arch, Connectivity.random(arch.modules, 2, 1, seed=0), seed=0)


def ship(output, *formats, **options):
    probe = shipping.Probe(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8), None, "noise")
    return shipping.ship(tiny(), output, probe, formats=formats or ("saved_model",), **options)


def fake_version(model, number, file="saved_model.pb"):
    (model / str(number)).mkdir(parents=True)
    (model / str(number) / file).touch()


# What the configuration says


def test_models_config_names_the_model(root):
    assert served_models(root) == [NAME]


def test_batching_and_monitoring(root, server_protos):
    batching = server_protos("BatchingParameters", (root / "batching.config").read_text())
    assert batching.max_batch_size.value == warmup.MAX_BATCH
    assert batching.batch_timeout_micros.value > 0 and batching.max_enqueued_batches.value > 0
    monitoring = server_protos("MonitoringConfig", (root / "monitoring.config").read_text())
    assert monitoring.prometheus_config.enable
    assert monitoring.prometheus_config.path in DOCS.read_text() and monitoring.prometheus_config.path.startswith("/")


def test_every_flag_names_a_file_of_the_mounted_folder(root):
    service = yaml.safe_load((root / "compose.yaml").read_text())["services"]["tensorflow-serving"]
    assert service["volumes"] == [".:/models:ro"]
    assert service["ports"] == ["8500:8500", "8501:8501"]
    deployment, _ = yaml.safe_load_all((root / "kubernetes.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["args"] == service["command"] == list(serving.SERVER_FLAGS)
    assert container["image"] == "tensorflow/serving"
    assert service["image"] == "${TF_SERVING_IMAGE:-tensorflow/serving}"
    named = dict(flag.removeprefix("--").split("=") for flag in serving.SERVER_FLAGS)
    paths = {flag: path for flag, path in named.items() if path.startswith("/")}
    assert set(paths) == {"model_config_file", "batching_parameters_file", "monitoring_config_file"}
    for path in paths.values():
        assert (root / pathlib.PurePosixPath(path).relative_to("/models")).is_file()
    assert all(flag in DOCS.read_text() for flag in serving.SERVER_FLAGS)


def test_kubernetes_asks_the_server_and_mounts_the_folder(root):
    deployment, service = yaml.safe_load_all((root / "kubernetes.yaml").read_text())
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    (path,) = re.findall('path: "(.*)"', (root / "monitoring.config").read_text())
    assert container["readinessProbe"]["httpGet"] == {"path": path, "port": 8501}
    assert container["volumeMounts"] == [{"name": "models", "mountPath": "/models", "readOnly": True}]
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["models"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == {"grpc": 8500, "rest": 8501}


def health_check(text, port):
    """The command that Docker would run, for another port."""
    service = yaml.safe_load(text)["services"]["tensorflow-serving"]
    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD"
    return [part.replace("$$", "$").replace("/8501", f"/{port}") for part in command]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is missing, which the health check runs in")
def test_the_health_check_wants_every_model_available():
    states = {"first": "AVAILABLE", "second": "LOADING"}

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state = states[self.path.removeprefix("/v1/models/")]
            status = {"version": "1", "state": state, "status": {"error_code": "OK", "error_message": ""}}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"model_version_status": [status]}, indent=1).encode())

        def log_message(self, *arguments):
            pass

    def healthy(text):
        return subprocess.run(health_check(text, port), capture_output=True, timeout=120).returncode == 0

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        one, two = (serving.texts(names)["compose.yaml"] for names in (["first"], ["first", "second"]))
        assert healthy(one) and not healthy(two)
        states["second"] = "AVAILABLE"
        assert healthy(two)
        server.shutdown()
    assert not healthy(one)


def test_nothing_names_a_place_on_this_machine(root):
    here = [str(place).encode() for place in (root, tempfile.gettempdir(), DOCS.parent.parent, sys.prefix)]
    paths = [path for path in root.rglob("*") if path.is_file()]
    assert len(paths) > 12
    for path in paths:
        content = path.read_bytes()
        assert not [place for place in here if place in content], path


# Models and their versions


def test_all_models_are_listed_and_what_is_none_is_not(tmp_path):
    fake_version(tmp_path / "b", 3)
    fake_version(tmp_path / "a", 1)
    fake_version(tmp_path / "a", 12)
    fake_version(tmp_path / "device_only", 1, "model.tflite")
    fake_version(tmp_path / "device_since", 1)
    fake_version(tmp_path / "device_since", 2, "model.tflite")
    fake_version(tmp_path / "no_number", "v1")
    fake_version(tmp_path / ".hidden", 1)
    fake_version(tmp_path / 'quo"ted', 1)
    (tmp_path / "a_file").touch()
    assert serving.write(tmp_path) == []
    assert served_models(tmp_path) == ["a", "b"]
    assert "for model in a b; do" in (tmp_path / "compose.yaml").read_text()
    assert sorted(path.name for path in tmp_path.glob("*.*") if path.is_file()) == CONFIGS
    fake_version(tmp_path / "c", 1)
    serving.write(tmp_path)
    assert served_models(tmp_path) == ["a", "b", "c"]


def test_a_model_that_may_not_be_read_is_left_out(tmp_path, monkeypatch):
    for name in ("a", "closed"):
        fake_version(tmp_path / name, 1)

    def newest_version(folder):
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return folder / "1"

    monkeypatch.setattr(serving.files, "newest_version", newest_version)
    assert serving.models(tmp_path) == ["a"]


def test_a_number_may_have_zeros_before_it(tmp_path):
    fake_version(tmp_path / "theirs", "00000123")
    fake_version(tmp_path / "newer", "7")
    fake_version(tmp_path / "newer", "0012", "model.tflite")
    fake_version(tmp_path / "nanoseconds", "1795702482293499123")
    assert serving.models(tmp_path) == ["nanoseconds", "theirs"]


def test_a_file_of_ones_own_stays(tmp_path):
    fake_version(tmp_path / "a", 1)
    serving.write(tmp_path)
    mine = (tmp_path / "kubernetes.yaml").read_text().removeprefix(serving.MARK) + "# mine\n"
    (tmp_path / "kubernetes.yaml").write_text(mine)
    (tmp_path / "compose.yaml").write_text((tmp_path / "compose.yaml").read_text() + "# lost\n")
    fake_version(tmp_path / "b", 1)
    (note,) = serving.write(tmp_path)
    assert "kubernetes.yaml" in note and (tmp_path / "kubernetes.yaml").read_text() == mine
    assert "# lost" not in (tmp_path / "compose.yaml").read_text() and served_models(tmp_path) == ["a", "b"]


def test_exports_at_the_same_time_are_all_listed(tmp_path):
    together = threading.Barrier(6)

    def export(name):
        together.wait(30)
        fake_version(tmp_path / name, 1)
        serving.write(tmp_path)

    names = [f"model{number}" for number in range(6)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        list(pool.map(export, names))
    assert served_models(tmp_path) == names
    assert not list(tmp_path.glob(".*"))


def test_every_export_is_a_new_version_and_a_device_only_one_is_none_for_the_server(tmp_path):
    first = ship(tmp_path / "net")
    second = ship(tmp_path / "net", preprocessing=Preprocessing((8, 8, 1), 8), labels=list("abcdefghij"))
    assert (first.folder, second.folder) == (tmp_path / "net" / "1", tmp_path / "net" / "2")
    assert second.receipt == files.read_json(second.folder / "receipt.json") and second.notes == []
    assert (second.folder / "assets" / "labels.txt").read_text() == "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n"
    with pytest.raises(UserError, match="largest version: that must hold a SavedModel"):
        ship(tmp_path / "net", "tflite")
    assert files.versions(tmp_path / "net") == [1, 2] and served_models(tmp_path) == ["net"]
    # A network that is not told how pictures become pixels takes none.
    assert set(tf.saved_model.load(first.folder).signatures) == {"serving_default"}
    assert set(tf.saved_model.load(second.folder).signatures) == {"serving_default", "encoded_images"}


def test_preprocessing_for_another_network_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected pictures as \(8, 8, 1\)"):
        ship(tmp_path / "net", preprocessing=Preprocessing((8, 8, 3), 8))
    assert list(tmp_path.iterdir()) == []


# Warm-up


def requests_of(folder):
    for record in tf.data.TFRecordDataset(str(folder / warmup.FILE)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        assert log.WhichOneof("log_type") == "predict_log"
        yield log.predict_log.request


def answered(signatures, request):
    """What a server does with a PredictRequest."""
    inputs = {name: tf.constant(tf.make_ndarray(tensor)) for name, tensor in request.inputs.items()}
    return signatures[request.model_spec.signature_name](**inputs)


def test_the_signatures_answer_the_warm_up_requests(exported, signatures):
    seen = []
    for request in requests_of(exported[0]):
        assert request.model_spec.name == NAME
        answer = answered(signatures, request)
        assert answer["probabilities"].dtype == tf.float32 and answer["classes"].dtype == tf.int64
        assert np.isfinite(answer["probabilities"]).all()
        seen.append((request.model_spec.signature_name, answer["probabilities"].shape[0], answer["classes"].shape[0]))
    assert sorted(seen) == [
        (name, batch, batch) for name in ("encoded_images", "serving_default") for batch in (1, warmup.MAX_BATCH)
    ]


def test_protocol_buffers_of_another_version_cost_the_warm_up_alone(tmp_path, monkeypatch):
    import builtins

    known = builtins.__import__

    def importing(name, *args, **kwargs):
        if name.startswith("tensorflow_serving"):
            raise RuntimeError("gencode 6.31 is newer than the runtime 5.29")
        return known(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)
    shipped = ship(tmp_path / "net")
    assert shipped.notes[-1].startswith(
        "No warm-up requests (gencode 6.31 is newer than the runtime 5.29): pip install"
    )
    assert (shipped.folder / "saved_model.pb").is_file() and not (shipped.folder / "assets.extra").exists()


def test_without_the_protocol_buffers_the_export_says_what_it_left_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving", None)
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    shipped = ship(tmp_path / "net")
    said = "No warm-up requests: pip install 'gated-resnext[serving]' and export again to have them"
    assert shipped.notes[-1] == said and len(shipped.notes) == 2
    assert not (shipped.folder / "assets.extra").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [*CONFIGS, "net"]
    monkeypatch.undo()
    assert served_models(tmp_path) == ["net"]


# --prefer_tflite_model


def test_the_tensors_of_the_tflite_files_are_named_as_the_signature(exported):
    from ai_edge_litert.interpreter import Interpreter

    for name, outputs in (("model.tflite", {"classes", "probabilities"}), ("model_float16.tflite", {"probabilities"})):
        interpreter = Interpreter(str(exported[0] / name))
        assert [tensor["name"] for tensor in interpreter.get_input_details()] == ["images"]
        assert {tensor["name"] for tensor in interpreter.get_output_details()} == outputs


# The page about it


def python_block(number):
    return re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)[number]


def test_the_pages_requests_are_what_the_signatures_take(signatures, run_python, tmp_path):
    done = run_python("-c", python_block(0), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pixels, pictures = (json.loads((tmp_path / name).read_text()) for name in ("pixels.json", "pictures.json"))
    assert pixels.keys() == {"instances"}
    images = tf.constant(pixels["instances"], tf.uint8)
    assert images.shape == (2, 8, 8, 1)
    assert pictures.keys() == {"signature_name", "instances"}
    assert all(instance.keys() == {"b64"} for instance in pictures["instances"])
    encoded = tf.constant([base64.b64decode(instance["b64"], validate=True) for instance in pictures["instances"]])
    answers = (
        signatures["serving_default"](images=images),
        signatures[pictures["signature_name"]](encoded_images=encoded),
    )
    np.testing.assert_allclose(*(answer["probabilities"] for answer in answers), atol=1e-6)


def test_the_pages_grpc_client_gets_its_answer(signatures, run_python):
    class Servicer(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            assert request.model_spec.name == NAME
            response = predict_pb2.PredictResponse()
            for name, value in answered(signatures, request).items():
                response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
            return response

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        block = python_block(1)
        assert "localhost:8500" in block
        done = run_python("-c", block.replace("localhost:8500", f"127.0.0.1:{port}"), env={"no_proxy": "*"})
    finally:
        server.stop(None).wait()
    assert done.returncode == 0, done.stderr
    expected = signatures["serving_default"](images=tf.zeros((2, 8, 8, 1), tf.uint8))["classes"].numpy()
    assert done.stdout.splitlines()[-1] == f"{expected} (2, 10)"


def test_the_page_shows_the_folder(root, exported):
    shown = re.search(r"^```\nmodels/\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL).group(1)
    names = {path.name for path in [*root.iterdir(), *exported[0].iterdir()]} - {"model_float16.tflite"}
    missing = [name for name in names if not re.search(rf"(^|\s){re.escape(name)}[\s/]", shown)]
    assert not missing
