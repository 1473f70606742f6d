{{- define "eosin.fullname" -}}
{{- if contains "eosin" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-eosin" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "eosin.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: eosin
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of the training pods, as `eosin.cluster.names.labels` writes them. */}}
{{- define "eosin.trainSelector" -}}
app.kubernetes.io/name: eosin
app.kubernetes.io/component: train
app.kubernetes.io/managed-by: eosin
{{- end }}

{{- define "eosin.s3Secret" -}}
{{- if .Values.s3.existingSecret }}{{ .Values.s3.existingSecret }}{{ else if .Values.s3.accessKeyId }}{{ include "eosin.fullname" . }}-s3{{ end }}
{{- end }}

{{- define "eosin.priorityClass" -}}
{{- printf "%s-%s-%s" .root.Release.Namespace (include "eosin.fullname" .root) .which | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The presets of the `cluster` section: what the values imply, then what they say of it. */}}
{{- define "eosin.cluster" -}}
{{- $s3 := dict -}}
{{- with include "eosin.s3Secret" . }}{{ $_ := set $s3 "secret" . }}{{ end -}}
{{- with .Values.s3.endpointUrl }}{{ $_ := set $s3 "endpoint_url" . }}{{ end -}}
{{- with .Values.s3.region }}{{ $_ := set $s3 "region" . }}{{ end -}}
{{- with .Values.s3.caConfigMap }}{{ $_ := set $s3 "ca_config_map" . }}{{ end -}}
{{- $preset := dict "service_account" .Values.serviceAccounts.train.name "watcher_account" .Values.serviceAccounts.watcher.name "image_pull_policy" .Values.images.pullPolicy -}}
{{- with .Values.images.train }}{{ $_ := set $preset "image" . }}{{ end -}}
{{- with .Values.images.pullSecrets }}{{ $_ := set $preset "image_pull_secrets" . }}{{ end -}}
{{- if $s3 }}{{ $_ := set $preset "s3" $s3 }}{{ end -}}
{{- if .Values.queue.create }}{{ $_ := set $preset "queue" .Values.queue.name }}{{ end -}}
{{- if .Values.priorityClasses.create -}}
{{- $_ := set $preset "priority_class" (include "eosin.priorityClass" (dict "root" . "which" "anchor")) -}}
{{- $_ := set $preset "spot_priority_class" (include "eosin.priorityClass" (dict "root" . "which" "spot")) -}}
{{- end -}}
{{- toYaml (mergeOverwrite $preset (deepCopy .Values.cluster)) -}}
{{- end }}

{{/* What the steps of a pipeline are told of the values: parameter by parameter. */}}
{{- define "eosin.stepParameters" -}}
{{- $parameters := dict -}}
{{- range $image := list "index" "train" "evaluate" }}{{ with index $.Values.images $image }}{{ $_ := set $parameters (printf "%s_image" $image) . }}{{ end }}{{ end -}}
{{- with include "eosin.s3Secret" . }}{{ $_ := set $parameters "s3_secret" . }}{{ end -}}
{{- with .Values.s3.caConfigMap }}{{ $_ := set $parameters "s3_ca_config_map" . }}{{ end -}}
{{- with .Values.images.pullSecrets }}{{ $_ := set $parameters "image_pull_secret" (first .) }}{{ end -}}
{{- toYaml $parameters -}}
{{- end }}

{{- define "eosin.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "eosin.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}
