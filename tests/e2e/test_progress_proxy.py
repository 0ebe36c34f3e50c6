"""How far a trainer is, asked through the API server, as an operator outside the cluster would ask."""

from __future__ import annotations

import stamina
from finetune_api.progress import Progress
from finetune_operator.connection import Connection
from finetune_operator.progress.client import NoProgressError, ProgressClient
from finetune_operator.projections import PodState, pod_state
from jobs import example, step
from kubernetes.aio import client as aio_client
from kubernetes.aio import config as aio_config
from support.cluster import Cluster, Namespace


async def test_progress_through_the_api_server(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(example("finetunejob.yaml", namespace))
    found = namespace.job("figure").until(lambda job: step(job) > 0, seconds=120, what="the first steps")
    (pod,) = namespace.pods("figure")
    settings = aio_client.Configuration()
    await aio_config.load_kube_config(config_file=str(cluster.kubeconfig), client_configuration=settings)
    connection = Connection(settings)
    client = ProgressClient(8000, connection)
    try:
        progress = await answer_of(client, pod_state(pod))
    finally:
        await client.close()
        await connection.close()
    assert progress.step >= step(found), "the operator has asked at the pod's address, earlier"
    assert progress.stage == "Training"


async def answer_of(client: ProgressClient, pod: PodState) -> Progress:
    """The operator asks again a few seconds later where a trainer does not answer in time; so does this."""
    async for attempt in stamina.retry_context(on=NoProgressError, attempts=10, timeout=60):
        with attempt:
            return await client.ask(pod)
    raise AssertionError("not reached: the last attempt raises")
