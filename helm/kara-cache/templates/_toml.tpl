{{/*
kara.toml. Scalars and lists are written as JSON, which TOML reads as the same values; helm's own toToml
writes whole numbers of a values file as floats.
*/}}
{{- define "kara.toml" -}}
{{- include "kara.check" . -}}
{{- $etcd := include "kara.etcdHosts" . -}}
{{- $config := .Values.worker.config -}}
[worker]
host = "0.0.0.0"
admin_host = "0.0.0.0"
admin_anonymous = true
page_dirs = {{ include "kara.pageDirs" . }}
socket_dir = "/run/kara"
secret = {{ printf "file:/etc/kara/auth/%s" .Values.auth.key | toJson }}
etcd_hosts = {{ $etcd }}
{{- if .Values.etcd.tlsSecret }}
etcd_tls_ca = "/etc/kara/etcd-tls/ca.crt"
{{- end }}
{{- if .Values.tls.enabled }}
tls_cert = "/etc/kara/tls/tls.crt"
tls_key = "/etc/kara/tls/tls.key"
tls_peer_ca = "/etc/kara/tls/ca.crt"
{{- if .Values.tls.clientCertificates }}
tls_client_ca = "/etc/kara/tls/ca.crt"
{{- end }}
{{- end }}
{{- if or $config.alluxio_list_port $config.alluxio_dict_port $config.alluxio_data_port }}
alluxio_host = "0.0.0.0"
{{- end }}
{{- if .Values.s3Keys.existingSecret }}
alluxio_s3_keys = {{ printf "file:/etc/kara/s3/%s" .Values.s3Keys.key | toJson }}
{{- end }}
{{- range $key, $value := $config }}
{{- if not (kindIs "invalid" $value) }}
{{ $key }} = {{ $value | toJson }}
{{- end }}
{{- end }}

[client]
{{- with $config.cluster_name }}
cluster_name = {{ . | toJson }}
{{- end }}
etcd_hosts = {{ $etcd }}
secret = {{ printf "file:/etc/kara/auth/%s" .Values.auth.key | toJson }}
state_dir = "/tmp/kara"
{{- if .Values.etcd.tlsSecret }}
etcd_tls_ca = "/etc/kara/etcd-tls/ca.crt"
{{- end }}
{{- if .Values.tls.enabled }}
tls_ca = "/etc/kara/tls/ca.crt"
tls_verify_hostname = false
{{- if .Values.tls.clientCertificates }}
tls_cert = "/etc/kara/tls/tls.crt"
tls_key = "/etc/kara/tls/tls.key"
{{- end }}
{{- end }}
{{- range $name, $mount := .Values.mounts }}

[mounts.{{ $name }}]
{{- range $key, $value := omit $mount "options" "credentials" }}
{{ $key }} = {{ $value | toJson }}
{{- end }}
{{- if or $mount.options $mount.credentials }}

[mounts.{{ $name }}.options]
{{- range $key, $value := $mount.options }}
{{ $key }} = {{ $value | toJson }}
{{- end }}
{{- with $mount.credentials }}
{{- range $option, $key := .keys }}
{{ $option }} = {{ printf "file:/etc/kara/mounts/%s/%s" $name $option | toJson }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
