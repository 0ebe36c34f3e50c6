{{- define "finetune-operator.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name }}{{ end -}}
{{- end }}

{{- /* Name of what belongs to no namespace: releases of one name in two namespaces are two operators. */ -}}
{{- define "finetune-operator.clusterName" -}}
{{ include "finetune-operator.name" . }}-{{ .Release.Namespace }}
{{- end }}

{{- define "finetune-operator.selector" -}}
app.kubernetes.io/name: finetune-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "finetune-operator.labels" -}}
{{ include "finetune-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "finetune-operator.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "finetune-operator.name" .) }}
{{- end }}

{{- define "finetune-operator.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- /* What the operator may do with the objects of the namespaces it serves. It has no right to read Secrets. */ -}}
{{- define "finetune-operator.rules" -}}
# Deleted when their TTL has passed.
- apiGroups: [finetune.dev]
  resources: [finetunejobs]
  verbs: [get, list, watch, delete]
- apiGroups: [finetune.dev]
  resources: [finetunejobs/status]
  verbs: [patch]
# Needed to set an owner reference that blocks deletion, where the API server checks that (OpenShift does).
- apiGroups: [finetune.dev]
  resources: [finetunejobs/finalizers]
  verbs: [update]
# A Job is created once and never applied again; patch is for its backoffLimit only.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete]
# A pod on a node that no longer answers is declared failed before it is deleted: the Job goes on only then.
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [services]
  verbs: [get, create]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, delete]
{{- if eq .Values.progress "apiProxy" }}
# Trainers are asked through the API server.
- apiGroups: [""]
  resources: [pods/proxy]
  verbs: [get]
{{- end }}
{{- if .Values.kueue.enabled }}
# Kueue's Workloads say why a job waits in its queue.
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list]
{{- end }}
# Warning Events of Jobs and pods say why nothing is running.
- apiGroups: [""]
  resources: [events]
  verbs: [list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end }}
