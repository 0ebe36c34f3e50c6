#!/usr/bin/env bash
# up.sh   A kind cluster with everything that a FineTuneJob needs: the two images, an S3 server with the example
#         pictures, Prometheus, and the operator by Helm. Can be run again at any time: it makes what is missing
#         and brings the rest up to date.
set -euo pipefail
source "$(dirname "$0")/../lib.sh"
need docker kind kubectl helm
need_docker
cd "$ROOT"
kubectl() { command kubectl --context "kind-$KIND_CLUSTER" "$@"; }

# A cluster outlives the Docker engine only as stopped containers. They are started; what does not come back is made
# anew.
revived() {
  cluster_exists || return 1
  kind get nodes --name "$KIND_CLUSTER" | xargs docker start >/dev/null
  kind export kubeconfig --name "$KIND_CLUSTER" --quiet
  timeout 60 bash -c "until kubectl --context kind-$KIND_CLUSTER get --raw /readyz >/dev/null 2>&1; do sleep 1; done"
}

cluster() {
  if revived; then
    echo "    it exists"
  else
    kind delete cluster --name "$KIND_CLUSTER" --quiet
    kind create cluster --name "$KIND_CLUSTER" --image "$KIND_NODE_IMAGE" --config kind-config.yaml --wait 120s --quiet
  fi
  kubectl wait --for=condition=Ready node --all --timeout=120s >/dev/null
}

# Images that this machine has go to the nodes, through a pipe: `kind load` writes them to a file first, and twice if
# they have not changed. The label says which build a node has. A node pulls what this machine has not.
load_into() { # node
  local node=$1 image id name
  for image in "$OPERATOR_IMAGE" "$TRAINER_IMAGE" "$S3_IMAGE" "$PROMETHEUS_IMAGE"; do
    id=$(docker image inspect --format '{{.Id}}' "$image" 2>/dev/null) || continue
    case $image in *.*/*) name=$image ;; */*) name=docker.io/$image ;; *) name=docker.io/library/$image ;; esac
    if docker exec "$node" ctr -n k8s.io images ls "name==$name,labels.\"finetune.dev/build\"==$id" -q | grep -q .; then
      echo "    $image is in $node"
      continue
    fi
    docker save "$image" | docker exec -i "$node" ctr -n k8s.io images import --snapshotter=overlayfs - >/dev/null
    docker exec "$node" ctr -n k8s.io images label "$name" "finetune.dev/build=$id" >/dev/null
    echo "    $image loaded into $node"
  done
}

# All nodes at the same time, which takes half as long as one after the other.
load() {
  local node pid pids=()
  for node in $(kind get nodes --name "$KIND_CLUSTER"); do
    load_into "$node" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid"; done
}

# The keys are made once and live in the cluster only. Printed as `export` lines for the commands that need them.
s3_keys() {
  if ! kubectl -n finetune-demo get secret s3-root >/dev/null 2>&1; then
    kubectl -n finetune-demo create secret generic s3-root \
      --from-literal=AWS_ACCESS_KEY_ID="demo$(openssl rand -hex 6)" \
      --from-literal=AWS_SECRET_ACCESS_KEY="$(openssl rand -hex 20)" >/dev/null
  fi
  local key
  for key in AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; do
    printf 'export %s=%q\n' "$key" "$(kubectl -n finetune-demo get secret s3-root -o "go-template={{index .data \"$key\" | base64decode}}")"
  done
}

services() {
  local file
  kubectl apply -f hack/kind/namespaces.yaml >/dev/null
  kubectl label namespace default --overwrite pod-security.kubernetes.io/enforce=restricted >/dev/null
  eval "$(s3_keys)"
  kubectl create secret generic s3-credentials --dry-run=client -o yaml \
    --from-literal=AWS_ACCESS_KEY_ID="$AWS_ACCESS_KEY_ID" --from-literal=AWS_SECRET_ACCESS_KEY="$AWS_SECRET_ACCESS_KEY" |
    kubectl -n default apply -f - >/dev/null
  kubectl -n monitoring create configmap prometheus-discovery --from-file=hack/kind/discovery.py --dry-run=client -o yaml |
    kubectl apply -f - >/dev/null
  for file in s3 prometheus; do
    sed -e "s|S3_IMAGE|$S3_IMAGE|; s|PROMETHEUS_IMAGE|$PROMETHEUS_IMAGE|; s|OPERATOR_IMAGE|$OPERATOR_IMAGE|" "hack/kind/$file.yaml" |
      kubectl apply -f - >/dev/null
  done
  kubectl -n finetune-demo rollout status deployment/s3 --timeout=180s >/dev/null
  kubectl -n monitoring rollout status deployment/prometheus --timeout=180s >/dev/null
}

pictures() {
  eval "$(s3_keys)"
  "$PYTHON" hack/kind/load_examples.py --endpoint http://127.0.0.1:30070 --subjects examples/subjects
}

operator() {
  # The tag is the same for each build: the image's id makes Helm roll the pods when the image has changed.
  helm upgrade --install finetune-operator charts/finetune-operator --kube-context "kind-$KIND_CLUSTER" \
    --namespace finetune-system --values hack/kind/values.yaml \
    --set-string "podAnnotations.finetune\.dev/image-id=$(docker image inspect --format '{{.Id}}' "$OPERATOR_IMAGE")" \
    --wait --timeout 180s >/dev/null
}

begin=$SECONDS
step "cluster $KIND_CLUSTER from $KIND_NODE_IMAGE (the first time 1 minute)" cluster
"$ROOT/hack/images.sh"
step "loading the images into the nodes (the first time 2 minutes)" load
step "S3 server and Prometheus" services
step "buckets and the pictures of examples/subjects" pictures
step "the operator, by Helm" operator

cat <<END
All is up after $((SECONDS - begin)) s. What to do next:
  kubectl apply -f examples/finetunejob.yaml
  kubectl get finetunejobs -w
Prometheus answers at http://127.0.0.1:30090 and the S3 server at http://127.0.0.1:30070, with the keys of
  kubectl get secret s3-credentials -o yaml
make kind-down removes the cluster.
END
