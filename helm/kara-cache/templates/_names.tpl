{{/* Names and labels. */}}
{{- define "kara.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{- else -}}{{ printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}{{- end -}}
{{- end -}}
{{- end -}}

{{- define "kara.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "kara.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "kara.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: kara-cache
{{- end -}}

{{- define "kara.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}{{ default (include "kara.fullname" .) .Values.serviceAccount.name }}{{- else -}}{{ default "default" .Values.serviceAccount.name }}{{- end -}}
{{- end -}}

{{- define "kara.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}

{{- define "kara.authSecret" -}}
{{ default (printf "%s-auth" (include "kara.fullname" .)) .Values.auth.existingSecret }}
{{- end -}}

{{- define "kara.tlsSecret" -}}
{{ default (printf "%s-tls" (include "kara.fullname" .)) .Values.tls.existingSecret }}
{{- end -}}

{{- define "kara.etcdHosts" -}}
{{- if .Values.etcd.trial.enabled -}}
{{ list (printf "%s-etcd.%s.svc.%s:2379" (include "kara.fullname" .) .Release.Namespace .Values.clusterDomain) | toJson }}
{{- else -}}
{{ .Values.etcd.hosts | toJson }}
{{- end -}}
{{- end -}}

{{/* What cannot be meant, in words. */}}
{{- define "kara.check" -}}
{{- if and .Values.etcd.trial.enabled .Values.etcd.hosts -}}
{{- fail "etcd: both hosts and trial.enabled are set, members come from one etcd only" -}}
{{- end -}}
{{- if not (or .Values.etcd.trial.enabled .Values.etcd.hosts) -}}
{{- fail "etcd: set etcd.hosts to the members of your etcd, or etcd.trial.enabled=true for a trial" -}}
{{- end -}}
{{- if and .Values.tls.enabled (not .Values.tls.existingSecret) (not .Values.tls.certManager.enabled) -}}
{{- fail "tls: set tls.existingSecret, or tls.certManager.enabled with an issuerRef" -}}
{{- end -}}
{{- if and .Values.tls.certManager.enabled (not .Values.tls.certManager.issuerRef.name) -}}
{{- fail "tls.certManager: issuerRef.name is missing" -}}
{{- end -}}
{{- if and (eq .Values.worker.kind "DaemonSet") (not .Values.worker.cache.hostPaths) -}}
{{- fail "worker.cache.hostPaths: a DaemonSet needs at least one directory of the node" -}}
{{- end -}}
{{- range $name, $mount := .Values.mounts -}}
{{- if not $mount.url -}}
{{- fail (printf "mounts.%s: url is missing" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
