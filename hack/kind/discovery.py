"""Tells the demo's Prometheus which pods to read: HTTP service discovery over a list of the cluster's pods.

Runs beside Prometheus in the operator's image. Prometheus has a discovery of Kubernetes' own, but not in each of its
builds (Debian's leaves it out), and the demo runs with any of them.
"""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

PORT = 9099
SELECTOR = "app.kubernetes.io/name in (finetune-trainer, finetune-operator)"
PORT_NAME = "metrics"


def target_groups(pods: list[client.V1Pod]) -> list[dict[str, object]]:
    """One group for each running pod that has a port ``metrics``, labelled with its namespace and name."""
    return [
        {
            "targets": [f"{pod.status.pod_ip}:{port.container_port}"],
            "labels": {"namespace": pod.metadata.namespace, "pod": pod.metadata.name},
        }
        for pod in pods
        if pod.status.phase == "Running" and pod.status.pod_ip and not pod.metadata.deletion_timestamp
        for container in pod.spec.containers
        for port in container.ports or []
        if port.name == PORT_NAME
    ]


class Handler(BaseHTTPRequestHandler):
    """Answers every GET with the targets of this moment; with 503, upon which Prometheus keeps those it has."""

    def do_GET(self) -> None:
        try:
            pods = client.CoreV1Api().list_pod_for_all_namespaces(label_selector=SELECTOR, _request_timeout=5).items
        except (ApiException, HTTPError) as error:
            logging.warning("listing pods: %s", error)
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, "the API server does not answer")
            return
        body = json.dumps(target_groups(pods)).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Prometheus asks every other second: not worth a line each."""


def main() -> None:
    config.load_incluster_config()
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()


if __name__ == "__main__":
    main()
