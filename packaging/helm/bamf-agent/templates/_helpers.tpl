{{/* The names are those of the platform's chart, so that a Secret made by one is found by the other. */}}
{{- define "bamf.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := default "bamf" .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "bamf.agent" -}}
{{ include "bamf.fullname" . }}-agent
{{- end }}

{{- define "bamf.serviceAccount" -}}
{{- if .Values.agent.serviceAccount.create }}
{{- default (include "bamf.agent" .) .Values.agent.serviceAccount.name }}
{{- else }}
{{- required "agent.serviceAccount.name is required where agent.serviceAccount.create is false" .Values.agent.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "bamf.selector" -}}
app.kubernetes.io/name: bamf
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: agent
{{- end }}

{{- define "bamf.labels" -}}
{{ include "bamf.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "bamf.image" -}}
{{- $image := .Values.agent.image }}
{{- $tag := default .Chart.AppVersion $image.tag }}
{{- if .Values.global.imageRegistry }}
{{- printf "%s/%s:%s" (trimSuffix "/" .Values.global.imageRegistry) $image.repository $tag }}
{{- else }}
{{- printf "%s:%s" $image.repository $tag }}
{{- end }}
{{- end }}

{{/* What the agent's file says, as an object: it is written as YAML and hashed from this. */}}
{{- define "bamf.config" -}}
{{- $agent := .Values.agent }}
{{- $config := dict
  "platform_url" (required "agent.platformUrl is required: the platform's address, e.g. https://bamf.example.com" $agent.platformUrl)
  "agent_name" (required "agent.config.name is required: the agent's name on the platform" $agent.config.name)
  "data_dir" $agent.dataDir
  "listen" "0.0.0.0:8081"
  "cluster_internal" $agent.clusterInternal
  "labels" $agent.config.labels
  "resources" $agent.config.resources
}}
{{- /* What remains of the grace period is for the goodbyes: see docs/kubernetes.md. */}}
{{- $drain := max 0 (sub (int $agent.terminationGracePeriodSeconds) 30) }}
{{- $_ := set $config "update" (dict "drain_timeout" (printf "%ds" (int $drain))) }}
{{- if $agent.zone }}{{ $_ := set $config "zone" $agent.zone }}{{ end }}
{{- if $agent.allowInsecureHttp }}{{ $_ := set $config "allow_insecure_http" true }}{{ end }}
{{- toYaml $config }}
{{- end }}

{{- define "bamf.tokenSecret" -}}
{{- if .Values.agent.joinTokenSecret }}
{{- .Values.agent.joinTokenSecret }}
{{- else if .Values.agent.joinToken }}
{{- include "bamf.agent" . }}-join-token
{{- else }}
{{- fail "agent.joinToken or agent.joinTokenSecret is required: without either the agent cannot join" }}
{{- end }}
{{- end }}
