"""The files around the versions that start TF Serving on all of them: its configuration, Docker Compose, Kubernetes."""

from __future__ import annotations

import pathlib
import re

from export.warmup import MAX_BATCH
from gated_resnext import files
from gated_resnext.errors import UserError

MARK = "# Written at every export. Delete this line to keep changes of your own.\n"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # safe in a URL, in YAML and in a protocol buffer's text

SERVER_FLAGS = (
    "--model_config_file=/models/models.config",
    "--model_config_file_poll_wait_seconds=30",
    "--enable_batching=true",
    "--batching_parameters_file=/models/batching.config",
    "--monitoring_config_file=/models/monitoring.config",
)

MODEL = """\
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
  }}
"""

# TF Serving's defaults for the rest: as many threads as the machine has processors.
BATCHING = f"""\
# A request may hold max_batch_size images, not more. The warm-up requests hold {MAX_BATCH}: a smaller number needs
# --enable_model_warmup=false.
max_batch_size {{ value: {MAX_BATCH} }}
batch_timeout_micros {{ value: 1000 }}
max_enqueued_batches {{ value: 100 }}
"""

MONITORING = """\
prometheus_config {
  enable: true
  path: "/monitoring/prometheus/metrics"
}
"""

# The image has bash, but nothing that speaks HTTP.
COMPOSE = """\
services:
  tensorflow-serving:
    image: ${{TF_SERVING_IMAGE:-tensorflow/serving}}
    command:
{flags}
    volumes:
      - .:/models:ro
    ports:
      - "8500:8500"  # gRPC
      - "8501:8501"  # REST
    restart: unless-stopped
    healthcheck:
      test:
        - CMD
        - bash
        - -c
        - >-
          for model in {names}; do
          exec 3<>/dev/tcp/127.0.0.1/8501 &&
          printf 'GET /v1/models/%s HTTP/1.0\\r\\n\\r\\n' $$model >&3 &&
          grep -Eq '"state": *"AVAILABLE"' <&3 || exit 1;
          done
      interval: 10s
      timeout: 5s
      start_period: 60s
"""

KUBERNETES = """\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: tensorflow-serving
  labels:
    app: tensorflow-serving
spec:
  selector:
    matchLabels:
      app: tensorflow-serving
  template:
    metadata:
      labels:
        app: tensorflow-serving
      annotations:
        prometheus.io/scrape: "true"
        prometheus.io/port: "8501"
        prometheus.io/path: /monitoring/prometheus/metrics
    spec:
      containers:
        - name: tensorflow-serving
          # ---- YOUR VERSION HERE: that which you tested; without one it may be another after every restart ----
          image: tensorflow/serving
          args:
{flags}
          ports:
            - name: grpc
              containerPort: 8500
            - name: rest
              containerPort: 8501
          # The server opens its ports once it has loaded every model of models.config: any page says that it is ready.
          readinessProbe:
            httpGet:
              path: /monitoring/prometheus/metrics
              port: 8501
            periodSeconds: 5
            timeoutSeconds: 5
          volumeMounts:
            - name: models
              mountPath: /models
              readOnly: true
      volumes:
        - name: models
          # ---- YOUR VOLUME HERE: any that holds this folder, models.config at its top ----
          persistentVolumeClaim:
            claimName: models
            readOnly: true
---
apiVersion: v1
kind: Service
metadata:
  name: tensorflow-serving
spec:
  selector:
    app: tensorflow-serving
  ports:
    - name: grpc
      port: 8500
    - name: rest
      port: 8501
"""


def write(root: pathlib.Path) -> list[str]:
    """Writes models.config, batching.config, monitoring.config, compose.yaml and kubernetes.yaml for all models.

    A file without its first line, `MARK`, is somebody's own and stays.

    Args:
        root: the folder of the models' folders.

    Returns:
        What the user should know: one line for each file that stays.
    """
    while True:
        names = models(root)
        kept = [name for name, text in texts(names).items() if not _write(root / name, text)]
        if models(root) == names:  # else another export ended meanwhile, and may have seen less than there is now
            return [f"Kept {root / name}, which is yours: it lacks the line {MARK.strip()!r}" for name in kept]


def check_name(model: pathlib.Path) -> None:
    """Finds that TF Serving can be told of a model by the name of its folder.

    Raises:
        UserError: if not.
    """
    if not NAME.fullmatch(model.name):
        raise UserError(
            "a folder that TF Serving is to serve has a name of letters, digits, '.', '_' and '-' that begins with a "
            f"letter or digit. Received: {model.name!r}; choose another --output, with "
            "--model another name of the file, or formats without saved_model"
        )


def models(root: pathlib.Path) -> list[str]:
    """The names of the models in a folder that TF Serving can load, in order."""
    return sorted(path.name for path in root.iterdir() if NAME.fullmatch(path.name) and is_served(path))


def is_served(model: pathlib.Path) -> bool:
    """Whether the largest version of a model, the one that TF Serving loads, is a SavedModel that may be read."""
    try:
        newest = files.newest_version(model)
        return newest is not None and (newest / "saved_model.pb").is_file()
    except PermissionError:
        return False


def texts(names: list[str]) -> dict[str, str]:
    """The files' contents by name, for models of these names, at least one."""
    return {
        "models.config": "model_config_list {\n" + "".join(MODEL.format(name=name) for name in names) + "}\n",
        "batching.config": BATCHING,
        "monitoring.config": MONITORING,
        "compose.yaml": COMPOSE.format(flags=_flags(6), names=" ".join(names)),
        "kubernetes.yaml": KUBERNETES.format(flags=_flags(12)),
    }


def _flags(indent: int) -> str:
    return "\n".join(" " * indent + f"- {flag}" for flag in SERVER_FLAGS)


def _write(path: pathlib.Path, text: str) -> bool:
    """Whether the file now says this; False if it is somebody's own."""
    if path.exists() and not path.read_bytes().startswith(MARK.encode()):
        return False
    with files.replacing(path) as temporary:
        temporary.write_text(MARK + text, encoding="utf-8", newline="\n")
    return True
