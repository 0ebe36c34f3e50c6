"""How far a trainer is, asked through the API server, as an operator outside the cluster would ask."""

from __future__ import annotations

from finetune_api.progress import Progress
from finetune_operator.progress.client import ProgressClient
from finetune_operator.projections import pod_state
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
    async with aio_client.ApiClient(settings) as api:
        asked = ProgressClient(8000, api)
        try:
            progress: Progress = await asked.ask(pod_state(pod))
        finally:
            await asked.close()
    assert progress.step >= step(found), "the operator has asked at the pod's address, earlier"
    assert progress.stage == "Training"
